//! The lock file of a store: a `flock` on it is the lock, its content only names the holder.
//!
//! ```text
//!   +-----------------+---------------+----------+-----------+------------+
//!   | decimal pid, \n | namespace, \n | boot, \n | start, \n | zeros      |
//!   +-----------------+---------------+----------+-----------+------------+
//!   0                                                                  4096
//!
//!   OFFSET  SIZE  FIELD
//!        0   <11  process id of the holder, ASCII digits
//!      ...   ...  its PID namespace, as `/proc/self/ns/pid` names it; `-` if it could not be read
//!      ...   ...  the boot of its machine, as `/proc/sys/kernel/random/boot_id` has it; `-` if it could not be read
//!      ...   <21  the start of its process in ticks since the boot, ASCII digits; `-` if it could not be read
//!      ...   ...  zeros; each field ends with a line feed
//! ```
//!
//! Invariants: the note is written by asynchronous I/O like all other data, and it is changed only while the lock is held.
//! A holder removes its note before it releases the lock. One that was killed leaves it, so a note is valid only if the lock
//! is taken. Between taking the lock and writing the note, readers see no note, or that of a killed holder.
//!
//! A child that was forked while the lock was held shares it: dropping its copy does not release the parent's, and the
//! lock is free when the parent has dropped it or both processes have ended.

use std::fmt;

use rustix::fs::FlockOperation;
use rustix::process::Pid;

use crate::backend::Lock;
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};
use crate::file::write_all;
use crate::holder::Holder;
use crate::insist::{insist, named};
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
            let holder = read_note(&file).map_or(Holder::Unknown, |note| note.holder(&Note::ours()));
            return Err(Error::Locked { path: file.path().to_owned(), holder });
        }
        let lock = NativeLock { file, process };
        lock.write_note(queue);
        Ok(lock)
    }

    /// The lock works without the note, so a full disk is not an error. An old note must not stay then.
    fn write_note(&self, queue: &mut dyn Queue) {
        let mut note = Buf::zeroed(NOTE_BYTES);
        let text = Note::ours().to_string();
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
            // The next holder must not be taken for this one before it has written its own note.
            let _ = rustix::fs::ftruncate(self.file.descriptor(), 0);
            let _ = rustix::fs::flock(self.file.descriptor(), FlockOperation::Unlock);
        }
    }
}

/// The statement of a holder about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    pid: u32,
    namespace: String,
    boot: String,
    /// Tells processes apart that had the same id one after the other. `None` if it is not known.
    start_ticks: Option<u64>,
}

/// Stands for a namespace or a boot that could not be read.
const UNKNOWN: &str = "-";

impl Note {
    fn ours() -> Note {
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok();
        let boot = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = insist(|| boot().map_err(|error| Errno::from(&error))).ok();
        let known = |text: Option<String>| {
            let text = text.unwrap_or_default().trim().to_owned();
            let fits = (1..64).contains(&text.len()) && !text.contains('\n');
            if fits { text } else { UNKNOWN.to_owned() }
        };
        Note {
            pid: std::process::id(),
            namespace: known(namespace.map(|path| path.to_string_lossy().into_owned())),
            boot: known(boot),
            start_ticks: start_ticks("self"),
        }
    }

    /// Who has left this note, for the process that writes `ours`.
    fn holder(&self, ours: &Note) -> Holder {
        let is_known = |note: &Note| note.namespace != UNKNOWN && note.boot != UNKNOWN;
        if !is_known(self) || !is_known(ours) {
            return Holder::Unknown;
        }
        if self.boot != ours.boot {
            return Holder::OtherMachine(self.pid);
        }
        if self.namespace != ours.namespace {
            return Holder::OtherNamespace(self.pid);
        }
        let is_ours = self.pid == ours.pid;
        let start_ticks = if is_ours { ours.start_ticks } else { start_ticks(&self.pid.to_string()) };
        let is_another = self.start_ticks.zip(start_ticks).is_some_and(|(noted, found)| noted != found);
        match (is_ours, is_another) {
            (true, false) => Holder::ThisProcess,
            (false, false) if is_there(self.pid) => Holder::Process(self.pid),
            _ => Holder::Ended(self.pid),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start_ticks = self.start_ticks.map_or_else(|| UNKNOWN.to_owned(), |ticks| ticks.to_string());
        write!(f, "{}\n{}\n{}\n{start_ticks}\n", self.pid, self.namespace, self.boot)
    }
}

/// Whether there is such a process. One of another user counts.
fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// When a process has started, since the boot; `None` if it cannot be known.
fn start_ticks(process: &str) -> Option<u64> {
    let path = format!("/proc/{process}/stat");
    let stat = insist(|| std::fs::read(&path).map_err(|error| Errno::from(&error))).ok()?;
    // The name of the program is in parentheses, and may have some itself. The start is the 20th field after it.
    let after_name = stat.rsplit(|byte| *byte == b')').next()?;
    std::str::from_utf8(after_name).ok()?.split_whitespace().nth(19)?.parse().ok()
}

/// `None` if the file has no such note.
fn read_note(file: &File) -> Option<Note> {
    let mut bytes = Buf::zeroed(NOTE_BYTES);
    let found = rustix::io::pread(file.descriptor(), &mut bytes[..], 0).ok()?;
    let mut lines = std::str::from_utf8(&bytes[..found]).ok()?.split('\n');
    let mut line = || lines.next().map(ToOwned::to_owned);
    let (pid, namespace, boot) = (line()?.parse().ok()?, line()?, line()?);
    Some(Note { pid, namespace, boot, start_ticks: line().and_then(|ticks| ticks.parse().ok()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_id_counts_only_in_its_own_namespace_and_boot_and_for_its_own_process() {
        let ours = Note::ours();
        let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get().cast_unsigned());
        let with = |pid| Note { pid, start_ticks: None, ..ours.clone() };
        let starts = |pid, start_ticks| Note { start_ticks, ..with(pid) };
        let (own, parents) = (start_ticks("self").unwrap(), start_ticks(&parent.to_string()).unwrap());
        let container = Note { namespace: "pid:[1]".to_owned(), ..with(1) };
        let machine = Note { boot: "another".to_owned(), ..container.clone() };
        let blind = Note { boot: UNKNOWN.to_owned(), ..with(1) };
        for (note, holder) in [
            (ours.clone(), Holder::ThisProcess),
            (with(ours.pid), Holder::ThisProcess),
            (starts(ours.pid, Some(own - 1)), Holder::Ended(ours.pid)),
            (with(parent), Holder::Process(parent)),
            (starts(parent, Some(parents)), Holder::Process(parent)),
            (starts(parent, Some(parents + 1)), Holder::Ended(parent)),
            (with(u32::MAX), Holder::Ended(u32::MAX)),
            (container, Holder::OtherNamespace(1)),
            (machine, Holder::OtherMachine(1)),
            (blind, Holder::Unknown),
        ] {
            assert_eq!(note.holder(&ours), holder, "{note:?}");
        }
    }
}
