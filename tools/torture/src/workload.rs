//! Seeded sequences of all operations that the store offers.
//!
//! Invariants: a sequence depends on its seed and its mix only, never on the answers of the store. So it replays, and the
//! same sequence runs on any configuration. Every operation stays meaningful or harmless if earlier operations are left
//! out, so a failing sequence can be shortened.

use std::ops::Bound;

use bytes::Bytes;
use esker::Durability;
use fastrand::Rng;

/// Names of the keyspaces, by slot.
pub(crate) const SLOTS: [&str; 4] = ["default", "a", "b", "users"];

/// The slot of the keyspace that every store has, and that cannot be dropped.
pub(crate) const DEFAULT_SLOT: usize = 0;

/// The level at which a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Level {
    /// The default of the store.
    Default,
    Process,
    Power,
}

impl Level {
    /// The level, in a store with this default.
    pub(crate) fn resolve(self, default: Durability) -> Durability {
        match self {
            Level::Default => default,
            Level::Process => Durability::Process,
            Level::Power => Durability::Power,
        }
    }
}

/// A put, or a delete where there is no value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Write {
    pub(crate) slot: usize,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

/// A range of keys.
pub(crate) type Range = (Bound<Bytes>, Bound<Bytes>);

/// How an iterator is walked: bit i of `ends` is set if step i is from the back, bit i of `borrow` if it borrows the pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Walk {
    pub(crate) steps: usize,
    pub(crate) ends: u64,
    pub(crate) borrow: u64,
}

/// The data that a crash takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CrashKind {
    /// The process dies.
    Process,
    /// Power fails; unsynced units are kept or lost by seed.
    Power,
    /// Power fails, everything unsynced is lost.
    PowerNone,
}

/// One operation on the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Put {
        slot: usize,
        key: Bytes,
        value: Bytes,
        level: Level,
    },
    Delete {
        slot: usize,
        key: Bytes,
        level: Level,
    },
    Batch {
        writes: Vec<Write>,
        level: Level,
    },
    TooLarge {
        slot: usize,
        key: Bytes,
    },
    BadKey {
        slot: usize,
    },
    Get {
        slot: usize,
        key: Bytes,
    },
    ContainsKey {
        slot: usize,
        key: Bytes,
    },
    MultiGet {
        slot: usize,
        keys: Vec<Bytes>,
    },
    Range {
        slot: usize,
        range: Range,
        walk: Walk,
    },
    Prefix {
        slot: usize,
        prefix: Bytes,
        walk: Walk,
    },
    Iter {
        slot: usize,
        walk: Walk,
    },
    Seek {
        slot: usize,
        range: Range,
        walk: Walk,
        to: Bytes,
    },
    /// The keys of a range; then again from `to` on.
    Keys {
        slot: usize,
        range: Range,
        walk: Walk,
        to: Bytes,
    },
    First {
        slot: usize,
    },
    Last {
        slot: usize,
    },
    IsEmpty {
        slot: usize,
    },
    Sync,
    Flush,
    Compact,
    /// Freeze all memtables, as a full one or a full log does.
    Freeze,
    /// Hold background work back, or release it.
    Hold {
        held: bool,
    },
    Verify,
    Metrics,
    Keyspaces,
    Create {
        slot: usize,
    },
    Drop {
        slot: usize,
    },
    UseDropped {
        slot: usize,
    },
    TakeSnapshot,
    SnapshotGet {
        held: usize,
        slot: usize,
        key: Bytes,
    },
    SnapshotMultiGet {
        held: usize,
        slot: usize,
        keys: Vec<Bytes>,
    },
    /// Gets as a future that is held.
    StartGets {
        slot: usize,
        keys: Vec<Bytes>,
    },
    StartSnapshotGets {
        held: usize,
        slot: usize,
        keys: Vec<Bytes>,
    },
    FinishGets {
        held: usize,
    },
    PollGets {
        held: usize,
    },
    DropGets {
        held: usize,
    },
    SnapshotRange {
        held: usize,
        slot: usize,
        range: Range,
        walk: Walk,
    },
    SnapshotPrefix {
        held: usize,
        slot: usize,
        prefix: Bytes,
        walk: Walk,
    },
    SnapshotIter {
        held: usize,
        slot: usize,
        walk: Walk,
    },
    DropSnapshot {
        held: usize,
    },
    OpenIter {
        slot: usize,
        range: Range,
    },
    OpenSnapshotIter {
        held: usize,
        slot: usize,
        range: Range,
    },
    StepIter {
        held: usize,
        walk: Walk,
    },
    SeekIter {
        held: usize,
        to: Bytes,
    },
    DropIter {
        held: usize,
    },
    /// Close, then open with another configuration.
    Reopen {
        config: usize,
    },
    /// Drop every handle without a close, then open.
    DropAll {
        config: usize,
    },
    Crash {
        kind: CrashKind,
        seed: u64,
        config: usize,
    },
}

