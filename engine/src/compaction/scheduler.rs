//! The scheduler: it runs the requested flushes and compactions. The only file of this crate that starts threads.
//!
//! With [`Background::Threads`] two threads wait for work, so that a long merge never delays a flush. The thread of flushes
//! also removes files, so that no reader does. With [`Background::Manual`] the caller that asks for work does it before its
//! call returns.
//!
//! A failed job is retried: by the next writer that needs the memory, and by its thread after [`RETRY_AFTER`]. Its error is
//! kept for the writers (`NoSpace`) and reported to the listener. A job that panics halts the store: its work is half done,
//! and no thread would complete it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::options::Background;
use crate::base::sync::shared::thread::{self, JoinHandle};
use crate::compaction::flush::flush_frozen;
use crate::compaction::job::{Next, merge_next};
use crate::io::removals::Remover;
use crate::tree::writing::{Requests, Writing};

/// The pause of a job's thread between a failure and the retry.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The loop of a thread, which ends when the store closes.
type Job = fn(&Writing);

/// The threads of a store.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    handles: Vec<JoinHandle<()>>,
}

/// Sets the pace of writes, and starts the background threads; none in manual mode.
pub(crate) fn start(store: &Arc<Writing>) -> Result<Threads> {
    let mut threads = Threads::default();
    // The last incarnation may have left more runs than the shape has.
    store.all_trees().iter().for_each(|tree| store.adjust_pace(tree));
    if store.options.background == Background::Manual {
        return Ok(threads);
    }
    // A merge that the last close has given up.
    store.jobs.requests.lock().compact = true;
    store.files.removals().hand_to(Arc::clone(&store.jobs) as Arc<dyn Remover>);
    let jobs: [(&str, Job); 2] = [("esker-flush", flush_loop), ("esker-compact", compact_loop)];
    for (name, job) in jobs {
        let start = || {
            let shared = Arc::clone(store);
            let body = move || {
                // The application's signal handlers must never run on our threads.
                aio::block_all_signals();
                let _guard = PanicGuard { store: &shared, name };
                job(&shared);
            };
            let started = thread::Builder::new().name(name.to_owned()).spawn(body);
            started.map_err(|error| aio::Error::call("start thread", name.as_ref(), aio::Errno::from(&error)))
        };
        match aio::wait_out(&**store.files.backend(), start) {
            Ok(handle) => threads.handles.push(handle),
            Err(error) => {
                threads.stop(store);
                return Err(error.into());
            }
        }
    }
    Ok(threads)
}

impl Threads {
    /// Ends the threads, after the flush and before the end of the merge that they run now.
    pub(crate) fn stop(&mut self, store: &Writing) {
        store.jobs.requests.lock().ended.get_or_insert(Error::Closed);
        store.jobs.changed.notify_all();
        for handle in self.handles.drain(..) {
            // A panic on a job's thread was printed there and has halted the store.
            let _ = handle.join();
        }
    }
}

/// Halts the store if its thread panics, so that no writer waits for a flush that will not come.
struct PanicGuard<'a> {
    store: &'a Writing,
    name: &'static str,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = Error::internal(format!("the background thread {} panicked", self.name));
            self.store.log.halt(&cause.clone().into_wal());
            self.store.jobs.requests.lock().ended = Some(Error::Halted { cause: Arc::new(cause) });
            self.store.jobs.changed.notify_all();
        }
    }
}

/// Asks for a flush of the frozen memtables, and then for the compactions that are due.
pub(crate) fn request_flush(store: &Writing) {
    store.jobs.requests.lock().flush = true;
    if store.options.background == Background::Manual {
        run_pending(store);
    } else {
        store.jobs.changed.notify_all();
    }
}

/// In manual mode: holds requested work back from now on, or releases it. A writer that waits for memory does the work
/// anyway, and so does a call that flushes or compacts.
pub(crate) fn hold(store: &Writing, held: bool) {
    store.jobs.held.store(held, Ordering::Relaxed);
    if store.options.background == Background::Manual {
        run_pending(store);
    }
}

