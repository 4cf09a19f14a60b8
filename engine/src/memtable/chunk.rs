//! Some entries of a memtable, copied out under its lock: keys and values once, into one buffer that is used again.
//!
//! Invariant: it takes at least one entry, however large, so that a walk always gets on.

use crate::key::{Entry, Kind, Seq};

/// Bytes in a chunk at most, except that one entry always fits.
const MAX_CHUNK_BYTES: usize = 64 << 10;

/// Entries copied out of a table, in the direction of the walk.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    items: Vec<Item>,
    limit_entries: usize,
}

/// Where an entry stands in the chunk's bytes.
#[derive(Debug)]
struct Item {
    key_start: usize,
    value_start: usize,
    value_end: usize,
    seq: Seq,
    kind: Kind,
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many entries it takes.
    pub(super) fn limit_entries(&self) -> usize {
        self.limit_entries
    }

    /// Empties it. Memory that one huge entry needed is given back.
    pub(super) fn clear(&mut self, limit_entries: usize) {
        self.items.clear();
        self.bytes.clear();
        self.bytes.shrink_to(MAX_CHUNK_BYTES);
        self.limit_entries = limit_entries;
    }

    /// Copies `entry`, or says `false` when the chunk is full.
    pub(super) fn push(&mut self, entry: Entry<'_>) -> bool {
        let bytes = self.bytes.len() + entry.key.len() + entry.value.len();
        let full = self.items.len() == self.limit_entries || bytes > MAX_CHUNK_BYTES;
        if full && !self.items.is_empty() {
            return false;
        }
        let key_start = self.bytes.len();
        self.bytes.extend_from_slice(entry.key);
        let value_start = self.bytes.len();
        self.bytes.extend_from_slice(entry.value);
        let value_end = self.bytes.len();
        self.items.push(Item { key_start, value_start, value_end, seq: entry.seq, kind: entry.kind });
        true
    }

    pub(super) fn entry(&self, index: usize) -> Option<Entry<'_>> {
        let item = self.items.get(index)?;
        Some(Entry {
            key: &self.bytes[item.key_start..item.value_start],
            seq: item.seq,
            kind: item.kind,
            value: &self.bytes[item.value_start..item.value_end],
        })
    }
}
