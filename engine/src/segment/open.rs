//! Opens a segment: reads footer, top, index and filter, and checks them.
//!
//! Invariant: no part of index, filter and top is used before its checksum was verified, and the footer's checksum is the one
//! in the manifest.

use std::path::Path;
use std::sync::Arc;

use aio::{Buf, Errno, File};

use super::block::{Block, Frame};
use super::filter::{Filter, line_from};
use super::footer::{FOOTER_BYTES, Footer, SegmentMeta, TOP_PART, checksum};
use super::index::{Index, IndexBuilder};
use super::pages::{handle_in, lines_in, separator_in};
use super::reader::{BlockCache, Care, Form, Segment, aligned, check_page, corrupt, decode_block};
use super::top::Top;
use crate::base::error::{Error, Result};
use crate::io::files::Files;
use crate::io::open_files::CachedFile;
use crate::io::removals::WhenUnused;
use crate::memory::cache::Slots;
use crate::memory::reserve::ReservedBytes;

/// The input of an open, without the manifest's description of the segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening<'a> {
    pub(crate) files: &'a Arc<Files>,
    pub(crate) cache: &'a Arc<BlockCache>,
    /// The id of the store that wrote the file.
    pub(crate) origin: u64,
    /// Memory of the segments that this one replaces, without their blocks. It is free soon.
    pub(crate) leaving_bytes: u64,
}

impl Segment {
    /// Opens the file that `meta` describes and loads its index and filter, or only the top if the budget does not allow both.
    /// Takes two reads.
    ///
    /// # Errors
    /// `Corrupt` if the file is missing or is not the file that `meta` and the origin describe; `Format` if a program of
    /// another version wrote it.
    pub(crate) fn open(opening: &Opening<'_>, meta: &SegmentMeta) -> Result<Arc<Segment>> {
        let (files, cache) = (opening.files, opening.cache);
        let path = files.segment_path(meta.id);
        let cached = open_file(files, &path)?;
        let file = cached.get()?;
        let size_bytes = files.backend().size_bytes(&file)?;
        if size_bytes != meta.size_bytes {
            return Err(Error::corrupt(&path, 0, "segment size in bytes", meta.size_bytes, size_bytes));
        }
        let footer = read_footer(files, &file, size_bytes, Some(meta.footer_crc))?.0;
        check_footer(&path, meta, &footer, opening.origin)?;
        let granted = ReservedBytes::ask(cache, pinned_bytes(meta, &footer), opening.leaving_bytes);
        let (form, blocks, slots) = if granted.is_none() {
            let top = load_top(files, &file, &footer)?;
            let (blocks, all) = (top.index_block(0), top.blocks());
            (Form::Paged(top), blocks, all)
        } else {
            let (index, filter) = load(files, &file, &footer, Care::Open)?;
            let blocks = index.blocks();
            (Form::Pinned { index, filter }, blocks, blocks)
        };
        check_bounds(&path, meta, &footer, &form)?;
        let mut segment = Segment {
            removal: WhenUnused::new(files.removals(), &path),
            files: files.clone(),
            cache: cache.clone(),
            file: cached,
            path,
            meta: meta.clone(),
            form,
            blocks,
            slots: Arc::new(Slots::new(slots, meta.id)),
            reserved: granted.unwrap_or_else(|| ReservedBytes::take(cache, 0)),
        };
        let memory_bytes = segment.memory_bytes();
        segment.reserved.resize(memory_bytes);
        Ok(Arc::new(segment))
    }
}

/// An upper estimate of the segment's memory if its index and filter are pinned.
pub(super) fn pinned_bytes(meta: &SegmentMeta, footer: &Footer) -> u64 {
    let blocks = u64::from(footer.blocks);
    let layout = &footer.layout;
    let filter_bytes = layout.top.offset.saturating_sub(layout.filter);
    let keys_bytes = u64::from(layout.separators_bytes) + meta.smallest.len() as u64;
    let slots_bytes =
        usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(Slots::<Frame>::BYTES_EACH);
    Index::bytes_for(blocks, keys_bytes)
        .saturating_add(filter_bytes + size_of::<Filter>() as u64)
        .saturating_add(Segment::other_bytes(meta, slots_bytes))
}

