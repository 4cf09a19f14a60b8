//! The kernel's side of native AIO: system calls and their structures, signal masks, and the fork counter.
//!
//! There is no C library between: the calls go through `libc::syscall`, and every answer of the kernel becomes a
//! `Result` here, so that no other file looks at `errno`.
//!
//! Invariants: the structures have the kernel's layout (asserted at compile time below); only [`submit`] is unsafe,
//! because it alone makes the kernel remember an address after the call.
#![expect(unsafe_code, reason = "system calls")]

use std::mem::{MaybeUninit, offset_of, size_of};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libc::{c_int, c_long, c_ulong, sigset_t};

use crate::error::Errno;

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_endian = "little",
    target_pointer_width = "64"
)))]
compile_error!("native AIO is implemented for 64-bit Linux on x86-64 and aarch64 only");

/// `IOCB_CMD_PREAD`.
pub(crate) const COMMAND_READ: u16 = 0;
/// `IOCB_CMD_PWRITE`.
pub(crate) const COMMAND_WRITE: u16 = 1;
/// `IOCB_CMD_FDSYNC`; buffer, offset, length and flags must be 0.
pub(crate) const COMMAND_DATA_SYNC: u16 = 3;
/// `IOCB_CMD_POLL`; `buf` holds the events waited for. One shot.
pub(crate) const COMMAND_POLL: u16 = 5;

/// Most operations that one [`submit`] hands over: the kernel plugs the device's queue for the whole call, so a longer
/// batch only delays its first operation.
pub(crate) const SUBMIT_MAX: usize = 256;

/// What the kernel reads from behind the pointer in `io_pgetevents`' last argument, in bytes: its own `sigset_t`, not
/// the C library's.
const KERNEL_SIGSET_BYTES: usize = 8;

#[cfg(target_arch = "x86_64")]
const SYS_IO_PGETEVENTS: c_long = 333;
#[cfg(target_arch = "aarch64")]
const SYS_IO_PGETEVENTS: c_long = 292;

/// `struct iocb`: one operation. The kernel copies it at submit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Iocb {
    /// Comes back in the event.
    pub(crate) data: u64,
    /// Written by the kernel.
    pub(crate) key: u32,
    /// `RWF_*`.
    pub(crate) rw_flags: c_int,
    /// `COMMAND_*`.
    pub(crate) opcode: u16,
    pub(crate) request_priority: i16,
    pub(crate) descriptor: u32,
    /// Address of the buffer.
    pub(crate) buf: u64,
    pub(crate) len_bytes: u64,
    pub(crate) offset: i64,
    pub(crate) reserved: u64,
    pub(crate) flags: u32,
    pub(crate) event_descriptor: u32,
}

/// `struct io_event`: one completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IoEvent {
    /// [`Iocb::data`] of the operation.
    pub(crate) data: u64,
    /// Address of the caller's `iocb`; stale by now.
    pub(crate) iocb: u64,
    /// Bytes moved, or minus an `errno`.
    pub(crate) result: i64,
    /// Always 0.
    pub(crate) result2: i64,
}

/// `struct __aio_sigset`, the sixth argument of `io_pgetevents`.
#[repr(C)]
struct AioSigset {
    mask: *const sigset_t,
    size_bytes: usize,
}

const _: () = {
    assert!(size_of::<Iocb>() == 64);
    assert!(offset_of!(Iocb, rw_flags) == 12);
    assert!(offset_of!(Iocb, opcode) == 16);
    assert!(offset_of!(Iocb, descriptor) == 20);
    assert!(offset_of!(Iocb, buf) == 24);
    assert!(offset_of!(Iocb, offset) == 40);
    assert!(offset_of!(Iocb, event_descriptor) == 60);
    assert!(size_of::<IoEvent>() == 32);
    assert!(offset_of!(IoEvent, result) == 16);
    assert!(size_of::<AioSigset>() == 16);
    assert!(size_of::<libc::timespec>() == 16);
    assert!(size_of::<sigset_t>() >= KERNEL_SIGSET_BYTES);
};

/// A context of the kernel (`aio_context_t`). Its owner destroys it once.
#[derive(Debug)]
pub(crate) struct Context(c_ulong);

/// Makes a context with room for at least `slots` operations.
pub(crate) fn setup(slots: u32) -> Result<Context, Errno> {
    let mut id: c_ulong = 0;
    // SAFETY: the kernel writes the new context's number into `id`, which lives across the call.
    let answer = unsafe { libc::syscall(libc::SYS_io_setup, slots, &raw mut id) };
    check(answer).map(|_| Context(id))
}

