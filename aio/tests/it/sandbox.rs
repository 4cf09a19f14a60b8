//! A thread whose system calls are refused as a test says (`seccomp`).
#![expect(unsafe_code, reason = "a seccomp filter and its answers")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;

use libc::{c_long, sock_filter};
use rustix::event::{PollFd, PollFlags, poll};

/// `open` where it exists: C libraries use it or `openat`.
pub(crate) const OPENS: &[c_long] =
    &[if cfg!(target_arch = "x86_64") { 2 } else { libc::SYS_openat }, libc::SYS_openat];

/// A system call that waits for its judgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: c_long,
    pub(crate) arguments: [u64; 6],
}

/// Runs `body` on a thread of its own. Of each system call of that thread with one of these numbers, `judge` tells the
/// error that it gets instead of being made, or 0. `None`, with a line of text, where a thread cannot be put under such a
/// filter.
#[expect(clippy::print_stdout, reason = "says why a test has done nothing")]
pub(crate) fn sandboxed<T: Send>(
    numbers: &[c_long],
    mut judge: impl FnMut(Call) -> i32,
    body: impl FnOnce() -> T + Send,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let listener = listen(numbers);
            let is_filtered = listener.is_ok();
            sender.send(listener).unwrap();
            is_filtered.then(body)
        });
        match receiver.recv().unwrap() {
            Ok(listener) => while answer(&listener, &mut judge) {},
            Err(error) => println!("SKIPPED: no seccomp filter with a listener can be made here: {error}"),
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Puts the calling thread under a filter for the rest of its life.
fn listen(numbers: &[c_long]) -> std::io::Result<OwnedFd> {
    let step = |code: u32, jt: usize, k: u32| sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: u8::try_from(jt).unwrap(),
        jf: 0,
        k,
    };
    // The number of the call is the first word that a filter can load.
    let mut filter = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (at, number) in numbers.iter().enumerate() {
        let is_judged = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter.push(step(is_judged, numbers.len() - at, u32::try_from(*number).unwrap()));
    }
    filter.push(step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: passes numbers.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the kernel copies the program, which is alive.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    let Ok(descriptor @ 0..) = i32::try_from(answer) else { return Err(std::io::Error::last_os_error()) };
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Answers one call; false if the thread has ended.
fn answer(listener: &OwnedFd, judge: &mut impl FnMut(Call) -> i32) -> bool {
    let mut waiting = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut waiting, None)).unwrap();
    if !waiting[0].revents().contains(PollFlags::IN) {
        return false;
    }
    // SAFETY: all zeros is a valid value, and the one that the kernel asks for.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one value of this type.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) } != 0 {
        return true;
    }
    let errno = judge(Call { number: asked.data.nr.into(), arguments: asked.data.args });
    let goes_on = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap();
    let flags = if errno == 0 { goes_on } else { 0 };
    let mut told = libc::seccomp_notif_resp { id: asked.id, val: 0, error: -errno, flags };
    // SAFETY: the kernel reads one value of this type. It refuses the answer if the thread has ended meanwhile.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut told) };
    true
}
