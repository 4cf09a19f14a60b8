//! The settings of a context, and the state that a backend shares with its queues.

use std::sync::Arc;

use crate::clock::Clock;
use crate::fall_back::FallBacks;
use crate::signal::SignalSet;
use crate::sys::Process;
use crate::thread_queue::Team;
use crate::trace::Trace;
use crate::waker::PolledEvent;

/// How completions are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reaping {
    /// Completions that are ready are read from the completion ring, without a system call; a system call is made only
    /// to sleep. Falls back to [`Reaping::SystemCall`] where the ring has no layout that this crate knows, and for
    /// contexts with a signal mask, whose waits must enter the kernel to let signals in.
    #[default]
    Ring,
    /// Always by `io_pgetevents`, so that tracers, fault injectors and sandboxes see every wait; by `io_getevents`
    /// where the kernel (before Linux 4.18) or a tool (valgrind) has no such call.
    SystemCall,
    /// Always by `io_getevents`. Signal masks are not used, so a signal can arrive unseen just before the sleep.
    OldSystemCall,
}

/// How other threads end a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waking {
    /// The waker submits a poll operation to the context, which completes at once: a wake-up is one more completion. A
    /// signal handler may call [`WakeUp::wake`](crate::WakeUp::wake).
    #[default]
    Poll,
    /// The waker sends this signal to the waiting thread. The thread blocks it from its first wait on and lets it in
    /// only inside `io_pgetevents` (Linux 4.18), so it cannot be lost. The signal must have no other use; if it has its
    /// default action it gets a handler that does nothing. A signal handler must not call [`WakeUp::wake`](crate::WakeUp::wake).
    Signal(i32),
}

/// The settings of a context.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) slots: usize,
    /// The thread's signal mask while it waits.
    pub(crate) mask: Option<SignalSet>,
    pub(crate) reaping: Reaping,
    pub(crate) waking: Waking,
}

/// State that a backend shares with its contexts.
#[derive(Clone, Debug)]
pub(crate) struct BackendState {
    pub(crate) clock: Clock,
    pub(crate) trace: Arc<Trace>,
    pub(crate) process: Process,
    pub(crate) fall_backs: FallBacks,
    pub(crate) event: PolledEvent,
    pub(crate) team: Arc<Team>,
}

impl BackendState {
    /// For this process; the clock starts at 0.
    pub(crate) fn new() -> BackendState {
        BackendState {
            clock: Clock::start(),
            trace: Arc::default(),
            process: Process::current(),
            fall_backs: FallBacks::default(),
            event: PolledEvent::default(),
            team: Arc::default(),
        }
    }
}
