//! Snapshots, iterators and futures that are held while the store changes under them, and the comparison of iterators.
//!
//! Invariant: a held object shows the state at its creation until its keyspace is dropped or the store is closed. From then
//! on it reports `Closed`, unless it had reached its end. A future reports that when the store is closed, unless it has its
//! answer.

use std::collections::VecDeque;
use std::ops::RangeBounds as _;

use bytes::Bytes;
use esker::{Error, Iter, Keys, Keyspace, Snapshot};

use crate::futures::{HeldGets, Values};
use crate::model::{State, Table};
use crate::report::{Check, Failure};
use crate::workload::{Range, Walk};

/// A key and its value.
pub(crate) type Pair = (Bytes, Bytes);

/// At most this many of each are held; the oldest is dropped.
const MAX_HELD: usize = 4;

/// A snapshot, and the states that it may show: two, if the last write before it failed half way.
#[derive(Debug)]
pub(crate) struct HeldSnapshot {
    pub(crate) snapshot: Snapshot,
    pub(crate) views: Vec<State>,
}

/// An iterator, and the rest of its pairs, for each state that it may show.
#[derive(Debug)]
pub(crate) struct HeldIter {
    pub(crate) iter: Iter,
    pub(crate) keyspace: u32,
    pub(crate) views: Vec<Expected>,
}

/// The kind of an iterator's items.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    all: Vec<Pair>,
    left: VecDeque<Pair>,
}

impl Expected {
    /// The pairs of a table that lie in a range.
    pub(crate) fn range(table: &Table, range: &Range) -> Expected {
        Expected::filtered(table, |key| range.contains(key))
    }

    /// The pairs of a table whose keys begin with a prefix.
    pub(crate) fn prefix(table: &Table, prefix: &Bytes) -> Expected {
        Expected::filtered(table, |key| key.starts_with(prefix))
    }

    fn filtered(table: &Table, keep: impl Fn(&Bytes) -> bool) -> Expected {
        let pairs = table.iter().filter(|(key, _)| keep(key));
        let all: Vec<Pair> = pairs.map(|(key, value)| (key.clone(), value.clone())).collect();
        Expected { left: all.iter().cloned().collect(), all }
    }

    pub(crate) fn seek(&mut self, to: &Bytes) {
        self.left = self.all.iter().filter(|(key, _)| key >= to).cloned().collect();
    }

    /// The same steps as [`walk`] takes.
    pub(crate) fn walk(&mut self, how: Walk) -> Vec<Option<Pair>> {
        let mut seen = Vec::new();
        for step in 0..how.steps {
            let pair = if bit(how.ends, step) { self.left.pop_back() } else { self.left.pop_front() };
            let ended = pair.is_none();
            seen.push(pair);
            if ended {
                break;
            }
        }
        seen
    }
}

/// Takes steps until the end or the limit.
pub(crate) fn walk(iter: &mut Iter, how: Walk) -> esker::Result<Vec<Option<Pair>>> {
    let mut seen = Vec::new();
    for step in 0..how.steps {
        let pair = match (bit(how.ends, step), bit(how.borrow, step)) {
            (false, false) => iter.next().transpose()?,
            (true, false) => iter.next_back().transpose()?,
            (false, true) => iter.next_ref()?.map(copied),
            (true, true) => iter.next_back_ref()?.map(copied),
        };
        let ended = pair.is_none();
        seen.push(pair);
        if ended {
            break;
        }
    }
    Ok(seen)
}

/// Like [`walk`], without the values.
pub(crate) fn walk_keys(keys: &mut Keys, how: Walk) -> esker::Result<Vec<Option<Bytes>>> {
    let mut seen = Vec::new();
    for step in 0..how.steps {
        let key = match (bit(how.ends, step), bit(how.borrow, step)) {
            (false, false) => keys.next().transpose()?,
            (true, false) => keys.next_back().transpose()?,
            (false, true) => keys.next_ref()?.map(Bytes::copy_from_slice),
            (true, true) => keys.next_back_ref()?.map(Bytes::copy_from_slice),
        };
        let ended = key.is_none();
        seen.push(key);
        if ended {
            break;
        }
    }
    Ok(seen)
}

