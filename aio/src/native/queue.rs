//! The engine's [`Queue`] on a context of native AIO.
//!
//! Invariant: an [`Operation`] names no memory but its buffer, which it owns.
//!
//! A wait always enters the kernel: a trace of system calls then shows every one, and beside an operation
//! on a device the call costs nothing.
#![expect(unsafe_code, reason = "promises to the context that buffers stay where they are")]

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Action, Completion, Operation, Queue, Wake, WakeUp};
use crate::error::{Errno, Error, Result};
use crate::in_flight::{InFlight, Reaping, Settings, Shared, Waking};
use crate::payload::Payload;
use crate::signal::SignalSet;
use crate::sys::{self, Iocb};
use crate::trace::Kind;

/// A context of asynchronous I/O.
#[derive(Debug)]
pub(crate) struct NativeQueue(InFlight<Operation>);

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
        match (self.0.submit(operations)?, operations.front()) {
            ((0, Some(errno)), Some(refused)) => Err(refused.refused(errno)),
            // What was taken must be reported; the refused one is at the front for the next call.
            ((taken, _), _) => Ok(taken),
        }
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

// SAFETY: the buffer is heap memory owned by the `Operation`, which the context gives out no reference to.
unsafe impl Payload for Operation {
    type Completion = Completion;

    fn iocb(&self) -> Iocb {
        let mut iocb = Iocb {
            descriptor: self.file.descriptor().as_raw_fd().cast_unsigned(),
            opcode: sys::COMMAND_DATA_SYNC,
            ..Iocb::default()
        };
        let (offset, buf) = match &self.action {
            Action::Read { offset, buf } => {
                iocb.opcode = sys::COMMAND_READ;
                (offset, buf)
            }
            Action::Write { offset, buf } => {
                iocb.opcode = sys::COMMAND_WRITE;
                (offset, buf)
            }
            Action::WriteDurable { offset, buf } => {
                iocb.opcode = sys::COMMAND_WRITE;
                iocb.rw_flags = libc::RWF_DSYNC;
                (offset, buf)
            }
            Action::Sync => return iocb,
        };
        (iocb.buf, iocb.len_bytes, iocb.offset) = (buf.address(), buf.len() as u64, offset.cast_signed());
        iocb
    }

    fn kind(&self) -> Kind {
        Operation::kind(self)
    }

    fn refused(&self, errno: Errno) -> Error {
        Error::Os {
            call: "io_submit",
            path: self.file.path().to_owned(),
            offset: self.offset(),
            len_bytes: self.len_bytes(),
            errno,
        }
    }

    fn complete(self, result: std::result::Result<usize, Errno>) -> Completion {
        Completion { operation: self, result }
    }
}
