//! Drops many contexts at once. The kernel takes 20 to 50 ms to destroy one, most of it waiting, so threads that each
//! destroy a few end together.

use crate::queue::Queue;
use crate::signal::block_all_signals;

const MOST_THREADS: usize = 16;

/// Drops the queues, on several threads if there are several. Returns when all are dropped.
pub(super) fn drop_together(mut queues: Vec<Box<dyn Queue>>) {
    let each = queues.len().div_ceil(MOST_THREADS).max(1);
    std::thread::scope(|scope| {
        // The last part is left for this thread.
        while queues.len() > each {
            let part = queues.split_off(queues.len() - each);
            let thread = std::thread::Builder::new().name("aio-drop".to_owned());
            // Where no thread can be started the part is dropped here, with the closure.
            let _ = thread.spawn_scoped(scope, move || {
                block_all_signals();
                drop(part);
            });
        }
        drop(queues);
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::backend::Backend;
    use crate::layer::QueueLayer;
    use crate::sim::SimBackend;

    /// Notes the thread that drops it.
    #[derive(Debug)]
    struct Noted {
        queue: Box<dyn Queue>,
        threads: Arc<Mutex<Vec<std::thread::ThreadId>>>,
    }

    impl QueueLayer for Noted {
        fn below(&self) -> &dyn Queue {
            &*self.queue
        }

        fn below_mut(&mut self) -> &mut dyn Queue {
            &mut *self.queue
        }
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            self.threads.lock().push(std::thread::current().id());
        }
    }

    #[test]
    fn every_queue_is_dropped_by_one_of_at_most_sixteen_threads() {
        let sim = SimBackend::new(1);
        for (count, most_threads) in [(0, 0), (1, 1), (2, 2), (16, 16), (17, 9), (128, 16)] {
            let threads = Arc::new(Mutex::new(Vec::new()));
            let queue = || -> Box<dyn Queue> {
                Box::new(Noted { queue: sim.queue(1).unwrap(), threads: Arc::clone(&threads) })
            };
            drop_together((0..count).map(|_| queue()).collect());
            let threads = threads.lock();
            assert_eq!(threads.len(), count, "all are dropped when the call returns");
            assert_eq!(threads.iter().collect::<HashSet<_>>().len(), most_threads, "{count} queues");
        }
    }
}
