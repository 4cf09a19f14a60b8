//! What one read of a keyspace sees: its memtables and its runs, swapped as one.
//!
//! Invariants: `active` takes writes at and above the newest cut, `frozen` tables (newest first) hold what is below
//! their cut and are not written any more, `runs` stand newest first. Every entry of a key in an earlier place is
//! newer than every entry of it in a later one. A superversion never changes; changes make a new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aio::{Bug, planted};
use arc_swap::{ArcSwap, Guard};

use crate::base::error::{Error, Result};
use crate::base::key::{Entry, Kind, Seq, key_hash};
use crate::base::sync::shared::{AtomicBool, AtomicU64, Mutex, MutexGuard, turn};
use crate::memtable::{ArenaPool, Memtable, MemtableCursor};
use crate::read::cursor::{Cursor, Target};
use crate::read::merge::Merge;
use crate::read::staged_seek;
use crate::tree::run::{Run, RunCursor};

/// A memtable that takes no more writes.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) table: Arc<Memtable>,
    /// Records below this position are in this table or an older place; others are not.
    pub(crate) cut: Seq,
}

/// Memtables and runs at one moment.
#[derive(Debug)]
pub(crate) struct Superversion {
    /// Counts the superversions of this keyspace.
    pub(crate) number: u64,
    pub(crate) active: Arc<Memtable>,
    /// Newest first.
    pub(crate) frozen: Vec<Frozen>,
    /// Newest first.
    pub(crate) runs: Vec<Run>,
}

impl Superversion {
    /// Shows the value of `key` as of `snapshot`, in place: memtables first, then runs, newest first.
    pub(crate) fn get_with<R>(
        &self,
        key: &[u8],
        snapshot: Seq,
        found: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let hash = key_hash(key);
        if let Some((kind, value)) = self.get_in_tables(key, hash, snapshot) {
            return Ok(kind.value_seen(value).map(found));
        }
        let mut found = Some(found);
        for run in &self.runs {
            let show = |kind: Kind, _, value: &[u8]| {
                let value = kind.value_seen(value)?;
                found.take().map(|found| found(value))
            };
            if let Some(decided) = run.get_with((key, hash), snapshot, show)? {
                return Ok(decided);
            }
        }
        Ok(None)
    }

    /// What the memtables say of `key` as of `snapshot`; `None`: the runs decide. `hash` is `key_hash(key)`.
    pub(crate) fn get_in_tables(&self, key: &[u8], hash: u64, snapshot: Seq) -> Option<(Kind, &[u8])> {
        let frozen: &[Frozen] = if planted(Bug::FrozenTablesNotRead) { &[] } else { &self.frozen };
        let mut tables = std::iter::once(&self.active).chain(frozen.iter().map(|frozen| &frozen.table));
        let (kind, _, value) = tables.find_map(|table| table.get(key, hash, snapshot))?;
        Some((kind, value))
    }

    /// A cursor over everything, old versions and tombstones included.
    ///
    /// The active table is left out while it is empty: what is inserted later, nobody sees who is reading already.
    pub(crate) fn cursor(&self) -> Merge<Place> {
        let active = (!self.active.is_empty()).then_some(&self.active);
        let tables = active.into_iter().chain(self.frozen.iter().map(|frozen| &frozen.table));
        let tables = tables.map(|table| Place::Table(table.cursor()));
        Merge::new(tables.chain(self.runs.iter().map(|run| Place::Run(run.cursor(true)))))
    }

    /// Whether nothing waits for a flush.
    pub(crate) fn is_flushed(&self) -> bool {
        self.active.is_empty() && self.frozen.is_empty()
    }
}

/// A cursor over one place of a superversion.
#[derive(Debug)]
pub(crate) enum Place {
    Table(MemtableCursor),
    Run(RunCursor),
}

impl Cursor for Place {
    fn prepare<'a>(cursors: impl Iterator<Item = &'a mut Place>, target: Target<'_>)
    where
        Place: 'a,
    {
        let mut runs = cursors.filter_map(|place| match place {
            Place::Table(_) => None,
            Place::Run(run) => Some(run),
        });
        // One alone, as most keyspaces have, has nobody to wait with.
        if let (Some(first), Some(second)) = (runs.next(), runs.next()) {
            staged_seek::prepare([first, second].into_iter().chain(runs).collect(), target);
        }
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        match self {
            Place::Table(table) => table.seek(key),
            Place::Run(run) => run.seek(key),
        }
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        match self {
            Place::Table(table) => table.seek_before(key),
            Place::Run(run) => run.seek_before(key),
        }
    }

    fn next(&mut self) -> Result<()> {
        match self {
            Place::Table(table) => table.next(),
            Place::Run(run) => run.next(),
        }
    }

    fn prev(&mut self) -> Result<()> {
        match self {
            Place::Table(table) => table.prev(),
            Place::Run(run) => run.prev(),
        }
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        match self {
            Place::Table(table) => table.entry(),
            Place::Run(run) => run.entry(),
        }
    }

