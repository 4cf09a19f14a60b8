//! The features of a directory's file system for asynchronous I/O, found by trying them.
//!
//! Nothing is concluded from version numbers. Every operation and flag is tried on a scratch file without a name; a
//! file system is asynchronous if at least one write was still in flight when its submit returned.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::buf::Buf;
use crate::context::Context;
use crate::error::{Errno, Error, Result};
use crate::fall_back::{FallBack, FallBacks};
use crate::flags::{Flags, Readiness};
use crate::in_flight::InFlight;
use crate::insist::named;
use crate::kind::OperationKind;
use crate::open_file::Alignment;
use crate::operation::Operation;
use crate::probe::{self as facts, Access};
use crate::settings::{BackendState, Reaping, Settings, Waking};

/// Bytes of the scratch file.
const SCRATCH_BYTES: usize = 1 << 20;

/// Rounds of writes, each of which checks whether a write is still in flight after its submit. There are many rounds of
/// long writes, because on a busy machine a round may complete before this thread runs again.
const TRIALS: usize = 16;

/// Writes submitted together in a round: the last one waits for the others even on a fast device.
const AT_ONCE: usize = 4;

/// The features of a directory's file system.
#[expect(clippy::struct_excessive_bools, reason = "a report of independent answers")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// The running kernel's name for its version.
    pub kernel: String,
    /// The file system's name, as far as it can be told: ext2, ext3 and ext4 cannot be told apart.
    pub file_system: &'static str,
    /// Whether I/O bypasses the page cache. If not, all operations work, but submitting may block.
    pub is_direct: bool,
    /// Whether a submit returns before its operation is done. If not, submit from a thread of its own.
    pub is_asynchronous: bool,
    /// The reason for `is_direct` and `is_asynchronous`.
    pub reason: &'static str,
    /// The alignment that direct reads and writes need.
    pub alignment: Alignment,
    /// The unit that the device changes on its medium, as far as it is known, see
    /// [`Backend::physical_block_bytes`](crate::Backend::physical_block_bytes).
    pub physical_block_bytes: usize,
    /// Whether a mapping may be shared with a file that is also written directly.
    pub maps_are_shared: bool,
    /// Whether completions can be read in user space.
    pub has_ring: bool,
    /// How many requests the device takes before a submit blocks, where that is known.
    pub device_queue_slots: Option<usize>,
    /// Each operation, with the error of the kernel if it was refused. None where native AIO is refused.
    pub operations: Vec<(OperationKind, std::result::Result<(), Errno>)>,
    /// Each flag on a write, with the error of the kernel if it was refused.
    pub flags: Vec<(Flags, std::result::Result<(), Errno>)>,
    /// What a backend does here instead of that which is refused.
    pub fall_backs: Vec<FallBack>,
}

impl fmt::Display for Probe {
    /// Several lines of text for a human reader.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel       {}", self.kernel)?;
        writeln!(f, "file system  {}", self.file_system)?;
        writeln!(f, "direct       {}", self.is_direct)?;
        writeln!(f, "asynchronous {}", self.is_asynchronous)?;
        writeln!(f, "because      {}", self.reason)?;
        let Alignment { memory_bytes, offset_bytes } = self.alignment;
        writeln!(f, "alignment    memory {memory_bytes}, offset and length {offset_bytes}")?;
        writeln!(f, "block        {} bytes", self.physical_block_bytes)?;
        writeln!(f, "ring         {}", self.has_ring)?;
        if let Some(slots) = self.device_queue_slots {
            writeln!(f, "device queue {slots}")?;
        }
        let answer = |found: &std::result::Result<(), Errno>| match found {
            Ok(()) => "yes".to_owned(),
            Err(errno) => errno.to_string(),
        };
        for (kind, found) in &self.operations {
            writeln!(f, "{kind:?}: {}", answer(found))?;
        }
        for (flags, found) in &self.flags {
            writeln!(f, "{flags:?}: {}", answer(found))?;
        }
        for fall_back in &self.fall_backs {
            writeln!(f, "{fall_back}")?;
        }
        Ok(())
    }
}

