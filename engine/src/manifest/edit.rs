//! Edits as bytes, as the manifest holds them. All integers little-endian.
//!
//! ```text
//! manifest stream:  | count u32 | edit | edit | ... |   | count u32 | edit | ...      one list per append
//!                   '-------- one group ------------'   '---- the next group ---
//! edit:             | tag u8 | fields of the tag |
//! ```
//!
//! ```text
//! TAG  FIELDS (SIZE)
//!   0  Format:          version (4) features (8) size of the manifest file in bytes (8); first of every manifest
//!   1  Incarnation:     store id (8) incarnation (4) start (8) ring (8) ring bytes (8) log file bytes (8)
//!   2  Counters:        next file (8) next epoch (4) next keyspace (4)
//!   3  FileActivated:   file (8) epoch (4) start (8)
//!   4  Horizon:         at (8) count (4) retired files (8 each)
//!   5  KeyspaceCreated: keyspace (4) name (4 + n)
//!   6  KeyspaceDropped: keyspace (4)
//!   7  Flushed:         keyspace (4) to (8) pieces; `to` is also their stamp
//!   8  Merged:          keyspace (4) stretch newest (8) oldest (8) into (8) pieces
//!   9  RingGrown:       bytes of the ring's file (8); `Incarnation` sets it to the full size
//!  10  Origins:         count (4), then for each: below this file number (8) the files are of this store id (8)
//! pieces:   count (4), then a segment and its bounds each
//! stretch, bounds:  from (4 + n), no byte: from the first key | bounded above (1): 1, then upto (4 + n), or 0
//! segment:
//! OFFSET  SIZE  FIELD
//!      0     8  segment id
//!      8     4  keyspace id
//!     12     8  size of the file in bytes
//!     20     8  entries
//!     28     8  tombstones
//!     36     8  smallest Seq
//!     44     8  largest Seq
//!     52     8  raw bytes of keys and values
//!     60     4  checksum of the footer
//!     64   4+n  smallest key
//!    ...   4+n  largest key
//! ```
//!
//! Invariant: the decoder never panics and never takes more memory than its input has; it returns `None` for bad bytes.
//! An unknown tag is refused. Version gate: the `Format` edit, which covers manifest, log and ring; segments carry
//! their own version.
//! Written and read by `manifest`.
#![deny(clippy::indexing_slicing)]

use bytes::Bytes;
use wal::ActiveFile;

use crate::base::coding::{Put, Reader};
use crate::base::key::Seq;
use crate::base::range::KeyBounds;
use crate::manifest::levels::{Merged, PieceMeta};
use crate::manifest::version::{Edit, Format, Incarnation, Origin};
use crate::segment::SegmentMeta;

/// Appends a list of edits.
pub(crate) fn encode(edits: &[Edit], out: &mut Vec<u8>) {
    out.put_u32(count(edits.len()));
    for edit in edits {
        encode_edit(edit, out);
    }
}

/// Reads the number of edits in the next list; `None` if the bytes end before it does.
///
/// The edits are read one by one, so that an unknown `Format` is noticed before an edit that this program cannot read.
pub(crate) fn decode_count(reader: &mut Reader<'_>) -> Option<u32> {
    reader.u32()
}

fn encode_edit(edit: &Edit, out: &mut Vec<u8>) {
    match edit {
        Edit::Format(format) => {
            out.put_u8(0);
            out.put_u32(format.version);
            out.put_u64(format.features);
            out.put_u64(format.manifest_bytes);
        }
        Edit::Incarnation(incarnation) => {
            out.put_u8(1);
            out.put_u64(incarnation.store_id);
            out.put_u32(incarnation.number);
            out.put_u64(incarnation.start.get());
            out.put_u64(incarnation.ring);
            out.put_u64(incarnation.ring_bytes);
            out.put_u64(incarnation.log_file_bytes);
        }
        Edit::Counters { next_file, next_epoch, next_keyspace } => {
            out.put_u8(2);
            out.put_u64(*next_file);
            out.put_u32(*next_epoch);
            out.put_u32(*next_keyspace);
        }
        Edit::FileActivated(file) => {
            out.put_u8(3);
            out.put_u64(file.id);
            out.put_u32(file.epoch);
            out.put_u64(file.start.get());
        }
        Edit::Horizon { at, retired } => {
            out.put_u8(4);
            out.put_u64(at.get());
            encode_ids(retired, out);
        }
        Edit::KeyspaceCreated { keyspace, name } => {
            out.put_u8(5);
            out.put_u32(*keyspace);
            out.put_bytes(name.as_bytes());
        }
        Edit::KeyspaceDropped { keyspace } => {
            out.put_u8(6);
            out.put_u32(*keyspace);
        }
        Edit::Flushed { keyspace, to, pieces } => {
            out.put_u8(7);
            out.put_u32(*keyspace);
            out.put_u64(to.get());
            encode_pieces(pieces, out);
        }
        Edit::Merged { keyspace, merged } => {
            out.put_u8(8);
            out.put_u32(*keyspace);
            encode_merged(merged, out);
        }
        Edit::RingGrown { file_bytes } => {
            out.put_u8(9);
            out.put_u64(*file_bytes);
        }
        Edit::Origins(origins) => {
            out.put_u8(10);
            out.put_u32(count(origins.len()));
            for origin in origins {
                out.put_u64(origin.below);
                out.put_u64(origin.store_id);
            }
        }
    }
}

