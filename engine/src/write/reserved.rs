//! A write between its reservation and the moment when readers may see it.
//!
//! ```text
//!   Reserved ---- publish ----> Logged ---- complete ----> visible
//!      |                          |
//!      | dropped                  | dropped
//!      v                          v
//!   a void in the log          the record is in the log and not in every memtable: the store halts
//! ```
//!
//! Two watermarks pass the write's place, the log's and the visible one. Later writers and all readers wait for
//! both, so each state passes both when it is dropped: a panic holds nothing up.
//!
//! *Reserved.* Nothing of the write is anywhere yet. The place becomes a void, and the store goes on.
//!
//! *Logged.* The record may be durable already and cannot be taken back. Memory lacks a part of it; a flush of that
//! memtable would make the loss permanent. So the log halts before the place becomes visible. Reads go on, writes and
//! flushes are refused, and the next open replays the record whole.
//!
//! Invariant: every place is completed once in `visible`, after the log has published it, so `visible` never passes the
//! log.

use wal::{Appended, Log, RecordBuf, Reservation, Watermark};

use crate::base::error::Result;
use crate::base::planted::{Bug, planted};

/// A write that has its place in the order and is in neither log nor memtables.
#[derive(Debug)]
#[must_use = "a write that is dropped leaves a void"]
pub(crate) struct Reserved<'store, 'record> {
    log: &'store Log,
    // Dropped in this order, so the log passes the place first.
    reservation: Reservation<'record>,
    turn: Turn<'store>,
}

/// A write that is in the log and not yet in the memtables.
#[derive(Debug)]
#[must_use = "a write that is dropped halts the store"]
pub(crate) struct Logged<'store> {
    log: &'store Log,
    place: Appended,
    is_inserted: bool,
    /// `None` only with a planted bug.
    _turn: Option<Turn<'store>>,
}

impl<'store, 'record> Reserved<'store, 'record>
where
    'store: 'record,
{
    /// Reserves the place of `record`. Waits while the ring is full. `None`: the log is at its limit, and nothing was reserved.
    ///
    /// # Errors
    /// Those of [`Log::reserve`]: nothing was reserved.
    pub(crate) fn new(
        log: &'store Log,
        visible: &'store Watermark,
        record: &'record mut RecordBuf,
    ) -> Result<Option<Reserved<'store, 'record>>> {
        let reservation = match log.reserve(record) {
            Ok(reservation) => reservation,
            Err(wal::Error::AtLimit) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let turn = Turn { visible, place: reservation.place() };
        Ok(Some(Reserved { log, reservation, turn }))
    }

    /// Puts the record into the log. The caller inserts it into the memtables next.
    pub(crate) fn publish(self) -> Logged<'store> {
        let Reserved { log, reservation, turn } = self;
        let place = reservation.publish();
        let turn = (!planted(Bug::VisibleBeforeTheMemtable)).then_some(turn);
        Logged { log, place, is_inserted: false, _turn: turn }
    }
}

impl Logged<'_> {
    /// The place of the record.
    pub(crate) fn place(&self) -> Appended {
        self.place
    }

    /// The memtables have the record: readers may see it when all before it is visible.
    pub(crate) fn complete(mut self) {
        self.is_inserted = true;
    }
}

impl Drop for Logged<'_> {
    fn drop(&mut self) {
        if !self.is_inserted {
            let message = "a write ended between the log and the memtables".to_owned();
            self.log.halt(&wal::Error::Host { message });
        }
    }
}

/// The duty to pass a place in the watermark of visible writes. The drop does it.
#[derive(Debug)]
struct Turn<'a> {
    visible: &'a Watermark,
    place: Appended,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.visible.complete(self.place.seq, self.place.end);
    }
}

#[cfg(test)]
#[path = "reserved_tests.rs"]
mod tests;
