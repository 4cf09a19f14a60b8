//! Files that a compaction has replaced stay while an iterator reads them, and are removed when it ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aio::{Backend, SimBackend};
use esker::testing::{Background, BuilderExt};
use esker::{Db, Event, Keyspace, Listener};

fn open(sim: &SimBackend) -> (Db, Keyspace) {
    let db =
        Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).open("/store").unwrap();
    let keyspace = db.keyspace("default").unwrap();
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
    db.drop_keyspace("default").unwrap();
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
