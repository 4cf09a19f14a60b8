//! Watches every system call of a process and its threads, counts them, and makes one go wrong. This is `strace --inject`
//! with one count for all threads and with changed results, and without the program.
//!
//! ```text
//!   thread   ... | entry stop          | the kernel works | exit stop                 | ...
//!   tracer         count; delay, kill,                      count the reaped ones;
//!                  leave the call out,                      write the errno, the events
//!                  halve its submit                         or the death
//! ```
//!
//! Invariants: one thread starts the process, seizes it and waits for it, because the kernel knows tracers by thread. A
//! traced process dies with its tracer. The process is released only after it was seized, so its count begins at 1.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::registers::Registers;
use crate::errand::refusal::IO_PGETEVENTS;
use crate::errand::watchdog;

/// The calls that wait for events.
pub(super) const REAPING: [i64; 2] = [IO_PGETEVENTS, libc::SYS_io_getevents];

/// A number of ours: `io_submit` of a poll, which wakes another thread. The kernel always has a slot for it, so its only
/// possible error is a temporary lack of memory.
pub(super) const WAKE_UP: i64 = -1;
/// Another number of ours: `mmap` without a file. The allocator needs it and aborts a program that gets no memory.
const ANONYMOUS_MEMORY: i64 = -2;

/// The effect of a fault on a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// The call is skipped and answers with this errno.
    Fail(i32),
    /// The process dies before the call.
    KillBefore,
    /// The kernel executes the call, and the process dies before it sees the result.
    KillAfter,
    /// The call is delayed by this time.
    Delay(Duration),
    /// `io_submit` submits half of its operations, and returns that number.
    SubmitHalf,
    /// The first operation with data that `io_pgetevents` reaped has failed.
    EventFails(i32),
    /// The first operation with data moved half as many bytes, in whole sectors.
    EventHalf,
    /// The events are in the opposite order.
    EventsReversed,
}

impl Deed {
    /// Whether the fault changes reaped events. Then only calls that reaped something are counted.
    pub(super) fn is_of_events(self) -> bool {
        matches!(self, Deed::EventFails(_) | Deed::EventHalf | Deed::EventsReversed)
    }
}

/// The calls that go wrong: number `from` of these calls, and the following ones up to `until`, for at most the time
/// `within`.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallFault {
    /// The system calls, by number.
    pub(super) calls: &'static [i64],
    pub(super) deed: Deed,
    pub(super) from: u64,
    pub(super) until: u64,
    pub(super) within: Option<Duration>,
}

/// The result of a watched run.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) status: ExitStatus,
    /// How many calls were struck.
    pub(super) struck: u64,
    /// The process did not end in time and was killed.
    pub(super) hung: bool,
    /// The number of calls of each kind.
    pub(super) calls: BTreeMap<i64, u64>,
    /// How many calls submitted several operations at once.
    pub(super) submitted_many: u64,
    /// How many calls reaped an operation with data, and how many reaped several.
    pub(super) reaped: [u64; 2],
}

/// A thread between the entry and the exit of a system call.
#[derive(Clone, Copy, Debug, Default)]
struct Inside {
    number: i64,
    struck: bool,
}

struct Tracer<'a> {
    main: Pid,
    fault: Option<&'a CallFault>,
    matching: u64,
    /// When the fault ends, if a time was set and it has begun.
    ends: Option<Duration>,
    inside: BTreeMap<Pid, Option<Inside>>,
    /// Threads that are held back, and until when.
    delayed: Vec<(Pid, Duration)>,
    clock: NativeBackend,
    watched: Watched,
}

fn system(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}

/// The interval between two looks at a thread that is held back.
const TICK: Duration = Duration::from_micros(200);

const EVENT_BYTES: usize = 32;
const RESULT_AT: usize = 16;
const SECTOR_BYTES: i64 = 512;

