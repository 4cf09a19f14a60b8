//! Faults of a disk: which requests a fault strikes, and their treatment.
//!
//! The disk recognizes the files of a store by the written data: a group of the log or the manifest, and the end of a
//! segment, have magic numbers. So a fault strikes the files that it is meant for, and nothing of the file system.
//!
//! Invariants: a page belongs to the file that wrote it last, until other data are written there. For every sector that a
//! lie has changed, the right content, the present content and the previous content are known.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use rustix::io::Errno;

use super::image::{Image, SECTOR_BYTES};

const PAGE_BYTES: usize = 4096;

/// See `wal::seal` and the segment's footer.
const GROUP_MAGIC: &[u8] = b"ESKERGRP";
const SEGMENT_MAGIC: &[u8] = b"EskerSeg";
const FOOTER_BYTES: usize = 4096;

/// A kind of file of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultTarget {
    Log,
    Segment,
    Manifest,
}

impl FaultTarget {
    pub(super) const ALL: [FaultTarget; 3] = [FaultTarget::Log, FaultTarget::Segment, FaultTarget::Manifest];

    /// The kind of the written file. The incarnation in a group is 0 in a manifest.
    fn of(data: &[u8]) -> Option<FaultTarget> {
        if data.get(8..16) == Some(GROUP_MAGIC) {
            let is_manifest = data.get(16..20) == Some(&[0; 4]);
            return Some(if is_manifest { FaultTarget::Manifest } else { FaultTarget::Log });
        }
        let footer = data.len().checked_sub(FOOTER_BYTES)?;
        (data.get(footer..)?.starts_with(SEGMENT_MAGIC)).then_some(FaultTarget::Segment)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            FaultTarget::Log => "log",
            FaultTarget::Segment => "segment",
            FaultTarget::Manifest => "manifest",
        }
    }
}

/// Which requests a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Any,
}

/// The treatment of a request that is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It fails, and does nothing.
    Fail(Errno),
    /// It succeeds, with one flipped bit in the read or written data.
    Flip,
    /// A write succeeds, and writes nothing.
    Drop,
    /// A write succeeds, and goes to a place of another file or another place of the file.
    Misdirect,
    /// A write succeeds, and writes some of its sectors.
    Tear,
    /// A write to a place that was never written fails, as in a thin pool without space.
    Full,
    /// The request is executed, later.
    Late(Duration),
    /// All requests wait for this long, and then all are executed.
    Hang(Duration),
    /// All requests wait for this long, and then all fail.
    Gone(Duration),
    /// No request is answered from then on: the daemon has died.
    Die,
}

impl Effect {
    /// Whether the disk reports success where there was none.
    pub(super) fn is_lie(self) -> bool {
        matches!(self, Effect::Flip | Effect::Drop | Effect::Misdirect | Effect::Tear)
    }
}

/// Requests that go wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestFault {
    pub(super) kind: Kind,
    /// Only requests to files of this kind. A flush belongs to the file that was written last.
    pub(super) target: Option<FaultTarget>,
    /// This many succeed before it.
    pub(super) skip: u64,
    /// This many go wrong then.
    pub(super) times: u64,
    pub(super) effect: Effect,
}

impl RequestFault {
    /// Every request fails.
    pub(super) fn dead() -> RequestFault {
        let effect = Effect::Fail(Errno::IO);
        RequestFault { kind: Kind::Any, target: None, skip: 0, times: u64::MAX, effect }
    }

    /// The treatment of the next request of this kind.
    pub(super) fn meet(&mut self, kind: Kind, target: Option<FaultTarget>) -> Option<Effect> {
        let is_meant = (self.kind == kind || self.kind == Kind::Any)
            && self.target.is_none_or(|meant| target == Some(meant));
        if !is_meant {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.effect)
    }
}

/// Which file wrote a page last, and with which write of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) target: FaultTarget,
    pub(super) write: u64,
}

/// A sector that a lie has changed.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    pub(super) offset: u64,
    pub(super) owner: Owner,
    right: Vec<u8>,
    now: Vec<u8>,
    old: Vec<u8>,
}

impl Wrong {
    /// Whether it reads like a sector that was never written: then a power cut may have taken it, as far as can be known.
    pub(super) fn looks_unwritten(&self) -> bool {
        self.now == self.old || self.now.iter().all(|byte| *byte == 0)
    }
}

