//! One context of asynchronous I/O of one thread, shared by the streams of its job.
//!
//! ```text
//!                submit                     reap, wait                    take
//!   operation ----------> slot: under way -------------> slot: done ------------> completion
//!                              | ticket dropped                | ticket dropped
//!                              v                               v
//!                         abandoned --- reaped ----------> free again, the buffer goes back to its pool
//! ```
//!
//! The thread that uses the streams does everything itself: it submits, it reaps without waiting whenever it is here, and it
//! sleeps only for a completion that it needs. Completions come in any order.
//!
//! Invariants: a slot is free again only after its operation was reaped; when the last ticket and the last stream are gone,
//! the lane waits for the operations in flight, so that the context is idle when it is lent again. The lane of a scan ends
//! with the store, even if the scan does not: it keeps neither its context nor a file then.

use std::collections::VecDeque;
use std::sync::Arc;

use aio::{Completion, Operation, OperationKind};

use crate::base::error::{Error, Result};
use crate::base::sync::Ordering;
use crate::base::sync::shared::{AtomicU64, Mutex};
use crate::io::background::JobKind;
use crate::io::contexts::{Holder, Lent, Size};
use crate::io::files::Files;

/// A context and the operations that were handed to it. One thread uses it at a time.
#[derive(Debug)]
pub(crate) struct Lane {
    files: Arc<Files>,
    /// `None`: a scan.
    job: Option<JobKind>,
    /// Bytes of operations that a job has submitted.
    moved: Moved,
    state: Mutex<LaneState>,
}

/// See [`Lane::moved_bytes`] and [`Lane::written_bytes`].
#[derive(Debug, Default)]
struct Moved {
    all: AtomicU64,
    written: AtomicU64,
}

#[derive(Debug)]
struct LaneState {
    /// `None` once the lane has ended.
    queue: Option<Lent>,
    slots: Vec<OperationState>,
    free: Vec<usize>,
    /// Syncs in flight. They do not count in the depth: one of them may take as long as all other operations of the job.
    syncs: usize,
    /// Room for completions.
    reaped: Vec<Completion>,
}

/// The state of one operation.
#[derive(Debug)]
enum OperationState {
    Free,
    UnderWay,
    /// Under way, and its ticket was dropped.
    Abandoned,
    Done(Completion),
}

/// An operation that was submitted. Dropping it abandons the result, not the operation.
#[derive(Debug)]
pub(crate) struct Ticket {
    lane: Arc<Lane>,
    /// `None` when the completion was taken.
    slot: Option<usize>,
}

impl Lane {
    /// A lane of a job. Its operations give way, see [`BackgroundIo`](crate::io::background::BackgroundIo).
    ///
    /// # Errors
    /// Those of [`Contexts::lend_to_job`](crate::io::contexts::Contexts::lend_to_job).
    pub(crate) fn new(files: &Arc<Files>, job: JobKind) -> Result<Arc<Lane>> {
        let queue = files.contexts().lend_to_job(Size::Wide)?;
        files.background().begin_job();
        Ok(Lane::on(files, Some(job), queue))
    }

    /// A lane that a scan may hold while its user does something else; `None` if the scan should read without one.
    pub(crate) fn of_scan(files: &Arc<Files>, operations: usize) -> Option<Arc<Lane>> {
        let lane = Lane::on(files, None, files.contexts().try_lend(Size::of(operations))?);
        let holder: Arc<dyn Holder> = Arc::<Lane>::clone(&lane);
        files.contexts().register(Arc::downgrade(&holder));
        Some(lane)
    }

    fn on(files: &Arc<Files>, job: Option<JobKind>, queue: Lent) -> Arc<Lane> {
        let (slots, free, reaped) = (Vec::new(), Vec::new(), Vec::new());
        let state = LaneState { queue: Some(queue), slots, free, syncs: 0, reaped };
        Arc::new(Lane { files: Arc::clone(files), job, moved: Moved::default(), state: Mutex::new(state) })
    }

