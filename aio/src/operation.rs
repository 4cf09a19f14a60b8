//! One asynchronous operation: its kind, file, offset and buffers; and its completion.
//!
//! All layers use these types: [`Context`](crate::Context), the [`Queue`](crate::Queue) of any backend, and
//! [`Reactor`](crate::Reactor).
//!
//! Invariants
//! - An [`Operation`] owns everything that its `iocb` refers to: buffers, the array of their addresses, the file or
//!   descriptor, the eventfd. Its fields are private, so nothing changes between the check of an operation and its use.
//!   It moves into the context at submit and comes back in its [`Completion`].
//! - `pieces` describes `bufs`, whose memory does not move when the `Operation` does.
//! - An operation with one buffer allocates nothing.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use crate::advice::SUBMIT_IN_REAL_TIME;
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};
use crate::event_fd::EventFd;
use crate::flags::{Flags, Priority, Readiness};
use crate::identity::{Identity, Owner};
use crate::kind::{IoClass, OperationKind};
use crate::open_file::{Alignment, File};
use crate::planted::{Bug, planted};
use crate::sys::{self, IoVec, Iocb};
use crate::trace::Arguments;

/// The most buffers that the kernel takes in one operation (`UIO_MAXIOV`).
const MOST_BUFFERS: usize = 1024;

/// The file or descriptor of an operation. It stays open until the operation's completion is reaped.
#[derive(Clone)]
pub enum AnyFile {
    /// A file opened by a backend.
    File(File),
    /// Anything else with a descriptor: a file, a pipe, a socket, an eventfd, an epoll instance.
    Descriptor(Arc<dyn AsFd + Send + Sync>),
}

impl AnyFile {
    /// The path, for errors; descriptors have none.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            AnyFile::File(file) => file.path(),
            AnyFile::Descriptor(_) => Path::new("(descriptor)"),
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            AnyFile::File(file) => file.descriptor().as_fd(),
            AnyFile::Descriptor(owner) => owner.as_fd(),
        }
    }
}

impl fmt::Debug for AnyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnyFile::File(file) => file.fmt(f),
            AnyFile::Descriptor(owner) => write!(f, "Descriptor({})", owner.as_fd().as_raw_fd()),
        }
    }
}

impl From<File> for AnyFile {
    fn from(file: File) -> AnyFile {
        AnyFile::File(file)
    }
}

impl From<&File> for AnyFile {
    fn from(file: &File) -> AnyFile {
        AnyFile::File(file.clone())
    }
}

impl<T: AsFd + Send + Sync + 'static> From<Arc<T>> for AnyFile {
    fn from(owner: Arc<T>) -> AnyFile {
        AnyFile::Descriptor(owner)
    }
}

impl From<OwnedFd> for AnyFile {
    fn from(descriptor: OwnedFd) -> AnyFile {
        AnyFile::Descriptor(Arc::new(descriptor))
    }
}

impl From<std::fs::File> for AnyFile {
    fn from(file: std::fs::File) -> AnyFile {
        AnyFile::Descriptor(Arc::new(file))
    }
}

impl From<&EventFd> for AnyFile {
    fn from(event: &EventFd) -> AnyFile {
        AnyFile::Descriptor(Arc::clone(&event.0) as Arc<dyn AsFd + Send + Sync>)
    }
}

/// One operation.
///
/// It is built by value and owns its buffers, so they cannot be accessed or freed while the kernel uses them:
///
/// ```compile_fail,E0382
/// # fn example(context: &mut aio::Context, file: aio::File) -> aio::Result<()> {
/// let mut buf = aio::Buf::zeroed(4096);
/// context.submit(&mut [aio::Operation::read(&file, 0, buf)].into())?;
/// buf[0] = 1; // moved into the operation
/// # Ok(()) }
/// ```
///
/// A borrowed buffer of any lifetime is not accepted:
///
/// ```compile_fail,E0308
/// # fn example(file: aio::File) {
/// let mut bytes = [0_u8; 4096];
/// let operation = aio::Operation::read(&file, 0, &mut bytes);
/// # }
/// ```
///
/// No field can be changed after a check:
///
/// ```compile_fail,E0616
/// # fn example(mut operation: aio::Operation) {
/// operation.offset = 0;
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
pub struct Operation {
    kind: OperationKind,
    token: u64,
    file: AnyFile,
    offset: u64,
    buffers: Buffers,
    readiness: Readiness,
    flags: Flags,
    priority: Option<Priority>,
    notify: Option<EventFd>,
}

