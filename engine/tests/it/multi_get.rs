//! `multi_get` returns the results of as many gets and waits for the device less often.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::random::Random;
use crate::watched::Watched;
use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Error, Keyspace, Snapshot};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn builder(backend: Arc<dyn Backend>) -> Builder {
    let sizes = Sizes {
        memtable_bytes: Some(32 << 10),
        segment_bytes: Some(64 << 10),
        block_bytes: Some(512),
        ..Sizes::default()
    };
    Db::builder().memory_budget_bytes(4 << 20).backend(backend).background(Background::Manual).sizes(sizes)
}

fn open(sim: &SimBackend) -> Db {
    builder(Arc::new(sim.clone())).open("/store").unwrap()
}

/// One of 900 keys, and now and then the hot key, which has many versions.
fn any_key(random: &mut Random) -> Vec<u8> {
    match random.below(12) {
        0 => b"hot".to_vec(),
        _ => format!("key {:03}", random.below(900)).into_bytes(),
    }
}

/// Bytes that do not compress.
fn any_value(random: &mut Random) -> Vec<u8> {
    let len = random.below(400);
    (0..len).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
}

fn any_keys(random: &mut Random) -> Vec<Vec<u8>> {
    let len = 1 + random.below(300);
    let mut keys: Vec<_> = (0..len).map(|_| any_key(random)).collect();
    keys[len / 2] = format!("key {:03}x", random.below(900)).into_bytes();
    keys.extend_from_within(..len / 3);
    keys
}

fn expect(model: &Model, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
    keys.iter().map(|key| model.get(key).cloned()).collect()
}

fn found(
    ks: &Keyspace,
    snapshot: Option<&Snapshot>,
    keys: &[Vec<u8>],
) -> esker::Result<Vec<Option<Vec<u8>>>> {
    let values = match snapshot {
        Some(snapshot) => snapshot.multi_get(ks, keys)?,
        None => ks.multi_get(keys)?,
    };
    Ok(values.into_iter().map(|value| value.map(Vec::from)).collect())
}

/// Writes and deletes at random, with flushes and compactions in between. Keeps snapshots with the content that they see.
fn fill(random: &mut Random, db: &Db, ks: &Keyspace, model: &mut Model, kept: &mut Vec<(Snapshot, Model)>) {
    for _ in 0..600 {
        let key = any_key(random);
        if random.below(5) == 0 {
            ks.delete(&key).unwrap();
            model.remove(&key);
        } else {
            let value = any_value(random);
            ks.put(&key, &value).unwrap();
            model.insert(key, value);
        }
        match random.below(60) {
            0..5 => kept.push((db.snapshot(), model.clone())),
            5 => db.flush().unwrap(),
            6 if random.below(8) == 0 => db.compact().unwrap(),
            _ => {}
        }
    }
}

#[test]
fn it_returns_the_results_of_gets_now_and_at_snapshots() {
    let mut random = Random::new(7);
    let sim = SimBackend::new(3);
    let mut model = Model::new();
    for incarnation in 0..4 {
        let db = open(&sim);
        let ks = db.keyspace("default").unwrap();
        let mut kept = Vec::new();
        for round in 0..6 {
            // In the first round after an open the cache is empty.
            for _ in 0..6 {
                let keys = any_keys(&mut random);
                assert_eq!(
                    found(&ks, None, &keys).unwrap(),
                    expect(&model, &keys),
                    "incarnation {incarnation}, round {round}"
                );
                let single: Vec<_> = keys.iter().map(|key| ks.get(key).unwrap().map(Vec::from)).collect();
                assert_eq!(single, expect(&model, &keys));
                for _ in 0..kept.len().min(4) {
                    let at = random.below(kept.len());
                    let (snapshot, model) = &kept[at];
                    assert_eq!(
                        found(&ks, Some(snapshot), &keys).unwrap(),
                        expect(model, &keys),
                        "snapshot {at}"
                    );
                }
            }
            fill(&mut random, &db, &ks, &mut model, &mut kept);
        }
        assert!(kept.len() > 100, "the hot key has versions for more than a block");
        db.flush().unwrap();
        for (snapshot, model) in &kept {
            let keys = vec![b"hot".to_vec(), b"key 001".to_vec(), b"hot".to_vec()];
            assert_eq!(found(&ks, Some(snapshot), &keys).unwrap(), expect(model, &keys));
        }
    }
}

/// Makes a store of `count` keys in a block each, with an empty cache.
fn keys_in_blocks(backend: &Arc<dyn Backend>, path: &std::path::Path, count: usize) -> (Db, Vec<Vec<u8>>) {
    let mut random = Random::new(1);
    let keys: Vec<_> = (0..count).map(|i| format!("key {i:05}").into_bytes()).collect();
    let db = builder(Arc::clone(backend)).open(path).unwrap();
    let ks = db.keyspace("default").unwrap();
    for key in &keys {
        let noise: Vec<u8> = (0..700).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        ks.put(key, &noise).unwrap();
    }
    db.flush().unwrap();
    db.compact().unwrap();
    db.close().unwrap();
    (builder(Arc::clone(backend)).open(path).unwrap(), keys)
}

