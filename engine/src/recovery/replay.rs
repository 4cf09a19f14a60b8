//! The log of the incarnation that has ended: read without a change, then written to segments.
//!
//! Invariants: a record is applied whole or not at all; an entry that a segment holds already is not applied again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wal::Replayed;

use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::planted::{Bug, planted};
use crate::base::sync::shared::AtomicU64;
use crate::compaction::output::{NEVER, open_segments, write_run};
use crate::compaction::picker::Layers;
use crate::compaction::retain::{Retain, Tombstones};
use crate::io::background::JobKind;
use crate::io::files::Files;
use crate::io::lane::Lane;
use crate::manifest::levels::{PieceMeta, RunMeta};
use crate::manifest::replay_input::replay_input;
use crate::manifest::version::{Edit, Version};
use crate::memtable::{ArenaPool, Memtable};
use crate::recovery::begin::apply;
use crate::recovery::load::{Loading, SharedMemory};
use crate::recovery::lost_edit;
use crate::recovery::repair::{LogDamage, Loss};
use crate::tree::store::Trees;
use crate::write::ops;

/// The content of the log beyond the segments, by keyspace.
#[derive(Debug)]
pub(crate) struct Replay {
    pool: Arc<ArenaPool>,
    tables: BTreeMap<u32, Arc<Memtable>>,
    end: Seq,
    /// Above the epochs of log files whose edits are lost; 0 if none are.
    next_epoch: u32,
    /// Where the log was cut, if it was.
    damage: Option<LogDamage>,
}

impl Replay {
    pub(crate) fn new(memory: &SharedMemory) -> Replay {
        let (pool, tables) = (Arc::clone(&memory.pool), BTreeMap::new());
        Replay { pool, tables, end: Seq::default(), next_epoch: 0, damage: None }
    }

    /// Reads log and ring, or, for a repair, the part before the first damage; changes nothing on disk.
    pub(crate) fn read(&mut self, files: &Files, version: &Version, repair: bool) -> Result<Replayed> {
        if let Err(what) = version.check_log() {
            let incarnation = &version.incarnation;
            return Err(Error::corrupt(
                &files.ring_path(incarnation.ring),
                0,
                what,
                "a ring",
                incarnation.ring_bytes,
            ));
        }
        let fronts = lost_edit::fronts(files)?;
        // A repair would remove the only copy.
        lost_edit::check_names(files, &fronts, version)?;
        let unnamed = lost_edit::find(&fronts, version);
        let missing = unnamed.first().map(|file| lost_edit::error(files, file)).transpose()?;
        if let (Some(missing), false) = (&missing, repair) {
            return Err(missing.clone());
        }
        self.next_epoch = unnamed.last().map_or(0, |file| file.epoch + 1);
        let mut input = replay_input(files, version);
        input.files.extend(unnamed);
        let (mut replayed, cut) = self.visit(files, version, &input, repair)?;
        let flushed = version.keyspaces.values().map(|keyspace| keyspace.flushed);
        let newest_flush = flushed.max().unwrap_or_default();
        let damage = match cut {
            Some(cut) => missing.or(Some(cut)),
            None => match check_flushed(files, newest_flush, replayed.end) {
                Ok(()) => missing,
                Err(error) if !repair => return Err(error),
                Err(error) => missing.or(Some(error)),
            },
        };
        if let Some(error) = damage {
            let bounds =
                files.with_queue(|queue| Ok(wal::bounds(files.backend().as_ref(), queue, &input)?))?;
            let loss = loss_behind(replayed.end, &bounds, version);
            self.damage = Some(LogDamage { error, kept_records: replayed.records, loss });
            // Positions never repeat: entries of segments from behind the cut must stay older than the entries that come.
            replayed.end = replayed.end.max(bounds.least).max(newest_flush);
        }
        self.end = replayed.end;
        Ok(replayed)
    }

    /// Takes every record of the log.
    fn visit(
        &mut self,
        files: &Files,
        version: &Version,
        input: &wal::ReplayInput,
        repair: bool,
    ) -> Result<(Replayed, Option<Error>)> {
        let directory = files.wal_dir();
        files.with_queue(|queue| {
            let backend = files.backend().as_ref();
            let mut visit = |seq: Seq, payload: &[u8]| {
                self.take(&directory, version, seq, payload).map_err(Error::into_wal)
            };
            if repair {
                let (replayed, damage) = wal::replay_to_damage(backend, queue, input, &mut visit)?;
                return Ok((replayed, damage.map(Error::from)));
            }
            Ok((wal::replay(backend, queue, input, &mut visit)?, None))
        })
    }

