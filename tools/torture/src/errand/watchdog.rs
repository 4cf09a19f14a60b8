//! Ends a process that does not end by itself.

use std::io;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process};

/// Runs a function while a process lives. Kills the process after `limit`; returns whether it did.
///
/// # Errors
/// The function failed.
pub(crate) fn with(process: u32, limit: Duration, what: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let (ended, waking) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let dog = scope.spawn(|| {
            let mut ended = ended.lock();
            let is_over = waking.wait_while_for(&mut ended, |ended| !*ended, limit).timed_out();
            if let (true, Some(process)) = (is_over, process) {
                // The process may have ended at this very moment.
                let _ = kill_process(process, Signal::KILL);
            }
            is_over
        });
        let done = what();
        *ended.lock() = true;
        waking.notify_all();
        let hung = dog.join().unwrap_or(false);
        done.map(|()| hung)
    })
}
