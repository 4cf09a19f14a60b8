//! When the operations of a context begin and end, for the profile.
//!
//! A call that submits several operations works on one after the other. Its time is divided evenly among them:
//!
//! ```text
//!   io_submit called                                       it returns                  reaped
//!   |--- turn of the first ---|--- turn of the second ---|                           |
//!   |<------------------ latency of the first, if the device does it ---------------->|
//!   |<- if the call did it -->|
//! ```
//!
//! An operation whose event is in the completion ring when the call returns was done inside it, as on a file system
//! without direct I/O. It ends with its turn, except the newest one of the context, which ends when it is reaped. So the
//! latencies of such operations add up to the time of the calls that submit and wait, and none of it counts twice.
//!
//! On a direct file a device has done it, at the same time as others. It ends with the call, and the call that reaps is no
//! part of its latency.

use std::ops::Range;
use std::sync::Arc;

use crate::identity::Identity;
use crate::kind::IoClass;
use crate::operation::{Completion, Operation};
use crate::trace::{Ended, Submitted};
use crate::waker::WAKE_UP;

/// An operation in flight.
#[derive(Debug)]
pub(super) struct InSlot {
    pub(super) operation: Operation,
    pub(super) turn: Turn,
    /// When the call that submitted it returned.
    pub(super) call_end_nanos: u64,
    /// Whether the call that submitted it has done it.
    pub(super) is_done: bool,
    /// Of the last operation of a call: the call.
    pub(super) submitted: Option<Submitted>,
}

/// The share of an operation in the time of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) begin_nanos: u64,
    pub(super) end_nanos: u64,
}

impl Turn {
    /// Divides the time of a call among its operations, in order. The last one also has the rest of the division.
    pub(super) fn all((begin_nanos, end_nanos): (u64, u64), operations: usize) -> impl Iterator<Item = Turn> {
        let operations = operations as u64;
        let share = end_nanos.saturating_sub(begin_nanos).checked_div(operations).unwrap_or(0);
        (1..=operations).map(move |turn| {
            let begin_nanos = begin_nanos + share * (turn - 1);
            let end_nanos = if turn == operations { end_nanos } else { begin_nanos + share };
            Turn { begin_nanos, end_nanos }
        })
    }
}

/// The oldest events of the ring, which a submit has looked at. Each is looked at once: else the cost of operations that are
/// done inside their calls would grow with the square of their number. A reap takes all of them, or they are looked at again.
#[derive(Debug, Default)]
pub(super) struct Looked {
    events: usize,
    operations: usize,
}

impl Looked {
    /// Of `unreaped` events, those that are new. They count as looked at then.
    pub(super) fn fresh(&mut self, unreaped: usize) -> Range<usize> {
        std::mem::replace(&mut self.events, unreaped)..unreaped
    }

    /// Marks the operations of the call that began at `begin_nanos` whose events are among these new ones.
    pub(super) fn mark_done(
        &mut self,
        events: impl Iterator<Item = u64>,
        begin_nanos: u64,
        slots: &mut [Option<InSlot>],
    ) {
        for data in events.filter(|data| *data != WAKE_UP) {
            self.operations += 1;
            let slot = usize::try_from(data).ok().and_then(|slot| slots.get_mut(slot)?.as_mut());
            if let Some(taken) = slot {
                taken.is_done |= taken.turn.begin_nanos >= begin_nanos;
            }
        }
    }

    /// How many operations the events end that were looked at, those of earlier calls included.
    pub(super) fn operations(&self) -> usize {
        self.operations
    }
}

/// The parts of an ended operation's profile that its completion does not tell.
#[derive(Debug)]
pub(super) struct End {
    pub(super) nanos: u64,
    pub(super) submitted: Option<Submitted>,
    /// The identity of a file that no backend has opened.
    pub(super) file: Option<Arc<Identity>>,
}

impl End {
    /// The profile of the operation with this completion.
    pub(super) fn of<'a>(&'a self, completion: &'a Completion) -> Ended<'a> {
        let Completion { operation, result } = completion;
        // The result of a poll is its readiness.
        let moved = |count| if operation.class() == IoClass::Poll { 0 } else { count };
        let (arguments, moved_bytes) = (operation.arguments(self.file.as_ref()), result.ok().map(moved));
        Ended { arguments, moved_bytes, nanos: self.nanos, submitted: self.submitted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_even_and_without_gaps() {
        let turns: Vec<Turn> = Turn::all((1000, 1031), 8).collect();
        assert_eq!((turns[0].begin_nanos, turns[7].end_nanos, turns.len()), (1000, 1031, 8));
        assert!(turns.windows(2).all(|pair| pair[0].end_nanos == pair[1].begin_nanos));
        let shares = turns.iter().map(|turn| turn.end_nanos - turn.begin_nanos);
        assert!(shares.eq([3, 3, 3, 3, 3, 3, 3, 10]), "{turns:?}");
        assert_eq!(Turn::all((5, 5), 0).count(), 0);
    }

    #[test]
    fn an_event_is_looked_at_once() {
        let mut looked = Looked::default();
        assert_eq!([2, 2, 5].map(|unreaped| looked.fresh(unreaped)), [0..2, 2..2, 2..5]);
        looked.mark_done([0, WAKE_UP, 1].into_iter(), 0, &mut []);
        assert_eq!(looked.operations(), 2);
    }
}
