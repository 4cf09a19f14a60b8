//! Whole reads, whole writes and zero-filled files on top of a [`Queue`], for callers that wait until each
//! of them is done.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

use crate::backend::{Backend, OpenMode};
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};
use crate::open_file::File;
use crate::operation::{Completion, Operation};
use crate::planted::{Bug, planted};
use crate::queue::Queue;
use crate::wait_out::wait_out;

/// Bytes of one write when a file is filled with zeros.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// Runs operations to their end and returns their completions in the order of their tokens.
///
/// The queue must be idle. After an error nothing is in flight any more, and the outcome of the rest is unknown.
///
/// # Errors
/// A submit was refused or the context is dead; the outcome of each operation itself is in its completion.
pub fn run(
    queue: &mut dyn Queue,
    operations: impl IntoIterator<Item = Operation>,
) -> Result<Vec<Completion>> {
    let mut waiting: VecDeque<Operation> = operations.into_iter().collect();
    let mut done = Vec::with_capacity(waiting.len());
    let mut refused = None;
    while refused.is_none() && !waiting.is_empty() || queue.in_flight() > 0 {
        if refused.is_none() && !waiting.is_empty() {
            match queue.submit(&mut waiting) {
                Ok(_) => {}
                Err(error) => refused = Some(error),
            }
        }
        if queue.in_flight() > 0 {
            // Operations are in flight, so no error of the wait says that nothing was done.
            queue.wait(1, None, &mut done).map_err(Error::into_failure)?;
        }
    }
    done.sort_by_key(|completion| completion.operation.token());
    refused.map_or(Ok(done), Err)
}

/// Reads `len_bytes` at `offset`; both aligned as [`File::alignment`] says.
///
/// # Errors
/// The read failed or was short.
pub fn read_exact(queue: &mut dyn Queue, file: &File, offset: u64, len_bytes: usize) -> Result<Buf> {
    read_into(queue, file, offset, Buf::zeroed(len_bytes))
}

/// Fills a buffer from `offset` on, and gives it back.
///
/// # Errors
/// Those of [`read_exact`].
pub fn read_into(queue: &mut dyn Queue, file: &File, offset: u64, buf: Buf) -> Result<Buf> {
    finish(queue, Operation::read(file, offset, buf))
}

/// Writes the whole buffer at `offset` and gives it back; not durable before a sync.
///
/// # Errors
/// The write failed or was short; any part of it may have been written.
pub fn write_all(queue: &mut dyn Queue, file: &File, offset: u64, buf: Buf) -> Result<Buf> {
    finish(queue, Operation::write(file, offset, buf))
}

/// Writes the whole buffer at `offset` and gives it back; the bytes are on stable media when this returns.
///
/// # Errors
/// Those of [`write_all`].
pub fn write_all_durably(queue: &mut dyn Queue, file: &File, offset: u64, buf: Buf) -> Result<Buf> {
    finish(queue, Operation::write_durable(file, offset, buf))
}

/// Makes bytes durable that were written at `offset` and reaped whole.
///
/// A file system over a network or in user space lets a signal interrupt a sync. Such a sync may have consumed the error of
/// an earlier write, so a second one alone would prove nothing. The bytes are written again before it: the same ones to the
/// same place, so that a crash in between finds nothing else than it could find before.
///
/// # Errors
/// The sync failed, or signals have interrupted it for as long as a shortage is waited out. It must not be repeated.
pub fn sync_written(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    file: &File,
    offset: u64,
    written: &[u8],
) -> Result<()> {
    let synced = backend.sync(file).map_err(interrupted_is_not_now);
    if !synced.as_ref().is_err_and(Error::is_not_now) {
        return synced;
    }
    let again = || {
        write_all(queue, file, offset, Buf::from(written))?;
        backend.sync(file).map_err(interrupted_is_not_now)
    };
    wait_out(backend, again).map_err(Error::into_failure)
}

/// For an interrupted sync of bytes that are written again before the next one.
fn interrupted_is_not_now(error: Error) -> Error {
    match error {
        Error::Os { call, path, errno: Errno::INTERRUPTED, .. } => {
            Error::call(call, &path, Errno::INTERRUPTED)
        }
        error => error,
    }
}