/// The buffers of an operation.
#[derive(Debug)]
enum Buffers {
    None,
    One(Buf),
    Vectored { bufs: Vec<Buf>, pieces: Box<[IoVec]> },
}

impl Buffers {
    fn vectored(bufs: Vec<Buf>) -> Buffers {
        let piece = |buf: &Buf| IoVec { address: buf.address(), len_bytes: buf.len() as u64 };
        let pieces = bufs.iter().map(piece).collect();
        Buffers::Vectored { bufs, pieces }
    }

    fn as_slice(&self) -> &[Buf] {
        match self {
            Buffers::None => &[],
            Buffers::One(buf) => std::slice::from_ref(buf),
            Buffers::Vectored { bufs, .. } => bufs,
        }
    }
}

impl Operation {
    fn new(kind: OperationKind, file: AnyFile, offset: u64, buffers: Buffers) -> Operation {
        let (readiness, flags) = (Readiness::default(), Flags::NONE);
        Operation { kind, token: 0, file, offset, buffers, readiness, flags, priority: None, notify: None }
    }

    /// Fills `buf` up to its length from `offset` bytes into the file; short at the end of the file.
    #[must_use]
    pub fn read(file: impl Into<AnyFile>, offset: u64, buf: Buf) -> Operation {
        Operation::new(OperationKind::Read, file.into(), offset, Buffers::One(buf))
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// *Power cut*: until a sync that was issued after the completion was reaped, any subset of its sectors may be on
    /// stable media. The order of submits says nothing about the order on the media.
    #[must_use]
    pub fn write(file: impl Into<AnyFile>, offset: u64, buf: Buf) -> Operation {
        Operation::new(OperationKind::Write, file.into(), offset, Buffers::One(buf))
    }

    /// An [`Operation::write`] with [`Flags::DATA_SYNC`]: completes only when the bytes are on stable media.
    #[must_use]
    pub fn write_durable(file: impl Into<AnyFile>, offset: u64, buf: Buf) -> Operation {
        Operation::write(file, offset, buf).with_flags(Flags::DATA_SYNC)
    }

    /// Fills the buffers one after the other from `offset`. At most 1024 of them, else the submit is refused.
    #[must_use]
    pub fn read_vectored(file: impl Into<AnyFile>, offset: u64, bufs: Vec<Buf>) -> Operation {
        Operation::new(OperationKind::ReadVectored, file.into(), offset, Buffers::vectored(bufs))
    }

    /// Writes the buffers one after the other at `offset`. At most 1024 of them, else the submit is refused.
    #[must_use]
    pub fn write_vectored(file: impl Into<AnyFile>, offset: u64, bufs: Vec<Buf>) -> Operation {
        Operation::new(OperationKind::WriteVectored, file.into(), offset, Buffers::vectored(bufs))
    }

    /// Makes data and metadata of the file durable. It covers the writes whose completions were reaped before it was
    /// submitted, and no others: operations of one submit run in any order.
    #[must_use]
    pub fn sync(file: impl Into<AnyFile>) -> Operation {
        Operation::new(OperationKind::Sync, file.into(), 0, Buffers::None)
    }

    /// An [`Operation::sync`] that covers only the metadata needed to read the data back.
    #[must_use]
    pub fn data_sync(file: impl Into<AnyFile>) -> Operation {
        Operation::new(OperationKind::DataSync, file.into(), 0, Buffers::None)
    }

    /// Completes once the descriptor is ready for any of `readiness`; see [`Completion::readiness`]. One shot. A regular file
    /// is always ready.
    #[must_use]
    pub fn poll(file: impl Into<AnyFile>, readiness: Readiness) -> Operation {
        Operation { readiness, ..Operation::new(OperationKind::Poll, file.into(), 0, Buffers::None) }
    }

    /// Names the operation, for [`Context::cancel`](crate::Context::cancel) and for its completion; 0 by default.
    #[must_use]
    pub fn with_token(self, token: u64) -> Operation {
        Operation { token, ..self }
    }

    pub(crate) fn set_token(&mut self, token: u64) {
        self.token = token;
    }

    /// Adds flags; only for reads and writes, others are refused at submit.
    #[must_use]
    pub fn with_flags(self, flags: Flags) -> Operation {
        Operation { flags: self.flags.with(flags), ..self }
    }

    /// Sets the priority in the device's queue.
    #[must_use]
    pub fn with_priority(self, priority: Priority) -> Operation {
        Operation { priority: Some(priority), ..self }
    }

    /// Makes the completion also add 1 to `event` (`IOCB_FLAG_RESFD`, Linux 2.6.22), for event loops that watch
    /// descriptors. The completion still has to be reaped.
    #[must_use]
    pub fn with_notification(self, event: &EventFd) -> Operation {
        Operation { notify: Some(event.clone()), ..self }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> OperationKind {
        self.kind
    }

    /// The token that the caller gave it.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &AnyFile {
        &self.file
    }

    /// The position in the file, in bytes; 0 for syncs and polls.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its flags.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// How many bytes it moves when it succeeds; 0 for syncs and polls.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bufs().iter().map(|buf| buf.len()).sum()
    }

