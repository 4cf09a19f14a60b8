//! Operations that only read: at once, or through held snapshots and iterators.

use std::fmt::Debug;
use std::ops::Bound;

use bytes::Bytes;
use esker::Keyspace;

use super::state::{Outcome, World};
use crate::futures::HeldGets;
use crate::held::{Expected, HeldIter, HeldSnapshot, Pair, walk, walk_keys};
use crate::model::Table;
use crate::report::{Check, Failure};
use crate::workload::{Op, Range, Walk};

const ALL: Range = (Bound::Unbounded, Bound::Unbounded);

impl World {
    pub(super) fn run_read(&mut self, op: &Op) -> Check<Outcome> {
        match op {
            Op::Get { slot, key } => self.read(*slot, |ks| ks.get(key), |table| table.get(key).cloned()),
            Op::ContainsKey { slot, key } => {
                self.read(*slot, |ks| ks.contains_key(key), |table| table.contains_key(key))
            }
            Op::MultiGet { slot, keys } => {
                self.read(*slot, |ks| ks.multi_get(keys), |table| get_all(table, keys))
            }
            Op::Range { slot, range, walk: how } => self.read(
                *slot,
                |ks| walk(&mut ks.range(range.clone()), *how),
                |table| Expected::range(table, range).walk(*how),
            ),
            Op::Prefix { slot, prefix, walk: how } => self.read(
                *slot,
                |ks| walk(&mut ks.prefix(prefix), *how),
                |table| Expected::prefix(table, prefix).walk(*how),
            ),
            Op::Iter { slot, walk: how } => self.read(
                *slot,
                |ks| walk(&mut ks.iter(), *how),
                |table| Expected::range(table, &ALL).walk(*how),
            ),
            Op::Seek { slot, range, walk: how, to } => self.seek(*slot, range, *how, to),
            Op::Keys { slot, range, walk, to } => self.keys(*slot, range, *walk, to),
            Op::First { slot } => {
                self.read(*slot, Keyspace::first, |table| table.first_key_value().map(pair))
            }
            Op::Last { slot } => self.read(*slot, Keyspace::last, |table| table.last_key_value().map(pair)),
            Op::IsEmpty { slot } => self.read(*slot, Keyspace::is_empty, Table::is_empty),
            _ => Ok(Outcome::Skipped),
        }
    }

    /// Walks, seeks, walks again.
    fn seek(&self, slot: usize, range: &Range, how: Walk, to: &Bytes) -> Check<Outcome> {
        self.read(
            slot,
            |ks| {
                let mut iter = ks.range(range.clone());
                let before = walk(&mut iter, how)?;
                iter.seek(to);
                Ok((before, walk(&mut iter, how)?))
            },
            |table| {
                let mut expected = Expected::range(table, range);
                let before = expected.walk(how);
                expected.seek(to);
                (before, expected.walk(how))
            },
        )
    }

    fn keys(&self, slot: usize, range: &Range, how: Walk, to: &Bytes) -> Check<Outcome> {
        let only = |pairs: Vec<Option<Pair>>| {
            pairs.into_iter().map(|pair| pair.map(|(key, _)| key)).collect::<Vec<_>>()
        };
        self.read(
            slot,
            |ks| {
                let mut keys = ks.range(range.clone()).keys();
                let before = walk_keys(&mut keys, how)?;
                keys.seek(to);
                Ok((before, walk_keys(&mut keys, how)?))
            },
            |table| {
                let mut expected = Expected::range(table, range);
                let before = expected.walk(how);
                expected.seek(to);
                (only(before), only(expected.walk(how)))
            },
        )
    }

    /// Compares one read with the answers of all allowed states.
    fn read<T: PartialEq + Debug>(
        &self,
        slot: usize,
        read: impl FnOnce(&Keyspace) -> esker::Result<T>,
        expect: impl Fn(&Table) -> T,
    ) -> Check<Outcome> {
        let Some((handle, keyspace)) = self.keyspace(slot) else { return Ok(Outcome::Skipped) };
        judge(read(&handle), self.tables(keyspace).iter().map(|table| expect(table)))
    }

    pub(super) fn run_held(&mut self, op: &Op) -> Check<Outcome> {
        match op {
            Op::TakeSnapshot => {
                let held = HeldSnapshot { snapshot: self.db()?.snapshot(), views: self.views() };
                self.held.keep_snapshot(held);
                Ok(Outcome::Done)
            }
            Op::DropSnapshot { held } => {
                let Some(index) = pick(*held, self.held.snapshots.len()) else { return Ok(Outcome::Skipped) };
                self.held.snapshots.remove(index);
                Ok(Outcome::Done)
            }
            Op::DropIter { held } => {
                let Some(index) = pick(*held, self.held.iters.len()) else { return Ok(Outcome::Skipped) };
                self.held.iters.remove(index);
                Ok(Outcome::Done)
            }
            Op::OpenIter { slot, range } => {
                let Some((handle, keyspace)) = self.keyspace(*slot) else { return Ok(Outcome::Skipped) };
                let tables = self.tables(keyspace);
                let views = tables.iter().map(|table| Expected::range(table, range)).collect();
                self.held.keep_iter(HeldIter { iter: handle.range(range.clone()), keyspace, views });
                Ok(Outcome::Done)
            }
            Op::StartGets { slot, keys } => {
                let Some((handle, keyspace)) = self.keyspace(*slot) else { return Ok(Outcome::Skipped) };
                let views = self.tables(keyspace).iter().map(|table| get_all(table, keys)).collect();
                let has_threads = self.has_threads();
                self.held.keep_gets(if keys.len() % 2 == 0 {
                    HeldGets::together(handle.multi_get_async(keys), views, has_threads)
                } else {
                    let gets = keys.iter().map(|key| handle.get_async(key)).collect();
                    HeldGets::each(gets, views, has_threads)
                });
                Ok(Outcome::Done)
            }
            Op::PollGets { held } => {
                let Some(index) = pick(*held, self.held.gets.len()) else { return Ok(Outcome::Skipped) };
                match self.held.poll_gets(index)? {
                    Some((values, views)) => judge(values, views.into_iter()),
                    None => Ok(Outcome::Done),
                }
            }
            Op::DropGets { held } => {
                let Some(index) = pick(*held, self.held.gets.len()) else { return Ok(Outcome::Skipped) };
                drop(self.held.gets.remove(index));
                Ok(Outcome::Done)
            }
            Op::FinishGets { held } => {
                let Some(index) = pick(*held, self.held.gets.len()) else { return Ok(Outcome::Skipped) };
                let held = self.held.gets.remove(index);
                let views = held.views.clone();
                judge(held.finish()?, views.into_iter())
            }
            Op::StepIter { held, walk } => self.step_iter(*held, *walk),
            Op::SeekIter { held, to } => {
                let Some(index) = pick(*held, self.held.iters.len()) else { return Ok(Outcome::Skipped) };
                let held = &mut self.held.iters[index];
                held.iter.seek(to);
                held.views.iter_mut().for_each(|view| view.seek(to));
                Ok(Outcome::Done)
            }
            _ => self.run_snapshot(op),
        }
    }