/// Reads one edit; `None` if the bytes are not one.
pub(crate) fn decode_edit(reader: &mut Reader<'_>) -> Option<Edit> {
    Some(match reader.u8()? {
        0 => Edit::Format(Format {
            version: reader.u32()?,
            features: reader.u64()?,
            manifest_bytes: reader.u64()?,
        }),
        1 => Edit::Incarnation(Incarnation {
            store_id: reader.u64()?,
            number: reader.u32()?,
            start: Seq::new(reader.u64()?),
            ring: reader.u64()?,
            ring_bytes: reader.u64()?,
            log_file_bytes: reader.u64()?,
        }),
        2 => Edit::Counters {
            next_file: reader.u64()?,
            next_epoch: reader.u32()?,
            next_keyspace: reader.u32()?,
        },
        3 => Edit::FileActivated(ActiveFile {
            id: reader.u64()?,
            epoch: reader.u32()?,
            start: Seq::new(reader.u64()?),
        }),
        4 => Edit::Horizon { at: Seq::new(reader.u64()?), retired: decode_ids(reader)? },
        5 => Edit::KeyspaceCreated {
            keyspace: reader.u32()?,
            name: String::from_utf8(reader.bytes()?.to_vec()).ok()?,
        },
        6 => Edit::KeyspaceDropped { keyspace: reader.u32()? },
        7 => Edit::Flushed {
            keyspace: reader.u32()?,
            to: Seq::new(reader.u64()?),
            pieces: decode_pieces(reader)?,
        },
        8 => Edit::Merged { keyspace: reader.u32()?, merged: decode_merged(reader)? },
        9 => Edit::RingGrown { file_bytes: reader.u64()? },
        10 => Edit::Origins(decode_origins(reader)?),
        _ => return None,
    })
}

fn encode_ids(ids: &[u64], out: &mut Vec<u8>) {
    out.put_u32(count(ids.len()));
    for &id in ids {
        out.put_u64(id);
    }
}

fn decode_ids(reader: &mut Reader<'_>) -> Option<Vec<u64>> {
    let count = reader.u32()?;
    (0..count).map(|_| reader.u64()).collect()
}

fn decode_origins(reader: &mut Reader<'_>) -> Option<Vec<Origin>> {
    let count = reader.u32()?;
    (0..count).map(|_| Some(Origin { below: reader.u64()?, store_id: reader.u64()? })).collect()
}

fn encode_merged(merged: &Merged, out: &mut Vec<u8>) {
    encode_bounds(&merged.stretch, out);
    out.put_u64(merged.newest.get());
    out.put_u64(merged.oldest.get());
    out.put_u64(merged.into.get());
    encode_pieces(&merged.out, out);
}

fn decode_merged(reader: &mut Reader<'_>) -> Option<Merged> {
    Some(Merged {
        stretch: decode_bounds(reader)?,
        newest: Seq::new(reader.u64()?),
        oldest: Seq::new(reader.u64()?),
        into: Seq::new(reader.u64()?),
        out: decode_pieces(reader)?,
    })
}

fn encode_bounds(bounds: &KeyBounds, out: &mut Vec<u8>) {
    out.put_bytes(&bounds.from);
    out.put_u8(u8::from(bounds.upto.is_some()));
    if let Some(upto) = &bounds.upto {
        out.put_bytes(upto);
    }
}

fn decode_bounds(reader: &mut Reader<'_>) -> Option<KeyBounds> {
    let from = Bytes::copy_from_slice(reader.bytes()?);
    let upto = match reader.u8()? {
        0 => None,
        1 => Some(Bytes::copy_from_slice(reader.bytes()?)),
        _ => return None,
    };
    Some(KeyBounds { from, upto })
}

fn encode_pieces(pieces: &[PieceMeta], out: &mut Vec<u8>) {
    out.put_u32(count(pieces.len()));
    for piece in pieces {
        encode_segment(&piece.segment, out);
        encode_bounds(&piece.bounds, out);
    }
}

fn decode_pieces(reader: &mut Reader<'_>) -> Option<Vec<PieceMeta>> {
    let count = reader.u32()?;
    let piece = |_| Some(PieceMeta { segment: decode_segment(reader)?, bounds: decode_bounds(reader)? });
    (0..count).map(piece).collect()
}

fn encode_segment(segment: &SegmentMeta, out: &mut Vec<u8>) {
    out.put_u64(segment.id);
    out.put_u32(segment.keyspace);
    out.put_u64(segment.size_bytes);
    out.put_u64(segment.entries);
    out.put_u64(segment.tombstones);
    out.put_u64(segment.min_seq.get());
    out.put_u64(segment.max_seq.get());
    out.put_u64(segment.raw_bytes);
    out.put_u32(segment.footer_crc);
    out.put_bytes(&segment.smallest);
    out.put_bytes(&segment.largest);
}

fn decode_segment(reader: &mut Reader<'_>) -> Option<SegmentMeta> {
    Some(SegmentMeta {
        id: reader.u64()?,
        keyspace: reader.u32()?,
        size_bytes: reader.u64()?,
        entries: reader.u64()?,
        tombstones: reader.u64()?,
        min_seq: Seq::new(reader.u64()?),
        max_seq: Seq::new(reader.u64()?),
        raw_bytes: reader.u64()?,
        footer_crc: reader.u32()?,
        smallest: Bytes::copy_from_slice(reader.bytes()?),
        largest: Bytes::copy_from_slice(reader.bytes()?),
    })
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("lists in an edit are far shorter than four billion")
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