/// Checks that smallest and largest key are those of the manifest.
fn check_bounds(path: &Path, meta: &SegmentMeta, footer: &Footer, form: &Form) -> Result<()> {
    let (smallest, largest) = match form {
        Form::Pinned { index, .. } => (index.smallest(), index.separator(index.blocks() - 1)),
        Form::Paged(top) => (top.smallest(), top.largest()),
    };
    if smallest != meta.smallest || largest != meta.largest {
        let what = "segment key bounds";
        return Err(Error::corrupt(path, footer.layout.index, what, "the manifest's", "others"));
    }
    Ok(())
}

fn open_file(files: &Files, path: &Path) -> Result<CachedFile> {
    files.open_files().open_cached(path).map_err(|error| match error.errno() {
        Some(Errno::NOT_FOUND) => Error::corrupt(path, 0, "segment file", "a file", "none"),
        _ => error.into(),
    })
}

/// Reads bytes `start..stop`. Also returns the offset of the buffer in the file.
fn read_range(files: &Files, file: &File, start: u64, stop: u64) -> Result<(u64, Buf)> {
    let (offset, len_bytes) = aligned((file.path(), file.alignment()), start, stop)?;
    Ok((offset, files.read(file, offset, len_bytes)?))
}

/// The footer and its checksum, which must be `expected` if that is known.
pub(super) fn read_footer(
    files: &Files,
    file: &File,
    size_bytes: u64,
    expected: Option<u32>,
) -> Result<(Footer, u32)> {
    let path = file.path();
    let Some(start) = size_bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(Error::corrupt(path, 0, "segment size in bytes", "at least 4096", size_bytes));
    };
    let (offset, buf) = read_range(files, file, start, size_bytes)?;
    let skip = usize::try_from(start - offset).unwrap_or(usize::MAX);
    let (footer, crc) = Footer::decode(buf.get(skip..).unwrap_or_default(), path, start)?;
    match expected {
        Some(expected) if expected != crc => {
            let (expected, found) = (format!("{expected:#x}"), format!("{crc:#x}"));
            Err(Error::corrupt(path, start, "segment footer against the manifest", expected, found))
        }
        _ => Ok((footer, crc)),
    }
}

/// Checks the footer against the manifest.
fn check_footer(path: &Path, meta: &SegmentMeta, footer: &Footer, origin: u64) -> Result<()> {
    let pairs = [
        ("segment id", meta.id, footer.segment),
        ("store id", origin, footer.store),
        ("keyspace id", u64::from(meta.keyspace), u64::from(footer.keyspace)),
        ("segment size in bytes", meta.size_bytes, footer.size_bytes),
        ("number of entries", meta.entries, footer.entries),
        ("number of tombstones", meta.tombstones, footer.tombstones),
        ("raw bytes", meta.raw_bytes, footer.raw_bytes),
        ("smallest sequence number", meta.min_seq.get(), footer.min_seq.get()),
        ("largest sequence number", meta.max_seq.get(), footer.max_seq.get()),
    ];
    for (what, expected, found) in pairs {
        if expected != found {
            return Err(Error::corrupt(path, footer.size_bytes - FOOTER_BYTES as u64, what, expected, found));
        }
    }
    Ok(())
}

/// The bytes between data blocks and footer, or the last part of them.
struct Region<'a> {
    path: &'a Path,
    segment: u64,
    /// Offset of the buffer in the file.
    offset: u64,
    buf: Buf,
}

