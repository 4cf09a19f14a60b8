//! The kernel's side of native AIO: system calls and their structures, signal masks, and the fork counter.
//!
//! The calls use `libc::syscall`, without libaio. Every answer of the kernel becomes a `Result` here, so no other file
//! reads `errno`.
//!
//! Invariants: the structures have the kernel's layout (asserted at compile time below); only [`submit`] is unsafe,
//! because after no other call the kernel keeps an address.
#![expect(unsafe_code, reason = "system calls")]

use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
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
/// `IOCB_CMD_FSYNC`; buffer, offset, length and flags must be 0.
pub(crate) const COMMAND_SYNC: u16 = 2;
/// `IOCB_CMD_FDSYNC`; buffer, offset, length and flags must be 0.
pub(crate) const COMMAND_DATA_SYNC: u16 = 3;
/// `IOCB_CMD_POLL`; `buf` holds the events waited for. One shot.
pub(crate) const COMMAND_POLL: u16 = 5;
/// `IOCB_CMD_PREADV`; `buf` is the address of [`IoVec`]s, `len_bytes` their count.
pub(crate) const COMMAND_READ_VECTORED: u16 = 7;
/// `IOCB_CMD_PWRITEV`.
pub(crate) const COMMAND_WRITE_VECTORED: u16 = 8;

/// `IOCB_FLAG_RESFD`: the completion adds 1 to the eventfd in `event_descriptor`.
pub(crate) const FLAG_EVENT_DESCRIPTOR: u32 = 1;
/// `IOCB_FLAG_IOPRIO`: `request_priority` is used.
pub(crate) const FLAG_PRIORITY: u32 = 2;

/// The most operations that one [`submit`] hands over. The kernel holds all of them back from the device until the call
/// ends (its plug), so a long batch only delays its first operation. At depth 32, batches of 16 and more reached 43,000
/// random reads a second. Batches of up to 8 reached 52,000, as many as `fio`, which submits one by one at twice the
/// CPU time.
pub(crate) const SUBMIT_MAX: usize = 8;

/// The size of the kernel's `sigset_t` in bytes, which the last argument of `io_pgetevents` points to. The C library's
/// `sigset_t` is larger.
const KERNEL_SIGSET_BYTES: usize = 8;

#[cfg(target_arch = "x86_64")]
const SYS_IO_PGETEVENTS: c_long = 333;
#[cfg(target_arch = "aarch64")]
const SYS_IO_PGETEVENTS: c_long = 292;

/// `struct iocb`: one operation. The kernel copies it at submit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Iocb {
    /// Copied into the event.
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

/// `struct iovec`: one buffer of a vectored operation, as addresses so that it can be sent between threads. The kernel
/// copies the array at submit.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoVec {
    pub(crate) address: u64,
    pub(crate) len_bytes: u64,
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
    assert!(size_of::<IoVec>() == size_of::<libc::iovec>());
    assert!(offset_of!(IoVec, len_bytes) == offset_of!(libc::iovec, iov_len));
    assert!(size_of::<IoEvent>() == 32);
    assert!(offset_of!(IoEvent, result) == 16);
    assert!(size_of::<AioSigset>() == 16);
    assert!(size_of::<libc::timespec>() == 16);
    assert!(size_of::<sigset_t>() >= KERNEL_SIGSET_BYTES);
};

/// A context of the kernel (`aio_context_t`). A drop in the process that made it destroys it: that cancels polls, waits
/// for all other operations, and takes 20 to 50 ms.
#[derive(Debug)]
pub(crate) struct KernelContext {
    id: c_ulong,
    process: Process,
    /// Tests: the answer of a sandbox to every call that submits or reaps; 0 for none.
    #[cfg(test)]
    pub(crate) refusal: std::sync::atomic::AtomicI32,
    /// Tests: the work that the kernel does inside each call that submits.
    #[cfg(test)]
    pub(crate) work_ms: AtomicU64,
}

impl KernelContext {
    fn new(id: c_ulong) -> KernelContext {
        KernelContext {
            id,
            process: Process::current(),
            #[cfg(test)]
            refusal: std::sync::atomic::AtomicI32::new(0),
            #[cfg(test)]
            work_ms: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    fn check_sandbox(&self) -> Result<(), Errno> {
        match self.refusal.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(Errno(errno)),
        }
    }

    /// The kernel's number for it, which is the address of its completion ring where there is one.
    pub(crate) fn address(&self) -> usize {
        // Pointers are as wide as the kernel's longs, see the `cfg` above.
        usize::try_from(self.id).unwrap_or(0)
    }

    /// Whether this is the process that made it: in a forked child the number may be another context's.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process.is_current()
    }
}

