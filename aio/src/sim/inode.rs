//! One simulated file: its visible contents, its durable contents, and every change in between.
//!
//! Invariants: `pending` is in order of completion; applying all of it to `durable` gives `volatile`, unless some are
//! marked `lost`; writes in flight do not overlap each other; a sector that could only hold the same bytes after every
//! crash is not pending.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::pages::{Contents, to_usize};
use super::pending::PendingUnit;
use super::rng::mix;
use crate::open_file::SECTOR_BYTES;

/// The most versions of one sector of a mapped file that a power cut can choose from, besides the durable one. A ring
/// rewrites its sectors without a sync, so the list needs a bound.
const MAP_VERSIONS: usize = 3;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// The unit in which space is given to a file and taken from it. No physical block is larger.
const BLOCK: u64 = 4096;

/// Every byte of a block that a power cut has destroyed.
const GARBAGE: u8 = 0xDB;

/// A run of whole sectors and their bytes, cheap to clone and to slice.
#[derive(Clone, Debug)]
pub(crate) struct Sectors {
    offset: u64,
    bytes: Arc<[u8]>,
    from: usize,
    to: usize,
}

impl Sectors {
    /// # Panics
    /// If offset or length is not a multiple of the sector, since the caller has not checked the alignment.
    pub(crate) fn new(offset: u64, bytes: &[u8]) -> Sectors {
        assert!(offset.is_multiple_of(SECTOR), "extent starts inside a sector");
        assert!(bytes.len().is_multiple_of(SECTOR_BYTES), "extent ends inside a sector");
        Sectors { offset, bytes: bytes.into(), from: 0, to: bytes.len() }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset + (self.to - self.from) as u64
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    fn overlaps(&self, other: &Sectors) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// The part of it in `from..to`, as file offsets.
    pub(crate) fn part(&self, from: u64, to: u64) -> Sectors {
        let from = from.clamp(self.offset, self.end());
        let to = to.clamp(from, self.end());
        let start = self.from + to_usize(from - self.offset);
        Sectors { offset: from, bytes: Arc::clone(&self.bytes), from: start, to: start + to_usize(to - from) }
    }

    /// The same bytes at another offset.
    pub(crate) fn moved_to(&self, offset: u64) -> Sectors {
        assert!(offset.is_multiple_of(SECTOR), "extent starts inside a sector");
        Sectors { offset, ..self.clone() }
    }

    pub(crate) fn sectors(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let sectors = self.bytes().chunks(SECTOR_BYTES).zip(0u64..);
        sectors.map(|(bytes, index)| (self.offset + index * SECTOR, bytes))
    }
}

#[derive(Clone, Debug)]
enum Effect {
    Write {
        extent: Sectors,
        mapped: bool,
    },
    /// The place of a write that covers some block in part, also where it changes no byte. A page that is mapped is written whole.
    Place(Range<u64>),
    Size {
        size_bytes: u64,
        shrinks: bool,
    },
}

impl Effect {
    /// The place of a write by an operation, if it covers some block in part.
    fn place(extent: &Sectors) -> Option<Effect> {
        let place = extent.offset..extent.end();
        let is_whole = [place.start, place.end].iter().all(|at| at.is_multiple_of(BLOCK));
        (!is_whole).then_some(Effect::Place(place))
    }
}

/// The offsets of the blocks of which a write covers a part only: the first, the last, or none.
fn blocks_in_part(place: &Range<u64>, block_bytes: u64) -> impl Iterator<Item = u64> + use<> {
    let blocks = [place.start, place.end].map(|at| (at % block_bytes != 0).then_some(at - at % block_bytes));
    blocks.into_iter().flatten()
}

#[derive(Clone, Debug)]
struct Change {
    seq: u64,
    /// Whether a failed sync covered it: no later sync makes it durable.
    lost: bool,
    effect: Effect,
}

/// A file, independent of its names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inode {
    volatile: Contents,
    durable: Contents,
    pending: Vec<Change>,
    in_flight: Vec<(u64, Sectors)>,
    /// Numbers of the blocks that the file has no space of its own for, although it may have bytes there.
    without_space: BTreeSet<u64>,
}

