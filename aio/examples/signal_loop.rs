//! An event loop that ends cleanly on SIGINT or SIGTERM: `signal_loop FILE`.
//!
//! The signals are blocked, so that they arrive nowhere, and read as data: a `signalfd` is polled by the same context that
//! does the reads. So there is no handler, nothing that must be safe in one, and no window in which a signal is lost.
//! Programs that have a handler already give the context a mask instead, see `ContextBuilder::mask`, or let the handler
//! call `EventFd::add`.
#![expect(unsafe_code, reason = "makes a signalfd")]
#![expect(clippy::print_stdout, reason = "a program")]

use std::collections::VecDeque;
use std::error::Error;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use aio::{Backend, Buf, Context, NativeBackend, Op, OpKind, OpenMode, Readiness, SignalSet, Wake};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: signal_loop FILE")?;
    let signals = signal_descriptor(&[libc::SIGINT, libc::SIGTERM])?;
    let backend = NativeBackend::new();
    let file = backend.open(Path::new(&path), OpenMode::Read)?;
    let mut context = Context::builder().slots(8).build()?;
    let mut ops = VecDeque::from([Op::poll(signals, Readiness::READABLE)]);
    ops.push_back(Op::read(&file, 0, Buf::zeroed(4096)));
    let mut done = Vec::new();
    let (mut reads, mut is_over) = (0_u64, false);
    while !is_over {
        let _ = context.submit(&mut ops)?;
        if context.wait_for(1, Duration::from_secs(1), &mut done)? == Wake::TimedOut {
            println!("nothing for a second");
        }
        for done in done.drain(..) {
            if done.op.kind() == OpKind::Poll {
                is_over = true;
            } else {
                reads += 1;
                ops.push_back(Op::read(&file, 0, done.whole()?.into_buf()));
            }
        }
    }
    // Dropping the context waits for what is in flight.
    drop(context);
    println!("told to end after {reads} reads");
    Ok(())
}

/// A descriptor that is readable when one of the signals has come; they are blocked on this thread and those it starts.
fn signal_descriptor(signals: &[i32]) -> Result<OwnedFd, Box<dyn Error>> {
    signals.iter().fold(SignalSet::none(), |set, &signal| set.with(signal)).block();
    // SAFETY: all zeros is a valid set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for &signal in signals {
        // SAFETY: `set` is a valid set.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: reads the set.
    let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