/// Finds the features of a directory's file system by I/O on a scratch file without a name. Where no such file can be
/// made, or native AIO is refused, the report has the known properties of this type of file system. Writes one megabyte, or
/// eight if no write is asynchronous.
///
/// # Errors
/// The directory cannot be opened or queried, or there are no slots for a context.
pub fn probe(dir: &Path) -> Result<Probe> {
    let opened =
        named("open", dir, || rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))?;
    let magic = facts::magic(opened.as_fd()).map_err(|errno| Error::call("fstatfs", dir, errno))?;
    let shared = BackendState::new();
    let mut context = context(&shared)?;
    let mut found = Probe {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        file_system: facts::file_system_name(magic),
        is_direct: facts::always_direct(magic),
        is_asynchronous: facts::always_direct(magic) && context.is_some(),
        reason: "no scratch file can be made there, so this is known from the type of the file system",
        alignment: facts::UNKNOWN,
        physical_block_bytes: facts::physical_block_bytes(opened.as_fd()),
        maps_are_shared: facts::shares_maps(magic),
        has_ring: context.as_ref().is_some_and(Context::reads_ring),
        device_queue_slots: facts::device_queue_slots(opened.as_fd()),
        operations: Vec::new(),
        flags: Vec::new(),
        fall_backs: Vec::new(),
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(scratch) = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        found.look_at_file(context.as_mut(), &Arc::new(scratch), (dir, &shared.fall_backs))?;
    }
    found.fall_backs = shared.fall_backs.list();
    Ok(found)
}

