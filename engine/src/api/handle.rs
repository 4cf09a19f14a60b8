//! The handle inside every public type: it counts the users of a store, and ends threads and lock with the last one.

use std::fmt;
use std::sync::Arc;

use aio::Lock;

use crate::base::error::{Error, Result};
use crate::base::planted::{Bug, planted};
use crate::base::sync::shared::Mutex;
use crate::compaction::flush::flush_at_close;
use crate::compaction::scheduler::Threads;
use crate::manifest::version::Edit;
use crate::tree::store::Store;
use crate::tree::writing::Writing;

/// A counted handle on a store. Background threads hold the store but no handle, so the last handle ends them.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<OpenStore>);

struct OpenStore {
    store: Arc<Store>,
    /// Missing in a store that is only read.
    writing: Option<Arc<Writing>>,
    /// Taken by the close; the lock file is released last.
    running: Mutex<Option<Running>>,
}

struct Running {
    threads: Threads,
    _lock: Option<Box<dyn Lock>>,
}

impl Handle {
    /// A store that reads and writes.
    pub(crate) fn new(writing: Arc<Writing>, threads: Threads, lock: Box<dyn Lock>) -> Handle {
        let store = Arc::clone(writing.shared());
        let running = Mutex::new(Some(Running { threads, _lock: Some(lock) }));
        Handle(Arc::new(OpenStore { store, writing: Some(writing), running }))
    }

    /// A store that is only read: it has no writing part, no threads and no lock.
    #[cfg(test)]
    pub(crate) fn reading(store: Arc<Store>) -> Handle {
        let running = Mutex::new(Some(Running { threads: Threads::default(), _lock: None }));
        Handle(Arc::new(OpenStore { store, writing: None, running }))
    }

    /// The part that reads share.
    #[inline]
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// The part that only writers have.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]: this store has none.
    #[inline]
    pub(crate) fn writing(&self) -> Result<&Arc<Writing>> {
        self.0.writing.as_ref().ok_or(Error::ReadOnly)
    }

    /// Closes for all handles: later calls get [`Error::Closed`]. The second close does nothing.
    ///
    /// Memtables are flushed, so that the next open replays nothing; if that fails, the log still has everything.
    pub(crate) fn close(&self) -> Result<()> {
        self.0.close()
    }
}

impl OpenStore {
    fn close(&self) -> Result<()> {
        // In a forked child the threads do not exist, and log and lock are the parent's: nothing is waited for, written
        // or released.
        self.store.files.backend().check_fork()?;
        let mut running = self.running.lock();
        let Some(mut ending) = running.take() else { return Ok(()) };
        {
            // Writers that are past their check finish first: they hold the gate.
            let _alone = self.writing.as_ref().map(|writing| writing.hold_gate_alone());
            self.store.mark_closed();
        }
        self.store.files.background().end();
        self.store.all_trees().iter().for_each(|tree| tree.retire());
        if let Some(writing) = &self.writing {
            ending.threads.stop(writing);
        }
        self.store.files.end_asynchronous();
        let ended = self.writing.as_ref().map_or(Ok(()), |writing| end_writing(writing));
        // Before the lock goes: readers that outlive the close leave files to the next open.
        self.store.files.removals().end();
        // Reads are refused by now, and handles may keep the store for long.
        self.store.cache.clear();
        self.store.files.end();
        self.store.tell_fall_backs();
        ended
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        // No caller is left to get an error. Acknowledged writes are durable as promised, whether or not this succeeds.
        let _ = self.close();
    }
}

impl fmt::Debug for OpenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStore").field("store", &self.store.files.root()).finish_non_exhaustive()
    }
}

/// Flushes all memtables, ends the log, and forgets it if all of it is in segments.
fn end_writing(store: &Writing) -> Result<()> {
    // A compaction of another thread has noticed the close and ends, and no other begins: while it ends it may write to
    // files, so the lock file must still be ours.
    drop(store.exclude_compactions());
    let flushed = flush_all(store).or_else(|error| {
        // The output of a merge that the close has ended may take the space. Then promptness has to wait.
        let lacks_space = matches!(error, Error::NoSpace { .. });
        if lacks_space && store.files.removals().remove_all() { flush_all(store) } else { Err(error) }
    });
    // A flush of another thread may still remove log files, by names that the next open may use again. No other begins.
    drop(store.exclude_flushes());
    let closed = store.latch(store.log.close().map_err(Error::from));
    let forgotten = if flushed.is_ok() && closed.is_ok() { forget_log(store) } else { Ok(()) };
    // A disk too full for segments or a manifest is no reason to report a failed close: the log has everything.
    let lenient = |result| match result {
        Err(Error::NoSpace { .. }) => Ok(()),
        other => other,
    };
    closed.and(lenient(flushed)).and(lenient(forgotten))
}

