//! The part of an open store that only writers have: log, manifest, the write gate, the memtables' memory, and the state of
//! the background jobs. A store that is only read has none.
//!
//! # Locks
//! ARCHITECTURE.md has the order of all locks. Of those here:
//! * `compacting` and `flushing` let one compaction and one flush run at a time, across their I/O. A caller that needs both
//!   takes `compacting` first: a compaction may take long, and writers wait for flushes.
//! * Writers hold the write gate shared from reserving a place in the log until their entries are in the memtables. A freeze
//!   holds it alone, so every record below the cut is in the old tables. It is never held across a flush.
//!
//! # Invariant
//! `active_bytes` and `frozen_bytes` cover every memtable of a keyspace that is not dropped. A writer adds after its insert,
//! so they may lag behind by the inserts that are under way.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wal::Log;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::sync::shared::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, RwLock};
use crate::compaction::output::{Output, Site};
use crate::compaction::pace::{Speeds, Standing};
use crate::compaction::picker::Layers;
use crate::io::removals::Remover;
use crate::manifest::edit_log::Manifest;
use crate::memtable::ArenaPool;
use crate::tree::store::Store;
use crate::tree::superversion::{Superversion, Tree};

/// Background work that was asked for, and how the last of it ended.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each kind of work is asked for by itself")]
pub(crate) struct Requests {
    pub(crate) flush: bool,
    pub(crate) compact: bool,
    /// A spare log file.
    pub(crate) spare: bool,
    /// The removal of a file.
    pub(crate) remove: bool,
    /// The last flush failed with this; cleared by the next one that succeeds.
    pub(crate) flush_error: Option<Error>,
    /// Flushes that have ended, with or without an error.
    pub(crate) attempts: u64,
    /// The threads end, and why: the store closes, or one of them has panicked.
    pub(crate) ended: Option<Error>,
}

/// The state that the background jobs share with the threads that wait for them. `scheduler.rs` works on it.
#[derive(Debug, Default)]
pub(crate) struct JobState {
    pub(crate) requests: Mutex<Requests>,
    /// Work was asked for, or a job finished.
    pub(crate) changed: Condvar,
    /// In manual mode: requests wait until this is cleared or a caller must wait for the work.
    pub(crate) held: AtomicBool,
    /// A spare log file was asked for, and none has been made since.
    pub(crate) spare_asked: AtomicBool,
}

impl Remover for JobState {
    fn wake(&self) {
        let was_asked = std::mem::replace(&mut self.requests.lock().remove, true);
        if !was_asked {
            self.changed.notify_all();
        }
    }
}

/// Memory of the memtables, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemtableBytes {
    /// Of the tables that take writes.
    pub(crate) active: u64,
    /// Of the tables that wait for a flush.
    pub(crate) frozen: u64,
}

/// A store that can be written to, without its threads. It is a handle on the shared part, and reads go there.
#[derive(Debug)]
pub(crate) struct Writing {
    store: Arc<Store>,
    pub(crate) log: Log,
    pub(crate) manifest: Arc<Manifest>,
    /// Memory for the memtables of all keyspaces.
    pub(crate) pool: Arc<ArenaPool>,
    pub(crate) jobs: Arc<JobState>,
    gate: RwLock<()>,
    flushing: Mutex<()>,
    compacting: Mutex<()>,
    active_bytes: AtomicU64,
    frozen_bytes: AtomicU64,
    /// How fast flushes and merges are.
    pub(crate) speeds: Speeds,
    /// Bytes written to log files when the last freeze cut the log.
    last_cut: AtomicU64,
    /// The listener knows that the store has halted.
    halt_told: AtomicBool,
}

impl Deref for Writing {
    type Target = Store;

