//! One simulated directory: its visible names, its durable names, and the changes in between.
//!
//! Invariant: applying all of `pending` to `durable` gives `volatile` (unless some are marked `lost`). Directories are
//! identified by their path.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::pending::PendingUnit;

/// The file or directory that a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirEntry {
    File(u64),
    Dir,
}

/// Names in order, with their entries.
pub(crate) type Names = BTreeMap<Arc<str>, DirEntry>;

#[derive(Clone, Debug)]
pub(crate) enum NameChange {
    Set { name: Arc<str>, entry: DirEntry },
    Clear { name: Arc<str> },
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Set { name, entry } => {
                names.insert(Arc::clone(name), *entry);
            }
            NameChange::Clear { name } => {
                names.remove(name);
            }
        }
    }

    fn name(&self) -> &Arc<str> {
        match self {
            NameChange::Set { name, .. } | NameChange::Clear { name } => name,
        }
    }

    fn entry(&self) -> Option<DirEntry> {
        match self {
            NameChange::Set { entry, .. } => Some(*entry),
            NameChange::Clear { .. } => None,
        }
    }

    fn shares_name(&self, other: &NameChange) -> bool {
        self.name() == other.name()
    }
}

/// A directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dir {
    volatile: Names,
    durable: Names,
    pending: Vec<(NameChange, bool)>,
}

impl Dir {
    /// Whether a power cut would not change it.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn names(&self) -> &Names {
        &self.volatile
    }

    pub(crate) fn durable_names(&self) -> &Names {
        &self.durable
    }

    pub(crate) fn change(&mut self, change: NameChange) {
        change.apply(&mut self.volatile);
        self.pending.push((change, false));
    }

    /// Makes the names durable, except changes that an earlier failed sync has lost.
    pub(crate) fn sync(&mut self) {
        for (change, lost) in std::mem::take(&mut self.pending) {
            if lost {
                self.pending.push((change, true));
            } else {
                change.apply(&mut self.durable);
                self.pending.retain(|(older, _)| !older.shares_name(&change));
            }
        }
    }

    /// Marks all pending changes as lost after a failed sync: no later sync makes them durable.
    pub(crate) fn sync_failed(&mut self) {
        for (_, lost) in &mut self.pending {
            *lost = true;
        }
    }

    /// Every entry that a name may refer to, now or after a power cut.
    pub(crate) fn entries(&self) -> impl Iterator<Item = DirEntry> {
        let named = self.volatile.values().chain(self.durable.values()).copied();
        named.chain(self.pending.iter().filter_map(|(change, _)| change.entry()))
    }

    /// The directory after a power cut. Calls `keep` once for each change, in order. A change is also dropped if an
    /// earlier change to its name was dropped.
    pub(crate) fn power_cut(&self, path: &Path, keep: &mut dyn FnMut(PendingUnit<'_>) -> bool) -> Dir {
        let mut left = self.durable.clone();
        let mut dropped: Vec<&NameChange> = Vec::new();
        for (index, (change, _)) in self.pending.iter().enumerate() {
            let kept = keep(PendingUnit::Name { dir: path, index });
            if kept && !dropped.iter().any(|older| older.shares_name(change)) {
                change.apply(&mut left);
            } else {
                dropped.push(change);
            }
        }
        Dir { volatile: left.clone(), durable: left, pending: Vec::new() }
    }
}
