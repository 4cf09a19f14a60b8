//! The payload of a log record: the operations of one batch.
//!
//! ```text
//! +----------+------+------+-----+------+
//! | op count | op 0 | op 1 | ... | op n |      all integers little-endian
//! +----------+------+------+-----+------+
//!
//! payload:  OFFSET  SIZE  FIELD
//!                0     4  op count
//!                4     .  ops, one after the other, nothing after the last
//!
//! put:      OFFSET  SIZE  FIELD                delete:   OFFSET  SIZE  FIELD
//!                0     1  kind = 0                            0     1  kind = 1
//!                1     4  keyspace                            1     4  keyspace
//!                5     2  key length k, >= 1                  5     2  key length k, >= 1
//!                7     4  value length v                      7     k  key
//!               11     k  key
//!           11 + k     v  value
//! ```
//!
//! The commit path writes it, a replay reads it. The record around it has the checksum.
//!
//! Invariant: a finished payload is normalised. It names each key of a keyspace once, so all its entries can share the
//! record's `Seq`.
#![deny(clippy::indexing_slicing)]

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::base::coding::{Put, Reader};
use crate::base::error::Error;
use crate::base::key::{self, Kind, MAX_KEY_BYTES, key_hash};

const COUNT_BYTES: usize = 4;

/// One change of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op<'a> {
    pub(crate) keyspace: u32,
    pub(crate) kind: Kind,
    pub(crate) key: &'a [u8],
    /// Empty for a delete.
    pub(crate) value: &'a [u8],
}

impl<'a> Op<'a> {
    pub(crate) fn put(keyspace: u32, key: &'a [u8], value: &'a [u8]) -> Op<'a> {
        Op { keyspace, kind: Kind::Put, key, value }
    }

    pub(crate) fn delete(keyspace: u32, key: &'a [u8]) -> Op<'a> {
        Op { keyspace, kind: Kind::Delete, key, value: &[] }
    }

    /// Bytes that the operation of an entry takes in a payload.
    pub(crate) fn bytes_of(entry: &key::Entry<'_>) -> usize {
        Op { keyspace: 0, kind: entry.kind, key: entry.key, value: entry.value }.size_bytes()
    }

    /// Bytes it takes in a payload.
    pub(crate) fn size_bytes(&self) -> usize {
        let value_length_bytes = if self.kind.stores_value() { 4 } else { 0 };
        7 + value_length_bytes + self.key.len() + self.value.len()
    }
}

/// Builds a payload at the end of a buffer of the caller, who passes the same buffer to every call.
///
/// Invariant: of several ops on one key all but the last are in `superseded`. They stay in the buffer until
/// [`OpsBuilder::finish`], or until they take half of it.
#[derive(Clone, Debug)]
pub(crate) struct OpsBuilder {
    /// Where the payload begins in the buffer.
    start: usize,
    /// Ops in the buffer.
    pushed: u32,
    keys: Keys,
    /// Where the superseded ops stand in the buffer, in the order in which they were superseded.
    superseded: Vec<Range<usize>>,
    superseded_bytes: usize,
}

/// Finds the earlier op on a key.
#[derive(Clone, Debug)]
enum Keys {
    /// All came in ascending order, so none came twice. The last op stands here.
    Ascending(usize),
    /// Where the ops stand that are not superseded.
    Indexed(Box<KeyIndex>),
    /// The places have changed. The next push makes a new index.
    Moved,
}

/// Below this, superseded ops are not worth a move of the others.
const MOST_SUPERSEDED_BYTES: usize = 64 << 10;

impl OpsBuilder {
    /// Bytes of a payload with one op.
    pub(crate) fn single_bytes(op: &Op<'_>) -> usize {
        COUNT_BYTES + op.size_bytes()
    }

    /// Begins a payload at the end of `buffer`.
    pub(crate) fn begin(buffer: &mut Vec<u8>) -> OpsBuilder {
        let start = buffer.len();
        buffer.put_u32(0);
        OpsBuilder { start, pushed: 0, keys: Keys::Ascending(0), superseded: Vec::new(), superseded_bytes: 0 }
    }

    /// The number of ops, several on one key counted once.
    pub(crate) fn count(&self) -> u32 {
        self.pushed - u32::try_from(self.superseded.len()).expect("each was pushed")
    }

    /// Bytes of the finished payload.
    pub(crate) fn finished_bytes(&self, buffer: &[u8]) -> usize {
        buffer.len() - self.start - self.superseded_bytes
    }

