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

use std::ops::Range;

use crate::base::coding::{Put, Reader};
use crate::base::error::Error;
use crate::base::key::{Kind, MAX_KEY_BYTES, key_hash};

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

    /// Bytes it takes in a payload.
    pub(crate) fn size_bytes(&self) -> usize {
        let value_length_bytes = if self.kind.stores_value() { 4 } else { 0 };
        7 + value_length_bytes + self.key.len() + self.value.len()
    }
}

/// Builds a payload at the end of a buffer of the caller, who passes the same buffer to every call.
#[derive(Clone, Debug)]
pub(crate) struct OpsBuilder {
    /// Where the payload begins in the buffer.
    start: usize,
    count: u32,
}

impl OpsBuilder {
    /// Bytes of a payload with one op.
    pub(crate) fn single_bytes(op: &Op<'_>) -> usize {
        COUNT_BYTES + op.size_bytes()
    }

    /// Begins a payload at the end of `buffer`.
    pub(crate) fn begin(buffer: &mut Vec<u8>) -> OpsBuilder {
        let start = buffer.len();
        buffer.put_u32(0);
        OpsBuilder { start, count: 0 }
    }

    /// How many ops were pushed.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Appends `op`. `InvalidArgument` for an empty key, `TooLarge` for a long key or value; the buffer is
    /// unchanged then.
    pub(crate) fn push(&mut self, buffer: &mut Vec<u8>, op: Op<'_>) -> Result<(), Error> {
        let key_len = check_key(op.key)?;
        let value_len = u32::try_from(op.value.len())
            .map_err(|_| too_large("a value", op.value.len(), u32::MAX.into()))?;
        let count =
            self.count.checked_add(1).ok_or_else(|| too_large("a batch", usize::MAX, u32::MAX.into()))?;
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
        self.count = count;
        Ok(())
    }

    /// Completes the payload and gives the number of ops in it. Of several ops on one key only the last
    /// stays, where it stands. May be called again after more pushes. Free for one op and for keys in
    /// ascending order, else a sort.
    pub(crate) fn finish(&mut self, buffer: &mut Vec<u8>) -> u32 {
        if self.count > 1 {
            self.normalise(buffer);
        }
        let count_field = buffer.get_mut(self.start..).and_then(<[u8]>::first_chunk_mut::<COUNT_BYTES>);
        *count_field.expect("begin() wrote the field") = self.count.to_le_bytes();
        self.count
    }

    fn normalise(&mut self, buffer: &mut Vec<u8>) {
        let first = self.start + COUNT_BYTES;
        let superseded = superseded(buffer.get(first..).unwrap_or_default());
        let mut end = first;
        let mut kept_from = first;
        for gone in &superseded {
            buffer.copy_within(kept_from..first + gone.start, end);
            end += first + gone.start - kept_from;
            kept_from = first + gone.end;
            self.count -= 1;
        }
        buffer.copy_within(kept_from.., end);
        buffer.truncate(end + buffer.len() - kept_from);
    }
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

/// The byte ranges of the operations in `ops` that a later one of the same key replaces; ascending.
fn superseded(ops: &[u8]) -> Vec<Range<usize>> {
    let mut reader = Reader::new(ops);
    let mut places = Vec::new();
    let mut ascending = true;
    let mut last = None;
    while !reader.is_empty() {
        let start = ops.len() - reader.rest().len();
        let op = read_op(&mut reader).expect("push() wrote it");
        let end = ops.len() - reader.rest().len();
        let key = (op.keyspace, op.key);
        ascending &= last.is_none_or(|last| last < key);
        last = Some(key);
        places.push((key, start..end));
    }
    if ascending {
        return Vec::new();
    }
    let mut sorted: Vec<_> = places.into_iter().map(|(key, place)| (key_hash(key.1), key, place)).collect();
    sorted.sort_unstable_by_key(|(hash, key, place)| (*hash, *key, place.start));
    let mut superseded: Vec<Range<usize>> = sorted
        .iter()
        .zip(sorted.iter().skip(1))
        .filter(|((_, key, _), (_, next_key, _))| key == next_key)
        .map(|((_, _, place), _)| place.clone())
        .collect();
    superseded.sort_unstable_by_key(|place| place.start);
    superseded
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
