//! The open files of segments: a store may have more segments than its process may have descriptors.
//!
//! ```text
//!   open -> kept -> closed, as it was not used for a while -> opened at the next read -> kept -> ...
//! ```
//!
//! A read asks for the file each time and holds its own handle while the kernel works on it, so a file may be closed here at
//! any moment. A cached block asks for none. The file to close is found by the clock algorithm: a hand goes round, passes the
//! files that were used since its last round, and takes the first other one.
//!
//! Invariants: at most `most` files are kept or being opened for it, except where more threads open files at the same time.
//! The lock is held across no call of the machine. A file that is kept stands at `at` of its place. After
//! [`OpenFiles::end`] no file is kept or opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aio::{Alignment, Backend, File, OpenMode};

use crate::base::error::Result;
use crate::base::sync::shared::Mutex;
use crate::io::kinds::FileKind;

/// Files kept open at most, by default. Half of the descriptors of the process if that is less: the rest is for its other
/// parts, and for the log and files in the making.
const MOST_OPEN: usize = 16 << 10;

/// [`Place::at`] of a file that is not kept.
const CLOSED: usize = usize::MAX;

/// The open files of a store. See the [module](self).
#[derive(Debug)]
pub(crate) struct OpenFiles {
    backend: Arc<dyn Backend>,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<Kept>,
    hand: usize,
    /// Files that threads are opening now, to keep them.
    opening: usize,
    is_ended: bool,
}

#[derive(Debug)]
struct Kept {
    file: File,
    was_used: bool,
    place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    alignment: Alignment,
    /// Where the file stands in the list of kept ones. Changed and read under its lock.
    at: AtomicUsize,
    /// Held while the file is opened, so that it is opened once.
    opening: Mutex<()>,
}

/// A file that is opened when it is read. It is closed at the latest with this handle.
#[derive(Debug)]
pub(crate) struct CachedFile {
    place: Arc<Place>,
    of: Arc<OpenFiles>,
}

impl OpenFiles {
    /// `most`: files kept open, if that is to be less than the default.
    pub(crate) fn new(backend: Arc<dyn Backend>, most: Option<usize>) -> Arc<OpenFiles> {
        let half = |limit: u64| usize::try_from(limit / 2).unwrap_or(usize::MAX);
        let possible = backend.descriptor_limit().map_or(usize::MAX, half).min(MOST_OPEN);
        let most = most.unwrap_or(possible).clamp(1, possible.max(1));
        Arc::new(OpenFiles { backend, most, state: Mutex::default() })
    }

    /// Opens a file for reading, and keeps it open as long as there is room.
    ///
    /// # Errors
    /// Those of [`OpenFiles::open`].
    pub(crate) fn open_cached(self: &Arc<Self>, path: &Path) -> aio::Result<CachedFile> {
        let file = self.open_to_keep(path)?;
        let place = Arc::new(Place {
            path: path.to_owned(),
            alignment: file.alignment(),
            at: AtomicUsize::new(CLOSED),
            opening: Mutex::default(),
        });
        self.keep(&place, file)?;
        Ok(CachedFile { place, of: Arc::clone(self) })
    }

    /// Opens any file. Where there are no descriptors left, files that are kept are closed first; then it waits for up to five
    /// seconds.
    ///
    /// # Errors
    /// Those of [`Backend::open`].
    pub(crate) fn open(&self, path: &Path, mode: OpenMode) -> aio::Result<File> {
        let file = aio::wait_out(&*self.backend, || {
            loop {
                match self.backend.open(path, mode) {
                    Err(error) if error.is_not_now() && self.close_one() => {}
                    answer => return answer,
                }
            }
        })?;
        if let Some(kind) = FileKind::of(path) {
            file.set_kind(kind.label());
        }
        Ok(file)
    }

