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
use crate::error::Result;
use crate::iter::Cursor;
use crate::key::Entry;

/// See [`Memtable::cursor`]. Its calls never fail.
#[derive(Debug)]
pub(crate) struct MemtableCursor {
    table: Arc<Memtable>,
    leaf: Option<Leaf>,
    /// The key of the leaf at which it stands.
    at: usize,
    version: Option<Ref<Version>>,
    /// On the way back: the versions of this key that are still to come, which are newer, the newest first.
    newer: Vec<Ref<Version>>,
}

impl Memtable {
    /// Walks it, and keeps it alive. No lock is taken; what is inserted later may or may not be seen.
    pub(crate) fn cursor(self: &Arc<Self>) -> MemtableCursor {
        let table = Arc::clone(self);
        MemtableCursor { table, leaf: None, at: 0, version: None, newer: Vec::new() }
    }
}

impl MemtableCursor {
    /// To the newest version of the key at `at`, or of the first key of the next leaf.
    fn enter_forwards(&mut self) {
        self.version = None;
        while let Some(leaf) = &self.leaf {
            self.version = leaf.version(self.at);
            if self.version.is_some() {
                return;
            }
            self.leaf = self.table.tree().next_leaf(leaf);
            self.at = 0;
        }
    }

    /// To the oldest version of the key before `at`, or of the last key of the leaf before.
    fn enter_backwards(&mut self) {
        self.version = None;
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
        self.leaf = self.table.tree().leaf(Target::At(key));
        self.at = self.leaf.as_ref().map_or(0, Leaf::rank);
        self.enter_forwards();
        Ok(())
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.leaf = self.table.tree().leaf(key.map_or(Target::Rightmost, Target::Before));
        self.at = self.leaf.as_ref().map_or(0, Leaf::rank);
        self.enter_backwards();
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        debug_assert!(self.version.is_some(), "a cursor past the end was moved");
        self.version = self.version.and_then(|version| self.table.tree().arena().older(version).load());
        if self.version.is_none() {
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

    fn entry(&self) -> Option<Entry<'_>> {
        self.version.map(|version| self.table.tree().arena().entry(version))
    }
}