impl Drop for KernelContext {
    fn drop(&mut self) {
        if self.process.is_current() {
            // A failure leaves the context to the kernel, which frees it with the process.
            let _ = destroy(self.id);
        }
    }
}

/// Makes a context with room for at least `slots` operations.
pub(crate) fn setup(slots: u32) -> Result<KernelContext, Errno> {
    let mut id: c_ulong = 0;
    // SAFETY: the kernel writes the new context's number into `id`, which lives across the call.
    let answer = unsafe { libc::syscall(libc::SYS_io_setup, slots, &raw mut id) };
    check(answer).map(|_| KernelContext::new(id))
}

fn destroy(id: c_ulong) -> Result<(), Errno> {
    // SAFETY: passes a number; the kernel answers EINVAL if it names no context of this process.
    let answer = unsafe { libc::syscall(libc::SYS_io_destroy, id) };
    check(answer).map(|_| ())
}

/// Starts the operations in the `slots` of `iocbs`, in order, until one is refused; returns how many were started, or
/// the first one's error. The kernel copies each `iocb` and its array of pieces before this returns, and keeps the
/// address of the `iocb` as the operation's name for [`cancel`].
///
/// # Panics
/// If there are more than [`SUBMIT_MAX`].
///
/// # Safety
/// Every buffer that is named in those `iocbs` must stay allocated, and for reads untouched, until the event with
/// the operation's `data` was reaped or the context was destroyed.
pub(crate) unsafe fn submit(
    context: &KernelContext,
    iocbs: &mut [Iocb],
    slots: &[usize],
) -> Result<usize, Errno> {
    assert!(slots.len() <= SUBMIT_MAX, "more operations than one submit takes");
    #[cfg(test)]
    context.check_sandbox()?;
    let mut pointers = [ptr::null_mut::<Iocb>(); SUBMIT_MAX];
    let (first, count) = (iocbs.as_mut_ptr(), iocbs.len());
    for (pointer, &slot) in pointers.iter_mut().zip(slots) {
        assert!(slot < count, "a slot is an index");
        *pointer = first.wrapping_add(slot);
    }
    // SAFETY: the first `slots.len()` pointers point to `iocbs` that are alive; the kernel copies them and writes
    // `key`. The caller guarantees the buffers that they name.
    let answer = unsafe { libc::syscall(libc::SYS_io_submit, context.id, slots.len(), pointers.as_ptr()) };
    let answer = check(answer);
    // After the call, so that a device is done within it.
    #[cfg(test)]
    std::thread::park_timeout(Duration::from_millis(context.work_ms.load(Ordering::Relaxed)));
    answer
}

/// Hands over no operation: tells whether the call is there at all.
pub(crate) fn submit_nothing(context: &KernelContext) -> Result<(), Errno> {
    // SAFETY: there is no operation.
    unsafe { submit(context, &mut [], &[]) }.map(|_| ())
}

/// Starts a poll that is done as soon as `descriptor` is readable; its event carries `data`. Safe in signal handlers.
pub(crate) fn submit_poll(
    context: &KernelContext,
    descriptor: BorrowedFd<'_>,
    data: u64,
) -> Result<(), Errno> {
    let poll = Iocb {
        data,
        opcode: COMMAND_POLL,
        descriptor: descriptor.as_raw_fd().cast_unsigned(),
        buf: u64::from(libc::POLLIN.cast_unsigned()),
        ..Iocb::default()
    };
    // SAFETY: a poll has no buffer, and the kernel looks up the descriptor before this returns.
    unsafe { submit(context, &mut [poll], &[0]) }.map(|_| ())
}

