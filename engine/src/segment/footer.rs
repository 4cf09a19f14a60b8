//! The last 4096 bytes of a segment: identity, counts, the offsets of the other parts, and the checksum of the top.
//!
//! ```text
//!   OFFSET  SIZE  FIELD (all integers little-endian)
//!        0     8  magic "EskerSeg"
//!        8     4  format version: 2
//!       12     4  feature bits; a reader refuses a file with a bit that it does not know
//!                   bit 0: some blocks are compressed with LZ4
//!       16     8  segment id, which is its file number
//!       24     8  id of the store that wrote it: the file's origin (see `manifest/version.rs`)
//!       32     4  keyspace id
//!       36     4  number of data blocks
//!       40     8  entries
//!       48     8  tombstones among them
//!       56     8  raw bytes: keys and values as they were put
//!       64     8  smallest Seq
//!       72     8  largest Seq
//!       80     8  offset of the index blocks = end of the data blocks; a multiple of 512
//!       88     8  offset of the filter blocks = end of the index blocks; a multiple of 512
//!       96     8  offset of the top = end of the filter blocks; a multiple of 512
//!      104     8  length of the top without its padding
//!      112     8  size of the file
//!      120     4  checksum of the top, padding included
//!      124     4  length of all separators of data blocks together, so that a reader knows the size of a pinned index
//!      128  3964  zero
//!     4092     4  CRC-32 of bytes 0..4092; the manifest holds it too
//! ```
//!
//! Checksums of blocks and of the top are CRC-32 (the polynomial of zlib) over: segment id u64, part u32, the bytes. The
//! part is the block number, or [`TOP_PART`]; so bytes of another segment or another part do not pass.
//!
//! Invariant: the parts follow each other without gaps, so every byte of the file is under exactly one checksum.
//! Version gate: [`VERSION`]; a file with another number is refused.
#![deny(clippy::indexing_slicing)]

use std::path::Path;

use bytes::Bytes;

use crate::base::coding::{Put, Reader};
use crate::base::error::{Error, Result};
use crate::base::key::Seq;

/// Size of the footer; the size of a segment is a multiple of it.
pub(super) const FOOTER_BYTES: usize = 4096;
/// The unit of block offsets.
pub(super) const UNIT_BYTES: usize = 512;
/// Replaces the block number in the checksum of the top.
pub(super) const TOP_PART: u32 = u32::MAX - 2;
/// Feature: some blocks are compressed with LZ4.
pub(super) const FEATURE_LZ4: u32 = 1;

const MAGIC: [u8; 8] = *b"EskerSeg";
/// The one version of the format.
const VERSION: u32 = 2;
const KNOWN_FEATURES: u32 = FEATURE_LZ4;
const CRC_OFFSET: usize = FOOTER_BYTES - 4;

/// The manifest's description of a segment: enough to plan reads and compactions without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMeta {
    /// The file number. It is never reused in a store.
    pub(crate) id: u64,
    /// The keyspace of the entries.
    pub(crate) keyspace: u32,
    /// Size of the file.
    pub(crate) size_bytes: u64,
    /// All entries, tombstones included; at least one.
    pub(crate) entries: u64,
    /// Tombstones among them.
    pub(crate) tombstones: u64,
    /// The first key.
    pub(crate) smallest: Bytes,
    /// The last key (inclusive).
    pub(crate) largest: Bytes,
    /// The `Seq` of the oldest entry.
    pub(crate) min_seq: Seq,
    /// The `Seq` of the newest entry.
    pub(crate) max_seq: Seq,
    /// Bytes of all keys and values, before prefix sharing and compression.
    pub(crate) raw_bytes: u64,
    /// Checksum of the footer. The footer has the checksum of the top, the top those of index and filter blocks, and the index
    /// those of the data blocks.
    pub(crate) footer_crc: u32,
}

/// CRC-32 of bytes that are one part of one segment.
pub(super) fn checksum(segment: u64, part: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&part.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// A section of the file: bytes `offset .. offset + len_bytes`, then zeros up to the next section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    pub(super) crc: u32,
}

/// The positions of the parts behind the data blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Offset of the index blocks, at which the data blocks end.
    pub(super) index: u64,
    /// Offset of the filter blocks, at which the index blocks end.
    pub(super) filter: u64,
    pub(super) top: Section,
    /// Length of all separators of data blocks together.
    pub(super) separators_bytes: u32,
}