#[test]
fn all_cold_blocks_up_to_64_are_in_flight_before_any_is_waited_for() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (count, most) in [(1, 1), (32, 32), (64, 64), (160, 64)] {
        let watched = Arc::new(Watched::default());
        let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&watched);
        let (db, mut keys) = keys_in_blocks(&backend, &dir.path().join(count.to_string()), count);
        let ks = db.keyspace("default").unwrap();
        // The same key twice costs one read.
        keys.extend_from_within(..);
        let before = backend.profile();
        watched.waits();
        assert!(ks.multi_get(&keys).unwrap().iter().all(Option::is_some));
        let after = backend.profile();
        assert_eq!(after.read().count - before.read().count, count as u64);
        let waits = watched.waits();
        assert_eq!(waits.first(), Some(&most), "{count} blocks: {waits:?}");
        // With more blocks the window is filled again.
        let full = waits.iter().filter(|&&in_flight| in_flight == most).count();
        assert!(count <= 64 || full >= 2, "{count} blocks: {waits:?}");
        assert!(ks.multi_get(&keys).unwrap().iter().all(Option::is_some));
        assert_eq!(backend.profile().read().count, after.read().count, "all is in the cache");
    }
}

#[test]
fn every_failing_call_is_an_error_and_the_next_multi_get_works() {
    const KEYS: usize = 70;
    let sim = SimBackend::new(5);
    let backend: Arc<dyn Backend> = Arc::new(sim.clone());
    let (db, keys) = keys_in_blocks(&backend, "/store".as_ref(), KEYS);
    db.close().unwrap();
    for (fault, kind) in [
        (Fault::Errno(Errno::IO), EventKind::Read),
        (Fault::Short(512), EventKind::Read),
        (Fault::FlipBit(99), EventKind::Read),
        (Fault::Errno(Errno::IO), EventKind::Submit),
    ] {
        let calls = if kind == EventKind::Submit { 2 } else { KEYS as u64 };
        for skip in 0..calls {
            let sim = SimBackend::from_image(sim.snapshot(), skip);
            let db = open(&sim);
            let ks = db.keyspace("default").unwrap();
            sim.fail(FaultPlan::new(fault).on(&[kind]).path("segments").skip(skip));
            let mut shown = Vec::new();
            let result = ks.multi_get_with(&keys, |at, value| shown.push((at, value.map(<[u8]>::to_vec))));
            let struck = sim.faults_struck();
            assert_eq!(struck, 1, "{fault:?} in call {skip}");
            match (fault, result) {
                (Fault::FlipBit(_), Err(Error::Corrupt { .. })) | (_, Err(Error::Io { .. })) => {}
                (_, other) => panic!("{fault:?} in {kind:?} {skip}: {other:?}"),
            }
            assert!(shown.len() < keys.len());
            let values = ks.multi_get(&keys).unwrap();
            for (at, value) in shown {
                assert_eq!(value.as_deref(), values[at].as_deref(), "a returned value is right");
            }
            assert!(values.iter().all(Option::is_some));
        }
    }
}

#[test]
fn wrong_keys_and_handles_are_errors_that_show_nothing() {
    let sim = SimBackend::new(1);
    let db = open(&sim);
    let ks = db.keyspace("a").unwrap();
    ks.put("k", "v").unwrap();
    let snapshot = db.snapshot();
    let none: [&[u8]; 0] = [];
    assert!(ks.multi_get(&none).unwrap().is_empty());
    assert!(snapshot.multi_get(&ks, &none).unwrap().is_empty());
    let long = vec![7; esker::MAX_KEY_BYTES + 1];
    for (bad, too_large) in [(b"" as &[u8], false), (&long, true)] {
        let keys = [b"k", bad];
        for result in [
            ks.multi_get_with(&keys, |_, _| panic!("shown")),
            snapshot.multi_get_with(&ks, &keys, |_, _| panic!("shown")),
        ] {
            match result.unwrap_err() {
                Error::TooLarge { .. } if too_large => {}
                Error::InvalidArgument { .. } if !too_large => {}
                other => panic!("{other}"),
            }
        }
    }
    let other = open(&SimBackend::new(2));
    let foreign = other.snapshot().multi_get(&ks, &["k"]);
    assert!(matches!(foreign, Err(Error::InvalidArgument { .. })));
    db.drop_keyspace("a").unwrap();
    assert!(matches!(ks.multi_get(&["k"]), Err(Error::Closed)));
    assert!(matches!(snapshot.multi_get(&ks, &none), Err(Error::Closed)));
    let ks = db.keyspace("b").unwrap();
    db.close().unwrap();
    assert!(matches!(ks.multi_get(&none), Err(Error::Closed)));
}

#[test]
fn the_store_may_be_read_and_written_while_values_are_shown() {
    let sim = SimBackend::new(1);
    let backend: Arc<dyn Backend> = Arc::new(sim.clone());
    let (db, keys) = keys_in_blocks(&backend, "/store".as_ref(), 20);
    let ks = db.keyspace("default").unwrap();
    let mut shown = 0;
    ks.multi_get_with(&keys, |at, value| {
        let value = value.unwrap();
        assert!(value.len() == 700, "as of the beginning");
        for key in &keys {
            ks.put(key, "new").unwrap();
        }
        db.flush().unwrap();
        db.compact().unwrap();
        assert!(ks.multi_get(&keys).unwrap().iter().flatten().all(|value| &value[..] == b"new"));
        assert_eq!(ks.get(&keys[at]).unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(value.len(), 700);
        shown += 1;
    })
    .unwrap();
    assert_eq!(shown, 20);
}
