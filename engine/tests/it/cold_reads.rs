//! Gets of data several times as large as the cache cost one read of the device each, through every interface.

use std::path::Path;

use crate::random::Random;
use esker::{Db, Durability, Keyspace};

const KEYS: usize = 60_000;

/// The number of gets that are measured.
const GETS: u64 = 6000;

type Key = [u8; 8];

/// An interface that reads many keys.
type GetAll<'a> = &'a dyn Fn(&[Key]);

fn key(number: usize) -> Key {
    (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()
}

/// Makes a store with 30 MB of data that do not compress, in several runs. The cache holds at most 2 MB.
fn open(dir: &Path) -> (Db, Keyspace) {
    let builder = || Db::builder().memory_budget_bytes(12 << 20).durability(Durability::Process);
    let mut random = Random::new(3);
    let db = builder().open(dir.join("store")).unwrap();
    let ks = db.keyspace("default").unwrap();
    for number in 0..KEYS {
        let value: Vec<u8> = (0..63).flat_map(|_| (random.below(usize::MAX) as u64).to_le_bytes()).collect();
        ks.put(key(number), value).unwrap();
    }
    db.close().unwrap();
    // The reopened store has no data in memory.
    let db = builder().open(dir.join("store")).unwrap();
    let ks = db.keyspace("default").unwrap();
    let metrics = db.metrics();
    let runs = metrics.keyspaces.iter().map(|keyspace| keyspace.runs).max().unwrap();
    assert!(runs > 1, "{runs} runs");
    (db, ks)
}

/// The number of device reads for [`GETS`] gets of random keys.
fn reads(db: &Db, get_all: GetAll<'_>) -> u64 {
    let mut random = Random::new(17);
    let keys: Vec<Key> = (0..GETS).map(|_| key(random.below(KEYS))).collect();
    let before = db.metrics();
    get_all(&keys);
    let after = db.metrics();
    assert!(after.cache_bytes < 3 << 20, "{} bytes in the cache", after.cache_bytes);
    after.io.read().count - before.io.read().count
}

#[test]
fn a_cold_get_is_one_read() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (db, ks) = open(dir.path());
    // Nothing is written from here on, so nothing is flushed or compacted: all reads are those of the gets.
    let ways: [(&str, GetAll<'_>); 3] = [
        ("get", &|keys| assert!(keys.iter().all(|key| ks.get(key).unwrap().is_some()))),
        ("multi_get", &|keys| {
            for keys in keys.chunks(100) {
                assert!(ks.multi_get(keys).unwrap().iter().all(Option::is_some));
            }
        }),
        ("get_async", &|keys| {
            for keys in keys.chunks(1000) {
                let gets: Vec<_> = keys.iter().map(|key| ks.get_async(key)).collect();
                assert!(gets.into_iter().all(|get| get.wait().unwrap().is_some()));
            }
        }),
    ];
    for (way, get_all) in ways {
        let reads = reads(&db, get_all);
        eprintln!("{way}: {reads} reads for {GETS} gets");
        assert!(reads * 100 <= GETS * 105, "{way}: {reads} reads for {GETS} gets");
        assert!(reads * 100 >= GETS * 80, "{way}: {reads} reads are too few for {GETS} cold gets");
    }
}