/// Every kind of operation, for the counts.
pub(crate) const KINDS: [&str; 49] = [
    "put",
    "delete",
    "batch",
    "too_large",
    "bad_key",
    "get",
    "contains_key",
    "multi_get",
    "range",
    "prefix",
    "iter",
    "seek",
    "keys",
    "first",
    "last",
    "is_empty",
    "sync",
    "flush",
    "compact",
    "freeze",
    "hold",
    "let_go",
    "verify",
    "metrics",
    "keyspaces",
    "create",
    "drop",
    "use_dropped",
    "take_snapshot",
    "snapshot_get",
    "snapshot_multi_get",
    "start_gets",
    "start_snapshot_gets",
    "finish_gets",
    "poll_gets",
    "drop_gets",
    "snapshot_range",
    "snapshot_prefix",
    "snapshot_iter",
    "drop_snapshot",
    "open_iter",
    "open_snapshot_iter",
    "step_iter",
    "seek_iter",
    "drop_iter",
    "reopen",
    "drop_all",
    "process_crash",
    "power_cut",
];

impl Op {
    /// Its kind, one of [`KINDS`].
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Op::Put { .. } => "put",
            Op::Delete { .. } => "delete",
            Op::Batch { .. } => "batch",
            Op::TooLarge { .. } => "too_large",
            Op::BadKey { .. } => "bad_key",
            Op::Get { .. } => "get",
            Op::ContainsKey { .. } => "contains_key",
            Op::MultiGet { .. } => "multi_get",
            Op::Range { .. } => "range",
            Op::Prefix { .. } => "prefix",
            Op::Iter { .. } => "iter",
            Op::Seek { .. } => "seek",
            Op::Keys { .. } => "keys",
            Op::First { .. } => "first",
            Op::Last { .. } => "last",
            Op::IsEmpty { .. } => "is_empty",
            Op::Sync => "sync",
            Op::Flush => "flush",
            Op::Compact => "compact",
            Op::Freeze => "freeze",
            Op::Hold { held: true } => "hold",
            Op::Hold { held: false } => "let_go",
            Op::Verify => "verify",
            Op::Metrics => "metrics",
            Op::Keyspaces => "keyspaces",
            Op::Create { .. } => "create",
            Op::Drop { .. } => "drop",
            Op::UseDropped { .. } => "use_dropped",
            Op::TakeSnapshot => "take_snapshot",
            Op::SnapshotGet { .. } => "snapshot_get",
            Op::SnapshotMultiGet { .. } => "snapshot_multi_get",
            Op::StartGets { .. } => "start_gets",
            Op::StartSnapshotGets { .. } => "start_snapshot_gets",
            Op::FinishGets { .. } => "finish_gets",
            Op::PollGets { .. } => "poll_gets",
            Op::DropGets { .. } => "drop_gets",
            Op::SnapshotRange { .. } => "snapshot_range",
            Op::SnapshotPrefix { .. } => "snapshot_prefix",
            Op::SnapshotIter { .. } => "snapshot_iter",
            Op::DropSnapshot { .. } => "drop_snapshot",
            Op::OpenIter { .. } => "open_iter",
            Op::OpenSnapshotIter { .. } => "open_snapshot_iter",
            Op::StepIter { .. } => "step_iter",
            Op::SeekIter { .. } => "seek_iter",
            Op::DropIter { .. } => "drop_iter",
            Op::Reopen { .. } => "reopen",
            Op::DropAll { .. } => "drop_all",
            Op::Crash { kind: CrashKind::Process, .. } => "process_crash",
            Op::Crash { .. } => "power_cut",
        }
    }
}

/// The shares of operations in a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// Percent of writes; the rest is split over the others by weight.
    pub(crate) writes: u64,
    /// Percent of reads, held ones included.
    pub(crate) reads: u64,
    /// Percent of flushes, compactions and syncs. The rest to 100 are keyspaces, reopens and crashes.
    pub(crate) upkeep: u64,
    /// Whether crashes are operations.
    pub(crate) crashes: bool,
    /// Different keys.
    pub(crate) keys: u32,
    /// The longest value in bytes of a single put; values in batches have a quarter of it.
    pub(crate) value_bytes: usize,
    /// Number of configurations to choose from at a reopen.
    pub(crate) configs: usize,
}

