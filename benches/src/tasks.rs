//! A few futures at once on one thread, each polled when it was woken: the work of an application's executor.
//!
//! Invariant: a task stands in the list of those woken at most as often as it was woken, so every wake leads to a poll.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use parking_lot::Mutex;

/// Futures under way, each with a note on its key.
pub(crate) struct Tasks<'a, T, O> {
    tasks: Vec<Task<'a, T, O>>,
    woken: Arc<Woken>,
}

type Begun<'a, O> = Pin<Box<dyn Future<Output = O> + Send + 'a>>;

struct Task<'a, T, O> {
    note: T,
    future: Begun<'a, O>,
    waker: Waker,
}

/// Which tasks are to be polled, and the thread that does so.
#[derive(Debug)]
struct Woken {
    tasks: Mutex<VecDeque<usize>>,
    thread: Thread,
}

struct Wakes {
    number: usize,
    woken: Arc<Woken>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.tasks.lock().push_back(self.number);
        self.woken.thread.unpark();
    }
}

impl<'a, T, O> Tasks<'a, T, O> {
    /// None yet; this thread is the one that polls.
    pub(crate) fn new() -> Tasks<'a, T, O> {
        let woken = Woken { tasks: Mutex::default(), thread: std::thread::current() };
        Tasks { tasks: Vec::new(), woken: Arc::new(woken) }
    }

    /// Fills up to `count` futures made by `begin`, waits until one has ended, replaces it, and returns its result.
    pub(crate) fn next(&mut self, count: usize, mut begin: impl FnMut() -> (T, Begun<'a, O>)) -> (T, O) {
        while self.tasks.len() < count {
            let number = self.tasks.len();
            let waker = Waker::from(Arc::new(Wakes { number, woken: Arc::clone(&self.woken) }));
            let (note, future) = begin();
            self.tasks.push(Task { note, future, waker });
            self.woken.tasks.lock().push_back(number);
        }
        loop {
            let woken = self.woken.tasks.lock().pop_front();
            let Some(task) = woken.and_then(|number| self.tasks.get_mut(number)) else {
                std::thread::park();
                continue;
            };
            if let Poll::Ready(output) = task.future.as_mut().poll(&mut Context::from_waker(&task.waker)) {
                let (note, future) = begin();
                let before = std::mem::replace(&mut task.note, note);
                task.future = future;
                // It is polled for the first time when its turn comes.
                task.waker.wake_by_ref();
                return (before, output);
            }
        }
    }
}
