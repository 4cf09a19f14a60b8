//! Whole jobs on a store on the simulated disk.

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Errno, SimBackend};

use super::*;
use crate::base::key::{Seq, key_hash};
use crate::testing::{Background, BuilderExt, Sizes};
use crate::{Db, Keyspace};

fn open(sim: &SimBackend) -> Db {
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).open("/store").unwrap()
}

/// One run of so many keys, with values of 104 bytes that do not compress.
fn flush_keys(db: &Db, keyspace: &Keyspace, keys: u32) {
    for i in 0..keys {
        let value: Vec<u8> =
            (0..13u32).flat_map(|n| key_hash(&(i * 13 + n).to_le_bytes()).to_le_bytes()).collect();
        keyspace.put(format!("{i:05}"), value).unwrap();
    }
    db.flush().unwrap();
}

/// The pace of writes must follow a merge that takes hours. This one does not even come to its end.
#[test]
fn a_merge_counts_while_it_is_under_way() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let keyspace = db.keyspace("default").unwrap();
    (0..2).for_each(|_| flush_keys(&db, &keyspace, 50_000));
    let store = db.handle().writing().unwrap();
    let before = store.speeds.merge_rate();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Sync]).path("segments").times(1));
    assert!(matches!(compact_fully(store), Err(Error::NoSpace { .. })));
    assert!(store.speeds.merge_rate() > before, "{before}, then {}", store.speeds.merge_rate());
}

/// Otherwise the rate of writes would not follow from merges at all.
#[test]
fn the_bytes_of_merges_count_for_their_keyspace() {
    let sizes = Sizes { memtable_bytes: Some(1 << 20), ..Sizes::default() };
    let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
    let db = builder.sizes(sizes).open("/store").unwrap();
    let keyspace = db.keyspace("default").unwrap();
    (0..2).for_each(|_| flush_keys(&db, &keyspace, 50_000));
    let amplification = || db.metrics().keyspaces[0].merge_amplification_percent;
    let before = amplification();
    db.compact().unwrap();
    assert!(amplification() > before, "{before}, then {}", amplification());
}

#[test]
fn a_merge_of_young_runs_takes_the_newest_stamp_and_leaves_the_bottom_run() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let keyspace = db.keyspace("default").unwrap();
    flush_keys(&db, &keyspace, 2000);
    let store = db.handle().writing().unwrap();
    let id = keyspace.tree().id;
    let bottom = store.manifest.version().keyspaces[&id].flushed;
    // The sixth young run makes a merge due. The young runs are too small for a merge with the bottom run.
    for value in ["a", "b", "c", "d", "e", "f"] {
        keyspace.put("00007", value).unwrap();
        db.flush().unwrap();
    }
    assert!(matches!(merge_next(store, |_| false), Next::NoneDue));
    let version = store.manifest.version();
    let stamps: Vec<Seq> = version.levels(id).runs().iter().map(|run| run.stamp).collect();
    assert_eq!(stamps, [version.keyspaces[&id].flushed, bottom]);
    assert_eq!(version.check(), Ok(()), "an open refuses the store");
    assert_eq!(keyspace.get("00007").unwrap().as_deref(), Some(&b"f"[..]));
    let again = open(&SimBackend::from_image(sim.snapshot().power_cut_none(), 1));
    let found = again.keyspace("default").unwrap().get("00007").unwrap();
    assert_eq!(found.as_deref(), Some(&b"f"[..]));
}
