//! More segments than descriptors: every read is answered, few files are open, and none of a closed store.

use std::path::Path;

use esker::testing::{BuilderExt, Sizes};
use esker::{Builder, Db, Error};

/// Keyspaces, and so segments at least.
const KEYSPACES: usize = 100;

fn builder() -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 << 10),
        log_file_bytes: Some(64 << 10),
        block_bytes: Some(1 << 10),
        ..Sizes::default()
    };
    // With so little memory every read goes to the device.
    Db::builder().memory_budget_bytes(1 << 20).sizes(sizes).max_open_files(16)
}

/// The descriptors of this process for files below a directory, by their paths.
fn open_below(dir: &Path) -> Vec<String> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let paths = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let dir = dir.canonicalize().unwrap();
    paths.filter_map(|path| Some(path.strip_prefix(&dir).ok()?.to_str()?.to_owned())).collect()
}

fn segments_open(dir: &Path) -> usize {
    open_below(dir).iter().filter(|path| path.contains("segments")).count()
}

fn key(i: usize) -> String {
    format!("key {i:04}")
}

/// A value that no compression makes small.
fn value(keyspace: usize, i: usize) -> Vec<u8> {
    let mut state = (keyspace * 1000 + i) as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..600).map(|_| next()).collect()
}

fn fill(db: &Db) {
    for number in 0..KEYSPACES {
        let keyspace = db.keyspace(&number.to_string()).unwrap();
        // The small ring takes no larger writes.
        for part in [0..25, 25..50] {
            let mut batch = db.batch();
            for i in part {
                batch.put(&keyspace, key(i), value(number, i));
            }
            batch.commit().unwrap();
        }
    }
    db.flush().unwrap();
}

/// Reads in all keyspaces in turn, by each kind of read.
fn check(db: &Db, dir: &Path) {
    let keyspaces: Vec<_> = (0..KEYSPACES).map(|number| db.keyspace(&number.to_string()).unwrap()).collect();
    for i in (0..50).step_by(7) {
        for (number, keyspace) in keyspaces.iter().enumerate() {
            let expected = Some(value(number, i));
            assert_eq!(keyspace.get(key(i)).unwrap().map(|found| found.to_vec()), expected);
            let found = keyspace.multi_get(&[key(i), key(49 - i), key(50)]).unwrap();
            assert_eq!(found[0].as_deref().map(<[u8]>::to_vec), expected);
            assert!(found[1].is_some() && found[2].is_none());
            let later = keyspace.get_async(key(49 - i)).wait().unwrap();
            assert_eq!(later.map(|found| found.to_vec()), Some(value(number, 49 - i)));
            assert!(db.metrics().open_files <= 16, "{}", db.metrics().open_files);
            // A flush or merge, and a future, may be done with a few more.
            assert!(segments_open(dir) <= 16 + 8, "{:?}", open_below(dir));
        }
    }
    for (number, keyspace) in keyspaces.iter().enumerate() {
        let all: Vec<_> = keyspace.iter().map(|pair| pair.unwrap().1.to_vec()).collect();
        assert_eq!(all, (0..50).map(|i| value(number, i)).collect::<Vec<_>>());
    }
}

#[test]
fn more_segments_than_open_files_are_read_merged_and_opened_again() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let db = builder().open(dir.path()).unwrap();
    fill(&db);
    check(&db, dir.path());
    fill(&db);
    db.compact().unwrap();
    check(&db, dir.path());
    db.verify().unwrap();
    db.close().unwrap();
    let db = builder().open(dir.path()).unwrap();
    check(&db, dir.path());
    db.close().unwrap();
}

#[test]
fn a_closed_store_keeps_no_segment_open_whatever_handles_there_are() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let sizes = Sizes { block_bytes: Some(1 << 10), ..Sizes::default() };
    let open = || Db::builder().sizes(sizes).open(dir.path()).unwrap();
    let db = open();
    let keyspace = db.keyspace("default").unwrap();
    for i in 0..5000 {
        keyspace.with_durability(esker::Durability::Process).put(key(i), value(1, i)).unwrap();
    }
    db.close().unwrap();
    // The blocks are not in the cache, so the scan reads ahead, and holds what it has read.
    let db = open();
    let keyspace = db.keyspace("default").unwrap();
    let (snapshot, mut iter) = (db.snapshot(), keyspace.iter());
    for i in 0..4000 {
        assert_eq!(iter.next().unwrap().unwrap().1, value(1, i));
    }
    assert!(segments_open(dir.path()) > 0);
    db.close().unwrap();
    assert_eq!(segments_open(dir.path()), 0, "{:?}", open_below(dir.path()));
    assert!(matches!(keyspace.get(key(1)), Err(Error::Closed)));
    assert!(matches!(snapshot.get(&keyspace, key(1)), Err(Error::Closed)));
    assert!(matches!(iter.next(), Some(Err(Error::Closed))));
    // A new open works beside the old handles.
    let db = open();
    assert_eq!(db.keyspace("default").unwrap().get(key(7)).unwrap().as_deref(), Some(&value(1, 7)[..]));
    drop((keyspace, snapshot, iter));
    db.close().unwrap();
}
