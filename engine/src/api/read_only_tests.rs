//! A store without a writing part: all reads work, and every write says [`Error::ReadOnly`].

use aio::SimBackend;

use super::*;
use crate::api::db::Db;
use crate::api::keyspace::Keyspace;
use crate::api::testing::DbExt;
use crate::base::key::{Kind, Seq};
use crate::base::options::{Background, Durability, Options};
use crate::recovery::open;

/// A store with two runs and a memtable, of which only the part that reads share is left.
fn read_only() -> (Db, Keyspace) {
    let backend = Arc::new(SimBackend::new(1));
    let options = Options { background: Background::Manual, ..Options::default() };
    let opened =
        || open::open(Arc::<SimBackend>::clone(&backend), "/store".as_ref(), options.clone()).unwrap();
    let first = opened();
    let db = Db::new(Handle::new(first.store, Threads::default(), first.lock));
    let ks = db.keyspace("default").unwrap();
    for value in ["1", "2"] {
        ks.put("a", value).unwrap();
        ks.put(format!("b{value}"), value).unwrap();
        db.flush().unwrap();
    }
    drop(ks);
    db.close().unwrap();
    let store = Arc::clone(opened().store.shared());
    // As an open without writes replays a log: into memory.
    let (table, last) = (store.find_tree("default").unwrap().active(), Seq::new(store.visible().get() - 32));
    table.insert(b"c", last, Kind::Put, b"3");
    table.insert(b"b1", last, Kind::Delete, b"");
    let db = Db::new(Handle::reading(store));
    let ks = db.keyspace("default").unwrap();
    (db, ks)
}

fn is_refused<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::ReadOnly))
}

#[test]
fn gets_scans_and_snapshots_read_all_there_is() {
    let (db, ks) = read_only();
    assert_eq!(db.keyspaces(), ["default"]);
    assert_eq!(ks.get("a").unwrap().as_deref(), Some(&b"2"[..]));
    assert!(ks.contains_key("c").unwrap() && !ks.contains_key("b1").unwrap());
    let keys = ["b2", "b1", "a"];
    let found = [Some("2".into()), None, Some("2".into())];
    assert_eq!(ks.multi_get(&keys).unwrap(), found);
    assert_eq!(ks.multi_get_async(&keys).wait().unwrap(), found);
    assert_eq!(ks.get_async("c").wait().unwrap().as_deref(), Some(&b"3"[..]));
    let pairs = [("a".into(), "2".into()), ("b2".into(), "2".into()), ("c".into(), "3".into())];
    let snapshot = db.snapshot();
    for iter in [ks.iter(), snapshot.iter(&ks)] {
        assert_eq!(iter.collect::<Result<Vec<_>>>().unwrap(), pairs);
    }
    assert_eq!(ks.iter().rev().map(Result::unwrap).last(), Some(pairs[0].clone()));
    assert_eq!(snapshot.get(&ks, "a").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(snapshot.multi_get(&ks, &keys).unwrap(), found);
}

#[test]
fn metrics_and_verification_need_no_writing_part() {
    let (db, ks) = read_only();
    let _snapshot = db.snapshot();
    let metrics = db.metrics();
    assert_eq!((metrics.keyspaces[0].runs, metrics.snapshots, metrics.halted), (2, 1, None));
    assert!(metrics.memtable_bytes > 0);
    let report = db.verify().unwrap();
    assert_eq!((report.segments, report.entries, report.log_files), (2, 4, 0));
    assert_eq!(ks.name(), "default");
}

#[test]
fn every_write_says_read_only() {
    let (db, ks) = read_only();
    assert!(is_refused(&ks.put("a", "9")));
    assert!(is_refused(&ks.delete("a")));
    assert!(is_refused(&ks.with_durability(Durability::Process).put("a", "9")));
    let mut batch = db.batch();
    assert!(is_refused(&batch.commit()), "an empty batch waits for the log");
    batch.put(&ks, "a", "9");
    assert!(is_refused(&batch.commit()));
    assert!(is_refused(&db.keyspace("new")));
    assert!(is_refused(&db.drop_keyspace("default")));
    assert!(is_refused(&db.sync()));
    assert!(is_refused(&db.flush()));
    assert!(is_refused(&db.compact()));
    assert!(is_refused(&db.freeze()));
    db.hold_jobs(false);
    assert_eq!(ks.get("a").unwrap().as_deref(), Some(&b"2"[..]));
}

#[test]
fn a_close_ends_its_reads() {
    let (db, ks) = read_only();
    let mut iter = ks.iter();
    assert!(iter.next().is_some());
    db.clone().close().unwrap();
    assert!(matches!(ks.get("a"), Err(Error::Closed)));
    assert!(matches!(iter.next(), Some(Err(Error::Closed))));
    assert!(matches!(db.verify(), Err(Error::Closed)));
    db.close().unwrap();
}
