//! Writes files front to back: one chunk is filled while others are written, and a file is synced while the next is filled.
//!
//! ```text
//!   begin -> filling: append, append, ... -> finish -> writes in flight -> all reaped: truncated, sync in flight -> durable
//!               | a chunk is full                                                                              |
//!               v                                                                       close: all files durable, then
//!            write in flight -> reaped -> the buffer goes back to the pool                     one sync of the directory
//! ```
//!
//! All writes and syncs of a stream go through the [`Lane`] of its job. The thread that fills the chunks hands each full one
//! to the kernel, reaps without waiting when it begins the next, and sleeps only if [`MOST_WRITES`] are still in flight.
//! Memory: one chunk and [`MOST_WRITES`] in flight.
//!
//! # Crash
//! Until [`WriteStream::close`] has returned, a power cut may leave any part of any of the files, with or without a name. A
//! stream that is dropped before that removes all its files; a crash leaves them to the next open.
//!
//! Invariants: a file is synced only after all its writes were reaped, since a sync covers the writes that completed before
//! it was submitted; the directory is synced after the files.

use std::path::PathBuf;
use std::sync::Arc;

use aio::{Buf, File, OpenMode, Operation};

use crate::base::error::Result;
use crate::base::planted::{Bug, planted};
use crate::io::files::Files;
use crate::io::lane::{Lane, Ticket};
use crate::io::pool::LARGEST_BYTES;

/// Writes of one stream in flight.
const MOST_WRITES: usize = 2;

/// Space is reserved for this many chunks ahead of the writes.
const CHUNKS_RESERVED: u64 = 16;

/// Writes one file after the other; removes them all when dropped before [`WriteStream::close`].
#[derive(Debug)]
pub(crate) struct WriteStream {
    lane: Arc<Lane>,
    chunk_bytes: usize,
    filling: Option<Filling>,
    /// Not yet durable.
    finished: Vec<Finished>,
    /// Every file that was begun.
    paths: Vec<PathBuf>,
}

/// The file that bytes are appended to.
#[derive(Debug)]
struct Filling {
    file: File,
    /// `None` between two chunks.
    chunk: Option<Buf>,
    /// Bytes in the chunk.
    filled: usize,
    /// Where the chunk stands in the file.
    offset: u64,
    /// Space reserved so far.
    reserved: u64,
    writes: Vec<Ticket>,
}

/// A file whose last byte was handed over.
#[derive(Debug)]
struct Finished {
    file: File,
    size_bytes: u64,
    /// Space was reserved behind the end.
    is_long: bool,
    writes: Vec<Ticket>,
    /// After the writes were reaped.
    sync: Option<Ticket>,
}

impl WriteStream {
    /// Writes through `lane` in chunks of this many bytes: a power of two from [`Buf::ALIGN`] on.
    pub(crate) fn new(lane: &Arc<Lane>, chunk_bytes: usize) -> WriteStream {
        assert!((Buf::ALIGN..=LARGEST_BYTES).contains(&chunk_bytes) && chunk_bytes.is_power_of_two());
        let lane = Arc::clone(lane);
        WriteStream { lane, chunk_bytes, filling: None, finished: Vec::new(), paths: Vec::new() }
    }

    pub(crate) fn files(&self) -> &Arc<Files> {
        self.lane.files()
    }

    /// Creates a file, to which the next bytes are appended.
    ///
    /// # Errors
    /// The name is taken, or the disk is full or failing.
    ///
    /// # Panics
    /// If the file before was not finished.
    pub(crate) fn begin(&mut self, path: PathBuf) -> Result<()> {
        assert!(self.filling.is_none(), "one file after the other");
        let file = self.files().open(&path, OpenMode::Create)?;
        self.paths.push(path);
        self.filling =
            Some(Filling { file, chunk: None, filled: 0, offset: 0, reserved: 0, writes: Vec::new() });
        Ok(())
    }

