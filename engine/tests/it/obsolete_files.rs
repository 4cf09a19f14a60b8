//! Files that a compaction has replaced stay while an iterator reads them, and are removed when it ends, by another thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use aio::{Backend, BackendLayer, SimBackend};
use esker::testing::{Background, BuilderExt};
use esker::{Db, Event, Keyspace, Listener};

fn open(sim: &SimBackend) -> (Db, Keyspace) {
    let db =
        Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).open("/store").unwrap();
    let keyspace = db.keyspace("other").unwrap();
    (db, keyspace)
}

/// Two runs of one segment each.
fn two_runs(sim: &SimBackend) -> (Db, Keyspace) {
    let (db, keyspace) = open(sim);
    for value in ["old", "new"] {
        for key in ["a", "b", "c"] {
            keyspace.put(key, value).unwrap();
        }
        db.flush().unwrap();
    }
    assert_eq!(segments(sim).len(), 2);
    (db, keyspace)
}

fn segments(sim: &SimBackend) -> Vec<String> {
    let mut names = sim.list(Path::new("/store/segments")).unwrap();
    names.sort();
    names
}

#[test]
fn a_replaced_file_goes_with_its_last_reader() {
    let sim = SimBackend::new(1);
    let (db, keyspace) = two_runs(&sim);
    let before = segments(&sim);
    let mut iter = keyspace.iter();
    assert_eq!(iter.next().unwrap().unwrap(), ("a".into(), "new".into()));
    db.compact().unwrap();
    let during = segments(&sim);
    assert!(before.iter().all(|name| during.contains(name)), "{before:?} are read, and {during:?} are there");
    drop(iter);
    let after = segments(&sim);
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(!before.contains(&after[0]), "the output stays");
}

#[test]
fn a_replaced_file_goes_at_once_if_nothing_reads_it() {
    let sim = SimBackend::new(1);
    let (db, keyspace) = two_runs(&sim);
    db.compact().unwrap();
    assert_eq!(segments(&sim).len(), 1);
    assert_eq!(keyspace.get("b").unwrap().as_deref(), Some(&b"new"[..]));
}

#[test]
fn after_a_close_a_file_that_was_read_is_left_to_the_next_open() {
    let sim = SimBackend::new(1);
    let (db, keyspace) = two_runs(&sim);
    let mut iter = keyspace.iter();
    iter.next().unwrap().unwrap();
    db.compact().unwrap();
    let during = segments(&sim);
    db.close().unwrap();
    drop(iter);
    assert_eq!(segments(&sim), during, "the directory may be another's by now");
    let (_db, keyspace) = open(&sim);
    assert_eq!(segments(&sim).len(), 1);
    assert_eq!(keyspace.get("c").unwrap().as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_dropped_keyspace_gives_its_files_back_though_a_handle_is_kept() {
    let sim = SimBackend::new(1);
    let (db, keyspace) = two_runs(&sim);
    let mut iter = keyspace.iter();
    iter.next().unwrap().unwrap();
    db.drop_keyspace("other").unwrap();
    assert_eq!(segments(&sim).len(), 2, "an iterator reads them");
    assert!(iter.next().unwrap().is_err(), "it is closed");
    drop(iter);
    assert_eq!(segments(&sim), Vec::<String>::new());
    assert!(keyspace.get("a").is_err());
}

/// Counts the segments at the moment of each `Compacted`.
#[derive(Debug)]
struct Counter(SimBackend, Arc<AtomicUsize>);

impl Listener for Counter {
    fn event(&self, event: &Event) {
        if matches!(event, Event::Compacted { .. }) {
            self.1.store(segments(&self.0).len(), Ordering::Relaxed);
        }
    }
}

#[test]
fn replaced_files_are_gone_when_the_listener_hears_of_the_compaction() {
    let sim = SimBackend::new(1);
    drop(two_runs(&sim));
    let left = Arc::new(AtomicUsize::new(0));
    let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
    let db = builder.listener(Counter(sim.clone(), Arc::clone(&left))).open("/store").unwrap();
    db.compact().unwrap();
    assert_eq!(left.load(Ordering::Relaxed), 1, "only the output is left while the cache is warmed");
}

/// Tells which thread has removed which file.
#[derive(Debug)]
struct Watched {
    sim: SimBackend,
    removed: Mutex<Sender<(ThreadId, PathBuf)>>,
}

impl BackendLayer for Watched {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn remove(&self, path: &Path) -> aio::Result<()> {
        Backend::remove(&self.sim, path)?;
        // The test may have ended.
        let _ = self.removed.lock().unwrap().send((std::thread::current().id(), path.to_owned()));
        Ok(())
    }
}

/// A store with threads and two runs, and its removals from now on.
fn watched(sim: &SimBackend) -> (Db, Keyspace, Receiver<(ThreadId, PathBuf)>) {
    drop(two_runs(sim));
    let (removed, removals) = channel();
    let machine = Watched { sim: sim.clone(), removed: Mutex::new(removed) };
    let db = Db::builder().backend(Arc::new(machine)).background(Background::Threads).open("/store").unwrap();
    let keyspace = db.keyspace("other").unwrap();
    // Files that the open has replaced.
    removals.try_iter().for_each(drop);
    (db, keyspace, removals)
}

/// Waits until these segments are removed. This thread must not have done it.
fn removed_elsewhere(removals: &Receiver<(ThreadId, PathBuf)>, names: &[String]) {
    let mut found: Vec<String> = names
        .iter()
        .map(|_| {
            let (thread, path) = removals.recv().unwrap();
            assert_ne!(thread, std::thread::current().id(), "{} was removed by a reader", path.display());
            path.file_name().unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn a_reader_that_ends_does_not_remove_the_files_itself() {
    let sim = SimBackend::new(1);
    let (db, keyspace, removals) = watched(&sim);
    let before = segments(&sim);
    let mut iter = keyspace.iter();
    iter.next().unwrap().unwrap();
    db.compact().unwrap();
    assert_eq!(removals.try_iter().count(), 0, "they are read");
    drop(iter);
    removed_elsewhere(&removals, &before);
}

#[test]
fn a_caller_that_drops_a_keyspace_does_not_remove_its_files_itself() {
    let sim = SimBackend::new(1);
    let (db, keyspace, removals) = watched(&sim);
    let before = segments(&sim);
    let mut iter = keyspace.iter();
    iter.next().unwrap().unwrap();
    db.drop_keyspace("other").unwrap();
    drop(iter);
    removed_elsewhere(&removals, &before);
    assert_eq!(segments(&sim), Vec::<String>::new());
}

#[test]
fn a_compaction_has_given_the_space_back_when_it_returns() {
    let sim = SimBackend::new(1);
    let (db, _keyspace, _removals) = watched(&sim);
    db.compact().unwrap();
    assert_eq!(segments(&sim).len(), 1);
}
