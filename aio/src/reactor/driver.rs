//! The driver of a reactor: moves operations from the list into the queue, and completions to the tasks.
//!
//! Invariant: an entry of `started` belongs to an operation in the batch or in the queue, which carries its index as
//! token until it completes, even if its future was dropped. So a completion is never taken for that of another
//! operation.

use std::collections::VecDeque;
use std::sync::Arc;

use super::hub::{Found, Hub, Outcome, Refused, Reply, Request};
use crate::error::Error;
use crate::kind::OperationKind;
use crate::operation::{Completion, Operation};
use crate::planted::{Bug, planted};
use crate::queue::Queue;

/// The owner of the queue; see the [module](self).
#[derive(Debug)]
pub(super) struct Driver {
    queue: Box<dyn Queue>,
    hub: Arc<Hub>,
    /// The operations in the batch and in the queue, by token.
    started: Vec<Option<Started>>,
    free: Vec<usize>,
    /// Operations that the queue has not taken yet.
    batch: VecDeque<Operation>,
    has_failed: bool,
    /// Scratch space of `fetch`.
    fetched: Vec<(Request, Arc<Reply>)>,
    /// Scratch space of `wait`.
    completions: Vec<Completion>,
}

#[derive(Debug)]
struct Started {
    /// The token that the caller gave it.
    token: u64,
    is_poll: bool,
    reply: Arc<Reply>,
}

impl Driver {
    pub(super) fn new(queue: Box<dyn Queue>, hub: Arc<Hub>) -> Driver {
        Driver {
            queue,
            hub,
            started: Vec::new(),
            free: Vec::new(),
            batch: VecDeque::new(),
            has_failed: false,
            fetched: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Runs until the reactor is closed and all operations are done.
    pub(super) fn run(mut self) {
        let mut outcomes = Vec::new();
        let mut is_over = false;
        while !is_over {
            is_over = self.turn(&mut outcomes);
            outcomes.drain(..).for_each(Outcome::tell);
        }
    }

    /// Starts waiting operations, and waits until one has completed. Adds the operations that have ended to `outcomes`;
    /// the caller wakes their tasks without a lock. Returns whether the reactor is closed and all operations are done.
    pub(super) fn turn(&mut self, outcomes: &mut Vec<Outcome>) -> bool {
        if self.has_failed {
            return true;
        }
        let found = self.fetch();
        self.start(outcomes);
        // After the start, so that polls fetched in this turn are cancelled too.
        if found.has_dropped_polls || found.is_closed {
            self.cancel_polls(found.is_closed);
        }
        if !outcomes.is_empty() {
            // Their tasks need not wait for other operations.
            return false;
        }
        if self.batch.is_empty() && self.queue.in_flight() == 0 {
            let is_over = found.is_closed && found.is_empty;
            // Without a thread no other thread could end a wait on an empty queue.
            if is_over || !self.hub.has_thread() {
                return is_over;
            }
        }
        self.wait(outcomes)
    }

    /// Takes operations from the list, as many as the queue has room for. Operations of dropped futures are discarded.
    fn fetch(&mut self) -> Found {
        if planted(Bug::DroppedReadNumberReused) {
            self.forget_dropped();
        }
        let mut has_dropped_polls = false;
        loop {
            let room = self.queue.capacity() - self.queue.in_flight() - self.batch.len();
            let found = self.hub.fetch(room, &mut self.fetched);
            has_dropped_polls |= found.has_dropped_polls;
            let (before, count) = (self.batch.len(), self.fetched.len());
            let mut fetched = std::mem::take(&mut self.fetched);
            for (request, reply) in fetched.drain(..) {
                if !reply.is_abandoned() {
                    self.begin(request.into_operation(), reply);
                }
            }
            self.fetched = fetched;
            // Discarded operations leave room for others.
            if found.is_empty || self.batch.len() - before == count {
                return Found { has_dropped_polls, ..found };
            }
        }
    }

    /// Puts an operation into the batch, with the token by which its reply is found.
    fn begin(&mut self, operation: Operation, reply: Arc<Reply>) {
        let is_poll = operation.kind() == OperationKind::Poll;
        let started = Started { token: operation.token(), is_poll, reply };
        let index = self.free.pop().unwrap_or_else(|| {
            self.started.push(None);
            self.started.len() - 1
        });
        self.started[index] = Some(started);
        self.batch.push_back(operation.with_token(index as u64));
    }

    /// Gives the operation its own token back, and the reply that waits for it.
    fn end(&mut self, operation: Operation) -> (Operation, Arc<Reply>) {
        let index = usize::try_from(operation.token()).expect("tokens are indexes");
        self.free.push(index);
        let started = self.started[index].take().expect("a token belongs to one operation");
        (operation.with_token(started.token), started.reply)
    }

    fn start(&mut self, outcomes: &mut Vec<Outcome>) {
        while !self.batch.is_empty() {
            match self.queue.submit(&mut self.batch) {
                // The kernel is short of memory: tried again after the next completion.
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => self.refuse(error, outcomes),
            }
        }
    }

    /// Ends the operation at the front, which the queue has refused.
    fn refuse(&mut self, error: Error, outcomes: &mut Vec<Outcome>) {
        if let Some(operation) = self.batch.pop_front() {
            let (operation, reply) = self.end(operation);
            let refused = Refused { operation: Some(operation), error };
            outcomes.push(Outcome { reply, ended: Err(Box::new(refused)) });
        }
    }

    fn wait(&mut self, outcomes: &mut Vec<Outcome>) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let waited = self.queue.wait(1, None, &mut completions);
        for Completion { operation, result } in completions.drain(..) {
            let (operation, reply) = self.end(operation);
            outcomes.push(Outcome { reply, ended: Ok(Completion { operation, result }) });
        }
        self.completions = completions;
        if let Err(error) = waited {
            self.fail(&error, outcomes);
        }
        self.has_failed
    }

    /// Ends all operations after the queue has failed. Those in flight stay in the queue, which is not used any more.
    fn fail(&mut self, error: &Error, outcomes: &mut Vec<Outcome>) {
        self.has_failed = true;
        self.batch.clear();
        let started = self.started.drain(..).flatten();
        if !planted(Bug::FailedQueueEndsNoRead) {
            outcomes.extend(started.map(|started| {
                let refused = Refused { operation: None, error: error.clone() };
                Outcome { reply: started.reply, ended: Err(Box::new(refused)) }
            }));
        }
        outcomes.extend(self.hub.fail(error));
    }

    /// Cancels the polls whose futures were dropped, or all polls.
    fn cancel_polls(&mut self, all: bool) {
        for (index, started) in self.started.iter().enumerate() {
            let Some(started) = started else { continue };
            if started.is_poll && (all || started.reply.is_abandoned()) {
                // Its completion comes after any answer.
                let _ = self.queue.cancel(index as u64);
            }
        }
    }

    /// The planted bug: the number of a read whose future was dropped is free before its completion came.
    fn forget_dropped(&mut self) {
        for (index, started) in self.started.iter_mut().enumerate() {
            if started.take_if(|started| started.reply.is_abandoned()).is_some() {
                self.free.push(index);
            }
        }
    }
}
