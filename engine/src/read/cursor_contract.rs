//! The shared test of all cursors, with its model and its random entries.
//!
//! [`check`] compares a cursor with a sorted vector: from every key, between all keys and past both ends, in both directions
//! to the end. [`VecCursor`] is the model, and an input for tests of merges and iterators.

use std::sync::OnceLock;

use aio::{Backend as _, NativeBackend};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::base::error::{Error, Result};
use crate::base::key::{Entry, Kind, Seq};
use crate::read::cursor::Cursor;

/// An entry that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) key: Vec<u8>,
    pub(crate) seq: Seq,
    pub(crate) kind: Kind,
    pub(crate) value: Vec<u8>,
}

impl Owned {
    pub(crate) fn as_entry(&self) -> Entry<'_> {
        Entry { key: &self.key, seq: self.seq, kind: self.kind, value: &self.value }
    }
}

impl From<Entry<'_>> for Owned {
    fn from(entry: Entry<'_>) -> Owned {
        Owned { key: entry.key.to_vec(), seq: entry.seq, kind: entry.kind, value: entry.value.to_vec() }
    }
}

/// Sorts entries into internal order.
pub(crate) fn sort(entries: &mut [Owned]) {
    entries.sort_by(|a, b| a.as_entry().order(&b.as_entry()));
}

/// The number in `SEED`, or one that is drawn once per run. Printed, so that a failing run can be repeated.
pub(crate) fn seed() -> u64 {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    let given = || std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seed = *DRAWN.get_or_init(|| given().unwrap_or_else(|| NativeBackend::new().random() >> 32));
    println!("SEED={seed}");
    seed
}

/// A proptest runner that draws from [`seed`].
pub(crate) fn runner(cases: u32) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Short keys of few letters: many are equal, neighbours or prefixes of each other.
pub(crate) fn any_key() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(u8::MAX)], 1..4)
}

/// Entries in internal order: few keys, many versions, each `Seq` once.
pub(crate) fn any_entries(max: usize) -> impl Strategy<Value = Vec<Owned>> {
    let entry = (any_key(), any::<bool>(), vec(any::<u8>(), 0..20));
    vec(entry, 0..max).prop_map(|entries| {
        let numbered = entries.into_iter().zip(1..);
        let mut entries: Vec<Owned> = numbered
            .map(|((key, is_put, value), seq)| {
                let (kind, value) = if is_put { (Kind::Put, value) } else { (Kind::Delete, Vec::new()) };
                Owned { key, seq: Seq::new(seq), kind, value }
            })
            .collect();
        sort(&mut entries);
        entries
    })
}

/// Checks the cursors that `make` returns against `model`: the entries that they should walk, in internal order.
pub(crate) fn check(model: &[Owned], make: &mut dyn FnMut() -> Box<dyn Cursor>) {
    assert_eq!(make().entry(), None, "before the first seek");
    let mut cursor = make();
    for key in probes(model) {
        let start = model.partition_point(|entry| entry.key < key);
        cursor.seek(&key).unwrap();
        for (i, expected) in model.iter().enumerate().skip(start) {
            assert_eq!(cursor.entry(), Some(expected.as_entry()), "seek {key:?}");
            let goes_on = model.get(i + 1).is_some_and(|next| next.key == expected.key);
            assert!(!(cursor.ends_key() && goes_on), "there are more versions of {:?}", expected.key);
            cursor.next().unwrap();
        }
        assert_eq!(cursor.entry(), None, "seek {key:?}, then to the end");
        cursor.seek(&key).unwrap();
        for expected in &model[start..] {
            assert_eq!(cursor.entry(), Some(expected.as_entry()), "seek {key:?}, quick steps");
            if cursor.quick_next() {
                assert_ne!(cursor.entry().unwrap().key, expected.key, "a version was passed over");
            } else {
                cursor.next().unwrap();
            }
        }
        assert_eq!(cursor.entry(), None, "seek {key:?}, then to the end in quick steps");
        assert!(!cursor.quick_next());

        cursor.seek_before(Some(&key)).unwrap();
        check_backward(cursor.as_mut(), &model[..start], &format!("seek before {key:?}"));
        cursor.seek_before(Some(&key)).unwrap();
        for expected in model[..start].iter().rev() {
            assert_eq!(cursor.entry(), Some(expected.as_entry()), "seek before {key:?}, quick steps");
            if cursor.quick_prev() {
                assert_ne!(cursor.entry().unwrap().key, expected.key, "a version was passed over");
            } else {
                cursor.prev().unwrap();
            }
        }
        assert_eq!(cursor.entry(), None, "seek before {key:?}, then to the start in quick steps");
        assert!(!cursor.quick_prev());
    }
    cursor.seek_before(None).unwrap();
    check_backward(cursor.as_mut(), model, "seek to the end");

    let mut fresh = make();
    fresh.seek_before(None).unwrap();
    assert_eq!(fresh.entry(), model.last().map(Owned::as_entry), "the first seek of a cursor is backwards");
}