/// Makes operations.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    rng: Rng,
    mix: Mix,
    values: u64,
    /// Added to the numbers in keys, so that every sequence has keys of its own.
    salt: u32,
    /// The slots of the newest [`Op::Create`] and [`Op::Drop`]: a drop needs a keyspace, and a use of a dropped one a drop.
    created: usize,
    dropped: usize,
}

impl Generator {
    pub(crate) fn new(seed: u64, mix: Mix) -> Generator {
        let mut rng = Rng::with_seed(seed);
        let salt = rng.u32(..9000);
        Generator { rng, mix, values: 0, salt, created: 1, dropped: 1 }
    }

    /// A sequence of this many operations.
    pub(crate) fn sequence(&mut self, len: usize) -> Vec<Op> {
        (0..len).map(|_| self.op()).collect()
    }

    /// Futures for the time after an open, when no block is in memory: two groups are started, and one is polled.
    pub(crate) fn futures(&mut self) -> [Op; 3] {
        let mut start = || Op::StartGets { slot: self.slot(), keys: self.keys() };
        [start(), start(), Op::PollGets { held: 0 }]
    }

    /// The next operation.
    pub(crate) fn op(&mut self) -> Op {
        let percent = self.rng.u64(..100);
        if percent < self.mix.writes {
            self.write()
        } else if percent < self.mix.writes + self.mix.reads {
            match self.rng.u8(..10) {
                0..5 => self.read(),
                _ => self.held(),
            }
        } else if percent < self.mix.writes + self.mix.reads + self.mix.upkeep {
            self.upkeep()
        } else {
            self.lifecycle()
        }
    }

    fn write(&mut self) -> Op {
        let (slot, key, level) = (self.slot(), self.key(), self.level());
        match self.rng.u8(..20) {
            0..10 => Op::Put { slot, key, value: self.value(self.mix.value_bytes), level },
            10..14 => Op::Delete { slot, key, level },
            14..19 => {
                let len = self.rng.usize(0..6);
                Op::Batch { writes: (0..len).map(|_| self.batch_write()).collect(), level }
            }
            _ if self.rng.bool() => Op::TooLarge { slot, key },
            _ => Op::BadKey { slot },
        }
    }

    fn batch_write(&mut self) -> Write {
        let value = (self.rng.u8(..4) > 0).then(|| self.value(self.mix.value_bytes / 4));
        Write { slot: self.slot(), key: self.key(), value }
    }

    fn read(&mut self) -> Op {
        let slot = self.slot();
        match self.rng.u8(..15) {
            0..3 => Op::Get { slot, key: self.key() },
            3 => Op::ContainsKey { slot, key: self.key() },
            4 | 5 => Op::Range { slot, range: self.range(), walk: self.walk() },
            6 => Op::Prefix { slot, prefix: self.prefix(), walk: self.walk() },
            7 => Op::Iter { slot, walk: self.walk() },
            8 => Op::Seek { slot, range: self.range(), walk: self.walk(), to: self.key() },
            9 => Op::Keys { slot, range: self.range(), walk: self.walk(), to: self.key() },
            10 => Op::First { slot },
            11 => Op::Last { slot },
            12 | 13 => Op::MultiGet { slot, keys: self.keys() },
            _ => Op::IsEmpty { slot },
        }
    }

    fn held(&mut self) -> Op {
        let (slot, held) = (self.slot(), self.rng.usize(..4));
        match self.rng.u8(..24) {
            0 | 1 => Op::TakeSnapshot,
            2 | 3 => Op::SnapshotGet { held, slot, key: self.key() },
            4 => Op::SnapshotRange { held, slot, range: self.range(), walk: self.walk() },
            5 => Op::SnapshotPrefix { held, slot, prefix: self.prefix(), walk: self.walk() },
            6 => Op::SnapshotIter { held, slot, walk: self.walk() },
            7 => Op::DropSnapshot { held },
            8 => Op::OpenIter { slot, range: self.range() },
            9 => Op::OpenSnapshotIter { held, slot, range: self.range() },
            10 | 11 => Op::StepIter { held, walk: self.walk() },
            12 => Op::SeekIter { held, to: self.key() },
            13 => Op::SnapshotMultiGet { held, slot, keys: self.keys() },
            14 | 15 => Op::StartGets { slot, keys: self.keys() },
            16 => Op::StartSnapshotGets { held, slot, keys: self.keys() },
            17 | 18 => Op::FinishGets { held },
            19..22 => Op::PollGets { held },
            22 => Op::DropGets { held },
            _ => Op::DropIter { held },
        }
    }

