//! The everyday promises of the API on a real disk.

use std::sync::Arc;

use aio::SimBackend;
use esker::testing::{Background, BuilderExt, DbExt, Sizes};
use esker::{Db, Durability, Error, IoClass, OperationKind};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory is writable")
}

fn key(i: u32) -> String {
    format!("{i:08}")
}

fn small() -> Sizes {
    Sizes {
        ring_bytes: Some(64 << 10),
        log_file_bytes: Some(64 << 10),
        memtable_bytes: Some(64 << 10),
        segment_bytes: Some(256 << 10),
        manifest_bytes: Some(16 << 10),
        block_bytes: Some(1 << 10),
    }
}

#[test]
fn puts_are_visible_after_a_reopen() {
    let dir = dir();
    let path = dir.path().join("store");
    let db = Db::open(&path).unwrap();
    let ks = db.keyspace("default").unwrap();
    for i in 0..200u32 {
        ks.put(key(i), format!("value {i}")).unwrap();
    }
    ks.delete(key(7)).unwrap();
    db.close().unwrap();
    let db = Db::open(&path).unwrap();
    let ks = db.keyspace("default").unwrap();
    for i in 0..200u32 {
        let expected = (i != 7).then(|| format!("value {i}"));
        assert_eq!(
            ks.get(key(i)).unwrap().map(|value| String::from_utf8_lossy(&value).into_owned()),
            expected
        );
    }
    assert_eq!(ks.iter().count(), 199);
    assert_eq!(ks.iter().rev().count(), 199);
    db.verify().unwrap();
}