    /// Its buffers, in order; none for syncs and polls.
    #[must_use]
    pub fn bufs(&self) -> &[Buf] {
        self.buffers.as_slice()
    }

    /// Its only buffer, for a backend that executes the operation itself.
    pub(crate) fn buf_mut(&mut self) -> Option<&mut Buf> {
        match &mut self.buffers {
            Buffers::One(buf) => Some(buf),
            Buffers::None | Buffers::Vectored { .. } => None,
        }
    }

    /// Its descriptor.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.descriptor()
    }

    /// Its descriptor and its buffers, for code that does the operation itself.
    pub(crate) fn file_and_bufs(&mut self) -> (BorrowedFd<'_>, &mut [Buf]) {
        let bufs = match &mut self.buffers {
            Buffers::None => &mut [],
            Buffers::One(buf) => std::slice::from_mut(buf),
            Buffers::Vectored { bufs, .. } => bufs.as_mut_slice(),
        };
        (self.file.descriptor(), bufs)
    }

    /// Whether system calls do the same as the asynchronous operation, and end: a valid transfer or sync of a backend's file,
    /// without a wish that they do not know.
    pub(crate) fn is_plain(&self) -> bool {
        let known_flags = match self.class() {
            IoClass::Write | IoClass::WriteDurable => Flags::DATA_SYNC.with(Flags::SYNC),
            IoClass::Read | IoClass::Sync => Flags::NONE,
            IoClass::Poll => return false,
        };
        matches!(self.file, AnyFile::File(_))
            && known_flags.contains(self.flags)
            && self.bufs().len() <= MOST_BUFFERS
            && self.priority.is_none()
            && self.notify.is_none()
    }

    /// Whether a device does it, and not the page cache, as far as it is known.
    pub(crate) fn is_direct(&self) -> bool {
        matches!(&self.file, AnyFile::File(file) if file.is_direct())
    }

    /// The file of a read or write that is aligned as the file asks for: a refusal of it is one of direct I/O, if the file has
    /// that.
    pub(crate) fn aligned_file(&self) -> Option<&File> {
        let AnyFile::File(file) = &self.file else { return None };
        let Alignment { memory_bytes, offset_bytes } = file.alignment();
        let is_aligned = |buf: &Buf| {
            buf.address().is_multiple_of(memory_bytes as u64) && buf.len().is_multiple_of(offset_bytes)
        };
        let fits = self.offset.is_multiple_of(offset_bytes as u64) && self.bufs().iter().all(is_aligned);
        Some(file).filter(|_| fits && !self.bufs().is_empty())
    }

    /// Gives the buffers back, in order.
    #[must_use]
    pub fn into_bufs(self) -> Vec<Buf> {
        match self.buffers {
            Buffers::None => Vec::new(),
            Buffers::One(buf) => vec![buf],
            Buffers::Vectored { bufs, .. } => bufs,
        }
    }

    /// Gives the first buffer back; an empty one if there is none.
    #[must_use]
    pub fn into_buf(self) -> Buf {
        let first = match self.buffers {
            Buffers::None => None,
            Buffers::One(buf) => Some(buf),
            Buffers::Vectored { bufs, .. } => bufs.into_iter().next(),
        };
        first.unwrap_or_else(|| Buf::zeroed(0))
    }

    /// The name for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let is_durable = self.class() == IoClass::WriteDurable;
        match self.kind {
            OperationKind::Read => "read",
            OperationKind::Write if is_durable => "durable write",
            OperationKind::Write => "write",
            OperationKind::ReadVectored => "vectored read",
            OperationKind::WriteVectored if is_durable => "durable vectored write",
            OperationKind::WriteVectored => "vectored write",
            OperationKind::Sync => "sync",
            OperationKind::DataSync => "data sync",
            OperationKind::Poll => "poll",
        }
    }

    /// The features it needs that some kernels and files lack.
    fn needs(&self) -> String {
        let mut needs = Vec::new();
        match self.kind {
            OperationKind::Sync => {
                needs.push(
                    "IOCB_CMD_FSYNC (Linux 4.18) on a file that can be synced, without flags".to_owned(),
                );
            }
            OperationKind::DataSync => {
                needs.push(
                    "IOCB_CMD_FDSYNC (Linux 4.18) on a file that can be synced, without flags".to_owned(),
                );
            }
            OperationKind::Poll => needs.push("IOCB_CMD_POLL (Linux 5.0), without flags".to_owned()),
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

    /// Adds to the eventfd of its completion, if there is one.
    pub(crate) fn notify(&self) {
        if let Some(event) = &self.notify {
            event.add();
        }
    }

    /// The error of this operation, named `call`.
    fn failed(&self, call: &'static str, errno: Errno) -> Error {
        if matches!(errno, Errno::INVALID | Errno::NOT_SUPPORTED | Errno::NOT_IMPLEMENTED) {
            let needs = self.needs();
            if !needs.is_empty() {
                let path = self.file.path().to_owned();
                return Error::Unsupported { call: self.name(), path, needs, errno };
            }
        }
        self.os_error(call, errno)
    }

    /// The error of this operation, without a guess at its cause.
    fn os_error(&self, call: &'static str, errno: Errno) -> Error {
        let path = self.file.path().to_owned();
        Error::Os { call, path, offset: self.offset, len_bytes: self.len_bytes(), errno }
    }

    /// The error of an operation that was refused at submit.
    pub(crate) fn refused(&self, errno: Errno) -> Error {
        let call =
            if self.priority.is_some_and(Priority::is_real_time) { SUBMIT_IN_REAL_TIME } else { "io_submit" };
        self.failed(call, errno)
    }

    /// The class in which it is counted.
    pub(crate) fn class(&self) -> IoClass {
        IoClass::of(self.kind, self.flags)
    }

    /// Its arguments, for the profile; `other`: the identity of a file that no backend has opened.
    pub(crate) fn arguments<'a>(&'a self, other: Option<&'a Arc<Identity>>) -> Arguments<'a> {
        let file = match &self.file {
            AnyFile::File(file) => Some(file.identity()),
            AnyFile::Descriptor(_) => other,
        };
        let (kind, flags, offset) = (self.kind, self.flags, self.offset);
        Arguments { file, kind, flags, offset, len_bytes: self.len_bytes() as u64 }
    }

    /// The owner of its descriptor, if a profile needs the identity of a file that no backend has opened.
    pub(crate) fn unknown_file(&self) -> Option<&Owner> {
        match &self.file {
            AnyFile::Descriptor(owner) if self.kind != OperationKind::Poll => Some(owner),
            _ => None,
        }
    }

    /// The kernel's form, without `data`. The memory that it names is owned by this operation, stays where it is while
    /// the operation is moved, and no other code can reach it through a shared reference except to read.
    pub(crate) fn iocb(&self) -> Iocb {
        let mut iocb = Iocb {
            descriptor: self.file.descriptor().as_raw_fd().cast_unsigned(),
            opcode: opcode(self.kind),
            rw_flags: self.flags.bits(),
            ..Iocb::default()
        };
        match &self.buffers {
            Buffers::None => {}
            Buffers::One(buf) => (iocb.buf, iocb.len_bytes) = (buf.address(), buf.len() as u64),
            Buffers::Vectored { pieces, .. } => {
                iocb.buf = pieces.as_ptr().expose_provenance() as u64;
                iocb.len_bytes = pieces.len() as u64;
            }
        }
        iocb.offset = self.offset.cast_signed();
        if self.kind == OperationKind::Poll {
            iocb.buf = u64::from(self.readiness.bits());
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
}

fn opcode(kind: OperationKind) -> u16 {
    match kind {
        OperationKind::Read => sys::COMMAND_READ,
        OperationKind::Write => sys::COMMAND_WRITE,
        OperationKind::ReadVectored => sys::COMMAND_READ_VECTORED,
        OperationKind::WriteVectored => sys::COMMAND_WRITE_VECTORED,
        OperationKind::Sync => sys::COMMAND_SYNC,
        OperationKind::DataSync => sys::COMMAND_DATA_SYNC,
        OperationKind::Poll => sys::COMMAND_POLL,
    }
}

/// A finished operation, with its buffers.
#[derive(Debug)]
pub struct Completion {
    /// The submitted operation.
    pub operation: Operation,
    /// Bytes moved; for a poll the bits of its readiness; or the error code of the kernel.
    ///
    /// libaio reports `-errno` in a signed number; here it is an `Err` with the positive one.
    pub result: std::result::Result<usize, Errno>,
}

impl Completion {
    /// The operation, if every byte was moved; else the error, with file, offset and counts.
    ///
    /// # Errors
    /// [`Error::Os`] or [`Error::Unsupported`] if the operation failed, [`Error::Short`] if it moved fewer bytes than
    /// asked for.
    pub fn whole(self) -> Result<Operation> {
        let expected = self.operation.len_bytes();
        match self.result {
            Ok(_) if self.operation.kind == OperationKind::Poll => Ok(self.operation),
            Ok(found) if found == expected || planted(Bug::ShortTransferTakenAsWhole) => Ok(self.operation),
            Ok(found) => {
                let (call, offset) = (self.operation.name(), self.operation.offset);
                let path = self.operation.file.path().to_owned();
                Err(Error::Short { call, path, offset, expected, found })
            }
            Err(_) if planted(Bug::FailedOperationTakenAsDone) => Ok(self.operation),
            // A misaligned operation fails here; flags that are not supported are refused at submit.
            Err(Errno::INVALID) => Err(self.operation.os_error(self.operation.name(), Errno::INVALID)),
            Err(errno) => Err(self.operation.failed(self.operation.name(), errno)),
        }
    }

    /// The readiness that a poll found; empty if it was cancelled, and for other operations.
    pub fn readiness(&self) -> Readiness {
        match self.result {
            Ok(bits) if self.operation.kind == OperationKind::Poll => {
                Readiness::from_bits(u16::try_from(bits).unwrap_or(0))
            }
            _ => Readiness::default(),
        }
    }
}
