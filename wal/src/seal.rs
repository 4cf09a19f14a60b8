//! A group: the stream bytes that one flush makes durable. Sealing copies them into sectors. All integers are
//! little-endian.
//!
//! ```text
//!   payload of the sectors, put together:
//!   +--------------+---------------------------+--------------+
//!   | group header | stream bytes [start, end) | zero padding |   to a multiple of the step, sectors included
//!   +--------------+---------------------------+--------------+
//!
//!   in the file, at a multiple of the step:
//!   +----------------+---------+---------+-- --+---------+
//!   | sector, first  | sector  | sector  | ... | sector  |
//!   +----------------+---------+---------+-- --+---------+
//!
//!   OFFSET  SIZE  FIELD OF THE GROUP HEADER
//!        0     8  magic "ESKERGRP"
//!        8     4  incarnation
//!       12     4  step: the group starts at a multiple of it and is padded to one, a power of two from 512 up
//!       16     8  number: groups before this one in this use of the file
//!       24     8  start: stream position of the first byte
//!       32     8  end: stream position after the last byte
//!       40     8  durable: claim that the stream below was on stable media when the group was sealed
//!       48    12  zero
//!       60     4  crc32 over the 60 bytes before
//! ```
//!
//! Groups cut the stream anywhere: a record may begin in one and end in the next. A group with `start == end` is a *claim
//! group*, written only for its `durable` field. Padding sectors are sealed like all others, so every sector of a group is
//! checked.
//!
//! Invariant: a durable group is never in danger while another one is written, since no two groups share a step, and a step
//! is whole physical blocks as far as the backend knows them: 512 bytes where the device is believed to write single sectors,
//! which makes a small group an eighth as large, and a page elsewhere. A device that gets a part of a physical block rewrites
//! the rest of it, and a power cut can destroy that. So blocks above a page, and partitions that begin inside a block, keep no
//! such promise. The step is asked for whenever a file is taken into use: a volume that moves to other devices meanwhile goes
//! on with the old one to the end of that file.
//! Written by `flusher` and by the engine's manifest, read by `chain`.

use aio::{Backend, Buf, File, SECTOR_BYTES};

use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::sector::{Place, SECTOR_HEADER_BYTES, SECTOR_PAYLOAD_BYTES, seal_sector};

/// The largest step that a file needs, in bytes. Files of the log are whole steps of this size, so that any step divides
/// them. A group is padded by less than it.
pub const STEP: usize = 4096;

/// Bytes of a group header; it lies in the first sector.
pub const GROUP_HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"ESKERGRP";

const _: () = assert!(GROUP_HEADER_BYTES < SECTOR_PAYLOAD_BYTES);
const _: () = assert!(STEP.is_multiple_of(SECTOR_BYTES));

/// The header of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The incarnation that wrote the group.
    pub incarnation: u32,
    /// Number of groups before it in this use of the file.
    pub number: u64,
    /// Stream position of its first byte.
    pub start: Seq,
    /// Stream position after its last byte.
    pub end: Seq,
    /// The claim: all stream bytes below were on stable media when the group was sealed.
    pub durable: Seq,
    /// Alignment and padding in bytes: the larger of the file's alignment and the physical block of the device below it.
    pub step_bytes: u32,
}

