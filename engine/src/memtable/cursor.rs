//! Walks a memtable leaf by leaf. Entries are returned by reference, without a copy.
//!
//! The cursor copies a leaf's references when it enters the leaf. Forwards it moves to the right neighbour as of that moment;
//! backwards it searches for the leaf before the first key. In both directions the keys of the next leaf continue those of
//! this one, even if the tree has changed meanwhile. An entry inserted after its leaf was copied may or may not be seen.
//!
//! Invariant: between calls the cursor keeps the table alive and holds no latch, so the owner of an iterator can write to the
//! table.

use std::sync::Arc;

use super::arena::{KeyVersion, Ref};
use super::table::Memtable;
use super::tree::{Leaf, LeafTarget};
use crate::base::error::Result;
use crate::base::key::Entry;
use crate::read::cursor::Cursor;

/// Versions are prefetched this many keys ahead. They are in memory in the order of their inserts, not by key.
const PREFETCH_KEYS: usize = 8;

/// See [`Memtable::cursor`]. Its calls never fail.
#[derive(Debug)]
pub(crate) struct MemtableCursor {
    table: Arc<Memtable>,
    leaf: Option<Leaf>,
    /// Index of the current key in the leaf.
    at: usize,
    version: Option<Ref<KeyVersion>>,
    /// Forwards: the next older version of this key, as of the moment at which the cursor reached the current one.
    older: Option<Ref<KeyVersion>>,
    /// Backwards: the remaining versions of this key. They are newer than the current one; the newest is first.
    newer: Vec<Ref<KeyVersion>>,
}

impl Memtable {
    /// A cursor, which keeps the table alive. It takes no lock; entries that are inserted later may or may not be seen.
    pub(crate) fn cursor(self: &Arc<Self>) -> MemtableCursor {
        let table = Arc::clone(self);
        MemtableCursor { table, leaf: None, at: 0, version: None, older: None, newer: Vec::new() }
    }
}

impl MemtableCursor {
    /// Enters the leaf of `target`, if there is one.
    fn seek_leaf(&mut self, target: LeafTarget<'_>) {
        self.leaf = self.table.tree().leaf(target);
        self.at = self.leaf.as_ref().map_or(0, Leaf::rank);
        self.newer.clear();
    }

    /// Prefetches the first versions after the leaf was entered forwards.
    fn prefetch_first(&self) {
        let arena = self.table.tree().arena();
        let versions = |leaf: &Leaf| leaf.versions(self.at, PREFETCH_KEYS).for_each(|at| arena.prefetch(at));
        self.leaf.iter().for_each(versions);
    }

    /// Makes this version the current one, forwards.
    #[inline]
    fn stand_forwards(&mut self, version: Ref<KeyVersion>) {
        self.version = Some(version);
        self.older = self.table.tree().arena().older(version).load();
    }

    /// Moves to the newest version of the key at `at`, or of the first key of the next leaf.
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

    /// Moves to the oldest version of the key before `at`, or of the last key of the previous leaf.
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
        self.seek_leaf(LeafTarget::At(key));
        self.prefetch_first();
        self.enter_forwards();
        Ok(())
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.seek_leaf(key.map_or(LeafTarget::Rightmost, LeafTarget::Before));
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

    /// The other versions were stored when the cursor reached this key, so an entry inserted since is not among them.
    #[inline]
    fn ends_key(&self) -> bool {
        self.version.is_some() && self.older.is_none() && self.newer.is_empty()
    }

    /// Moves within the leaf.
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

    /// Moves within the leaf, to a key with one version.
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
