//! The mapped staging ring: where a record is first written, and where it survives the death of the process.
//!
//! ```text
//!   stream   ... | record | record | record | ...
//!                    |        |        |
//!   file     +-------v--------v--------v--------+
//!            | records at seq % size, wrapping  |
//!            +----------------------------------+
//!
//!   OFFSET  SIZE  FIELD
//!   seq % size    the record of that seq, as `record` lays it out; it goes on at 0 where it meets the end
//! ```
//!
//! No header: what is valid follows from life and position, which every record's checksum covers. The file is written
//! with zeros and synced once, so that a store into the mapping never waits for the file system to allocate.
//!
//! Invariants: `reserved - durable <= size`, so bytes are overwritten only when the log files have them on stable media;
//! `published <= reserved`.

use std::path::Path;

use aio::{Backend, Bug, Errno, OpenMode, Queue, SharedMap, planted};

use crate::error::{Error, Result};
use crate::ordered::Ordered;
use crate::record::{GRANULE, Seq};
use crate::sync::{Arc, AtomicU64, Ordering};

/// The staging ring of one life.
#[derive(Debug)]
pub(crate) struct Ring {
    map: Arc<dyn SharedMap>,
    bytes: usize,
    /// Where the next record goes. Publishes nothing: the compare-and-swap only hands out ranges.
    reserved: AtomicU64,
    published: Ordered,
}

impl Ring {
    /// Maps the file; creates it, durable and zeroed, if there is none. An earlier life may have left its records in
    /// it: they do not validate in this one.
    pub(crate) fn open(
        backend: &dyn Backend,
        queue: &mut dyn Queue,
        path: &Path,
        bytes: usize,
        start: Seq,
    ) -> Result<Ring> {
        let file = match backend.open(path, OpenMode::Write) {
            Err(error) if error.errno() == Some(Errno::NOT_FOUND) => {
                aio::file::create_zeroed(backend, queue, path, bytes as u64)?
            }
            opened => opened?,
        };
        let found = backend.size_bytes(&file)?;
        if found < bytes as u64 {
            return Err(Error::corrupt(path, found, "size of the ring", &bytes, &found));
        }
        let map = backend.map_shared(&file, bytes)?;
        assert!(map.len_bytes() >= bytes, "the mapping is as long as was asked for");
        let published = Ordered::new(start, bytes);
        Ok(Ring { map, bytes, reserved: AtomicU64::new(start.get()), published })
    }

    /// Whether its bytes survive the process.
    pub(crate) fn is_shared(&self) -> bool {
        self.map.is_shared()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn reserved(&self) -> Seq {
        Seq::new(self.reserved.load(Ordering::SeqCst))
    }

    pub(crate) fn published(&self) -> &Ordered {
        &self.published
    }

    /// Reserves the next `len_bytes`, given how far the log is durable; or says how far it has to be first.
    ///
    /// `durable` must have been read with acquire ordering: what is overwritten now was read by the flusher before.
    pub(crate) fn reserve(&self, len_bytes: usize, durable: Seq) -> std::result::Result<Seq, Seq> {
        let slack = if planted(Bug::RingReusedTooEarly) { self.bytes } else { 0 };
        let limit = durable.plus(self.bytes + slack).get();
        let mut at = self.reserved.load(Ordering::SeqCst);
        loop {
            let end = at.saturating_add(len_bytes as u64);
            if end > limit {
                return Err(Seq::new(end - self.bytes as u64));
            }
            match self.reserved.compare_exchange_weak(at, end, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(Seq::new(at)),
                Err(now) => at = now,
            }
        }
    }

    /// Copies a framed record into its reservation and publishes it. Returns its end.
    pub(crate) fn publish(&self, seq: Seq, framed: &[u8]) -> Seq {
        assert!(framed.len().is_multiple_of(GRANULE), "a framed record is whole granules");
        let at = self.offset(seq);
        let (head, tail) = framed.split_at(framed.len().min(self.bytes - at));
        self.map.write(at, head);
        if !tail.is_empty() {
            self.map.write(0, tail);
        }
        let end = seq.plus(framed.len());
        self.published.complete(seq, end);
        end
    }

    /// Copies published bytes out, from `seq` on. Position and length are multiples of 8.
    pub(crate) fn read(&self, seq: Seq, into: &mut [u8]) {
        let at = self.offset(seq);
        let (head, tail) = into.split_at_mut(into.len().min(self.bytes - at));
        self.map.read(at, head);
        if !tail.is_empty() {
            self.map.read(0, tail);
        }
    }

    fn offset(&self, seq: Seq) -> usize {
        usize::try_from(seq.get() % self.bytes as u64).expect("a ring offset is below its size")
    }
}