impl Group {
    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; GROUP_HEADER_BYTES] {
        let mut bytes = [0; GROUP_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.step_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.start.get().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.end.get().to_le_bytes());
        bytes[40..48].copy_from_slice(&self.durable.get().to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header from the first bytes; `None` if they are no valid header. Never panics.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Group> {
        let bytes: &[u8; GROUP_HEADER_BYTES] = bytes.first_chunk()?;
        let u32_at = |at: usize| bytes[at..].first_chunk().map(|chunk| u32::from_le_bytes(*chunk));
        let u64_at = |at: usize| bytes[at..].first_chunk().map(|chunk| u64::from_le_bytes(*chunk));
        let group = Group {
            incarnation: u32_at(8)?,
            number: u64_at(16)?,
            start: Seq::new(u64_at(24)?),
            end: Seq::new(u64_at(32)?),
            durable: Seq::new(u64_at(40)?),
            step_bytes: u32_at(12)?,
        };
        // The fields determine every byte, so a header is valid exactly if it encodes back to itself.
        (group.encode() == *bytes && group.start <= group.end && group.has_valid_step()).then_some(group)
    }

    /// Size of the group in the file in bytes, with sector headers and padding; `None` if that does not fit a `usize`.
    #[must_use]
    pub fn sealed_bytes(&self) -> Option<usize> {
        let stream_bytes = usize::try_from(self.end.since(self.start)).ok()?;
        let sectors = GROUP_HEADER_BYTES.checked_add(stream_bytes)?.div_ceil(SECTOR_PAYLOAD_BYTES);
        sectors.checked_mul(SECTOR_BYTES)?.checked_next_multiple_of(self.step()?)
    }

    fn step(&self) -> Option<usize> {
        usize::try_from(self.step_bytes).ok()
    }

    fn has_valid_step(&self) -> bool {
        self.step().is_some_and(|step| step >= SECTOR_BYTES && step.is_power_of_two())
    }
}

/// The step for groups that are written to this file, in bytes: the larger of its alignment and the physical block below it.
/// A power of two from [`SECTOR_BYTES`] to [`STEP`].
pub(crate) fn step_of(backend: &dyn Backend, file: &File) -> u32 {
    let block_bytes = backend.physical_block_bytes(file);
    let block_bytes = if planted(Bug::PaddingBelowThePhysicalBlock) { SECTOR_BYTES } else { block_bytes };
    let step = file.alignment().offset_bytes.max(block_bytes).max(SECTOR_BYTES);
    assert!(step <= STEP, "alignments and physical blocks are at most a page");
    u32::try_from(step).expect("a step is small")
}

/// The maximum of stream bytes for a group in `room_bytes` of a file, which is a multiple of the step. May be 0.
#[must_use]
pub(crate) fn stream_room_bytes(room_bytes: usize) -> usize {
    (room_bytes / SECTOR_BYTES * SECTOR_PAYLOAD_BYTES).saturating_sub(GROUP_HEADER_BYTES)
}

/// Seals a group for byte `offset` of the file: sets the length of `buf` and fills it.
///
/// `fill(at, bytes)` copies the stream from position `start + at` into `bytes`. The calls come in rising order of `at`. If
/// the length of the stream is a multiple of 8 bytes, so are `at` and the length of `bytes`.
///
/// # Panics
/// If the step is not a power of two from [`SECTOR_BYTES`] up, the offset is no multiple of it, or the group is larger than the
/// capacity of `buf`.
pub fn seal(
    place: &Place,
    offset: u64,
    group: &Group,
    buf: &mut Buf,
    fill: &mut dyn FnMut(usize, &mut [u8]),
) {
    assert!(group.has_valid_step(), "a step is a power of two from 512 up");
    assert!(offset.is_multiple_of(u64::from(group.step_bytes)), "groups start at a step");
    assert!(group.start <= group.end, "a group does not end before it starts");
    let stream_bytes = usize::try_from(group.end.since(group.start)).expect("a group fits into memory");
    buf.set_len(group.sealed_bytes().expect("a group fits into memory"));
    let (sectors, []) = buf.as_chunks_mut::<SECTOR_BYTES>() else {
        unreachable!("the sealed length is whole sectors")
    };
    let first_index = offset / SECTOR_BYTES as u64;
    let mut done = 0;
    for (nth, sector) in sectors.iter_mut().enumerate() {
        let mut payload = &mut sector[SECTOR_HEADER_BYTES..];
        if nth == 0 {
            let (header, rest) = payload.split_at_mut(GROUP_HEADER_BYTES);
            header.copy_from_slice(&group.encode());
            payload = rest;
        }
        let take = payload.len().min(stream_bytes - done);
        let (stream, padding) = payload.split_at_mut(take);
        if take > 0 {
            fill(done, stream);
        }
        padding.fill(0);
        done += take;
        seal_sector(place, first_index + nth as u64, nth == 0, sector);
    }
    assert!(done == stream_bytes, "every stream byte was sealed");
}
