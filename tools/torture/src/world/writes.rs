//! Operations that change the store, and those that move its data.

use std::collections::BTreeSet;

use bytes::Bytes;
use esker::testing::DbExt;
use esker::{Durability, Error};

use super::state::{Outcome, World};
use crate::held::expect_closed;
use crate::model::{ModelWrite, Prefix};
use crate::report::{Check, Failure};
use crate::workload::{DEFAULT_SLOT, Level, Op, SLOTS, Write};

/// Longer than any permitted key.
const TOO_LONG_KEY_BYTES: usize = esker::MAX_KEY_BYTES + 1;

impl World {
    pub(super) fn run_write(&mut self, op: &Op) -> Check<Outcome> {
        match op {
            Op::Put { slot, key, value, level } => {
                let write = Write { slot: *slot, key: key.clone(), value: Some(value.clone()) };
                Ok(self.single(&write, *level))
            }
            Op::Delete { slot, key, level } => {
                Ok(self.single(&Write { slot: *slot, key: key.clone(), value: None }, *level))
            }
            Op::Batch { writes, level } => self.batch(writes, *level),
            Op::TooLarge { slot, key } => self.too_large(*slot, key),
            Op::BadKey { slot } => self.bad_key(*slot),
            _ => Ok(Outcome::Skipped),
        }
    }

    fn single(&mut self, write: &Write, level: Level) -> Outcome {
        let Some((handle, keyspace)) = self.keyspace(write.slot) else { return Outcome::Skipped };
        let handle = match level {
            Level::Default => handle,
            _ => handle.with_durability(level.resolve(self.config.durability)),
        };
        let written = ModelWrite { keyspace, key: write.key.clone(), value: write.value.clone() };
        self.commit(&[written], level, |_| match &write.value {
            Some(value) => handle.put(&write.key, value),
            None => handle.delete(&write.key),
        })
    }

    fn batch(&mut self, writes: &[Write], level: Level) -> Check<Outcome> {
        let mut batch = self.db()?.batch();
        if level != Level::Default {
            batch.durability(level.resolve(self.config.durability));
        }
        let mut written = Vec::new();
        for write in writes {
            let Some((handle, keyspace)) = self.keyspace(write.slot) else { continue };
            written.push(ModelWrite { keyspace, key: write.key.clone(), value: write.value.clone() });
            match &write.value {
                Some(value) => batch.put(&handle, &write.key, value),
                None => batch.delete(&handle, &write.key),
            };
        }
        let keys: BTreeSet<_> = written.iter().map(|write| (write.keyspace, &write.key)).collect();
        if batch.len() != keys.len() {
            return Err(Failure::new(format!("a batch of {} keys counts {}", keys.len(), batch.len())));
        }
        if batch.size_bytes() > self.db()?.max_record_bytes() {
            return must_be_too_large(batch.commit());
        }
        if written.is_empty() {
            return match batch.commit() {
                Ok(_) => {
                    self.acknowledge(level.resolve(self.config.durability));
                    Ok(Outcome::Done)
                }
                Err(error) => Ok(Outcome::Refused(error)),
            };
        }
        let before = self.last_seq;
        let mut seq = None;
        let outcome = self.commit(&written, level, |_| {
            seq = Some(batch.commit()?);
            Ok(())
        });
        if seq.is_some() {
            if seq <= before {
                return Err(Failure::new(format!(
                    "a later batch has position {seq:?}, an earlier one {before:?}"
                )));
            }
            self.last_seq = seq;
        }
        Ok(outcome)
    }

    /// Notes a commit as submitted, makes it, and notes its result.
    fn commit(
        &mut self,
        writes: &[ModelWrite],
        level: Level,
        call: impl FnOnce(&World) -> esker::Result<()>,
    ) -> Outcome {
        self.model.commit(writes);
        self.acks.lock().submitted.commits = self.model.end().commits;
        let Err(error) = call(self) else {
            self.records += 1;
            self.acknowledge(level.resolve(self.config.durability));
            return Outcome::Done;
        };
        // A write that got its position in the log is visible and stays submitted. Only its durability is unknown.
        let records = self.db.as_ref().map_or(0, |db| db.metrics().records);
        let is_missing = records == self.records;
        self.records = records;
        if is_missing {
            let end = self.model.end();
            self.model.truncate(Prefix { commits: end.commits - 1, ..end });
            self.acks.lock().submitted.commits = end.commits - 1;
        }
        Outcome::Refused(error)
    }

    fn has_halted(&self) -> bool {
        self.db.as_ref().is_some_and(|db| db.metrics().halted.is_some())
    }

    /// Everything so far was acknowledged at a level.
    pub(super) fn acknowledge(&mut self, level: Durability) {
        let commits = self.model.end().commits;
        let mut acks = self.acks.lock();
        acks.process.commits = commits;
        if level == Durability::Power {
            acks.power.commits = commits;
        }
    }

    fn too_large(&mut self, slot: usize, key: &Bytes) -> Check<Outcome> {
        let Some((handle, _)) = self.keyspace(slot) else { return Ok(Outcome::Skipped) };
        let value = vec![7; self.db()?.max_record_bytes()];
        must_be_too_large(handle.put(key, &value))?;
        must_be_too_large(self.db()?.batch().delete(&handle, key).put(&handle, key, &value).commit())
    }

    fn bad_key(&mut self, slot: usize) -> Check<Outcome> {
        let Some((handle, _)) = self.keyspace(slot) else { return Ok(Outcome::Skipped) };
        must_be_invalid(handle.put("", "v"))?;
        must_be_invalid(handle.delete(""))?;
        must_be_invalid(handle.get(""))?;
        must_be_invalid(self.db()?.batch().put(&handle, "k", "v").delete(&handle, "").commit())?;
        must_be_too_large(handle.put(vec![b'k'; TOO_LONG_KEY_BYTES], "v"))
    }