impl<'a> Region<'a> {
    /// Reads from `start` up to the footer.
    fn read(files: &Files, file: &'a File, footer: &Footer, start: u64) -> Result<Region<'a>> {
        let (offset, buf) = read_range(files, file, start, footer.offset())?;
        Ok(Region { path: file.path(), segment: footer.segment, offset, buf })
    }

    fn bytes(&self, start: u64, stop: u64) -> &[u8] {
        let at = |position: u64| position.checked_sub(self.offset).and_then(|at| usize::try_from(at).ok());
        let bytes = at(start).zip(at(stop)).and_then(|(start, stop)| self.buf.get(start..stop));
        bytes.unwrap_or_default()
    }

    /// The index or filter block with this number.
    fn block(&self, top: &Top, number: usize, care: Care) -> Result<Frame> {
        let handle = top.handle(number).expect("the top counts its blocks");
        let stored = self.bytes(handle.offset, handle.offset + handle.padded_bytes() as u64);
        let frame = decode_block((self.path, self.segment), number, &handle, stored)?;
        check_page(top, number, &frame, care).map_err(|what| corrupt(self.path, number, &handle, what))?;
        Ok(frame)
    }
}

/// Reads the blocks of index and filter, and joins them to the pinned form.
pub(super) fn load(files: &Files, file: &File, footer: &Footer, care: Care) -> Result<(Index, Filter)> {
    let region = Region::read(files, file, footer, footer.layout.index)?;
    let top = top_of(&region, footer)?;
    let index = join_index(&region, &top, footer, care)?;
    Ok((index, join_filter(&region, &top, care)?))
}

/// Reads the top alone.
fn load_top(files: &Files, file: &File, footer: &Footer) -> Result<Top> {
    top_of(&Region::read(files, file, footer, footer.layout.top.offset)?, footer)
}

/// The top, checked together with its padding, which ends at the footer.
fn top_of(region: &Region<'_>, footer: &Footer) -> Result<Top> {
    let section = footer.layout.top;
    let found = checksum(footer.segment, TOP_PART, region.bytes(section.offset, footer.offset()));
    if found != section.crc {
        let (expected, found) = (format!("{:#x}", section.crc), format!("{found:#x}"));
        return Err(Error::corrupt(region.path, section.offset, "segment top checksum", expected, found));
    }
    Top::decode(region.bytes(section.offset, section.offset + section.len_bytes), footer)
        .map_err(|what| Error::corrupt(region.path, section.offset, what, "a valid top", "another"))
}

fn join_index(region: &Region<'_>, top: &Top, footer: &Footer, care: Care) -> Result<Index> {
    let (blocks, separators_bytes) = (footer.blocks, footer.layout.separators_bytes);
    let (mut joined, mut separator) = (IndexBuilder::default(), Vec::new());
    joined.set_smallest(top.smallest());
    let other = |found: u32| {
        let what = "length of all separators of the index";
        Error::corrupt(region.path, region.offset, what, separators_bytes, found)
    };
    for piece in 0..top.pieces() {
        let frame = region.block(top, top.index_block(piece), care)?;
        let block = Block::of(&frame);
        for i in 0..block.len() {
            separator_in(block, i, &mut separator);
            let added = handle_in(block, i).and_then(|handle| joined.push(handle, &separator));
            // Freed now, so that the granted memory is not exceeded.
            if added.is_none() || joined.separators_bytes() > separators_bytes {
                return Err(other(joined.separators_bytes()));
            }
        }
    }
    if joined.separators_bytes() != separators_bytes || joined.blocks() != blocks {
        return Err(other(joined.separators_bytes()));
    }
    Ok(joined.into_index())
}

fn join_filter(region: &Region<'_>, top: &Top, care: Care) -> Result<Filter> {
    let mut lines = Vec::with_capacity(top.lines());
    for number in top.filter_blocks() {
        let frame = region.block(top, number, care)?;
        lines.extend(lines_in(Block::of(&frame)).iter().map(line_from));
    }
    Ok(Filter::of(lines))
}