    /// Appends `op`. `InvalidArgument` for an empty key, `TooLarge` for a long key or value; the buffer is
    /// unchanged then. A comparison if the keys came in ascending order so far, else a look into a hash table.
    pub(crate) fn push(&mut self, buffer: &mut Vec<u8>, op: Op<'_>) -> Result<(), Error> {
        let key_len = check_key(op.key)?;
        let value_len = u32::try_from(op.value.len())
            .map_err(|_| too_large("a value", op.value.len(), u32::MAX.into()))?;
        let pushed =
            self.pushed.checked_add(1).ok_or_else(|| too_large("a batch", usize::MAX, u32::MAX.into()))?;
        let at = buffer.len();
        buffer.reserve(op.size_bytes());
        buffer.put_u8(op.kind.to_byte());
        buffer.put_u32(op.keyspace);
        buffer.put_u16(key_len);
        debug_assert!(op.kind.allows_value_bytes(op.value.len()), "this kind of operation has no value");
        if op.kind.stores_value() {
            buffer.put_u32(value_len);
        }
        buffer.extend_from_slice(op.key);
        buffer.extend_from_slice(op.value);
        self.pushed = pushed;
        self.note(buffer, at, (op.keyspace, op.key));
        if self.superseded_bytes > MOST_SUPERSEDED_BYTES.max(buffer.len() / 2) {
            self.drop_superseded(buffer);
        }
        Ok(())
    }

    /// Looks for an earlier op on the key of the op that was pushed at `at`.
    fn note(&mut self, buffer: &[u8], at: usize, key: (u32, &[u8])) {
        let first = self.start + COUNT_BYTES;
        if let Keys::Ascending(last) = &mut self.keys {
            if at == first || key_at(buffer, *last) < key {
                *last = at;
                return;
            }
            self.keys = Keys::Moved;
        }
        if matches!(self.keys, Keys::Moved) {
            self.keys = Keys::Indexed(Box::new(KeyIndex::of(buffer, first..at)));
        }
        let Keys::Indexed(index) = &mut self.keys else { return };
        if let Some(earlier) = index.replace(buffer, at, key) {
            let end = earlier + op_at(buffer, earlier).size_bytes();
            self.superseded.push(earlier..end);
            self.superseded_bytes += end - earlier;
        }
    }

    /// Completes the payload and gives the number of ops in it. Of several ops on one key only the last
    /// stays, where it stands. May be called again after more pushes. Free if no key came twice.
    pub(crate) fn finish(&mut self, buffer: &mut Vec<u8>) -> u32 {
        self.drop_superseded(buffer);
        let count_field = buffer.get_mut(self.start..).and_then(<[u8]>::first_chunk_mut::<COUNT_BYTES>);
        *count_field.expect("begin() wrote the field") = self.pushed.to_le_bytes();
        self.pushed
    }

    fn drop_superseded(&mut self, buffer: &mut Vec<u8>) {
        if self.superseded.is_empty() {
            return;
        }
        self.pushed = self.count();
        let mut superseded = std::mem::take(&mut self.superseded);
        superseded.sort_unstable_by_key(|gone| gone.start);
        let mut kept_from = superseded.first().map_or(0, |gone| gone.start);
        let mut end = kept_from;
        for gone in superseded {
            buffer.copy_within(kept_from..gone.start, end);
            end += gone.start - kept_from;
            kept_from = gone.end;
        }
        buffer.copy_within(kept_from.., end);
        buffer.truncate(end + buffer.len() - kept_from);
        self.superseded_bytes = 0;
        self.keys = Keys::Moved;
    }
}

/// Where in a buffer the last op on each key stands.
///
/// Rejected: only hashes, which would take two keys for one; and a list for each hash, in which a caller could choose keys
/// so that each push walks all of them.
#[derive(Clone, Debug, Default)]
struct KeyIndex {
    /// Of the keys with the same hash the first.
    by_hash: HashMap<u64, usize>,
    /// The others.
    by_key: BTreeMap<(u32, Vec<u8>), usize>,
}

impl KeyIndex {
    /// Of ops whose keys all differ.
    fn of(buffer: &[u8], mut ops: Range<usize>) -> KeyIndex {
        let mut index = KeyIndex::default();
        while !ops.is_empty() {
            index.replace(buffer, ops.start, key_at(buffer, ops.start));
            ops.start += op_at(buffer, ops.start).size_bytes();
        }
        index
    }

