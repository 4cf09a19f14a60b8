//! Gets as futures: values in memory are there at once, the others are read by the store's reactor, under any executor.
//!
//! ```text
//!   get_async -> SearchState: memory decides -> ready
//!                   | blocks to read, up to 64 for each future
//!                   v
//!                 reactor: as many as it has slots are in flight, the rest waits its turn -> wakes the task
//!                   | poll: check, decode, search; then ready, or the next run, and the next read
//! ```
//!
//! The task that polls drives the search of `multi_get` itself; the one thread of the reactor only moves completions. A get
//! is a `multi_get` of one key.
//!
//! Invariants: between two polls a future holds no lock and no guard, only counted references to the data that it reads; a
//! dropped future leaves its reads to the reactor, which keeps their buffers until the kernel is done with them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aio::{Reactor, Submission};
use arc_swap::Guard;
use bytes::Bytes;

use crate::api::handle::Handle;
use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::sync::shared::block_on;
use crate::read::multi_get::{EndedRead, ReadRequest, Reads, Search, SearchState, Show};
use crate::tree::superversion::Superversion;

/// The future of [`Keyspace::get_async`](crate::Keyspace::get_async): the value of a key, or `None`.
///
/// Any executor may poll it, and it may be dropped at any time: a read under way then ends by itself. It keeps the store
/// open, as an iterator does. After [`Db::close`](crate::Db::close) it ends with
/// [`Error::Closed`](crate::Error::Closed), in a forked child with an error.
///
/// # Panics
/// If it is polled again after its end.
///
/// # Examples
/// ```
/// use std::future::Future;
/// use std::pin::pin;
/// use std::sync::Arc;
/// use std::task::{Context, Poll, Wake, Waker};
///
/// /// A small executor, on the thread that calls it.
/// fn block_on<F: Future>(future: F) -> F::Output {
///     struct Unpark(std::thread::Thread);
///     impl Wake for Unpark {
///         fn wake(self: Arc<Self>) {
///             self.0.unpark();
///         }
///     }
///     let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
///     let mut future = pin!(future);
///     loop {
///         match future.as_mut().poll(&mut Context::from_waker(&waker)) {
///             Poll::Ready(output) => return output,
///             Poll::Pending => std::thread::park(),
///         }
///     }
/// }
///
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let path = dir.path().join("store");
/// # let db = esker::Db::open(&path)?;
/// # let ks = db.keyspace("default")?;
/// for i in 0..1000 {
///     # let ks = ks.with_durability(esker::Durability::Process);
///     ks.put(format!("key {i}"), i.to_string())?;
/// }
/// # db.close()?;
/// # let db = esker::Db::open(&path)?;
/// # let ks = db.keyspace("default")?;
/// // All thousand are under way before the first is waited for.
/// let gets: Vec<_> = (0..1000).map(|i| ks.get_async(format!("key {i}"))).collect();
/// let found = block_on(async {
///     let mut found = 0;
///     for (i, get) in gets.into_iter().enumerate() {
///         assert_eq!(get.await?.as_deref(), Some(i.to_string().as_bytes()));
///         found += 1;
///     }
///     Ok::<_, esker::Error>(found)
/// })?;
/// assert_eq!(found, 1000);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a future that is not awaited returns no value"]
pub struct Get(MultiGet);

/// The future of [`Keyspace::multi_get_async`](crate::Keyspace::multi_get_async): the values of many keys, in their order.
/// In everything else it behaves as [`Get`].
///
/// # Panics
/// If it is polled again after its end.
#[must_use = "a future that is not awaited returns no values"]
pub struct MultiGet(MultiGetState);

enum MultiGetState {
    /// The result is known.
    Ready(Result<Vec<Option<Bytes>>>),
    Reading(Box<Reading>),
    /// The output was returned.
    Over,
}

impl Get {
    /// The get of a single key, given by the search for it.
    pub(crate) fn of(one: MultiGet) -> Get {
        Get(one)
    }

    /// Waits for it on this thread, without an executor.
    ///
    /// # Errors
    /// Those of [`Keyspace::get_async`](crate::Keyspace::get_async).
    pub fn wait(self) -> Result<Option<Bytes>> {
        block_on(self)
    }
}

impl Future for Get {
    type Output = Result<Option<Bytes>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let one = |values: Vec<Option<Bytes>>| values.into_iter().next().flatten();
        Pin::new(&mut self.0).poll(task).map(|values| values.map(one))
    }
}

impl MultiGet {
    /// Answers the `keys` that memory decides, and hands over the reads of the rest. The keys were checked.
    pub(crate) fn start<K: AsRef<[u8]>>(
        handle: &Handle,
        superversion: Guard<Arc<Superversion>>,
        keys: &[K],
        snapshot: Seq,
    ) -> MultiGet {
        let mut values = vec![None; keys.len()];
        let mut search = SearchState::new(keys.len(), snapshot);
        let found = Copies(&mut values);
        Search { state: &mut search, superversion: &superversion, keys, found }.begin();
        if search.is_done() {
            return MultiGet(MultiGetState::Ready(Ok(values)));
        }
        let keys = keys.iter().map(|key| key.as_ref().into()).collect();
        let work = Work { superversion: Guard::into_inner(superversion), keys, values, search };
        match Reading::start(handle, work) {
            Ok(reading) => MultiGet(MultiGetState::Reading(Box::new(reading))),
            Err(error) => MultiGet::failed(error),
        }
    }

