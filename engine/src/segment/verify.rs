//! Reads a whole segment and checks all that the format promises.
//!
//! The ordinary read path trusts a block whose checksum passes; this is the check that the writer did its work too.

use super::block::Block;
use super::open::{load, read_footer};
use super::reader::{Care, Segment, Way};
use crate::error::{Error, Result};
use crate::key::{Entry, Kind, Seq};
use crate::read_ahead::MOST_BYTES;

impl Segment {
    /// Reads everything and checks it: checksums, order within and across blocks, separators, filter, counts, bounds.
    /// Returns the bytes checked.
    ///
    /// # Errors
    /// `Corrupt` names the first thing that does not fit.
    pub(crate) fn verify(&self) -> Result<u64> {
        let footer =
            read_footer(&self.files, &self.file, self.meta.size_bytes, Some(self.meta.footer_crc))?.0;
        load(&self.files, &self.file, &footer, Care::Verify)?;
        let mut seen = Seen::default();
        let mut next = 0;
        while next < self.index.blocks() {
            let ahead = self.blocks_ahead(next, Way::Forward, usize::MAX, MOST_BYTES);
            let span = self.read_span(ahead, None)?;
            while next < span.end {
                let block = self.decode(next, &span)?;
                seen.block(Block::of(&block), self, next)?;
                next += 1;
            }
        }
        seen.totals(self)?;
        Ok(self.meta.size_bytes)
    }
}

/// What a verification has seen so far.
#[derive(Default)]
struct Seen {
    entries: u64,
    tombstones: u64,
    raw_bytes: u64,
    min_seq: Option<Seq>,
    max_seq: Option<Seq>,
    first_key: Vec<u8>,
    last: Option<(Vec<u8>, Seq)>,
}

impl Seen {
    fn block(&mut self, block: Block<'_>, segment: &Segment, number: usize) -> Result<()> {
        let (mut failed, mut first) = (None, true);
        block
            .check(|entry, hash| {
                if first {
                    failed = failed.or(self.first_of_block(entry, segment, number));
                    first = false;
                }
                if !segment.filter.may_contain(hash) {
                    failed = failed.or(Some("a key of a block is not in the filter"));
                }
                self.entries += 1;
                self.tombstones += u64::from(entry.kind == Kind::Delete);
                self.raw_bytes += (entry.key.len() + entry.value.len()) as u64;
                self.min_seq = Some(self.min_seq.map_or(entry.seq, |seq| seq.min(entry.seq)));
                self.max_seq = Some(self.max_seq.map_or(entry.seq, |seq| seq.max(entry.seq)));
            })
            .map_err(|what| segment.corrupt(number, what))?;
        let last = block.len() - 1;
        let key = [block.prefix(), block.suffix(last)].concat();
        if key.as_slice() > segment.index.separator(number) {
            failed = failed.or(Some("a key of a block is above its separator"));
        }
        self.last = Some((key, block.seq(last)));
        failed.map_or(Ok(()), |what| Err(segment.corrupt(number, what)))
    }

    /// How the block continues the one before.
    fn first_of_block(
        &mut self,
        entry: &Entry<'_>,
        segment: &Segment,
        number: usize,
    ) -> Option<&'static str> {
        let Some((key, seq)) = &self.last else {
            self.first_key = entry.key.to_vec();
            return None;
        };
        let same_key = key == entry.key;
        if key.as_slice() > entry.key || same_key && *seq <= entry.seq {
            return Some("order of entries across blocks");
        }
        let separator = segment.index.separator(number - 1);
        if separator > entry.key || separator == entry.key && !same_key {
            return Some("a key of a block is not above the separator before");
        }
        None
    }

    fn totals(&self, segment: &Segment) -> Result<()> {
        let meta = &segment.meta;
        let last_key = self.last.as_ref().map_or(&[] as &[u8], |(key, _)| key);
        let equal = self.entries == meta.entries
            && self.tombstones == meta.tombstones
            && self.raw_bytes == meta.raw_bytes
            && self.min_seq == Some(meta.min_seq)
            && self.max_seq == Some(meta.max_seq)
            && meta.smallest == self.first_key
            && meta.largest == last_key;
        if equal {
            return Ok(());
        }
        let found =
            format!("{} entries, {} tombstones, {} bytes", self.entries, self.tombstones, self.raw_bytes);
        Err(Error::corrupt(&segment.path, 0, "segment totals", format!("{meta:?}"), found))
    }
}