/// The content of a disk, the owners of its pages, and its lies.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) image: Image,
    owners: BTreeMap<u64, Owner>,
    wrong: Vec<Wrong>,
    /// The number of writes so far.
    pub(super) writes: u64,
}

impl Content {
    pub(super) fn new(image: Image) -> Content {
        Content { image, owners: BTreeMap::new(), wrong: Vec::new(), writes: 0 }
    }

    /// The file that a request for these bytes belongs to; the data of a write show it.
    pub(super) fn target(&self, offset: u64, len: usize, data: Option<&[u8]>) -> Option<FaultTarget> {
        match data {
            Some(data) => FaultTarget::of(data),
            None => self.owners.range(pages(offset, len)).next().map(|(_, owner)| owner.target),
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.own(offset, data);
        self.image.write(offset, data);
    }

    fn own(&mut self, offset: u64, data: &[u8]) {
        self.writes += 1;
        let target = FaultTarget::of(data);
        for page in pages(offset, data.len()) {
            match target {
                Some(target) => self.owners.insert(page, Owner { target, write: self.writes }),
                None => self.owners.remove(&page),
            };
        }
    }

    /// Takes a write of a file, and does something else.
    pub(super) fn lie(&mut self, effect: Effect, offset: u64, data: &[u8], rng: &mut Rng) {
        let mut old = vec![0; data.len()];
        self.image.read(offset, &mut old);
        let mut wrong = old.clone();
        match effect {
            Effect::Flip => {
                wrong.copy_from_slice(data);
                flip(&mut wrong, rng);
            }
            Effect::Tear => {
                let sectors = data.len() / SECTOR_BYTES;
                let (begin, kept) = (rng.bool(), rng.usize(1..sectors.max(2)));
                let cut = if begin { kept } else { sectors - kept.min(sectors) } * SECTOR_BYTES;
                let range = if begin { 0..cut.min(data.len()) } else { cut..data.len() };
                wrong[range.clone()].copy_from_slice(&data[range]);
            }
            _ => {}
        }
        let elsewhere =
            (effect == Effect::Misdirect).then(|| self.elsewhere(offset, data.len(), rng)).flatten();
        self.own(offset, data);
        self.put_wrong(offset, data, &wrong, &old);
        if let Some((place, len)) = elsewhere {
            let mut right = vec![0; len];
            self.image.read(place, &mut right);
            self.put_wrong(place, &right, &data[..len], &right);
        }
    }

    fn put_wrong(&mut self, offset: u64, right: &[u8], wrong: &[u8], old: &[u8]) {
        self.image.write(offset, wrong);
        for at in (0..right.len()).step_by(SECTOR_BYTES) {
            let sector = at..right.len().min(at + SECTOR_BYTES);
            let place = offset + at as u64;
            let Some(owner) = self.owners.get(&(place / PAGE_BYTES as u64)).copied() else { continue };
            let of = |bytes: &[u8]| bytes[sector.clone()].to_vec();
            let (right, now, old) = (of(right), of(wrong), of(old));
            if right != now {
                self.wrong.push(Wrong { offset: place, owner, right, now, old });
            }
        }
    }

    /// Another place of the store, and how much of a write fits there.
    fn elsewhere(&self, offset: u64, len: usize, rng: &mut Rng) -> Option<(u64, usize)> {
        let here = pages(offset, len);
        let others: Vec<u64> = self.owners.keys().copied().filter(|page| !here.contains(page)).collect();
        let first = *rng.choice(&others)?;
        let wanted = first..first + len.div_ceil(PAGE_BYTES) as u64;
        let fit = wanted.take_while(|page| others.binary_search(page).is_ok()).count() * PAGE_BYTES;
        Some((first * PAGE_BYTES as u64, len.min(fit)))
    }

    /// The lies that are still there: their sectors were not overwritten.
    pub(super) fn wrong(&self) -> impl Iterator<Item = &Wrong> {
        self.wrong.iter().filter(|wrong| {
            let mut found = vec![0; wrong.now.len()];
            self.image.read(wrong.offset, &mut found);
            found == wrong.now && self.owners.get(&(wrong.offset / PAGE_BYTES as u64)) == Some(&wrong.owner)
        })
    }

    /// Repairs all lies that are still there.
    pub(super) fn heal(&mut self) {
        let healed: Vec<Wrong> = self.wrong().cloned().collect();
        self.wrong.clear();
        for wrong in healed {
            self.image.write(wrong.offset, &wrong.right);
        }
    }

    /// The newest write of such a file.
    pub(super) fn newest(&self, target: FaultTarget) -> Option<u64> {
        self.owners.values().filter(|owner| owner.target == target).map(|owner| owner.write).max()
    }
}

/// Changes one bit.
pub(super) fn flip(bytes: &mut [u8], rng: &mut Rng) {
    let at = rng.usize(..bytes.len().max(1));
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << rng.u8(..8);
    }
}

