//! One operation for a [`Context`](crate::Context): what to do, on what, with which buffers.
//!
//! Invariants
//! - An [`Op`] owns all that the kernel is told about: buffers, the array of their addresses, the file or descriptor,
//!   the eventfd. Its fields are private, so nothing of it changes between the check of an operation and its use; it
//!   moves into the context at submit and comes back in [`Done`].
//! - `pieces` describes `buffers`, whose memory does not move when the `Op` does.
#![expect(unsafe_code, reason = "promises to the context that buffers stay where they are")]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::backend::File;
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};
use crate::flags::{Flags, Priority, Readiness};
use crate::payload::Payload;
use crate::sys::{self, Iocb, Piece};
use crate::trace::Kind;

/// What an operation works on: it stays open until the operation's completion is reaped.
#[derive(Clone)]
pub enum Target {
    /// A file opened by a backend.
    File(File),
    /// Anything else with a descriptor: a file, a pipe, a socket, an eventfd, an epoll instance.
    Descriptor(Arc<dyn AsFd + Send + Sync>),
}

impl Target {
    /// The path, for errors; descriptors have none.
    fn path(&self) -> PathBuf {
        match self {
            Target::File(file) => file.path().to_owned(),
            Target::Descriptor(_) => Path::new("(descriptor)").to_owned(),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Target::File(file) => file.descriptor().as_fd(),
            Target::Descriptor(owner) => owner.as_fd(),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::File(file) => file.fmt(f),
            Target::Descriptor(owner) => write!(f, "Descriptor({})", owner.as_fd().as_raw_fd()),
        }
    }
}

impl From<File> for Target {
    fn from(file: File) -> Target {
        Target::File(file)
    }
}

impl From<&File> for Target {
    fn from(file: &File) -> Target {
        Target::File(file.clone())
    }
}

impl<T: AsFd + Send + Sync + 'static> From<Arc<T>> for Target {
    fn from(owner: Arc<T>) -> Target {
        Target::Descriptor(owner)
    }
}

impl From<OwnedFd> for Target {
    fn from(descriptor: OwnedFd) -> Target {
        Target::Descriptor(Arc::new(descriptor))
    }
}

impl From<std::fs::File> for Target {
    fn from(file: std::fs::File) -> Target {
        Target::Descriptor(Arc::new(file))
    }
}

impl From<&EventFd> for Target {
    fn from(event: &EventFd) -> Target {
        Target::Descriptor(Arc::clone(&event.0) as Arc<dyn AsFd + Send + Sync>)
    }
}

/// A counter in the kernel (`man 2 eventfd`) that completions can add to; clones share it.
#[derive(Clone, Debug)]
pub struct EventFd(Arc<OwnedFd>);

