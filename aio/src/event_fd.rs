//! A counter in the kernel that completions can add to, for event loops that watch descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};

/// A counter in the kernel (`man 2 eventfd`) that completions can add to; clones share it.
#[derive(Clone, Debug)]
pub struct EventFd(pub(crate) Arc<OwnedFd>);

impl EventFd {
    /// A counter of 0. Reading it never blocks.
    ///
    /// # Errors
    /// No descriptor or no memory is left.
    pub fn new() -> Result<EventFd> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        made.map(|event| EventFd(Arc::new(event)))
            .map_err(|errno| Error::call("eventfd", Path::new("(eventfd)"), errno))
    }

    /// The count since the last call.
    #[must_use]
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&*self.0, &mut count) {
            Ok(_) => u64::from_le_bytes(count),
            Err(_) => 0,
        }
    }

    /// Adds 1. Callable from a signal handler.
    pub fn add(&self) {
        // Fails only when the counter is full.
        let _ = rustix::io::write(&*self.0, &1_u64.to_le_bytes());
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