/// Asks for a spare log file. Does nothing in manual mode, where the writer that needs the file makes it.
pub(crate) fn request_spare(store: &Writing) {
    let by_thread = store.options.background == Background::Threads;
    if by_thread && !store.jobs.spare_asked.swap(true, Ordering::Relaxed) {
        store.jobs.requests.lock().spare = true;
        store.jobs.changed.notify_all();
    }
}

/// Flushes on this thread.
///
/// # Errors
/// Those of [`flush_frozen`].
pub(crate) fn flush_now(store: &Writing) -> Result<()> {
    let result = flush_frozen(store);
    finish_flush(store, result.clone());
    if store.options.background == Background::Manual {
        run_pending(store);
    }
    result
}

/// Waits until a flush has ended since this call began, or none `is_needed` any more: then frozen memtables are flushed all the
/// same. In manual mode this thread flushes.
///
/// # Errors
/// The error of the flush: the disk is full, or the store has halted. `Closed` while the store closes.
pub(crate) fn wait_for_flush(store: &Writing, is_needed: impl Fn() -> bool) -> Result<()> {
    if store.options.background == Background::Manual {
        finish_flush(store, flush_frozen(store));
        run_pending(store);
    }
    let mut requests = store.jobs.requests.lock();
    let by_thread = store.options.background == Background::Threads;
    if by_thread && !is_needed() {
        if store.memtable_bytes().frozen > 0 && !std::mem::replace(&mut requests.flush, true) {
            store.jobs.changed.notify_all();
        }
        return Ok(());
    }
    if by_thread {
        // Also after a failed flush: this writer's request tests whether there is space again. A flush that already ran
        // may fail for a cause that is gone, so only the failure of a second one is returned.
        let before = requests.attempts;
        while requests.attempts == before || requests.attempts == before + 1 && requests.flush_error.is_some()
        {
            if let Some(why) = &requests.ended {
                return Err(why.clone());
            }
            // Only the writer that sets the flag wakes the thread: waiting writers must not wake each other in turn.
            if !std::mem::replace(&mut requests.flush, true) {
                store.jobs.changed.notify_all();
            }
            store.jobs.changed.wait(&mut requests);
            // Another keyspace's flush may have failed.
            if !is_needed() {
                return Ok(());
            }
        }
    }
    if is_needed() { requests.flush_error.clone().map_or(Ok(()), Err) } else { Ok(()) }
}

/// Manual mode: does all requested work in this thread, unless it is held back.
fn run_pending(store: &Writing) {
    while !store.jobs.held.load(Ordering::Relaxed) {
        let (flush, compact) = {
            let mut requests = store.jobs.requests.lock();
            (std::mem::take(&mut requests.flush), std::mem::take(&mut requests.compact))
        };
        if flush {
            finish_flush(store, flush_frozen(store));
        } else if compact {
            merge_due(store, &mut BTreeMap::new());
        } else {
            return;
        }
    }
}

fn flush_loop(store: &Writing) {
    let removals = store.files.removals();
    while wait_for_work(store, |requests| requests.flush || requests.spare || requests.remove) {
        if std::mem::take(&mut store.jobs.requests.lock().spare) {
            make_spare(store);
        }
        if std::mem::take(&mut store.jobs.requests.lock().flush) && finish_flush(store, flush_frozen(store)) {
            retry_later(store, |requests| &mut requests.flush);
        }
        // One file at a time, so that a flush waits for one removal at most.
        if std::mem::take(&mut store.jobs.requests.lock().remove) && removals.remove_next() {
            store.jobs.requests.lock().remove = true;
        }
        store.files.contexts().trim();
    }
}

fn compact_loop(store: &Writing) {
    let mut failed = BTreeMap::new();
    while wait_for_work(store, |requests| std::mem::take(&mut requests.compact)) {
        if merge_due(store, &mut failed) {
            retry_later(store, |requests| &mut requests.compact);
        }
    }
}