/// Makes every write durable and writes all memtables to segments.
fn flush_all(store: &Writing) -> Result<()> {
    store.log.sync()?;
    if planted(Bug::CloseForgetsUnflushed) {
        return Ok(());
    }
    store.freeze(|_| true);
    flush_at_close(store)
}

/// A closed store has no more log files than one that has just taken its first writes: one for the next life to write to, and
/// a spare.
const LOG_FILES_LEFT: usize = 2;

/// After a clean close the log holds nothing that is not in segments, so the next open need not read it.
fn forget_log(store: &Writing) -> Result<()> {
    let end = store.log.published();
    let retired = store.manifest.version().logs.iter().map(|file| file.id).collect();
    store.manifest.append(&[Edit::Horizon { at: end, retired }])?;
    // A file that cannot be removed does no harm.
    let _ = store.log.leave_files(LOG_FILES_LEFT);
    Ok(())
}

#[cfg(test)]
#[path = "read_only_tests.rs"]
mod read_only;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use aio::{Backend, SimBackend};

    use super::*;
    use crate::api::db::Db;
    use crate::compaction::flush::flush_frozen;
    use crate::compaction::job::compact_fully;
    use crate::io::background::JobKind;
    use crate::testing::{Background, BuilderExt, Sizes};
    use crate::upkeep::verify;
    use crate::write::create_drop;

    /// A store with two runs, and the machine under it.
    fn two_runs() -> (SimBackend, Db, Arc<Writing>) {
        let sim = SimBackend::new(1);
        let sizes = Sizes { ring_bytes: Some(1 << 16), log_file_bytes: Some(1 << 16), ..Sizes::default() };
        let builder =
            Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).sizes(sizes);
        let db = builder.open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        for value in ["1", "2"] {
            ks.put("key", value).unwrap();
            db.flush().unwrap();
        }
        let store = Arc::clone(db.handle().writing().unwrap());
        (sim, db, store)
    }

    #[test]
    fn nothing_is_written_or_removed_after_a_close() {
        let (sim, db, store) = two_runs();
        assert!(db.keyspace("default").unwrap().get("key").unwrap().is_some());
        assert!(store.cache.stats().values > 0);
        db.close().unwrap();
        assert_eq!(store.cache.stats().values, 0, "memory is given back though there are handles");
        // Called as by threads that had found the store open before.
        let events = sim.events();
        assert!(matches!(compact_fully(&store), Err(Error::Closed)));
        flush_frozen(&store).unwrap();
        assert!(matches!(create_drop::create(&store, "new"), Err(Error::Closed)));
        assert!(matches!(create_drop::drop_keyspace(&store, "default"), Err(Error::Closed)));
        assert!(matches!(verify::verify(store.shared(), Some(&store)), Err(Error::Closed)));
        assert_eq!(sim.events(), events);
    }

    #[test]
    fn a_close_does_not_wait_for_the_limit_on_background_io() {
        let sim = SimBackend::new(1);
        let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
        let db = builder.background_bytes_per_second(1 << 20).open("/store").unwrap();
        let store = Arc::clone(db.handle().store());
        let waits = || {
            let before = sim.now();
            store.files.background().keep_to_limit(&sim, JobKind::Merge, 10 << 20);
            sim.now() > before
        };
        assert!(waits());
        db.close().unwrap();
        assert!(!waits());
    }

    /// Writers wait for flushes, so a call that waits for a merge must not keep flushes from running.
    #[test]
    fn who_needs_both_locks_of_jobs_takes_that_of_compactions_first() {
        let (_sim, db, store) = two_runs();
        db.keyspace("other").unwrap();
        let calls: [&(dyn Fn() -> Result<()> + Sync); 2] =
            [&|| db.drop_keyspace("other"), &|| db.verify().map(drop)];
        for call in calls {
            std::thread::scope(|scope| {
                let flushing = store.exclude_flushes();
                let called = scope.spawn(call);
                // A minute in all.
                let (_sender, pause) = mpsc::channel::<()>();
                let mut looks = (0..6000).map(|_| {
                    let _ = pause.recv_timeout(Duration::from_millis(10));
                    store.has_compaction()
                });
                let is_first = looks.any(|has_compaction| has_compaction);
                drop(flushing);
                called.join().unwrap().unwrap();
                assert!(is_first);
            });
        }
    }

    #[test]
    fn a_close_waits_for_a_compaction_of_another_thread() {
        let (_sim, db, store) = two_runs();
        std::thread::scope(|scope| {
            let compacting = store.exclude_compactions();
            let closing = scope.spawn(|| db.close());
            while !store.is_closed() {
                std::thread::yield_now();
            }
            assert!(!closing.is_finished());
            drop(compacting);
            closing.join().unwrap().unwrap();
        });
    }
}
