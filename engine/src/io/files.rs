//! The directory of a store: paths of its files, and plain reads and writes on them. How files are named stands in `kinds`.
//!
//! Invariant: file numbers come from one counter in the manifest, so a number is used once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::{Backend, Buf, File, OpenMode, Queue, Reactor};

use crate::base::error::{Error, Result};
use crate::base::options::Background;
use crate::base::planted::{Bug, planted};
use crate::base::sync::shared::Mutex;
use crate::io::background::{BackgroundIo, JobKind};
use crate::io::contexts::{Contexts, Size};
use crate::io::kinds::{FileKind, Folder};
use crate::io::open_files::{CachedFile, OpenFiles};
use crate::io::pool::BufPool;
use crate::io::read_ahead::{Allowance, Grant};
use crate::io::removals::Removals;

/// Asynchronous reads of a store in flight at most: as many as the queues of devices hold.
const REACTOR_SLOTS: usize = 128;

/// The directory of a store and the machine under it.
#[derive(Debug)]
pub(crate) struct Files {
    backend: Arc<dyn Backend>,
    root: PathBuf,
    contexts: Arc<Contexts>,
    segments: Arc<OpenFiles>,
    bufs: Arc<BufPool>,
    read_ahead: Arc<Allowance>,
    asynchronous: Mutex<Asynchronous>,
    removals: Arc<Removals>,
    /// The failed sync of the folder of segments, if there was one. Held across a sync.
    names_lost: Mutex<Option<Arc<Error>>>,
    background: BackgroundIo,
}

/// The reactor for asynchronous reads.
#[derive(Debug)]
enum Asynchronous {
    /// No read has asked for it.
    Unused,
    Running(Reactor),
    Ended,
}

impl Files {
    /// `read_ahead_bytes`: memory for the windows that scans read ahead, and for idle buffers.
    pub(crate) fn new(backend: Arc<dyn Backend>, root: &Path, read_ahead_bytes: usize) -> Files {
        Files::with_limits(backend, root, read_ahead_bytes, (None, None))
    }

