//! One compaction, from the pick to the removal of its inputs.
//!
//! The steps in order, each with the state after a crash behind it:
//! 1. The output is written and synced with its names: orphans; the inputs are whole and live.
//! 2. The manifest edit is synced: the output is live, the inputs keep only their keys outside the stretch.
//! 3. The superversion is derived from the version: as after 2, since the version is the truth.
//! 4. Inputs of which no piece is left are removed with their last reader: until then orphans.
//! 5. Hot blocks are brought into the cache again, from the output.
//!
//! A failed write of the manifest halts the store before 3, and no file is removed.
//!
//! A close ends a merge before 2: between two entries, or between two segments of its output that it opens. That is no
//! failure. Nothing has changed, the output is due for removal, and a later merge begins again. Rejected: to go on from the
//! part that was written. It would have to be named in the manifest together with the rest of the inputs.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::planted::{Bug, planted};
use crate::base::range::KeyBounds;
use crate::compaction::output::{Output, open_segments, remove, write_run};
use crate::compaction::pace::STEP_BYTES;
use crate::compaction::picker::{Layers, MAX_YOUNG_RUNS, RunShape, pick};
use crate::compaction::retain::{Retain, Tombstones};
use crate::compaction::warm::{self, Span};
use crate::io::background::JobKind;
use crate::io::lane::Lane;
use crate::manifest::levels::{BOTTOM, Levels, Merged, PieceMeta, RunMeta};
use crate::manifest::version::{Edit, Version};
use crate::read::merge::Merge;
use crate::segment::Segment;
use crate::tree::run::Run;
use crate::tree::store::Store;
use crate::tree::superversion::Tree;
use crate::tree::writing::Writing;
use crate::tree::zones::Zones;

/// How far a merge goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// The merge that the picker finds due.
    Due,
    /// To one run without anything dead in it.
    Full,
}

/// The end of [`merge_next`].
#[derive(Debug)]
pub(crate) enum Next {
    NoneDue,
    Merged,
    /// The merge of this keyspace failed, and changed nothing.
    Failed(u32, Error),
}

/// One merge, of the keyspace that needs it most, those aside whose number is `set_aside`. One caller at a time: the others
/// wait for one merge, not for all that are due.
///
/// It fails with [`Error::Closed`] when the store closes: a merge under way is given up, and planned again after the next open.
pub(crate) fn merge_next(store: &Writing, set_aside: impl Fn(u32) -> bool) -> Next {
    let _one = store.exclude_compactions();
    let Some(tree) = most_urgent(store, set_aside) else { return Next::NoneDue };
    compact(store, &tree, Depth::Due).map_or_else(|error| Next::Failed(tree.id, error), |()| Next::Merged)
}

/// Merges each keyspace to one run.
///
/// # Errors
/// The first of those of the merges; the other keyspaces were merged all the same, unless the store has halted or closes.
pub(crate) fn compact_fully(store: &Writing) -> Result<()> {
    let mut result = Ok(());
    for tree in store.all_trees() {
        let _one = store.exclude_compactions();
        store.check_writable()?;
        // Dropped meanwhile?
        if store.version().keyspaces.contains_key(&tree.id) {
            result = result.and(compact(store, &tree, Depth::Full));
        }
    }
    store.check_writable().and(result)
}

/// The keyspace whose runs stand highest above the size at which a merge is due.
fn most_urgent(store: &Writing, set_aside: impl Fn(u32) -> bool) -> Option<Arc<Tree>> {
    let version = store.manifest.version();
    let mut most: Option<(u64, Arc<Tree>)> = None;
    for tree in store.all_trees().into_iter().filter(|tree| !set_aside(tree.id)) {
        let Some(keyspace) = version.keyspaces.get(&tree.id) else { continue };
        let runs = keyspace.levels.runs();
        let part_percent = tree.pace.part_percent();
        if choose(store, runs, part_percent, Depth::Due).is_none() {
            continue;
        }
        let urgency = urgency(runs, part_percent);
        if most.as_ref().is_none_or(|&(above, _)| urgency > above) {
            most = Some((urgency, tree));
        }
    }
    most.map(|(_, tree)| tree)
}

/// One merge of a keyspace, if one is due.
fn compact(store: &Writing, tree: &Arc<Tree>, depth: Depth) -> Result<()> {
    store.check_writable()?;
    let moment = Moment::of(store, tree);
    let Some(range) = choose(store, moment.runs(), tree.pace.part_percent(), depth) else { return Ok(()) };
    let bytes = sums(&moment.runs()[range.clone()]).0;
    store.tell(&Event::Compacting { keyspace: tree.name.clone(), bytes });
    let done = merge(store, tree, moment, range);
    // Before the rest, which may take long.
    tree.pace.ended(done.is_err());
    store.adjust_pace(tree);
    let finished = done.map(|done| finish(store, tree, done));
    // After a failure, too: its output takes space.
    store.remove_due();
    store.latch(finished)
}

/// The levels of a keyspace, and the same runs open, between two installs.
struct Moment {
    version: Arc<Version>,
    zones: Arc<Zones>,
    keyspace: u32,
}

