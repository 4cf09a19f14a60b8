//! Writes a sorted stream of entries as segments, for flushes, compactions and recovery. It does the I/O and knows no
//! policy.
//!
//! A crash leaves files that no manifest names, and the next open removes them. After an error they are due for removal at
//! once: they have no readers. The job that has failed removes them at its end, unless the store closes.

use std::sync::Arc;

use aio::Buf;

use crate::base::error::{Error, Result};
use crate::base::key::Entry;
use crate::base::options::Options;
use crate::compaction::picker::{Layers, filter_bits};
use crate::compaction::retain::{Kept, Retain};
use crate::io::files::Files;
use crate::io::lane::Lane;
use crate::io::pool::LARGEST_BYTES;
use crate::io::write_stream::WriteStream;
use crate::read::cursor::Cursor;
use crate::segment::{BlockCache, Opening, Segment, SegmentMeta, SegmentWriter, WriterOptions};

/// The store in which segments are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) files: &'a Arc<Files>,
    pub(crate) cache: &'a Arc<BlockCache>,
    pub(crate) options: &'a Options,
    pub(crate) store_id: u64,
}

impl<'a> Site<'a> {
    /// Where segments of a new run of a keyspace go.
    pub(crate) fn output(self, keyspace: u32, layers: Layers) -> Output<'a> {
        Output {
            files: self.files,
            cache: self.cache,
            store_id: self.store_id,
            keyspace,
            segment_bytes: self.options.segment_bytes(),
            block_bytes: self.options.block_bytes(),
            compress: self.options.compress,
            filter_bits: filter_bits(layers),
            leaving_bytes: 0,
        }
    }
}

/// Where and how segments of one keyspace are written.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub(crate) files: &'a Arc<Files>,
    pub(crate) cache: &'a Arc<BlockCache>,
    /// The store itself: the origin of the files that it writes.
    pub(crate) store_id: u64,
    pub(crate) keyspace: u32,
    /// A segment is closed at the first new key at or above this size.
    pub(crate) segment_bytes: u64,
    pub(crate) block_bytes: usize,
    pub(crate) compress: bool,
    pub(crate) filter_bits: u32,
    /// Bytes that the segments that are replaced hold in memory beside their blocks.
    pub(crate) leaving_bytes: u64,
}

/// Called between two entries: whether the work is to be given up. Must cost nothing but loads.
pub(crate) type Stop<'a> = &'a dyn Fn() -> bool;

/// For work that is never given up.
pub(crate) const NEVER: Stop<'static> = &|| false;

/// Writes the entries of `input` that `retain` keeps, and makes files and names durable. `number` gives fresh file numbers.
///
/// Returns an empty list if no entry was kept.
///
/// # Errors
/// Those of reads and writes; [`Error::Closed`] after `stop`. No file is left then, or it is due for removal.
pub(crate) fn write_run(
    output: &Output<'_>,
    lane: &Arc<Lane>,
    number: &dyn Fn() -> u64,
    (mut input, retain): (impl Cursor, &mut Retain),
    stop: Stop<'_>,
) -> Result<Vec<SegmentMeta>> {
    let mut run = RunWriter::new(output, lane);
    input.seek(b"")?;
    while let Some(entry) = input.entry() {
        if let Some(kept) = retain.judge(&entry) {
            run.add(entry, kept, number)?;
        }
        if stop() {
            return Err(Error::Closed);
        }
        // The quick way prefetches the entries of memtables.
        if !input.quick_next() {
            input.next()?;
        }
    }
    run.close()
}

/// Opens the segments that [`write_run`] has written.
///
/// # Errors
/// Those of the reads; [`Error::Closed`] after `stop`.
pub(crate) fn open_segments(
    output: &Output<'_>,
    metas: &[SegmentMeta],
    stop: Stop<'_>,
) -> Result<Vec<Arc<Segment>>> {
    let &Output { files, cache, store_id: origin, leaving_bytes, .. } = output;
    let opening = Opening { files, cache, origin, leaving_bytes };
    let open = |meta| if stop() { Err(Error::Closed) } else { Segment::open(&opening, meta) };
    metas.iter().map(open).collect()
}

/// Removes segment files that no manifest has named.
pub(crate) fn remove(files: &Files, segments: impl IntoIterator<Item = u64>) {
    segments.into_iter().for_each(|segment| files.removals().remove(&files.segment_path(segment)));
}

/// Segments of one run, written one after the other.
struct RunWriter<'a> {
    output: &'a Output<'a>,
    state: WriterState,
    written: Vec<SegmentMeta>,
}

/// The stream is in the open segment, or waits for the next one.
enum WriterState {
    Between(WriteStream),
    Open(Box<SegmentWriter>),
    /// After an error the stream is gone, and with it all files.
    Failed,
}

impl<'a> RunWriter<'a> {
    fn new(output: &'a Output<'a>, lane: &Arc<Lane>) -> RunWriter<'a> {
        let stream = WriteStream::new(lane, chunk_bytes(output.segment_bytes));
        RunWriter { output, state: WriterState::Between(stream), written: Vec::new() }
    }

    fn add(&mut self, entry: Entry<'_>, kept: Kept, number: &dyn Fn() -> u64) -> Result<()> {
        if let WriterState::Open(writer) = &mut self.state
            && !(kept == Kept::NewKey && writer.size_bytes() >= self.output.segment_bytes)
        {
            return writer.add(entry, kept);
        }
        let mut writer = create(self.finish_segment()?, self.output, number())?;
        writer.add(entry, kept)?;
        self.state = WriterState::Open(Box::new(writer));
        Ok(())
    }

    /// Ends the open segment, if there is one.
    fn finish_segment(&mut self) -> Result<WriteStream> {
        match std::mem::replace(&mut self.state, WriterState::Failed) {
            WriterState::Between(stream) => Ok(stream),
            WriterState::Open(writer) => {
                let (meta, stream) = writer.finish()?;
                self.written.push(meta);
                Ok(stream)
            }
            WriterState::Failed => unreachable!("a job ends with its first error"),
        }
    }

    /// Makes files and names durable.
    fn close(mut self) -> Result<Vec<SegmentMeta>> {
        let stream = self.finish_segment()?;
        stream.close()?;
        Ok(self.written)
    }
}

/// A segment is written in about 16 chunks.
fn chunk_bytes(segment_bytes: u64) -> usize {
    let wanted = usize::try_from(segment_bytes / 16).unwrap_or(usize::MAX);
    // The power of two at or below it.
    let chunk = wanted.checked_ilog2().map_or(0, |bits| 1 << bits);
    chunk.clamp(Buf::ALIGN, LARGEST_BYTES)
}

fn create(stream: WriteStream, output: &Output<'_>, id: u64) -> Result<SegmentWriter> {
    let options = WriterOptions {
        id,
        keyspace: output.keyspace,
        store_id: output.store_id,
        block_bytes: output.block_bytes,
        compress: output.compress,
        filter_bits_per_key: output.filter_bits,
    };
    SegmentWriter::create(stream, options)
}
