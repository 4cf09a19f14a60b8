//! The superversion: the tables of a keyspace, and its segments by zones, as one read sees them. They are swapped as one.
//!
//! Invariants: the active table takes writes at and above the newest cut; a table of a layer has the records below its cut
//! and takes no more writes; layers stand newest first. For every key, an earlier place (active table, layer, slice of the
//! key's zone) has newer entries than a later one. A superversion never changes; changes make a new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, Guard};

use crate::base::error::{Error, Result};
use crate::base::key::{Kind, Seq, key_hash};
use crate::base::planted::{Bug, planted};
use crate::base::sync::shared::{AtomicBool, AtomicU64, Mutex, MutexGuard, turn};
use crate::compaction::pace::Pace;
use crate::manifest::levels::Levels;
use crate::memtable::{ArenaPool, Memtable};
use crate::segment::Segment;
use crate::tree::piece::next_holding;
use crate::tree::scan::Scan;
use crate::tree::zones::Zones;

/// Written entries that are in no segment that the version names.
#[derive(Clone, Debug)]
pub(crate) enum Layer {
    /// A memtable that takes no more writes.
    Table {
        table: Arc<Memtable>,
        /// Records below this position are in this table or an older place; others are not.
        cut: Seq,
    },
}

impl Layer {
    pub(crate) fn table(&self) -> &Arc<Memtable> {
        let Layer::Table { table, .. } = self;
        table
    }

    pub(crate) fn cut(&self) -> Seq {
        let Layer::Table { cut, .. } = self;
        *cut
    }
}

/// Tables and segments at one moment.
#[derive(Debug)]
pub(crate) struct Superversion {
    /// Counts the superversions of this keyspace.
    pub(crate) number: u64,
    pub(crate) active: Arc<Memtable>,
    /// Newest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) zones: Arc<Zones>,
}

impl Superversion {
    /// Shows the value of `key` as of `snapshot`, in place: tables first, then the pieces of the key's zone, newest first.
    #[inline]
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
        let zone = self.zones.zone(self.zones.zone_of(key));
        let mut at = 0;
        while let Some((found_at, piece)) = next_holding(zone, at, key) {
            let show = |kind: Kind, _, value: &[u8]| {
                let value = kind.value_seen(value)?;
                found.take().map(|found| found(value))
            };
            if let Some(decided) = piece.segment.get_with((key, hash), snapshot, show)? {
                return Ok(decided);
            }
            at = found_at + 1;
        }
        Ok(None)
    }

    /// The entry of `key` in the tables as of `snapshot`; `None`: the segments decide. `hash` is `key_hash(key)`.
    #[inline]
    pub(crate) fn get_in_tables(&self, key: &[u8], hash: u64, snapshot: Seq) -> Option<(Kind, &[u8])> {
        let layers: &[Layer] = if planted(Bug::FrozenTablesNotRead) { &[] } else { &self.layers };
        let mut tables = std::iter::once(&self.active).chain(layers.iter().map(Layer::table));
        let (kind, _, value) = tables.find_map(|table| table.get(key, hash, snapshot))?;
        Some((kind, value))
    }

    /// A cursor over everything, old versions and tombstones included.
    ///
    /// The active table is left out while it is empty: a write that comes later has a position above that of the reader.
    pub(crate) fn cursor(&self) -> Scan {
        let active = (!self.active.is_empty()).then_some(&self.active);
        let tables = active.into_iter().chain(self.layers.iter().map(Layer::table));
        Scan::new(tables.map(Memtable::cursor), &self.zones)
    }

    /// Bytes of the tables of all layers.
    pub(crate) fn layer_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.table().size_bytes()).sum()
    }

    /// The lowest position of an entry that is in no segment; `None` if there is none.
    pub(crate) fn first_unflushed(&self) -> Option<Seq> {
        let tables = self.layers.iter().map(Layer::table).chain([&self.active]);
        tables.filter_map(|table| table.first_seq()).min()
    }
}

/// One keyspace: its current superversion, and the locks under which it is replaced.
///
/// `install` is held across the manifest's write, so that the version and the superversions change together. A freeze takes
/// it while no writer is under way, so writers may wait for a sync of the manifest. `swap` is held only while one
/// superversion replaces another. Only [`Tree::empty`] takes it without `install`.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// How fast writes may go.
    pub(crate) pace: Pace,
    pool: Arc<ArenaPool>,
    current: ArcSwap<Superversion>,
    /// See [`Tree::number`].
    number: AtomicU64,
    install: Mutex<()>,
    swap: Mutex<()>,
    dropped: AtomicBool,
}