impl EventFd {
    /// A counter of 0. Reading it never blocks.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> Result<EventFd> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        made.map(|event| EventFd(Arc::new(event)))
            .map_err(|errno| Error::call("eventfd", Path::new("(eventfd)"), errno))
    }

    /// The count since the last call.
    #[must_use]
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&*self.0, &mut count) {
            Ok(_) => u64::from_le_bytes(count),
            Err(_) => 0,
        }
    }

    /// Adds 1. Callable from a signal handler.
    pub fn add(&self) {
        // Fails only when the counter is full.
        let _ = rustix::io::write(&*self.0, &1_u64.to_le_bytes());
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpKind {
    /// Fills one buffer (`IOCB_CMD_PREAD`, Linux 2.6).
    Read,
    /// Writes one buffer (`IOCB_CMD_PWRITE`, Linux 2.6).
    Write,
    /// Fills several buffers from one place (`IOCB_CMD_PREADV`, Linux 2.6.19).
    ReadVectored,
    /// Writes several buffers to one place (`IOCB_CMD_PWRITEV`, Linux 2.6.19).
    WriteVectored,
    /// `fsync` (`IOCB_CMD_FSYNC`, Linux 4.18). Runs in a thread of the kernel.
    Sync,
    /// `fdatasync` (`IOCB_CMD_FDSYNC`, Linux 4.18). Runs in a thread of the kernel.
    DataSync,
    /// Waits, once, until a descriptor is ready (`IOCB_CMD_POLL`, Linux 4.18, withdrawn until 5.0). The only one that can
    /// be cancelled.
    Poll,
}

/// One operation.
///
/// It is built by value and owns its buffers, so there is no way to touch or free them while the kernel uses them:
///
/// ```compile_fail,E0382
/// # fn example(context: &mut aio::Context, file: aio::File) -> aio::Result<()> {
/// let mut buf = aio::Buf::zeroed(4096);
/// context.submit(&mut [aio::Op::read(&file, 0, buf)].into())?;
/// buf[0] = 1; // moved into the operation
/// # Ok(()) }
/// ```
///
/// Nothing borrowed can be read into, whatever outlives what:
///
/// ```compile_fail,E0308
/// # fn example(file: aio::File) {
/// let mut bytes = [0_u8; 4096];
/// let op = aio::Op::read(&file, 0, &mut bytes);
/// # }
/// ```
///
/// Nothing can be changed behind a check:
///
/// ```compile_fail,E0616
/// # fn example(mut op: aio::Op) {
/// op.offset = 0;
/// # }
/// ```
///
/// A context is used by one thread at a time:
///
/// ```compile_fail,E0499
/// # fn example(context: &mut aio::Context) {
/// std::thread::scope(|scope| {
///     scope.spawn(|| context.wait(1, None, &mut Vec::new()));
///     scope.spawn(|| context.wait(1, None, &mut Vec::new()));
/// });
/// # }
/// ```
#[derive(Debug)]
pub struct Op {
    kind: OpKind,
    token: u64,
    target: Target,
    offset: u64,
    buffers: Vec<Buf>,
    pieces: Box<[Piece]>,
    readiness: Readiness,
    flags: Flags,
    priority: Option<Priority>,
    notify: Option<EventFd>,
}

impl Op {
    fn new(kind: OpKind, target: Target, offset: u64, buffers: Vec<Buf>) -> Op {
        let pieces: Box<[Piece]> = match kind {
            OpKind::ReadVectored | OpKind::WriteVectored => buffers
                .iter()
                .map(|buf| Piece { address: buf.address(), len_bytes: buf.len() as u64 })
                .collect(),
            _ => Box::default(),
        };
        let (readiness, flags) = (Readiness::default(), Flags::NONE);
        Op { kind, token: 0, target, offset, buffers, pieces, readiness, flags, priority: None, notify: None }
    }

    /// Fills `buf` up to its length from `offset` bytes into the file; short at the end of the file.
    #[must_use]
    pub fn read(target: impl Into<Target>, offset: u64, buf: Buf) -> Op {
        Op::new(OpKind::Read, target.into(), offset, vec![buf])
    }

    /// Writes all of `buf` at `offset`.
    #[must_use]
    pub fn write(target: impl Into<Target>, offset: u64, buf: Buf) -> Op {
        Op::new(OpKind::Write, target.into(), offset, vec![buf])
    }

    /// Fills the buffers one after the other from `offset`. At most 1024 of them, else the submit is refused.
    #[must_use]
    pub fn read_vectored(target: impl Into<Target>, offset: u64, bufs: Vec<Buf>) -> Op {
        Op::new(OpKind::ReadVectored, target.into(), offset, bufs)
    }

    /// Writes the buffers one after the other at `offset`. At most 1024 of them, else the submit is refused.
    #[must_use]
    pub fn write_vectored(target: impl Into<Target>, offset: u64, bufs: Vec<Buf>) -> Op {
        Op::new(OpKind::WriteVectored, target.into(), offset, bufs)
    }

    /// Makes what was written to the file, and all its metadata, durable. It covers the writes whose completions were
    /// reaped before it was submitted, and no others: operations of one submit run in any order.
    #[must_use]
    pub fn sync(target: impl Into<Target>) -> Op {
        Op::new(OpKind::Sync, target.into(), 0, Vec::new())
    }

    /// As [`Op::sync`], with only the metadata that is needed to read the data back.
    #[must_use]
    pub fn data_sync(target: impl Into<Target>) -> Op {
        Op::new(OpKind::DataSync, target.into(), 0, Vec::new())
    }

    /// Completes once the descriptor is ready for any of `readiness`; see [`Done::readiness`]. One shot. A regular file
    /// is always ready.
    #[must_use]
    pub fn poll(target: impl Into<Target>, readiness: Readiness) -> Op {
        Op { readiness, ..Op::new(OpKind::Poll, target.into(), 0, Vec::new()) }
    }

    /// Names the operation, for [`Context::cancel`](crate::Context::cancel) and for its completion; 0 by default.
    #[must_use]
    pub fn with_token(self, token: u64) -> Op {
        Op { token, ..self }
    }

    /// Adds flags; only for reads and writes, others are refused at submit.
    #[must_use]
    pub fn with_flags(self, flags: Flags) -> Op {
        Op { flags: self.flags.with(flags), ..self }
    }

    /// Sets the priority in the device's queue.
    #[must_use]
    pub fn with_priority(self, priority: Priority) -> Op {
        Op { priority: Some(priority), ..self }
    }

    /// The completion adds 1 to `event` as well (`IOCB_FLAG_RESFD`, Linux 2.6.22), for event loops that watch
    /// descriptors; it still has to be reaped.
    #[must_use]
    pub fn with_notification(self, event: &EventFd) -> Op {
        Op { notify: Some(event.clone()), ..self }
    }

    /// What it does.
    pub fn kind(&self) -> OpKind {
        self.kind
    }

    /// Its name.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// What it works on.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Where in the file, in bytes; 0 for syncs and polls.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its flags.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// How many bytes it moves when it succeeds; 0 for syncs and polls.
    pub fn len_bytes(&self) -> usize {
        self.buffers.iter().map(|buf| buf.len()).sum()
    }

    /// Its buffers, in order; none for syncs and polls.
    pub fn bufs(&self) -> &[Buf] {
        &self.buffers
    }

    /// Gives the buffers back, in order.
    #[must_use]
    pub fn into_bufs(self) -> Vec<Buf> {
        self.buffers
    }

    /// Gives the first buffer back; an empty one if there is none.
    #[must_use]
    pub fn into_buf(self) -> Buf {
        self.buffers.into_iter().next().unwrap_or_else(|| Buf::zeroed(0))
    }

    /// The name of the system call that would do the same.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            OpKind::Read => "pread",
            OpKind::Write => "pwrite",
            OpKind::ReadVectored => "preadv",
            OpKind::WriteVectored => "pwritev",
            OpKind::Sync => "fsync",
            OpKind::DataSync => "fdatasync",
            OpKind::Poll => "poll",
        }
    }

    /// What it needs that not every kernel and file has.
    fn needs(&self) -> String {
        let mut needs = Vec::new();
        match self.kind {
            OpKind::Sync => {
                needs.push(
                    "IOCB_CMD_FSYNC (Linux 4.18) on a file that can be synced, without flags".to_owned(),
                );
            }
            OpKind::DataSync => {
                needs.push(
                    "IOCB_CMD_FDSYNC (Linux 4.18) on a file that can be synced, without flags".to_owned(),
                );
            }
            OpKind::Poll => needs.push("IOCB_CMD_POLL (Linux 5.0), without flags".to_owned()),
            _ => {}
        }
        needs.extend(self.flags.named().map(|(name, since)| format!("{name} ({since})")));
        let unnamed = Flags::known().fold(self.flags.bits(), |bits, (flag, ..)| bits & !flag.bits());
        if unnamed != 0 {
            needs.push(format!("the flags {unnamed:#x}"));
        }
        if self.priority.is_some() {
            needs.push("IOCB_FLAG_IOPRIO (Linux 4.18)".to_owned());
        }
        needs.join(", ")
    }

    /// The error of this operation.
    fn failed(&self, call: &'static str, errno: Errno) -> Error {
        let path = self.target.path();
        if matches!(errno, Errno::INVALID | Errno::NOT_SUPPORTED | Errno::NOT_IMPLEMENTED) {
            let needs = self.needs();
            if !needs.is_empty() {
                return Error::Unsupported { call: self.name(), path, needs, errno };
            }
        }
        Error::Os { call, path, offset: self.offset, len_bytes: self.len_bytes(), errno }
    }
}

