//! Gets that are held as futures: polled now and then, dropped half-way, pending while the store changes, closes or crashes.
//!
//! Invariant: a task is polled again only after it was woken. On a machine without threads the poll itself moves the reads
//! of the store, so a future that is pending after a poll has woken its task, or nothing ever will.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use esker::{Get, MultiGet};

use crate::report::{Check, Failure};

/// The values of all keys of one group of gets.
pub(crate) type Values = Vec<Option<Bytes>>;

/// A future that takes more polls than this never ends: each poll ends a read, or meets an interrupted wait.
const MOST_POLLS: usize = 100_000;

/// Gets under way, and the answers that they may give.
pub(crate) struct HeldGets {
    future: Pin<Box<dyn Future<Output = esker::Result<Values>> + Send>>,
    woken: Arc<Woken>,
    /// Whether other threads can wake it.
    has_threads: bool,
    pub(crate) views: Vec<Values>,
}

/// Gets of one keyspace whose answers cannot be judged yet.
#[derive(Debug)]
pub(crate) struct ColdGets {
    pub(crate) slot: usize,
    pub(crate) keys: Vec<Bytes>,
    pub(crate) gets: HeldGets,
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for HeldGets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldGets({:?})", self.views)
    }
}

impl HeldGets {
    /// One future of all keys.
    pub(crate) fn together(gets: MultiGet, views: Vec<Values>, has_threads: bool) -> HeldGets {
        HeldGets { future: Box::pin(gets), woken: Arc::default(), has_threads, views }
    }

    /// A future that has ended.
    pub(crate) fn answered(values: Values) -> HeldGets {
        let future = Box::pin(std::future::ready(Ok(values)));
        HeldGets { future, woken: Arc::default(), has_threads: false, views: Vec::new() }
    }

    /// A future of each key; the first that fails is the end of all.
    pub(crate) fn each(gets: Vec<Get>, views: Vec<Values>, has_threads: bool) -> HeldGets {
        let all = async move {
            let mut values = Vec::with_capacity(gets.len());
            for get in gets {
                values.push(get.await?);
            }
            Ok(values)
        };
        HeldGets { future: Box::pin(all), woken: Arc::default(), has_threads, views }
    }

    /// Polls once. `None`: it is pending, and was woken to be polled again.
    ///
    /// # Errors
    /// It is pending, and nothing will wake it.
    pub(crate) fn poll(&mut self) -> Check<Option<esker::Result<Values>>> {
        self.woken.0.store(false, Ordering::Relaxed);
        let task = Waker::from(Arc::clone(&self.woken));
        match self.future.as_mut().poll(&mut Context::from_waker(&task)) {
            Poll::Ready(values) => Ok(Some(values)),
            Poll::Pending if self.has_threads || self.woken.0.load(Ordering::Relaxed) => Ok(None),
            Poll::Pending => Err(Failure::new("a future is pending, and nothing will wake its task")),
        }
    }

    /// Polls until the end.
    ///
    /// # Errors
    /// It never ends.
    pub(crate) fn finish(mut self) -> Check<esker::Result<Values>> {
        if self.has_threads {
            return Ok(aio::block_on(self.future));
        }
        for _ in 0..MOST_POLLS {
            if let Some(values) = self.poll()? {
                return Ok(values);
            }
        }
        Err(Failure::new(format!("a future did not end in {MOST_POLLS} polls")))
    }
}