/// The fields of the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) features: u32,
    pub(super) segment: u64,
    pub(super) store: u64,
    pub(super) keyspace: u32,
    pub(super) blocks: u32,
    pub(super) entries: u64,
    pub(super) tombstones: u64,
    pub(super) raw_bytes: u64,
    pub(super) min_seq: Seq,
    pub(super) max_seq: Seq,
    pub(super) layout: Layout,
    pub(super) size_bytes: u64,
}

impl Footer {
    /// Offset of the footer itself.
    pub(super) fn offset(&self) -> u64 {
        self.size_bytes.saturating_sub(FOOTER_BYTES as u64)
    }

    /// Encodes the footer. Returns its bytes, and their checksum for the manifest.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(self.features);
        out.put_u64(self.segment);
        out.put_u64(self.store);
        out.put_u32(self.keyspace);
        out.put_u32(self.blocks);
        for word in [self.entries, self.tombstones, self.raw_bytes, self.min_seq.get(), self.max_seq.get()] {
            out.put_u64(word);
        }
        let Layout { index, filter, top, separators_bytes } = self.layout;
        for word in [index, filter, top.offset, top.len_bytes, self.size_bytes] {
            out.put_u64(word);
        }
        out.put_u32(top.crc);
        out.put_u32(separators_bytes);
        out.resize(CRC_OFFSET, 0);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        assert_eq!(out.len(), FOOTER_BYTES, "the footer has a fixed size");
        (out, crc)
    }

    /// Checks and decodes the bytes at `offset` in `file`. Returns their checksum, too.
    ///
    /// # Errors
    /// `Corrupt`: bytes that [`Footer::encode`] did not make. `Format`: another version or an unknown feature.
    pub(super) fn decode(bytes: &[u8], file: &Path, offset: u64) -> Result<(Footer, u32)> {
        let bad = |what, expected: u64, found: u64| {
            Error::corrupt(file, offset, what, format!("{expected:#x}"), format!("{found:#x}"))
        };
        let (body, crc) = bytes
            .split_at_checked(CRC_OFFSET)
            .and_then(|(body, tail)| Some((body, Reader::new(tail).u32()?)))
            .filter(|_| bytes.len() == FOOTER_BYTES)
            .ok_or_else(|| bad("segment footer size", FOOTER_BYTES as u64, bytes.len() as u64))?;
        let found = crc32fast::hash(body);
        if found != crc {
            return Err(bad("segment footer checksum", u64::from(crc), u64::from(found)));
        }
        let mut reader = Reader::new(body);
        if reader.take(MAGIC.len()) != Some(&MAGIC) {
            return Err(Error::corrupt(file, offset, "segment magic", "EskerSeg", "something else"));
        }
        let short = || bad("segment footer size", FOOTER_BYTES as u64, bytes.len() as u64);
        let version = reader.u32().ok_or_else(short)?;
        let features = reader.u32().ok_or_else(short)?;
        if version != VERSION {
            let what = format!("segment format version {version}; this program reads version {VERSION} only");
            return Err(Error::Format { path: file.to_owned(), what });
        }
        if features & !KNOWN_FEATURES != 0 {
            let what = format!(
                "unknown segment features {:#x}: a newer program wrote it",
                features & !KNOWN_FEATURES
            );
            return Err(Error::Format { path: file.to_owned(), what });
        }
        let footer = Footer::fields(features, &mut reader).ok_or_else(short)?;
        footer.check_layout().map_err(|what| bad(what, footer.size_bytes, footer.layout.index))?;
        Ok((footer, crc))
    }

    fn fields(features: u32, reader: &mut Reader<'_>) -> Option<Footer> {
        let mut footer = Footer {
            features,
            segment: reader.u64()?,
            store: reader.u64()?,
            keyspace: reader.u32()?,
            blocks: reader.u32()?,
            entries: reader.u64()?,
            tombstones: reader.u64()?,
            raw_bytes: reader.u64()?,
            min_seq: Seq::new(reader.u64()?),
            max_seq: Seq::new(reader.u64()?),
            layout: Layout::default(),
            size_bytes: 0,
        };
        footer.layout.index = reader.u64()?;
        footer.layout.filter = reader.u64()?;
        footer.layout.top.offset = reader.u64()?;
        footer.layout.top.len_bytes = reader.u64()?;
        footer.size_bytes = reader.u64()?;
        footer.layout.top.crc = reader.u32()?;
        footer.layout.separators_bytes = reader.u32()?;
        Some(footer)
    }

    /// Checks that the parts lie in the file, in order, and can hold their contents.
    fn check_layout(&self) -> std::result::Result<(), &'static str> {
        let footer_offset =
            self.size_bytes.checked_sub(FOOTER_BYTES as u64).ok_or("segment size in the footer")?;
        let Layout { index, filter, top, .. } = self.layout;
        let top_end = top.offset.checked_add(top.len_bytes);
        let ordered =
            index < filter && filter < top.offset && top_end.is_some_and(|end| end <= footer_offset);
        let aligned = self.size_bytes.is_multiple_of(FOOTER_BYTES as u64)
            && [index, filter, top.offset].iter().all(|start| start.is_multiple_of(UNIT_BYTES as u64));
        if !aligned || !ordered {
            return Err("segment sections in the footer");
        }
        if self.blocks == 0
            || self.entries == 0
            || self.tombstones > self.entries
            || self.min_seq > self.max_seq
        {
            return Err("segment counts in the footer");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Footer {
        let top = Section { offset: 9728, len_bytes: 200, crc: 2 };
        Footer {
            features: FEATURE_LZ4,
            segment: 7,
            store: 0x1122_3344_5566_7788,
            keyspace: 3,
            blocks: 4,
            entries: 100,
            tombstones: 5,
            raw_bytes: 12_345,
            min_seq: Seq::new(9),
            max_seq: Seq::new(1 << 40),
            layout: Layout { index: 8192, filter: 8704, top, separators_bytes: 99 },
            size_bytes: 16_384,
        }
    }

    fn decode(bytes: &[u8]) -> Result<(Footer, u32)> {
        Footer::decode(bytes, Path::new("000007.seg"), 12_288)
    }

    /// The bytes of the sample with some of them replaced and the checksum adapted.
    fn patched(offset: usize, with: &[u8]) -> Vec<u8> {
        let (mut bytes, _) = sample().encode();
        bytes[offset..offset + with.len()].copy_from_slice(with);
        let crc = crc32fast::hash(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn an_encoded_footer_is_decoded_to_the_same() {
        let (bytes, crc) = sample().encode();
        assert_eq!(decode(&bytes).unwrap(), (sample(), crc));
    }

    #[test]
    fn a_checksum_belongs_to_one_part_of_one_segment() {
        let mut seeded = 7_u64.to_le_bytes().to_vec();
        seeded.extend_from_slice(&3_u32.to_le_bytes());
        seeded.extend_from_slice(b"bytes");
        assert_eq!(checksum(7, 3, b"bytes"), crc32fast::hash(&seeded));
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926, "the polynomial is part of the format");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let (bytes, _) = sample().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bad), Err(Error::Corrupt { .. })), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..len]), Err(Error::Corrupt { .. })), "{len} bytes");
        }
    }

    #[test]
    fn other_versions_and_unknown_features_are_refused_not_called_damage() {
        for version in [0, VERSION - 1, VERSION + 1, u32::MAX] {
            let bytes = patched(8, &version.to_le_bytes());
            assert!(matches!(decode(&bytes), Err(Error::Format { .. })), "version {version}");
        }
        assert!(matches!(decode(&patched(12, &2_u32.to_le_bytes())), Err(Error::Format { .. })));
        assert!(matches!(decode(&patched(0, b"x")), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn impossible_fields_with_a_right_checksum_are_corrupt() {
        for offset in [80, 88, 96, 104, 112] {
            let bad = patched(offset, &u64::MAX.to_le_bytes());
            assert!(matches!(decode(&bad), Err(Error::Corrupt { .. })), "offset {offset}");
        }
        for (offset, word) in [(36, 0_u32), (40, 0), (112, 0), (48, 101), (80, 8193), (96, 8193)] {
            let bad = patched(offset, &word.to_le_bytes());
            assert!(matches!(decode(&bad), Err(Error::Corrupt { .. })), "offset {offset}");
        }
    }
}
