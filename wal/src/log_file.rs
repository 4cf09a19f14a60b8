//! The set of log files: made once, zero-filled, then used again and again, also by later lives of the store.
//!
//! ```text
//!   new, or kept ----> spare ----> active (one is current) ----> forgotten by the manifest ----> spare, or removed
//!                           activate                      retire
//! ```
//!
//! A file that was written once takes later writes without a change of the file system's metadata. So a sync costs one
//! flush of the device and nothing else. Each use has an epoch of its own. The host makes the epoch durable before the
//! first write, and from then on all sectors of earlier uses are *older*.
//!
//! A *kept* file is one of an earlier life, which may have ended at any moment, also while it made this file. A copy of the
//! store may have given it holes, or exchanged it. So it becomes a spare only when its space, its size and its name are
//! durable, and every sector was read and found older. A new file costs a write instead of that read.
//!
//! Invariants: `active` is in stream order, and its last entry is the current file. A spare is durable, has its full
//! size, and no manifest names it. `room_bytes` is at most the room in the current file and the spares.
//!
//! # The limit
//! `max_files` may exist, and one more at times. A record gets its place only while the files that may exist take everything
//! that is reserved and not written, and a reserve ([`LogFiles::end_in_files`]). So a round finds room: it must not wait for
//! a file, since the flush that would release one waits for rounds.
//!
//! Beyond that the files take the padding of three groups at most: one was being written when the room was looked at, one was
//! planned before the record had its place, and one holds the record. A round that begins at the limit waits until
//! everything reserved is published, which takes writers the time of a copy. So there is no group more, however many writers
//! there are. Three paddings fit into the reserve and one file; into the reserve alone from files of 32 KiB on.
//!
//! A file that could not be removed counts until the next open.

use std::path::{Path, PathBuf};

use aio::{Backend, Buf, File, OpenMode, Queue, SECTOR_BYTES};

use crate::error::{Error, Result};
use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::seal::STEP;
use crate::sector::{Place, SectorState, classify};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};

/// Spares made ahead at most: one for the next rotation, and one for the records that other threads append meanwhile.
const MAX_SPARES_AHEAD: usize = 2;

/// The services that the log needs from the store around it.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// A number for a new file, never handed out before in this store.
    fn new_file_id(&self) -> u64;

    /// Makes it durable that log file `file_id` is used from stream position `start` on. Returns the epoch of this use,
    /// in `1..=`[`MAX_EPOCH`](crate::MAX_EPOCH) and larger than all earlier ones. The caller holds the flush token and
    /// no lock.
    ///
    /// # Errors
    /// A [shortage](aio::Errno::is_shortage) has changed nothing, and a later round tries again. Any other error stops
    /// the log.
    fn activate(&self, file_id: u64, start: Seq) -> Result<u32>;

    /// Makes it durable that the ring's file has `file_bytes`, before a record goes there. Called by an append that
    /// needs them or by [`Log::make_room`](crate::Log::make_room). The caller holds no lock that appends or rounds
    /// take.
    ///
    /// # Errors
    /// Those of [`Host::activate`].
    fn ring_grown(&self, file_bytes: u64) -> Result<()>;

    /// `durable` has moved, or the log has stopped: a chance to wake futures. Called without any lock by the thread
    /// that ran the round. Must not call a method of the log that waits.
    fn progressed(&self, durable: Seq) {
        let _ = durable;
    }
}

/// A log file in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveFile {
    /// Its number.
    pub id: u64,
    /// This use of it.
    pub epoch: u32,
    /// Stream position of its first group.
    pub start: Seq,
}

/// Log files of earlier incarnations. The manifest in force does not name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptFiles {
    /// Their numbers.
    pub ids: Vec<u64>,
    /// Above the epochs of all earlier uses. A file with a sector that is neither zero nor of an earlier use is removed.
    pub next_epoch: u32,
}

/// So many bytes of the stream need one more in the file, for the headers of sectors and groups, and the padding of full
/// groups: a file of one step holds 3968 bytes of the stream in 4096.
const SEALED_PART: u64 = 31;

