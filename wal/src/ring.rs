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
//! valid. The file is written with zeros and synced before it is used, so a store into the mapping hardly ever waits for the
//! file system to allocate. It begins small and grows to its size in the first lap, so a small store takes little
//! space. The host makes each new size durable before the first record goes there.
//!
//! # No SIGBUS
//! A block that was written once need not stay the file's own: a copy of the store may have left a hole in its place, and a
//! copy of the open store may share it. A store there has to allocate, and on a full disk the kernel kills the process for
//! it. So a reservation ends at or below `sure`: up to there each page has had a write fault by a system call
//! ([`SharedMap::make_room`]), which answers with an error instead. `sure` moves ahead by [`WINDOW_BYTES`] at a time, before
//! anything is reserved: by the first writer that finds half of that left, while the others go on. It is forgotten by the
//! first round that ends a second after it was found ([`Ring::doubt`]), because a copy that is made later shares the blocks
//! again.
//!
//! Invariants: `reserved - durable <= size`, so bytes are overwritten only when the log files have them on stable
//! media; in the first lap `reserved - start <= grown`; `published <= reserved`; the host knows of every byte below
//! `grown`; a reservation ends at or below the `sure` of its moment.

use std::path::Path;
use std::time::Duration;

use aio::{Backend, Errno, File, OpenMode, Queue, SharedMap};

use crate::ended_ring::{RING_KIND, RingSizes};
use crate::error::{Error, Result};
use crate::log_file::Host;
use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::sync::{Arc, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::watermark::Watermark;

/// Bytes behind the reserved ones that get room at a time. A call for 64 pages takes 26 us where all is well, so 10 ns for a
/// record of 100 bytes.
const WINDOW_BYTES: usize = 256 << 10;

/// A writer that finds fewer bytes with room makes more, in a ring of 1 MiB or larger. If all waited until it has, they would
/// wait for milliseconds when it loses its CPU meanwhile: one put in sixty, beside a thread that writes as fast as it can.
const LOW_BYTES: usize = WINDOW_BYTES / 2;

/// How long a page is trusted to have its room.
pub(crate) const TRUST: Duration = Duration::from_secs(1);

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
    /// Held while the file grows or gets room, across I/O. True when it grows no more.
    growing: Mutex<bool>,
    /// End of the bytes that have room; 0 when that is to be found out again.
    sure: AtomicU64,
    /// When the oldest part of that was found, in nanoseconds of the backend's clock.
    sure_since_nanos: AtomicU64,
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
    /// The mapping has to get room first.
    Unsure,
    /// The log files that may exist have no room.
    Files,
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
                aio::file::create_zeroed(backend, queue, (path, RING_KIND), file_bytes as u64)?
            }
            opened => opened?,
        };
        file.set_kind(RING_KIND);
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
            growing: Mutex::new(false),
            sure: AtomicU64::new(0),
            sure_since_nanos: AtomicU64::new(0),
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
        let has_ended = self.growing.lock();
        if *has_ended && !planted(Bug::FilesMadeAfterTheClose) {
            return Err(Error::Closed);
        }
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

    /// The file does not grow any more: the next incarnation may use it.
    pub(crate) fn end_growth(&self) {
        *self.growing.lock() = true;
    }

    /// Makes room for `len_bytes` more, and for a window behind them. Waits while another thread does so.
    pub(crate) fn make_room(&self, backend: &dyn Backend, len_bytes: usize) -> Result<()> {
        let one = self.growing.lock();
        let has_room = self.reserved().plus(len_bytes).get() <= self.sure.load(Ordering::Acquire);
        if has_room { Ok(()) } else { self.move_sure(&one, backend, len_bytes) }
    }

    /// Makes room if little is left for a record of `len_bytes`, and no other thread does so.
    pub(crate) fn make_room_early(&self, backend: &dyn Backend, len_bytes: usize) -> Result<()> {
        let low_bytes = LOW_BYTES.min(self.bytes / 8);
        let is_low = || self.reserved().plus(len_bytes + low_bytes).get() > self.sure.load(Ordering::Acquire);
        if is_low()
            && let Some(one) = self.growing.try_lock()
            && is_low()
        {
            return self.move_sure(&one, backend, len_bytes);
        }
        Ok(())
    }

    fn move_sure(&self, _one: &MutexGuard<'_, bool>, backend: &dyn Backend, len_bytes: usize) -> Result<()> {
        let from = self.reserved();
        // Not behind the end of the file in the first lap, and no byte twice.
        let grown = self.grown.load(Ordering::Acquire);
        let there = if grown == self.bytes {
            self.bytes
        } else {
            usize::try_from(self.start.plus(grown).get().saturating_sub(from.get())).unwrap_or(0)
        };
        let end = from.plus((len_bytes + WINDOW_BYTES).min(there));
        let since = backend.now();
        let sure = Seq::new(self.sure.load(Ordering::Acquire));
        let begin = sure.max(from);
        if begin >= end {
            return Ok(());
        }
        let room_bytes = usize::try_from(end.since(begin)).expect("a window is in memory");
        let at = self.offset(begin);
        let head_bytes = room_bytes.min(self.bytes - at);
        if !planted(Bug::RingWithoutRoom) {
            self.map.make_room(at, head_bytes)?;
            self.map.make_room(0, room_bytes - head_bytes)?;
        }
        // A window that goes on is as old as its oldest part: no page is trusted for longer than `TRUST`.
        if sure <= from {
            self.sure_since_nanos.store(nanos(since), Ordering::Relaxed);
        }
        self.sure.store(end.get(), Ordering::Release);
        Ok(())
    }

    /// Forgets that there is room, if that was found out some time ago. Called by each round and by an idle log.
    pub(crate) fn doubt(&self, backend: &dyn Backend) {
        let age_nanos = nanos(backend.now()).saturating_sub(self.sure_since_nanos.load(Ordering::Relaxed));
        if age_nanos >= nanos(TRUST) {
            self.sure.store(0, Ordering::Relaxed);
        }
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
    /// needed. The records end at or before `end_in_files`, which is called after the end of all earlier records is known.
    ///
    /// The caller has loaded `durable` with acquire, so the flusher has read the bytes that are overwritten.
    pub(crate) fn reserve(
        &self,
        len_bytes: usize,
        durable: Seq,
        end_in_files: impl Fn() -> Seq,
    ) -> std::result::Result<Seq, Full> {
        let slack = if planted(Bug::RingReusedTooEarly) { self.bytes } else { 0 };
        let limit = durable.plus(self.bytes + slack).get();
        // Acquire: the bytes below `grown` are mapped before they are written.
        let grown = self.grown.load(Ordering::Acquire);
        let there = if grown == self.bytes { u64::MAX } else { self.start.plus(grown).get() };
        let sure = self.sure.load(Ordering::Acquire);
        let mut at = self.reserved.load(Ordering::SeqCst);
        loop {
            let end = at.saturating_add(len_bytes as u64);
            if end > end_in_files().get() {
                return Err(Full::Files);
            }
            if end > there {
                return Err(Full::Small);
            }
            if end > limit {
                return Err(Full::Until(Seq::new(end - self.bytes as u64)));
            }
            if end > sure {
                return Err(Full::Unsure);
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
