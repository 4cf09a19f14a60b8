//! Removes files that were live: segments whose last reader has gone, and manifests that were replaced.
//!
//! A segment is read for as long as a superversion, an iterator or a merge holds it. So its file becomes due when the last
//! of them lets go of it, if the manifest has stopped naming it by then: its [`WhenUnused`] is dropped once, after the file
//! was closed. A file that was never named by a manifest has no readers; the code that failed to finish it removes it.
//!
//! To free the blocks of a file takes up to a second for a gigabyte. So the thread that drops the last reader only puts the
//! path on a list. A [`Remover`] is told, and calls [`Removals::remove_next`] for one file after the other; the thread of a
//! merge does the same for the files that it has replaced. Without a remover (with `Background::Manual`, so that a run
//! replays from its seed) the file is removed in place. Rejected: to remove under the lock of the list, or to close the file
//! later than its name is removed; either would make the reader wait.
//!
//! While a [`Hold`] exists nothing is removed: a copy of the store, or a check of it, reads files by the names that one
//! version gives. Files that became due in the meantime are removed after the last hold. After the store has closed nothing
//! is removed either, since the directory may belong to another process by then: these files are orphans, and the next open
//! removes them. A close removes due files for [`MOST_AT_CLOSE`] only. So it is prompt; a small store that closes right after
//! a drop of a keyspace gives the space back at once, and a large one at the next open at the latest.
//!
//! A crash between becoming due and the removal leaves an orphan, as does a crash after it: the directory is not synced.
//!
//! Invariant: no path is removed while a hold exists, or after [`Removals::end`] has returned.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aio::Backend;

use crate::base::sync::shared::Mutex;

/// A close begins no removal after this time.
const MOST_AT_CLOSE: Duration = Duration::from_millis(40);

/// A thread that calls [`Removals::remove_next`] until nothing is due.
pub(crate) trait Remover: std::fmt::Debug + Send + Sync {
    /// A file is due. Called without a lock of the removals; must not wait for I/O.
    fn wake(&self);
}

/// Removes the files of a store, later or after the last hold. See the [module](self).
#[derive(Debug)]
pub(crate) struct Removals {
    backend: Arc<dyn Backend>,
    /// Held across each removal; taken by holds and by the end, which wait for the one under way. Taken before `state`.
    removing: Mutex<()>,
    state: Mutex<RemovalState>,
}

#[derive(Debug, Default)]
struct RemovalState {
    holds: usize,
    due: VecDeque<PathBuf>,
    remover: Option<Arc<dyn Remover>>,
    is_ended: bool,
}

impl Removals {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Removals {
        Removals { backend, removing: Mutex::new(()), state: Mutex::default() }
    }

    /// Leaves removals to a thread from now on.
    pub(crate) fn hand_to(&self, remover: Arc<dyn Remover>) {
        self.state.lock().remover = Some(remover);
    }

    /// A file that no version names and nothing reads is due.
    pub(crate) fn remove(&self, path: &Path) {
        // In a forked child the files are the parent's, and the lock may have been held at the fork.
        if self.backend.check_fork().is_err() {
            return;
        }
        let mut state = self.state.lock();
        if !state.is_ended {
            state.due.push_back(path.to_owned());
            drop(state);
            self.begin();
        }
    }

    /// Wakes the remover, or removes here what is due.
    fn begin(&self) {
        let remover = {
            let state = self.state.lock();
            if state.holds > 0 || state.due.is_empty() {
                return;
            }
            state.remover.clone()
        };
        match remover {
            Some(remover) => remover.wake(),
            None => {
                self.remove_all();
            }
        }
    }

    /// Removes one file; false if none is due, or a hold exists.
    pub(crate) fn remove_next(&self) -> bool {
        let _one = self.removing.lock();
        let next = {
            let mut state = self.state.lock();
            if state.holds > 0 || state.is_ended { None } else { state.due.pop_front() }
        };
        if let Some(path) = &next {
            // A file that cannot be removed is an orphan.
            let _ = self.backend.remove(path);
        }
        next.is_some()
    }

    /// Removes all files that are due; false if there was none.
    pub(crate) fn remove_all(&self) -> bool {
        let mut removed = false;
        while self.remove_next() {
            removed = true;
        }
        removed
    }

    /// Keeps every file that is there now, until the hold is dropped.
    pub(crate) fn hold(&self) -> Hold<'_> {
        let _between_removals = self.removing.lock();
        self.state.lock().holds += 1;
        Hold { removals: self }
    }

    /// The store closes: files that are not removed in a short time stay.
    pub(crate) fn end(&self) {
        let until = self.backend.now() + MOST_AT_CLOSE;
        while self.backend.now() < until && self.remove_next() {}
        let _between_removals = self.removing.lock();
        let mut state = self.state.lock();
        state.is_ended = true;
        (state.due, state.remover) = (VecDeque::new(), None);
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
        self.removals.state.lock().holds -= 1;
        self.removals.begin();
    }
}