fn check_backward(cursor: &mut dyn Cursor, model: &[Owned], what: &str) {
    for (i, expected) in model.iter().enumerate().rev() {
        assert_eq!(cursor.entry(), Some(expected.as_entry()), "{what}");
        let goes_on = i > 0 && model[i - 1].key == expected.key;
        assert!(!(cursor.ends_key() && goes_on), "there are more versions of {:?}", expected.key);
        cursor.prev().unwrap();
    }
    assert_eq!(cursor.entry(), None, "{what}, then to the start");
}

/// Every key, its nearest neighbours, and keys below and above all.
fn probes(model: &[Owned]) -> Vec<Vec<u8>> {
    let mut probes = vec![Vec::new(), vec![0], vec![u8::MAX; 9]];
    for entry in model {
        let mut above = entry.key.clone();
        above.push(0);
        let mut below = entry.key.clone();
        match below.pop() {
            Some(0) | None => {}
            Some(byte) => below.extend([byte - 1, u8::MAX]),
        }
        probes.extend([entry.key.clone(), above, below]);
    }
    probes.sort();
    probes.dedup();
    probes
}

/// Runs [`check`] on the cursors that `make` returns, over corner cases and over random entries.
pub(crate) fn check_all(mut make: impl FnMut(&[Owned]) -> Box<dyn Cursor>) {
    let entry = |key: &str, seq: u64| Owned {
        key: key.into(),
        seq: Seq::new(seq),
        kind: Kind::Put,
        value: format!("{key}{seq}").into_bytes(),
    };
    let one_key: Vec<Owned> = (0..1000).rev().map(|seq| entry("k", seq)).collect();
    let many_keys: Vec<Owned> = (0..40).map(|key| entry(&format!("{key:03}"), 7)).collect();
    for model in [vec![], vec![entry("k", 1)], vec![entry("k", 2), entry("k", 1)], one_key, many_keys] {
        check(&model, &mut || make(&model));
    }
    let make = std::cell::RefCell::new(make);
    runner(64)
        .run(&any_entries(60), |model| {
            check(&model, &mut || make.borrow_mut()(&model));
            Ok(())
        })
        .unwrap();
}

/// Walks over a vector. With a number of moves, the move after the last of them fails.
pub(crate) struct VecCursor {
    entries: Vec<Owned>,
    /// One more than the index, so that there is a place before the first.
    at: usize,
    moves_left: Option<usize>,
}

impl VecCursor {
    /// `entries` in internal order.
    pub(crate) fn new(entries: Vec<Owned>) -> VecCursor {
        VecCursor { entries, at: 0, moves_left: None }
    }

    pub(crate) fn failing_after(entries: Vec<Owned>, moves: usize) -> VecCursor {
        VecCursor { entries, at: 0, moves_left: Some(moves) }
    }

    fn move_to(&mut self, at: usize) -> Result<()> {
        if let Some(left) = &mut self.moves_left {
            *left = left.checked_sub(1).ok_or_else(|| Error::invalid("planted"))?;
        }
        self.at = at;
        Ok(())
    }
}

impl Cursor for VecCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.move_to(1 + self.entries.partition_point(|entry| entry.key.as_slice() < key))
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.move_to(match key {
            Some(key) => self.entries.partition_point(|entry| entry.key.as_slice() < key),
            None => self.entries.len(),
        })
    }

    fn next(&mut self) -> Result<()> {
        assert!(self.entry().is_some());
        self.move_to(self.at + 1)
    }

    fn prev(&mut self) -> Result<()> {
        assert!(self.entry().is_some());
        self.move_to(self.at - 1)
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.entries.get(self.at.checked_sub(1)?).map(Owned::as_entry)
    }

    /// True for every second key, so that both answers occur for the same entries.
    fn ends_key(&self) -> bool {
        let Some(entry) = self.entry() else { return false };
        let start = self.entries.partition_point(|other| other.key.as_slice() < entry.key);
        let versions = self.entries[start..].iter().take_while(|other| other.key == entry.key).count();
        versions == 1 && entry.key.last().is_none_or(|byte| byte % 2 == 0)
    }

    fn quick_next(&mut self) -> bool {
        let is_quick = self.ends_key() && self.at < self.entries.len() && self.moves_left.is_none();
        self.at += usize::from(is_quick);
        is_quick
    }

    fn quick_prev(&mut self) -> bool {
        let is_quick = self.ends_key() && self.at > 1 && self.moves_left.is_none();
        self.at -= usize::from(is_quick);
        is_quick
    }
}

#[test]
fn the_model_keeps_the_contract() {
    check_all(|entries| Box::new(VecCursor::new(entries.to_vec())));
}
