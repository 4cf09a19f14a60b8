//! A store whose indexes and filters are several times as large as the part of the memory budget for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::random::Random;
use aio::{Backend, SimBackend};
use bytes::Bytes;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Db, Durability, Keyspace};

/// The memory budget. Part of it is for memtables and buffers; cache and pinned parts have at least an eighth.
const BUDGET_BYTES: u64 = 1 << 20;
const SHARED_BYTES: u64 = BUDGET_BYTES / 8;
const KEYS: usize = 80_000;

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(machine: &SimBackend, budget_bytes: u64) -> (Db, Keyspace) {
    try_open(machine, budget_bytes).unwrap()
}

fn try_open(machine: &SimBackend, budget_bytes: u64) -> esker::Result<(Db, Keyspace)> {
    let sizes = Sizes {
        ring_bytes: Some(64 << 10),
        memtable_bytes: Some(256 << 10),
        segment_bytes: Some(256 << 10),
        block_bytes: Some(512),
        ..Sizes::default()
    };
    let db = Db::builder()
        .backend(Arc::new(machine.clone()))
        .background(Background::Manual)
        .durability(Durability::Process)
        .memory_budget_bytes(budget_bytes)
        .sizes(sizes)
        .open("/store")?;
    let ks = db.keyspace("default")?;
    Ok((db, ks))
}

