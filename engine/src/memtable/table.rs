//! An ordered map behind a readers-writer lock.
//!
//! Cost: an insert allocates key and value before it takes the lock, then walks the tree once. A lookup
//! copies no key and takes a counted reference of the value. Invariant: the counters cover every entry a
//! reader can find.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::chunk::Chunk;
use crate::key::{Entry, Kind, Seq};

/// What the allocator adds to a small allocation: header and rounding.
const ALLOCATION_BYTES: usize = 16;

/// What one more key costs beside its bytes. Tree nodes are half full when keys come in order.
const KEY_OVERHEAD_BYTES: usize = 2 * size_of::<(Box<[u8]>, Versions)>() + ALLOCATION_BYTES;

/// What one more value costs beside its bytes: its allocation, and the counter of [`Bytes`] with its own.
const VALUE_OVERHEAD_BYTES: usize = 2 * ALLOCATION_BYTES + 3 * size_of::<usize>();

/// What one more version of a known key costs beside its value. Vectors are at worst half full.
const VERSION_OVERHEAD_BYTES: usize = 2 * size_of::<Version>();

/// The write buffer of one keyspace: many versions of many keys.
///
/// Any number of threads may insert and read at the same time. An insert that has returned is seen by every
/// later lookup and seek.
#[derive(Debug)]
pub(crate) struct Memtable {
    keys: RwLock<BTreeMap<Box<[u8]>, Versions>>,
    /// Both counters are estimates for deciding when to freeze; they publish nothing, so relaxed is enough.
    len: AtomicUsize,
    size_bytes: AtomicUsize,
}

/// All versions of one key. Most keys have one, so that one needs no vector.
#[derive(Debug)]
struct Versions {
    newest: Version,
    /// Ascending, all below `newest`: a newer one moves the former newest to the end.
    older: Vec<Version>,
}

#[derive(Debug)]
struct Version {
    seq: Seq,
    kind: Kind,
    value: Bytes,
}

impl Memtable {
    pub(crate) fn new() -> Memtable {
        Memtable { keys: RwLock::default(), len: AtomicUsize::new(0), size_bytes: AtomicUsize::new(0) }
    }

    /// Adds one version; in any order of `seq`. The same key and `seq` twice is a bug. Returns by how much
    /// [`Memtable::size_bytes`] grew.
    pub(crate) fn insert(&self, key: &[u8], seq: Seq, kind: Kind, value: &[u8]) -> usize {
        debug_assert!(kind == Kind::Put || value.is_empty(), "a tombstone has no value");
        let mut size_bytes = VALUE_OVERHEAD_BYTES + value.len();
        let owned_key: Box<[u8]> = key.into();
        let version = Version { seq, kind, value: Bytes::copy_from_slice(value) };
        {
            let mut keys = self.keys.write();
            match keys.entry(owned_key) {
                Slot::Vacant(slot) => {
                    slot.insert(Versions { newest: version, older: Vec::new() });
                    size_bytes += KEY_OVERHEAD_BYTES + key.len();
                }
                Slot::Occupied(mut slot) => {
                    slot.get_mut().insert(version);
                    size_bytes += VERSION_OVERHEAD_BYTES;
                }
            }
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        self.size_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        size_bytes
    }

    /// The newest version of `key` below `snapshot`; a tombstone counts as one.
    pub(crate) fn get(&self, key: &[u8], snapshot: Seq) -> Option<(Kind, Seq, Bytes)> {
        let keys = self.keys.read();
        let version = keys.get(key)?.newest_first(Some(snapshot)).next()?;
        Some((version.kind, version.seq, version.value.clone()))
    }

    /// Memory it takes, in bytes: keys, values and an estimate of what the tree and the allocator add. Meant
    /// to be no less than what is resident (measured with glibc: 3 to 22 % more, values of 8 to 1000 bytes,
    /// all of them read).
    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// How many versions of how many keys ever, tombstones included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.read().is_empty()
    }

    /// Copies entries from `key` upwards until `chunk` is full; of `key` itself only versions below `below`.
    pub(super) fn copy_forward(&self, key: &[u8], below: Option<Seq>, chunk: &mut Chunk) {
        let keys = self.keys.read();
        for (here, versions) in keys.range::<[u8], _>((Bound::Included(key), Bound::Unbounded)) {
            let below = below.filter(|_| here.as_ref() == key);
            for version in versions.newest_first(below) {
                if !chunk.push(version.entry(here)) {
                    return;
                }
            }
        }
    }

    /// Copies entries downwards until `chunk` is full. `end`: where to begin, and of an included key only
    /// versions above `above`.
    pub(super) fn copy_backward(&self, end: Bound<&[u8]>, above: Option<Seq>, chunk: &mut Chunk) {
        let keys = self.keys.read();
        for (here, versions) in keys.range::<[u8], _>((Bound::Unbounded, end)).rev() {
            let above = above.filter(|_| end == Bound::Included(here.as_ref()));
            for version in versions.oldest_first(above) {
                if !chunk.push(version.entry(here)) {
                    return;
                }
            }
        }
    }
}

impl Versions {
    fn insert(&mut self, version: Version) {
        debug_assert!(self.newest.seq != version.seq, "one record holds a key once");
        if version.seq > self.newest.seq {
            self.older.push(std::mem::replace(&mut self.newest, version));
        } else {
            // Writers that run side by side may arrive out of order; a few places from the end at most.
            let at = self.older.partition_point(|older| older.seq < version.seq);
            debug_assert!(self.older.get(at).is_none_or(|older| older.seq != version.seq));
            self.older.insert(at, version);
        }
    }

    /// Those with `seq < below`.
    fn newest_first(&self, below: Option<Seq>) -> impl Iterator<Item = &Version> {
        let newest = below.is_none_or(|below| self.newest.seq < below).then_some(&self.newest);
        let count = match below {
            Some(below) => self.older.partition_point(|version| version.seq < below),
            None => self.older.len(),
        };
        newest.into_iter().chain(self.older[..count].iter().rev())
    }

    /// Those with `seq > above`.
    fn oldest_first(&self, above: Option<Seq>) -> impl Iterator<Item = &Version> {
        let newest = above.is_none_or(|above| self.newest.seq > above).then_some(&self.newest);
        let start = match above {
            Some(above) => self.older.partition_point(|version| version.seq <= above),
            None => 0,
        };
        self.older[start..].iter().chain(newest)
    }
}

impl Version {
    fn entry<'a>(&'a self, key: &'a [u8]) -> Entry<'a> {
        Entry { key, seq: self.seq, kind: self.kind, value: &self.value }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