fn pages(offset: u64, len: usize) -> std::ops::Range<u64> {
    let page = PAGE_BYTES as u64;
    offset / page..(offset + len as u64).div_ceil(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(incarnation: u8, fill: u8) -> Vec<u8> {
        let mut data = vec![fill; PAGE_BYTES];
        data[8..16].copy_from_slice(GROUP_MAGIC);
        data[16..20].copy_from_slice(&[incarnation, 0, 0, 0]);
        data
    }

    fn segment() -> Vec<u8> {
        let mut data = vec![7; 3 * PAGE_BYTES];
        data[2 * PAGE_BYTES..][..8].copy_from_slice(SEGMENT_MAGIC);
        data
    }

    #[test]
    fn files_are_known_by_their_content() {
        let mut content = Content::new(Image::new(1 << 20));
        content.write(8192, &group(3, 1));
        content.write(16384, &group(0, 1));
        content.write(32768, &segment());
        let at = |content: &Content, offset| content.target(offset, 512, None);
        assert_eq!(at(&content, 8192), Some(FaultTarget::Log));
        assert_eq!(at(&content, 16384 + 512), Some(FaultTarget::Manifest));
        assert_eq!(at(&content, 32768), Some(FaultTarget::Segment));
        assert_eq!(at(&content, 0), None);
        content.write(32768, &[0; 512]);
        assert_eq!(at(&content, 32768), None, "overwritten by another file");
        assert_eq!(
            (content.newest(FaultTarget::Log), content.newest(FaultTarget::Segment)),
            (Some(1), Some(3))
        );
    }

    #[test]
    fn a_fault_strikes_its_target_and_no_more_often_than_it_should() {
        let effect = Effect::Fail(Errno::IO);
        let mut fault =
            RequestFault { kind: Kind::Write, target: Some(FaultTarget::Log), skip: 1, times: 2, effect };
        let log = Some(FaultTarget::Log);
        let requests = [
            (Kind::Write, None),
            (Kind::Read, log),
            (Kind::Write, log),
            (Kind::Write, Some(FaultTarget::Segment)),
        ];
        assert!(requests.iter().all(|(kind, target)| fault.meet(*kind, *target).is_none()));
        let met = [(); 3].map(|()| fault.meet(Kind::Write, log));
        assert_eq!(met, [Some(effect), Some(effect), None]);
    }

    #[test]
    fn every_lie_is_known_and_can_be_healed_until_somebody_writes_there() {
        for effect in [Effect::Flip, Effect::Drop, Effect::Misdirect, Effect::Tear] {
            for seed in 0..50 {
                let mut rng = Rng::with_seed(seed);
                let mut told = Content::new(Image::new(1 << 20));
                told.write(8192, &group(3, 1));
                told.write(65536, &segment());
                let mut truth = told.clone();
                told.lie(effect, 12288, &group(3, 2), &mut rng);
                truth.write(12288, &group(3, 2));
                assert_ne!(told.image.fingerprint(), truth.image.fingerprint(), "{effect:?} {seed}");
                let page = |wrong: &Wrong| wrong.offset / PAGE_BYTES as u64;
                let here: Vec<&Wrong> = told.wrong().filter(|wrong| page(wrong) == 3).collect();
                assert!(!here.is_empty(), "{effect:?} {seed}");
                assert!(here.iter().all(|wrong| wrong.looks_unwritten() != (effect == Effect::Flip)));
                let mut healed = told.clone();
                healed.heal();
                assert_eq!(healed.image.fingerprint(), truth.image.fingerprint(), "{effect:?} {seed}");
                told.write(12288, &group(3, 3));
                assert!(told.wrong().all(|wrong| page(wrong) != 3));
            }
        }
    }
}
