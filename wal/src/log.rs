//! The handle on a log: append, wait, retire, close.
//!
//! Invariants: nothing can fail between the reservation of a place and its publication, and a panic there leaves a
//! void. After an error that stopped the log every call that writes or waits returns that error.

use std::fmt;
use std::path::PathBuf;

use std::time::Duration;

use aio::Backend;

use crate::commit_thread::{Due, start_thread};
use crate::ended_ring::RingSizes;
use crate::error::{Error, Result};
use crate::flusher::{Core, Flusher, LogCounters, QUEUE_SLOTS, SyncMethod, count};
use crate::group_commit::{Level, Shared};
use crate::log_file::{ActiveFile, FileSizes, Host, KeptFiles, LEAST_FILES, LogFiles};
use crate::record::{GRANULE, RecordBuf, Seq, StreamOrigin};
use crate::reservation::{Appended, Reservation};
use crate::ring::{Full, Ring};
use crate::seal::STEP;
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, Statistic};

/// Which thread runs the rounds that no caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// The commit thread of the log.
    Threads,
    /// None. A caller that would block runs the round itself, and [`Log::run_due`] does the work of the thread. With
    /// one calling thread a run on a simulated disk replays from its seed.
    Manual,
}

/// How to open a log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The directory of the log files. It exists.
    pub directory: PathBuf,
    /// Seeds every sector's checksum.
    pub store_id: u64,
    /// The number of this writable open. Not 0, and never used before.
    pub incarnation: u32,
    /// Start of the stream of this incarnation, a multiple of [`GRANULE`], at or after the end of all earlier
    /// incarnations.
    pub start: Seq,
    /// The file of the ring. It is created if it does not exist. The ring of an earlier incarnation may be used again.
    pub ring_path: PathBuf,
    /// Size of the ring in bytes, a multiple of [`STEP`].
    pub ring_bytes: usize,
    /// Size of its file in bytes, a multiple of [`STEP`]: the last size that the host was told, or the size of a file
    /// that does not exist yet. The file grows to `ring_bytes` as it is used. Never less than the host was told: a
    /// replay takes a shorter ring for damage and reads nothing behind its end.
    pub ring_file_bytes: usize,
    /// Size of a log file in bytes, a multiple of [`STEP`].
    pub file_bytes: u64,
    /// The most files, in use and spare together, at least 4; one more at times. A record for which they have no room is
    /// refused with [`Error::AtLimit`]. By default there is no limit.
    pub max_files: usize,
    /// The number of files, in use and spare together, up to which a retired file becomes a spare. Two spares are
    /// kept if `max_files` allows. A new file is written twice, the first time with zeros. So this should be the number of
    /// files that the log fills between two retirements.
    pub keep_files: usize,
    /// Files to use before a new one is made. The manifest that has forgotten them is durable.
    pub kept: KeptFiles,
    /// A round starts when this many bytes are published and not durable.
    pub drain_bytes: u64,
    /// A round starts when bytes have been published and not durable for this long.
    pub drain_interval: Duration,
    /// How a group gets to stable media.
    pub sync_method: SyncMethod,
    /// Which thread runs these rounds.
    pub background: Background,
}

impl LogOptions {
    /// Options with the defaults: files and ring of 16 MiB, drained after 1 MiB or 10 ms, by a thread.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, store_id: u64, incarnation: u32, start: Seq) -> LogOptions {
        let directory = directory.into();
        LogOptions {
            ring_path: directory.join(format!("ring-{incarnation:06}")),
            directory,
            store_id,
            incarnation,
            start,
            ring_bytes: 16 << 20,
            ring_file_bytes: 16 << 20,
            file_bytes: 16 << 20,
            max_files: usize::MAX,
            keep_files: 4,
            kept: KeptFiles::default(),
            drain_bytes: 1 << 20,
            drain_interval: Duration::from_millis(10),
            sync_method: SyncMethod::default(),
            background: Background::Threads,
        }
    }
}