impl Tree {
    /// `pool`: where the memory of its memtables comes from.
    pub(crate) fn new(id: u32, name: &str, pool: &Arc<ArenaPool>) -> Tree {
        let active = Arc::new(Memtable::in_pool(pool, 0));
        let first = Superversion { number: 0, active, layers: Vec::new(), zones: Arc::default() };
        Tree {
            id,
            name: name.to_owned(),
            pace: Pace::new(),
            pool: Arc::clone(pool),
            current: ArcSwap::from_pointee(first),
            number: AtomicU64::new(0),
            install: Mutex::new(()),
            swap: Mutex::new(()),
            dropped: AtomicBool::new(false),
        }
    }

    pub(crate) fn load(&self) -> Arc<Superversion> {
        turn();
        self.current.load_full()
    }

    /// The current superversion, for a short while: no count that other threads share is changed.
    pub(crate) fn look(&self) -> Guard<Arc<Superversion>> {
        turn();
        self.current.load()
    }

    /// The current superversion together with a position that `visible` gave while it was the current one.
    ///
    /// The superversion is taken first: a merge may drop an entry once a newer one is in the superversion that follows. And
    /// it is taken again when it was replaced meanwhile: a position that is taken later may show entries that only the
    /// next superversion holds.
    ///
    /// # Errors
    /// [`Error::Closed`] if the keyspace was dropped. A drop raises the number first, so the usual case does not ask for it.
    #[inline]
    pub(crate) fn view(&self, visible: impl Fn() -> Seq) -> Result<(Guard<Arc<Superversion>>, Seq)> {
        let superversion = self.look();
        let position = visible();
        if self.number() > superversion.number {
            return self.view_again(&visible);
        }
        Ok((superversion, position))
    }

    /// Takes a view when the superversion was replaced meanwhile, or the keyspace has ended.
    #[cold]
    #[inline(never)]
    fn view_again(&self, visible: &dyn Fn() -> Seq) -> Result<(Guard<Arc<Superversion>>, Seq)> {
        loop {
            let superversion = self.load();
            let position = visible();
            let number = self.number();
            if number == RETIRED || number <= superversion.number {
                // A drop empties the superversion; a close leaves it as it is.
                self.check()?;
                return Ok((Guard::from_inner(superversion), position));
            }
        }
    }

    /// [`Superversion::number`] of the current superversion, or of the one before while it is being replaced: for readers
    /// that only ask whether it changed. [`RETIRED`] after [`Tree::retire`].
    #[inline]
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// The table that writes go to. It stays the one while the caller holds the store's write gate.
    pub(crate) fn active(&self) -> Arc<Memtable> {
        Arc::clone(&self.current.load().active)
    }

    /// Serialises changes of the version and the superversion of this keyspace.
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.install.lock()
    }

    /// Puts an empty table in front, made for as many entries as the last one had; the caller holds the write gate
    /// exclusively and [`Tree::lock`].
    pub(crate) fn freeze(&self, cut: Seq) {
        self.swap(|new| {
            let active = Arc::new(Memtable::in_pool(&self.pool, new.active.len()));
            let table = std::mem::replace(&mut new.active, active);
            new.layers.insert(0, Layer::Table { table, cut });
        });
    }

    /// Installs `levels`; `opened` are their new segments. Drops the layers with a cut at or below `flushed`. Under
    /// [`Tree::lock`].
    pub(crate) fn install(&self, levels: &Levels, opened: Vec<Arc<Segment>>, flushed: Option<Seq>) {
        let zones = Arc::new(Zones::derive(levels, opened, &self.load().zones));
        self.swap(|new| {
            new.layers.retain(|layer| flushed.is_none_or(|flushed| layer.cut() > flushed));
            new.zones = zones;
        });
    }

    /// After this every call on the keyspace says `Closed`.
    pub(crate) fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
        self.retire();
    }

    /// Lets tables and segments of a dropped keyspace go, though handles keep the keyspace itself.
    pub(crate) fn empty(&self) {
        debug_assert!(self.is_dropped(), "readers of an empty superversion learn that it was dropped");
        self.swap(|new| {
            new.active = Arc::new(Memtable::in_pool(&self.pool, 0));
            new.layers.clear();
            new.zones = Arc::default();
        });
    }

    /// The keyspace was dropped, or the store closes: iterators have to ask whether they may go on.
    pub(crate) fn retire(&self) {
        self.number.store(RETIRED, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_dropped() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Replaces the superversion by a changed copy.
    fn swap(&self, change: impl FnOnce(&mut Superversion)) {
        let swapping = self.swap.lock();
        let old = self.load();
        let mut new = Superversion {
            number: old.number + 1,
            active: Arc::clone(&old.active),
            layers: old.layers.clone(),
            zones: Arc::clone(&old.zones),
        };
        change(&mut new);
        let number = new.number;
        self.current.store(Arc::new(new));
        // After the superversion, so that a reader of the number finds the superversion.
        self.number.fetch_max(number, Ordering::Release);
        // The old one goes after the lock: with it segments may go, and their files.
        drop(swapping);
        drop(old);
    }
}

/// The number of a keyspace that is dropped or closed; no superversion has it.
pub(crate) const RETIRED: u64 = u64::MAX;