/// Releases the process, which waits for a byte on its standard input, and watches it until its end. It must end within
/// `limit`.
///
/// # Errors
/// The process cannot be traced.
pub(super) fn watch(child: &mut Child, fault: Option<&CallFault>, limit: Duration) -> io::Result<Watched> {
    let child_id = child.id();
    let main = Pid::from_raw(i32::try_from(child_id).map_err(io::Error::other)?);
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).map_err(system)?;
    ptrace::interrupt(main).map_err(system)?;
    let watched = Watched {
        status: ExitStatus::from_raw(0),
        struck: 0,
        hung: false,
        calls: BTreeMap::new(),
        submitted_many: 0,
        reaped: [0; 2],
    };
    let mut tracer = Tracer {
        main,
        fault,
        matching: 0,
        ends: None,
        inside: BTreeMap::new(),
        delayed: Vec::new(),
        clock: NativeBackend::new(),
        watched,
    };
    let mut gate = child.stdin.take();
    let ended = watchdog::with(child_id, limit, || {
        // The first stop is the one that was requested; watching begins there.
        tracer.step()?;
        if let Some(gate) = &mut gate {
            gate.write_all(b"g")?;
        }
        while tracer.step()? {}
        Ok(())
    });
    tracer.watched.hung = ended?;
    Ok(tracer.watched)
}

