//! Watches every system call of a process and its threads, counts them, and makes one go wrong: what `strace --inject`
//! does, with one count for all threads, with results that are written anew, and without the program.
//!
//! ```text
//!   thread   ... | entry stop          | the kernel works | exit stop                 | ...
//!   tracer         count; delay, kill,                      count what was reaped;
//!                  leave the call out,                      write the errno, the events
//!                  halve what it submits                    or the death
//! ```
//!
//! Invariants: one thread starts the process, seizes it and waits for it, since the kernel knows tracers by thread; a
//! process that is traced dies with its tracer; it is let go only after it was seized, so its count begins at 1.

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
use crate::errand::watchdog;

pub(super) const IO_PGETEVENTS: i64 = if cfg!(target_arch = "x86_64") { 333 } else { 292 };

/// The calls that wait for events.
pub(super) const REAPING: [i64; 2] = [IO_PGETEVENTS, libc::SYS_io_getevents];

/// Not a number of the kernel's: `io_submit` of a poll, by which a thread wakes another. The kernel has room for it in any
/// case, so it answers no worse than that it has no memory right now.
pub(super) const WAKE_UP: i64 = -1;
/// Nor this: `mmap` without a file. The allocator needs it, which ends a program that has no memory left.
const ANONYMOUS_MEMORY: i64 = -2;

/// What a system call is made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// It is not made, and answers with this errno.
    Fail(i32),
    /// The process dies before it is made.
    KillBefore,
    /// It is made, and the process dies before it learns of it.
    KillAfter,
    /// It is made so much later.
    Delay(Duration),
    /// `io_submit` submits half of what it is asked to, and says so.
    SubmitHalf,
    /// Of what `io_pgetevents` has reaped the first operation that moved something has failed.
    EventFails(i32),
    /// That operation has moved half as much, in whole sectors.
    EventHalf,
    /// The events come in the opposite order.
    EventsReversed,
}

impl Deed {
    /// Whether it changes what was reaped; then calls that reaped something are counted, and no others.
    pub(super) fn is_of_events(self) -> bool {
        matches!(self, Deed::EventFails(_) | Deed::EventHalf | Deed::EventsReversed)
    }
}

/// What is to go wrong: the `from`-th of these calls, and the ones after it up to `until`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// By number.
    pub(super) calls: &'static [i64],
    pub(super) deed: Deed,
    pub(super) from: u64,
    pub(super) until: u64,
}

/// What happened.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) status: ExitStatus,
    /// How often the fault struck.
    pub(super) struck: u64,
    /// It did not end in time, and was killed.
    pub(super) hung: bool,
    /// How often each system call was made.
    pub(super) calls: BTreeMap<i64, u64>,
    /// How often several operations were submitted at once.
    pub(super) submitted_many: u64,
    /// How often one of the calls that reap came back with an operation that moved something; and with several.
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
    fault: Option<&'a Fault>,
    matching: u64,
    inside: BTreeMap<Pid, Option<Inside>>,
    /// Threads that are held back, and until when.
    delayed: Vec<(Pid, Duration)>,
    clock: NativeBackend,
    watched: Watched,
}

fn system(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}

/// How often a thread that is held back is looked at.
const TICK: Duration = Duration::from_micros(200);

const EVENT_BYTES: usize = 32;
const RESULT_AT: usize = 16;
const SECTOR_BYTES: i64 = 512;

/// Lets the process go that waits for a byte on its standard input, and watches it to its end, which must come in
/// `limit`.
///
/// # Errors
/// It cannot be traced.
pub(super) fn watch(child: &mut Child, fault: Option<&Fault>, limit: Duration) -> io::Result<Watched> {
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
        inside: BTreeMap::new(),
        delayed: Vec::new(),
        clock: NativeBackend::new(),
        watched,
    };
    let mut gate = child.stdin.take();
    let ended = watchdog::with(child_id, limit, || {
        // The first stop is the one that was asked for; from there on it is watched.
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
    /// Deals with one stop; false when the process has ended.
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

    /// Lets a thread run to its next system call, or, when the fault is over, to its end.
    fn go_on(&self, thread: Pid, signal: Option<Signal>) {
        let is_over = self.fault.is_some_and(|fault| self.matching >= fault.until);
        // One that was killed is gone, and that shows by itself.
        let _ = if is_over { ptrace::cont(thread, signal) } else { ptrace::syscall(thread, signal) };
    }

    /// A thread enters or leaves a system call. One that was killed meanwhile cannot be looked at, and ends soon.
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

    /// Whether this call is the one, or one of those; counts it.
    fn strikes(&mut self, number: i64) -> bool {
        let Some(fault) = self.fault else { return false };
        if !fault.calls.contains(&number) {
            return false;
        }
        self.matching += 1;
        (fault.from..=fault.until).contains(&self.matching)
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
                // It may have gone already.
                Some(Deed::KillBefore) => drop(kill(self.main, Signal::SIGKILL)),
                Some(Deed::Delay(time)) => return self.delayed.push((thread, self.clock.now() + time)),
                _ => {}
            }
            let _ = registers.store(thread);
            // To its end, where the answer is written.
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
                // It may have gone already.
                let _ = kill(self.main, Signal::SIGKILL);
            }
            _ => {}
        }
        let count = usize::try_from(registers.answer()).unwrap_or(0);
        if count > 0 && REAPING.contains(&inside.number) {
            // Should the memory be gone, the process is, too.
            let _ = self.reaped(thread, inside.number, registers.argument(3), count);
        }
    }

    /// Looks at events that were reaped, and changes them.
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

/// The number of a system call, or one of ours if its arguments make it another thing.
fn kind(thread: Pid, registers: &Registers) -> i64 {
    match registers.number() {
        libc::SYS_mmap if registers.argument(4) >= 1 << 31 => ANONYMOUS_MEMORY,
        // Should the memory be gone, the process is, too.
        libc::SYS_io_submit if submits_a_poll(thread, registers).unwrap_or(false) => WAKE_UP,
        number => number,
    }
}

/// Whether the first operation that is submitted is a poll.
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
