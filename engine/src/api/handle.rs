//! What every public handle holds: the store, its threads and its lock, ended together with the last handle.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aio::{Bug, Lock, planted};

use crate::base::error::{Error, Result};
use crate::base::sync::shared::Mutex;
use crate::compaction::flush::flush_at_close;
use crate::compaction::scheduler::Threads;
use crate::manifest::version::Edit;
use crate::tree::store::Store;

/// Counted by every handle. Background threads hold the store only, so the last handle ends them.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Owner>);

struct Owner {
    store: Arc<Store>,
    /// Taken by whoever closes; the lock file is released last.
    running: Mutex<Option<Running>>,
}

struct Running {
    threads: Threads,
    _lock: Box<dyn Lock>,
}

impl Handle {
    pub(crate) fn new(store: Arc<Store>, threads: Threads, lock: Box<dyn Lock>) -> Handle {
        Handle(Arc::new(Owner { store, running: Mutex::new(Some(Running { threads, _lock: lock })) }))
    }

    #[inline]
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Closes for all handles: later calls get [`Error::Closed`]. The second close does nothing.
    ///
    /// What was written is flushed, so that the next open replays nothing; if that fails, the log still has it.
    pub(crate) fn close(&self) -> Result<()> {
        self.0.close()
    }
}

impl Owner {
    fn close(&self) -> Result<()> {
        // In a forked child the threads do not exist, and log and lock are the parent's: nothing is waited for, written
        // or released.
        self.store.files.backend().check_fork()?;
        let mut running = self.running.lock();
        let Some(mut ending) = running.take() else { return Ok(()) };
        let store = &self.store;
        {
            // Writers that are past their check finish first: they hold the gate.
            let _alone = store.gate.write();
            store.closed.store(true, Ordering::Release);
        }
        store.all_trees().iter().for_each(|tree| tree.retire());
        ending.threads.stop(store);
        store.files.end_asynchronous();
        // A compaction that another thread asked for ends first, and no other begins: its inputs are removed at its
        // end, when the lock file must still be ours.
        drop(store.compacting.lock());
        let flushed = flush_all(store);
        let closed = store.latch(store.log.close().map_err(Error::from));
        // Nobody reads any more, and handles may keep the store for long.
        store.cache.clear();
        let forgotten = if flushed.is_ok() && closed.is_ok() { forget_log(store) } else { Ok(()) };
        // A disk too full for segments or a manifest is no reason to report a failed close: the log has everything.
        let lenient = |result| match result {
            Err(Error::NoSpace { .. }) => Ok(()),
            other => other,
        };
        closed.and(lenient(flushed)).and(lenient(forgotten))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Nobody is left to tell. Everything acknowledged is durable as promised whatever happens here.
        let _ = self.close();
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("store", &self.store.files.root()).finish_non_exhaustive()
    }
}

/// Makes everything durable and moves it to segments.
fn flush_all(store: &Store) -> Result<()> {
    store.log.sync()?;
    if planted(Bug::CloseForgetsUnflushed) {
        return Ok(());
    }
    store.freeze(|_| true);
    flush_at_close(store)
}

/// After a clean close the log holds nothing that is not in segments, so the next open need not read it.
fn forget_log(store: &Store) -> Result<()> {
    let end = store.log.published();
    let retired = store.manifest.version().logs.iter().map(|file| file.id).collect();
    store.manifest.append(&[Edit::Horizon { at: end, retired }])
}

#[cfg(test)]
mod tests {
    use aio::SimBackend;

    use super::*;
    use crate::api::db::Db;
    use crate::compaction::flush::flush_frozen;
    use crate::compaction::job::{Depth, compact_all};
    use crate::testing::{Background, BuilderExt, Sizes};
    use crate::upkeep::verify;
    use crate::write::create_drop;

    /// A store with two runs, and the machine under it.
    fn two_runs() -> (SimBackend, Db, Arc<Store>) {
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
        let store = Arc::clone(ks.store());
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
        compact_all(&store, Depth::Full, &|| false).unwrap();
        flush_frozen(&store).unwrap();
        assert!(matches!(create_drop::open_or_create(&store, "new"), Err(Error::Closed)));
        assert!(matches!(create_drop::drop_keyspace(&store, "default"), Err(Error::Closed)));
        assert!(matches!(verify::verify(&store), Err(Error::Closed)));
        assert_eq!(sim.events(), events);
    }

    #[test]
    fn a_close_waits_for_a_compaction_of_another_thread() {
        let (_sim, db, store) = two_runs();
        std::thread::scope(|scope| {
            let compacting = store.compacting.lock();
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
