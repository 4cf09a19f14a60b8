//! The machine, which notes how many operations were in flight whenever a thread waited for some of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::{Backend, BackendLayer, Completion, NativeBackend, Queue, QueueLayer, Wake};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Watched {
    machine: NativeBackend,
    in_flight: Arc<Mutex<Vec<usize>>>,
}

impl Watched {
    /// The numbers of operations in flight at the waits since the last call.
    pub(crate) fn waits(&self) -> Vec<usize> {
        std::mem::take(&mut *self.in_flight.lock().unwrap())
    }
}

impl BackendLayer for Watched {
    fn below(&self) -> &dyn Backend {
        &self.machine
    }

    fn queue(&self, slots: usize) -> aio::Result<Box<dyn Queue>> {
        let below = Backend::queue(&self.machine, slots)?;
        Ok(Box::new(WatchedQueue { below, in_flight: Arc::clone(&self.in_flight) }))
    }
}

#[derive(Debug)]
struct WatchedQueue {
    below: Box<dyn Queue>,
    in_flight: Arc<Mutex<Vec<usize>>>,
}

impl QueueLayer for WatchedQueue {
    fn below(&self) -> &dyn Queue {
        &*self.below
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.below
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> aio::Result<Wake> {
        if at_least > 0 {
            self.in_flight.lock().unwrap().push(self.below.in_flight());
        }
        self.below.wait(at_least, deadline, completions)
    }
}