    /// The files that its operations work on.
    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// Bytes that the job has read and written so far, those in flight included.
    pub(crate) fn moved_bytes(&self) -> u64 {
        self.moved.all.load(Ordering::Relaxed)
    }

    /// Bytes that the job has written so far, those in flight included.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.moved.written.load(Ordering::Relaxed)
    }

    /// Hands an operation to the kernel. Waits while the context is full, or a job has to give way.
    ///
    /// # Errors
    /// It was refused, or the context is dead.
    pub(crate) fn submit(self: &Arc<Self>, operation: Operation) -> Result<Ticket> {
        let depth = self.give_way(&operation);
        let is_sync = is_sync(&operation);
        let mut state = self.state.lock();
        while !is_sync && state.in_flight() >= depth.saturating_add(state.syncs) {
            state.reap(1)?;
        }
        let slot = state.submit(operation)?;
        state.syncs += usize::from(is_sync);
        Ok(Ticket { lane: Arc::clone(self), slot: Some(slot) })
    }

    /// Waits for the limit on background I/O; returns how many operations may be in flight.
    fn give_way(&self, operation: &Operation) -> usize {
        let backend = &**self.files.backend();
        let Some(job) = self.job else {
            self.files.note_read();
            return usize::MAX;
        };
        let len_bytes = operation.len_bytes() as u64;
        self.moved.all.fetch_add(len_bytes, Ordering::Relaxed);
        if operation.kind() == OperationKind::Write {
            self.moved.written.fetch_add(len_bytes, Ordering::Relaxed);
        }
        let background = self.files.background();
        background.keep_to_limit(backend, job, operation.len_bytes());
        background.depth(backend.now())
    }

    /// Hands several operations to the kernel at once. Fewer tickets than operations come back if one was refused, or if
    /// the context is full; operations behind that one are dropped.
    pub(crate) fn submit_all(self: &Arc<Self>, operations: impl Iterator<Item = Operation>) -> Vec<Ticket> {
        self.files.note_read();
        let slots = self.state.lock().submit_all(operations);
        slots.into_iter().map(|slot| Ticket { lane: Arc::clone(self), slot: Some(slot) }).collect()
    }

    /// Reaps the operations that have completed, without waiting.
    ///
    /// # Errors
    /// The context is dead.
    pub(crate) fn reap(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.in_flight() == 0 { Ok(()) } else { state.reap(0) }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// The context is dead.
    pub(crate) fn settle(&self) -> Result<()> {
        self.state.lock().settle()
    }
}

impl LaneState {
    fn queue(&mut self) -> Result<&mut Lent> {
        self.queue.as_mut().ok_or(Error::Closed)
    }

