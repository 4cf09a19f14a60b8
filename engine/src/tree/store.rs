//! The part of an open store that all reads share. It is complete without the part that only writers have, `writing.rs`.
//!
//! # Invariants
//! * `visible <= log.published()`, and they are equal while the write gate is held alone. Without a writing part `visible`
//!   never moves.
//! * The manifest's version of a keyspace and its superversion change under one `Tree::lock`.

use std::collections::BTreeMap;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use wal::Watermark;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::key::Seq;
use crate::base::metrics::Counters;
use crate::base::options::Options;
use crate::base::sync::shared::{AtomicBool, AtomicUsize, RwLock, thread, turn};
use crate::io::files::Files;
use crate::manifest::version::Version;
use crate::segment::BlockCache;
use crate::tree::pins::{PinGuard, Pins};
use crate::tree::superversion::Tree;

/// The open keyspaces, by id.
pub(crate) type Trees = BTreeMap<u32, Arc<Tree>>;

/// The parts of a [`Store`].
#[derive(Debug)]
pub(crate) struct StoreParts {
    pub(crate) files: Arc<Files>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) options: Options,
    /// The current version. A writing part replaces it; without one it stays.
    pub(crate) version: Arc<ArcSwap<Version>>,
    /// Whether the files are on direct I/O.
    pub(crate) is_direct: bool,
    pub(crate) trees: Trees,
    /// The watermark of visible writes, at the position up to which the memtables hold the log.
    pub(crate) visible: Watermark,
}

/// An open store, as readers need it.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) files: Arc<Files>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) options: Options,
    /// The watermark of visible writes: records below are in the ring and in every memtable they belong to, so reads see them.
    pub(crate) visible: Watermark,
    pub(crate) pins: Pins,
    pub(crate) counters: Counters,
    version: Arc<ArcSwap<Version>>,
    is_direct: bool,
    /// Fall-backs of the machine that the listener has heard of: so many of the first.
    fall_backs_told: AtomicUsize,
    trees: RwLock<Trees>,
    closed: AtomicBool,
}

impl Store {
    pub(crate) fn new(parts: StoreParts) -> Store {
        Store {
            files: parts.files,
            cache: parts.cache,
            options: parts.options,
            visible: parts.visible,
            pins: Pins::default(),
            counters: Counters::default(),
            version: parts.version,
            is_direct: parts.is_direct,
            fall_backs_told: AtomicUsize::new(0),
            trees: RwLock::new(parts.trees),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether calls are possible: not closed, and not in a fork.
    ///
    /// Before a write to a file the caller asks again under a lock that [`Handle`](crate::api::handle::Handle) takes when it
    /// closes (the write gate, or the lock of flushes or compactions): once the store's lock file is released, another
    /// process may own the files.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        self.files.backend().check_fork()?;
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Whether a close has begun. The close makes its own writes; no other may begin.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A job is between two entries. It leaves its processor to the writers while one of them waits for another, which may have
    /// lost its own: until that one goes on, all writes wait. Costs a load otherwise.
    #[inline]
    pub(crate) fn give_way(&self) {
        if self.visible.is_awaited() {
            thread::yield_now();
        }
    }

    /// From now on every call says `Closed`. The caller holds the write gate alone, if there is one.
    pub(crate) fn mark_closed(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// The live files right now.
    pub(crate) fn version(&self) -> Arc<Version> {
        turn();
        self.version.load_full()
    }

    /// Whether the store's files are on direct I/O.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// The position of a read without a snapshot: it sees every write that was acknowledged before.
    #[inline]
    pub(crate) fn visible(&self) -> Seq {
        self.visible.get()
    }

    /// Keeps everything readable that is visible now.
    pub(crate) fn pin(&self) -> PinGuard {
        self.pins.pin(|| self.visible())
    }

    /// All keyspaces, by id.
    pub(crate) fn all_trees(&self) -> Vec<Arc<Tree>> {
        self.trees.read().values().cloned().collect()
    }

    /// The keyspace of that name, if there is one.
    pub(crate) fn find_tree(&self, name: &str) -> Option<Arc<Tree>> {
        self.trees.read().values().find(|tree| tree.name == name).cloned()
    }

    /// The map of keyspaces, to change it. Only writers do; readers of the map wait as long as this is held.
    pub(crate) fn lock_trees(&self) -> impl DerefMut<Target = Trees> + '_ {
        self.trees.write()
    }

    /// Tells the listener, if there is one.
    pub(crate) fn tell(&self, event: &Event) {
        if let Some(listener) = &self.options.listener {
            listener.event(event);
        }
    }

    /// Tells the listener of the fall-backs that it has not heard of. Called where they may be new and no lock is held that a
    /// read or a write waits for: an open, jobs, a close. Not from within the I/O that falls back, which is made under locks.
    pub(crate) fn tell_fall_backs(&self) {
        if self.options.listener.is_none() {
            return;
        }
        // The list only grows, so of two threads each tells another part of it.
        let known = self.files.backend().fall_backs();
        let told = self.fall_backs_told.fetch_max(known.len(), Ordering::Relaxed);
        for fall_back in known.into_iter().skip(told) {
            self.tell(&Event::FellBack { fall_back });
        }
    }
}
