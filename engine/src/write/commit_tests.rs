//! Tests of a commit that ends on the way, with a whole store around it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use aio::SimBackend;
use aio::sim::DiskImage;

use super::*;
use crate::api::db::Db;
use crate::compaction::flush::release_log;
use crate::testing::{Background, BuilderExt};
use crate::write::ops::{Op, OpsBuilder};

fn open(sim: &SimBackend) -> Db {
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).open("/store").unwrap()
}

/// A record that puts one pair into the keyspace `default`.
fn put(store: &Store, key: &[u8], value: &[u8]) -> RecordBuf {
    let keyspace = store.all_trees()[0].id;
    let mut payload = Vec::new();
    let mut builder = OpsBuilder::begin(&mut payload);
    builder.push(&mut payload, Op::put(keyspace, key, value)).unwrap();
    builder.finish(&mut payload);
    let mut record = RecordBuf::new();
    record.push(&payload);
    record
}

/// All pairs that the store in `image` has.
fn pairs(image: DiskImage) -> Vec<(String, String)> {
    let db = open(&SimBackend::from_image(image, 1));
    db.verify().unwrap();
    let keyspace = db.keyspace("default").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    keyspace.iter().map(|pair| pair.unwrap()).map(|(key, value)| (text(&key), text(&value))).collect()
}

/// Runs `write` up to where it unwinds, as a panic does, without the message of one.
fn unwind(write: impl FnOnce()) {
    catch_unwind(AssertUnwindSafe(write)).unwrap_err();
}

#[test]
fn a_panic_between_reserve_and_publish_holds_nothing_up_and_leaves_nothing() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let keyspace = db.keyspace("default").unwrap();
    let store = Arc::clone(db.handle().writing().unwrap());
    keyspace.put("before", "1").unwrap();
    let mut record = put(&store, b"lost", b"0");
    unwind(|| {
        let _gate = store.share_gate();
        let _reserved = Reserved::new(&store.log, &store.visible, &mut record).unwrap().unwrap();
        resume_unwind(Box::new("between reserve and publish"));
    });
    // Acknowledged at power loss, by the same thread and by another.
    keyspace.put("after", "2").unwrap();
    std::thread::scope(|scope| scope.spawn(|| keyspace.put("other", "3").unwrap()).join().unwrap());
    let snapshot = db.snapshot();
    for (key, value) in [("before", Some("1")), ("lost", None), ("after", Some("2")), ("other", Some("3"))] {
        assert_eq!(keyspace.get(key).unwrap().as_deref(), value.map(str::as_bytes), "{key}");
        assert_eq!(snapshot.get(&keyspace, key).unwrap().as_deref(), value.map(str::as_bytes), "{key}");
    }
    let expected =
        [("after", "2"), ("before", "1"), ("other", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(pairs(sim.snapshot().power_cut_none()), expected, "after a power cut");
    assert_eq!(pairs(sim.snapshot().process_crash(1)), expected, "after a kill");
    db.flush().unwrap();
    assert_eq!(pairs(sim.snapshot().power_cut_none()), expected, "from segments");
    db.close().unwrap();
}

/// A writer that has reserved behind the place waits for it, and no longer.
#[test]
fn a_write_behind_a_place_that_is_given_up_is_acknowledged() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let keyspace = db.keyspace("default").unwrap();
    let store = Arc::clone(db.handle().writing().unwrap());
    let mut record = put(&store, b"lost", b"0");
    std::thread::scope(|scope| {
        let reserved = Reserved::new(&store.log, &store.visible, &mut record).unwrap().unwrap();
        let before = store.visible();
        let writer = scope.spawn(|| keyspace.put("behind", "1"));
        while store.log.metrics().records == 0 {
            std::thread::yield_now();
        }
        assert_eq!(store.visible(), before, "nothing is visible behind a place that is open");
        drop(reserved);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(pairs(sim.snapshot().power_cut_none()), [("behind".to_owned(), "1".to_owned())]);
}

#[test]
fn a_panic_between_log_and_memtables_halts_the_store_and_the_next_open_has_the_record() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let keyspace = db.keyspace("default").unwrap();
    let store = Arc::clone(db.handle().writing().unwrap());
    keyspace.put("before", "1").unwrap();
    let mut record = put(&store, b"half", b"2");
    unwind(|| {
        let _gate = store.share_gate();
        let _logged = Reserved::new(&store.log, &store.visible, &mut record).unwrap().unwrap().publish();
        resume_unwind(Box::new("between publish and complete"));
    });
    assert!(matches!(release_log(&store), Err(Error::Halted { .. })), "the log keeps the record");
    assert!(matches!(keyspace.put("after", "3"), Err(Error::Halted { .. })));
    assert!(matches!(db.flush(), Err(Error::Halted { .. })), "a flush would make the loss permanent");
    assert_eq!(keyspace.get("before").unwrap().as_deref(), Some(&b"1"[..]), "reads go on");
    assert!(db.close().is_err());
    let expected = [("before", "1"), ("half", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(pairs(sim.snapshot().process_crash(1)), expected);
}
