//! The set of log files: made once, zero-filled, then used again and again.
//!
//! ```text
//!   new ----> spare ----> active (one is current) ----> forgotten by the manifest ----> spare, or removed
//!                  activate                      retire
//! ```
//!
//! A file that was written once takes later writes without a change of the file system's metadata. So a sync costs one
//! flush of the device and nothing else. Each use has an epoch of its own. The host makes the epoch durable before the
//! first write, and from then on all sectors of earlier uses are *older*.
//!
//! Invariants: `active` is in stream order, and its last entry is the current file. A spare is durable, has its full
//! size, and no manifest names it. `room_bytes` is at most the room in the current file and the spares.

use std::path::{Path, PathBuf};

use aio::{Backend, File, OpenMode, Queue};

use crate::error::{Error, Result};
use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::seal::STEP;
use crate::sector::Place;
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
    /// The number of files, in use and spare together, up to which a retired file becomes a spare.
    keep_files: usize,
    /// Never held across I/O.
    lists: Mutex<Lists>,
    /// Held while a file is made, across I/O: two threads do not make one each, and a failed sync of the folder can only have
    /// lost the name of the file at hand. That error stays here, and no file is made any more: the next sync may report
    /// success although the name is lost. Taken before `lists`.
    making: Mutex<Option<Error>>,
    /// Free bytes in the current file and the spares. Raised after a file is added and lowered before one is left, so a
    /// reader may see less than there is.
    room_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Lists {
    active: Vec<ActiveFile>,
    spares: Vec<u64>,
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
        (file_bytes, keep_files): (u64, usize),
    ) -> LogFiles {
        LogFiles {
            backend,
            host,
            directory,
            store_id,
            file_bytes,
            keep_files,
            lists: Mutex::new(Lists::default()),
            making: Mutex::new(None),
            room_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Makes a spare, unless `enough` is true or [`MAX_SPARES_AHEAD`] exist. Returns whether there is one more.
    ///
    /// # Errors
    /// Those of [`LogFiles::create`].
    pub(crate) fn prepare(&self, queue: &mut dyn Queue, enough: &dyn Fn() -> bool) -> Result<bool> {
        let mut making = self.making.lock();
        if enough() || self.lists.lock().spares.len() >= MAX_SPARES_AHEAD {
            return Ok(false);
        }
        let (id, _) = self.create(queue, &mut making)?;
        let kept = self.keep_as_spare(id);
        if !kept {
            // Other files retired meanwhile and became spares.
            self.remove(&log_file_path(&self.directory, id))?;
        }
        Ok(kept)
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

    /// Takes bytes of the current file off the room: they were written, or the file is left.
    pub(crate) fn used_room(&self, bytes: u64) {
        self.room_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn added_room(&self) {
        self.room_bytes.fetch_add(self.file_bytes, Ordering::Relaxed);
    }

    /// The room kept free for small groups: claim groups, and single records of other writers.
    pub(crate) fn slack_bytes(&self) -> u64 {
        (self.file_bytes / 8).max(4 * STEP as u64).min(self.file_bytes / 2)
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
    /// A crash in between leaves files that no manifest names, for the next open to remove.
    pub(crate) fn retire(&self, ids: &[u64]) -> Result<()> {
        // An error does not end the loop: the manifest names none of these files any more.
        let mut outcome = Ok(());
        for &id in ids {
            {
                let mut lists = self.lists.lock();
                assert!(lists.active.last().is_none_or(|current| current.id != id), "the current file stays");
                let before = lists.active.len();
                lists.active.retain(|file| file.id != id);
                assert!(lists.active.len() < before, "only an active file can retire");
            }
            if !self.keep_as_spare(id) {
                outcome = outcome.and(self.remove(&log_file_path(&self.directory, id)));
            }
        }
        outcome
    }

    /// Makes a file.
    ///
    /// # Errors
    /// [`Error::Halted`]: a sync of the folder failed, now or earlier, and the caller has to stop the log. After any other
    /// error no name is lost, and nothing was promised in the new file.
    fn create(&self, queue: &mut dyn Queue, making: &mut Option<Error>) -> Result<(u64, File)> {
        if let Some(cause) = making {
            return Err(cause.clone());
        }
        let id = self.host.new_file_id();
        let path = log_file_path(&self.directory, id);
        match aio::file::create_zeroed(&*self.backend, queue, (&path, LOG_KIND), self.file_bytes) {
            Ok(file) => Ok((id, file)),
            Err(error) if error.is_failed_sync_of(&self.directory) && !planted(Bug::FolderErrorNotSticky) => {
                Err(making.insert(Error::from(error).halted()).clone())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Adds a file to the spares. False if there are enough.
    fn keep_as_spare(&self, id: u64) -> bool {
        let mut lists = self.lists.lock();
        let room = lists.spares.len() < MAX_SPARES_AHEAD
            || lists.spares.len() + lists.active.len() < self.keep_files;
        if room {
            // At the front: a round takes the last one, perhaps at this moment.
            lists.spares.insert(0, id);
            self.added_room();
        }
        room
    }

    /// Removes a file. Its name may come back after a power cut. That is a harmless orphan, since no manifest names it.
    fn remove(&self, path: &Path) -> Result<()> {
        match self.backend.remove(path) {
            Err(error) if error.errno() == Some(aio::Errno::NOT_FOUND) => Ok(()),
            removed => removed.map_err(Error::from),
        }
    }
}
