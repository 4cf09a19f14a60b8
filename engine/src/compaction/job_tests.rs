//! Whole jobs on a store on the simulated disk.

use aio::SimBackend;

use super::*;
use crate::Db;
use crate::base::key::{Seq, key_hash};
use crate::testing::{Background, BuilderExt};

fn open(sim: &SimBackend) -> Db {
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).open("/store").unwrap()
}

#[test]
fn a_merge_of_young_runs_takes_the_newest_stamp_and_leaves_the_bottom_run() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let keyspace = db.keyspace("default").unwrap();
    for i in 0..2000u32 {
        // Does not compress.
        let value: Vec<u8> =
            (0..13u32).flat_map(|n| key_hash(&(i * 13 + n).to_le_bytes()).to_le_bytes()).collect();
        keyspace.put(format!("{i:05}"), value).unwrap();
    }
    db.flush().unwrap();
    let store = db.handle().writing().unwrap();
    let id = keyspace.tree().id;
    let bottom = store.manifest.version().keyspaces[&id].flushed;
    // The sixth young run makes a merge due. The young runs are too small for a merge with the bottom run.
    for value in ["a", "b", "c", "d", "e", "f"] {
        keyspace.put("00007", value).unwrap();
        db.flush().unwrap();
    }
    compact_all(store, Depth::Due).unwrap();
    let version = store.manifest.version();
    let stamps: Vec<Seq> = version.levels(id).runs().iter().map(|run| run.stamp).collect();
    assert_eq!(stamps, [version.keyspaces[&id].flushed, bottom]);
    assert_eq!(version.check(), Ok(()), "an open refuses the store");
    assert_eq!(keyspace.get("00007").unwrap().as_deref(), Some(&b"f"[..]));
    let again = open(&SimBackend::from_image(sim.snapshot().power_cut_none(), 1));
    let found = again.keyspace("default").unwrap().get("00007").unwrap();
    assert_eq!(found.as_deref(), Some(&b"f"[..]));
}
