//! A commit, in four steps: admit, reserve, publish, settle.
//!
//! ```text
//!   admit      memory, log files and merges let the write go on, or make it wait          can wait, can fail
//!   reserve    the record gets its place in the order of writes                           can fail, waits for the ring
//!   publish    the record goes to the log, then to the memtables; `complete` shows it     cannot fail
//!   settle     everything before it is visible, and it is as durable as asked             waits, can fail: see below
//! ```
//!
//! A write is visible (to every read that starts after) when its record and all before it are in the log and in the
//! memtables. It is acknowledged when it is as durable as asked. Both go in log order, so a crash leaves a prefix, and
//! nothing acknowledged depends on something lost.
//!
//! Everything that can fail comes before the place is reserved, except waiting for durability. If that fails, the write
//! is visible, and a reopen tells whether it survived (on a full disk it becomes durable when there is space).
//!
//! Invariant: the gate is held shared from reserve to the end of publish. A freeze holds it alone, so it finds every
//! record below its cut in the memtables.

use std::sync::Arc;

use wal::{Appended, Log, RecordBuf, Watermark};

use crate::base::error::{A_WRITE, Error, Result};
use crate::base::key::Seq;
use crate::base::options::Durability;
use crate::tree::store::Store;
use crate::tree::superversion::Tree;
use crate::tree::writing::Writing;
use crate::write::admission::{admit, slow_down};
use crate::write::ops;
use crate::write::reserved::Reserved;

/// The largest record as framed, in bytes: a quarter of the ring or of a memtable, whichever is smaller.
pub(crate) fn max_record_bytes(store: &Store) -> u64 {
    (store.options.ring_bytes() / 4).min(store.options.freeze_bytes() / 4)
}

/// Writes one record whose operations all concern `trees`, and returns its position.
pub(crate) fn commit(
    store: &Writing,
    record: &mut RecordBuf,
    trees: &[Arc<Tree>],
    durability: Durability,
) -> Result<Seq> {
    store.check_open()?;
    check_size(store, record.len_bytes())?;
    store.latch(steps(store, record, trees, durability))
}

fn steps(
    store: &Writing,
    record: &mut RecordBuf,
    trees: &[Arc<Tree>],
    durability: Durability,
) -> Result<Seq> {
    slow_down(store, trees, record);
    let place = loop {
        // A halted store reports why it halted, not the failure that followed from it.
        admit(store, record.len_bytes()).map_err(|error| store.health().err().unwrap_or(error))?;
        if let Some(place) = write(store, record, trees)? {
            break place;
        }
        // Others that were admitted at the same moment took the last room in the log.
    };
    settle(&store.log, &store.visible, place, durability)?;
    Ok(place.seq)
}

/// Refuses a record of `len_bytes`, as framed, that is larger than [`max_record_bytes`].
pub(crate) fn check_size(store: &Store, len_bytes: usize) -> Result<()> {
    let (found_bytes, limit_bytes) = (len_bytes as u64, max_record_bytes(store));
    if found_bytes > limit_bytes {
        return Err(Error::TooLarge { what: A_WRITE, found_bytes, limit_bytes });
    }
    Ok(())
}

/// Reserves and publishes, under the shared gate. `None`: the log is at its limit.
fn write(store: &Writing, record: &mut RecordBuf, trees: &[Arc<Tree>]) -> Result<Option<Appended>> {
    let _gate = store.share_gate();
    for tree in trees {
        tree.check()?;
    }
    store.check_open()?;
    store.manifest.health()?;
    let Some(reserved) = Reserved::new(&store.log, &store.visible, record)? else { return Ok(None) };
    let logged = reserved.publish();
    let place = logged.place();
    let grown_bytes = insert(record.payload(), place.seq, trees);
    store.note_inserted(grown_bytes);
    store.counters.wrote(record.len_bytes());
    logged.complete();
    Ok(Some(place))
}

/// Inserts the operations of a record into the memtables. Returns how much these grew, in bytes.
fn insert(payload: &[u8], seq: Seq, trees: &[Arc<Tree>]) -> usize {
    let mut grown_bytes = 0;
    for op in ops::ops(payload) {
        let op = op.expect("the record was encoded by this process");
        let tree =
            trees.iter().find(|tree| tree.id == op.keyspace).expect("a batch holds the keyspaces it names");
        grown_bytes += tree.look().active.insert(op.key, seq, op.kind, op.value);
    }
    grown_bytes
}

/// Waits until the record is visible and as durable as asked.
fn settle(log: &Log, visible: &Watermark, place: Appended, durability: Durability) -> Result<()> {
    visible.wait_for(place.end);
    match durability {
        Durability::Process => log.wait_process(place.end)?,
        Durability::Power => log.wait_durable(place.end)?,
    }
    Ok(())
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