    pub(super) fn run_upkeep(&mut self, op: &Op) -> Check<Outcome> {
        let db = self.db()?;
        let result = match op {
            Op::Sync => db.sync(),
            Op::Flush => db.flush(),
            Op::Compact => db.compact(),
            Op::Freeze => {
                return Ok(db.freeze().map_or_else(Outcome::Refused, |()| Outcome::Done));
            }
            Op::Hold { held } => {
                db.hold_jobs(*held);
                return Ok(Outcome::Done);
            }
            Op::Verify => {
                let verified = db.verify();
                return Ok(verified.map_or_else(Outcome::Refused, |_| Outcome::Done));
            }
            Op::Metrics => return self.metrics(),
            Op::Keyspaces => return self.list_keyspaces(),
            Op::Create { slot } => return self.create(*slot),
            Op::Drop { slot } => return self.drop_keyspace(*slot),
            Op::UseDropped { slot } => return self.use_dropped(*slot),
            _ => return Ok(Outcome::Skipped),
        };
        match result {
            Ok(()) => {
                self.acknowledge(Durability::Power);
                Ok(Outcome::Done)
            }
            Err(error) => Ok(Outcome::Refused(error)),
        }
    }

    fn metrics(&self) -> Check<Outcome> {
        let metrics = self.db()?.metrics();
        let names = metrics.keyspaces.iter().map(|keyspace| keyspace.name.as_str());
        // On a real machine the file system decides this: btrfs with data checksums does not do it.
        let is_direct = metrics.direct_io || self.real.is_some();
        if metrics.incarnation == 0 || !is_direct || !names.eq(self.model.newest_names().keys().copied()) {
            return Err(Failure::new(format!("{metrics:?}")));
        }
        if metrics.snapshots < usize::from(!self.held.snapshots.is_empty()) {
            return Err(Failure::new("a held snapshot is not counted"));
        }
        Ok(Outcome::Done)
    }

    fn list_keyspaces(&self) -> Check<Outcome> {
        let found = self.db()?.keyspaces();
        if found.iter().eq(self.model.newest_names().keys()) {
            Ok(Outcome::Done)
        } else {
            Err(Failure::new(format!("found {found:?}")))
        }
    }

    fn create(&mut self, slot: usize) -> Check<Outcome> {
        let name = SLOTS[slot];
        let exists = self.model.newest_names().contains_key(name);
        let had_halted = self.has_halted();
        if !exists {
            self.model.create(name);
            self.acks.lock().submitted.edits = self.model.end().edits;
        }
        match self.db()?.keyspace(name) {
            Ok(handle) => {
                self.handles[slot] = Some(handle);
                self.acknowledge_edits();
                Ok(Outcome::Done)
            }
            Err(error) => {
                if !exists {
                    self.edit_refused((name, true), had_halted, &error);
                }
                Ok(Outcome::Refused(error))
            }
        }
    }

    fn drop_keyspace(&mut self, slot: usize) -> Check<Outcome> {
        let name = SLOTS[slot];
        let Some((handle, keyspace)) = self.keyspace(slot).filter(|_| slot != DEFAULT_SLOT) else {
            if !self.has_halted() {
                must_be_invalid(self.db()?.drop_keyspace(name))?;
            }
            return Ok(Outcome::Skipped);
        };
        let had_halted = self.has_halted();
        self.model.drop_keyspace(name);
        self.acks.lock().submitted.edits = self.model.end().edits;
        match self.db()?.drop_keyspace(name) {
            Ok(()) => {
                self.handles[slot] = None;
                self.stale[slot] = Some(handle);
                self.acknowledge_edits();
                self.held.keyspace_dropped(keyspace)?;
                Ok(Outcome::Done)
            }
            Err(error) => {
                self.edit_refused((name, false), had_halted, &error);
                Ok(Outcome::Refused(error))
            }
        }
    }

    fn acknowledge_edits(&mut self) {
        let edits = self.model.end().edits;
        let mut acks = self.acks.lock();
        acks.process.edits = edits;
        acks.power.edits = edits;
    }

    /// An edit failed: the open store does not know it, but if the store halted in it, it may be on the disk.
    fn edit_refused(&mut self, edit: (&'static str, bool), had_halted: bool, error: &Error) {
        if matches!(error, Error::Halted { .. }) && !had_halted {
            self.in_doubt = Some(edit);
        }
        let end = self.model.end();
        self.model.truncate(Prefix { edits: end.edits - 1, ..end });
        self.acks.lock().submitted.edits = end.edits - 1;
    }

    fn use_dropped(&self, slot: usize) -> Check<Outcome> {
        let Some(handle) = &self.stale[slot] else { return Ok(Outcome::Skipped) };
        expect_closed("put to a dropped keyspace", handle.put("k", "v"))?;
        expect_closed("get from a dropped keyspace", handle.get("k"))?;
        expect_closed("first of a dropped keyspace", handle.first())?;
        expect_closed("batch to a dropped keyspace", self.db()?.batch().delete(handle, "k").commit())?;
        Ok(Outcome::Done)
    }
}

fn must_be_too_large<T: std::fmt::Debug>(result: esker::Result<T>) -> Check<Outcome> {
    match result {
        Err(Error::TooLarge { .. }) => Ok(Outcome::Done),
        other => Err(Failure::new(format!("expected TooLarge, got {other:?}"))),
    }
}

fn must_be_invalid<T: std::fmt::Debug>(result: esker::Result<T>) -> Check<Outcome> {
    match result {
        Err(Error::InvalidArgument { .. }) => Ok(Outcome::Done),
        other => Err(Failure::new(format!("expected InvalidArgument, got {other:?}"))),
    }
}