    /// Ends with this error.
    pub(crate) fn failed(error: Error) -> MultiGet {
        MultiGet(MultiGetState::Ready(Err(error)))
    }

    /// Waits for it on this thread, without an executor.
    ///
    /// # Errors
    /// Those of [`Keyspace::multi_get_async`](crate::Keyspace::multi_get_async).
    pub fn wait(self) -> Result<Vec<Option<Bytes>>> {
        block_on(self)
    }
}

impl Future for MultiGet {
    type Output = Result<Vec<Option<Bytes>>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        if let MultiGetState::Reading(reading) = &mut self.0 {
            let Poll::Ready(result) = reading.poll(task) else { return Poll::Pending };
            let values = std::mem::take(&mut reading.work.values);
            self.0 = MultiGetState::Ready(result.map(|()| values));
        }
        match std::mem::replace(&mut self.0, MultiGetState::Over) {
            MultiGetState::Ready(result) => Poll::Ready(result),
            MultiGetState::Reading(_) | MultiGetState::Over => unreachable!("polled again after its end"),
        }
    }
}

impl fmt::Debug for MultiGet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            MultiGetState::Ready(_) => write!(f, "MultiGet(ready)"),
            MultiGetState::Reading(reading) => {
                write!(f, "MultiGet({} reads under way)", reading.flights.len())
            }
            MultiGetState::Over => write!(f, "MultiGet(over)"),
        }
    }
}

/// Copies the values.
struct Copies<'a>(&'a mut [Option<Bytes>]);

impl Show for Copies<'_> {
    fn show(&mut self, at: usize, value: Option<&[u8]>) {
        self.0[at] = value.map(Bytes::copy_from_slice);
    }
}

/// A search that owns the data that it reads.
struct Work {
    superversion: Arc<Superversion>,
    keys: Vec<Box<[u8]>>,
    values: Vec<Option<Bytes>>,
    search: SearchState,
}

impl Work {
    fn searching(&mut self) -> Search<'_, Box<[u8]>, Copies<'_>> {
        let found = Copies(&mut self.values);
        Search { state: &mut self.search, superversion: &self.superversion, keys: &self.keys, found }
    }
}

/// The part of a future that waits for blocks.
struct Reading {
    handle: Handle,
    work: Work,
    reactor: Reactor,
    /// The reads under way, by their numbers.
    flights: Vec<(usize, Submission)>,
}

impl Reading {
    fn start(handle: &Handle, mut work: Work) -> Result<Reading> {
        let store = handle.store();
        let reactor = store.files.reactor(store.options.background)?;
        let mut flights = Vec::new();
        work.searching().submit_reads(&mut TaskReads {
            reactor: &reactor,
            flights: &mut flights,
            task: None,
        })?;
        Ok(Reading { handle: handle.clone(), work, reactor, flights })
    }

    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Result<()>> {
        match self.step(task) {
            Ok(()) if !self.work.search.is_done() => {
                self.turn(task);
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }

    /// Takes a turn as the driver of a reactor without a thread. A read of this future that has ended wakes the task. If
    /// only others have ended the task wakes itself, since no other task may be waiting.
    fn turn(&self, task: &Context<'_>) {
        if self.reactor.turn() && !self.flights.iter().any(|(_, flight)| flight.has_ended()) {
            task.waker().wake_by_ref();
        }
    }

    /// Goes on with the reads that completed. The ones that are still under way wake the task.
    fn step(&mut self, task: &mut Context<'_>) -> Result<()> {
        // Also for a fork: a thread of the parent may hold the locks of a flight there.
        self.handle.store().check_open()?;
        let reads = &mut TaskReads { reactor: &self.reactor, flights: &mut self.flights, task: Some(task) };
        self.work.searching().drive(reads)
    }
}

/// Reads through the store's reactor, which wakes the task.
struct TaskReads<'a, 'w> {
    reactor: &'a Reactor,
    flights: &'a mut Vec<(usize, Submission)>,
    /// `None` before the first poll.
    task: Option<&'a mut Context<'w>>,
}

impl Reads for TaskReads<'_, '_> {
    fn add(&mut self, request: ReadRequest) {
        self.flights
            .push((request.number, self.reactor.read(request.file, request.offset, request.len_bytes)));
    }

    fn submit(&mut self) -> Result<()> {
        Ok(())
    }

    fn completed(&mut self, ended_reads: &mut Vec<EndedRead>) -> Result<()> {
        let Some(task) = &mut self.task else { return Ok(()) };
        self.flights.retain_mut(|(number, flight)| match Pin::new(flight).poll(task) {
            Poll::Ready(result) => {
                let result = result.map_err(|refused| refused.error.into());
                ended_reads.push(EndedRead { number: *number, result });
                false
            }
            Poll::Pending => true,
        });
        Ok(())
    }
}