/// Ends a context: cancels polls, waits for everything else, then frees it. Takes 20 to 50 ms.
pub(crate) fn destroy(context: &Context) -> Result<(), Errno> {
    // SAFETY: passes a number; the kernel answers EINVAL if it names no context of this process.
    let answer = unsafe { libc::syscall(libc::SYS_io_destroy, context.0) };
    check(answer).map(|_| ())
}

/// Starts operations in order until one is refused; returns how many were started, or the first one's error.
///
/// # Panics
/// If there are more than [`SUBMIT_MAX`].
///
/// # Safety
/// Every buffer that is named in `iocbs` must stay allocated, and for reads untouched, until the event with
/// the operation's `data` was reaped or the context was destroyed.
pub(crate) unsafe fn submit(context: &Context, iocbs: &[Iocb]) -> Result<usize, Errno> {
    assert!(iocbs.len() <= SUBMIT_MAX, "more operations than one submit takes");
    let mut pointers = [ptr::null::<Iocb>(); SUBMIT_MAX];
    for (pointer, iocb) in pointers.iter_mut().zip(iocbs) {
        *pointer = ptr::from_ref(iocb);
    }
    // SAFETY: the first `iocbs.len()` pointers are valid, and the kernel copies what they point to; the buffers
    // behind are the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_io_submit, context.0, iocbs.len(), pointers.as_ptr()) };
    check(answer)
}

/// How [`reap`] waits.
#[derive(Clone, Copy)]
pub(crate) struct Wait<'a> {
    /// Returns when this many events were reaped; at most the length of `events`.
    pub(crate) at_least: usize,
    /// Returns after this time; `None`: never.
    pub(crate) timeout: Option<Duration>,
    /// Replaces the thread's signal mask while it waits, atomically; `None`: the mask stays.
    pub(crate) mask: Option<&'a sigset_t>,
}

/// Reaps events with `io_pgetevents`; returns how many. [`Errno::INTERRUPTED`] only if there were none.
pub(crate) fn reap(context: &Context, events: &mut [IoEvent], wait: Wait<'_>) -> Result<usize, Errno> {
    let time = wait.timeout.map(timespec);
    let sigset =
        AioSigset { mask: wait.mask.map_or(ptr::null(), ptr::from_ref), size_bytes: KERNEL_SIGSET_BYTES };
    // SAFETY: the kernel writes at most `events.len()` events and reads `time` and `sigset`, all alive.
    let answer = unsafe {
        libc::syscall(
            SYS_IO_PGETEVENTS,
            context.0,
            wait.at_least.min(events.len()),
            events.len(),
            events.as_mut_ptr(),
            time.as_ref().map_or(ptr::null(), ptr::from_ref),
            &raw const sigset,
        )
    };
    check(answer)
}

/// As [`reap`] with `io_getevents`, for kernels and sandboxes without `io_pgetevents`; the mask is not used.
pub(crate) fn reap_unmasked(
    context: &Context,
    events: &mut [IoEvent],
    wait: Wait<'_>,
) -> Result<usize, Errno> {
    let time = wait.timeout.map(timespec);
    // SAFETY: the kernel writes at most `events.len()` events and reads `time`, both alive.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_io_getevents,
            context.0,
            wait.at_least.min(events.len()),
            events.len(),
            events.as_mut_ptr(),
            time.as_ref().map_or(ptr::null(), ptr::from_ref),
        )
    };
    check(answer)
}

/// The kernel does not check a timeout (a negative one waits for ever), so it is made valid here.
fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn check(answer: c_long) -> Result<usize, Errno> {
    usize::try_from(answer).map_err(|_| Errno::last())
}

/// Every signal, without those that the C library keeps for itself.
pub(crate) fn full_sigset() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is valid for writing a set.
    let answer = unsafe { libc::sigfillset(set.as_mut_ptr()) };
    assert_eq!(answer, 0, "filling a signal set cannot fail");
    // SAFETY: the call above has initialised it.
    unsafe { set.assume_init() }
}

/// Puts `signal` into the set.
///
/// # Panics
/// If there is no such signal.
pub(crate) fn add_signal(set: &mut sigset_t, signal: c_int) {
    // SAFETY: `set` is an initialised set.
    let answer = unsafe { libc::sigaddset(set, signal) };
    assert_eq!(answer, 0, "no signal {signal}");
}