impl Moment {
    /// Takes both under the lock of installs. Between the manifest's write of a flush and the swap of the superversion, the
    /// levels have a run that is not open: a merge across it would drop its entries unread.
    fn of(store: &Writing, tree: &Tree) -> Moment {
        let _between = (!planted(Bug::MergePlannedDuringInstall)).then(|| tree.lock());
        let version = store.manifest.version();
        Moment { version, zones: Arc::clone(&tree.load().zones), keyspace: tree.id }
    }

    /// The runs, newest first.
    fn runs(&self) -> &[RunMeta] {
        self.version.levels(self.keyspace).runs()
    }

    /// The open runs of a merge.
    ///
    /// # Panics
    /// They are not those of the levels.
    fn inputs(&self, range: &Range<usize>) -> Vec<Run> {
        let runs = &self.runs()[range.clone()];
        let open = self.zones.runs().into_iter();
        let inputs: Vec<Run> = open.filter(|open| runs.iter().any(|run| run.stamp == open.stamp())).collect();
        let is_whole = inputs.len() == runs.len() || planted(Bug::MergePlannedDuringInstall);
        assert!(is_whole, "a merge reads every run that it replaces");
        inputs
    }
}

/// Bytes that the merge which is due would read; 0 if none is due.
pub(crate) fn due_bytes(store: &Store, levels: &Levels, part_percent: u64) -> u64 {
    let runs = levels.runs();
    choose(store, runs, part_percent, Depth::Due).map_or(0, |range| sums(&runs[range]).0)
}

/// The runs to merge; see [`pick`].
fn choose(store: &Store, runs: &[RunMeta], part_percent: u64, depth: Depth) -> Option<Range<usize>> {
    // While a snapshot is held tombstones may have to stay, so a merge for their sake could go on for ever.
    let droppable = store.pins.oldest().is_none();
    let tombstones = |run: &RunMeta| if droppable { run.tombstones() } else { 0 };
    match depth {
        Depth::Due => {
            let shape = |run: &RunMeta| RunShape {
                bytes: run.size_bytes(),
                entries: run.entries(),
                tombstones: tombstones(run),
            };
            pick(&runs.iter().map(shape).collect::<Vec<RunShape>>(), part_percent)
        }
        Depth::Full => {
            let tombstones: u64 = runs.iter().map(tombstones).sum();
            (runs.len() > 1 || tombstones > 0).then_some(0..runs.len())
        }
    }
}

/// Number and size of the runs of a due merge, newest first, in percent of those at which it is due. A bottom run of
/// tombstones alone is as urgent as one that just came to be due.
fn urgency(runs: &[RunMeta], part_percent: u64) -> u64 {
    let Some((bottom, young)) = runs.split_last() else { return 0 };
    let young_bytes: u64 = young.iter().map(RunMeta::size_bytes).sum();
    let by_space = 100 * young_bytes / (bottom.size_bytes() / 100 * part_percent).max(1);
    by_space.max((100 * young.len() / MAX_YOUNG_RUNS) as u64).max(100)
}

/// The edit for a merge of these runs, still without its output.
fn describe(runs: &[RunMeta], range: &Range<usize>) -> Merged {
    let (newest, oldest) = (runs[range.start].stamp, runs[range.end - 1].stamp);
    let oldest = if range.end == runs.len() { BOTTOM } else { oldest };
    let into = if oldest == BOTTOM || planted(Bug::MergedIntoOldestStamp) { oldest } else { newest };
    Merged { stretch: KeyBounds::all(), newest, oldest, into, out: Vec::new() }
}

/// A merge that is installed.
struct Done {
    inputs: Vec<Run>,
    cooled: Vec<Span>,
    bytes_in: u64,
    bytes_out: u64,
    took: Duration,
}

