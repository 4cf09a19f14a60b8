//! A keyspace of another store is an error in every call that takes one, and never a panic.

use std::sync::Arc;

use aio::SimBackend;
use esker::testing::{Background, BuilderExt};
use esker::{Db, Error, Iter, Keyspace, Result};

fn store(seed: u64) -> (Db, Keyspace) {
    let backend = Arc::new(SimBackend::new(seed));
    let db = Db::builder().backend(backend).background(Background::Manual).open("/store").unwrap();
    let keyspace = db.keyspace("default").unwrap();
    keyspace.put("key", "value").unwrap();
    (db, keyspace)
}

#[expect(clippy::needless_pass_by_value, reason = "the tests hand over results of calls")]
fn is_refused<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::InvalidArgument { .. }))
}

#[test]
fn gets_of_a_snapshot_refuse_it() {
    let (db, _) = store(1);
    let (_other, foreign) = store(2);
    let snapshot = db.snapshot();
    assert!(is_refused(snapshot.get(&foreign, "key")));
    assert!(is_refused(snapshot.get_with(&foreign, "key", |_| unreachable!())));
    assert!(is_refused(snapshot.multi_get(&foreign, &["key"])));
    assert!(is_refused(snapshot.multi_get_with(&foreign, &["key"], |_, _| unreachable!())));
    assert!(is_refused(snapshot.get_async(&foreign, "key").wait()));
    assert!(is_refused(snapshot.multi_get_async(&foreign, &["key"]).wait()));
}

#[test]
fn iterators_of_a_snapshot_fail_at_every_step_of_both_ends_also_after_a_seek() {
    let (db, keyspace) = store(1);
    let (_other, foreign) = store(2);
    let snapshot = db.snapshot();
    let made: [fn(&esker::Snapshot, &Keyspace) -> Iter; 4] = [
        |snapshot, keyspace| snapshot.iter(keyspace),
        |snapshot, keyspace| snapshot.range(keyspace, "a"..),
        |snapshot, keyspace| snapshot.range(keyspace, "b".."a"),
        |snapshot, keyspace| snapshot.prefix(keyspace, "k"),
    ];
    for make in made {
        let mut iter = make(&snapshot, &foreign);
        for _ in 0..2 {
            assert!(is_refused(iter.next_ref().map(|_| ())));
            assert!(is_refused(iter.next_back_ref().map(|_| ())));
            iter.seek("key");
        }
        assert!(is_refused(iter.keys().next().unwrap()));
        assert!(is_refused(make(&snapshot, &foreign).next_back().unwrap()));
    }
    assert_eq!(snapshot.iter(&keyspace).count(), 1);
}

#[test]
fn a_batch_remembers_it_and_refuses_to_commit() {
    let (db, keyspace) = store(1);
    let (_other, foreign) = store(2);
    let mut batch = db.batch();
    batch.put(&keyspace, "mine", "1").put(&foreign, "key", "changed").delete(&foreign, "key");
    assert!(is_refused(batch.commit()));
    batch.clear();
    batch.put(&keyspace, "mine", "2").commit().unwrap();
    assert_eq!(keyspace.get("mine").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(foreign.get("key").unwrap().as_deref(), Some(&b"value"[..]));
}
