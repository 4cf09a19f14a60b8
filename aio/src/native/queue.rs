//! The engine's [`Queue`] on a context of native AIO.
//!
//! A wait always enters the kernel: a trace of system calls then shows every one, and beside an operation
//! on a device the call costs nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Queue, Wake, WakeUp};
use crate::error::Result;
use crate::in_flight::{InFlight, Reaping, Settings, Shared, Waking};
use crate::operation::{Completion, Operation};
use crate::signal::SignalSet;

/// A context of asynchronous I/O.
#[derive(Debug)]
pub(crate) struct NativeQueue(InFlight);

impl NativeQueue {
    /// A queue for `slots` operations.
    ///
    /// # Panics
    /// If `slots` is 0.
    pub(crate) fn new(slots: usize, mask: Option<SignalSet>, shared: Shared) -> Result<NativeQueue> {
        let settings = Settings { slots, mask, reaping: Reaping::SystemCall, waking: Waking::Poll };
        InFlight::new(&settings, shared).map(NativeQueue)
    }
}

impl Queue for NativeQueue {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.0.submit(operations)
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        self.0.wait(at_least, deadline, completions)
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        self.0.waker()
    }
}