/// Bytes of one read of a kept file.
const CHECK_CHUNK_BYTES: usize = 1 << 20;

/// The kind of log files in a profile.
pub(crate) const LOG_KIND: &str = "log";

/// The path of a log file.
#[must_use]
pub fn log_file_path(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{id:06}.log"))
}

/// The log files of one incarnation.
#[derive(Debug)]
pub(crate) struct LogFiles {
    backend: Arc<dyn Backend>,
    host: Arc<dyn Host>,
    directory: PathBuf,
    store_id: u64,
    file_bytes: u64,
    /// The number of files up to which a file is made, but for a round that finds no spare.
    max_files: usize,
    /// The number of files, in use and spare together, up to which a retired file becomes a spare.
    keep_files: usize,
    /// Above the epochs of the uses of kept files.
    next_epoch: u32,
    /// Never held across I/O.
    lists: Mutex<Lists>,
    /// Held while a file is made, across I/O: two threads do not make one each, and a failed sync of the folder can only have
    /// lost the name of the file at hand. That error stays here, and no file is made any more: the next sync may report
    /// success although the name is lost. So does a close, after which the next incarnation has the files. Taken before
    /// `lists`.
    making: Mutex<Option<Error>>,
    /// Free bytes in the current file and the spares. Raised after a file is added and lowered before one is left, so a
    /// reader may see less than there is.
    room_bytes: AtomicU64,
    /// Bytes of the files in use that were written, or left.
    used_bytes: AtomicU64,
    /// Files that are on disk for nothing.
    unremoved: AtomicU64,
}

/// The fewest files that may exist: so a record fits beside the current file.
pub(crate) const LEAST_FILES: usize = 4;

/// How large files are, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSizes {
    pub(crate) file_bytes: u64,
    pub(crate) max_files: usize,
    pub(crate) keep_files: usize,
}

#[derive(Debug, Default)]
struct Lists {
    active: Vec<ActiveFile>,
    spares: Vec<u64>,
    /// Kept files that were not looked at yet.
    kept: Vec<u64>,
}

impl Lists {
    fn count(&self) -> usize {
        self.active.len() + self.spares.len() + self.kept.len()
    }

    /// Whether a spare may be made ahead. A kept file counts already.
    fn may_grow(&self, max_files: usize) -> bool {
        let is_within = self.count() < max_files || !self.kept.is_empty() || planted(Bug::LogLimitIgnored);
        is_within && self.spares.len() < MAX_SPARES_AHEAD
    }
}

/// The file that groups are written to.
#[derive(Debug)]
pub(crate) struct OpenLogFile {
    pub(crate) file: File,
    pub(crate) place: Place,
    /// Whether it was a spare.
    pub(crate) recycled: bool,
}