/// Creates a file of `len_bytes` written zeros and makes data and name durable. On error the file is removed again.
///
/// The device makes the zeros by itself where it can. Elsewhere they are written, and space is reserved first, so that a full
/// disk is found out by one call and not by filling the rest of it. `kind` names the kind of the file for the profile, see
/// [`File::set_kind`].
///
/// Space that was written once takes later writes without touching the file system's metadata, so that a sync is
/// one flush of the device.
///
/// # Errors
/// The name is taken, there is no space, or a call failed.
pub fn create_zeroed(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    (path, kind): (&Path, &'static str),
    len_bytes: u64,
) -> Result<File> {
    wait_out(backend, || {
        let file = backend.open(path, OpenMode::Create)?;
        file.set_kind(kind);
        let filled = zero(backend, queue, &file, 0..len_bytes)
            .and_then(|()| sync_zeros(backend, &file))
            .map_err(interrupted_is_not_now)
            .and_then(|()| {
                let unsynced = planted(Bug::NewFileNameNotSynced);
                // Never repeated: the error may concern another name, and the kernel reports it only once.
                if unsynced { Ok(()) } else { backend.sync_dir(path.parent().unwrap_or(Path::new("."))) }
            });
        // The first error is the one to report; a name that stays behind is removed as an orphan at the next open. It would
        // be in the way of another try.
        filled.map(|()| file).map_err(|error| match backend.remove(path) {
            Ok(()) => error,
            Err(_) => error.into_failure(),
        })
    })
}

/// Zeroes `range`, which begins at the end of the file, and makes the zeros durable. The range is whole pages.
///
/// After an error the file may have any size up to the end of the range: only success says that the bytes are there.
///
/// # Errors
/// There is no space, or a call failed.
pub fn extend_zeroed(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    file: &File,
    range: Range<u64>,
) -> Result<()> {
    wait_out(backend, || {
        zero(backend, queue, file, range.clone())?;
        sync_zeros(backend, file).map_err(interrupted_is_not_now)
    })
}

fn sync_zeros(backend: &dyn Backend, file: &File) -> Result<()> {
    if planted(Bug::NewFileContentNotSynced) { Ok(()) } else { backend.sync(file) }
}

/// Zeroes a range at the end of a file, by the device where it can.
fn zero(backend: &dyn Backend, queue: &mut dyn Queue, file: &File, range: Range<u64>) -> Result<()> {
    if backend.zero_range(file, range.clone())? || planted(Bug::RefusedZerosTakenAsWritten) {
        return Ok(());
    }
    backend.allocate(file, range.end)?;
    zero_fill(queue, file, range)
}

fn zero_fill(queue: &mut dyn Queue, file: &File, range: Range<u64>) -> Result<()> {
    let Range { start: mut offset, end } = range;
    let chunk_bytes = usize::try_from(end - offset).map_or(ZERO_CHUNK_BYTES, |len| len.min(ZERO_CHUNK_BYTES));
    let mut buf = Buf::zeroed(chunk_bytes);
    while offset < end {
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        buf.set_len(left.min(chunk_bytes));
        let completion = complete(queue, Operation::write(file, offset, buf))?;
        // A disk that is nearly full takes a part. Going on from there gets the real error: the kernel's, not ours.
        let operation = match completion.result {
            Ok(moved) if moved > 0 && moved.is_multiple_of(Buf::ALIGN) => {
                offset += moved as u64;
                completion.operation
            }
            _ => {
                offset += completion.operation.len_bytes() as u64;
                completion.whole()?
            }
        };
        buf = operation.into_buf();
    }
    Ok(())
}

fn finish(queue: &mut dyn Queue, operation: Operation) -> Result<Buf> {
    complete(queue, operation)?.whole().map(Operation::into_buf)
}

fn complete(queue: &mut dyn Queue, operation: Operation) -> Result<Completion> {
    let mut done = run(queue, [operation])?;
    Ok(done.pop().expect("run returns a completion for every operation"))
}