    #[inline]
    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Writing {
    /// `manifest` and `log` are those of `store`; `pool` has the memory of its memtables.
    pub(crate) fn new(store: Arc<Store>, manifest: Arc<Manifest>, log: Log, pool: Arc<ArenaPool>) -> Writing {
        let speeds = Speeds::new(store.options.background_bytes_per_second);
        Writing {
            store,
            log,
            manifest,
            pool,
            jobs: Arc::default(),
            gate: RwLock::new(()),
            flushing: Mutex::new(()),
            compacting: Mutex::new(()),
            active_bytes: AtomicU64::new(0),
            frozen_bytes: AtomicU64::new(0),
            speeds,
            last_cut: AtomicU64::new(0),
            halt_told: AtomicBool::new(false),
        }
    }

    /// The part that reads share.
    #[inline]
    pub(crate) fn shared(&self) -> &Arc<Store> {
        &self.store
    }

    /// The sticky first failure of log or manifest, if there was one.
    pub(crate) fn health(&self) -> Result<()> {
        self.log.health()?;
        self.manifest.health()
    }

    /// Whether writes are possible: open, and neither log nor manifest has failed.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        self.health()
    }

    /// Passes a result on. A failure that halted the manifest halts the log, too. The listener hears of a halt once.
    ///
    /// No lock may be held but those of flushes and compactions.
    #[inline]
    pub(crate) fn latch<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Halted { cause }) = &result {
            self.spread_halt(cause);
        }
        result
    }

    #[cold]
    fn spread_halt(&self, cause: &Error) {
        self.log.halt(&Error::clone(cause).into_wal());
        if !self.halt_told.swap(true, Ordering::Relaxed) {
            self.tell(&Event::Halted { cause: Error::clone(cause) });
        }
    }

    /// A writer is under way while this is held: from before its place in the log until its entries are in the memtables.
    #[inline]
    pub(crate) fn share_gate(&self) -> impl Drop + '_ {
        self.gate.read()
    }

    /// No writer is under way while this is held.
    pub(crate) fn hold_gate_alone(&self) -> impl Drop + '_ {
        self.gate.write()
    }

    /// No other flush runs while this is held.
    pub(crate) fn exclude_flushes(&self) -> MutexGuard<'_, ()> {
        self.flushing.lock()
    }

    /// Whether a compaction is under way or excluded.
    #[cfg(test)]
    pub(crate) fn has_compaction(&self) -> bool {
        self.compacting.try_lock().is_none()
    }

    /// No other compaction runs while this is held.
    pub(crate) fn exclude_compactions(&self) -> MutexGuard<'_, ()> {
        self.compacting.lock()
    }

    /// Removes files that are due, until the store closes. For threads of jobs.
    pub(crate) fn remove_due(&self) {
        while !self.is_closed() && self.files.removals().remove_next() {}
    }

    /// Where segments of a new run of a keyspace go.
    pub(crate) fn output(&self, keyspace: u32, layers: Layers) -> Output<'_> {
        let store_id = self.manifest.store_id();
        let site = Site { files: &self.files, cache: &self.cache, options: &self.options, store_id };
        site.output(keyspace, layers)
    }

    /// Memory of all memtables.
    #[inline]
    pub(crate) fn memtable_bytes(&self) -> MemtableBytes {
        MemtableBytes {
            active: self.active_bytes.load(Ordering::Relaxed),
            frozen: self.frozen_bytes.load(Ordering::Relaxed),
        }
    }

    /// Active memtables took this many bytes more.
    #[inline]
    pub(crate) fn note_inserted(&self, grown_bytes: usize) {
        self.active_bytes.fetch_add(grown_bytes as u64, Ordering::Relaxed);
    }

    /// Frozen memtables of this many bytes are in segments now.
    pub(crate) fn note_flushed(&self, freed_bytes: u64) {
        self.frozen_bytes.fetch_sub(freed_bytes, Ordering::Relaxed);
    }

    /// The keyspace with these memtables was dropped.
    pub(crate) fn note_dropped(&self, last: &Superversion) {
        self.active_bytes.fetch_sub(last.active.size_bytes() as u64, Ordering::Relaxed);
        self.frozen_bytes.fetch_sub(last.layer_bytes() as u64, Ordering::Relaxed);
    }

    /// Bytes written to log files since a freeze cut the log.
    #[inline]
    pub(crate) fn log_bytes_since_cut(&self) -> u64 {
        self.log.written_bytes().saturating_sub(self.last_cut.load(Ordering::Relaxed))
    }

    /// Computes the rate of writes to a keyspace anew, after its runs have changed or a merge of them has begun.
    ///
    /// No lock may be held but those of flushes and compactions.
    pub(crate) fn adjust_pace(&self, tree: &Tree) {
        let standing = || {
            let version = self.version();
            let runs =
                version.keyspaces.get(&tree.id).and_then(|keyspace| keyspace.levels.runs().split_last());
            let Some((bottom, young)) = runs else { return Standing::default() };
            let young = young.iter().map(|run| (run.stamp, run.size_bytes())).collect();
            Standing { young, bottom_bytes: bottom.size_bytes() }
        };
        tree.pace.adjust(standing, self.options.freeze_bytes(), self.speeds.merge_rate(), |pressure| {
            self.tell(&Event::Pressure { keyspace: tree.name.clone(), pressure });
        });
    }

    /// Freezes the active tables of keyspaces that `choose` picks and that are not empty.
    ///
    /// Every record below the cut is in the frozen table or an older layer: the gate is held alone, so no writer is
    /// between its place in the log and the memtable.
    pub(crate) fn freeze(&self, choose: impl Fn(&Tree) -> bool) {
        let _alone = self.hold_gate_alone();
        self.freeze_chosen(choose);
    }

    /// [`Writing::freeze`], while the gate is held alone.
    fn freeze_chosen(&self, choose: impl Fn(&Tree) -> bool) {
        let cut = self.visible();
        assert_eq!(cut, self.log.published(), "no writer is under way while the gate is held alone");
        for tree in self.all_trees() {
            let bytes = tree.active().size_bytes() as u64;
            if tree.active().is_empty() || tree.is_dropped() || !choose(&tree) {
                continue;
            }
            let _installing = tree.lock();
            tree.freeze(cut);
            self.active_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.frozen_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.last_cut.store(self.log.written_bytes(), Ordering::Relaxed);
    }

    /// Freezes the tables that have records in the older half of the log, a small one of an idle keyspace, too. Not while
    /// a flush is under way or fails: it may free enough, and more frozen tables would take memory without a bound.
    pub(crate) fn freeze_oldest(&self) {
        let _alone = self.hold_gate_alone();
        if self.memtable_bytes().frozen == 0 {
            self.freeze_chosen(self.holds_older_half());
        }
    }

    /// Picks the keyspaces whose active tables have records in the older half of the log; all if the log has one file.
    fn holds_older_half(&self) -> impl Fn(&Tree) -> bool + use<> {
        let end = self.log.older_half_end();
        move |tree| end.is_none_or(|end| tree.active().first_seq().is_some_and(|first| first < end))
    }

    /// Freezes the largest active table, which frees most memory, and those that hold old log files if the log is nearly full.
    pub(crate) fn freeze_largest(&self) {
        let _alone = self.hold_gate_alone();
        // Several writers may have found the tables full at once. The first makes room for all of them.
        if self.memtable_bytes().active < self.options.freeze_bytes() {
            return;
        }
        let largest = self.all_trees().into_iter().max_by_key(|tree| tree.active().size_bytes());
        let is_largest = |tree: &Tree| largest.as_ref().is_some_and(|largest| tree.id == largest.id);
        let holds_log = self.log.is_nearly_full().then(|| self.holds_older_half());
        self.freeze_chosen(|tree| is_largest(tree) || holds_log.as_ref().is_some_and(|holds| holds(tree)));
    }
}