#[test]
fn dropping_without_close_keeps_everything() {
    let dir = dir();
    let path = dir.path().join("store");
    {
        let db = Db::builder().durability(Durability::Process).open(&path).unwrap();
        db.keyspace("a").unwrap().put("k", "v").unwrap();
    }
    let db = Db::open(&path).unwrap();
    assert_eq!(db.keyspace("a").unwrap().get("k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(db.keyspaces(), ["a", "default"]);
}

#[test]
fn many_writes_through_small_files_flush_compact_and_recycle() {
    let dir = dir();
    let path = dir.path().join("store");
    let db = Db::builder().durability(Durability::Process).sizes(small()).open(&path).unwrap();
    let ks = db.keyspace("default").unwrap();
    for round in 0..20u32 {
        for i in 0..1000u32 {
            ks.put(
                format!("key {:05}", (i * 7919 + round) % 3000),
                format!("{round} {i} {}", "x".repeat(60)),
            )
            .unwrap();
        }
    }
    let metrics = db.metrics();
    assert!(metrics.flushes > 5, "{metrics:?}");
    assert!(metrics.compactions > 0, "{metrics:?}");
    let expected: Vec<_> = ks.iter().map(Result::unwrap).collect();
    assert_eq!(expected.len(), 3000);
    db.compact().unwrap();
    assert_eq!(ks.iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
    let mut backwards: Vec<_> = ks.iter().rev().map(Result::unwrap).collect();
    backwards.reverse();
    assert_eq!(backwards, expected);
    db.verify().unwrap();
    db.close().unwrap();
    let db = Db::builder().sizes(small()).open(&path).unwrap();
    let ks = db.keyspace("default").unwrap();
    assert_eq!(ks.iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
}

#[test]
fn a_batch_counts_a_key_that_is_named_twice_once_also_after_a_refused_commit() {
    let dir = dir();
    let db = Db::builder().sizes(small()).open(dir.path().join("store")).unwrap();
    let (ks, other) = (db.keyspace("default").unwrap(), db.keyspace("other").unwrap());
    let mut once = db.batch();
    once.put(&ks, "b", "new").put(&ks, "a", "1").put(&other, "a", "1");
    let mut twice = db.batch();
    twice.put(&ks, "b", "old").put(&ks, "a", "1").put(&ks, "b", "new").put(&other, "a", "1");
    assert_eq!((twice.len(), twice.size_bytes()), (3, once.size_bytes()));
    let mut batch = db.batch();
    for _ in 0..2 {
        batch.put(&ks, "c", vec![7; db.max_record_bytes()]).put(&ks, "a", "1").delete(&ks, "a");
        assert_eq!(batch.len(), 2);
        assert!(batch.size_bytes() > db.max_record_bytes());
        assert!(matches!(batch.commit(), Err(Error::TooLarge { .. })));
        assert_eq!(batch.len(), 2);
    }
    batch.put(&ks, "c", "small");
    assert_eq!(batch.len(), 2);
    assert_eq!(batch.size_bytes(), db.batch().delete(&ks, "a").put(&ks, "c", "small").size_bytes());
    batch.commit().unwrap();
    assert!(batch.is_empty());
    twice.commit().unwrap();
    assert_eq!(ks.get("b").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(ks.get("c").unwrap().as_deref(), Some(&b"small"[..]));
}

#[test]
fn the_keyspace_default_stays() {
    let dir = dir();
    let path = dir.path().join("store");
    let db = Db::open(&path).unwrap();
    db.keyspace("default").unwrap().put("k", "v").unwrap();
    let refused = db.drop_keyspace("default").unwrap_err();
    assert!(matches!(refused, Error::InvalidArgument { .. }), "{refused}");
    assert!(refused.to_string().contains("every store has it"), "{refused}");
    assert_eq!(db.keyspaces(), ["default"]);
    db.close().unwrap();
    let ks = Db::open(&path).unwrap().keyspace("default").unwrap();
    assert_eq!(ks.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_store_can_be_open_once() {
    let dir = dir();
    let path = dir.path().join("store");
    let _db = Db::open(&path).unwrap();
    match Db::open(&path) {
        Err(Error::Locked { holder, .. }) => assert_eq!(holder, esker::Holder::ThisProcess),
        other => panic!("{other:?}"),
    }
}

/// The log holds the write of the idle keyspace until that one is flushed, too.
#[test]
fn an_idle_keyspace_does_not_let_the_log_grow_without_bound() {
    const LIMIT_BYTES: u64 = 256 << 10;
    // With flushes at once; and only when the memtables are full, as with a device that is slower than the writers.
    for held in [false, true] {
        let db = Db::builder()
            .backend(Arc::new(SimBackend::new(1)))
            .background(Background::Manual)
            .durability(Durability::Process)
            .sizes(small())
            .open("/store")
            .unwrap();
        db.hold_jobs(held);
        let (idle, busy) = (db.keyspace("idle").unwrap(), db.keyspace("busy").unwrap());
        idle.put("k", "v").unwrap();
        for i in 0..2000 {
            busy.put(key(i % 100), [0; 1 << 10]).unwrap();
            let metrics = db.metrics();
            assert!(metrics.log_bytes < 2 * LIMIT_BYTES, "{} bytes of log at write {i}", metrics.log_bytes);
            assert!(metrics.log_files < 10, "{} log files at write {i}", metrics.log_files);
        }
        assert_eq!(idle.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        db.close().unwrap();
    }
}

#[test]
fn metrics_tell_the_operations_on_each_kind_of_file_and_repeats_over_reopens() {
    const OPENS: u64 = 3;
    let dir = dir();
    let path = dir.path().join("store");
    let machine = Arc::new(aio::NativeBackend::new());
    let open = || Db::builder().backend(Arc::<aio::NativeBackend>::clone(&machine)).open(&path).unwrap();
    {
        let db = open();
        let ks = db.keyspace("default").unwrap();
        (0..1000).for_each(|i| ks.put(key(i), [1; 100]).unwrap());
        db.close().unwrap();
    }
    for _ in 0..OPENS {
        let db = open();
        let ks = db.keyspace("default").unwrap();
        assert!(ks.get(key(7)).unwrap().is_some());
        db.close().unwrap();
    }
    let db = open();
    let io = db.metrics().io;
    let mut kinds: Vec<&str> = io.operations.iter().map(|part| &*part.file_kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, ["lock", "log", "manifest", "ring", "segment"], "and no other");
    let bytes = |class, kind: &str| {
        let part = io.operations.iter().find(|part| (part.class, &*part.file_kind) == (class, kind));
        part.map_or(0, |part| part.bytes)
    };
    assert!(bytes(IoClass::Write, "log") + bytes(IoClass::WriteDurable, "log") > 100_000, "{io:?}");
    assert!(bytes(IoClass::Write, "segment") + bytes(IoClass::WriteDurable, "segment") > 0, "{io:?}");
    // Each open read the same top of the segment and then the same block, through other contexts and descriptors.
    let again =
        io.places.iter().filter(|place| place.file_kind == "segment" && place.kind == OperationKind::Read);
    let again: Vec<_> =
        again.map(|place| (place.calls, place.file.extension().unwrap().to_owned())).collect();
    assert!(again.iter().any(|(calls, _)| *calls >= OPENS), "{:?}", io.places);
    assert!(again.iter().all(|(_, extension)| extension == "seg"), "{again:?}");
    assert!(io.to_json().contains("\"file_kind\":\"segment\""));
}