/// A context; `None` where native AIO is refused.
fn context(shared: &BackendState) -> Result<Option<Context>> {
    let settings = Settings { slots: 4, mask: None, reaping: Reaping::default(), waking: Waking::default() };
    match InFlight::new(&settings, shared.clone()) {
        Ok(in_flight) => Ok(Some(Context::from(in_flight))),
        Err(Error::Unsupported { call, errno, .. }) => {
            shared.fall_backs.note(FallBack::SystemCalls { call, errno });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Probe {
    /// Fills in the fields that are found with an empty file.
    fn look_at_file(
        &mut self,
        context: Option<&mut Context>,
        scratch: &Arc<OwnedFd>,
        (dir, fall_backs): (&Path, &FallBacks),
    ) -> Result<()> {
        let page_cache = |refused| FallBack::PageCache { path: dir.to_owned(), refused };
        let Some(context) = context else {
            let refused = self.make_direct(dir, scratch, 0)?;
            if !self.is_direct {
                fall_backs.note(page_cache(refused));
            }
            self.reason = "native AIO is refused, so threads make blocking calls; direct I/O is known from the kernel only";
            return Ok(());
        };
        let filled = attempt(context, Operation::write(Arc::clone(scratch), 0, Buf::zeroed(SCRATCH_BYTES)))?;
        if filled != Ok(SCRATCH_BYTES) {
            self.reason =
                "the scratch file cannot be filled, so this is known from the type of the file system";
            return Ok(());
        }
        let refused = self.make_direct(dir, scratch, SCRATCH_BYTES as u64)?;
        self.look_at_writes(context, scratch)?;
        if !self.is_direct {
            fall_backs.note(page_cache(refused));
        }
        for kind in OPERATIONS {
            let answer = attempt(context, operation(kind, scratch))?;
            self.operations.push((kind, answer.map(|_| ())));
        }
        for (flag, ..) in Flags::known() {
            let write = Operation::write(Arc::clone(scratch), 0, Buf::zeroed(Buf::ALIGN)).with_flags(flag);
            let answer = attempt(context, write)?;
            self.flags.push((flag, answer.map(|_| ())));
        }
        Ok(())
    }

    /// Switches the scratch file, which has no name by which to open it again, to direct I/O if it has that. Returns the
    /// refused call.
    fn make_direct(
        &mut self,
        dir: &Path,
        scratch: &OwnedFd,
        size_bytes: u64,
    ) -> Result<Option<(&'static str, Errno)>> {
        let (found, refused) = match rustix::fs::fcntl_setfl(scratch, OFlags::DIRECT) {
            Ok(()) => {
                let found = facts::access(dir, scratch.as_fd(), size_bytes)?;
                (found, found.refused.map(|errno| ("pread", errno)))
            }
            Err(errno) => (Access::BUFFERED, Some(("fcntl", errno.into()))),
        };
        if !found.keeps_flag() {
            let _ = rustix::fs::fcntl_setfl(scratch, OFlags::empty());
        }
        (self.is_direct, self.alignment) = (found.is_direct, found.alignment);
        Ok(refused)
    }

    /// Fills in the fields that are found by writing.
    fn look_at_writes(&mut self, context: &mut Context, scratch: &Arc<OwnedFd>) -> Result<()> {
        let misaligned = attempt(context, Operation::write(Arc::clone(scratch), 1, Buf::zeroed(100)))?;
        let was_direct = self.is_direct;
        self.is_direct &= misaligned == Err(Errno::INVALID);
        self.is_asynchronous = false;
        for _ in 0..TRIALS {
            if is_late(context, scratch)? {
                self.is_asynchronous = true;
                break;
            }
        }
        self.reason = match (was_direct, self.is_direct, self.is_asynchronous) {
            (false, ..) => {
                "the file system does not promise direct I/O (O_DIRECT or statx), so it uses the page cache"
            }
            (true, false, _) => "a misaligned direct write was accepted, so writes go through the page cache",
            (true, true, false) => "writes are direct, but each was done before its submit returned",
            (true, true, true) => {
                "a misaligned write was refused, and submits returned before their writes were done"
            }
        };
        Ok(())
    }
}

const OPERATIONS: [OperationKind; 7] = [
    OperationKind::Read,
    OperationKind::Write,
    OperationKind::ReadVectored,
    OperationKind::WriteVectored,
    OperationKind::Sync,
    OperationKind::DataSync,
    OperationKind::Poll,
];

/// An operation of that kind that changes nothing of value.
fn operation(kind: OperationKind, scratch: &Arc<OwnedFd>) -> Operation {
    let file = Arc::clone(scratch);
    let bufs = || vec![Buf::zeroed(Buf::ALIGN), Buf::zeroed(Buf::ALIGN)];
    match kind {
        OperationKind::Read => Operation::read(file, 0, Buf::zeroed(Buf::ALIGN)),
        OperationKind::Write => Operation::write(file, 0, Buf::zeroed(Buf::ALIGN)),
        OperationKind::ReadVectored => Operation::read_vectored(file, 0, bufs()),
        OperationKind::WriteVectored => Operation::write_vectored(file, 0, bufs()),
        OperationKind::Sync => Operation::sync(file),
        OperationKind::DataSync => Operation::data_sync(file),
        OperationKind::Poll => Operation::poll(file, Readiness::READABLE),
    }
}

/// Runs one operation. Returns its result, whether the kernel gave it at submit or in the completion.
fn attempt(context: &mut Context, operation: Operation) -> Result<std::result::Result<usize, Errno>> {
    if let Err(refused) = context.submit(&mut VecDeque::from([operation])) {
        return refused.errno().map_or(Err(refused), |errno| Ok(Err(errno)));
    }
    let mut done = Vec::new();
    while context.in_flight() > 0 {
        context.wait(1, None, &mut done)?;
    }
    Ok(done.pop().map_or(Err(Errno::IO), |done| done.result))
}

/// Whether a write over written bytes is still in flight when its submit returns.
fn is_late(context: &mut Context, scratch: &Arc<OwnedFd>) -> Result<bool> {
    let write = || Operation::write(Arc::clone(scratch), 0, Buf::zeroed(SCRATCH_BYTES));
    let mut writes: VecDeque<_> = (0..AT_ONCE).map(|_| write()).collect();
    let _ = context.submit(&mut writes)?;
    let mut done = Vec::new();
    context.wait(0, None, &mut done)?;
    let is_late = context.in_flight() > 0;
    while context.in_flight() > 0 {
        context.wait(1, None, &mut done)?;
    }
    Ok(is_late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_files_can_be_probed() {
        let found = probe(Path::new("/proc/self")).unwrap();
        assert_eq!(found.file_system, "unknown");
        assert!(!found.is_direct);
        assert!(!found.maps_are_shared);
        assert_eq!(found.alignment, facts::UNKNOWN);
        assert!(found.reason.contains("no scratch file"));
    }

    #[test]
    fn an_absent_directory_is_an_error() {
        let error = probe(Path::new("/proc/self/absent")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOT_FOUND));
    }
}
