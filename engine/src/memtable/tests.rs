//! Tests of the memtable and its cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::read::cursor::Cursor;
use crate::read::cursor_contract::{Owned, any_entries, check_all, runner, seed};

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
    let value = vec![7; 3 << 20];
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

/// Writers insert disjoint keys in ascending order and publish their progress. Readers check that every entry published
/// before they looked is found: by lookup, and by a whole scan in both directions and in strict order.
#[test]
fn readers_see_every_entry_inserted_before_they_looked() {
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

/// Mixes `seed` with two numbers, so that a random test does the same in every run with one seed.
fn mix(seed: u64, one: u64, other: u64) -> u64 {
    let bytes = [seed, one, other].map(u64::to_le_bytes).concat();
    key_hash(&bytes)
}

const STRESS_WRITERS: u64 = 3;
const STRESS_PER_WRITER: u64 = 12_000;

/// The history of the writers: the `Seq` of each write, and the number of writes of each writer that have returned.
struct Acknowledged {
    seed: u64,
    seqs: Vec<Vec<AtomicU64>>,
    counts: Vec<AtomicU64>,
}

impl Acknowledged {
    /// The key of a writer's write: half of them from few keys, which get many versions from all writers.
    fn key(&self, writer: u64, index: u64) -> Vec<u8> {
        let random = mix(self.seed, writer, index);
        match random % 4 {
            0 => format!("hot/{:02}", random / 4 % 40).into_bytes(),
            1 => vec![0; usize::try_from(random / 4 % 40).unwrap()],
            2 => format!("in/order/{writer}/{index:08}").into_bytes(),
            _ => random.to_le_bytes().to_vec(),
        }
    }

    /// The value of a write contains its number, and its length depends on it.
    fn value(key: &[u8], seq: u64) -> Vec<u8> {
        let random = mix(0, key_hash(key), seq);
        random.to_le_bytes().repeat(usize::try_from(random % 30).unwrap())
    }

    fn write(&self, table: &Memtable, next_seq: &AtomicU64, writer: u64) {
        for index in 0..STRESS_PER_WRITER {
            let (key, seq) = (self.key(writer, index), next_seq.fetch_add(1, Ordering::Relaxed));
            table.insert(&key, Seq::new(seq), Kind::Put, &Self::value(&key, seq));
            let writer = usize::try_from(writer).unwrap();
            self.seqs[writer][usize::try_from(index).unwrap()].store(seq, Ordering::Relaxed);
            self.counts[writer].store(index + 1, Ordering::Release);
        }
    }

    fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Acquire)).collect()
    }

    fn is_over(counts: &[u64]) -> bool {
        counts.iter().all(|&count| count == STRESS_PER_WRITER)
    }

    fn seq(&self, writer: u64, index: u64) -> u64 {
        let writer = usize::try_from(writer).unwrap();
        self.seqs[writer][usize::try_from(index).unwrap()].load(Ordering::Relaxed)
    }

    /// Reads writes that have returned, each at its own position, where it is the newest.
    fn read(&self, table: &Memtable, reader: u64) {
        for round in 0.. {
            let counts = self.counts();
            for (writer, &count) in (0..).zip(&counts).filter(|(_, count)| **count > 0) {
                let random = mix(self.seed, reader, round);
                let index = if random.is_multiple_of(2) { count - 1 } else { random / 2 % count };
                let (key, seq) = (self.key(writer, index), self.seq(writer, index));
                let found = get(table, &key, Seq::new(seq + 1));
                assert_eq!(found, Some((Kind::Put, Seq::new(seq), &*Self::value(&key, seq))));
            }
            if Self::is_over(&counts) {
                return;
            }
        }
    }

    /// Walks repeatedly and checks the order, every value, and that no write is missing which had returned before.
    fn walk(&self, table: &Arc<Memtable>, count: fn(&Arc<Memtable>) -> u64) {
        loop {
            let counts = self.counts();
            assert!(count(table) >= counts.iter().sum());
            if Self::is_over(&counts) {
                return;
            }
        }
    }
}

/// Writers share keys and draw their positions from one counter, so that versions of a key arrive out of order too.
/// Readers and walkers compare the entries that they see with the writes acknowledged before.
#[test]
fn many_threads_see_every_acknowledged_write() {
    let seed = seed();
    // Small chunks, so that many threads need the next one at the same time.
    let table = Arc::new(Memtable::in_pool(&Arc::new(ArenaPool::new(1 << 20, 2 << 20)), 1000));
    let seqs = || (0..STRESS_PER_WRITER).map(|_| AtomicU64::new(0)).collect();
    let acknowledged = Acknowledged {
        seed,
        seqs: (0..STRESS_WRITERS).map(|_| seqs()).collect(),
        counts: (0..STRESS_WRITERS).map(|_| AtomicU64::new(0)).collect(),
    };
    let next_seq = AtomicU64::new(1);
    std::thread::scope(|scope| {
        let (acknowledged, table, next_seq) = (&acknowledged, &table, &next_seq);
        for writer in 0..STRESS_WRITERS {
            scope.spawn(move || acknowledged.write(table, next_seq, writer));
        }
        for reader in 100..102 {
            scope.spawn(move || acknowledged.read(table, reader));
        }
        for count in [count_forward as fn(&Arc<Memtable>) -> u64, count_backward] {
            scope.spawn(move || acknowledged.walk(table, count));
        }
    });
    let mut expected: Vec<Owned> = Vec::new();
    for writer in 0..STRESS_WRITERS {
        for index in 0..STRESS_PER_WRITER {
            let (key, seq) = (acknowledged.key(writer, index), acknowledged.seq(writer, index));
            let value = Acknowledged::value(&key, seq);
            expected.push(Owned { key, seq: Seq::new(seq), kind: Kind::Put, value });
        }
    }
    expected.sort_by(|one, other| one.as_entry().order(&other.as_entry()));
    let mut cursor = table.cursor();
    cursor.seek(b"").unwrap();
    for entry in &expected {
        assert_eq!(cursor.entry(), Some(entry.as_entry()));
        cursor.next().unwrap();
    }
    assert_eq!(cursor.entry(), None);
    assert_eq!(count_backward(&table), expected.len() as u64);
}

/// One thread walks a table and writes to it, so a write must not wait for the walk.
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