    /// The length of the file that is being filled.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.filling.as_ref().map_or(0, Filling::end)
    }

    /// Appends to the file that was begun last.
    ///
    /// # Errors
    /// The disk is full or failing: drop the stream.
    ///
    /// # Panics
    /// If no file was begun.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let filling = self.filling.as_mut().expect("a file was begun");
            let Some(chunk) = &mut filling.chunk else {
                self.begin_chunk()?;
                continue;
            };
            let room = &mut chunk[filling.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            filling.filled += now.len();
            bytes = later;
            if filling.filled == chunk.len() {
                let ahead = CHUNKS_RESERVED * self.chunk_bytes as u64;
                filling.hand_over(&self.lane, filling.end() + ahead)?;
            }
        }
        Ok(())
    }

    /// Hands over the rest of the file. Its sync follows when its writes were reaped.
    ///
    /// # Errors
    /// The disk is full or failing: drop the stream.
    ///
    /// # Panics
    /// If no file was begun, or the file does not end with a whole page.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let mut filling = self.filling.take().expect("a file was begun");
        let size_bytes = filling.end();
        assert!(size_bytes.is_multiple_of(Buf::ALIGN as u64), "direct writes need whole pages");
        filling.hand_over(&self.lane, size_bytes)?;
        let Filling { file, writes, reserved, .. } = filling;
        self.finished.push(Finished { file, size_bytes, is_long: reserved > size_bytes, writes, sync: None });
        self.advance()
    }

    /// Waits until all files and their names in the folder of segments are durable.
    ///
    /// # Errors
    /// A write or a sync failed: all files were removed. [`Halted`](crate::Error::Halted) if it was the sync of the folder.
    ///
    /// # Panics
    /// If a file was not finished.
    pub(crate) fn close(mut self) -> Result<()> {
        assert!(self.filling.is_none(), "a file is finished before the stream is closed");
        self.advance()?;
        while let Some(operation) = self.finished.first_mut().and_then(Finished::next_operation) {
            operation.ready()?;
            self.advance()?;
        }
        assert!(self.finished.is_empty(), "a file that waits for no operation is durable");
        if !self.paths.is_empty() && !planted(Bug::SegmentNameNotSynced) {
            self.files().sync_segment_names()?;
        }
        self.paths.clear();
        Ok(())
    }

    /// Leases a buffer when at most [`MOST_WRITES`] are in flight.
    fn begin_chunk(&mut self) -> Result<()> {
        self.advance()?;
        while self.writes_in_flight() > MOST_WRITES {
            let finished = self.finished.iter_mut().flat_map(|file| &mut file.writes);
            let filling = self.filling.iter_mut().flat_map(|filling| &mut filling.writes);
            if let Some(oldest) = finished.chain(filling).next() {
                oldest.ready()?;
            }
            self.advance()?;
        }
        let chunk = self.files().buf(self.chunk_bytes);
        self.filling.as_mut().expect("a file was begun").chunk = Some(chunk);
        Ok(())
    }

    fn writes_in_flight(&self) -> usize {
        let finished = self.finished.iter().map(|file| file.writes.len()).sum::<usize>();
        finished + self.filling.as_ref().map_or(0, |filling| filling.writes.len())
    }

    /// Reaps without waiting, and takes the next step of each file.
    fn advance(&mut self) -> Result<()> {
        self.lane.reap()?;
        if let Some(filling) = &mut self.filling {
            drop_completed(&mut filling.writes)?;
        }
        let mut at = 0;
        while let Some(file) = self.finished.get_mut(at) {
            if file.advance(&self.lane)? {
                self.finished.remove(at);
            } else {
                at += 1;
            }
        }
        Ok(())
    }
}

impl Drop for WriteStream {
    fn drop(&mut self) {
        if self.paths.is_empty() {
            return;
        }
        (self.filling, self.finished) = (None, Vec::new());
        // Both are best effort: no version names the files, and the next open removes those that stay behind.
        let _ = self.lane.settle();
        for path in &self.paths {
            self.files().removals().remove(path);
        }
    }
}

impl Filling {
    fn end(&self) -> u64 {
        self.offset + self.filled as u64
    }

    /// Submits the chunk, if there is one, after reserving space up to `reserve_to` unless there is enough.
    fn hand_over(&mut self, lane: &Arc<Lane>, reserve_to: u64) -> Result<()> {
        let Some(mut chunk) = self.chunk.take() else { return Ok(()) };
        let end = self.end();
        if self.reserved < end {
            lane.files().backend().allocate(&self.file, reserve_to)?;
            self.reserved = reserve_to;
        }
        let chunk_bytes = chunk.len() as u64;
        chunk.set_len(self.filled);
        if planted(Bug::ChunkReusedBeforeItsWrite) && self.offset > 0 {
            // The kernel reads the memory of the chunk before, and finds this one there.
            let before = Operation::write(&self.file, self.offset - chunk_bytes, Buf::from(&chunk[..]));
            self.writes.push(lane.submit(before)?);
        }
        self.writes.push(lane.submit(Operation::write(&self.file, self.offset, chunk))?);
        (self.offset, self.filled) = (end, 0);
        Ok(())
    }
}

impl Finished {
    /// Takes the next step if the one before has completed; whether the file is durable now.
    fn advance(&mut self, lane: &Arc<Lane>) -> Result<bool> {
        drop_completed(&mut self.writes)?;
        match &mut self.sync {
            Some(sync) => match sync.take() {
                Some(completion) => completion.whole().map(|_| Ok(true))?,
                None => Ok(false),
            },
            None if self.writes.is_empty() || planted(Bug::FileSyncedBeforeItsWrites) => {
                self.begin_sync(lane)
            }
            None => Ok(false),
        }
    }

    /// Truncates the file and submits its sync.
    fn begin_sync(&mut self, lane: &Arc<Lane>) -> Result<bool> {
        if self.is_long {
            lane.files().backend().truncate(&self.file, self.size_bytes)?;
        }
        if planted(Bug::SegmentNotSynced) {
            return Ok(true);
        }
        self.sync = Some(lane.submit(Operation::data_sync(&self.file))?);
        Ok(false)
    }

    /// The operation that the next step waits for.
    fn next_operation(&mut self) -> Option<&mut Ticket> {
        self.writes.first_mut().or(self.sync.as_mut())
    }
}

/// Forgets the writes that have completed.
fn drop_completed(writes: &mut Vec<Ticket>) -> Result<()> {
    let mut at = 0;
    while let Some(write) = writes.get_mut(at) {
        match write.take() {
            Some(completion) => {
                writes.remove(at);
                completion.whole()?;
            }
            None => at += 1,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "write_stream_tests.rs"]
mod tests;