/// Makes a spare log file. After a failure it is not requested again until a flush has succeeded; meanwhile the writer that
/// needs the file tries to make it and gets the error.
fn make_spare(store: &Writing) {
    // A failed sync of the folder has halted the log, and the listener is to hear of it.
    if store.latch(store.files.with_queue(|queue| Ok(store.log.prepare_spare(queue)?))).is_ok() {
        store.jobs.spare_asked.store(false, Ordering::Relaxed);
    }
}

/// Sleeps until there is work; false when the store closes.
fn wait_for_work(store: &Writing, has_work: impl Fn(&mut Requests) -> bool) -> bool {
    let mut requests = store.jobs.requests.lock();
    loop {
        if requests.ended.is_some() {
            return false;
        }
        if has_work(&mut requests) {
            return true;
        }
        store.jobs.changed.wait(&mut requests);
    }
}

/// Requests the work again after [`RETRY_AFTER`], unless it is requested earlier or the store closes.
fn retry_later(store: &Writing, flag: impl Fn(&mut Requests) -> &mut bool) {
    if store.health().is_err() {
        return;
    }
    let until = store.files.backend().now() + RETRY_AFTER;
    let mut requests = store.jobs.requests.lock();
    while requests.ended.is_none() && !*flag(&mut requests) {
        let left = until.saturating_sub(store.files.backend().now());
        if left.is_zero() || store.jobs.changed.wait_for(&mut requests, left).timed_out() {
            *flag(&mut requests) = true;
        }
    }
}

/// Stores the result of a flush; true if it failed.
fn finish_flush(store: &Writing, result: Result<()>) -> bool {
    let failed = result.is_err();
    if failed {
        // Its output, or files that take the space which it lacks.
        store.remove_due();
    }
    {
        let mut requests = store.jobs.requests.lock();
        requests.compact |= !failed;
        requests.flush_error = result.as_ref().err().cloned();
        requests.attempts += 1;
    }
    if !failed {
        store.jobs.spare_asked.store(false, Ordering::Relaxed);
    }
    store.jobs.changed.notify_all();
    report(store, result);
    failed
}

/// A keyspace whose merge has failed.
struct FailedMerge {
    /// It is not tried again before.
    until: Duration,
    /// Whether to try again without another cause.
    may_pass: bool,
}

/// Merges until no merge is due; true if one is to be tried again later.
///
/// A keyspace whose merge fails does not stop the others. With a thread its turn comes again while they go on: they may do so
/// for ever. Without one it is with the next call, which begins with an empty `failed`.
fn merge_due(store: &Writing, failed: &mut BTreeMap<u32, FailedMerge>) -> bool {
    let now = || store.files.backend().now();
    loop {
        if let Err(error) = store.check_writable() {
            report(store, Err(error));
            return false;
        }
        let began = now();
        failed.retain(|_, merge| began < merge.until);
        let next = merge_next(store, |keyspace| failed.contains_key(&keyspace));
        store.jobs.changed.notify_all();
        match next {
            Next::NoneDue => return failed.values().any(|merge| merge.may_pass),
            Next::Merged => report(store, Ok(())),
            Next::Failed(keyspace, error) => {
                let may_pass = matches!(error, Error::NoSpace { .. } | Error::Io { .. });
                report(store, Err(error));
                if store.check_writable().is_err() {
                    return false;
                }
                // So merges that fail take half of the time at most.
                let pause = RETRY_AFTER.max(now().saturating_sub(began));
                let has_thread = store.options.background == Background::Threads;
                let until = if has_thread { now() + pause } else { Duration::MAX };
                failed.insert(keyspace, FailedMerge { until, may_pass });
            }
        }
    }
}