    /// Files that are kept open now.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().kept.len()
    }

    /// The store is closed: closes all files. None is opened any more.
    pub(crate) fn end(&self) {
        let kept = {
            let mut state = self.state.lock();
            state.is_ended = true;
            state.kept.iter().for_each(|kept| kept.place.at.store(CLOSED, Ordering::Relaxed));
            std::mem::take(&mut state.kept)
        };
        drop(kept);
    }

    /// The file, if it is kept.
    fn find(&self, place: &Place) -> aio::Result<Option<File>> {
        let mut state = self.state.lock();
        if state.is_ended {
            return Err(aio::Error::Closed);
        }
        let kept = state.kept.get_mut(place.at.load(Ordering::Relaxed));
        Ok(kept.map(|kept| {
            kept.was_used = true;
            kept.file.clone()
        }))
    }

    /// Opens a file to keep it. There is room for it when it is open.
    fn open_to_keep(&self, path: &Path) -> aio::Result<File> {
        let closed = {
            let mut state = self.state.lock();
            if state.is_ended {
                return Err(aio::Error::Closed);
            }
            state.opening += 1;
            state.make_room(self.most)
        };
        drop(closed);
        let opened = self.open(path, OpenMode::Read);
        self.state.lock().opening -= 1;
        opened
    }

    fn keep(&self, place: &Arc<Place>, file: File) -> aio::Result<()> {
        let mut state = self.state.lock();
        if state.is_ended {
            return Err(aio::Error::Closed);
        }
        place.at.store(state.kept.len(), Ordering::Relaxed);
        state.kept.push(Kept { file, was_used: true, place: Arc::clone(place) });
        let closed = state.make_room(self.most);
        drop(state);
        drop(closed);
        Ok(())
    }

    /// Closes one kept file; false if there is none.
    fn close_one(&self) -> bool {
        let closed = self.state.lock().close_one();
        closed.is_some()
    }
}

impl State {
    /// Takes out the files that are too many, for the caller to close without the lock.
    fn make_room(&mut self, most: usize) -> Vec<File> {
        let surplus = (self.kept.len() + self.opening).saturating_sub(most);
        (0..surplus).map_while(|_| self.close_one()).collect()
    }

    /// Takes out the file whose last use is longest ago, about.
    fn close_one(&mut self) -> Option<File> {
        // After one round no file counts as used.
        loop {
            if self.hand >= self.kept.len() {
                self.hand = 0;
            }
            let kept = self.kept.get_mut(self.hand)?;
            if !std::mem::take(&mut kept.was_used) {
                return Some(self.take_out(self.hand));
            }
            self.hand += 1;
        }
    }

    fn take_out(&mut self, at: usize) -> File {
        let gone = self.kept.swap_remove(at);
        gone.place.at.store(CLOSED, Ordering::Relaxed);
        if let Some(moved) = self.kept.get(at) {
            moved.place.at.store(at, Ordering::Relaxed);
        }
        gone.file
    }
}

impl CachedFile {
    /// The file, open as long as the caller has this handle of it.
    ///
    /// # Errors
    /// It is closed and cannot be opened; or the store is closed.
    pub(crate) fn get(&self) -> Result<File> {
        if let Some(file) = self.of.find(&self.place)? {
            return Ok(file);
        }
        let _one_opens = self.place.opening.lock();
        if let Some(file) = self.of.find(&self.place)? {
            return Ok(file);
        }
        let file = self.of.open_to_keep(&self.place.path)?;
        self.of.keep(&self.place, file.clone())?;
        Ok(file)
    }

    /// The alignment of reads.
    pub(crate) fn alignment(&self) -> Alignment {
        self.place.alignment
    }
}

impl Drop for CachedFile {
    fn drop(&mut self) {
        // In a forked child the lock may have been held at the fork.
        if self.of.backend.check_fork().is_err() {
            return;
        }
        let mut state = self.of.state.lock();
        let at = self.place.at.load(Ordering::Relaxed);
        let closed = (at != CLOSED).then(|| state.take_out(at));
        drop(state);
        drop(closed);
    }
}

#[cfg(test)]
#[path = "open_files_tests.rs"]
mod tests;
