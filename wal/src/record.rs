//! A record: one payload in the endless stream of the log, or a void. All integers are little-endian.
//!
//! ```text
//!   +-------+--------+---------------------+--------------+
//!   | crc32 | length | payload             | zero padding |   to a multiple of 32 bytes
//!   +-------+--------+---------------------+--------------+
//!
//!   OFFSET  SIZE    FIELD
//!        0     4    crc32 over payload, length field (u32), incarnation (u32), seq (u64), store id (u64), in this order
//!        4     4    length of the payload in bytes, below 2^31; the top bit is set in a void
//!        8  length  payload: opaque to this crate; zeros in a void
//!      ...  0..31   zeros; none in a void
//! ```
//!
//! A *void* fills the place of a writer that gave up after it had reserved one. The stream has no gaps, so the place
//! cannot stay empty. A replay steps over it.
//!
//! The checksum covers store, incarnation and position, although none of them is stored. So no record of an earlier lap
//! of the ring, an earlier incarnation, another position or another store validates. These three come last in the
//! checksum: a writer learns its position when it reserves it, and from then on later writers wait. The payload is
//! hashed before that.
//!
//! Invariants: a record starts at a multiple of [`GRANULE`]; decoding never panics on any bytes.
//! Written by `reservation`, read by `replay`.

use std::fmt;

use crate::planted::{Bug, planted};

use crc32fast::Hasher;

/// Every record starts at a multiple of this many bytes and is padded to one.
pub const GRANULE: usize = 32;

/// Bytes before the payload.
pub const RECORD_HEADER_BYTES: usize = 8;

/// The top bit of the length field: this is a void.
const VOID: u32 = 1 << 31;

/// A position in the endless stream of record bytes: the first byte of a record, or an exclusive end.
///
/// Positions are also the order of writes. They never repeat in the history of a store.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);

impl Seq {
    /// The start of the stream.
    pub const ZERO: Seq = Seq(0);

    /// The position `bytes` bytes from the start of the stream.
    #[must_use]
    pub const fn new(bytes: u64) -> Seq {
        Seq(bytes)
    }

    /// Bytes from the start of the stream.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` later; the last possible one if that does not exist.
    #[must_use]
    pub fn plus(self, bytes: usize) -> Seq {
        Seq(self.0.saturating_add(bytes as u64))
    }

    /// Bytes from `earlier` to here; 0 if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Seq) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seq({})", self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The store and the incarnation of a stream. A record's checksum covers them beside its bytes and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOrigin {
    /// The store.
    pub store_id: u64,
    /// The incarnation.
    pub incarnation: u32,
}

/// A record under construction: keeps its memory from one record to the next.
#[derive(Clone)]
pub struct RecordBuf {
    /// Header, payload, and padding once framed.
    bytes: Vec<u8>,
    /// Bytes of header and payload.
    filled: usize,
}

impl RecordBuf {
    /// An empty record.
    #[must_use]
    pub fn new() -> RecordBuf {
        RecordBuf { bytes: vec![0; RECORD_HEADER_BYTES], filled: RECORD_HEADER_BYTES }
    }

    /// Appends to the payload.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.filled);
        self.bytes.extend_from_slice(bytes);
        self.filled = self.bytes.len();
    }

    /// The payload so far.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[RECORD_HEADER_BYTES..self.filled]
    }

    /// The payload so far, to change it in place.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[RECORD_HEADER_BYTES..self.filled]
    }

    /// Its size in the log in bytes: header, payload and padding.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.filled.next_multiple_of(GRANULE)
    }

    /// Empties the payload and keeps the memory.
    pub fn clear(&mut self) {
        self.filled = RECORD_HEADER_BYTES;
        self.bytes.truncate(self.filled);
    }

    /// Pads and hashes the payload, which leaves little work to [`Prepared::frame`].
    ///
    /// # Panics
    /// If the payload has 2 GiB or more.
    pub fn prepare(&mut self) -> Prepared<'_> {
        let length = u32::try_from(self.filled - RECORD_HEADER_BYTES).expect("payload fits into a record");
        assert!(length & VOID == 0, "payload fits into a record");
        self.bytes.truncate(self.filled);
        self.bytes.resize(self.len_bytes(), 0);
        self.bytes[4..RECORD_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        let mut hasher = Hasher::new();
        hasher.update(&self.bytes[RECORD_HEADER_BYTES..self.filled]);
        Prepared { bytes: &mut self.bytes, hasher, length }
    }
}

impl Default for RecordBuf {
    fn default() -> RecordBuf {
        RecordBuf::new()
    }
}

impl fmt::Debug for RecordBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordBuf({} payload bytes)", self.payload().len())
    }
}

/// A record that lacks only its position.
#[derive(Debug)]
pub struct Prepared<'a> {
    bytes: &'a mut Vec<u8>,
    hasher: Hasher,
    length: u32,
}