impl Inode {
    /// A file whose bytes are all on stable media.
    pub(crate) fn durable(contents: Contents) -> Inode {
        Inode { volatile: contents.clone(), durable: contents, ..Inode::default() }
    }

    /// Takes all space away, as a sparse copy or one that shares its space does. The bytes stay.
    pub(crate) fn lose_blocks(&mut self) {
        self.without_space = (0..self.size_bytes().div_ceil(BLOCK)).collect();
    }

    /// Whether there is space behind `from..to`.
    pub(crate) fn has_space(&self, from: u64, to: u64) -> bool {
        self.without_space.range(from / BLOCK..to.div_ceil(BLOCK)).next().is_none()
    }

    /// Gives space to `from..to`.
    pub(crate) fn give_space(&mut self, from: u64, to: u64) {
        if !self.without_space.is_empty() {
            self.without_space.retain(|block| !(from / BLOCK..to.div_ceil(BLOCK)).contains(block));
        }
    }

    pub(crate) fn volatile(&self) -> &Contents {
        &self.volatile
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.volatile.size_bytes()
    }

    /// Whether a power cut would not change it.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_empty()
    }

    /// Adds a submitted write: from now on any of its sectors may reach the disk.
    ///
    /// # Panics
    /// If it overlaps another write in flight: the caller's bug, the outcome is undefined on real hardware.
    pub(crate) fn start_write(&mut self, id: u64, extent: Sectors) {
        let clash = self.in_flight.iter().find(|(_, other)| other.overlaps(&extent));
        assert!(clash.is_none(), "overlapping writes in flight: {}..{}", extent.offset, extent.end());
        self.in_flight.push((id, extent));
    }

    /// Removes a write from those in flight; the caller completes or discards it.
    pub(crate) fn end_flight(&mut self, id: u64) -> Sectors {
        let at = self.in_flight.iter().position(|(other, _)| *other == id);
        self.in_flight.swap_remove(at.expect("a write ends once, after its start")).1
    }

    /// A write has completed: it is visible, but not durable yet.
    pub(crate) fn write(&mut self, seq: u64, extent: Sectors) {
        self.volatile.write(extent.offset, extent.bytes());
        let end = extent.end();
        self.give_space(extent.offset, end);
        self.pending.extend(Effect::place(&extent).map(|effect| Change { seq, lost: false, effect }));
        self.add_pending(seq, extent, false);
        if end > self.size_bytes() {
            self.resize(seq, end);
        }
    }

    /// The device has zeroed a part, and the file has grown to its end.
    pub(crate) fn zero(&mut self, seq: u64, range: Range<u64>) {
        let there =
            range.start.min(self.size_bytes())..range.end.min(self.size_bytes()).next_multiple_of(SECTOR);
        self.give_space(range.start, range.end);
        if !there.is_empty() {
            self.write(seq, Sectors::new(there.start, &vec![0; to_usize(there.end - there.start)]));
        }
        if range.end > self.size_bytes() {
            self.resize(seq, range.end);
        }
    }

    /// A write has failed: `seen` returns for each sector whether it is visible; all of them may be on the disk.
    pub(crate) fn write_torn(&mut self, seq: u64, extent: Sectors, mut seen: impl FnMut() -> bool) {
        for (offset, bytes) in extent.sectors() {
            if offset < self.size_bytes() && seen() {
                self.volatile.write(offset, bytes);
            }
        }
        let effects = [Effect::place(&extent), Some(Effect::Write { extent, mapped: false })];
        let effects = effects.into_iter().flatten();
        self.pending.extend(effects.map(|effect| Change { seq, lost: true, effect }));
    }

    /// A durable write has completed: its bytes are on stable media, and so is a size that includes them.
    pub(crate) fn write_durable(&mut self, seq: u64, extent: &Sectors) {
        let end = extent.end();
        let too_small =
            |change: &Change| matches!(change.effect, Effect::Size { size_bytes, .. } if size_bytes < end);
        if self.pending.iter().any(too_small) {
            self.persist_sizes();
        }
        self.write(seq, extent.clone());
        self.persist(extent, seq);
        if self.durable.size_bytes() < end {
            self.persist_sizes();
        }
    }

    /// Stores into a mapped file: visible at once, durable after a sync.
    pub(crate) fn write_mapped(&mut self, seq: u64, offset: usize, bytes: &[u8]) {
        self.volatile.write(offset as u64, bytes);
        let mut first = offset - offset % SECTOR_BYTES;
        while first < offset + bytes.len() {
            let mut sector = [0; SECTOR_BYTES];
            self.volatile.read(first as u64, &mut sector);
            self.forget_old_versions(first as u64);
            self.add_pending(seq, Sectors::new(first as u64, &sector), true);
            first += SECTOR_BYTES;
        }
    }

    /// Changes the size; the new size is pending.
    pub(crate) fn resize(&mut self, seq: u64, size_bytes: u64) {
        let shrinks = size_bytes < self.size_bytes();
        self.volatile.set_size(size_bytes);
        self.pending.push(Change { seq, lost: false, effect: Effect::Size { size_bytes, shrinks } });
    }

    /// Makes every change up to `up_to` durable, except those that an earlier failed sync has lost.
    pub(crate) fn sync(&mut self, up_to: u64) {
        if self.pending.iter().all(|change| change.seq <= up_to && !change.lost) {
            self.durable = self.volatile.clone();
            self.pending.clear();
            return;
        }
        let changes = std::mem::take(&mut self.pending);
        for change in changes {
            if change.seq > up_to || change.lost {
                self.pending.push(change);
                continue;
            }
            match change.effect {
                Effect::Write { extent, .. } => self.persist(&extent, change.seq),
                Effect::Place(_) => {}
                Effect::Size { size_bytes, shrinks } => self.persist_size(size_bytes, shrinks, change.seq),
            }
        }
    }

    /// A sync has failed: the changes that it covered are never made durable, although reads still see them.
    pub(crate) fn sync_failed(&mut self, up_to: u64) {
        for change in self.pending.iter_mut().filter(|change| change.seq <= up_to) {
            change.lost = true;
        }
    }

    /// The contents after a power cut. Calls `keep` once for each unit, in order.
    pub(crate) fn power_cut(
        &self,
        inode: u64,
        block_bytes: u64,
        keep: &mut dyn FnMut(PendingUnit<'_>) -> bool,
    ) -> Contents {
        let mut left = self.durable.clone();
        let mut size_bytes = left.size_bytes();
        let mut sizes_go_on = true;
        let mut blocked_from = u64::MAX;
        let flights = self.in_flight.iter().flat_map(|(_, extent)| {
            let size = Effect::Size { size_bytes: extent.end(), shrinks: false };
            let grows = (extent.end() > self.size_bytes()).then_some(size);
            let write = Effect::Write { extent: extent.clone(), mapped: false };
            [Some(write), Effect::place(extent), grows]
        });
        let flights: Vec<Effect> = flights.flatten().collect();
        let mut in_part = BTreeSet::new();
        for effect in self.pending.iter().map(|change| &change.effect).chain(&flights) {
            match effect {
                Effect::Write { extent, .. } => {
                    for (offset, bytes) in extent.sectors() {
                        let kept = keep(PendingUnit::Sector { inode, offset });
                        if kept && offset < blocked_from {
                            left.write(offset, bytes);
                        }
                    }
                }
                Effect::Place(place) => in_part.extend(blocks_in_part(place, block_bytes)),
                Effect::Size { size_bytes: new, shrinks } => {
                    sizes_go_on = keep(PendingUnit::Size { inode, size_bytes: *new }) && sizes_go_on;
                    match (sizes_go_on, shrinks) {
                        (true, true) => left.set_size(*new),
                        // After a dropped truncation no later write beyond its size can be kept.
                        (false, true) => blocked_from = blocked_from.min(*new),
                        _ => {}
                    }
                    if sizes_go_on {
                        size_bytes = *new;
                    }
                }
            }
        }
        for offset in in_part {
            if !keep(PendingUnit::Block { inode, offset }) {
                left.write(offset, &vec![GARBAGE; to_usize(block_bytes)]);
            }
        }
        left.set_size(size_bytes);
        left
    }

    /// The process has died: `done` decides for every write in flight whether it happened.
    pub(crate) fn process_crash(&mut self, seq: u64, mut done: impl FnMut() -> bool) {
        for (_, extent) in std::mem::take(&mut self.in_flight) {
            if done() {
                self.write(seq, extent);
            }
        }
    }

    /// A hash of all state that a later run or crash can observe.
    pub(crate) fn digest(&self) -> u64 {
        let digest = self.volatile.digest();
        if self.is_settled() { digest } else { mix(digest, self.durable.digest()) }
    }

    fn add_pending(&mut self, seq: u64, extent: Sectors, mapped: bool) {
        let contested = self.pending.iter().any(|change| match &change.effect {
            Effect::Write { extent: other, .. } => other.overlaps(&extent),
            Effect::Place(_) => false,
            Effect::Size { shrinks, .. } => *shrinks,
        });
        if contested || mapped {
            self.pending.push(Change { seq, lost: false, effect: Effect::Write { extent, mapped } });
            return;
        }
        // Only sectors that differ from the durable ones make a difference at a crash.
        let mut run_start = extent.offset();
        let mut at = run_start;
        while at <= extent.end() {
            let sector = extent.part(at, at + SECTOR);
            if sector.is_empty() || self.durable.holds(at, sector.bytes()) {
                let run = extent.part(run_start, at);
                if !run.is_empty() {
                    let effect = Effect::Write { extent: run, mapped };
                    self.pending.push(Change { seq, lost: false, effect });
                }
                run_start = at + SECTOR;
            }
            at += SECTOR;
        }
    }

    fn forget_old_versions(&mut self, offset: u64) {
        let is_version = |change: &Change| matches!(&change.effect, Effect::Write { extent, mapped: true } if extent.offset == offset);
        if self.pending.iter().filter(|change| is_version(change)).count() >= MAP_VERSIONS
            && let Some(oldest) = self.pending.iter().position(is_version)
        {
            self.pending.remove(oldest);
        }
    }

    /// Puts an extent on stable media; older versions of its sectors cannot appear after a crash any more.
    fn persist(&mut self, extent: &Sectors, seq: u64) {
        self.durable.write(extent.offset, extent.bytes());
        self.drop_older(extent.offset, extent.end(), seq);
    }

    fn persist_size(&mut self, size_bytes: u64, shrinks: bool, seq: u64) {
        self.durable.set_size(size_bytes);
        if shrinks {
            self.drop_older(size_bytes.next_multiple_of(SECTOR), u64::MAX, seq);
        }
        self.pending.retain(|change| change.seq > seq || !matches!(change.effect, Effect::Size { .. }));
    }

    fn persist_sizes(&mut self) {
        let sizes: Vec<_> = self
            .pending
            .iter()
            .filter_map(|change| match change.effect {
                Effect::Size { size_bytes, shrinks } => Some((size_bytes, shrinks, change.seq)),
                Effect::Write { .. } | Effect::Place(_) => None,
            })
            .collect();
        for (size_bytes, shrinks, seq) in sizes {
            self.persist_size(size_bytes, shrinks, seq);
        }
    }

    /// Removes `from..to` from every pending write up to `seq`, and all places inside of it.
    fn drop_older(&mut self, from: u64, to: u64, seq: u64) {
        let touched = |change: &Change| match &change.effect {
            Effect::Write { extent, .. } => change.seq <= seq && extent.offset < to && from < extent.end(),
            Effect::Place(place) => change.seq <= seq && from <= place.start && place.end <= to,
            Effect::Size { .. } => false,
        };
        if !self.pending.iter().any(touched) {
            return;
        }
        for change in std::mem::take(&mut self.pending) {
            if !touched(&change) {
                self.pending.push(change);
                continue;
            }
            let Effect::Write { extent, mapped } = &change.effect else { continue };
            let (before, after) = (extent.part(0, from), extent.part(to, u64::MAX));
            for part in [before, after] {
                if !part.is_empty() {
                    let effect = Effect::Write { extent: part, mapped: *mapped };
                    self.pending.push(Change { effect, ..change.clone() });
                }
            }
        }
    }
}
