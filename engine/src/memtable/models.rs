//! Models of the memtable, run through every schedule by loom: `just loom`.
//!
//! Nodes have at most three keys here, so that the fourth key splits a node. The models show that no schedule, and no order
//! in which stores of other threads become visible, loses an entry, shows half of one, or breaks the order of a walk. Each
//! model tries every schedule with at most as many forced switches as its bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Count, Ordering};

use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::Memtable;
use crate::base::key::{Kind, Seq, key_hash};
use crate::read::cursor::Cursor;

fn explore(switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.max_branches = 100_000;
    let schedules = Arc::new(Count::new(0));
    let count = Arc::clone(&schedules);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} schedules", schedules.load(Ordering::Relaxed));
}

/// A table that holds these keys; the value of each is the key, its `Seq` its index.
fn table(keys: &[&str]) -> Arc<Memtable> {
    let table = Arc::new(Memtable::new());
    for (seq, key) in (0..).zip(keys) {
        put(&table, key, seq);
    }
    table
}

fn put(table: &Memtable, key: &str, seq: u64) {
    table.insert(key.as_bytes(), Seq::new(seq), Kind::Put, key.as_bytes());
}

/// The `Seq` of the entry that is found, whose value is checked.
fn get(table: &Memtable, key: &str, snapshot: u64) -> Option<u64> {
    let found = table.get(key.as_bytes(), key_hash(key.as_bytes()), Seq::new(snapshot));
    found.map(|(kind, seq, value)| {
        assert_eq!((kind, value), (Kind::Put, key.as_bytes()));
        seq.get()
    })
}

fn putting(table: &Arc<Memtable>, key: &'static str, seq: u64) -> thread::JoinHandle<()> {
    let table = Arc::clone(table);
    thread::spawn(move || put(&table, key, seq))
}

/// All keys with their `Seq`, which must be in order.
fn walk(table: &Arc<Memtable>, forwards: bool) -> Vec<(String, u64)> {
    let mut cursor = table.cursor();
    if forwards { cursor.seek(b"") } else { cursor.seek_before(None) }.unwrap();
    let mut found = Vec::new();
    while let Some(entry) = cursor.entry() {
        assert_eq!(entry.key, entry.value);
        found.push((String::from_utf8(entry.key.to_vec()).unwrap(), u64::MAX - entry.seq.get()));
        if forwards { cursor.next() } else { cursor.prev() }.unwrap();
    }
    if !forwards {
        found.reverse();
    }
    assert!(found.is_sorted());
    found
}

#[test]
fn a_reader_during_an_insert_finds_all_old_entries_and_the_new_one_whole() {
    explore(2, || {
        let table = table(&["a", "c"]);
        let writer = putting(&table, "b", 10);
        assert_eq!(get(&table, "c", 10), Some(1));
        assert!([None, Some(10)].contains(&get(&table, "b", 11)));
        writer.join().unwrap();
        assert_eq!(get(&table, "b", 11), Some(10));
    });
}

#[test]
fn a_reader_beside_the_first_insert_finds_nothing_or_all() {
    explore(2, || {
        let table = table(&[]);
        let writer = putting(&table, "b", 10);
        assert!([None, Some(10)].contains(&get(&table, "b", 11)));
        put(&table, "a", 11);
        writer.join().unwrap();
        assert_eq!((get(&table, "b", 11), get(&table, "a", 12)), (Some(10), Some(11)));
    });
}

#[test]
fn a_reader_loses_nothing_while_a_leaf_is_split() {
    explore(2, || {
        let table = table(&["a", "c", "e"]);
        let writer = putting(&table, "d", 10);
        assert_eq!(get(&table, "e", 10), Some(2));
        assert_eq!(get(&table, "a", 10), Some(0));
        writer.join().unwrap();
        assert_eq!(get(&table, "d", 11), Some(10));
    });
}