    fn step_iter(&mut self, held: usize, how: Walk) -> Check<Outcome> {
        let Some(index) = pick(held, self.held.iters.len()) else { return Ok(Outcome::Skipped) };
        let held = &mut self.held.iters[index];
        match walk(&mut held.iter, how) {
            Ok(seen) => {
                held.views.retain_mut(|view| view.walk(how) == seen);
                if held.views.is_empty() {
                    return Err(Failure::new(format!("gave {seen:?}")));
                }
                Ok(Outcome::Done)
            }
            Err(error) => {
                self.held.iters.remove(index);
                Ok(Outcome::Refused(error))
            }
        }
    }

    fn run_snapshot(&mut self, op: &Op) -> Check<Outcome> {
        let (held, slot) = match op {
            Op::SnapshotGet { held, slot, .. }
            | Op::SnapshotMultiGet { held, slot, .. }
            | Op::StartSnapshotGets { held, slot, .. }
            | Op::SnapshotRange { held, slot, .. }
            | Op::SnapshotPrefix { held, slot, .. }
            | Op::SnapshotIter { held, slot, .. }
            | Op::OpenSnapshotIter { held, slot, .. } => (*held, *slot),
            _ => return Ok(Outcome::Skipped),
        };
        let Some((handle, keyspace)) = self.keyspace(slot) else { return Ok(Outcome::Skipped) };
        let Some(index) = pick(held, self.held.snapshots.len()) else { return Ok(Outcome::Skipped) };
        let held = &self.held.snapshots[index];
        let snapshot = &held.snapshot;
        let tables: Vec<_> = held.views.iter().map(|state| state.table(keyspace)).collect();
        let tables = || tables.iter();
        match op {
            Op::SnapshotGet { key, .. } => {
                judge(snapshot.get(&handle, key), tables().map(|table| table.get(key).cloned()))
            }
            Op::SnapshotMultiGet { keys, .. } => {
                judge(snapshot.multi_get(&handle, keys), tables().map(|table| get_all(table, keys)))
            }
            Op::StartSnapshotGets { keys, .. } => {
                let views = tables().map(|table| get_all(table, keys)).collect();
                let gets = snapshot.multi_get_async(&handle, keys);
                let has_threads = self.has_threads();
                self.held.keep_gets(HeldGets::together(gets, views, has_threads));
                Ok(Outcome::Done)
            }
            Op::SnapshotRange { range, walk: how, .. } => judge(
                walk(&mut snapshot.range(&handle, range.clone()), *how),
                tables().map(|table| Expected::range(table, range).walk(*how)),
            ),
            Op::SnapshotPrefix { prefix, walk: how, .. } => judge(
                walk(&mut snapshot.prefix(&handle, prefix), *how),
                tables().map(|table| Expected::prefix(table, prefix).walk(*how)),
            ),
            Op::SnapshotIter { walk: how, .. } => judge(
                walk(&mut snapshot.iter(&handle), *how),
                tables().map(|table| Expected::range(table, &ALL).walk(*how)),
            ),
            Op::OpenSnapshotIter { range, .. } => {
                let views = tables().map(|table| Expected::range(table, range)).collect();
                let iter = snapshot.range(&handle, range.clone());
                self.held.keep_iter(HeldIter { iter, keyspace, views });
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Skipped),
        }
    }
}

/// One of the held objects, if there are any.
fn pick(held: usize, len: usize) -> Option<usize> {
    (len > 0).then(|| held % len)
}

fn get_all(table: &Table, keys: &[Bytes]) -> Vec<Option<Bytes>> {
    keys.iter().map(|key| table.get(key).cloned()).collect()
}

fn pair((key, value): (&Bytes, &Bytes)) -> (Bytes, Bytes) {
    (key.clone(), value.clone())
}

/// One of the allowed answers, or an error for the caller to judge.
fn judge<T: PartialEq + Debug>(result: esker::Result<T>, allowed: impl Iterator<Item = T>) -> Check<Outcome> {
    let found = match result {
        Ok(found) => found,
        Err(error) => return Ok(Outcome::Refused(error)),
    };
    let allowed: Vec<T> = allowed.collect();
    if allowed.contains(&found) {
        Ok(Outcome::Done)
    } else {
        Err(Failure::new(format!("found {found:?}, expected {allowed:?}")))
    }
}
