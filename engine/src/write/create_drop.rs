//! Creates and drops keyspaces. Each change is in the manifest first, then in memory.

use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::base::planted::{Bug, planted};
use crate::manifest::edit_log::Reserve;
use crate::manifest::version::Edit;
use crate::recovery::begin::DEFAULT_KEYSPACE;
use crate::tree::superversion::Tree;
use crate::tree::writing::Writing;

/// The longest name in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The keyspace of that name; made, durably, if there is none.
pub(crate) fn create(store: &Writing, name: &str) -> Result<Arc<Tree>> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("the name of a keyspace has 1 to {MAX_NAME_BYTES} bytes")));
    }
    // The listener, which hears of a halt, is called without a lock.
    let created = find_or_create(store, name);
    store.latch(created)
}

fn find_or_create(store: &Writing, name: &str) -> Result<Arc<Tree>> {
    let _gate = store.share_gate();
    store.check_open()?;
    // One maker at a time: the map's lock is held across the manifest's write, and readers of the map wait that long.
    let mut trees = store.lock_trees();
    if let Some(tree) = trees.values().find(|tree| tree.name == name) {
        return Ok(Arc::clone(tree));
    }
    store.health()?;
    let mut keyspace = 0;
    store.manifest.append_with(Reserve::Keep, |version| {
        keyspace = match version.dropped.last() {
            Some(&dropped) if planted(Bug::KeyspaceIdReused) => dropped,
            _ => version.next_keyspace,
        };
        vec![
            Edit::KeyspaceCreated { keyspace, name: name.to_owned() },
            // Nothing below the horizon can belong to it, so it does not hold back the log.
            Edit::Flushed { keyspace, to: version.horizon, pieces: Vec::new() },
        ]
    })?;
    let tree = Arc::new(Tree::new(keyspace, name, &store.pool));
    trees.insert(keyspace, Arc::clone(&tree));
    Ok(tree)
}

/// Forgets a keyspace, durably, and removes its files. `default` stays: programs rely on it in every store.
pub(crate) fn drop_keyspace(store: &Writing, name: &str) -> Result<()> {
    store.check_writable()?;
    if name == DEFAULT_KEYSPACE {
        return Err(Error::invalid(format!("the keyspace {name:?} cannot be dropped: every store has it")));
    }
    // Writers wait for flushes, so those go on while this waits for a merge.
    let _no_compaction = store.exclude_compactions();
    let _no_flush = store.exclude_flushes();
    let tree =
        store.find_tree(name).ok_or_else(|| Error::invalid(format!("there is no keyspace {name:?}")))?;
    let dropped = {
        // No writer is between its check and its memtable.
        let _alone = store.hold_gate_alone();
        store.check_open()?;
        tree.check()?;
        let forgotten = if planted(Bug::DroppedKeyspaceStays) {
            Ok(())
        } else {
            let edit = Edit::KeyspaceDropped { keyspace: tree.id };
            store.manifest.append_with(Reserve::Use, |_| vec![edit]).map(drop)
        };
        forgotten.map(|()| {
            tree.mark_dropped();
            store.lock_trees().remove(&tree.id);
        })
    };
    store.latch(dropped)?;
    let last = tree.load();
    store.note_dropped(&last);
    last.zones.pieces().for_each(|piece| piece.segment.retire());
    tree.empty();
    drop(last);
    Ok(())
}