    /// `most_open`: segments kept open, if that is to be less than the default. `background_rate`: see [`BackgroundIo`].
    pub(crate) fn with_limits(
        backend: Arc<dyn Backend>,
        root: &Path,
        read_ahead_bytes: usize,
        (most_open, background_rate): (Option<usize>, Option<u64>),
    ) -> Files {
        Files {
            removals: Arc::new(Removals::new(Arc::clone(&backend))),
            contexts: Contexts::new(Arc::clone(&backend)),
            segments: OpenFiles::new(Arc::clone(&backend), most_open),
            backend,
            root: root.to_owned(),
            bufs: BufPool::new(read_ahead_bytes),
            read_ahead: Allowance::new(read_ahead_bytes),
            background: BackgroundIo::new(background_rate),
            asynchronous: Mutex::new(Asynchronous::Unused),
            names_lost: Mutex::new(None),
        }
    }

    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Removes files that were live.
    pub(crate) fn removals(&self) -> &Arc<Removals> {
        &self.removals
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a directory.
    pub(crate) fn folder(&self, folder: Folder) -> PathBuf {
        match folder {
            Folder::Root => self.root.clone(),
            below => self.root.join(below.name()),
        }
    }

    /// The path of a file.
    pub(crate) fn path(&self, kind: FileKind, number: u64) -> PathBuf {
        self.folder(kind.folder()).join(kind.name_of(number))
    }

    /// The numbers of all files of a kind, rising. There are none in a directory that is not there.
    pub(crate) fn numbers(&self, kind: FileKind) -> Result<Vec<u64>> {
        let folder = self.folder(kind.folder());
        if kind.folder() != Folder::Root && self.backend.stat(&folder)?.is_none() {
            return Ok(Vec::new());
        }
        let names = self.backend.list(&folder)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| kind.number_of(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.path(FileKind::Lock, 0)
    }

    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.folder(Folder::Wal)
    }

    pub(crate) fn ring_path(&self, number: u64) -> PathBuf {
        self.path(FileKind::Ring, number)
    }

    pub(crate) fn manifest_path(&self, number: u64) -> PathBuf {
        self.path(FileKind::Manifest, number)
    }

    pub(crate) fn segments_dir(&self) -> PathBuf {
        self.folder(Folder::Segments)
    }

    /// Makes the names of new segments durable.
    ///
    /// # Errors
    /// [`Error::Halted`] if the sync fails, and from then on. It may have lost the names of another job's segments, and the next
    /// sync may report success: the store must not go on. Any other error has lost nothing.
    pub(crate) fn sync_segment_names(&self) -> Result<()> {
        let mut names_lost = self.names_lost.lock();
        if let Some(cause) = &*names_lost {
            return Err(Error::Halted { cause: Arc::clone(cause) });
        }
        let folder = self.segments_dir();
        match self.backend.sync_dir(&folder) {
            Err(error) if error.is_failed_sync_of(&folder) && !planted(Bug::SegmentFolderErrorNotSticky) => {
                let cause = Arc::new(Error::from(error));
                Err(Error::Halted { cause: Arc::clone(names_lost.insert(cause)) })
            }
            synced => Ok(synced?),
        }
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.path(FileKind::Segment, number)
    }

    /// The open files of segments.
    pub(crate) fn open_files(&self) -> &Arc<OpenFiles> {
        &self.segments
    }

    /// Opens a file that stays open as long as there are handles of it.
    ///
    /// # Errors
    /// Those of [`OpenFiles::open`].
    pub(crate) fn open(&self, path: &Path, mode: OpenMode) -> Result<File> {
        Ok(self.segments.open(path, mode)?)
    }

    /// The store is closed: gives back contexts and descriptors, even while handles of it exist.
    pub(crate) fn end(&self) {
        self.segments.end();
        self.contexts.end();
    }

    /// The contexts of asynchronous I/O.
    pub(crate) fn contexts(&self) -> &Arc<Contexts> {
        &self.contexts
    }

    /// Lends a context for single operations. `work` calls no code of the user, and does not call this again.
    ///
    /// # Errors
    /// Those of [`Contexts::lend`], and of `work`.
    pub(crate) fn with_queue<R>(&self, work: impl FnOnce(&mut dyn Queue) -> Result<R>) -> Result<R> {
        work(&mut *self.contexts.lend()?)
    }

    /// Lends a context to a job, for single operations.
    ///
    /// # Errors
    /// Those of [`Contexts::lend_to_job`], and of `work`.
    pub(crate) fn with_job_queue<R>(&self, work: impl FnOnce(&mut dyn Queue) -> Result<R>) -> Result<R> {
        work(&mut *self.contexts.lend_to_job(Size::Single)?)
    }

    /// Reads `len_bytes` at `offset`, both aligned for direct I/O.
    pub(crate) fn read(&self, file: &File, offset: u64, len_bytes: usize) -> Result<Buf> {
        self.read_into(file, offset, self.buf(len_bytes))
    }

    /// Reads from a file that is opened if it is not open. Only a reader that has a context needs a descriptor.
    ///
    /// `None` reads for a user, to whom jobs give way. A job keeps to its limit.
    pub(crate) fn read_cached(
        &self,
        job: Option<JobKind>,
        file: &CachedFile,
        offset: u64,
        len_bytes: usize,
    ) -> Result<Buf> {
        match job {
            None => self.note_read(),
            Some(job) => self.background.keep_to_limit(&*self.backend, job, len_bytes),
        }
        self.with_queue(|queue| Ok(aio::file::read_into(queue, &file.get()?, offset, self.buf(len_bytes))?))
    }

    /// Fills the buffer from `offset`, both aligned for direct I/O.
    pub(crate) fn read_into(&self, file: &File, offset: u64, buf: Buf) -> Result<Buf> {
        self.with_queue(|queue| Ok(aio::file::read_into(queue, file, offset, buf)?))
    }

    /// The limits on the I/O of jobs.
    pub(crate) fn background(&self) -> &BackgroundIo {
        &self.background
    }

    /// A user's read goes to the device.
    pub(crate) fn note_read(&self) {
        self.background.note_read(self.backend.now());
    }

    /// A grant of memory for one scan that reads ahead.
    pub(crate) fn read_ahead(&self) -> Grant {
        self.read_ahead.grant()
    }

    /// The reactor for asynchronous reads. The first call starts it, with a thread if `background` and the machine have
    /// threads. One whose context has failed is replaced.
    ///
    /// # Errors
    /// It cannot be started, or the store is closed.
    pub(crate) fn reactor(&self, background: Background) -> Result<Reactor> {
        let mut asynchronous = self.asynchronous.lock();
        match &*asynchronous {
            Asynchronous::Running(reactor) if !reactor.has_failed() => return Ok(reactor.clone()),
            Asynchronous::Unused | Asynchronous::Running(_) => {}
            Asynchronous::Ended => return Err(Error::Closed),
        }
        let reactor = match background {
            Background::Threads => aio::wait_out(&*self.backend, || self.backend.reactor(REACTOR_SLOTS))?,
            Background::Manual => {
                let queue = aio::wait_out(&*self.backend, || self.backend.queue(REACTOR_SLOTS))?;
                Reactor::without_thread(queue)
            }
        };
        *asynchronous = Asynchronous::Running(reactor.clone());
        Ok(reactor)
    }

    /// Refuses asynchronous reads from now on, and waits for those under way.
    pub(crate) fn end_asynchronous(&self) {
        let before = std::mem::replace(&mut *self.asynchronous.lock(), Asynchronous::Ended);
        if let Asynchronous::Running(reactor) = before {
            reactor.shutdown();
        }
    }

    /// A buffer of `len_bytes` with any content, from the store's pool.
    pub(crate) fn buf(&self, len_bytes: usize) -> Buf {
        self.bufs.lease(len_bytes)
    }

    /// Buffers that were leased and not dropped.
    #[cfg(test)]
    pub(crate) fn leases(&self) -> usize {
        self.bufs.leases()
    }
}
