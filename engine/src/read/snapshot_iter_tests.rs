//! Tests of the snapshot iterator against `BTreeMap` over a source whose tables are frozen and compacted
//! underneath.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::base::key::Kind;
use crate::base::range::KeyRange;
use crate::compaction::retain::{Retain, Tombstones};
use crate::memtable::Memtable;
use crate::read::cursor_contract::{Owned, VecCursor, any_key, runner, sort};
use crate::read::merge::Merge;
use crate::tree::pins::Pins;

/// A keyspace in memory: an active memtable over one sorted run.
struct MemorySource {
    tables: RwLock<(Arc<Memtable>, Vec<Owned>)>,
    generation: AtomicU64,
    next: AtomicU64,
    snapshots: Pins,
    /// Cursors made so far.
    cursors: AtomicUsize,
}

impl MemorySource {
    fn new() -> Arc<MemorySource> {
        Arc::new(MemorySource {
            tables: RwLock::new((Arc::new(Memtable::new()), Vec::new())),
            generation: AtomicU64::new(0),
            next: AtomicU64::new(1),
            snapshots: Pins::default(),
            cursors: AtomicUsize::new(0),
        })
    }

    fn write(&self, key: &[u8], value: Option<&[u8]>) {
        let seq = Seq::new(self.next.fetch_add(1, Ordering::SeqCst));
        let kind = if value.is_some() { Kind::Put } else { Kind::Delete };
        self.tables.read().0.insert(key, seq, kind, value.unwrap_or_default());
    }

    /// Merges all entries into the run, and drops those that no snapshot sees.
    fn compact(&self) {
        let mut tables = self.tables.write();
        let mut entries = tables.1.clone();
        let mut cursor = tables.0.cursor();
        cursor.seek(b"").unwrap();
        while let Some(entry) = cursor.entry() {
            entries.push(entry.into());
            cursor.next().unwrap();
        }
        sort(&mut entries);
        let mut retain = Retain::new(self.snapshots.retained(), Tombstones::Drop);
        entries.retain(|entry| retain.judge(&entry.as_entry()).is_some());
        *tables = (Arc::new(Memtable::new()), entries);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn snapshot(&self) -> PinGuard {
        self.snapshots.pin(|| Seq::new(self.next.load(Ordering::SeqCst)))
    }

    fn iter(self: &Arc<Self>, range: impl KeyRange) -> Pairs<Arc<MemorySource>> {
        Pairs(SnapshotIter::new(self.clone(), self.snapshot(), range.into_bounds()))
    }
}

impl Source for Arc<MemorySource> {
    type Cursor = Merge<Box<dyn Cursor>>;

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn cursor(&self, _: Seq) -> Result<Self::Cursor> {
        self.cursors.fetch_add(1, Ordering::SeqCst);
        let tables = self.tables.read();
        let table: Box<dyn Cursor> = Box::new(tables.0.cursor());
        Ok(Merge::new([table, Box::new(VecCursor::new(tables.1.clone()))]))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}

/// An iterator over copies of the pairs.
struct Pairs<S: Source>(SnapshotIter<S>);

type Pair = (Vec<u8>, Vec<u8>);

fn copied((key, value): PairRef<'_>) -> Pair {
    (key.to_vec(), value.to_vec())
}

impl<S: Source> Iterator for Pairs<S> {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_ref().map(|pair| pair.map(copied)).transpose()
    }
}

impl<S: Source> DoubleEndedIterator for Pairs<S> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back_ref().map(|pair| pair.map(copied)).transpose()
    }
}

fn keys(iter: impl Iterator<Item = Result<Pair>>) -> Vec<String> {
    iter.map(|pair| String::from_utf8(pair.unwrap().0).unwrap()).collect()
}