    #[inline]
    fn ends_key(&self) -> bool {
        match self {
            Place::Table(table) => table.ends_key(),
            Place::Run(run) => run.ends_key(),
        }
    }

    #[inline]
    fn quick_next(&mut self) -> bool {
        match self {
            Place::Table(table) => table.quick_next(),
            Place::Run(run) => run.quick_next(),
        }
    }

    #[inline]
    fn quick_prev(&mut self) -> bool {
        match self {
            Place::Table(table) => table.quick_prev(),
            Place::Run(run) => run.quick_prev(),
        }
    }
}

/// One keyspace: its current superversion and the lock under which it is replaced.
///
/// Lock order: `install` before the manifest's own lock, so that the manifest and the superversions change together.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) id: u32,
    pub(crate) name: String,
    pool: Arc<ArenaPool>,
    current: ArcSwap<Superversion>,
    /// See [`Tree::number`].
    number: AtomicU64,
    install: Mutex<()>,
    dropped: AtomicBool,
}

impl Tree {
    /// `pool`: where the memory of its memtables comes from.
    pub(crate) fn new(id: u32, name: &str, pool: &Arc<ArenaPool>, runs: Vec<Run>) -> Tree {
        let active = Arc::new(Memtable::in_pool(pool, 0));
        let first = Superversion { number: 0, active, frozen: Vec::new(), runs };
        Tree {
            id,
            name: name.to_owned(),
            pool: Arc::clone(pool),
            current: ArcSwap::from_pointee(first),
            number: AtomicU64::new(0),
            install: Mutex::new(()),
            dropped: AtomicBool::new(false),
        }
    }

    pub(crate) fn load(&self) -> Arc<Superversion> {
        turn();
        self.current.load_full()
    }

    /// As [`Tree::load`], for a short while: nothing is counted that other threads count as well.
    #[inline]
    pub(crate) fn look(&self) -> Guard<Arc<Superversion>> {
        turn();
        self.current.load()
    }

    /// The layers and a position to read them at, taken in this order: the superversion was current when `position` was
    /// read, or is newer. The other way round, a compaction between the two could drop what the position sees.
    #[inline]
    pub(crate) fn view(&self, position: impl FnOnce() -> Seq) -> (Guard<Arc<Superversion>>, Seq) {
        let superversion = self.look();
        let position = position();
        (superversion, position)
    }

    /// [`Superversion::number`] of what [`Tree::load`] gives now or of an earlier one, never of a later one; for whoever
    /// only wants to know whether it changed. After [`Tree::retire`] the highest of all.
    #[inline]
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// The table that writes go to; the caller holds the store's write gate, so it stays the one.
    pub(crate) fn active(&self) -> Arc<Memtable> {
        Arc::clone(&self.current.load().active)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.install.lock()
    }

    /// Puts an empty table in front, made for as many entries as the last one had; the caller holds the write gate
    /// exclusively and [`Tree::lock`].
    pub(crate) fn freeze(&self, cut: Seq) {
        let old = self.load();
        let mut frozen = vec![Frozen { table: Arc::clone(&old.active), cut }];
        frozen.extend(old.frozen.iter().cloned());
        self.replace(&old, |new| {
            new.active = Arc::new(Memtable::in_pool(&self.pool, old.active.len()));
            new.frozen = frozen;
        });
    }

    /// Takes the flushed tables (cut at or below `cut`) away and puts their run in front. Under [`Tree::lock`].
    pub(crate) fn install_flushed(&self, cut: Seq, run: Option<Run>) {
        let old = self.load();
        self.replace(&old, |new| {
            new.frozen.retain(|frozen| frozen.cut > cut);
            if let Some(run) = run {
                new.runs.insert(0, run);
            }
        });
    }

    /// Replaces the runs made of `removed` segments by `run`. Under [`Tree::lock`].
    pub(crate) fn install_compacted(&self, removed: &[u64], run: Option<Run>) {
        let old = self.load();
        self.replace(&old, |new| {
            let gone = |run: &Run| run.segments().iter().all(|segment| removed.contains(&segment.meta().id));
            let first = new.runs.iter().position(&gone).expect("compacted runs stay until they are replaced");
            let count = new.runs.iter().skip(first).take_while(|run| gone(run)).count();
            new.runs.splice(first..first + count, run);
        });
    }

    /// After this every call on the keyspace says `Closed`.
    pub(crate) fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
        self.retire();
    }

    /// The keyspace was dropped, or the store closes: whoever walks it has to look whether he may.
    pub(crate) fn retire(&self) {
        self.number.store(u64::MAX, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_dropped() { Err(Error::Closed) } else { Ok(()) }
    }

    fn replace(&self, old: &Superversion, change: impl FnOnce(&mut Superversion)) {
        let mut new = Superversion {
            number: old.number + 1,
            active: Arc::clone(&old.active),
            frozen: old.frozen.clone(),
            runs: old.runs.clone(),
        };
        change(&mut new);
        let number = new.number;
        self.current.store(Arc::new(new));
        // After the superversion, so that whoever sees the number sees the superversion.
        self.number.fetch_max(number, Ordering::Release);
    }
}
