//! Tests of the memtable and its cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::iter::Cursor;
use crate::iter_contract::{Owned, any_entries, check_all, runner};

fn filled(entries: &[Owned]) -> Arc<Memtable> {
    let table = Arc::new(Memtable::new());
    // Neither in the order of keys nor of `Seq`.
    let (even, odd): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.seq.get() % 2 == 0);
    for entry in even.iter().chain(odd.iter().rev()) {
        table.insert(&entry.key, entry.seq, entry.kind, &entry.value);
    }
    table
}

fn get<'a>(table: &'a Memtable, key: &[u8], snapshot: Seq) -> Option<(Kind, Seq, &'a [u8])> {
    table.get(key, key_hash(key), snapshot)
}

#[test]
fn cursor_keeps_the_contract() {
    check_all(|entries| Box::new(filled(entries).cursor()));
}

#[test]
fn cursor_gives_values_larger_than_a_chunk() {
    let table = Arc::new(Memtable::new());
    let value = vec![7; 200 << 10];
    for (key, seq) in [(b"a", 1), (b"b", 2), (b"c", 3)] {
        table.insert(key, Seq::new(seq), Kind::Put, &value);
    }
    let mut cursor = table.cursor();
    cursor.seek(b"").unwrap();
    for key in [b"a", b"b", b"c"] {
        let entry = cursor.entry().unwrap();
        assert_eq!((entry.key, entry.value), (&key[..], &value[..]));
        cursor.next().unwrap();
    }
    assert!(cursor.entry().is_none());
}

#[test]
fn get_sees_newest_version_below_the_snapshot() {
    runner(256)
        .run(&any_entries(60), |entries| {
            let table = filled(&entries);
            assert_eq!(table.len(), entries.len());
            for wanted in &entries {
                for snapshot in (0..=61).map(Seq::new) {
                    let expected =
                        entries.iter().find(|entry| entry.key == wanted.key && entry.seq < snapshot);
                    let found = get(&table, &wanted.key, snapshot);
                    assert_eq!(found, expected.map(|entry| (entry.kind, entry.seq, entry.value.as_slice())));
                }
            }
            assert_eq!(get(&table, b"not there", Seq::new(u64::MAX)), None);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_new_table_is_empty() {
    let table = Memtable::new();
    assert!(table.is_empty());
    assert_eq!((table.len(), table.size_bytes()), (0, 0));
    let grown = table.insert(b"k", Seq::new(1), Kind::Delete, b"");
    assert!(!table.is_empty());
    assert_eq!((table.len(), table.size_bytes()), (1, grown));
    assert!(grown > 0);
}

/// Writers insert disjoint keys, each its own in ascending order, and publish how far they are. Readers check
/// that all that was published before they looked is there, by lookup and by a whole scan in both directions,
/// in strict order.
#[test]
fn readers_see_whatever_was_inserted_before_they_looked() {
    const WRITERS: u64 = 3;
    const PER_WRITER: u64 = 4000;
    let table = Arc::new(Memtable::new());
    let done: [AtomicU64; 3] = Default::default();
    let key = |writer: u64, index: u64| format!("{:08}", index * WRITERS + writer).into_bytes();
    std::thread::scope(|scope| {
        for (writer, done) in (0..).zip(&done) {
            let table = &table;
            scope.spawn(move || {
                for index in 0..PER_WRITER {
                    let seq = Seq::new(2 * (index * WRITERS + writer));
                    table.insert(&key(writer, index), seq, Kind::Put, &index.to_le_bytes());
                    table.insert(&key(writer, index), Seq::new(seq.get() + 1), Kind::Delete, b"");
                    done.store(index + 1, Ordering::Release);
                }
            });
        }
        for forward in [true, false] {
            let (table, done) = (&table, &done);
            scope.spawn(move || {
                loop {
                    let inserted: Vec<u64> = done.iter().map(|done| done.load(Ordering::Acquire)).collect();
                    for (writer, inserted) in (0..).zip(&inserted) {
                        if let Some(newest) = inserted.checked_sub(1) {
                            let found = get(table, &key(writer, newest), Seq::new(u64::MAX));
                            assert_eq!(found.unwrap().0, Kind::Delete);
                        }
                    }
                    let scanned = if forward { count_forward(table) } else { count_backward(table) };
                    assert!(scanned >= 2 * inserted.iter().sum::<u64>());
                    if inserted.iter().all(|inserted| *inserted == PER_WRITER) {
                        return;
                    }
                }
            });
        }
    });
    assert_eq!(table.len() as u64, 2 * WRITERS * PER_WRITER);
    assert_eq!(count_forward(&table), 2 * WRITERS * PER_WRITER);
}

fn count_forward(table: &Arc<Memtable>) -> u64 {
    let mut cursor = table.cursor();
    cursor.seek(b"").unwrap();
    let mut last: Option<Owned> = None;
    let mut count = 0;
    while let Some(entry) = cursor.entry() {
        assert!(last.is_none_or(|last| last.as_entry().order(&entry).is_lt()));
        last = Some(entry.into());
        count += 1;
        cursor.next().unwrap();
    }
    count
}

fn count_backward(table: &Arc<Memtable>) -> u64 {
    let mut cursor = table.cursor();
    cursor.seek_before(None).unwrap();
    let mut last: Option<Owned> = None;
    let mut count = 0;
    while let Some(entry) = cursor.entry() {
        assert!(last.is_none_or(|last| last.as_entry().order(&entry).is_gt()));
        last = Some(entry.into());
        count += 1;
        cursor.prev().unwrap();
    }
    count
}

/// A writer to the table that is being walked must not wait for the walk: one thread does both.
#[test]
fn the_thread_that_walks_may_insert() {
    let table = Arc::new(Memtable::new());
    for index in 0..100_u64 {
        table.insert(&[u8::try_from(index).unwrap()], Seq::new(index), Kind::Put, b"old");
    }
    let mut cursor = table.cursor();
    cursor.seek(b"").unwrap();
    let mut old = 0;
    while let Some(entry) = cursor.entry() {
        let entry = Owned::from(entry);
        if entry.seq < Seq::new(100) {
            old += 1;
            table.insert(&entry.key, Seq::new(100 + entry.seq.get()), Kind::Put, b"new");
        }
        cursor.next().unwrap();
    }
    assert_eq!(old, 100);
}
