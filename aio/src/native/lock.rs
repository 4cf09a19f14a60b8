//! The lock file of a store: a `flock` on it is the lock, its content only names the holder.
//!
//! ```text
//!   +-----------------+-----------------------+
//!   | decimal pid, \n | zero padding          |
//!   +-----------------+-----------------------+
//!   0                                      4096
//!
//!   OFFSET  SIZE  FIELD
//!        0   <11  process id of the last holder, ASCII digits
//!      ...     1  line feed
//!      ...   ...  zeros
//! ```
//!
//! Invariants: the note is written by asynchronous I/O like all other data, and only while the lock is held. It
//! outlives its holder, so it is valid only if the lock is taken. Between taking the lock and writing the note, readers
//! see the note of the previous holder.
//!
//! A child that was forked while the lock was held shares it: dropping its copy does not release the parent's, and the
//! lock is free when the parent has dropped it or both processes have ended.

use rustix::fs::FlockOperation;

use crate::backend::Lock;
use crate::buf::Buf;
use crate::error::{Error, Result};
use crate::file::write_all;
use crate::insist::named;
use crate::open_file::File;
use crate::queue::Queue;
use crate::sys::Process;

/// Aligned for every device.
const NOTE_BYTES: usize = Buf::ALIGN;

#[derive(Debug)]
pub(crate) struct NativeLock {
    file: File,
    process: Process,
}

impl Lock for NativeLock {}

impl NativeLock {
    /// Takes the lock of an open file and writes the note through `queue`.
    pub(crate) fn take(file: File, queue: &mut dyn Queue, process: Process) -> Result<NativeLock> {
        let lock = || match rustix::fs::flock(file.descriptor(), FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            locked => locked.map(|()| true),
        };
        if !named("flock", file.path(), lock)? {
            return Err(Error::Locked { path: file.path().to_owned(), pid: read_note(&file) });
        }
        let lock = NativeLock { file, process };
        lock.write_note(queue);
        Ok(lock)
    }

    /// The lock works without the note, so a full disk is not an error. An old note must not stay then.
    fn write_note(&self, queue: &mut dyn Queue) {
        let mut note = Buf::zeroed(NOTE_BYTES);
        let text = format!("{}\n", std::process::id());
        note[..text.len()].copy_from_slice(text.as_bytes());
        if write_all(queue, &self.file, 0, note).is_err() {
            let _ = rustix::fs::ftruncate(self.file.descriptor(), 0);
        }
    }
}

impl Drop for NativeLock {
    fn drop(&mut self) {
        // An unlock by a child would release its parent's lock. Closing the descriptor, which comes next, also releases
        // the lock if no child has inherited it.
        if self.process.is_current() {
            let _ = rustix::fs::flock(self.file.descriptor(), FlockOperation::Unlock);
        }
    }
}

fn read_note(file: &File) -> Option<u32> {
    let mut note = Buf::zeroed(NOTE_BYTES);
    let found = rustix::io::pread(file.descriptor(), &mut note[..], 0).ok()?;
    let line = note[..found].split(|&byte| byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.parse().ok()
}