/// Of one file that is read: makes it due when it is dropped, if no version names it by then.
#[derive(Debug)]
pub(crate) struct WhenUnused {
    removals: Arc<Removals>,
    path: PathBuf,
    is_unnamed: AtomicBool,
}

impl WhenUnused {
    pub(crate) fn new(removals: &Arc<Removals>, path: &Path) -> WhenUnused {
        WhenUnused {
            removals: Arc::clone(removals),
            path: path.to_owned(),
            is_unnamed: AtomicBool::new(false),
        }
    }

    /// No version names the file any more.
    pub(crate) fn unnamed(&self) {
        self.is_unnamed.store(true, Ordering::Relaxed);
    }
}

impl Drop for WhenUnused {
    fn drop(&mut self) {
        if *self.is_unnamed.get_mut() {
            self.removals.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use aio::{BackendLayer, OpenMode, SimBackend};

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

    /// Counts its calls.
    #[derive(Debug, Default)]
    struct Calls(AtomicUsize);

    impl Remover for Calls {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_remover_is_told_and_removes_one_file_at_a_time() {
        let (sim, removals) = machine(&["/a", "/b"]);
        let calls = Arc::new(Calls::default());
        removals.hand_to(Arc::clone(&calls) as Arc<dyn Remover>);
        removals.remove(Path::new("/a"));
        let hold = removals.hold();
        removals.remove(Path::new("/b"));
        assert_eq!(calls.0.load(Ordering::Relaxed), 1, "a hold is no time to remove");
        assert!(!removals.remove_next());
        assert!(is_there(&sim, "/a") && is_there(&sim, "/b"));
        drop(hold);
        assert_eq!(calls.0.load(Ordering::Relaxed), 2);
        assert!(removals.remove_next());
        assert!(!is_there(&sim, "/a") && is_there(&sim, "/b"), "one after the other");
        assert!(removals.remove_next());
        assert!(!is_there(&sim, "/b") && !removals.remove_next());
    }

    /// A disk that waits in each removal until the test has received its path and lets it go on.
    #[derive(Debug)]
    struct SlowRemovals {
        sim: SimBackend,
        entered: Mutex<Sender<PathBuf>>,
        proceed: Mutex<Receiver<()>>,
        clock: AtomicU64,
    }

    impl BackendLayer for SlowRemovals {
        fn below(&self) -> &dyn Backend {
            &self.sim
        }

        fn remove(&self, path: &Path) -> aio::Result<()> {
            self.entered.lock().send(path.to_owned()).unwrap();
            self.proceed.lock().recv().unwrap();
            self.clock.fetch_add(30, Ordering::Relaxed);
            Backend::remove(&self.sim, path)
        }

        fn now(&self) -> Duration {
            Duration::from_millis(self.clock.load(Ordering::Relaxed))
        }
    }

    /// Slow removals of these files, which are due; and what tells of their begin and lets them go on.
    fn slow(names: &[&str]) -> (SimBackend, Removals, Receiver<PathBuf>, Sender<()>) {
        let (sim, _) = machine(names);
        let ((entered, begins), (go_on, proceed)) = (channel(), channel());
        let (entered, proceed, clock) = (Mutex::new(entered), Mutex::new(proceed), AtomicU64::new(0));
        let removals = Removals::new(Arc::new(SlowRemovals { sim: sim.clone(), entered, proceed, clock }));
        removals.hand_to(Arc::new(Calls::default()));
        for name in names {
            removals.remove(Path::new(name));
        }
        (sim, removals, begins, go_on)
    }

    #[test]
    fn a_drop_does_not_wait_for_a_removal_and_a_hold_does() {
        let (sim, removals, begins, go_on) = slow(&["/a", "/b"]);
        std::thread::scope(|scope| {
            let remover = scope.spawn(|| removals.remove_next());
            assert_eq!(begins.recv().unwrap(), Path::new("/a"));
            assert!(removals.removing.try_lock().is_none(), "a hold would not wait");
            // It would never return if it waited.
            removals.remove(Path::new("/c"));
            let holder = scope.spawn(|| {
                let _hold = removals.hold();
                is_there(&sim, "/a")
            });
            go_on.send(()).unwrap();
            assert!(remover.join().unwrap());
            assert!(!holder.join().unwrap(), "the hold began in the middle of a removal");
        });
    }

    #[test]
    fn a_close_removes_for_a_short_time_only() {
        let (sim, removals, begins, go_on) = slow(&["/a", "/b", "/c", "/d"]);
        (0..4).for_each(|_| go_on.send(()).unwrap());
        removals.end();
        // Each takes 30 ms of the time here.
        assert_eq!(begins.try_iter().count(), 2);
        assert!(is_there(&sim, "/c") && is_there(&sim, "/d"), "they are orphans");
    }
}