/// Takes `signal` out of the set.
///
/// # Panics
/// If there is no such signal.
pub(crate) fn remove_signal(set: &mut sigset_t, signal: c_int) {
    // SAFETY: `set` is an initialised set.
    let answer = unsafe { libc::sigdelset(set, signal) };
    assert_eq!(answer, 0, "no signal {signal}");
}

/// Whether `signal` is in the set.
pub(crate) fn has_signal(set: &sigset_t, signal: c_int) -> bool {
    // SAFETY: `set` is an initialised set.
    let answer = unsafe { libc::sigismember(set, signal) };
    answer == 1
}

/// Adds `block` to the signals that this thread blocks (`None`: nothing); returns what it blocked before.
pub(crate) fn block_signals(block: Option<&sigset_t>) -> sigset_t {
    let mut before = MaybeUninit::uninit();
    let block = block.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `block` is null or an initialised set, `before` is valid for writing one.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, block, before.as_mut_ptr()) };
    assert_eq!(answer, 0, "blocking signals cannot fail");
    // SAFETY: the call above has initialised it.
    unsafe { before.assume_init() }
}

/// How many forks lie between this process and the first one that asked.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// The process in which a handle was made: a child of it must not use the handle, since the kernel's contexts, the
/// mapped ring and the threads stay with the parent.
///
/// Only `fork` is noticed, not a raw `clone`. One relaxed load of a counter that nothing writes but a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u64);

impl Process {
    /// This process.
    pub(crate) fn current() -> Process {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: the handler lives as long as the program and does one atomic addition, which is allowed in a
            // forked child. Should registering fail for want of memory, forks go unnoticed.
            unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
        });
        Process(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this still is that process.
    pub(crate) fn is_current(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }
}

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_env = "gnu")]
    fn iocb_is_laid_out_as_in_libc() {
        assert_eq!(size_of::<Iocb>(), size_of::<libc::iocb>());
        assert_eq!(offset_of!(Iocb, data), offset_of!(libc::iocb, aio_data));
        assert_eq!(offset_of!(Iocb, key), offset_of!(libc::iocb, aio_key));
        assert_eq!(offset_of!(Iocb, rw_flags), offset_of!(libc::iocb, aio_rw_flags));
        assert_eq!(offset_of!(Iocb, opcode), offset_of!(libc::iocb, aio_lio_opcode));
        assert_eq!(offset_of!(Iocb, request_priority), offset_of!(libc::iocb, aio_reqprio));
        assert_eq!(offset_of!(Iocb, descriptor), offset_of!(libc::iocb, aio_fildes));
        assert_eq!(offset_of!(Iocb, buf), offset_of!(libc::iocb, aio_buf));
        assert_eq!(offset_of!(Iocb, len_bytes), offset_of!(libc::iocb, aio_nbytes));
        assert_eq!(offset_of!(Iocb, offset), offset_of!(libc::iocb, aio_offset));
        assert_eq!(offset_of!(Iocb, flags), offset_of!(libc::iocb, aio_flags));
        assert_eq!(offset_of!(Iocb, event_descriptor), offset_of!(libc::iocb, aio_resfd));
    }

    #[test]
    fn a_context_of_no_slots_is_refused() {
        assert_eq!(setup(0).err(), Some(Errno::INVALID));
    }

    #[test]
    fn a_dead_context_is_refused() {
        let context = setup(1).expect("slots are free");
        destroy(&context).expect("the context is alive");
        assert_eq!(destroy(&context).err(), Some(Errno::INVALID));
        let wait = Wait { at_least: 0, timeout: Some(Duration::ZERO), mask: None };
        let mut events = [IoEvent::default(); 1];
        assert_eq!(reap(&context, &mut events, wait).err(), Some(Errno::INVALID));
        assert_eq!(reap_unmasked(&context, &mut events, wait).err(), Some(Errno::INVALID));
    }

    #[test]
    fn an_empty_context_times_out() {
        let context = setup(1).expect("slots are free");
        let wait = Wait { at_least: 1, timeout: Some(Duration::from_millis(1)), mask: None };
        let mut events = [IoEvent::default(); 1];
        assert_eq!(reap(&context, &mut events, wait), Ok(0));
        assert_eq!(reap_unmasked(&context, &mut events, wait), Ok(0));
        destroy(&context).expect("the context is alive");
    }
}
