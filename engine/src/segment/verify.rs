//! Reads a whole segment and checks every rule of the format.
//!
//! The normal read path trusts a block with a valid checksum. This check also finds errors of the writer.

use super::block::Block;
use super::filter::Filter;
use super::index::Part;
use super::open::{load, pinned_bytes, read_footer};
use super::reader::{Care, ReadLimit, Segment, corrupt};
use crate::base::error::{Error, Result};
use crate::base::key::{Entry, Seq};
use crate::io::read_ahead::MOST_BYTES;
use crate::memory::reserve::ReservedBytes;
use crate::read::cursor::Direction;

impl Segment {
    /// Reads everything and checks it: checksums, order within and across blocks, separators, filter, counts, bounds.
    /// Returns the bytes checked.
    ///
    /// # Errors
    /// `Corrupt` names the first broken rule.
    pub(crate) fn verify(&self) -> Result<u64> {
        let file = self.file.get()?;
        let footer = read_footer(&self.files, &file, self.meta.size_bytes, Some(self.meta.footer_crc))?.0;
        // The memory of index and filter is charged to the cache's budget. Both are read from the device, pinned or not.
        let mut reserved = ReservedBytes::take(&self.cache, pinned_bytes(&self.meta, &footer));
        let (index, filter) = load(&self.files, &file, &footer, Care::Verify)?;
        reserved.resize(index.memory_bytes() + filter.memory_bytes());
        let part = Part::whole(&index);
        let against = Against { part, filter: &filter };
        let mut seen = Seen::default();
        let limit = ReadLimit { blocks: usize::MAX, bytes: MOST_BYTES };
        let mut next = 0;
        while next < index.blocks() {
            let ahead = self.blocks_ahead(part, next, Direction::Forward, limit);
            let window = self.read_window(None, self.extent(part, ahead)?)?;
            while next < window.blocks.end {
                let handle = part.handle(next).expect("it is below the number of blocks");
                let block = self.decode(next, &handle, &window)?;
                seen.block(Block::of(&block), &against, next)
                    .map_err(|what| corrupt(&self.path, next, &handle, what))?;
                next += 1;
            }
        }
        seen.totals(self)?;
        Ok(self.meta.size_bytes)
    }
}

/// The totals of a verification so far.
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

/// The index and filter that blocks are compared with.
struct Against<'a> {
    part: Part<'a>,
    filter: &'a Filter,
}

impl Seen {
    fn block(
        &mut self,
        block: Block<'_>,
        against: &Against<'_>,
        number: usize,
    ) -> std::result::Result<(), &'static str> {
        let (mut failed, mut first) = (None, true);
        block.check(|entry, hash| {
            if first {
                failed = failed.or(self.first_of_block(entry, against, number));
                first = false;
            }
            if !against.filter.may_contain(hash) {
                failed = failed.or(Some("a key of a block is not in the filter"));
            }
            self.entries += 1;
            self.tombstones += u64::from(entry.is_tombstone());
            self.raw_bytes += (entry.key.len() + entry.value.len()) as u64;
            self.min_seq = Some(self.min_seq.map_or(entry.seq, |seq| seq.min(entry.seq)));
            self.max_seq = Some(self.max_seq.map_or(entry.seq, |seq| seq.max(entry.seq)));
        })?;
        let last = block.len() - 1;
        let key = [block.prefix(), block.suffix(last)].concat();
        if key.as_slice() > against.part.separator(number) {
            failed = failed.or(Some("a key of a block is above its separator"));
        }
        self.last = Some((key, block.seq(last)));
        failed.map_or(Ok(()), Err)
    }

    /// Checks that the block continues the previous one.
    fn first_of_block(
        &mut self,
        entry: &Entry<'_>,
        against: &Against<'_>,
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
        let separator = against.part.separator_before(number);
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