/// Counts since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogMetrics {
    /// Records appended.
    pub records: u64,
    /// Bytes of records and voids, as framed.
    pub record_bytes: u64,
    /// Groups written, claim groups included.
    pub groups: u64,
    /// Claim groups: empty ones, written only to claim that the group before is durable.
    pub claim_groups: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Bytes written to log files, sector headers and padding included.
    pub written_bytes: u64,
    /// Log files taken into use.
    pub activations: u64,
    /// Log files taken into use that existed already: retired files, or spares made ahead.
    pub recycled: u64,
    /// Appends that found the ring full.
    pub space_waits: u64,
    /// Calls that had to wait for a round.
    pub waits: u64,
}

/// The write-ahead log of one incarnation of a store.
///
/// # Concurrency
/// All methods may be called from any thread. An append is one compare-and-swap, a copy and a publication, with no lock
/// and no system call while the ring has space, but one for each 256 KiB of records, which makes sure of room behind the
/// mapping.
///
/// Dropping the log closes it as [`Log::close`] does, without the report.
pub struct Log {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Opens ring and queue and starts the commit thread. Log files are taken into use by the first round.
    ///
    /// # Durability
    /// When this returns, the ring's file and its name are on stable media. Only then may a manifest name the
    /// incarnation, since a replay calls a missing ring damage. A host that writes its manifest before this call makes the
    /// ring's file first. The host is not called.
    ///
    /// # Errors
    /// The ring could not be created or mapped, the machine has no slots left for the context, or no thread could be
    /// started.
    ///
    /// # Panics
    /// If a size is 0 or not a multiple of [`STEP`], the incarnation is 0, or the start is not a multiple of
    /// [`GRANULE`].
    pub fn open(backend: Arc<dyn Backend>, options: LogOptions, host: Arc<dyn Host>) -> Result<Log> {
        assert!(options.incarnation != 0, "incarnations start at 1");
        assert!(options.start.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        assert!(options.ring_bytes > 0, "a ring is not empty");
        assert!(options.ring_bytes.is_multiple_of(STEP), "a ring is whole steps");
        assert!(options.ring_file_bytes > 0, "a ring begins with something");
        assert!(options.ring_file_bytes.is_multiple_of(STEP), "a ring is whole steps");
        assert!(options.file_bytes > 0, "a log file is not empty");
        assert!(options.max_files >= LEAST_FILES, "a record fits beside the current file");
        assert!(options.file_bytes.is_multiple_of(STEP as u64), "a log file is whole steps");
        let start = options.start;
        let mut queue = aio::wait_out(&*backend, || backend.queue(QUEUE_SLOTS))?;
        let sizes = RingSizes { bytes: options.ring_bytes, file_bytes: options.ring_file_bytes };
        let ring = Ring::open(&*backend, &mut *queue, &options.ring_path, sizes, start)?;
        let files = LogFiles::open(
            (Arc::clone(&backend), Arc::clone(&host)),
            options.directory,
            options.store_id,
            FileSizes {
                file_bytes: options.file_bytes,
                max_files: options.max_files,
                keep_files: options.keep_files,
            },
            options.kept,
        );
        let position = || AtomicU64::new(start.get());
        let core = Core {
            backend,
            ring,
            files,
            origin: StreamOrigin { store_id: options.store_id, incarnation: options.incarnation },
            sync_method: options.sync_method,
            written: position(),
            durable: position(),
            counters: LogCounters::default(),
        };
        let flusher = Flusher::new(queue, start);
        let shared = Shared::new(core, host, flusher, options.drain_bytes, options.drain_interval);
        let shared = Arc::new(shared);
        let thread = match options.background {
            Background::Manual => None,
            Background::Threads => Some(start_thread(&shared)?),
        };
        Ok(Log { shared, thread: Mutex::new(thread) })
    }

    /// Reserves the place of a record in the order of writes. Everything that can fail or takes time is done when this
    /// returns: the record is hashed, and the ring has space.
    ///
    /// Waits while the ring has no space, that is for a round.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::AtLimit`], [`Error::Halted`], [`Error::Closed`], a fork, the [`Error::Io`] of a full disk
    /// where a copy of the store took blocks of the ring, or, when the ring is full, the [shortage](Error::is_shortage) of
    /// [`Log::wait_durable`]: nothing was reserved, the record is unchanged.
    pub fn reserve<'a>(&'a self, record: &'a mut RecordBuf) -> Result<Reservation<'a>> {
        let shared = &*self.shared;
        let (len_bytes, max_bytes) = (record.len_bytes(), self.max_record_bytes());
        if len_bytes > max_bytes {
            return Err(Error::TooLarge { len_bytes, max_bytes });
        }
        shared.core.backend.check_fork()?;
        // Before the reservation, since later writers wait for the place that it takes.
        let prepared = record.prepare();
        loop {
            shared.check_open()?;
            shared.core.ring.make_room_early(&*shared.core.backend, len_bytes)?;
            let durable = shared.core.durable();
            match shared.core.ring.reserve(len_bytes, durable, || shared.core.end_in_files()) {
                Ok(seq) => return Ok(Reservation::new(shared, prepared, seq)),
                Err(Full::Until(needed)) => {
                    count(&shared.core.counters.space_waits, 1);
                    shared.wait(Level::Durable, needed)?;
                }
                Err(Full::Small) => shared.grow_ring(len_bytes as u64)?,
                Err(Full::Files) => return Err(Error::AtLimit),
                Err(Full::Unsure) => shared.core.ring.make_room(&*shared.core.backend, len_bytes)?,
            }
        }
    }

    /// Reserves the place of a record and publishes it there.
    ///
    /// Whether everything before it is published when this returns depends on slower writers;
    /// [`Log::wait_process`] and [`Log::wait_durable`] wait for them.
    ///
    /// # Durability
    /// None yet. [`Log::wait_process`] and [`Log::wait_durable`] wait for it.
    ///
    /// # Errors
    /// Those of [`Log::reserve`]: nothing was appended, the record is unchanged.
    pub fn append(&self, record: &mut RecordBuf) -> Result<Appended> {
        self.reserve(record).map(Reservation::publish)
    }

    /// Waits until everything below `end` is on stable media.
    ///
    /// # Durability
    /// After `Ok`, everything appended below `end` survives a loss of power.
    ///
    /// # Errors
    /// [`Error::Halted`]: the outcome is unknown until the log is replayed. [`Error::Io`] of a
    /// [shortage](Error::is_shortage): there is no space (or no handle) for the next log file. The log goes on: the
    /// appended records stay in the ring, and become durable with the first round that finds space again.
    ///
    /// # Panics
    /// If nothing was appended up to `end`.
    pub fn wait_durable(&self, end: Seq) -> Result<()> {
        self.shared.wait(Level::Durable, end)
    }

    /// Waits until everything below `end` survives the death of the process: it is published in the ring, or written to
    /// a log file if the mapping is not shared with the ring's file.
    ///
    /// # Errors
    /// [`Error::Halted`] where a write was needed and failed.
    ///
    /// # Panics
    /// If nothing was appended up to `end`.
    pub fn wait_process(&self, end: Seq) -> Result<()> {
        if !self.shared.core.ring.is_shared() {
            return self.shared.wait(Level::Written, end);
        }
        self.shared.check_reserved(end);
        self.shared.core.ring.published().wait_for(end);
        Ok(())
    }

    /// Requests a round that covers `end` and does not wait for it. The log calls [`Host::progressed`] after the round.
    /// With [`Background::Manual`] nothing happens until a caller waits.
    pub fn request_durable(&self, end: Seq) {
        self.shared.check_reserved(end);
        self.shared.core.ring.published().wait_for(end);
        let mut state = self.shared.state.lock();
        state.wanted = state.wanted.max(end);
        if state.has_thread && state.flusher.is_some() && end > self.shared.core.durable() {
            self.shared.work.notify_one();
        }
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// [`Error::Halted`], even if everything was durable before the log stopped.
    pub fn sync(&self) -> Result<()> {
        self.health()?;
        self.wait_durable(self.shared.core.ring.reserved())
    }

    /// The end of the published records: everything below is filled in and in order.
    pub fn published(&self) -> Seq {
        self.shared.core.ring.published().get()
    }

    /// The durable end: everything below is on stable media.
    pub fn durable(&self) -> Seq {
        self.shared.core.durable()
    }

    /// Bytes written to log files since the log was opened, sector headers and padding included. One load.
    pub fn written_bytes(&self) -> u64 {
        self.shared.core.counters.written_bytes.load(Ordering::Relaxed)
    }

    /// The largest record that [`Log::append`] takes, as framed: a quarter of the ring.
    pub fn max_record_bytes(&self) -> usize {
        self.shared.core.ring.bytes() / 4 / GRANULE * GRANULE
    }

    /// The log files in use, in stream order; the last one is written to.
    pub fn active_files(&self) -> Vec<ActiveFile> {
        self.shared.core.files.active()
    }

    /// The files that hold nothing at or above `below`, for the manifest to forget.
    pub fn retirable(&self, below: Seq) -> Vec<u64> {
        self.shared.core.files.retirable(below.min(self.durable()))
    }

    /// Gives back files from [`Log::retirable`], after the manifest has durably forgotten them: they become spares or
    /// are removed.
    ///
    /// # Errors
    /// A file could not be removed: it stays behind as an orphan, and the log goes on.
    ///
    /// # Panics
    /// If a file is not active, or is the current one.
    pub fn retire(&self, ids: &[u64]) -> Result<()> {
        self.shared.core.files.retire(ids)
    }

    /// Removes log files until `most` are left for the next incarnation. To be called after [`Log::close`], when the manifest
    /// has durably forgotten all files of this log.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn leave_files(&self, most: usize) -> Result<()> {
        self.shared.core.files.leave(most)
    }

    /// Makes a spare log file if the current file and the spares have room for less than one file, and the log is below its
    /// limit. Uses the queue of the caller, so no commit waits for it. Returns whether it made one.
    ///
    /// # Errors
    /// The file could not be created: the log goes on. [`Error::Halted`]: the folder of the log could not be synced.
    pub fn prepare_spare(&self, queue: &mut dyn aio::Queue) -> Result<bool> {
        let files = &self.shared.core.files;
        self.prepare(queue, &|| files.room_bytes() >= files.file_bytes())
    }

    /// Makes a spare, unless `enough` is true. Halts if the folder could not be synced.
    fn prepare(&self, queue: &mut dyn aio::Queue, enough: &dyn Fn() -> bool) -> Result<bool> {
        let files = &self.shared.core.files;
        self.health()?;
        files.prepare(queue, enough).inspect_err(|error| {
            if matches!(error, Error::Halted { .. }) {
                self.shared.halt(error);
            }
        })
    }

    /// Whether a spare should be made soon: less than half a file can be written without one, and one may be made.
    pub fn wants_spare(&self) -> bool {
        self.shared.core.files.wants_spare()
    }

    /// Whether the existing files have room for a record of `len_bytes` and for everything that is reserved and not
    /// written, within the limit. Then the record can be written even if the disk is full. A few loads.
    ///
    /// An eighth of a file (at least 16 KiB, at most half a file) is reserved for claim groups and for the
    /// records that other threads append before this one. The answer holds while those fit into the reserve.
    pub fn has_room(&self, len_bytes: usize) -> bool {
        let (core, files) = (&self.shared.core, &self.shared.core.files);
        let stream_bytes = core.ring.reserved().since(core.written()).saturating_add(len_bytes as u64);
        files.room_bytes() >= files.needed_bytes(stream_bytes)
            && core.ring.has_grown_for(len_bytes as u64)
            && !self.is_at_limit(len_bytes)
    }

    /// Whether a record of `len_bytes` has to wait until files are retired.
    pub fn is_at_limit(&self, len_bytes: usize) -> bool {
        self.shared.core.is_at_limit(len_bytes)
    }

    /// Makes spares and lets the ring grow until [`Log::has_room`]. Waits while another thread does so. False if the log is
    /// at its limit: then files have to be retired first.
    ///
    /// If the ring is larger than three files, and full, the most spares that are ever kept may not be enough.
    ///
    /// # Errors
    /// There is no space to create a log file or to let the ring's file grow: the log goes on. [`Error::Halted`]: the
    /// ring's file could not be written, or the folder of the log not synced.
    pub fn make_room(&self, len_bytes: usize, queue: &mut dyn aio::Queue) -> Result<bool> {
        self.shared.grow_ring_by(len_bytes as u64, queue)?;
        while !self.has_room(len_bytes) {
            if self.is_at_limit(len_bytes) {
                return Ok(false);
            }
            if !self.prepare(queue, &|| self.has_room(len_bytes))? {
                break;
            }
        }
        Ok(true)
    }

    /// Whether more than three quarters of the files that may exist are used: time to retire some.
    pub fn is_nearly_full(&self) -> bool {
        self.shared.core.files.is_nearly_full()
    }

    /// Where the older half of the files in use ends: when nothing below is needed, [`Log::retirable`] has files. `None` if
    /// only the current file is in use.
    pub fn older_half_end(&self) -> Option<Seq> {
        self.shared.core.files.older_half_end()
    }

    /// The first failure, if the log has stopped.
    ///
    /// # Errors
    /// [`Error::Halted`] with the cause.
    pub fn health(&self) -> Result<()> {
        match &self.shared.state.lock().halted {
            Some(cause) => Err(cause.halted()),
            None => Ok(()),
        }
    }

    /// Stops the log for good, unless it has stopped before: every waiter and every later write gets
    /// [`Error::Halted`] with this cause.
    pub fn halt(&self, cause: &Error) {
        self.shared.halt(cause);
    }

    /// Counts since the log was opened.
    pub fn metrics(&self) -> LogMetrics {
        let counters = &self.shared.core.counters;
        let get = |counter: &Statistic| counter.load(Ordering::Relaxed);
        LogMetrics {
            records: get(&counters.records),
            record_bytes: self.published().since(self.shared.start),
            groups: get(&counters.groups),
            claim_groups: get(&counters.claim_groups),
            syncs: get(&counters.syncs),
            written_bytes: get(&counters.written_bytes),
            activations: get(&counters.activations),
            recycled: get(&counters.recycled),
            space_waits: get(&counters.space_waits),
            waits: get(&counters.waits),
        }
    }

    /// Runs the round that the commit thread would run now. Returns whether one was due. With [`Background::Manual`] a
    /// test steps the timers of the thread with it, so that a run replays from its seed.
    ///
    /// # Errors
    /// [`Error::Halted`]. A round that found no space counts as run.
    pub fn run_due(&self) -> Result<bool> {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        let Due::Now(purpose) = shared.due(&mut state) else { return Ok(false) };
        let Some(flusher) = state.flusher.take() else { return Ok(false) };
        let state = shared.run(state, flusher, purpose, 0);
        state.halted.as_ref().map_or(Ok(true), |cause| Err(cause.halted()))
    }

    /// Takes no more records, makes everything durable, and ends the commit thread. Later calls do nothing.
    ///
    /// When this returns, also with an error, no thread writes to the files of the log or makes one any more. So the next
    /// incarnation may use them. The caller sees to it that no append is under way, and no other close.
    ///
    /// # Errors
    /// [`Error::Halted`], or a [shortage](Error::is_shortage): not everything could be made durable. The
    /// records in a shared ring survive the process all the same.
    pub fn close(&self) -> Result<()> {
        let shared = &*self.shared;
        shared.core.backend.check_fork()?;
        shared.closed.store(true, Ordering::SeqCst);
        {
            let mut state = shared.state.lock();
            if state.has_ended {
                return state.halted.as_ref().map_or(Ok(()), |cause| Err(cause.halted()));
            }
            state.stop = true;
            shared.work.notify_all();
        }
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the thread has stopped the log, and `state` has the error.
            let _ = thread.join();
        }
        let synced = self.sync();
        shared.end(synced.is_ok());
        shared.core.files.end();
        shared.core.ring.end_growth();
        synced.and(self.health())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // In a forked process this does nothing. Otherwise an error is latched, and no caller is left to get it.
        let _ = self.close();
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("incarnation", &self.shared.core.origin.incarnation)
            .field("published", &self.published())
            .field("durable", &self.durable())
            .finish_non_exhaustive()
    }
}
