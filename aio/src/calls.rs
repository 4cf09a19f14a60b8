//! One operation by system calls in the calling thread: `preadv2`, `pwritev2`, `fsync`, `fdatasync`.
//!
//! The way around native AIO where a machine refuses it, and around direct I/O where a file refuses it. The results are
//! those of the asynchronous operation. An interrupted transfer has moved nothing and is made again. A sync is never made
//! again: after a failed one the next may report success without the data (`man 2 fsync`).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use rustix::io::{ReadWriteFlags, retry_on_intr};

use crate::error::Errno;
use crate::fall_back::{FallBack, FallBacks};
use crate::flags::Flags;
use crate::kind::OperationKind;
use crate::operation::Operation;

/// Does the operation; returns the bytes moved. Blocks as long as the device takes. A poll is [`Errno::INVALID`].
///
/// A file that refuses a well-aligned direct transfer goes on through the page cache: some file systems accept the flag
/// `O_DIRECT` and refuse the reads, and some change their mind later.
pub(crate) fn execute(operation: &mut Operation, fall_backs: &FallBacks) -> Result<usize, Errno> {
    let result = call(operation);
    if let Err(errno) = result
        && errno.is_refusal()
        && let Some(file) = operation.aligned_file()
        && file.leave_direct()
    {
        let is_read = matches!(operation.kind(), OperationKind::Read | OperationKind::ReadVectored);
        let name = if is_read { "preadv2" } else { "pwritev2" };
        fall_backs.note(FallBack::PageCache { path: file.path().to_owned(), refused: Some((name, errno)) });
        return call(operation);
    }
    result
}

fn call(operation: &mut Operation) -> Result<usize, Errno> {
    match operation.kind() {
        OperationKind::Read | OperationKind::ReadVectored => read(operation),
        OperationKind::Write | OperationKind::WriteVectored => write(operation),
        OperationKind::Sync => Ok(rustix::fs::fsync(operation.descriptor()).map(|()| 0)?),
        OperationKind::DataSync => Ok(rustix::fs::fdatasync(operation.descriptor()).map(|()| 0)?),
        OperationKind::Poll => Err(Errno::INVALID),
    }
}

fn read(operation: &mut Operation) -> Result<usize, Errno> {
    let (offset, flags) = (operation.offset(), kernel_flags(operation.flags()));
    let (file, bufs) = operation.file_and_bufs();
    let mut slices: Vec<IoSliceMut<'_>> = bufs.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
    let moved = match retry_on_intr(|| rustix::io::preadv2(file, &mut slices, offset, flags)) {
        Err(errno) if is_refused(errno) && flags.is_empty() => {
            retry_on_intr(|| rustix::io::preadv(file, &mut slices, offset))
        }
        moved => moved,
    };
    Ok(moved?)
}

fn write(operation: &mut Operation) -> Result<usize, Errno> {
    let (offset, wanted) = (operation.offset(), operation.flags());
    let flags = kernel_flags(wanted);
    let (file, bufs) = operation.file_and_bufs();
    let slices: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
    match retry_on_intr(|| rustix::io::pwritev2(file, &slices, offset, flags)) {
        Err(errno) if is_refused(errno) && Flags::DATA_SYNC.with(Flags::SYNC).contains(wanted) => {
            let moved = retry_on_intr(|| rustix::io::pwritev(file, &slices, offset))?;
            sync_as(wanted, file)?;
            Ok(moved)
        }
        moved => Ok(moved?),
    }
}

/// Makes a finished write as durable as its flags say.
fn sync_as(flags: Flags, file: BorrowedFd<'_>) -> Result<(), Errno> {
    if flags.contains(Flags::SYNC) {
        rustix::fs::fsync(file)?;
    } else if flags.contains(Flags::DATA_SYNC) {
        rustix::fs::fdatasync(file)?;
    }
    Ok(())
}

fn kernel_flags(flags: Flags) -> ReadWriteFlags {
    ReadWriteFlags::from_bits_retain(flags.bits().cast_unsigned())
}

/// Whether the kernel lacks the call or the flag, or a sandbox forbids it. The simpler call then gives the real answer.
fn is_refused(errno: rustix::io::Errno) -> bool {
    Errno::from(errno).is_refusal()
}