fn merge(store: &Writing, tree: &Arc<Tree>, moment: Moment, range: Range<usize>) -> Result<Done> {
    let inputs = moment.inputs(&range);
    let Moment { version, zones, .. } = moment;
    // They would keep the inputs alive while the cache is warmed.
    drop(zones);
    let runs = version.levels(tree.id).runs();
    let merged = describe(runs, &range);
    let is_bottom = merged.oldest == BOTTOM;
    let (bytes_in, entries_in) = sums(&runs[range.clone()]);
    let young_entries = sums(&runs[range.start..range.end.min(runs.len() - 1)]).1;
    tree.pace.merging(merged.newest, merged.oldest);
    store.adjust_pace(tree);
    // Otherwise the merged run has as many young entries as its inputs, or fewer.
    let layers =
        if is_bottom { Layers::default() } else { Layers::before(0, runs.iter().map(RunMeta::entries)) };

    let leaving_bytes = inputs.iter().map(Run::memory_bytes).sum();
    let output = Output { leaving_bytes, ..store.output(tree.id, layers) };
    let lane = Lane::new(&store.files, JobKind::Merge)?;
    let progress = Progress::begin(store, tree, &lane);
    let cursors = inputs.iter().map(|run| run.job_cursor(&lane));
    let drops_tombstones = is_bottom || planted(Bug::TombstonesDroppedTooEarly);
    let tombstones = if drops_tombstones { Tombstones::Drop } else { Tombstones::Keep };
    let retained = if planted(Bug::SnapshotsIgnoredByMerge) { Vec::new() } else { store.pins.retained() };
    let mut retain = Retain::new(retained, tombstones);
    let (new_number, stop) = (|| store.manifest.new_number(), || store.is_closed());
    let watch = || {
        progress.step();
        store.give_way();
        stop()
    };
    let run = write_run(&output, &lane, &new_number, (Merge::new(cursors), &mut retain), &watch)?;
    let bytes_out = run.iter().map(|segment| segment.size_bytes).sum();
    let entries_out: u64 = run.iter().map(|segment| segment.entries).sum();
    if planted(Bug::InputsRemovedBeforeTheEdit) {
        remove(&store.files, segments_of(&inputs).map(|segment| segment.meta().id));
    }
    let mut cooled = Vec::new();
    let installed = open_segments(&output, &run, &stop).and_then(|opened| {
        cooled = warm::plan(&inputs, &opened);
        let out = run.iter().cloned().map(PieceMeta::whole).collect();
        let edit = Edit::Merged { keyspace: tree.id, merged: Merged { out, ..merged } };
        let _installing = tree.lock();
        let version = store.manifest.append(&[edit])?;
        tree.install(version.levels(tree.id), opened, None);
        retire(&inputs, version.levels(tree.id));
        Ok(())
    });
    if let Err(error) = installed {
        // After a failed manifest write the edit may be on the disk or not, so no file may be removed.
        if !matches!(error, Error::Halted { .. }) {
            remove(&store.files, run.iter().map(|segment| segment.id));
        }
        return Err(error);
    }
    let took = progress.end();
    if is_bottom && young_entries > 0 {
        tree.pace.dropped(entries_in.saturating_sub(entries_out), young_entries);
    }
    Ok(Done { inputs, cooled, bytes_in, bytes_out, took })
}

/// The part of a merge that may fail without harm.
fn finish(store: &Writing, tree: &Tree, done: Done) {
    let Done { inputs, cooled, bytes_in, bytes_out, took } = done;
    // With the last reader of the inputs their blocks in the cache go, and their files are due. A thread that has read and
    // written them all removes them, too: the caller of a compaction wants the space.
    drop(inputs);
    store.remove_due();
    warm::bring(&cooled, &|| store.is_closed());
    store.counters.compacted(bytes_in, bytes_out);
    store.tell(&Event::Compacted { keyspace: tree.name.clone(), bytes_in, bytes_out, took });
}

/// Tells the pace of writes how far a merge is, so that it counts while it is under way.
struct Progress<'a> {
    store: &'a Writing,
    tree: &'a Tree,
    lane: &'a Lane,
    began: Duration,
    /// When the pace was told last, and the bytes that the merge had moved and written by then.
    told: Cell<(Duration, u64, u64)>,
}

impl<'a> Progress<'a> {
    fn begin(store: &'a Writing, tree: &'a Tree, lane: &'a Lane) -> Progress<'a> {
        let began = store.files.backend().now();
        Progress { store, tree, lane, began, told: Cell::new((began, 0, 0)) }
    }

    /// The merge is between two entries. Costs a load, but once in [`STEP_BYTES`].
    fn step(&self) {
        if self.lane.moved_bytes() >= self.told.get().1 + STEP_BYTES {
            self.tell();
            self.store.adjust_pace(self.tree);
        }
    }

    /// The merge has ended; returns how long it took.
    fn end(&self) -> Duration {
        if self.told.get().1 > 0 {
            self.tell();
        } else {
            self.tree.pace.merged(self.lane.written_bytes());
        }
        self.store.files.backend().now().saturating_sub(self.began)
    }

    fn tell(&self) {
        let now = self.store.files.backend().now();
        let (moved, written) = (self.lane.moved_bytes(), self.lane.written_bytes());
        let (then, _, written_then) = self.told.replace((now, moved, written));
        self.store.speeds.merged(written - written_then, now.saturating_sub(then));
        self.tree.pace.merged(written - written_then);
    }
}

/// Bytes and entries of runs.
fn sums(runs: &[RunMeta]) -> (u64, u64) {
    (runs.iter().map(RunMeta::size_bytes).sum(), runs.iter().map(RunMeta::entries).sum())
}

fn segments_of(runs: &[Run]) -> impl Iterator<Item = &Arc<Segment>> {
    runs.iter().flat_map(Run::segments)
}

/// Removes, with their last readers, the files of inputs of which no piece is left.
pub(crate) fn retire(inputs: &[Run], levels: &Levels) {
    let live: BTreeSet<u64> = levels.segments().map(|segment| segment.id).collect();
    let is_live = |id: u64| live.contains(&id) && !planted(Bug::FileRemovedUnderPiece);
    segments_of(inputs).filter(|segment| !is_live(segment.meta().id)).for_each(|segment| segment.retire());
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