impl LogFiles {
    pub(crate) fn open(
        (backend, host): (Arc<dyn Backend>, Arc<dyn Host>),
        directory: PathBuf,
        store_id: u64,
        sizes: FileSizes,
        kept: KeptFiles,
    ) -> LogFiles {
        let FileSizes { file_bytes, max_files, keep_files } = sizes;
        LogFiles {
            backend,
            host,
            directory,
            store_id,
            file_bytes,
            max_files,
            keep_files,
            next_epoch: kept.next_epoch,
            lists: Mutex::new(Lists { kept: kept.ids, ..Lists::default() }),
            making: Mutex::new(None),
            room_bytes: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            unremoved: AtomicU64::new(0),
        }
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Makes a spare, unless `enough` is true, [`MAX_SPARES_AHEAD`] exist, or the log is at its limit. Returns whether there is
    /// one more.
    ///
    /// # Errors
    /// Those of [`LogFiles::create`].
    pub(crate) fn prepare(&self, queue: &mut dyn Queue, enough: &dyn Fn() -> bool) -> Result<bool> {
        let mut making = self.making.lock();
        if enough() || !self.lists.lock().may_grow(self.max_files()) {
            return Ok(false);
        }
        let (id, _) = self.create(queue, &mut making)?;
        let mut lists = self.lists.lock();
        if self.keeps(&lists, 1) {
            self.add_spare(&mut lists, id);
            return Ok(true);
        }
        drop(lists);
        // Other files retired meanwhile and became spares.
        self.remove(&log_file_path(&self.directory, id))?;
        Ok(false)
    }

    /// Opens a spare or a new file as the current one, from `start` on.
    ///
    /// A file that could not be activated stays a spare. The next round takes it again.
    pub(crate) fn next(&self, queue: &mut dyn Queue, start: Seq) -> Result<OpenLogFile> {
        let (id, made) = self.spare_or_new(queue)?;
        let recycled = made.is_none();
        let file = if let Some(file) = made {
            file
        } else {
            let path = log_file_path(&self.directory, id);
            let file = aio::wait_out(&*self.backend, || self.backend.open(&path, OpenMode::Write))?;
            file.set_kind(LOG_KIND);
            file
        };
        let epoch = self.host.activate(id, start)?;
        let mut lists = self.lists.lock();
        lists.spares.retain(|&spare| spare != id);
        lists.active.push(ActiveFile { id, epoch, start });
        Ok(OpenLogFile { file, place: Place { store_id: self.store_id, file_id: id, epoch }, recycled })
    }

    /// A spare, or a new file, which is a spare from now on as well. Only the holder of the flush token takes spares, so it
    /// stays one until then.
    fn spare_or_new(&self, queue: &mut dyn Queue) -> Result<(u64, Option<File>)> {
        let newest_spare = || self.lists.lock().spares.last().copied();
        if let Some(spare) = newest_spare() {
            return Ok((spare, None));
        }
        let mut making = self.making.lock();
        // Another thread may have made one while this one waited.
        if let Some(spare) = newest_spare() {
            return Ok((spare, None));
        }
        let (id, file) = self.create(queue, &mut making)?;
        self.lists.lock().spares.push(id);
        self.added_room();
        Ok((id, Some(file)))
    }

    /// Bytes that can be written before a file has to be made.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.room_bytes.load(Ordering::Relaxed)
    }