    fn upkeep(&mut self) -> Op {
        match self.rng.u8(..16) {
            0..3 => Op::Sync,
            3..6 => Op::Flush,
            6..8 => Op::Compact,
            8 => Op::Verify,
            9 => Op::Metrics,
            10..13 => Op::Freeze,
            13 | 14 => Op::Hold { held: true },
            _ => Op::Hold { held: false },
        }
    }

    fn lifecycle(&mut self) -> Op {
        // Seldom the first keyspace, which cannot be dropped.
        let slot = if self.rng.u8(..8) == 0 { DEFAULT_SLOT } else { self.rng.usize(1..SLOTS.len()) };
        let config = self.rng.usize(..self.mix.configs);
        match self.rng.u8(..13) {
            0..4 => {
                self.created = slot;
                Op::Create { slot }
            }
            4 | 12 => {
                self.dropped = if self.rng.u8(..4) == 0 { slot } else { self.created };
                Op::Drop { slot: self.dropped }
            }
            5 => Op::UseDropped { slot: self.dropped },
            6 => Op::Keyspaces,
            7 => Op::Reopen { config },
            8 => Op::DropAll { config },
            _ if !self.mix.crashes => Op::Reopen { config },
            9 => Op::Crash { kind: CrashKind::Process, seed: self.rng.u64(..), config },
            10 => Op::Crash { kind: CrashKind::Power, seed: self.rng.u64(..), config },
            _ => Op::Crash { kind: CrashKind::PowerNone, seed: 0, config },
        }
    }

    /// The first keyspace half of the time: it always exists.
    fn slot(&mut self) -> usize {
        if self.rng.bool() { 0 } else { self.rng.usize(..SLOTS.len()) }
    }

    /// At most 24 bytes, with common prefixes; some keys are prefixes of others.
    fn key(&mut self) -> Bytes {
        let number = self.rng.u32(..self.mix.keys);
        Bytes::from(match number % 5 {
            0 => format!("{}", self.salt + number).into_bytes(),
            1 => format!("user/{:04}", self.salt + number).into_bytes(),
            2 => format!("user/{:04}/{number}", self.salt + number / 2).into_bytes(),
            3 => vec![0xff; 1 + number as usize % 5],
            _ => vec![0, u8::try_from(number % 251).unwrap_or(0), 0, 0],
        })
    }

    /// None to many, perhaps with duplicates.
    fn keys(&mut self) -> Vec<Bytes> {
        let longest = if self.rng.u8(..4) == 0 { 100 } else { 10 };
        (0..self.rng.usize(..longest)).map(|_| self.key()).collect()
    }

    fn prefix(&mut self) -> Bytes {
        let key = self.key();
        let len = self.rng.usize(..=key.len());
        key.slice(..len)
    }

    /// A unique value of 0 to `longest` bytes, mostly short. Half of them compress well.
    fn value(&mut self, longest: usize) -> Bytes {
        self.values += 1;
        let len = match self.rng.u8(..8) {
            0 => return Bytes::new(),
            1 => longest,
            2 | 3 => self.rng.usize(..=longest),
            _ => self.rng.usize(..=longest.min(40)),
        };
        let mut value = format!("v{} ", self.values).into_bytes();
        let noise = self.rng.bool();
        let fill = self.rng.u8(..);
        value.extend((value.len()..len).map(|_| if noise { self.rng.u8(..) } else { fill }));
        Bytes::from(value)
    }

    fn level(&mut self) -> Level {
        match self.rng.u8(..5) {
            0 => Level::Default,
            1 | 2 => Level::Process,
            _ => Level::Power,
        }
    }

    fn range(&mut self) -> Range {
        (self.bound(), self.bound())
    }

    fn bound(&mut self) -> Bound<Bytes> {
        match self.rng.u8(..4) {
            0 => Bound::Unbounded,
            1 => Bound::Excluded(self.key()),
            _ => Bound::Included(self.key()),
        }
    }

    fn walk(&mut self) -> Walk {
        let steps = if self.rng.bool() { usize::MAX } else { self.rng.usize(..12) };
        let ends = match self.rng.u8(..3) {
            0 => 0,
            1 => u64::MAX,
            _ => self.rng.u64(..),
        };
        Walk { steps, ends, borrow: self.rng.u64(..) }
    }
}
