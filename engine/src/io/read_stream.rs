//! Reads one file in windows of several blocks: one window in use, the next one in flight.
//!
//! ```text
//!              read: waits                 read_ahead: submits
//!   no window -------------> window in use ------------------> window in use, window ahead
//!       ^                        |    ^                                |
//!       |        last block used |    |         advance: waits only if the device is late
//!       +------------------------+    +--------------------------------+
//! ```
//!
//! A scan takes a context for itself when it first reads ahead, and returns it when the walk ends: most scans are short and
//! never do. Where there is none for it, it reads window after window. The inputs of a job share the [`Lane`] of the job.
//!
//! Invariant: at most one window is in use and one in flight. Their buffers return to the pool when they were used, or, if
//! the stream is cleared or dropped, when their read was reaped.

use std::ops::Range;
use std::sync::Arc;

use aio::{Buf, File, Operation};

use crate::base::error::Result;
use crate::io::files::Files;
use crate::io::lane::{Lane, Ticket};
use crate::io::open_files::CachedFile;

/// Neighbouring blocks of a file, and where direct I/O reads them.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub(crate) blocks: Range<usize>,
    pub(crate) offset: u64,
    pub(crate) len_bytes: usize,
}

impl Extent {
    /// The operation that reads it.
    pub(crate) fn read(&self, file: &File, files: &Files) -> Operation {
        Operation::read(file, self.offset, files.buf(self.len_bytes))
    }
}

/// Blocks that were read.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) blocks: Range<usize>,
    /// Where `buf` stands in the file.
    pub(crate) offset: u64,
    pub(crate) buf: Buf,
}

/// The windows of one walk over a file.
#[derive(Debug)]
pub(crate) struct ReadStream {
    lane: LaneOf,
    // In boxes, since most cursors never have them.
    window: Option<Box<Window>>,
    ahead: Option<Box<Ahead>>,
}

/// The owner of the lane.
#[derive(Debug)]
enum LaneOf {
    Job(Arc<Lane>),
    /// `None` until something is read ahead.
    Scan(Option<Arc<Lane>>),
}

/// A window in flight.
#[derive(Debug)]
struct Ahead {
    extent: Extent,
    read: Ticket,
}

impl ReadStream {
    /// For a scan by itself.
    pub(crate) fn of_scan() -> ReadStream {
        ReadStream { lane: LaneOf::Scan(None), window: None, ahead: None }
    }

    /// For an input of a job.
    pub(crate) fn of_job(lane: &Arc<Lane>) -> ReadStream {
        ReadStream { lane: LaneOf::Job(Arc::clone(lane)), window: None, ahead: None }
    }

    /// The window in use.
    pub(crate) fn window(&self) -> Option<&Window> {
        self.window.as_deref()
    }

    /// Whether the window in use holds this block.
    pub(crate) fn holds(&self, block: usize) -> bool {
        self.window.as_ref().is_some_and(|window| window.blocks.contains(&block))
    }

    /// The blocks that are in flight.
    pub(crate) fn ahead(&self) -> Option<&Range<usize>> {
        self.ahead.as_ref().map(|ahead| &ahead.extent.blocks)
    }

    /// Every block of the window was used.
    pub(crate) fn drop_window(&mut self) {
        self.window = None;
    }

    /// Forgets both windows. Waits for the one in flight, so that a scan that pauses keeps no context.
    pub(crate) fn clear(&mut self) {
        (self.window, self.ahead) = (None, None);
        if let LaneOf::Scan(lane) = &mut self.lane {
            *lane = None;
        }
    }

    /// Forgets both windows, of another file than the next ones.
    pub(crate) fn change_file(&mut self) {
        (self.window, self.ahead) = (None, None);
    }

    /// Makes the window in flight the one in use. There must be one.
    ///
    /// # Errors
    /// The read failed or was short.
    pub(crate) fn advance(&mut self) -> Result<()> {
        self.window = None;
        let Ahead { extent, read } = *self.ahead.take().expect("a window is in flight");
        self.use_window(extent, read)
    }

    /// Reads a window and waits for it.
    ///
    /// # Errors
    /// The read failed or was short.
    pub(crate) fn read(&mut self, files: &Files, file: &CachedFile, extent: Extent) -> Result<()> {
        self.window = None;
        match &self.lane {
            LaneOf::Job(lane) | LaneOf::Scan(Some(lane)) => {
                let read = lane.submit(extent.read(&file.get()?, files))?;
                self.use_window(extent, read)
            }
            LaneOf::Scan(None) => {
                let buf = files.read_cached(None, file, extent.offset, extent.len_bytes)?;
                self.window = Some(Box::new(Window { blocks: extent.blocks, offset: extent.offset, buf }));
                Ok(())
            }
        }
    }

    /// Puts a window in flight. If that is not possible, its blocks are read when they are needed.
    pub(crate) fn read_ahead(&mut self, files: &Arc<Files>, file: &CachedFile, extent: Extent) {
        if let LaneOf::Scan(lane @ None) = &mut self.lane {
            *lane = Lane::of_scan(files, 1);
        }
        if let LaneOf::Job(lane) | LaneOf::Scan(Some(lane)) = &self.lane
            && let Ok(read) = file.get().and_then(|file| lane.submit(extent.read(&file, files)))
        {
            self.ahead = Some(Box::new(Ahead { extent, read }));
        }
    }

    /// The window in flight is this one, which was submitted elsewhere.
    pub(crate) fn expect(&mut self, extent: Extent, read: Ticket) {
        self.ahead = Some(Box::new(Ahead { extent, read }));
    }

    fn use_window(&mut self, extent: Extent, read: Ticket) -> Result<()> {
        let buf = read.wait()?.whole()?.into_buf();
        self.window = Some(Box::new(Window { blocks: extent.blocks, offset: extent.offset, buf }));
        Ok(())
    }
}

#[cfg(test)]
#[path = "read_stream_tests.rs"]
mod tests;