    /// Takes bytes of the current file off the room: they were written, or the file is left. Called before the durable end
    /// moves over them.
    pub(crate) fn used_room(&self, bytes: u64) {
        self.room_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The number of files that may exist beside those that could not be removed. Some may exist even if many could not.
    fn max_files(&self) -> usize {
        let unremoved = usize::try_from(self.unremoved.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        self.max_files.saturating_sub(unremoved).max(self.max_files / 2).max(LEAST_FILES)
    }

    /// Bytes of all files that may exist; `None` if any number may.
    fn limit_bytes(&self) -> Option<u64> {
        self.file_bytes.checked_mul(self.max_files() as u64).filter(|_| !planted(Bug::LogLimitIgnored))
    }

    /// Where the records have to end that the files take which may exist. `written` is the end of what was written.
    ///
    /// It is loaded first: what is written meanwhile is counted twice then, and not forgotten.
    pub(crate) fn end_in_files(&self, written: impl Fn() -> Seq) -> Seq {
        let Some(limit_bytes) = self.limit_bytes() else { return Seq::new(u64::MAX) };
        let written = written();
        let left_bytes = limit_bytes.saturating_sub(self.used_bytes.load(Ordering::Relaxed));
        let stream_bytes = left_bytes.saturating_sub(self.reserve_bytes()) / (SEALED_PART + 1) * SEALED_PART;
        Seq::new(written.get().saturating_add(stream_bytes))
    }

    /// Bytes of files that this much of the stream takes at most, with the reserve.
    pub(crate) fn needed_bytes(&self, stream_bytes: u64) -> u64 {
        let sealed_bytes = stream_bytes.saturating_add(stream_bytes.div_ceil(SEALED_PART));
        sealed_bytes.saturating_add(self.reserve_bytes())
    }

    /// Whether more than three quarters of the files that may exist are used: the last quarter is for the writes beside the
    /// flush that releases the older ones. From one half on a lone writer of small durable records was flushed twice as often as
    /// the limit asks for.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.limit_bytes()
            .is_some_and(|limit_bytes| self.used_bytes.load(Ordering::Relaxed) > limit_bytes / 4 * 3)
    }

    /// Whether less than half a file can be written without a new one, and one may be made.
    pub(crate) fn wants_spare(&self) -> bool {
        let room_bytes = self.room_bytes();
        let is_within = |limit_bytes| self.used_bytes.load(Ordering::Relaxed) + room_bytes < limit_bytes;
        room_bytes < self.file_bytes / 2 && self.limit_bytes().is_none_or(is_within)
    }

    /// Where the older half of the files in use ends: at least one file, but never the current one.
    pub(crate) fn older_half_end(&self) -> Option<Seq> {
        let lists = self.lists.lock();
        (lists.active.len() > 1).then(|| lists.active[lists.active.len().div_ceil(2)].start)
    }

    fn added_room(&self) {
        self.room_bytes.fetch_add(self.file_bytes, Ordering::Relaxed);
    }

    /// The room kept free: for the header and the padding of the next group, and for small groups: claim groups, and single
    /// records of other writers.
    fn reserve_bytes(&self) -> u64 {
        let padding_bytes = STEP as u64;
        2 * padding_bytes + (self.file_bytes / 8).max(4 * padding_bytes).min(self.file_bytes / 2)
    }

    pub(crate) fn active(&self) -> Vec<ActiveFile> {
        self.lists.lock().active.clone()
    }

    /// The files whose records all end at or below `below`. Never the current file.
    pub(crate) fn retirable(&self, below: Seq) -> Vec<u64> {
        let lists = self.lists.lock();
        let pairs = lists.active.iter().zip(lists.active.iter().skip(1));
        let all = planted(Bug::LogFileRetiredTooEarly);
        pairs.take_while(|(_, next)| all || next.start <= below).map(|(file, _)| file.id).collect()
    }

    /// Turns files that the manifest has forgotten into spares, or removes them.
    ///
    /// A crash in between leaves files that no manifest names, for the next open to remove. So does a file that cannot be
    /// removed.
    pub(crate) fn retire(&self, ids: &[u64]) -> Result<()> {
        // An error does not end the loop: the manifest names none of these files any more.
        let mut outcome = Ok(());
        for &id in ids {
            let keeps = self.keeps(&self.lists.lock(), 0);
            if !keeps {
                // It counts until it is gone.
                outcome = outcome.and(self.remove(&log_file_path(&self.directory, id)));
            }
            let mut lists = self.lists.lock();
            assert!(lists.active.last().is_none_or(|current| current.id != id), "the current file stays");
            let before = lists.active.len();
            lists.active.retain(|file| file.id != id);
            assert!(lists.active.len() < before, "only an active file can retire");
            if keeps {
                self.add_spare(&mut lists, id);
            }
            drop(lists);
            self.used_bytes.fetch_sub(self.file_bytes, Ordering::Relaxed);
        }
        outcome
    }

    /// Waits until the file at hand is made. No file is made after it: the next incarnation may use all that there are.
    pub(crate) fn end(&self) {
        if !planted(Bug::FilesMadeAfterTheClose) {
            self.making.lock().get_or_insert(Error::Closed);
        }
    }

    /// Removes files until `most` are left. The log is closed, and the manifest has forgotten all of them.
    pub(crate) fn leave(&self, most: usize) -> Result<()> {
        let lists = std::mem::take(&mut *self.lists.lock());
        let used = lists.active.iter().map(|file| file.id);
        let all = used.chain(lists.spares).chain(lists.kept);
        all.skip(most).map(|id| self.remove(&log_file_path(&self.directory, id))).fold(Ok(()), Result::and)
    }

    /// Makes a file: of a kept one, or a new one.
    ///
    /// # Errors
    /// [`Error::Halted`]: a sync of the folder failed, now or earlier, and the caller has to stop the log. After any other
    /// error no name is lost, and nothing was promised in the new file. [`Error::Closed`]: the log has ended.
    fn create(&self, queue: &mut dyn Queue, making: &mut Option<Error>) -> Result<(u64, File)> {
        if let Some(cause) = making {
            return Err(cause.clone());
        }
        // A forked process removes no file of its parent.
        self.backend.check_fork()?;
        loop {
            let kept = self.lists.lock().kept.pop();
            let id = kept.unwrap_or_else(|| self.host.new_file_id());
            let path = log_file_path(&self.directory, id);
            let made = if kept.is_some() {
                self.renew(queue, &path, id)
            } else {
                let place = (&*path, LOG_KIND);
                aio::file::create_zeroed(&*self.backend, queue, place, self.file_bytes).map_err(Error::from)
            };
            match made {
                Ok(file) => return Ok((id, file)),
                Err(Error::Io(error))
                    if error.is_failed_sync_of(&self.directory) && !planted(Bug::FolderErrorNotSticky) =>
                {
                    return Err(making.insert(Error::from(error).halted()).clone());
                }
                Err(error) if kept.is_none() => {
                    if self.backend.stat(&path).is_ok_and(|stat| stat.is_some()) {
                        self.unremoved.fetch_add(1, Ordering::Relaxed);
                    }
                    return Err(error);
                }
                Err(error) if error.is_refusal() => {
                    self.lists.lock().kept.extend(kept);
                    return Err(error);
                }
                // Its space is of use to the next one. If the name stays, the next open finds the file again.
                Err(_) => drop(self.remove(&path)),
            }
        }
    }

    /// Makes a kept file fit for use.
    ///
    /// # Errors
    /// It cannot be read or synced, gets no space for its holes, or has a sector that is not older.
    fn renew(&self, queue: &mut dyn Queue, path: &Path, id: u64) -> Result<File> {
        let file = aio::wait_out(&*self.backend, || self.backend.open(path, OpenMode::Write))?;
        file.set_kind(LOG_KIND);
        if planted(Bug::KeptFileTrusted) {
            return Ok(file);
        }
        self.backend.allocate(&file, self.file_bytes)?;
        let place = Place { store_id: self.store_id, file_id: id, epoch: self.next_epoch };
        let left_from = |offset| {
            usize::try_from(self.file_bytes - offset)
                .map_or(CHECK_CHUNK_BYTES, |left| left.min(CHECK_CHUNK_BYTES))
        };
        let mut offset = 0;
        let mut buf = Buf::zeroed(left_from(offset));
        while offset < self.file_bytes {
            buf.set_len(left_from(offset));
            buf = aio::file::read_into(queue, &file, offset, buf)?;
            for sector in buf.as_chunks::<SECTOR_BYTES>().0 {
                if classify(&place, offset / SECTOR_BYTES as u64, sector) != SectorState::Older {
                    return Err(Error::corrupt(path, offset, "sector", &"one of an earlier use", &"another"));
                }
                offset += SECTOR_BYTES as u64;
            }
        }
        self.backend.sync(&file)?;
        self.backend.sync_dir(&self.directory)?;
        Ok(file)
    }

    /// Whether a file stays as a spare, if there are `more` than those of the lists.
    fn keeps(&self, lists: &Lists, more: usize) -> bool {
        let count = lists.count() + more;
        let is_within = count <= self.max_files() || planted(Bug::LogLimitIgnored);
        is_within && (lists.spares.len() < MAX_SPARES_AHEAD || count <= self.keep_files)
    }

    fn add_spare(&self, lists: &mut Lists, id: u64) {
        // At the front: a round takes the last one, perhaps at this moment.
        lists.spares.insert(0, id);
        self.added_room();
    }

    /// Removes a file. Its name may come back after a power cut. That is a harmless orphan, since no manifest names it.
    fn remove(&self, path: &Path) -> Result<()> {
        match self.backend.remove(path) {
            Err(error) if error.errno() == Some(aio::Errno::NOT_FOUND) => Ok(()),
            removed => removed.map_err(|error| {
                self.unremoved.fetch_add(1, Ordering::Relaxed);
                Error::from(error)
            }),
        }
    }
}
