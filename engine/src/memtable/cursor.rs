//! Walks a memtable by copying out a chunk of entries at a time.
//!
//! Copied bytes: keys and values once, into one buffer that is used again. The first chunk is small, since
//! most scans are short; later ones grow. Invariant: the lock is held for one chunk at most, never between
//! calls, so that whoever iterates can write to the same table.

use std::ops::Bound;
use std::sync::Arc;

use super::chunk::Chunk;
use super::table::Memtable;
use crate::error::Result;
use crate::iter::Cursor;
use crate::key::{Entry, Seq};

/// Entries in the first chunk after a seek.
const FIRST_CHUNK_ENTRIES: usize = 8;

/// Entries in a chunk at most.
const MAX_CHUNK_ENTRIES: usize = 256;

/// See [`Memtable::cursor`]. Its calls never fail.
#[derive(Debug)]
pub(crate) struct MemtableCursor {
    table: Arc<Memtable>,
    chunk: Chunk,
    /// Index in the chunk; its length when past the end.
    at: usize,
    /// Scratch: the key to go on from, while the chunk is filled anew.
    key: Vec<u8>,
}

impl Memtable {
    /// Walks it, and keeps it alive. No lock is held between calls; what is inserted later may or may not be
    /// seen.
    pub(crate) fn cursor(self: &Arc<Self>) -> MemtableCursor {
        MemtableCursor { table: Arc::clone(self), chunk: Chunk::default(), at: 0, key: Vec::new() }
    }
}

impl MemtableCursor {
    /// To the next entry of the chunk. When there is none: empties the chunk and gives the `Seq` to go on
    /// from, its key being in `self.key`.
    fn step(&mut self) -> Option<Seq> {
        let Some(entry) = self.chunk.entry(self.at) else {
            debug_assert!(false, "a cursor past the end was moved");
            return None;
        };
        if self.at + 1 < self.chunk.len() {
            self.at += 1;
            return None;
        }
        self.key.clear();
        self.key.extend_from_slice(entry.key);
        let seq = entry.seq;
        let limit_entries = (self.chunk.limit_entries() * 4).min(MAX_CHUNK_ENTRIES);
        self.restart(limit_entries);
        Some(seq)
    }

    fn restart(&mut self, limit_entries: usize) {
        self.chunk.clear(limit_entries);
        self.at = 0;
    }
}

impl Cursor for MemtableCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.restart(FIRST_CHUNK_ENTRIES);
        self.table.copy_forward(key, None, &mut self.chunk);
        Ok(())
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.restart(FIRST_CHUNK_ENTRIES);
        let end = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.table.copy_backward(end, None, &mut self.chunk);
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        if let Some(seq) = self.step() {
            self.table.copy_forward(&self.key, Some(seq), &mut self.chunk);
        }
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        if let Some(seq) = self.step() {
            self.table.copy_backward(Bound::Included(&self.key), Some(seq), &mut self.chunk);
        }
        Ok(())
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.chunk.entry(self.at)
    }
}
