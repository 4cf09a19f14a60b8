//! A place in the stream that a writer holds: it becomes a record, or a void if the writer gives up.
//!
//! The stream has no gaps. Every later writer, every reader and every round wait for the place, so a writer that left it
//! empty (by a panic, or because its write turned out to be impossible) would stop the log for good. Dropping a
//! [`Reservation`] therefore publishes a void of the same length. Rejected: to give the place back. Later writers have
//! reserved behind it already.
//!
//! Invariant: every reserved range of the ring is published exactly once, by [`Reservation::publish`] or by the drop.

use crate::flusher::count;
use crate::group_commit::Shared;
use crate::planted::{Bug, planted};
use crate::record::{Prepared, RECORD_HEADER_BYTES, Seq, void_header, zeros};

/// A place in the order of writes, from [`Log::reserve`](crate::Log::reserve).
///
/// Publish it soon: writes that reserved later are acknowledged only after this one is published or dropped. Its thread must
/// not wait for the log before that: a round at the limit on files waits for it.
#[derive(Debug)]
#[must_use = "a reservation that is dropped leaves a void"]
pub struct Reservation<'a> {
    shared: &'a Shared,
    /// `None` when the record is in the ring.
    prepared: Option<Prepared<'a>>,
    place: Appended,
}

/// Where a record stands in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Position of its first byte.
    pub seq: Seq,
    /// Position after its last byte: the one to wait for.
    pub end: Seq,
}

impl<'a> Reservation<'a> {
    pub(crate) fn new(shared: &'a Shared, prepared: Prepared<'a>, seq: Seq) -> Reservation<'a> {
        let place = Appended { seq, end: seq.plus(prepared.len_bytes()) };
        Reservation { shared, prepared: Some(prepared), place }
    }

    /// The place.
    #[must_use]
    pub fn place(&self) -> Appended {
        self.place
    }

    /// Copies the record to the ring and publishes it.
    pub fn publish(mut self) -> Appended {
        let core = &self.shared.core;
        if let Some(prepared) = &mut self.prepared {
            core.ring.write(self.place.seq, prepared.frame(core.origin, self.place.seq));
        }
        // From here on the place holds a record. A panic before leaves a void.
        self.prepared = None;
        core.ring.publish(self.place.seq, self.place.end);
        count(&core.counters.records, 1);
        self.shared.note_published();
        self.place
    }

    fn publish_void(&self, len_bytes: usize) {
        let (core, place) = (&self.shared.core, self.place);
        core.ring.write(place.seq, &void_header(len_bytes, core.origin, place.seq));
        // Nothing of the record may stay: the panic may have come in the middle of the copy.
        let mut at = place.seq.plus(RECORD_HEADER_BYTES);
        for zeros in zeros(len_bytes - RECORD_HEADER_BYTES) {
            core.ring.write(at, zeros);
            at = at.plus(zeros.len());
        }
        core.ring.publish(place.seq, place.end);
        self.shared.note_published();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(prepared) = self.prepared.take()
            && !planted(Bug::ReservationNotVoided)
        {
            self.publish_void(prepared.len_bytes());
        }
    }
}