    /// Applies one record, all of it or nothing.
    fn take(&mut self, directory: &Path, version: &Version, seq: Seq, payload: &[u8]) -> Result<()> {
        let corrupt =
            |what, expected, found: String| Error::corrupt(directory, seq.get(), what, expected, found);
        let mut found = Vec::new();
        for op in ops::ops(payload) {
            let op = op
                .map_err(|bad| corrupt(bad.what, "operations", format!("byte {} of a record", bad.offset)))?;
            if !version.keyspaces.contains_key(&op.keyspace) && !version.dropped.contains(&op.keyspace) {
                return Err(corrupt("keyspace of an operation", "a known one", op.keyspace.to_string()));
            }
            found.push(op);
        }
        if planted(Bug::BatchHalfReplayed) && found.len() > 1 {
            found.pop();
        }
        for op in found {
            // Segments hold the entries below the flushed position; dropped keyspaces are skipped.
            if version.keyspaces.get(&op.keyspace).is_some_and(|keyspace| seq >= keyspace.flushed) {
                let new = || Arc::new(Memtable::in_pool(&self.pool, 0));
                let table = self.tables.entry(op.keyspace).or_insert_with(new);
                table.insert(op.key, seq, op.kind, op.value);
            }
        }
        Ok(())
    }

    /// Writes the records that were read to segments and adds these to the version and to the keyspaces.
    pub(crate) fn write(&self, loading: &Loading<'_>, version: &mut Version, trees: &Trees) -> Result<()> {
        let next = AtomicU64::new(version.next_file);
        let site = loading.site(version.incarnation.store_id);
        for (&keyspace, tree) in trees {
            let (mut run, mut opened) = (Vec::new(), Vec::new());
            if let Some(table) = self.tables.get(&keyspace) {
                let runs = version.levels(keyspace).runs();
                let layers = Layers::before(table.len() as u64, runs.iter().map(RunMeta::entries));
                let output = site.output(keyspace, layers);
                let number = || next.fetch_add(1, Ordering::Relaxed);
                let mut retain = Retain::new(Vec::new(), Tombstones::Keep);
                run = write_run(
                    &output,
                    &Lane::new(output.files, JobKind::Flush)?,
                    &number,
                    (table.cursor(), &mut retain),
                    NEVER,
                )?;
                opened = open_segments(&output, &run, NEVER)?;
            }
            let pieces = run.into_iter().map(PieceMeta::whole).collect();
            apply(version, &Edit::Flushed { keyspace, to: self.end, pieces });
            tree.install(version.levels(keyspace), opened, None);
        }
        version.next_file = next.into_inner();
        // Else a crash before the orphans are removed would leave files that look lost again.
        version.next_epoch = version.next_epoch.max(self.next_epoch);
        Ok(())
    }

    /// Frees the memory of the records; says where the log was cut.
    pub(crate) fn finish(self) -> Option<LogDamage> {
        self.damage
    }
}

/// The records from `end` on, where the log is cut, that are not in segments: below its flushed position a keyspace has its
/// entries there.
fn loss_behind(end: Seq, bounds: &wal::Bounds, version: &Version) -> Loss {
    let flushed = || version.keyspaces.values().map(|keyspace| keyspace.flushed);
    let first = flushed().min().unwrap_or_default().max(end);
    let last = flushed().max().unwrap_or_default();
    Loss {
        at_least_bytes: bounds.least.since(end.max(last)),
        at_most_durable_bytes: bounds.durable.max(last).since(first),
        at_most_bytes: bounds.published.max(last).since(first),
    }
}

/// A flush waits until the log is durable up to its cut. So a log that ends before the flushed position of a keyspace has
/// lost records, though segments have those of this keyspace: records of others are gone, and positions would repeat.
fn check_flushed(files: &Files, flushed: Seq, end: Seq) -> Result<()> {
    if end >= flushed {
        return Ok(());
    }
    let what = "the log ends before the flushed position of a keyspace";
    Err(Error::corrupt(&files.wal_dir(), 0, what, format!("{flushed:?}"), format!("{end:?}")))
}