// SAFETY: the buffers are heap memory owned by the `Op`, which no `&Op` can change, free or read out of while it is in
// flight, since the context gives out no reference to it; `pieces` is copied by the kernel at submit.
unsafe impl Payload for Op {
    type Completion = Done;

    fn iocb(&self) -> Iocb {
        let mut iocb = Iocb {
            descriptor: self.target.descriptor().as_raw_fd().cast_unsigned(),
            rw_flags: self.flags.bits(),
            ..Iocb::default()
        };
        iocb.opcode = match self.kind {
            OpKind::Read => sys::COMMAND_READ,
            OpKind::Write => sys::COMMAND_WRITE,
            OpKind::ReadVectored => sys::COMMAND_READ_VECTORED,
            OpKind::WriteVectored => sys::COMMAND_WRITE_VECTORED,
            OpKind::Sync => sys::COMMAND_SYNC,
            OpKind::DataSync => sys::COMMAND_DATA_SYNC,
            OpKind::Poll => sys::COMMAND_POLL,
        };
        match self.kind {
            OpKind::Read | OpKind::Write => {
                for buf in &self.buffers {
                    (iocb.buf, iocb.len_bytes) = (buf.address(), buf.len() as u64);
                }
                iocb.offset = self.offset.cast_signed();
            }
            OpKind::ReadVectored | OpKind::WriteVectored => {
                iocb.buf = self.pieces.as_ptr().expose_provenance() as u64;
                iocb.len_bytes = self.pieces.len() as u64;
                iocb.offset = self.offset.cast_signed();
            }
            OpKind::Poll => iocb.buf = u64::from(self.readiness.bits()),
            OpKind::Sync | OpKind::DataSync => {}
        }
        if let Some(priority) = self.priority {
            iocb.request_priority = priority.bits();
            iocb.flags |= sys::FLAG_PRIORITY;
        }
        if let Some(event) = &self.notify {
            iocb.event_descriptor = event.as_fd().as_raw_fd().cast_unsigned();
            iocb.flags |= sys::FLAG_EVENT_DESCRIPTOR;
        }
        iocb
    }

