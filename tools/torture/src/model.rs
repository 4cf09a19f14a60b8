//! The reference: what a store must hold, after each prefix of what was submitted to it.
//!
//! A store has two histories: *commits*, in the order of the log, and *edits* of the set of keyspaces, which are durable
//! on their own. What a crash leaves is one state of each: the writes of the first `n` commits, as far as they went to
//! keyspaces that exist after the first `m` edits.
//!
//! Invariants: a keyspace that was dropped and made again is another one, with a number of its own; state 0 is what the
//! history began with; states are never changed, so they can be kept by snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The pairs of one keyspace.
pub(crate) type Table = BTreeMap<Bytes, Bytes>;

/// The keyspaces that exist, by name, with the number of their making.
pub(crate) type Names = BTreeMap<&'static str, u32>;

/// What all keyspaces that ever existed would hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    tables: BTreeMap<u32, Arc<Table>>,
}

impl State {
    /// The pairs of a keyspace.
    pub(crate) fn table(&self, keyspace: u32) -> Arc<Table> {
        self.tables.get(&keyspace).map(Arc::clone).unwrap_or_default()
    }
}

/// One write of a commit: `None` deletes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelWrite {
    pub(crate) keyspace: u32,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

/// How far each history has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Prefix {
    pub(crate) commits: usize,
    pub(crate) edits: usize,
}

/// Which prefixes a crash may leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    pub(crate) commits: RangeInclusive<usize>,
    pub(crate) edits: RangeInclusive<usize>,
}

impl Bounds {
    /// This prefix and no other.
    pub(crate) fn exactly(prefix: Prefix) -> Bounds {
        Bounds { commits: prefix.commits..=prefix.commits, edits: prefix.edits..=prefix.edits }
    }

    pub(crate) fn contain(&self, prefix: Prefix) -> bool {
        self.commits.contains(&prefix.commits) && self.edits.contains(&prefix.edits)
    }
}

/// What was acknowledged and what was submitted, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acks {
    /// Survives the death of the process.
    pub(crate) process: Prefix,
    /// Survives a power cut.
    pub(crate) power: Prefix,
    /// Nothing beyond this was ever handed to the store.
    pub(crate) submitted: Prefix,
}

impl Acks {
    /// What may be found after the death of the process.
    pub(crate) fn after_process_crash(&self) -> Bounds {
        self.from(self.process)
    }

    /// What may be found after a power cut.
    pub(crate) fn after_power_cut(&self) -> Bounds {
        self.from(self.power)
    }

    /// What is known of a disk that was left by a power cut: what was not durable may be gone.
    #[must_use]
    pub(crate) fn cut(self) -> Acks {
        Acks { process: self.power, ..self }
    }

    /// This prefix and no other.
    pub(crate) fn exactly(prefix: Prefix) -> Acks {
        Acks { process: prefix, power: prefix, submitted: prefix }
    }

    fn from(&self, least: Prefix) -> Bounds {
        Bounds { commits: least.commits..=self.submitted.commits, edits: least.edits..=self.submitted.edits }
    }
}

/// Both histories, and all their states.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    states: Vec<State>,
    names: Vec<Names>,
    last_keyspace: u32,
    used: BTreeSet<Bytes>,
}

impl Model {
    /// A new store: one empty keyspace, `default`.
    pub(crate) fn new() -> Model {
        Model {
            states: vec![State::default()],
            names: vec![Names::from([("default", 1)])],
            last_keyspace: 1,
            used: BTreeSet::new(),
        }
    }

    /// How far both histories go.
    pub(crate) fn end(&self) -> Prefix {
        Prefix { commits: self.states.len() - 1, edits: self.names.len() - 1 }
    }

    /// What the first commits leave.
    pub(crate) fn state(&self, commits: usize) -> &State {
        &self.states[commits]
    }

    /// The keyspaces after the first edits.
    pub(crate) fn names(&self, edits: usize) -> &Names {
        &self.names[edits]
    }

    /// The newest state.
    pub(crate) fn newest(&self) -> &State {
        self.state(self.end().commits)
    }

    /// The keyspaces now.
    pub(crate) fn newest_names(&self) -> &Names {
        self.names(self.end().edits)
    }

    /// Every key that was ever written.
    pub(crate) fn used_keys(&self) -> &BTreeSet<Bytes> {
        &self.used
    }

    /// Adds a commit.
    pub(crate) fn commit(&mut self, writes: &[ModelWrite]) {
        let mut state = self.newest().clone();
        for write in writes {
            self.used.insert(write.key.clone());
            let table = Arc::make_mut(state.tables.entry(write.keyspace).or_default());
            match &write.value {
                Some(value) => table.insert(write.key.clone(), value.clone()),
                None => table.remove(&write.key),
            };
        }
        self.states.push(state);
    }

    /// Adds an edit that makes a keyspace.
    pub(crate) fn create(&mut self, name: &'static str) {
        self.last_keyspace += 1;
        let mut names = self.newest_names().clone();
        names.insert(name, self.last_keyspace);
        self.names.push(names);
    }

    /// Adds an edit that drops a keyspace.
    pub(crate) fn drop_keyspace(&mut self, name: &str) {
        let mut names = self.newest_names().clone();
        names.remove(name);
        self.names.push(names);
    }

    /// Forgets what came after a prefix: a crash has shown that it is lost, or a call that it never happened.
    pub(crate) fn truncate(&mut self, prefix: Prefix) {
        self.states.truncate(prefix.commits + 1);
        self.names.truncate(prefix.edits + 1);
    }
}