/// Asks the kernel to cancel the operation that was submitted from this address. It answers
/// [`Errno::IN_PROGRESS`] if it does: the event comes like any other.
pub(crate) fn cancel(context: &KernelContext, iocb: &mut Iocb) -> Result<(), Errno> {
    let mut unused = IoEvent::default();
    // SAFETY: the kernel reads the `key` behind the pointer and takes the pointer itself for a name; old kernels write
    // one event.
    let answer =
        unsafe { libc::syscall(libc::SYS_io_cancel, context.id, ptr::from_mut(iocb), &raw mut unused) };
    check(answer).map(|_| ())
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
pub(crate) fn reap(context: &KernelContext, events: &mut [IoEvent], wait: Wait<'_>) -> Result<usize, Errno> {
    #[cfg(test)]
    context.check_sandbox()?;
    let time = wait.timeout.map(timespec);
    let sigset =
        AioSigset { mask: wait.mask.map_or(ptr::null(), ptr::from_ref), size_bytes: KERNEL_SIGSET_BYTES };
    // SAFETY: the kernel writes at most `events.len()` events and reads `time` and `sigset`, all alive.
    let answer = unsafe {
        libc::syscall(
            SYS_IO_PGETEVENTS,
            context.id,
            wait.at_least.min(events.len()),
            events.len(),
            events.as_mut_ptr(),
            time.as_ref().map_or(ptr::null(), ptr::from_ref),
            &raw const sigset,
        )
    };
    check(answer)
}

/// [`reap`] with `io_getevents`, for kernels and sandboxes without `io_pgetevents`; the mask is not used.
pub(crate) fn reap_unmasked(
    context: &KernelContext,
    events: &mut [IoEvent],
    wait: Wait<'_>,
) -> Result<usize, Errno> {
    #[cfg(test)]
    context.check_sandbox()?;
    let time = wait.timeout.map(timespec);
    // SAFETY: the kernel writes at most `events.len()` events and reads `time`, both alive.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_io_getevents,
            context.id,
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

/// The flags of `struct fsxattr`, which ext4, XFS and some others have (`FS_IOC_FSGETXATTR`).
pub(crate) fn extended_flags(descriptor: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut words = [0_u32; 7];
    // SAFETY: the kernel writes 28 bytes, which `words` has.
    check(unsafe { libc::ioctl(descriptor.as_raw_fd(), 0x801C_581F, words.as_mut_ptr()) }.into())?;
    Ok(words[0])
}

/// Whether [`ticks`] reads a counter.
#[cfg(test)]
pub(crate) const HAS_TICKS: bool = cfg!(target_arch = "x86_64");

/// The processor's time stamp counter; 0 on other architectures than x86-64.
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every processor of this architecture has the instruction.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Whether all pages of a range are mapped in this process.
pub(crate) fn is_mapped(address: usize, len_bytes: usize) -> bool {
    /// More pages than any ring has; bounds the array for the answer.
    const PAGES_MAX: usize = 1 << 16;
    let page = page_bytes();
    if address == 0 || !address.is_multiple_of(page) || len_bytes.div_ceil(page) > PAGES_MAX {
        return false;
    }
    let mut resident = vec![0_u8; len_bytes.div_ceil(page)];
    let first = ptr::with_exposed_provenance_mut(address);
    // SAFETY: the kernel writes one byte for each page of the range, and does not access the range itself.
    unsafe { libc::mincore(first, len_bytes, resident.as_mut_ptr()) == 0 }
}

/// Keeps pages out of forked children; false if the kernel refuses.
pub(crate) fn hide_from_children(address: usize, len_bytes: usize) -> bool {
    let first = ptr::with_exposed_provenance_mut(address);
    // SAFETY: changes the effect of a fork on the pages, not their content.
    let answer =
        unsafe { libc::madvise(first, len_bytes.next_multiple_of(page_bytes()), libc::MADV_DONTFORK) };
    answer == 0
}

fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// All signals except those that the C library reserves.
pub(crate) fn full_sigset() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is valid for writing a set.
    let answer = unsafe { libc::sigfillset(set.as_mut_ptr()) };
    assert_eq!(answer, 0, "filling a signal set cannot fail");
    // SAFETY: the call above has initialised it.
    unsafe { set.assume_init() }
}

/// No signals.
pub(crate) fn empty_sigset() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is valid for writing a set.
    let answer = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    assert_eq!(answer, 0, "emptying a signal set cannot fail");
    // SAFETY: the call above has initialised it.
    unsafe { set.assume_init() }
}

/// Makes sure that a signal has a handler, so that it neither kills the process nor is ignored: one that has its default
/// action gets a handler that does nothing.
pub(crate) fn handle_signal(signal: c_int) -> Result<(), Errno> {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the action of a signal, and `now` is valid for writing one.
    check(unsafe { libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) }.into())?;
    // SAFETY: all zeros is a valid `sigaction`, and the call has filled it.
    let mut action = unsafe { now.assume_init() };
    match action.sa_sigaction {
        libc::SIG_DFL => {}
        libc::SIG_IGN => return Err(Errno::INVALID),
        _ => return Ok(()),
    }
    action.sa_sigaction = do_nothing as extern "C" fn(c_int) as usize;
    action.sa_flags = 0;
    // SAFETY: the handler lives as long as the program and does nothing.
    check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }.into()).map(|_| ())
}

extern "C" fn do_nothing(_signal: c_int) {}

