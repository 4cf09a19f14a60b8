//! Flush: the frozen memtables of a keyspace become one run, and the log releases their records.
//!
//! The steps in order, each with the state after a crash behind it:
//! 1. Segments are written and synced with their names: orphans.
//! 2. The log is durable up to the cut, else a segment could hold entries that the log loses: orphans.
//! 3. The manifest edit is synced: the segments are live, and replay skips the records that they hold.
//! 4. The manifest forgets log files that no keyspace needs, then the log uses them again.
//!
//! A close waits for a flush: what it writes has to become durable in any case.

use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::key::Seq;
use crate::base::planted::{Bug, planted};
use crate::compaction::output::{NEVER, open_segments, remove, write_run};
use crate::compaction::picker::Layers;
use crate::compaction::retain::{Retain, Tombstones};
use crate::io::background::JobKind;
use crate::io::lane::Lane;
use crate::manifest::levels::{PieceMeta, RunMeta};
use crate::manifest::version::Edit;
use crate::read::merge::Merge;
use crate::tree::superversion::{Layer, Tree};
use crate::tree::writing::Writing;

/// Flushes every frozen memtable of every keyspace, unless the store is closed. One caller at a time; the others wait and
/// then have nothing to flush.
///
/// # Errors
/// `NoSpace` and others of the segments' I/O: the outputs are removed, the tables stay, and the next call tries again.
pub(crate) fn flush_frozen(store: &Writing) -> Result<()> {
    let _one = store.exclude_flushes();
    if store.is_closed() { Ok(()) } else { flush_trees(store) }
}

/// Flushes for the close itself, when the store counts as closed already.
pub(crate) fn flush_at_close(store: &Writing) -> Result<()> {
    let _one = store.exclude_flushes();
    flush_trees(store)
}

fn flush_trees(store: &Writing) -> Result<()> {
    store.health()?;
    let trees = store.all_trees();
    let mut waiting = trees.iter().filter(|tree| !tree.load().layers.is_empty());
    let (started, mut bytes) = (store.files.backend().now(), 0);
    let flushed = waiting.try_for_each(|tree| {
        bytes += flush_tree(store, tree)?;
        Ok(())
    });
    store.speeds.flushed(bytes, store.files.backend().now().saturating_sub(started));
    // After a failure, too: the keyspaces that were flushed before it may free space.
    let released = if flushed.is_ok() || store.health().is_ok() { release_log(store) } else { Ok(()) };
    store.latch(flushed.and(released))
}

/// Forgets and recycles log files whose records are all in segments.
pub(crate) fn release_log(store: &Writing) -> Result<()> {
    // Before the keyspaces are listed: one that is made in between may have records below a later position.
    let visible = store.visible();
    // A log that has halted may hold a visible record of which the memtables lack a part.
    store.log.health()?;
    let before = store.manifest.version().horizon;
    let horizon = horizon(store, visible, &store.all_trees()).max(before);
    // At the same horizon a file may be free now: it was the current one when the log was released the last time.
    let retired = store.log.retirable(horizon);
    if horizon == before && retired.is_empty() {
        return Ok(());
    }
    store.manifest.append(&[Edit::Horizon { at: horizon, retired: retired.clone() }])?;
    store.log.retire(&retired)?;
    Ok(())
}

/// Flushes the frozen memtables of a keyspace. Returns the bytes of their entries, as operations.
fn flush_tree(store: &Writing, tree: &Arc<Tree>) -> Result<u64> {
    let started = store.files.backend().now();
    let before = tree.load();
    let layers = before.layers.clone();
    drop(before);
    let Some(cut) = layers.first().map(Layer::cut) else { return Ok(0) };
    let entries = layers.iter().map(|layer| layer.table().len() as u64).sum();
    let version = store.manifest.version();
    let runs = version.levels(tree.id).runs();
    let output = store.output(tree.id, Layers::before(entries, runs.iter().map(RunMeta::entries)));
    let taken = if planted(Bug::FlushForgetsOldestTable) { layers.len().div_ceil(2) } else { layers.len() };
    let inputs = layers.iter().take(taken).map(|layer| layer.table().cursor());
    let mut retain = Retain::new(store.pins.retained(), Tombstones::Keep);
    let watch = || {
        store.give_way();
        false
    };
    let lane = Lane::new(&store.files, JobKind::Flush)?;
    let new_number = || store.manifest.new_number();
    let run = write_run(&output, &lane, &new_number, (Merge::new(inputs), &mut retain), &watch)?;
    let bytes: u64 = run.iter().map(|segment| segment.size_bytes).sum();

    // A log that has halted may hold a record of which the memtables lack a part.
    let durable = || store.log.wait_durable(cut).and_then(|()| store.log.health());
    let waited = if planted(Bug::FlushBeforeDurable) { Ok(()) } else { durable() };
    let installed = waited.map_err(Error::from).and_then(|()| {
        let opened = open_segments(&output, &run, NEVER)?;
        let pieces = run.iter().cloned().map(PieceMeta::whole).collect();
        let _installing = tree.lock();
        let to = if planted(Bug::FlushedTooFar) { store.log.published() } else { cut };
        let version = store.manifest.append(&[Edit::Flushed { keyspace: tree.id, to, pieces }])?;
        tree.install(version.levels(tree.id), opened, Some(cut));
        Ok(())
    });
    if let Err(error) = installed {
        // After a failed manifest write the edit may be on the disk or not, so no file may be removed.
        if !matches!(error, Error::Halted { .. }) {
            remove(&store.files, run.iter().map(|segment| segment.id));
        }
        return Err(error);
    }
    let freed: u64 = layers.iter().map(|layer| layer.table().size_bytes() as u64).sum();
    store.note_flushed(freed);
    store.counters.flushed(bytes);
    let took = store.files.backend().now().saturating_sub(started);
    tree.pace.flushed(retain.judged_bytes(), store.options.freeze_bytes());
    store.adjust_pace(tree);
    store.tell(&Event::Flushed { keyspace: tree.name.clone(), bytes, took });
    Ok(retain.judged_bytes())
}

/// The position below which every entry is in segments. It is a record boundary at or below the durable end.
///
/// `visible` was loaded before `trees` were listed. So every keyspace with an entry below it is among them, unless it was
/// dropped, and its tables have the entry or have given it to segments.
fn horizon(store: &Writing, visible: Seq, trees: &[Arc<Tree>]) -> Seq {
    let unflushed = trees.iter().filter_map(|tree| tree.load().first_unflushed()).min();
    let end = unflushed.map_or(visible, |unflushed| unflushed.min(visible));
    if end <= store.log.durable() {
        return end;
    }
    // Groups cut records, so the durable end itself is no boundary. Flushed is what was durable.
    let version = store.manifest.version();
    version.keyspaces.values().map(|keyspace| keyspace.flushed).max().unwrap_or_default()
}