/// The root is full, so the insert splits the root and then a leaf.
#[test]
fn a_reader_loses_nothing_while_the_root_is_split() {
    explore(2, || {
        let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let table = table(&keys);
        let writer = putting(&table, "bb", 20);
        assert_eq!(get(&table, "h", 10), Some(7));
        assert_eq!(get(&table, "b", 10), Some(1));
        writer.join().unwrap();
        assert_eq!(get(&table, "bb", 21), Some(20));
        assert_eq!(walk(&table, true).len(), keys.len() + 1);
    });
}

fn a_walk_beside_a_split_is_complete(forwards: bool) {
    explore(2, move || {
        let table = table(&["a", "c", "e", "g"]);
        let writer = putting(&table, "d", 10);
        let found = walk(&table, forwards);
        writer.join().unwrap();
        let old: Vec<_> = found.into_iter().filter(|(key, _)| key != "d").map(|(key, _)| key).collect();
        assert_eq!(old, ["a", "c", "e", "g"]);
        assert_eq!(walk(&table, forwards).len(), 5);
    });
}

#[test]
fn a_walk_forwards_beside_a_split_is_complete() {
    a_walk_beside_a_split_is_complete(true);
}

#[test]
fn a_walk_backwards_beside_a_split_is_complete() {
    a_walk_beside_a_split_is_complete(false);
}

#[test]
fn two_inserts_into_one_leaf_are_both_found() {
    explore(1, || {
        let table = table(&["a", "c", "e"]);
        let writer = putting(&table, "d", 10);
        put(&table, "b", 11);
        writer.join().unwrap();
        assert_eq!((get(&table, "d", 12), get(&table, "b", 12)), (Some(10), Some(11)));
        assert_eq!(walk(&table, true).len(), 5);
        assert_eq!(walk(&table, false).len(), 5);
    });
}

/// Both inserts go to the leaf that is remembered as the rightmost one.
#[test]
fn two_keys_behind_the_last_are_both_found() {
    explore(2, || {
        let table = table(&["a"]);
        let writer = putting(&table, "c", 10);
        put(&table, "b", 11);
        writer.join().unwrap();
        assert_eq!((get(&table, "c", 12), get(&table, "b", 12)), (Some(10), Some(11)));
        assert_eq!(walk(&table, true).len(), 3);
    });
}

#[test]
fn two_versions_of_one_key_are_in_order_after_inserts_in_either_order() {
    explore(1, || {
        let table = table(&["a"]);
        let writer = putting(&table, "a", 10);
        put(&table, "a", 20);
        assert_eq!(get(&table, "a", 21), Some(20));
        writer.join().unwrap();
        assert_eq!([1, 11, 21].map(|snapshot| get(&table, "a", snapshot)), [Some(0), Some(10), Some(20)]);
        assert_eq!(walk(&table, true).len(), 3);
    });
}

#[test]
fn a_reader_of_a_chain_sees_the_old_versions_while_a_late_one_is_inserted() {
    explore(2, || {
        let table = table(&["a"]);
        put(&table, "a", 20);
        let writer = putting(&table, "a", 10);
        assert_eq!((get(&table, "a", 21), get(&table, "a", 5)), (Some(20), Some(0)));
        assert!([Some(0), Some(10)].contains(&get(&table, "a", 15)));
        writer.join().unwrap();
        assert_eq!(get(&table, "a", 15), Some(10));
    });
}

/// The filter has one word for both keys. A flag stored after the first insert tells the reader of it.
#[test]
fn the_filter_passes_every_key_whose_insert_has_returned() {
    explore(1, || {
        let table = table(&["x"]);
        let returned = Arc::new(AtomicBool::new(false));
        let first = {
            let (table, returned) = (Arc::clone(&table), Arc::clone(&returned));
            thread::spawn(move || {
                put(&table, "a", 10);
                returned.store(true, Ordering::Release);
            })
        };
        let second = putting(&table, "b", 11);
        if returned.load(Ordering::Acquire) {
            assert_eq!(get(&table, "a", 12), Some(10));
        }
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!((get(&table, "a", 12), get(&table, "b", 12)), (Some(10), Some(11)));
    });
}