/// The kernel's number of the calling thread.
pub(crate) fn this_thread() -> c_int {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

/// Sends a signal to one thread of this process.
pub(crate) fn signal_thread(thread: c_int, signal: c_int) {
    // SAFETY: passes numbers. The call cannot fail: the thread exists, and so does the signal.
    unsafe {
        libc::syscall(libc::SYS_tgkill, rustix::process::getpid().as_raw_nonzero().get(), thread, signal)
    };
}

/// Consumes one pending signal of the set of the calling thread, if there is one.
pub(crate) fn take_pending(set: &sigset_t) {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads the set and the time; the null pointer asks for no information about the signal.
    unsafe { libc::sigtimedwait(set, ptr::null_mut(), &raw const at_once) };
}

/// Adds `signal` to the set.
///
/// # Panics
/// If there is no such signal.
pub(crate) fn add_signal(set: &mut sigset_t, signal: c_int) {
    // SAFETY: `set` is an initialised set.
    let answer = unsafe { libc::sigaddset(set, signal) };
    assert_eq!(answer, 0, "no signal {signal}");
}

/// Removes `signal` from the set.
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

/// Adds `block` to the signals that this thread blocks (`None`: none). Returns the signals that it blocked before.
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

/// The process in which a handle was made. A forked child must not use the handle, since the kernel's contexts, the
/// mapped ring and the threads belong to the parent.
///
/// Only `fork` is noticed, not a raw `clone`. A check costs one relaxed load of a counter that only a fork writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u64);

impl Process {
    /// This process.
    pub(crate) fn current() -> Process {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: the handler lives as long as the program and does one atomic addition, which is allowed in a
            // forked child. If registering fails for lack of memory, forks are not noticed.
            unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
        });
        Process(FORKS.load(Ordering::Relaxed))
    }

    /// Whether the calling process is that process.
    pub(crate) fn is_current(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }
}

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Makes a fault for writing in each page of a range, and changes nothing. The kernel answers [`Errno::FAULT`] where a store
/// would be a bus error. Stores of other threads at the same time are not lost: the kernel adds bits to a word atomically.
///
/// The kernel's call for this purpose (`MADV_POPULATE_WRITE`, Linux 5.14) takes a third of the time, 8 µs for 64 pages
/// instead of 26. This one is in every kernel and sandbox that runs locks.
pub(crate) fn touch_pages(address: usize, len_bytes: usize) -> Result<(), Errno> {
    /// `FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0)`: adds no bits.
    const ADD_NO_BITS: c_int = libc::FUTEX_OP_OR << 28;
    let first = address - address % page_bytes();
    for page in (first..address + len_bytes).step_by(page_bytes()) {
        let word = ptr::with_exposed_provenance_mut::<u32>(page);
        let operation = libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the kernel changes no bit of the word, and answers an error if it is not memory of this process. It
        // would wake threads that wait for the word, of which there are none.
        let answer =
            unsafe { libc::syscall(libc::SYS_futex, word, operation, 0, 0_usize, word, ADD_NO_BITS) };
        check(answer)?;
    }
    Ok(())
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
    fn an_invalid_context_is_refused() {
        // A number that was never valid. That of a destroyed context may belong to another test's context by now.
        let context = KernelContext::new(4096);
        assert_eq!(destroy(context.id).err(), Some(Errno::INVALID));
        let wait = Wait { at_least: 0, timeout: Some(Duration::ZERO), mask: None };
        let mut events = [IoEvent::default(); 1];
        assert_eq!(reap(&context, &mut events, wait).err(), Some(Errno::INVALID));
        assert_eq!(reap_unmasked(&context, &mut events, wait).err(), Some(Errno::INVALID));
    }

    #[test]
    fn touched_pages_keep_their_bytes_and_absent_ones_are_told() {
        let page = page_bytes();
        let mut map = memmap2::MmapMut::map_anon(3 * page).expect("memory");
        map.fill(0xA7);
        let first = map.as_ptr().expose_provenance();
        assert_eq!(touch_pages(first, 3 * page), Ok(()));
        assert_eq!(touch_pages(first + page - 8, 16), Ok(()), "of two pages");
        assert!(map.iter().all(|&byte| byte == 0xA7));
        let map = map.make_read_only().expect("the kernel changes its own memory");
        assert_eq!(touch_pages(map.as_ptr().expose_provenance(), page), Err(Errno::FAULT));
    }

    #[test]
    fn an_empty_context_times_out() {
        let context = setup(1).expect("slots are free");
        let wait = Wait { at_least: 1, timeout: Some(Duration::from_millis(1)), mask: None };
        let mut events = [IoEvent::default(); 1];
        assert_eq!(reap(&context, &mut events, wait), Ok(0));
        assert_eq!(reap_unmasked(&context, &mut events, wait), Ok(0));
    }
}