fn key(number: usize) -> Vec<u8> {
    format!("{:016x}", (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes()
}

fn must_hold(db: &Db) {
    let metrics = db.metrics();
    let held = metrics.cache_bytes + metrics.pinned_bytes;
    assert!(held <= SHARED_BYTES, "{} cached and {} pinned", metrics.cache_bytes, metrics.pinned_bytes);
}

/// Writes keys in several runs; some are overwritten and some deleted.
fn fill(db: &Db, ks: &Keyspace, random: &mut Random) -> Content {
    let mut content = Content::new();
    for number in 0..KEYS {
        let value = format!("{number} {}", random.below(1 << 30)).into_bytes();
        ks.put(key(number), &value).unwrap();
        content.insert(key(number), value);
        if number % 5 == 4 {
            let old = key(random.below(number));
            if number % 10 == 4 {
                ks.delete(&old).unwrap();
                content.remove(&old);
            } else {
                ks.put(&old, "new").unwrap();
                content.insert(old, b"new".to_vec());
            }
        }
        if number % 1000 == 0 {
            must_hold(db);
        }
    }
    content
}

/// Makes a store with every record in a segment.
struct Filled {
    machine: SimBackend,
    db: Db,
    ks: Keyspace,
    content: Content,
    random: Random,
}

fn filled(seed: u64) -> Filled {
    let (machine, mut random) = (SimBackend::new(1), Random::new(seed));
    let (db, ks) = open(&machine, BUDGET_BYTES);
    let content = fill(&db, &ks, &mut random);
    db.flush().unwrap();
    assert!(db.metrics().paged_segments > 0, "{:?}", db.metrics());
    Filled { machine, db, ks, content, random }
}

fn check_gets(db: &Db, ks: &Keyspace, content: &Content, random: &mut Random) {
    for _ in 0..30 {
        let mut keys: Vec<Vec<u8>> = (0..40).map(|_| key(random.below(KEYS))).collect();
        keys.extend((0..10).map(|_| [key(random.below(KEYS)), vec![0]].concat()));
        let expected: Vec<_> = keys.iter().map(|key| content.get(key).cloned()).collect();
        let bytes = |found: Vec<Option<Bytes>>| -> Vec<Option<Vec<u8>>> {
            found.into_iter().map(|value| value.map(|value| value.to_vec())).collect()
        };
        assert_eq!(bytes(ks.multi_get(&keys).unwrap()), expected);
        assert_eq!(bytes(ks.multi_get_async(&keys).wait().unwrap()), expected);
        assert_eq!(bytes(keys.iter().map(|key| ks.get(key).unwrap()).collect()), expected);
        must_hold(db);
    }
}

fn check_scans(db: &Db, ks: &Keyspace, content: &Content, random: &mut Random) {
    let all = |pairs: &mut dyn Iterator<Item = esker::Result<(Bytes, Bytes)>>| -> Vec<_> {
        let pair = |pair: esker::Result<(Bytes, Bytes)>| {
            let (key, value) = pair.unwrap();
            (key.to_vec(), value.to_vec())
        };
        pairs.map(pair).collect()
    };
    let expected: Vec<_> = content.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert!(all(&mut ks.iter()) == expected);
    must_hold(db);
    assert!(all(&mut ks.iter().rev()).into_iter().rev().eq(expected.iter().cloned()));
    must_hold(db);
    for _ in 0..100 {
        let (from, len) = (key(random.below(KEYS)), random.below(300));
        let wanted: Vec<_> = content
            .range(from.clone()..)
            .take(len)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert!(all(&mut ks.range(from.clone()..).take(len)) == wanted);
        let wanted: Vec<_> = content
            .range(..from.clone())
            .rev()
            .take(len)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert!(all(&mut ks.range(..from).rev().take(len)) == wanted);
        must_hold(db);
    }
}

#[test]
fn a_store_with_too_large_indexes_is_right_and_within_its_budget() {
    let Filled { machine, db, ks, content, mut random } = filled(17);
    for _ in 0..2 {
        let metrics = db.metrics();
        assert!(metrics.paged_segments > 0, "{metrics:?}");
        check_gets(&db, &ks, &content, &mut random);
        check_scans(&db, &ks, &content, &mut random);
        db.verify().unwrap();
        must_hold(&db);
        db.compact().unwrap();
        must_hold(&db);
    }
    db.close().unwrap();
    let (db, ks) = open(&machine, BUDGET_BYTES);
    check_gets(&db, &ks, &content, &mut random);
    check_scans(&db, &ks, &content, &mut random);
    let paged = db.metrics();
    db.close().unwrap();
    // With enough memory everything is pinned, and that is several times as much as before.
    let (db, ks) = open(&machine, 256 << 20);
    let pinned = db.metrics();
    assert_eq!(pinned.paged_segments, 0);
    assert!(pinned.pinned_bytes > SHARED_BYTES * 2, "{} bytes", pinned.pinned_bytes);
    eprintln!(
        "{} bytes pinned of {}; {} paged",
        paged.pinned_bytes, pinned.pinned_bytes, paged.paged_segments
    );
    for (key, value) in content.iter().step_by(20) {
        assert_eq!(ks.get(key).unwrap().as_deref(), Some(&value[..]));
    }
}

#[test]
fn a_cold_get_makes_few_reads_in_every_run() {
    let Filled { machine, db, ks, content, mut random } = filled(18);
    db.compact().unwrap();
    let runs = db.metrics().keyspaces.iter().map(|keyspace| keyspace.runs as u64).max().unwrap();
    let reads = || machine.profile().read().count;
    let mut most = 0;
    let before = reads();
    for _ in 0..2000 {
        let (key, before) = (key(random.below(KEYS)), reads());
        assert_eq!(ks.get(&key).unwrap().map(|value| value.to_vec()), content.get(&key).cloned());
        most = most.max(reads() - before);
    }
    let all = reads() - before;
    eprintln!("{runs} runs; at most {most} reads for a get, {all} for 2000");
    // A filter block in each run, and an index and a data block where the filter matches, with one false positive perhaps.
    assert!(most <= runs + 4, "{most} reads in {runs} runs");
    // Mostly the filter of only one run matches.
    assert!(all <= 2000 * (runs + 2) + 40, "{all} reads for 2000 gets in {runs} runs");
}

#[test]
fn a_damaged_index_or_filter_block_is_reported_by_the_reads_that_need_it() {
    let Filled { machine, db, content, .. } = filled(19);
    db.close().unwrap();
    let image = machine.snapshot().power_cut_all();
    let segments: Vec<_> = image
        .files()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    let mut struck = 0;
    for (path, size_bytes) in segments.iter().rev() {
        if struck == 3 {
            break;
        }
        let bytes = image.read_file(path).unwrap();
        let footer = &bytes[bytes.len() - 4096..];
        let word = |at: usize| u64::from_le_bytes(*footer[at..].first_chunk().unwrap());
        // In every index and filter block.
        let (from, to) = (word(80), word(96));
        assert!(from < to && to < *size_bytes);
        let mut image = image.clone();
        image.damage(path, |bytes: &mut Vec<u8>| {
            let at = |offset: u64| usize::try_from(offset).unwrap();
            (at(from)..at(to)).step_by(512).for_each(|byte| bytes[byte + 9] ^= 4);
        });
        let machine = SimBackend::from_image(image, 1);
        // If its index and filter would be pinned, the open reports the damage.
        let (db, ks) = match try_open(&machine, BUDGET_BYTES) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(matches!(error, esker::Error::Corrupt { .. }), "{error:?}");
                continue;
            }
        };
        struck += 1;
        let mut failed = 0;
        for (key, value) in content.iter().step_by(3) {
            match ks.get(key) {
                Ok(found) => assert_eq!(found.as_deref(), Some(&value[..])),
                Err(esker::Error::Corrupt { file, offset, .. }) => {
                    assert!(&file == path && (from..to).contains(&offset), "{} {offset}", file.display());
                    failed += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(failed > 0);
        assert!(matches!(db.verify(), Err(esker::Error::Corrupt { .. })));
        assert!(ks.multi_get(&content.keys().step_by(7).cloned().collect::<Vec<_>>()).is_err());
        assert!(ks.iter().any(|pair| pair.is_err()));
    }
    assert!(struck > 0, "no paged segment was damaged");
}

/// During a compaction the pinned parts of inputs and output are in memory together. The output must not be paged for it.
#[test]
fn parts_that_fit_stay_pinned_over_a_compaction() {
    let machine = SimBackend::new(1);
    let mut random = Random::new(5);
    let (db, ks) = open(&machine, BUDGET_BYTES);
    let mut number = 0;
    while db.metrics().pinned_bytes < SHARED_BYTES * 3 / 10 {
        for _ in 0..500 {
            ks.put(key(number), format!("{number} {}", random.below(1 << 30))).unwrap();
            number += 1;
        }
        db.flush().unwrap();
        must_hold(&db);
    }
    assert_eq!(db.metrics().paged_segments, 0);
    // A second run, so that there is a merge.
    ks.put(key(0), "again").unwrap();
    db.compact().unwrap();
    let metrics = db.metrics();
    assert_eq!((metrics.keyspaces[0].runs, metrics.paged_segments), (1, 0), "{metrics:?}");
    must_hold(&db);
}