    fn in_flight(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.in_flight())
    }

    fn submit(&mut self, operation: Operation) -> Result<usize> {
        let slot = self.take_slot();
        let mut waiting = VecDeque::from([operation.with_token(slot as u64)]);
        if let Err(error) = self.hand_over(&mut waiting) {
            self.release(slot);
            return Err(error);
        }
        Ok(slot)
    }

    fn submit_all(&mut self, operations: impl Iterator<Item = Operation>) -> Vec<usize> {
        let mut slots = Vec::new();
        let mut waiting = VecDeque::new();
        for operation in operations {
            let slot = self.take_slot();
            slots.push(slot);
            waiting.push_back(operation.with_token(slot as u64));
        }
        while !waiting.is_empty() {
            let submitted = self.queue().and_then(|queue| Ok(queue.submit(&mut waiting)?));
            if !matches!(submitted, Ok(1..)) {
                break;
            }
        }
        let taken = slots.len() - waiting.len();
        slots.drain(taken..).for_each(|slot| self.release(slot));
        slots
    }

    /// A slot for an operation that is about to be submitted.
    fn take_slot(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(OperationState::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = OperationState::UnderWay;
        slot
    }

    fn hand_over(&mut self, waiting: &mut VecDeque<Operation>) -> Result<()> {
        loop {
            self.queue()?.submit(waiting)?;
            if waiting.is_empty() {
                return Ok(());
            }
            self.reap(1)?;
        }
    }

    /// Waits for `at_least` completions, and files all that came.
    fn reap(&mut self, at_least: usize) -> Result<()> {
        let mut reaped = std::mem::take(&mut self.reaped);
        let result = self.queue()?.wait(at_least, None, &mut reaped);
        for completion in reaped.drain(..) {
            self.syncs -= usize::from(is_sync(&completion.operation));
            self.file(completion);
        }
        self.reaped = reaped;
        Ok(result.map(drop)?)
    }

    fn file(&mut self, completion: Completion) {
        let slot = usize::try_from(completion.operation.token()).expect("the token is a slot's number");
        match self.slots[slot] {
            OperationState::UnderWay => self.slots[slot] = OperationState::Done(completion),
            OperationState::Abandoned => self.release(slot),
            OperationState::Free | OperationState::Done(_) => unreachable!("an operation completes once"),
        }
    }

    fn release(&mut self, slot: usize) {
        self.slots[slot] = OperationState::Free;
        self.free.push(slot);
    }

    /// The completion, if it was reaped.
    fn take(&mut self, slot: usize) -> Option<Completion> {
        if !matches!(self.slots[slot], OperationState::Done(_)) {
            return None;
        }
        let OperationState::Done(completion) = std::mem::replace(&mut self.slots[slot], OperationState::Free)
        else {
            return None;
        };
        self.free.push(slot);
        Some(completion)
    }

    /// The completion will not be asked for.
    fn abandon(&mut self, slot: usize) {
        match self.slots[slot] {
            OperationState::UnderWay => self.slots[slot] = OperationState::Abandoned,
            OperationState::Done(_) => self.release(slot),
            OperationState::Free if self.queue.is_none() => {}
            OperationState::Free | OperationState::Abandoned => unreachable!("a ticket keeps its slot"),
        }
    }

    fn settle(&mut self) -> Result<()> {
        while self.in_flight() > 0 {
            self.reap(self.in_flight())?;
        }
        Ok(())
    }
}

fn is_sync(operation: &Operation) -> bool {
    matches!(operation.kind(), OperationKind::Sync | OperationKind::DataSync)
}

impl Holder for Lane {
    fn end(&self) {
        let mut state = self.state.lock();
        // A context that fails waits for its operations when it is dropped.
        let _ = state.settle();
        state.slots.iter_mut().for_each(|slot| *slot = OperationState::Free);
        state.queue = None;
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.job.is_some() {
            self.files.background().end_job();
        }
        // A context that fails is not lent again. Dropping it waits for the operations in flight.
        let _ = self.state.lock().settle();
    }
}

impl Ticket {
    /// The completion, if it was reaped. Only one call returns it.
    pub(crate) fn take(&mut self) -> Option<Completion> {
        let completion = self.lane.state.lock().take(self.slot?)?;
        self.slot = None;
        Some(completion)
    }

    /// Waits until [`Ticket::take`] has something to return.
    ///
    /// # Errors
    /// The context is dead, or the store is closed.
    ///
    /// # Panics
    /// If the completion was taken.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let slot = self.slot.expect("the completion was not taken");
        let mut state = self.lane.state.lock();
        state.queue()?;
        while matches!(state.slots[slot], OperationState::UnderWay) {
            state.reap(1)?;
        }
        Ok(())
    }

    /// Waits for the completion.
    ///
    /// # Errors
    /// The context is dead.
    pub(crate) fn wait(mut self) -> Result<Completion> {
        self.ready()?;
        Ok(self.take().expect("it is ready"))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.lane.state.lock().abandon(slot);
        }
    }
}
