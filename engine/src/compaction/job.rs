//! One compaction from pick to removal of its inputs.
//!
//! Order, and what a crash between the steps leaves: the output is written and synced with its names (orphans); the
//! manifest edit is synced (output live, inputs dead); the superversion is swapped; the inputs' files are removed
//! (or are orphans that the next open removes). Readers that hold an older superversion keep their open files. Last, what
//! was hot in the inputs is brought into the cache from the output.

use std::ops::Range;
use std::sync::Arc;

use aio::{Bug, planted};

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::compaction::output::{Output, open_run, remove, write_run};
use crate::compaction::picker::{Layers, RunShape, pick};
use crate::compaction::retain::{Retain, Tombstones};
use crate::compaction::warm;
use crate::manifest::version::Edit;
use crate::read::merge::Merge;
use crate::tree::run::Run;
use crate::tree::superversion::Tree;
use crate::tree::writing::Writing;

/// How far a compaction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What the picker finds due.
    Due,
    /// Until each keyspace is one run without anything dead in it.
    Full,
}

/// Merges until nothing is left to do, `stop` says so, or the store is closed. One caller at a time; others wait.
pub(crate) fn compact_all(store: &Writing, depth: Depth, stop: &dyn Fn() -> bool) -> Result<()> {
    let _one = store.exclude_compactions();
    store.health()?;
    for tree in store.all_trees() {
        while !stop() && !store.is_closed() {
            let Some(range) = choose(store, &tree, depth) else { break };
            store.latch(compact_runs(store, &tree, range))?;
            if depth == Depth::Full {
                break;
            }
        }
    }
    Ok(())
}

fn choose(store: &Writing, tree: &Tree, depth: Depth) -> Option<Range<usize>> {
    let runs = &tree.load().runs;
    // While a snapshot is held tombstones may have to stay, so a merge for their sake could go on for ever.
    let droppable = store.pins.oldest().is_none();
    match depth {
        Depth::Due => {
            let shapes: Vec<RunShape> = runs.iter().map(|run| shape(run, droppable)).collect();
            pick(&shapes)
        }
        Depth::Full => {
            let tombstones: u64 = runs.iter().map(|run| shape(run, droppable).tombstones).sum();
            (runs.len() > 1 || tombstones > 0).then_some(0..runs.len())
        }
    }
}

fn shape(run: &Run, droppable: bool) -> RunShape {
    let metas = || run.segments().iter().map(|segment| segment.meta());
    RunShape {
        bytes: run.size_bytes(),
        entries: metas().map(|meta| meta.entries).sum(),
        tombstones: if droppable { metas().map(|meta| meta.tombstones).sum() } else { 0 },
    }
}

fn compact_runs(store: &Writing, tree: &Arc<Tree>, range: Range<usize>) -> Result<()> {
    let started = store.files.backend().now();
    let before = tree.load();
    let is_bottom = range.end == before.runs.len();
    let inputs: Vec<Run> = before.runs.get(range).map(<[Run]>::to_vec).unwrap_or_default();
    let bytes_in = inputs.iter().map(Run::size_bytes).sum();
    // Otherwise the merged run has as many young entries as its inputs, or fewer.
    let layers =
        if is_bottom { Layers::default() } else { Layers::before(0, before.runs.iter().map(Run::entries)) };
    let removed: Vec<u64> =
        inputs.iter().flat_map(|run| run.segments().iter().map(|segment| segment.meta().id)).collect();
    drop(before);

    let leaving_bytes = inputs.iter().map(Run::memory_bytes).sum();
    let output = Output { leaving_bytes, ..store.output(tree.id, layers) };
    let cursors = inputs.iter().map(|run| run.cursor(false));
    let is_bottom = is_bottom || planted(Bug::TombstonesDroppedTooEarly);
    let tombstones = if is_bottom { Tombstones::Drop } else { Tombstones::Keep };
    let retained = if planted(Bug::SnapshotsIgnoredByMerge) { Vec::new() } else { store.pins.retained() };
    let retain = Retain::new(retained, tombstones);
    let run = write_run(&output, &|| store.manifest.new_number(), &mut Merge::new(cursors), retain)?;
    let bytes_out = run.iter().map(|segment| segment.size_bytes).sum();
    if planted(Bug::InputsRemovedBeforeTheEdit) {
        remove(&store.files, removed.iter().copied());
    }
    let mut cooled = Vec::new();
    let installed = open_run(&output, &run).and_then(|opened| {
        cooled = opened.as_ref().map_or_else(Vec::new, |opened| warm::plan(&inputs, opened));
        let _installing = tree.lock();
        let edit = Edit::Compacted { keyspace: tree.id, removed: removed.clone(), run: run.clone() };
        store.manifest.append(&[edit])?;
        tree.install_compacted(&removed, opened);
        Ok(())
    });
    if let Err(error) = installed {
        // After a failed manifest write nobody knows whether the edit is on disk: then nothing may be removed.
        if !matches!(error, Error::Halted { .. }) {
            remove(&store.files, run.iter().map(|segment| segment.id));
        }
        return Err(error);
    }
    remove(&store.files, removed.iter().copied());
    store.count_runs();
    // With the last reader of the inputs their blocks leave the cache.
    drop(inputs);
    warm::bring(&cooled, &|| store.is_closed());
    store.counters.compacted(bytes_in, bytes_out);
    let took = store.files.backend().now().saturating_sub(started);
    store.tell(&Event::Compacted { keyspace: tree.name.clone(), bytes_in, bytes_out, took });
    Ok(())
}
