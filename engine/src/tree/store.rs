//! The open store: everything that the write path, the reads and the background jobs share.
//!
//! # Locks, in the order in which they may be taken
//! 1. `flushing`, then `compacting`: one flush and one compaction at a time; held across I/O.
//! 2. `gate`: writers hold it shared from reserving a place in the log until their entries are in the memtables;
//!    freezing holds it alone, and so knows that every record below the cut is in the old tables. Never held across
//!    a flush. A writer holds it shared while it waits for space in the ring, so a round of the log must never need it.
//!    Held alone across I/O only where no writer may pass: while a keyspace is dropped, and while `verify` reads the log.
//! 3. `trees`: looked up and released at once, but held across the manifest's write while a keyspace is made.
//! 4. `Tree::lock`: replacing the superversion of one keyspace, together with the manifest.
//! 5. the manifest's lock, across its write and sync; the log's own locks.
//! 6. `wanted`, snapshots, cache, the memory of memtables: nothing else is taken while one of them is held.
//!
//! # Invariants
//! * `visible <= log.published()`, and they are equal while the gate is held alone.
//! * `active_bytes` and `frozen_bytes` cover every memtable of a keyspace that is not dropped. A writer adds after it
//!   inserted, so they may lag behind by what is under way.
//! * What the manifest's version says of a keyspace and what its superversion shows change under one `Tree::lock`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wal::{Log, Ordered};

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::key::Seq;
use crate::base::metrics::Counters;
use crate::base::options::Options;
use crate::base::sync::shared::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, RwLock};
use crate::compaction::output::{Output, Site};
use crate::compaction::picker::Layers;
use crate::io::files::Files;
use crate::manifest::edit_log::Manifest;
use crate::memtable::ArenaPool;
use crate::segment::BlockCache;
use crate::tree::pins::{SnapshotGuard, Snapshots};
use crate::tree::superversion::Tree;

/// Memory of the memtables, and what background work is wanted.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) flush: bool,
    pub(crate) compact: bool,
    /// A spare log file is wanted.
    pub(crate) spare: bool,
    /// The last flush failed with this; cleared by the next one that succeeds.
    pub(crate) flush_error: Option<Error>,
    /// Flushes that have ended, one way or the other.
    pub(crate) attempts: u64,
    /// The threads end, and why: the store closes, or one of them has panicked.
    pub(crate) ended: Option<Error>,
}

/// An open store, without its threads.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) files: Arc<Files>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) options: Options,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) log: Log,
    /// Memory for the memtables of all keyspaces.
    pub(crate) pool: Arc<ArenaPool>,
    pub(crate) trees: RwLock<BTreeMap<u32, Arc<Tree>>>,
    pub(crate) gate: RwLock<()>,
    /// Records below are in the ring and in every memtable they belong to: what reads may see.
    pub(crate) visible: Ordered,
    pub(crate) snapshots: Snapshots,
    pub(crate) counters: Counters,
    pub(crate) flushing: Mutex<()>,
    pub(crate) compacting: Mutex<()>,
    pub(crate) wanted: Mutex<Wanted>,
    /// In manual mode: what is asked for waits, until it is let go or a caller must wait for it.
    pub(crate) held: AtomicBool,
    /// Work was asked for, or a job finished.
    pub(crate) changed: Condvar,
    /// Bytes in active memtables.
    pub(crate) active_bytes: AtomicU64,
    /// Bytes in frozen memtables.
    pub(crate) frozen_bytes: AtomicU64,
    /// Runs of the keyspace that has most.
    pub(crate) most_runs: AtomicUsize,
    pub(crate) closed: AtomicBool,
    /// Bytes written to log files when the last freeze cut the log, for the limit on the log.
    pub(crate) last_cut: AtomicU64,
    /// A spare log file was asked for, and none has been made since.
    pub(crate) spare_asked: AtomicBool,
    /// The listener knows that the store has halted.
    pub(crate) halt_told: AtomicBool,
}

impl Store {
    /// Whether calls are possible: not closed, and not in a fork.
    ///
    /// Whoever is about to write a file asks under a lock that [`Handle`](crate::api::handle::Handle) takes when it closes
    /// (`gate`, `flushing` or `compacting`): once the store's lock file is released, the files may be another's.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.files.backend().check_fork()?;
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Whether a close has begun: what it needs to write, it writes itself.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
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

    /// Passes a result on. What halted one of log and manifest halts the other, and is told to the listener once.
    ///
    /// No lock may be held but `flushing`, `compacting` and `trees`.
    pub(crate) fn latch<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Halted { cause }) = &result {
            self.log.halt(&Error::clone(cause).into_wal());
            if !self.halt_told.swap(true, Ordering::Relaxed) {
                self.tell(&Event::Halted { cause: Error::clone(cause) });
            }
        }
        result
    }

    /// What a read without a snapshot sees: everything acknowledged before.
    pub(crate) fn visible(&self) -> Seq {
        self.visible.get()
    }

    /// Keeps everything readable that is visible now.
    pub(crate) fn pin(&self) -> SnapshotGuard {
        self.snapshots.pin(|| self.visible())
    }

    /// All keyspaces, by id.
    pub(crate) fn all_trees(&self) -> Vec<Arc<Tree>> {
        self.trees.read().values().cloned().collect()
    }

    /// Where segments of a new run of a keyspace go.
    pub(crate) fn output(&self, keyspace: u32, layers: Layers) -> Output<'_> {
        let store_id = self.manifest.store_id();
        let site = Site { files: &self.files, cache: &self.cache, options: &self.options, store_id };
        site.output(keyspace, layers)
    }

    /// Tells the listener, if there is one.
    pub(crate) fn tell(&self, event: &Event) {
        if let Some(listener) = &self.options.listener {
            listener.event(event);
        }
    }

    /// Freezes the active tables of keyspaces that `choose` picks and that are not empty.
    ///
    /// Every record below the cut is in the frozen table or an older place: the gate is held alone, so no writer is
    /// between its place in the log and the memtable.
    pub(crate) fn freeze(&self, choose: impl Fn(&Tree) -> bool) {
        let _alone = self.gate.write();
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

    /// Counts the runs again, after they changed.
    pub(crate) fn count_runs(&self) {
        let most = self.all_trees().iter().map(|tree| tree.load().runs.len()).max();
        self.most_runs.store(most.unwrap_or(0), Ordering::Relaxed);
    }

    /// Freezes what frees most memory: the largest active table.
    pub(crate) fn freeze_largest(&self) {
        let largest = self.all_trees().into_iter().max_by_key(|tree| tree.active().size_bytes());
        if let Some(largest) = largest {
            self.freeze(|tree| tree.id == largest.id);
        }
    }
}
