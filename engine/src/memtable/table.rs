//! A memtable: a filter in front of a tree.
//!
//! Cost: an insert copies key and value once, into the arena, and takes one lock, that of a leaf. A lookup takes no lock
//! and copies nothing; the lookup of a missing key mostly ends at the filter.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::filter::MemtableFilter;
use super::pool::ArenaPool;
use super::tree::KeyTree;
use crate::base::key::{Entry, Kind, Seq, key_hash};

/// A filter is made for at least this many entries. The first table of a keyspace expects none.
const LEAST_EXPECTED: usize = if cfg!(loom) { 0 } else { 2048 };

/// A filter takes at most this part of a table's size.
const FILTER_PART: u64 = 32;

/// The write buffer of one keyspace: many versions of many keys.
///
/// Any number of threads may insert and read at the same time. An insert that has returned is seen by every later lookup
/// and seek. Readers wait only for the few instructions in which a writer changes the node that they read.
#[derive(Debug)]
pub(crate) struct Memtable {
    tree: KeyTree,
    /// Made by the first insert.
    filter: OnceLock<MemtableFilter>,
    expected: usize,
    /// These decide when to freeze, how large the next filter is, and how much of the log is needed. They publish nothing, so
    /// relaxed is enough.
    len: AtomicUsize,
    size_bytes: AtomicUsize,
    /// The lowest position; the highest number while there is none.
    first: AtomicU64,
}

impl Memtable {
    /// A table that takes no memory yet. `expected` is the number of entries for which its filter is made.
    pub(crate) fn in_pool(pool: &Arc<ArenaPool>, expected: usize) -> Memtable {
        Memtable {
            tree: KeyTree::new(pool),
            filter: OnceLock::new(),
            expected,
            len: AtomicUsize::new(0),
            size_bytes: AtomicUsize::new(0),
            first: AtomicU64::new(u64::MAX),
        }
    }

    /// A table in a pool of its own.
    #[cfg(test)]
    pub(crate) fn new() -> Memtable {
        let table = Memtable::in_pool(&Arc::new(ArenaPool::new(32 << 20, 64 << 20)), 0);
        if cfg!(loom) {
            // Loom does not model the ordering by a `OnceLock`.
            table.filter.get_or_init(|| table.new_filter());
        }
        table
    }

    /// Adds one version, in any order of `seq`. The same key and `seq` twice is a bug. Returns the growth of
    /// [`Memtable::size_bytes`].
    pub(crate) fn insert(&self, key: &[u8], seq: Seq, kind: Kind, value: &[u8]) -> usize {
        debug_assert!(kind.allows_value_bytes(value.len()), "this kind of entry has no value");
        if seq.get() < self.first.load(Ordering::Relaxed) {
            self.first.fetch_min(seq.get(), Ordering::Relaxed);
        }
        let mut grown_bytes = 0;
        let filter = self.filter.get_or_init(|| {
            let filter = self.new_filter();
            grown_bytes += filter.size_bytes();
            filter
        });
        let hash = key_hash(key);
        filter.prefetch(hash);
        let version = self.tree.place(Entry { key, seq, kind, value }, &mut grown_bytes);
        // The filter's invariant: the bits are set before the entry is linked.
        filter.insert(hash);
        self.tree.link(key, version, &mut grown_bytes);
        self.len.fetch_add(1, Ordering::Relaxed);
        if grown_bytes > 0 {
            self.size_bytes.fetch_add(grown_bytes, Ordering::Relaxed);
        }
        grown_bytes
    }

    /// The newest version of `key` below `snapshot`; a tombstone counts as one. `hash` is the key's, from [`key_hash`].
    pub(crate) fn get(&self, key: &[u8], hash: u64, snapshot: Seq) -> Option<(Kind, Seq, &[u8])> {
        if !self.filter.get()?.may_contain(hash) {
            return None;
        }
        self.tree.find(key, snapshot).map(|entry| (entry.kind, entry.seq, entry.value))
    }

    /// Its memory in bytes: all of its chunks, full or not, and the filter.
    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Number of versions of all keys, tombstones included.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The lowest position of an entry; `None` if there is none. Insertions that are under way may be missing.
    pub(crate) fn first_seq(&self) -> Option<Seq> {
        Some(self.first.load(Ordering::Relaxed)).filter(|&first| first != u64::MAX).map(Seq::new)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    pub(super) fn tree(&self) -> &KeyTree {
        &self.tree
    }

    fn new_filter(&self) -> MemtableFilter {
        let limit = self.tree.arena().pool().table_bytes() / FILTER_PART;
        MemtableFilter::new(self.expected.max(LEAST_EXPECTED), usize::try_from(limit).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
