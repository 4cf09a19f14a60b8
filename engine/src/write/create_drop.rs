//! Making, finding and dropping keyspaces: the manifest first, memory after.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aio::{Bug, planted};

use crate::base::error::{Error, Result};
use crate::compaction::output::remove;
use crate::manifest::edit_log::Reserve;
use crate::manifest::version::Edit;
use crate::tree::store::Store;
use crate::tree::superversion::Tree;

/// The longest name in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The keyspace of that name; made, durably, if there is none.
pub(crate) fn open_or_create(store: &Store, name: &str) -> Result<Arc<Tree>> {
    store.check_open()?;
    if let Some(tree) = find(store, name) {
        return Ok(tree);
    }
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("the name of a keyspace has 1 to {MAX_NAME_BYTES} bytes")));
    }
    let _gate = store.gate.read();
    store.check_open()?;
    // One maker at a time: the map's lock is held across the manifest's write, and readers of the map wait that long.
    let mut trees = store.trees.write();
    if let Some(tree) = trees.values().find(|tree| tree.name == name) {
        return Ok(Arc::clone(tree));
    }
    store.health()?;
    let mut keyspace = 0;
    let created = store.manifest.append_with(Reserve::Keep, |version| {
        keyspace = match version.dropped.last() {
            Some(&dropped) if planted(Bug::KeyspaceIdReused) => dropped,
            _ => version.next_keyspace,
        };
        vec![
            Edit::KeyspaceCreated { keyspace, name: name.to_owned() },
            // Nothing below the horizon can belong to it, so it does not hold back the log.
            Edit::Flushed { keyspace, to: version.horizon, run: Vec::new() },
        ]
    });
    store.latch(created)?;
    let tree = Arc::new(Tree::new(keyspace, name, &store.pool, Vec::new()));
    trees.insert(keyspace, Arc::clone(&tree));
    Ok(tree)
}

/// All names, sorted.
pub(crate) fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store.trees.read().values().map(|tree| tree.name.clone()).collect();
    names.sort_unstable();
    names
}

/// Forgets a keyspace, durably, and removes its files.
pub(crate) fn drop_keyspace(store: &Store, name: &str) -> Result<()> {
    store.check_writable()?;
    let _no_flush = store.flushing.lock();
    let _no_compaction = store.compacting.lock();
    let tree = find(store, name).ok_or_else(|| Error::invalid(format!("there is no keyspace {name:?}")))?;
    let dropped = {
        // No writer is between its check and its memtable.
        let _alone = store.gate.write();
        store.check_open()?;
        tree.check()?;
        let forgotten = if planted(Bug::DroppedKeyspaceStays) {
            Ok(())
        } else {
            let edit = Edit::KeyspaceDropped { keyspace: tree.id };
            store.manifest.append_with(Reserve::Use, |_| vec![edit])
        };
        forgotten.map(|()| {
            tree.mark_dropped();
            store.trees.write().remove(&tree.id);
        })
    };
    store.latch(dropped)?;
    let last = tree.load();
    let frozen: usize = last.frozen.iter().map(|frozen| frozen.table.size_bytes()).sum();
    store.active_bytes.fetch_sub(last.active.size_bytes() as u64, Ordering::Relaxed);
    store.frozen_bytes.fetch_sub(frozen as u64, Ordering::Relaxed);
    for segment in last.runs.iter().flat_map(|run| run.segments().iter()) {
        remove(&store.files, [segment.meta().id]);
    }
    store.count_runs();
    Ok(())
}

fn find(store: &Store, name: &str) -> Option<Arc<Tree>> {
    store.trees.read().values().find(|tree| tree.name == name).cloned()
}
