//! An event loop that ends cleanly on SIGINT or SIGTERM: `signal_loop FILE`.
//!
//! The handler does the one thing that is safe in a handler and cannot be lost: it adds to an eventfd, which the same
//! context polls that does the reads. It may run on any thread. A `signalfd` will not do: a worker of the kernel looks
//! whether it is ready, and sees the worker's own signals, so the poll never completes. A program whose signals all go to
//! the loop's thread can give the context a mask instead, see `ContextBuilder::mask`.
#![expect(unsafe_code, reason = "installs a signal handler")]
#![expect(clippy::print_stdout, reason = "a program")]

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use aio::{
    Backend, Buf, Context, EventFd, NativeBackend, OpenMode, Operation, OperationKind, Readiness, Wake,
};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: signal_loop FILE")?;
    let event = EventFd::new()?;
    let signals = STOP.get_or_init(|| event);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        handle(signal)?;
    }
    let backend = NativeBackend::new();
    let file = backend.open(Path::new(&path), OpenMode::Read)?;
    let mut context = Context::builder().slots(8).build()?;
    let mut operations = VecDeque::from([Operation::poll(signals, Readiness::READABLE)]);
    operations.push_back(Operation::read(&file, 0, Buf::zeroed(4096)));
    let mut done = Vec::new();
    let (mut reads, mut is_over) = (0_u64, false);
    while !is_over {
        let _ = context.submit(&mut operations)?;
        if context.wait_for(1, Duration::from_secs(1), &mut done)? == Wake::TimedOut {
            println!("nothing for a second");
        }
        for done in done.drain(..) {
            if done.operation.kind() == OperationKind::Poll {
                is_over = true;
            } else {
                reads += 1;
                operations.push_back(Operation::read(&file, 0, done.whole()?.into_buf()));
            }
        }
    }
    // Dropping the context waits for the operations in flight.
    drop(context);
    println!("told to end after {reads} reads");
    Ok(())
}

/// The counter that the handler adds to.
static STOP: OnceLock<EventFd> = OnceLock::new();

extern "C" fn stop(_signal: libc::c_int) {
    if let Some(event) = STOP.get() {
        event.add();
    }
}

/// Installs the handler.
fn handle(signal: i32) -> Result<(), Box<dyn Error>> {
    // SAFETY: all zeros is a valid action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = stop as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler lives as long as the program, and only loads an atomic and writes to an eventfd.
    let answer = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