    /// Sets the place of an op. Returns the place of the earlier op on its key.
    fn replace(&mut self, buffer: &[u8], at: usize, key: (u32, &[u8])) -> Option<usize> {
        self.replace_hashed(buffer, at, key, key_hash(key.1) ^ u64::from(key.0) << 32)
    }

    fn replace_hashed(&mut self, buffer: &[u8], at: usize, key: (u32, &[u8]), hash: u64) -> Option<usize> {
        match self.by_hash.entry(hash) {
            Entry::Vacant(free) => {
                free.insert(at);
                None
            }
            Entry::Occupied(mut taken) if key_at(buffer, *taken.get()) == key => Some(taken.insert(at)),
            Entry::Occupied(_) => self.by_key.insert((key.0, key.1.to_vec()), at),
        }
    }
}

fn op_at(buffer: &[u8], at: usize) -> Op<'_> {
    read_op(&mut Reader::new(buffer.get(at..).unwrap_or_default())).expect("push() wrote it")
}

fn key_at(buffer: &[u8], at: usize) -> (u32, &[u8]) {
    let op = op_at(buffer, at);
    (op.keyspace, op.key)
}

/// Bytes of a record, as framed, whose payload has `payload_bytes`.
pub(crate) fn framed_bytes(payload_bytes: usize) -> usize {
    (wal::RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(wal::GRANULE)
}

/// Says why a key is none, or gives its length.
#[inline]
pub(crate) fn check_key(key: &[u8]) -> Result<u16, Error> {
    if key.is_empty() {
        return Err(Error::invalid("the empty key is not allowed; keys have 1 to 65535 bytes"));
    }
    u16::try_from(key.len()).map_err(|_| too_large("a key", key.len(), MAX_KEY_BYTES as u64))
}

fn too_large(what: &'static str, found_bytes: usize, limit_bytes: u64) -> Error {
    Error::TooLarge { what, found_bytes: found_bytes as u64, limit_bytes }
}

/// A payload that is not one, although its checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Where in the payload, in bytes.
    pub(crate) offset: usize,
    /// Which check failed.
    pub(crate) what: &'static str,
}

/// Reads a payload; `payload` is untrusted. Ends after the first [`Malformed`]. A caller that applies ops
/// must have walked to the end once before, or half a batch could be applied.
pub(crate) fn ops(payload: &[u8]) -> Ops<'_> {
    let mut reader = Reader::new(payload);
    let count = reader.u32();
    Ops {
        payload_len: payload.len(),
        reader,
        left: count.unwrap_or(0),
        failed: false,
        no_count: count.is_none(),
    }
}

/// See [`ops`].
#[derive(Clone, Debug)]
pub(crate) struct Ops<'a> {
    payload_len: usize,
    reader: Reader<'a>,
    /// Ops that should follow.
    left: u32,
    failed: bool,
    no_count: bool,
}

impl<'a> Ops<'a> {
    /// The next operation, or the error at this position.
    #[inline]
    fn step(&mut self) -> Option<Result<Op<'a>, &'static str>> {
        if self.no_count {
            return Some(Err("payload shorter than its op count"));
        }
        if self.left > 0 {
            self.left -= 1;
            return Some(read_op(&mut self.reader));
        }
        (!self.reader.is_empty()).then_some(Err("bytes after the last op"))
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let offset = self.payload_len - self.reader.rest().len();
        let op = self.step()?;
        self.failed = op.is_err();
        Some(op.map_err(|what| Malformed { offset, what }))
    }
}

#[inline]
fn read_op<'a>(reader: &mut Reader<'a>) -> Result<Op<'a>, &'static str> {
    const SHORT: &str = "op longer than its payload";
    let kind = Kind::from_byte(reader.u8().ok_or("fewer ops than counted")?).ok_or("unknown op kind")?;
    let keyspace = reader.u32().ok_or(SHORT)?;
    let key_len = usize::from(reader.u16().ok_or(SHORT)?);
    if key_len == 0 {
        return Err("empty key");
    }
    let value_len = if kind.stores_value() {
        usize::try_from(reader.u32().ok_or(SHORT)?).map_err(|_| SHORT)?
    } else {
        0
    };
    let key = reader.take(key_len).ok_or(SHORT)?;
    let value = reader.take(value_len).ok_or(SHORT)?;
    Ok(Op { keyspace, kind, key, value })
}

#[cfg(test)]
#[path = "ops_tests.rs"]
mod tests;
