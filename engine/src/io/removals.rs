//! Removes files that were live: segments whose last reader has gone, and manifests that were replaced.
//!
//! A segment is read for as long as a superversion, an iterator or a merge holds it. So it removes its own file when the
//! last of them lets go of it, if the manifest has stopped naming it by then ([`Removals::remove`] is called once, by that
//! drop). A file that was never named by a manifest has no readers; the code that failed to finish it removes it directly.
//!
//! While a [`Hold`] exists nothing is removed: a copy of the store, or a check of it, reads files by the names that one
//! version gives. Files that became due in the meantime are removed with the last hold. After the store has closed nothing
//! is removed either, since the directory may belong to another process by then: these files are orphans, and the next open
//! removes them.
//!
//! Invariant: no path is removed while a hold exists, or after [`Removals::end`] has returned.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::Backend;

use crate::base::sync::shared::Mutex;

/// Removes the files of a store, now or after the last hold. See the [module](self).
#[derive(Debug)]
pub(crate) struct Removals {
    backend: Arc<dyn Backend>,
    state: Mutex<RemovalState>,
}

#[derive(Debug, Default)]
struct RemovalState {
    holds: usize,
    /// Due, and kept for the holds.
    waiting: Vec<PathBuf>,
    is_ended: bool,
}

impl Removals {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Removals {
        Removals { backend, state: Mutex::new(RemovalState::default()) }
    }

    /// Removes a file that no version names and nothing reads; later, if there is a hold.
    pub(crate) fn remove(&self, path: &Path) {
        // In a forked child the files are the parent's, and the lock may have been held at the fork.
        if self.backend.check_fork().is_err() {
            return;
        }
        let mut state = self.state.lock();
        if state.is_ended {
            return;
        }
        if state.holds > 0 {
            state.waiting.push(path.to_owned());
        } else {
            self.unlink(path);
        }
    }

    /// Keeps every file that is there now, until the hold is dropped.
    pub(crate) fn hold(&self) -> Hold<'_> {
        self.state.lock().holds += 1;
        Hold { removals: self }
    }

    /// The store closes: files that are not removed yet stay.
    pub(crate) fn end(&self) {
        self.state.lock().is_ended = true;
    }

    /// A file that cannot be removed is an orphan.
    fn unlink(&self, path: &Path) {
        let _ = self.backend.remove(path);
    }
}

/// Keeps files from being removed.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    removals: &'a Removals,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.removals.backend.check_fork().is_err() {
            return;
        }
        let mut state = self.removals.state.lock();
        state.holds -= 1;
        if state.holds == 0 && !state.is_ended {
            for path in std::mem::take(&mut state.waiting) {
                self.removals.unlink(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aio::{OpenMode, SimBackend};

    use super::*;

    /// A machine with these files, and their removals.
    fn machine(names: &[&str]) -> (SimBackend, Removals) {
        let sim = SimBackend::new(1);
        for name in names {
            sim.open(Path::new(name), OpenMode::Create).unwrap();
        }
        (sim.clone(), Removals::new(Arc::new(sim)))
    }

    fn is_there(sim: &SimBackend, name: &str) -> bool {
        sim.stat(Path::new(name)).unwrap().is_some()
    }

    #[test]
    fn a_file_is_removed_at_once_without_a_hold() {
        let (sim, removals) = machine(&["/a", "/b"]);
        removals.remove(Path::new("/a"));
        assert!(!is_there(&sim, "/a") && is_there(&sim, "/b"));
    }

    #[test]
    fn a_held_file_is_removed_with_the_last_hold() {
        let (sim, removals) = machine(&["/a"]);
        let (first, second) = (removals.hold(), removals.hold());
        removals.remove(Path::new("/a"));
        drop(first);
        assert!(is_there(&sim, "/a"), "one hold is left");
        drop(second);
        assert!(!is_there(&sim, "/a"));
    }

    #[test]
    fn nothing_is_removed_after_the_end() {
        let (sim, removals) = machine(&["/a", "/b"]);
        let hold = removals.hold();
        removals.remove(Path::new("/a"));
        removals.end();
        removals.remove(Path::new("/b"));
        drop(hold);
        assert!(is_there(&sim, "/a") && is_there(&sim, "/b"), "both are orphans");
    }
}
