//! Keys, kinds and entries.
//!
//! The internal order is key ascending (bytewise), then `Seq` **descending**: of one key the newest entry comes first.

use std::cmp::Ordering;

pub use wal::Seq;

/// The longest key in bytes; the shortest has one.
pub const MAX_KEY_BYTES: usize = 65_535;

/// The meaning of an entry for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The key has this value.
    Put,
    /// The key has no value (a tombstone).
    Delete,
}

impl Kind {
    /// Its byte in blocks and records.
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Kind::Put => 0,
            Kind::Delete => 1,
        }
    }

    /// The kind of a byte. `None` for a byte that this version does not know.
    pub(crate) fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            0 => Some(Kind::Put),
            1 => Some(Kind::Delete),
            _ => None,
        }
    }
}

/// One version of one key, borrowed from a memtable or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seq: Seq,
    pub(crate) kind: Kind,
    /// Empty for a tombstone.
    pub(crate) value: &'a [u8],
}

impl Entry<'_> {
    /// The internal order: key ascending, then newest first.
    #[inline]
    pub(crate) fn order(&self, other: &Entry<'_>) -> Ordering {
        self.key.cmp(other.key).then(other.seq.cmp(&self.seq))
    }
}

/// First 8 bytes as a big-endian number, zero-extended: orders like the bytes, up to ties.
#[inline]
pub(crate) fn key_head(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(first) => u64::from_le_bytes(*first).swap_bytes(),
        None => (0..8).fold(0, |head, i| head << 8 | u64::from(bytes.get(i).copied().unwrap_or(0))),
    }
}

/// The 64-bit hash of a key that filters and fingerprints are made from (xxh3-64, seed 0).
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}
