//! The write path: admit, append to the log, insert into the memtables, publish in order, wait as asked.
//!
//! A write is visible (to every read that starts after) when its record and all before it are in the ring and in the
//! memtables; it is acknowledged when it is as durable as asked. Both go in log order, so what a crash leaves is a
//! prefix and nothing acknowledged depends on something lost.
//!
//! Everything that can fail comes before the place in the log is reserved, except waiting for durability: if that
//! fails the write is visible, and whether it survives is known after a reopen (or, on a full disk, when there is space).
//! So that a full disk is met before and not after, the next log file is made before the current one is full.

use std::sync::Arc;

use aio::{Bug, planted};
use wal::RecordBuf;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::key::Seq;
use crate::base::options::Durability;
use crate::compaction::pacing::{self, Admission, Memory};
use crate::compaction::scheduler;
use crate::tree::store::Store;
use crate::tree::superversion::Tree;
use crate::tree::writing::{MemtableBytes, Writing};
use crate::write::ops;

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
    let limit_bytes = max_record_bytes(store);
    let found_bytes = record.len_bytes() as u64;
    if found_bytes > limit_bytes {
        return Err(Error::TooLarge { what: "a write", found_bytes, limit_bytes });
    }
    // A store that has halted says so, not what it stumbled over on the way to finding out.
    let halted_or = |error| store.health().err().unwrap_or(error);
    let admitted = admit(store).and_then(|()| make_log_room(store, record.len_bytes())).map_err(halted_or);
    // A ring that could not grow halts the log.
    store.latch(admitted)?;
    let appended = store.latch(append(store, record, trees))?;
    store.visible.wait_for(appended.end);
    let waited = match durability {
        Durability::Process => store.log.wait_process(appended.end),
        Durability::Power => store.log.wait_durable(appended.end),
    };
    store.latch(waited.map_err(Error::from))?;
    Ok(appended.seq)
}

/// Sees to it that the log has a place for the record whatever becomes of the disk, or refuses.
fn make_log_room(store: &Writing, len_bytes: usize) -> Result<()> {
    if !store.log.has_room(len_bytes) {
        store.files.with_queue(|queue| Ok(store.log.make_room(len_bytes, queue)?))?;
    } else if store.log.wants_spare() {
        scheduler::request_spare(store);
    }
    Ok(())
}

/// Reserves a place, fills it, and inserts into the memtables, all under the shared gate.
fn append(store: &Writing, record: &mut RecordBuf, trees: &[Arc<Tree>]) -> Result<wal::Appended> {
    let _gate = store.share_gate();
    for tree in trees {
        tree.check()?;
    }
    store.check_open()?;
    store.manifest.health()?;
    let appended = store.log.append(record)?;
    if planted(Bug::VisibleBeforeTheMemtable) {
        store.visible.complete(appended.seq, appended.end);
    }
    let mut grown = 0;
    for op in ops::ops(record.payload()) {
        let op = op.expect("the record was encoded by this process");
        let tree =
            trees.iter().find(|tree| tree.id == op.keyspace).expect("a batch holds the keyspaces it names");
        grown += tree.look().active.insert(op.key, appended.seq, op.kind, op.value);
    }
    store.note_inserted(grown);
    store.counters.wrote(record.len_bytes());
    if !planted(Bug::VisibleBeforeTheMemtable) {
        store.visible.complete(appended.seq, appended.end);
    }
    Ok(appended)
}

/// Waits, slows down or makes room as the memtables and the runs demand.
fn admit(store: &Writing) -> Result<()> {
    let clock = store.files.backend();
    let mut waiting_since = None;
    loop {
        let MemtableBytes { active, frozen } = store.memtable_bytes();
        let memory = Memory {
            active,
            frozen,
            freeze_at: store.options.freeze_bytes(),
            limit: store.options.memtables_bytes(),
        };
        match pacing::admit(memory) {
            Admission::Go => break,
            Admission::Freeze => {
                store.freeze_largest();
                scheduler::request_flush(store);
            }
            Admission::Wait => {
                waiting_since.get_or_insert_with(|| clock.now());
                scheduler::wait_for_flush(store)?;
                store.check_open()?;
            }
        }
    }
    if let Some(since) = waiting_since {
        let took = clock.now().saturating_sub(since);
        store.counters.stalled(took);
        store.tell(&Event::Stalled { took });
    }
    release_old_log(store);
    slow_down(store);
    Ok(())
}

/// When the log's files have grown beyond their limit, the keyspaces that hold them back are flushed. Bytes of files
/// count, not of records: a small durable write takes a whole step of the file.
fn release_old_log(store: &Writing) {
    let limit = store.options.log_limit_bytes();
    // Frozen tables are on their way already: another freeze helps only after the log has grown by half again.
    let since_cut = store.log_bytes_since_cut();
    if since_cut <= limit / 2 {
        return;
    }
    // While a flush is under way, or fails, more frozen tables would free nothing and take memory without a bound.
    if store.memtable_bytes().frozen > 0 {
        return;
    }
    if store.manifest.version().logs.len() as u64 * store.options.log_file_bytes() > limit {
        store.freeze(|_| true);
        scheduler::request_flush(store);
    }
}

fn slow_down(store: &Writing) {
    let delay = pacing::delay(store.most_runs());
    if !delay.is_zero() {
        store.files.backend().park(delay);
    }
}
