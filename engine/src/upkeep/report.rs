//! Gathers [`Metrics`] from the parts of the store that keep the numbers.
//!
//! Invariant: it does no I/O and stops no thread. Each lock is held only for a copy.

use crate::base::metrics::{KeyspaceMetrics, Metrics};
use crate::compaction::job::due_bytes;
use crate::compaction::pacing::ANY_RATE;
use crate::manifest::levels::Levels;
use crate::tree::store::Store;
use crate::tree::superversion::Tree;
use crate::tree::writing::{MemtableBytes, Writing};

/// Gathers all metrics. `writing` is missing in a read-only store.
pub(crate) fn metrics(store: &Store, writing: Option<&Writing>) -> Metrics {
    let version = store.version();
    let cache = store.cache.stats();
    let trees = store.all_trees();
    let contexts = store.files.contexts().usage();
    let levels = |keyspace| version.keyspaces.get(&keyspace).map(|keyspace| &keyspace.levels);
    let mut metrics = Metrics {
        direct_io: store.is_direct(),
        background_depth: store.files.background().depth_of_all(store.files.backend().now()),
        fall_backs: store.files.backend().fall_backs(),
        incarnation: version.incarnation.number,
        log_bytes: store.visible().since(version.horizon),
        log_files: version.logs.len(),
        cache_hits: cache.hits,
        cache_misses: cache.misses,
        cache_bytes: cache.bytes,
        pinned_bytes: cache.reserved_bytes,
        paged_segments: trees.iter().map(|tree| paged_segments(tree)).sum(),
        snapshots: store.pins.count(),
        open_files: store.files.open_files().count(),
        aio_contexts: contexts.contexts,
        aio_slots: contexts.slots,
        keyspaces: trees.iter().map(|tree| keyspace(store, tree, levels(tree.id))).collect(),
        io: store.files.backend().profile(),
        ..Metrics::default()
    };
    metrics.memtable_bytes = metrics.keyspaces.iter().map(|keyspace| keyspace.memtable_bytes).sum();
    if let Some(writing) = writing {
        add_writing(&mut metrics, writing);
    }
    store.counters.fill(&mut metrics);
    metrics.keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
    metrics
}

/// Adds the numbers that only a store with a writing part has.
fn add_writing(metrics: &mut Metrics, store: &Writing) {
    let log = store.log.metrics();
    // The horizon is read first. It only rises, and never above the published position.
    let horizon = store.version().horizon;
    metrics.log_bytes = store.log.published().since(horizon);
    metrics.log_groups = log.groups;
    metrics.log_syncs = log.syncs;
    metrics.merge_bytes_per_second = store.speeds.merge_rate();
    metrics.flush_bytes_per_second = store.speeds.flush_rate();
    let MemtableBytes { active, frozen } = store.memtable_bytes();
    metrics.memtable_bytes = active + frozen;
    metrics.flush_error = store.jobs.requests.lock().flush_error.as_ref().map(ToString::to_string);
    metrics.halted = store.health().err().map(|error| error.to_string());
}

fn paged_segments(tree: &Tree) -> usize {
    tree.load().zones.segments().iter().filter(|segment| segment.is_paged()).count()
}

fn keyspace(store: &Store, tree: &Tree, levels: Option<&Levels>) -> KeyspaceMetrics {
    let current = tree.load();
    let metas = || levels.into_iter().flat_map(Levels::segments);
    KeyspaceMetrics {
        name: tree.name.clone(),
        runs: levels.map_or(0, |levels| levels.runs().len()),
        segments: metas().count(),
        segment_bytes: metas().map(|meta| meta.size_bytes).sum(),
        entries: metas().map(|meta| meta.entries).sum(),
        tombstones: metas().map(|meta| meta.tombstones).sum(),
        raw_bytes: metas().map(|meta| meta.raw_bytes).sum(),
        memtable_bytes: (current.active.size_bytes() + current.layer_bytes()) as u64,
        pressure_percent: tree.pace.pressure_percent(),
        write_bytes_per_second: Some(tree.pace.rate()).filter(|&rate| rate != ANY_RATE),
        merge_amplification_percent: tree.pace.amplification_percent(),
        due_bytes: levels.map_or(0, |levels| due_bytes(store, levels, tree.pace.part_percent())),
    }
}