impl Prepared<'_> {
    /// The bytes for the log: header, payload, padding.
    #[must_use]
    pub fn frame(&mut self, origin: StreamOrigin, seq: Seq) -> &[u8] {
        let crc = finish(self.hasher.clone(), self.length, origin, seq);
        self.bytes[..4].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }

    /// Its size in the log in bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The header of a void of `len_bytes` at `seq`, a multiple of [`GRANULE`]. Zeros follow it.
///
/// # Panics
/// If there is no void of this length.
#[must_use]
pub fn void_header(len_bytes: usize, origin: StreamOrigin, seq: Seq) -> [u8; RECORD_HEADER_BYTES] {
    assert!(len_bytes.is_multiple_of(GRANULE), "a void is whole granules");
    let payload_bytes = len_bytes.checked_sub(RECORD_HEADER_BYTES).expect("a void has a header");
    let length = u32::try_from(payload_bytes).expect("a void fits into a record");
    assert!(length & VOID == 0, "a void fits into a record");
    let mut hasher = Hasher::new();
    for zeros in zeros(payload_bytes) {
        hasher.update(zeros);
    }
    let crc = finish(hasher, length | VOID, origin, seq);
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..4].copy_from_slice(&crc.to_le_bytes());
    header[4..].copy_from_slice(&(length | VOID).to_le_bytes());
    header
}

/// `len_bytes` zeros as slices of one static array.
pub(crate) fn zeros(len_bytes: usize) -> impl Iterator<Item = &'static [u8]> {
    static ZEROS: [u8; 4096] = [0; 4096];
    (0..len_bytes).step_by(ZEROS.len()).map(move |at| &ZEROS[..ZEROS.len().min(len_bytes - at)])
}

/// The content of a position of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A valid record.
    Record {
        /// The payload that was appended.
        payload: &'a [u8],
        /// Its size in the stream in bytes: the next record starts there.
        len_bytes: usize,
    },
    /// A place that its writer gave up.
    Void {
        /// Its size in the stream in bytes: the next record starts there.
        len_bytes: usize,
    },
    /// The bytes end before the record does, if it is one.
    Incomplete {
        /// Bytes that the next attempt needs, from the start of the record.
        needed_bytes: usize,
    },
    /// No record of this origin and position.
    Invalid(&'static str),
}

/// Decodes the record at the front of `bytes`, which stand at `seq` in the stream. Never panics.
#[must_use]
pub fn decode(bytes: &[u8], origin: StreamOrigin, seq: Seq) -> Decoded<'_> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>() else {
        return Decoded::Incomplete { needed_bytes: GRANULE };
    };
    let [c0, c1, c2, c3, l0, l1, l2, l3] = *header;
    let (crc, field) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([l0, l1, l2, l3]));
    let (is_void, length) = (field & VOID != 0, field & !VOID);
    let Some(len_bytes) = framed_bytes(length) else { return Decoded::Invalid("record length") };
    let Some(payload_and_padding) = rest.get(..len_bytes - RECORD_HEADER_BYTES) else {
        return Decoded::Incomplete { needed_bytes: len_bytes };
    };
    let payload_bytes = usize::try_from(length).unwrap_or(usize::MAX).min(payload_and_padding.len());
    let (payload, padding) = payload_and_padding.split_at(payload_bytes);
    let mut hasher = Hasher::new();
    hasher.update(payload);
    if finish(hasher, field, origin, seq) != crc && !planted(Bug::RecordChecksumIgnored) {
        return Decoded::Invalid("record checksum");
    }
    if padding.iter().any(|&byte| byte != 0) {
        return Decoded::Invalid("record padding");
    }
    if is_void && !planted(Bug::VoidReplayed) {
        let is_sound = padding.is_empty() && payload.iter().all(|&byte| byte == 0);
        return if is_sound { Decoded::Void { len_bytes } } else { Decoded::Invalid("void record") };
    }
    Decoded::Record { payload, len_bytes }
}

fn framed_bytes(length: u32) -> Option<usize> {
    usize::try_from(length).ok()?.checked_add(RECORD_HEADER_BYTES)?.checked_next_multiple_of(GRANULE)
}

fn finish(mut hasher: Hasher, length_field: u32, origin: StreamOrigin, seq: Seq) -> u32 {
    // The planted bug keeps the high bits of the position: without any, a replay would read the ring for ever.
    let seq = if planted(Bug::RecordChecksumWithoutSeq) { Seq::new(seq.get() >> 14) } else { seq };
    let mut place = [0; 24];
    place[..4].copy_from_slice(&length_field.to_le_bytes());
    place[4..8].copy_from_slice(&origin.incarnation.to_le_bytes());
    place[8..16].copy_from_slice(&seq.get().to_le_bytes());
    place[16..].copy_from_slice(&origin.store_id.to_le_bytes());
    hasher.update(&place);
    hasher.finalize()
}