impl Tracer<'_> {
    /// Handles one stop. Returns false when the process has ended.
    fn step(&mut self) -> io::Result<bool> {
        let every = Some(Pid::from_raw(-1));
        let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let flags = if self.delayed.is_empty() { own } else { own | WaitPidFlag::WNOHANG };
        match waitpid(every, Some(flags)) {
            Ok(WaitStatus::StillAlive) => {
                self.clock.park(TICK);
                let now = self.clock.now();
                let (due, rest) = self.delayed.iter().partition(|(_, until)| *until <= now);
                self.delayed = rest;
                let due: Vec<(Pid, Duration)> = due;
                for (thread, _) in due {
                    self.go_on(thread, None);
                }
                Ok(true)
            }
            Ok(WaitStatus::Exited(pid, code)) => Ok(!self.ended(pid, ExitStatus::from_raw(code << 8))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Ok(!self.ended(pid, ExitStatus::from_raw(signal as i32)))
            }
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                self.call(thread);
                Ok(true)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => {
                self.go_on(thread, Some(signal));
                Ok(true)
            }
            Ok(status) => {
                if let Some(thread) = status.pid() {
                    self.go_on(thread, None);
                }
                Ok(true)
            }
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(system(errno)),
        }
    }

    fn ended(&mut self, pid: Pid, status: ExitStatus) -> bool {
        self.delayed.retain(|(thread, _)| *thread != pid);
        if pid == self.main {
            self.watched.status = status;
        }
        pid == self.main
    }

    /// Lets a thread run to its next system call; when the fault is over, to its end.
    fn go_on(&self, thread: Pid, signal: Option<Signal>) {
        let is_over = self.fault.is_some_and(|fault| self.matching >= fault.until) || self.time_is_up();
        // A killed thread is gone. Its exit is reported separately.
        let _ = if is_over { ptrace::cont(thread, signal) } else { ptrace::syscall(thread, signal) };
    }

    fn time_is_up(&self) -> bool {
        self.ends.is_some_and(|end| self.clock.now() >= end)
    }

    /// Handles the entry or the exit of a system call. A thread that was killed meanwhile cannot be read, and ends soon.
    fn call(&mut self, thread: Pid) {
        let Ok(mut registers) = Registers::of(thread) else { return self.go_on(thread, None) };
        match self.inside.entry(thread).or_default().take() {
            None => self.enter(thread, &mut registers),
            Some(inside) => {
                self.leave(thread, inside, &mut registers);
                self.go_on(thread, None);
            }
        }
    }

    /// Counts the call. Returns whether it goes wrong.
    fn strikes(&mut self, number: i64) -> bool {
        let Some(fault) = self.fault else { return false };
        if !fault.calls.contains(&number) {
            return false;
        }
        self.matching += 1;
        if !(fault.from..=fault.until).contains(&self.matching) {
            return false;
        }
        self.ends = self.ends.or_else(|| fault.within.map(|time| self.clock.now() + time));
        !self.time_is_up()
    }

    fn enter(&mut self, thread: Pid, registers: &mut Registers) {
        let number = kind(thread, registers);
        let is_many = number == libc::SYS_io_submit && registers.argument(1) > 1;
        *self.watched.calls.entry(number).or_default() += 1;
        self.watched.submitted_many += u64::from(is_many);
        let deed = self.fault.map(|fault| fault.deed).filter(|deed| !deed.is_of_events());
        let is_meant = is_many || deed != Some(Deed::SubmitHalf);
        let struck = deed.is_some() && is_meant && self.strikes(number);
        self.inside.insert(thread, Some(Inside { number, struck }));
        if struck {
            self.watched.struck += u64::from(deed != Some(Deed::KillAfter));
            match deed {
                Some(Deed::Fail(_)) => registers.leave_out(),
                Some(Deed::SubmitHalf) => registers.set_argument_1(registers.argument(1) / 2),
                // The process may be gone already.
                Some(Deed::KillBefore) => drop(kill(self.main, Signal::SIGKILL)),
                Some(Deed::Delay(time)) => return self.delayed.push((thread, self.clock.now() + time)),
                _ => {}
            }
            let _ = registers.store(thread);
            // Runs to the exit of the call, where the answer is written.
            let _ = ptrace::syscall(thread, None);
            return;
        }
        self.go_on(thread, None);
    }

    fn leave(&mut self, thread: Pid, inside: Inside, registers: &mut Registers) {
        match self.fault.map(|fault| fault.deed) {
            Some(Deed::Fail(errno)) if inside.struck => {
                registers.set_answer(-i64::from(errno));
                let _ = registers.store(thread);
            }
            Some(Deed::KillAfter) if inside.struck => {
                self.watched.struck += 1;
                // The process may be gone already.
                let _ = kill(self.main, Signal::SIGKILL);
            }
            _ => {}
        }
        let count = usize::try_from(registers.answer()).unwrap_or(0);
        if count > 0 && REAPING.contains(&inside.number) {
            // If the memory is gone, the process is, too.
            let _ = self.reaped(thread, inside.number, registers.argument(3), count);
        }
    }

    /// Examines the reaped events, and changes them.
    fn reaped(&mut self, thread: Pid, number: i64, address: u64, count: usize) -> nix::Result<()> {
        let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        let mut bytes = vec![0; count * EVENT_BYTES];
        let len = bytes.len();
        read(thread, address, &mut bytes)?;
        let moved = |event: &[u8]| {
            let word = event[RESULT_AT..].first_chunk().copied().unwrap_or_default();
            i64::from_le_bytes(word)
        };
        let first = bytes.chunks_exact(EVENT_BYTES).position(|event| moved(event) >= SECTOR_BYTES);
        self.watched.reaped[0] += u64::from(first.is_some());
        self.watched.reaped[1] += u64::from(count > 1);
        let Some(deed) = self.fault.map(|fault| fault.deed).filter(|deed| deed.is_of_events()) else {
            return Ok(());
        };
        let is_meant = if deed == Deed::EventsReversed { count > 1 } else { first.is_some() };
        if !is_meant || !self.strikes(number) {
            return Ok(());
        }
        self.watched.struck += 1;
        let at = first.unwrap_or(0) * EVENT_BYTES;
        let event = &mut bytes[at..at + EVENT_BYTES];
        let result = match deed {
            Deed::EventFails(errno) => -i64::from(errno),
            Deed::EventHalf => moved(event) / 2 / SECTOR_BYTES * SECTOR_BYTES,
            _ => moved(event),
        };
        event[RESULT_AT..RESULT_AT + 8].copy_from_slice(&result.to_le_bytes());
        if deed == Deed::EventsReversed {
            bytes = bytes.rchunks_exact(EVENT_BYTES).flatten().copied().collect();
        }
        process_vm_writev(thread, &[IoSlice::new(&bytes)], &[RemoteIoVec { base, len }])?;
        Ok(())
    }
}

/// The number of a system call, or one of ours where the arguments make it a different operation.
fn kind(thread: Pid, registers: &Registers) -> i64 {
    match registers.number() {
        libc::SYS_mmap if registers.argument(4) >= 1 << 31 => ANONYMOUS_MEMORY,
        // If the memory is gone, the process is, too.
        libc::SYS_io_submit if submits_a_poll(thread, registers).unwrap_or(false) => WAKE_UP,
        number => number,
    }
}

/// Whether the first submitted operation is a poll.
fn submits_a_poll(thread: Pid, registers: &Registers) -> nix::Result<bool> {
    const OPCODE_AT: u64 = 16;
    const POLL: u16 = 5;
    let mut pointer = [0; 8];
    read(thread, registers.argument(2), &mut pointer)?;
    let mut opcode = [0; 2];
    read(thread, u64::from_le_bytes(pointer) + OPCODE_AT, &mut opcode)?;
    Ok(u16::from_le_bytes(opcode) == POLL)
}

fn read(thread: Pid, address: u64, bytes: &mut [u8]) -> nix::Result<()> {
    let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let remote = [RemoteIoVec { base, len: bytes.len() }];
    process_vm_readv(thread, &mut [IoSliceMut::new(bytes)], &remote).map(drop)
}
