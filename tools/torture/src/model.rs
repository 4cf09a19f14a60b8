//! The reference: the content that a store must have after each prefix of the submitted writes.
//!
//! A store has two histories: *commits*, in the order of the log, and *edits* of the set of keyspaces, which are durable
//! independently. A crash leaves one state of each: the writes of the first `n` commits to keyspaces that exist after the
//! first `m` edits.
//!
//! Invariants: a keyspace that was dropped and created again is a different one, with its own number. State 0 is the
//! beginning of the history. States are never changed, so snapshots can keep them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The pairs of one keyspace.
pub(crate) type Table = BTreeMap<Bytes, Bytes>;

/// The existing keyspaces by name, with the number of their creation.
pub(crate) type Names = BTreeMap<&'static str, u32>;

/// The content of all keyspaces that ever existed.
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

/// The length of each history.
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

/// The acknowledged and the submitted writes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acks {
    /// Survives the death of the process.
    pub(crate) process: Prefix,
    /// Survives a power cut.
    pub(crate) power: Prefix,
    /// The upper limit: everything that was handed to the store.
    pub(crate) submitted: Prefix,
}

impl Acks {
    /// The states that may be found after the death of the process.
    pub(crate) fn after_process_crash(&self) -> Bounds {
        self.from(self.process)
    }

    /// The states that may be found after a power cut.
    pub(crate) fn after_power_cut(&self) -> Bounds {
        self.from(self.power)
    }

    /// The acknowledgements after a power cut: writes that were not durable may be gone.
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

    /// The length of both histories.
    pub(crate) fn end(&self) -> Prefix {
        Prefix { commits: self.states.len() - 1, edits: self.names.len() - 1 }
    }

    /// The content after the first commits.
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

    /// Removes everything after a prefix: a crash has shown that it is lost, or a call that it never happened.
    pub(crate) fn truncate(&mut self, prefix: Prefix) {
        self.states.truncate(prefix.commits + 1);
        self.names.truncate(prefix.edits + 1);
    }
}