fn copied((key, value): (&[u8], &[u8])) -> Pair {
    (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

fn bit(bits: u64, step: usize) -> bool {
    bits >> (step % 64) & 1 == 1
}

/// All held objects.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) snapshots: Vec<HeldSnapshot>,
    pub(crate) iters: Vec<HeldIter>,
    pub(crate) gets: Vec<HeldGets>,
    /// Groups of gets that were started.
    pub(crate) futures: u64,
    /// Polls that found one of them pending.
    pub(crate) pending: u64,
}

impl Held {
    pub(crate) fn keep_snapshot(&mut self, held: HeldSnapshot) {
        if self.snapshots.len() >= MAX_HELD {
            self.snapshots.remove(0);
        }
        self.snapshots.push(held);
    }

    pub(crate) fn keep_iter(&mut self, held: HeldIter) {
        if self.iters.len() >= MAX_HELD {
            self.iters.remove(0);
        }
        self.iters.push(held);
    }

    pub(crate) fn keep_gets(&mut self, held: HeldGets) {
        self.futures += 1;
        if self.gets.len() >= MAX_HELD {
            self.gets.remove(0);
        }
        self.gets.push(held);
    }

    /// A keyspace was dropped: its iterators must report that.
    pub(crate) fn keyspace_dropped(&mut self, keyspace: u32) -> Check {
        for mut held in self.iters.extract_if(.., |held| held.keyspace == keyspace) {
            must_be_closed(&mut held)?;
        }
        Ok(())
    }

    /// The store was closed: every held object must report that.
    ///
    /// A future may also report a fault that struck before the close (`is_faulty`).
    pub(crate) fn store_closed(&mut self, any: Option<&Keyspace>, is_faulty: bool) -> Check {
        for mut held in self.iters.drain(..) {
            must_be_closed(&mut held)?;
        }
        for held in self.gets.drain(..) {
            let views = held.views.clone();
            match held.finish()? {
                Ok(found) if views.contains(&found) => {}
                Err(_) if is_faulty => {}
                other => expect_closed("gets", other)?,
            }
        }
        for held in self.snapshots.drain(..) {
            if let Some(keyspace) = any {
                expect_closed("a snapshot", held.snapshot.get(keyspace, "k"))?;
            }
        }
        Ok(())
    }

    /// The machine has crashed: every future ends, with its values or with an error.
    pub(crate) fn machine_crashed(&mut self) -> Check {
        for held in self.gets.drain(..) {
            let views = held.views.clone();
            if let Ok(found) = held.finish()?
                && !views.contains(&found)
            {
                return Err(Failure::new(format!("after a crash: found {found:?}, expected {views:?}")));
            }
        }
        Ok(())
    }

    /// Polls one of the futures; its answer and the allowed ones, if it has ended.
    pub(crate) fn poll_gets(&mut self, index: usize) -> Check<Option<(esker::Result<Values>, Vec<Values>)>> {
        let Some(values) = self.gets[index].poll()? else {
            self.pending += 1;
            return Ok(None);
        };
        Ok(Some((values, self.gets.remove(index).views)))
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.iters.clear();
        self.gets.clear();
        self.snapshots.clear();
    }
}

fn must_be_closed(held: &mut HeldIter) -> Check {
    match held.iter.next() {
        // It had reached its end before.
        None if held.views.iter().any(|view| view.left.is_empty()) => Ok(()),
        None => Err(Failure::new("an iterator ended silently when its source was closed")),
        Some(step) => expect_closed("an iterator", step),
    }
}

/// The call must have failed with `Closed`.
pub(crate) fn expect_closed<T: std::fmt::Debug>(what: &str, result: esker::Result<T>) -> Check {
    match result {
        Err(Error::Closed) => Ok(()),
        other => Err(Failure::new(format!("{what} of a closed object returned {other:?}"))),
    }
}