/// Counts a failed job and tells the listener, except of a halt, which was reported already. A job that a close ended has not
/// failed. Tells the fall-backs, too.
fn report(store: &Writing, result: Result<()>) {
    match store.latch(result) {
        Ok(()) | Err(Error::Closed) => {}
        Err(Error::Halted { .. }) => store.counters.failed_job(),
        Err(error) => {
            store.counters.failed_job();
            store.tell(&Event::BackgroundError { error });
        }
    }
    store.tell_fall_backs();
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use aio::sim::{EventKind, Fault, FaultPlan};
    use aio::{Errno, SimBackend};

    use super::*;
    use crate::base::events::Listener;
    use crate::base::key::{Kind, Seq};
    use crate::base::options::{Options, Sizes};
    use crate::recovery::open;
    use crate::testing::{BuilderExt, DbExt};
    use crate::{Db, Durability};

    #[test]
    fn a_writer_does_not_wait_for_threads_that_have_ended() {
        let sizes = Sizes { ring_bytes: Some(1 << 16), log_file_bytes: Some(1 << 16), ..Sizes::default() };
        let options = Options { background: Background::Threads, sizes, ..Options::default() };
        let backend = Arc::new(SimBackend::new(1));
        let opened = open::open(backend, "/store".as_ref(), options).unwrap();
        let (store, _lock) = (opened.store, opened.lock);
        // The situation of a writer that was admitted just before another thread closed the store.
        let active = store.find_tree("default").unwrap().active();
        store.note_inserted(active.insert(b"key", Seq::new(0), Kind::Put, b"value"));
        store.freeze(|_| true);
        assert!(store.memtable_bytes().frozen > 0);
        store.jobs.requests.lock().ended = Some(Error::Closed);
        assert!(matches!(wait_for_flush(&store, || true), Err(Error::Closed)));
        // Another flush may have made the wait needless before it began, and the tables may have been frozen after that one.
        assert!(!std::mem::take(&mut store.jobs.requests.lock().flush));
        wait_for_flush(&store, || false).unwrap();
        assert!(store.jobs.requests.lock().flush, "the frozen table is flushed");
        store.log.close().unwrap();
    }

    /// Time passes with each merge.
    #[derive(Debug)]
    struct Slow {
        sim: SimBackend,
        told: Arc<Mutex<Vec<String>>>,
    }

    impl Listener for Slow {
        fn event(&self, event: &Event) {
            let text = match event {
                Event::Compacted { keyspace, .. } => keyspace.clone(),
                Event::BackgroundError { error } => format!("{error:?}")[..7].to_owned(),
                _ => return,
            };
            self.told.lock().unwrap().push(text);
            if matches!(event, Event::Compacted { .. }) {
                self.sim.advance(RETRY_AFTER * 3 / 4);
            }
        }
    }

    /// Under sustained writing a round of merges never ends.
    #[test]
    fn a_keyspace_whose_merge_failed_has_its_turn_again_in_the_same_round() {
        let sim = SimBackend::new(1);
        let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
        let db = builder.durability(Durability::Process).open("/store").unwrap();
        db.hold_jobs(true);
        for (name, runs) in [("a", 12_u32), ("b", 9), ("c", 7)] {
            let keyspace = db.keyspace(name).unwrap();
            for run in 0..runs {
                keyspace.put(format!("{run}"), "value").unwrap();
                db.flush().unwrap();
            }
        }
        db.close().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener: Arc<dyn Listener> = Arc::new(Slow { sim: sim.clone(), told: Arc::clone(&told) });
        let options =
            Options { background: Background::Threads, listener: Some(listener), ..Options::default() };
        let opened = open::open(Arc::new(sim.clone()), "/store".as_ref(), options).unwrap();
        let (store, _lock) = (opened.store, opened.lock);
        let plan = FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Create]);
        sim.fail(plan.path("segments").times(1));
        assert!(!merge_due(&store, &mut BTreeMap::new()), "nothing is left that failed");
        assert_eq!(
            *told.lock().unwrap(),
            ["NoSpace", "b", "c", "a"],
            "not at once, and before the round ends"
        );
        store.log.close().unwrap();
    }
}
