//! The mapped staging ring: a record is written here first, and here it survives the death of the process.
//!
//! ```text
//!   stream   ... | record | record | record | ...
//!                    |        |        |
//!   file     +-------v--------v--------v--------+
//!            | records at seq % size, wrapping  |
//!            +----------------------------------+
//!
//!   OFFSET                SIZE  FIELD
//!   (seq - start) % size  ...   the record of that seq, as `record` lays it out, in the incarnation that began at
//!                               `start`; it goes on at 0 where it meets the end
//! ```
//!
//! There is no header. The checksum of each record covers store, incarnation and position, and so decides whether it is
//! valid. The file is written with zeros and synced before it is used, so a store into the mapping never waits for the
//! file system to allocate. It begins small and grows to its size in the first lap, so a small store takes little
//! space. The host makes each new size durable before the first record goes there.
//!
//! Invariants: `reserved - durable <= size`, so bytes are overwritten only when the log files have them on stable
//! media; in the first lap `reserved - start <= grown`; `published <= reserved`; the host knows of every byte below
//! `grown`.

use std::path::Path;

use aio::{Backend, Errno, File, OpenMode, Queue, SharedMap};

use crate::ended_ring::RingSizes;
use crate::error::{Error, Result};
use crate::log_file::Host;
use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::sync::{Arc, AtomicU64, AtomicUsize, Mutex, Ordering};
use crate::watermark::Watermark;

/// The staging ring of one incarnation.
#[derive(Debug)]
pub(crate) struct Ring {
    file: File,
    map: Arc<dyn SharedMap>,
    bytes: usize,
    /// Start of the incarnation, at offset 0 of the file.
    start: Seq,
    /// Bytes of the file that can be used. Stored with release after the file has them.
    grown: AtomicUsize,
    /// Held while the file grows, across I/O.
    growing: Mutex<()>,
    /// Position of the next record. The compare-and-swap only hands out ranges and publishes nothing.
    reserved: AtomicU64,
    published: Watermark,
}

/// Why a reservation is not possible now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The log has to be durable up to here first.
    Until(Seq),
    /// The file has to grow first.
    Small,
}

impl Ring {
    /// Maps the file, which has `file_bytes`. Creates it with that size, durable and zeroed, if it does not exist. The
    /// records of an earlier incarnation in it do not validate in this one.
    pub(crate) fn open(
        backend: &dyn Backend,
        queue: &mut dyn Queue,
        path: &Path,
        RingSizes { bytes, file_bytes }: RingSizes,
        start: Seq,
    ) -> Result<Ring> {
        let file_bytes = file_bytes.min(bytes);
        let file = match aio::wait_out(backend, || backend.open(path, OpenMode::Write)) {
            Err(error) if error.errno() == Some(Errno::NOT_FOUND) => {
                aio::file::create_zeroed(backend, queue, path, file_bytes as u64)?
            }
            opened => opened?,
        };
        let found = backend.size_bytes(&file)?;
        if found < file_bytes as u64 {
            return Err(Error::corrupt(path, found, "size of the ring", &file_bytes, &found));
        }
        let map = backend.map_shared(&file, bytes)?;
        assert!(map.len_bytes() >= file_bytes, "the mapping covers the file");
        Ok(Ring {
            file,
            map,
            bytes,
            start,
            grown: AtomicUsize::new(file_bytes),
            growing: Mutex::new(()),
            reserved: AtomicU64::new(start.get()),
            published: Watermark::new(start, bytes),
        })
    }

    /// Whether `len_bytes` more than the reserved bytes fit into the file as it is.
    pub(crate) fn has_grown_for(&self, len_bytes: u64) -> bool {
        let grown = self.grown.load(Ordering::Acquire);
        grown == self.bytes || self.reserved().since(self.start).saturating_add(len_bytes) <= grown as u64
    }

    /// Doubles the file until `len_bytes` more fit, or up to the size of the ring. Waits while another thread does so.
    pub(crate) fn grow(
        &self,
        backend: &dyn Backend,
        queue: &mut dyn Queue,
        host: &dyn Host,
        len_bytes: u64,
    ) -> Result<()> {
        let _one = self.growing.lock();
        let before = self.grown.load(Ordering::Acquire);
        let needed = self.reserved().since(self.start).saturating_add(len_bytes);
        let mut grown = before;
        while grown < self.bytes && (grown as u64) < needed {
            grown = (grown * 2).min(self.bytes);
        }
        if grown == before {
            return Ok(());
        }
        aio::file::extend_zeroed(backend, queue, &self.file, before as u64..grown as u64)?;
        if !planted(Bug::RingUsedBeforeTheManifest) {
            host.ring_grown(grown as u64)?;
        }
        self.map.extend()?;
        assert!(self.map.len_bytes() >= grown, "the mapping covers the file");
        self.grown.store(grown, Ordering::Release);
        Ok(())
    }

    /// Whether the bytes in it survive the process.
    pub(crate) fn is_shared(&self) -> bool {
        self.map.is_shared()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn reserved(&self) -> Seq {
        Seq::new(self.reserved.load(Ordering::SeqCst))
    }

    pub(crate) fn published(&self) -> &Watermark {
        &self.published
    }

    /// Reserves the next `len_bytes`. `durable` is the durable end of the log; [`Full::Until`] is the one that is
    /// needed.
    ///
    /// The caller has loaded `durable` with acquire, so the flusher has read the bytes that are overwritten.
    pub(crate) fn reserve(&self, len_bytes: usize, durable: Seq) -> std::result::Result<Seq, Full> {
        let slack = if planted(Bug::RingReusedTooEarly) { self.bytes } else { 0 };
        let limit = durable.plus(self.bytes + slack).get();
        // Acquire: the bytes below `grown` are mapped before they are written.
        let grown = self.grown.load(Ordering::Acquire);
        let there = if grown == self.bytes { u64::MAX } else { self.start.plus(grown).get() };
        let mut at = self.reserved.load(Ordering::SeqCst);
        loop {
            let end = at.saturating_add(len_bytes as u64);
            if end > there {
                return Err(Full::Small);
            }
            if end > limit {
                return Err(Full::Until(Seq::new(end - self.bytes as u64)));
            }
            match self.reserved.compare_exchange_weak(at, end, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(Seq::new(at)),
                Err(now) => at = now,
            }
        }
    }

    /// Copies bytes to the place of `seq`. The caller has reserved the place and not published it.
    pub(crate) fn write(&self, seq: Seq, bytes: &[u8]) {
        let at = self.offset(seq);
        let (head, tail) = bytes.split_at(bytes.len().min(self.bytes - at));
        self.map.write(at, head);
        if !tail.is_empty() {
            self.map.write(0, tail);
        }
    }

    /// Publishes a filled reservation.
    pub(crate) fn publish(&self, seq: Seq, end: Seq) {
        self.published.complete(seq, end);
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
        usize::try_from(seq.since(self.start) % self.bytes as u64).expect("a ring offset is below its size")
    }
}