    fn kind(&self) -> Kind {
        match self.kind {
            OpKind::Read | OpKind::ReadVectored => Kind::Read,
            OpKind::Write | OpKind::WriteVectored => {
                let durable = self.flags.contains(Flags::DATA_SYNC) || self.flags.contains(Flags::SYNC);
                if durable { Kind::WriteDurable } else { Kind::Write }
            }
            OpKind::Sync | OpKind::DataSync => Kind::Sync,
            OpKind::Poll => Kind::Poll,
        }
    }

    fn refused(&self, errno: Errno) -> Error {
        self.failed("io_submit", errno)
    }

    fn complete(self, result: std::result::Result<usize, Errno>) -> Done {
        Done { op: self, result }
    }
}

/// A finished operation, with its buffers.
#[derive(Debug)]
pub struct Done {
    /// What was submitted.
    pub op: Op,
    /// Bytes moved; for a poll the bits of its readiness; or what the kernel said.
    ///
    /// libaio reports `-errno` in a signed number; here it is an `Err` with the positive one.
    pub result: std::result::Result<usize, Errno>,
}

impl Done {
    /// The operation, if every byte was moved; else the error, with file, offset and counts.
    ///
    /// # Errors
    /// [`Error::Os`] or [`Error::Unsupported`] if the operation failed, [`Error::Short`] if it moved fewer bytes than
    /// asked for.
    pub fn whole(self) -> Result<Op> {
        let expected = self.op.len_bytes();
        match self.result {
            Ok(_) if self.op.kind == OpKind::Poll => Ok(self.op),
            Ok(found) if found == expected => Ok(self.op),
            Ok(found) => {
                let (call, path, offset) = (self.op.name(), self.op.target.path(), self.op.offset);
                Err(Error::Short { call, path, offset, expected, found })
            }
            // A misaligned operation is refused here, flags are not.
            Err(Errno::INVALID) => {
                let (call, path, offset) = (self.op.name(), self.op.target.path(), self.op.offset);
                Err(Error::Os { call, path, offset, len_bytes: expected, errno: Errno::INVALID })
            }
            Err(errno) => Err(self.op.failed(self.op.name(), errno)),
        }
    }

    /// What a poll found; nothing if it was cancelled, and for other operations.
    pub fn readiness(&self) -> Readiness {
        match self.result {
            Ok(bits) if self.op.kind == OpKind::Poll => {
                Readiness::from_bits(u16::try_from(bits).unwrap_or(0))
            }
            _ => Readiness::default(),
        }
    }
}
