//! Walks a memtable leaf by leaf, in place: entries are given by reference, nothing of them is copied.
//!
//! A leaf's references are copied when the cursor enters it. Forwards it goes on to the leaf at the right as of that
//! moment; backwards it looks for the leaf before the first key. Both way the keys of the next leaf join on, however the
//! tree has changed meanwhile. What is inserted after a leaf was copied may or may not be seen.
//!
//! Invariant: nothing is held between calls but the table itself, so whoever iterates can write to it.

use std::sync::Arc;

use super::arena::{Ref, Version};
use super::table::Memtable;
use super::tree::{Leaf, Target};
use crate::base::error::Result;
use crate::base::key::Entry;
use crate::read::cursor::Cursor;

/// So many keys ahead versions are brought near: they lie anywhere in memory, in the order in which they were inserted.
const PREFETCH_KEYS: usize = 8;

/// See [`Memtable::cursor`]. Its calls never fail.
#[derive(Debug)]
pub(crate) struct MemtableCursor {
    table: Arc<Memtable>,
    leaf: Option<Leaf>,
    /// The key of the leaf at which it stands.
    at: usize,
    version: Option<Ref<Version>>,
    /// On the way forward: the next older version of this key, as of the moment at which the cursor came to this one.
    older: Option<Ref<Version>>,
    /// On the way back: the versions of this key that are still to come, which are newer, the newest first.
    newer: Vec<Ref<Version>>,
}

impl Memtable {
    /// Walks it, and keeps it alive. No lock is taken; what is inserted later may or may not be seen.
    pub(crate) fn cursor(self: &Arc<Self>) -> MemtableCursor {
        let table = Arc::clone(self);
        MemtableCursor { table, leaf: None, at: 0, version: None, older: None, newer: Vec::new() }
    }
}

impl MemtableCursor {
    /// Enters the leaf in which `target` is, if there is one.
    fn seek_leaf(&mut self, target: Target<'_>) {
        self.leaf = self.table.tree().leaf(target);
        self.at = self.leaf.as_ref().map_or(0, Leaf::rank);
        self.newer.clear();
    }

    /// The leaf was entered on the way forward.
    fn prefetch_first(&self) {
        let arena = self.table.tree().arena();
        let versions = |leaf: &Leaf| leaf.versions(self.at, PREFETCH_KEYS).for_each(|at| arena.prefetch(at));
        self.leaf.iter().for_each(versions);
    }

    /// Stands on a version, on the way forward.
    #[inline]
    fn stand_forwards(&mut self, version: Ref<Version>) {
        self.version = Some(version);
        self.older = self.table.tree().arena().older(version).load();
    }

    /// To the newest version of the key at `at`, or of the first key of the next leaf.
    fn enter_forwards(&mut self) {
        self.version = None;
        self.older = None;
        while let Some(leaf) = &self.leaf {
            if let Some(version) = leaf.version(self.at) {
                self.stand_forwards(version);
                return;
            }
            self.leaf = self.table.tree().next_leaf(leaf);
            self.at = 0;
            self.prefetch_first();
        }
    }

    /// To the oldest version of the key before `at`, or of the last key of the leaf before.
    fn enter_backwards(&mut self) {
        self.version = None;
        self.older = None;
        self.newer.clear();
        while let Some(leaf) = &self.leaf {
            if let Some(at) = self.at.checked_sub(1) {
                self.at = at;
                let mut version = leaf.version(at);
                while let Some(at) = version {
                    self.newer.push(at);
                    version = self.table.tree().arena().older(at).load();
                }
                self.version = self.newer.pop();
                return;
            }
            self.leaf = self.table.tree().leaf_before(leaf);
            self.at = self.leaf.as_ref().map_or(0, Leaf::rank);
        }
    }
}

impl Cursor for MemtableCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.seek_leaf(Target::At(key));
        self.prefetch_first();
        self.enter_forwards();
        Ok(())
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.seek_leaf(key.map_or(Target::Rightmost, Target::Before));
        self.enter_backwards();
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        debug_assert!(self.version.is_some(), "a cursor past the end was moved");
        if let Some(older) = self.older {
            self.stand_forwards(older);
        } else {
            self.at += 1;
            self.enter_forwards();
        }
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        debug_assert!(self.version.is_some(), "a cursor past the end was moved");
        self.version = self.newer.pop();
        if self.version.is_none() {
            self.enter_backwards();
        }
        Ok(())
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        self.version.map(|version| self.table.tree().arena().entry(version))
    }

    /// The other versions were noted when it came to this one, so nothing that is inserted meanwhile comes between.
    #[inline]
    fn ends_key(&self) -> bool {
        self.version.is_some() && self.older.is_none() && self.newer.is_empty()
    }

    /// Within the leaf.
    #[inline]
    fn quick_next(&mut self) -> bool {
        let Some(leaf) = self.leaf.as_ref().filter(|_| self.ends_key()) else { return false };
        let Some(version) = leaf.version(self.at + 1) else { return false };
        self.at += 1;
        if let Some(ahead) = leaf.version(self.at + PREFETCH_KEYS) {
            self.table.tree().arena().prefetch(ahead);
        }
        self.stand_forwards(version);
        true
    }

    /// Within the leaf, to a key of one version.
    #[inline]
    fn quick_prev(&mut self) -> bool {
        let Some(at) = self.at.checked_sub(1).filter(|_| self.ends_key()) else { return false };
        let Some(version) = self.leaf.as_ref().and_then(|leaf| leaf.version(at)) else { return false };
        if self.table.tree().arena().older(version).load().is_some() {
            return false;
        }
        self.at = at;
        self.version = Some(version);
        true
    }
}