#[derive(Clone, Debug)]
enum Action {
    Next,
    NextRef,
    NextBack,
    Seek(Vec<u8>),
    Put(Vec<u8>),
    Delete(Vec<u8>),
    Compact,
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => Just(Action::Next),
        2 => Just(Action::NextRef),
        4 => Just(Action::NextBack),
        1 => any_key().prop_map(Action::Seek),
        3 => any_key().prop_map(Action::Put),
        3 => any_key().prop_map(Action::Delete),
        1 => Just(Action::Compact),
    ]
}

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

fn any_bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        any_key().prop_map(Bound::Included),
        any_key().prop_map(Bound::Excluded),
    ]
}

fn model_of(writes: &[(Vec<u8>, bool)], (start, end): &Bounds) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut model = BTreeMap::new();
    for (index, (key, is_put)) in writes.iter().enumerate() {
        if *is_put {
            model.insert(key.clone(), index.to_string().into_bytes());
        } else {
            model.remove(key);
        }
    }
    let above = |key: &Vec<u8>| match start {
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
        Bound::Unbounded => true,
    };
    let below = |key: &Vec<u8>| match end {
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
        Bound::Unbounded => true,
    };
    model.retain(|key, _| above(key) && below(key));
    model
}

/// Some writes, then an iterator over a random range; then steps at both ends, seeks, writes and compactions
/// in any order. The iterator must go on as the model of its first moment does.
#[test]
fn both_ends_show_the_moment_of_creation_while_writes_go_on() {
    let writes = vec((any_key(), proptest::bool::weighted(0.7)), 0..60);
    let cases = (writes, (any_bound(), any_bound()), vec(any_action(), 0..60));
    runner(3000)
        .run(&cases, |(writes, bounds, actions)| {
            let store = MemorySource::new();
            for (index, (key, is_put)) in writes.iter().enumerate() {
                let value = index.to_string();
                store.write(key, is_put.then_some(value.as_bytes()));
                if index == writes.len() / 2 {
                    store.compact();
                }
            }
            let all = model_of(&writes, &bounds);
            let mut left = all.clone();
            let mut iter = store.iter(bounds);
            for action in actions {
                match action {
                    Action::Next => {
                        let found = iter.next().map(|pair| pair.unwrap());
                        assert_eq!(found, left.pop_first());
                    }
                    Action::NextRef => {
                        let found = iter.0.next_ref().unwrap();
                        assert_eq!(
                            found.map(|(key, value)| (key.to_vec(), value.to_vec())),
                            left.pop_first()
                        );
                    }
                    Action::NextBack => {
                        let found = iter.next_back().map(|pair| pair.unwrap());
                        assert_eq!(found, left.pop_last());
                    }
                    Action::Seek(key) => {
                        iter.0.seek(&key);
                        left = all.clone().split_off(&key);
                    }
                    Action::Put(key) => store.write(&key, Some(b"later")),
                    Action::Delete(key) => store.write(&key, None),
                    Action::Compact => store.compact(),
                }
            }
            let rest: Vec<_> = iter.by_ref().map(|pair| pair.unwrap()).collect();
            assert_eq!(rest, left.into_iter().collect::<Vec<_>>());
            assert!(iter.next().is_none());
            assert!(iter.next_back().is_none());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_loop_may_write_to_the_source_it_iterates() {
    let store = MemorySource::new();
    for index in 0..500 {
        store.write(format!("{index:04}").as_bytes(), Some(b"old"));
    }
    let mut count = 0;
    for pair in store.iter(..) {
        let (key, value) = pair.unwrap();
        assert_eq!(value, b"old");
        store.write(&[&key[..], b"x"].concat(), Some(b"new"));
        store.write(&key, None);
        count += 1;
        if count % 100 == 0 {
            store.compact();
        }
    }
    assert_eq!(count, 500);
    assert_eq!(store.iter(..).count(), 500);
}

#[test]
fn an_iterator_lets_go_of_flushed_tables_at_its_next_step() {
    let store = MemorySource::new();
    for key in ["a", "b", "c", "d"] {
        store.write(key.as_bytes(), Some(b"1"));
    }
    let old = Arc::downgrade(&store.tables.read().0);
    let mut iter = store.iter(..);
    assert!(iter.next().is_some());
    assert!(iter.next_back().is_some());
    store.compact();
    assert_eq!(store.cursors.load(Ordering::SeqCst), 2);
    assert_eq!(keys(iter.by_ref().take(1)), ["b"]);
    assert_eq!(keys(iter.by_ref().rev().take(1)), ["c"]);
    assert_eq!(old.strong_count(), 0);
    assert_eq!(store.cursors.load(Ordering::SeqCst), 4);
}

#[test]
fn a_finished_iterator_holds_no_cursor_and_a_dropped_one_no_snapshot() {
    let store = MemorySource::new();
    store.write(b"a", Some(b"1"));
    let table = store.tables.read().0.clone();
    let mut iter = store.iter(..);
    assert_eq!(keys(iter.by_ref()), ["a"]);
    assert_eq!(Arc::strong_count(&table), 2);
    assert_eq!(store.snapshots.count(), 1);
    drop(iter);
    assert_eq!(store.snapshots.count(), 0);
}

#[test]
fn empty_ranges_ask_the_source_for_nothing() {
    let store = MemorySource::new();
    store.write(b"b", Some(b"1"));
    assert!(store.iter("c".."a").next().is_none());
    assert!(store.iter("b".."b").next_back().is_none());
    assert_eq!(store.cursors.load(Ordering::SeqCst), 0);
    let mut iter = store.iter("a"..="b");
    iter.0.seek(b"c");
    assert!(iter.next().is_none());
    assert_eq!(store.cursors.load(Ordering::SeqCst), 0);
    iter.0.seek(b"");
    assert_eq!(keys(iter), ["b"]);
}

/// A source whose cursors fail after some moves; `None`: it gives no cursor at all.
struct Failing {
    entries: Vec<Owned>,
    moves: AtomicUsize,
}

impl Source for Arc<Failing> {
    type Cursor = VecCursor;

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn cursor(&self, _: Seq) -> Result<VecCursor> {
        match self.moves.load(Ordering::SeqCst).checked_sub(1) {
            Some(moves) => Ok(VecCursor::failing_after(self.entries.clone(), moves)),
            None => Err(Error::Closed),
        }
    }

    fn generation(&self) -> u64 {
        0
    }
}

/// For every n the n-th operation fails. All pairs before it are right, and no pair follows it. The error stays, and a seek
/// after its cause is gone goes on.
#[test]
fn a_failure_at_any_step_stays_until_a_seek() {
    let entry = |key: u8, seq, kind| Owned { key: vec![key], seq: Seq::new(seq), kind, value: vec![] };
    let entries = vec![
        entry(1, 5, Kind::Put),
        entry(1, 4, Kind::Put),
        entry(2, 6, Kind::Delete),
        entry(2, 3, Kind::Put),
        entry(3, 2, Kind::Put),
    ];
    let snapshots = Pins::default();
    for forward in [true, false] {
        for moves in 0..=6 {
            let source = Arc::new(Failing { entries: entries.clone(), moves: AtomicUsize::new(moves) });
            let guard = snapshots.pin(|| Seq::new(9));
            let mut iter = Pairs(SnapshotIter::new(source.clone(), guard, KeyBounds::all()));
            let step = |iter: &mut Pairs<_>| if forward { iter.next() } else { iter.next_back() };
            let mut expected = if forward { vec![3, 1] } else { vec![1, 3] };
            let error = loop {
                match step(&mut iter) {
                    Some(Ok((key, _))) => assert_eq!(Some(key[0]), expected.pop()),
                    Some(Err(error)) => break error,
                    None => panic!("the failure after {moves} moves was passed over"),
                }
            };
            for _ in 0..3 {
                let again = step(&mut iter).unwrap().unwrap_err();
                assert_eq!(again.to_string(), error.to_string());
                assert!(iter.0.next_ref().is_err());
            }
            source.moves.store(usize::MAX, Ordering::SeqCst);
            iter.0.seek(b"");
            assert_eq!(iter.count(), 2);
        }
    }
}
