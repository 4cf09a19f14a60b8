//! Reads the chain of groups in a file: how far it reaches, and why it stops there.
//!
//! Pure: bytes in, findings out, no decision. [`Chain::check`] turns the findings into the verdict for the last file of a
//! log (and for a manifest).
//!
//! # Why the verdict is right
//! Groups are written one after the other, each after the sync of the one before. So if a group was acknowledged, all of
//! its sectors and all sectors before it are on stable media: they are *current*. Hence, at the stop:
//! * The first sector is *older*: neither this group nor a later one was ever acknowledged. A damaged sector further on
//!   belongs to no acknowledged group.
//! * The first sector is current, and another sector of the group is older: a power cut tore the group. It was never
//!   acknowledged.
//! * A sector is damaged: it may belong to an acknowledged group. This is no torn tail, because a cut leaves each sector
//!   old or new. Refuse.
//! * A medium that *lost* sectors (zeros, or an earlier use) looks like a torn tail. The claims detect that: the header
//!   of each group claims how much of the stream was durable when the group was sealed. A claim above the accepted end
//!   proves a loss. Refuse.
//!
//! Invariant: `end` never passes a group with a sector that is not current.

use std::path::Path;

use aio::SECTOR_BYTES;

use crate::error::{Error, Result};
use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::seal::{GROUP_HEADER_BYTES, Group, STEP};
use crate::sector::{Place, SECTOR_HEADER_BYTES, SectorState, classify, is_first};

/// The values that every group of a chain must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// The file, and the use of that file.
    pub place: Place,
    /// The incarnation that writes the file.
    pub incarnation: u32,
    /// Stream position of the first group.
    pub start: Seq,
}

/// Why a chain stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The file is full.
    EndOfFile,
    /// The first sector was never persisted in this use of the file.
    Older,
    /// The group began, and some of its sectors were never persisted.
    TornGroup,
    /// A sector here, or the group as a whole, differs from the written bytes.
    Damaged {
        /// Offset in the file in bytes.
        offset: u64,
        /// The damaged item, for example `"group header"`.
        what: &'static str,
        /// The value that should stand there.
        expected: String,
        /// The value that stands there.
        found: String,
    },
}

/// The groups of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The accepted stream bytes, from [`ChainRules::start`] on.
    pub stream: Vec<u8>,
    /// End of the accepted stream.
    pub end: Seq,
    /// The accepted groups: start in the stream, and start in the file in bytes.
    pub groups: Vec<(Seq, u64)>,
    /// Offset of the stop in the file in bytes: the next group would go here.
    pub stop_offset: u64,
    /// Why the chain stops.
    pub stop: Stop,
    /// The highest claim of any group header in the file, also behind the stop: the stream below was durable.
    pub claim: Seq,
    /// Whether a sector of this use of the file was found close behind the stop, or a group header anywhere behind it.
    pub more_behind: bool,
}

/// The tail of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ends after a group.
    Clean,
    /// It ends in a group that was never acknowledged.
    TornTail,
}

impl Chain {
    /// Offset in the file, in bytes, of the group that holds stream position `seq`.
    #[must_use]
    pub fn offset_of(&self, seq: Seq) -> u64 {
        let behind = self.groups.partition_point(|&(start, _)| start <= seq);
        behind.checked_sub(1).map_or(0, |nth| self.groups[nth].1)
    }

    /// The verdict if this is the last file of its log.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the offset: a sector is damaged where acknowledged data may lie, or acknowledged data is
    /// missing.
    pub fn check(&self, file: &Path) -> Result<Verdict> {
        if planted(Bug::DamageTakenAsTornTail) {
            return Ok(Verdict::TornTail);
        }
        if let Stop::Damaged { offset, what, expected, found } = &self.stop {
            return Err(Error::corrupt(file, *offset, what, expected, found));
        }
        if self.claim > self.end && !planted(Bug::ClaimsIgnored) {
            let what = "acknowledged groups are missing";
            return Err(Error::corrupt(file, self.stop_offset, what, &self.claim, &self.end));
        }
        let torn = self.stop == Stop::TornGroup || self.more_behind;
        Ok(if torn { Verdict::TornTail } else { Verdict::Clean })
    }
}

/// Reads the chain of groups in the bytes of a whole file. Never panics, for any bytes.
#[must_use]
pub fn read_chain(file: &[u8], rules: &ChainRules) -> Chain {
    let mut chain = Chain {
        stream: Vec::new(),
        end: rules.start,
        groups: Vec::new(),
        stop_offset: 0,
        stop: Stop::EndOfFile,
        claim: Seq::ZERO,
        more_behind: false,
    };
    let mut offset = 0;
    chain.stop = loop {
        match read_group(file, offset, &mut chain, rules) {
            Ok(group_bytes) => offset += group_bytes,
            Err(stop) => break stop,
        }
    };
    chain.stop_offset = offset as u64;
    chain.more_behind = (offset..offset + STEP).step_by(SECTOR_BYTES).any(|at| is_current(file, at, rules));
    look_for_claims(file, offset, &mut chain, rules);
    chain
}

/// Adds the group at `offset` to the chain and returns its size in the file in bytes. Changes nothing if the group does
/// not belong to the chain.
fn read_group(
    file: &[u8],
    offset: usize,
    chain: &mut Chain,
    rules: &ChainRules,
) -> std::result::Result<usize, Stop> {
    let Some(first) = sector_at(file, offset) else { return Err(Stop::EndOfFile) };
    match classify(&rules.place, index_of(offset), first) {
        SectorState::Older => return Err(Stop::Older),
        SectorState::Damaged => return Err(damaged_sector(offset)),
        SectorState::Current { first: false } => {
            return Err(damaged(offset, "group chain", &"the first sector of a group", &"a later one"));
        }
        SectorState::Current { first: true } => {}
    }
    let Some(group) = Group::decode(&first[SECTOR_HEADER_BYTES..]) else {
        return Err(damaged(offset, "group header", &"a valid one", &"none"));
    };
    check_header(&group, offset, chain, rules)?;
    let sectors = group.sealed_bytes().and_then(|group_bytes| file[offset..].get(..group_bytes));
    let Some(sectors) = sectors else {
        let stream_bytes = group.end.since(group.start);
        return Err(damaged(offset, "group length", &"one that fits into the file", &stream_bytes));
    };
    check_sectors(sectors, offset, rules)?;
    take_stream(sectors, group.end.since(group.start), &mut chain.stream);
    chain.end = group.end;
    chain.groups.push((group.start, offset as u64));
    chain.claim = chain.claim.max(group.durable);
    Ok(sectors.len())
}

fn check_header(
    group: &Group,
    offset: usize,
    chain: &Chain,
    rules: &ChainRules,
) -> std::result::Result<(), Stop> {
    if group.incarnation != rules.incarnation {
        return Err(damaged(offset, "incarnation of a group", &rules.incarnation, &group.incarnation));
    }
    let number = chain.groups.len() as u64;
    if group.number != number {
        return Err(damaged(offset, "number of a group", &number, &group.number));
    }
    if group.start != chain.end {
        return Err(damaged(offset, "start of a group", &chain.end, &group.start));
    }
    if group.durable > group.start {
        return Err(damaged(offset, "durable claim of a group", &group.start, &group.durable));
    }
    Ok(())
}

/// Damage anywhere in the group takes precedence over a missing sector: a torn write causes no damage.
fn check_sectors(sectors: &[u8], offset: usize, rules: &ChainRules) -> std::result::Result<(), Stop> {
    let mut torn = false;
    for (nth, sector) in sectors.as_chunks::<SECTOR_BYTES>().0.iter().enumerate().skip(1) {
        let at = offset + nth * SECTOR_BYTES;
        match classify(&rules.place, index_of(at), sector) {
            SectorState::Current { first: false } => {}
            SectorState::Current { first: true } => {
                return Err(damaged(at, "group chain", &"a later sector of a group", &"a first one"));
            }
            SectorState::Older => torn = true,
            SectorState::Damaged => return Err(damaged_sector(at)),
        }
    }
    if torn { Err(Stop::TornGroup) } else { Ok(()) }
}

fn take_stream(sectors: &[u8], stream_bytes: u64, stream: &mut Vec<u8>) {
    let mut left = usize::try_from(stream_bytes).unwrap_or(usize::MAX);
    let mut skip = SECTOR_HEADER_BYTES + GROUP_HEADER_BYTES;
    for sector in sectors.as_chunks::<SECTOR_BYTES>().0 {
        let take = left.min(SECTOR_BYTES - skip);
        stream.extend_from_slice(&sector[skip..skip + take]);
        left -= take;
        skip = SECTOR_HEADER_BYTES;
    }
}

/// The chain does not lead to groups behind the stop, and their step is not known, so this looks at every sector.
fn look_for_claims(file: &[u8], stop: usize, chain: &mut Chain, rules: &ChainRules) {
    for offset in (stop..file.len()).step_by(SECTOR_BYTES) {
        let Some(sector) = sector_at(file, offset) else { break };
        if !is_first(&rules.place, index_of(offset), sector) {
            continue;
        }
        let Some(group) = Group::decode(&sector[SECTOR_HEADER_BYTES..]) else { continue };
        if group.incarnation == rules.incarnation {
            chain.claim = chain.claim.max(group.durable);
            chain.more_behind = true;
        }
    }
}

fn is_current(file: &[u8], offset: usize, rules: &ChainRules) -> bool {
    let sector = sector_at(file, offset);
    let state = sector.map(|sector| classify(&rules.place, index_of(offset), sector));
    matches!(state, Some(SectorState::Current { .. }))
}

fn sector_at(file: &[u8], offset: usize) -> Option<&[u8; SECTOR_BYTES]> {
    file.get(offset..)?.first_chunk()
}

fn index_of(offset: usize) -> u64 {
    (offset / SECTOR_BYTES) as u64
}

fn damaged_sector(offset: usize) -> Stop {
    damaged(offset, "sector", &"a valid checksum", &"a damaged sector")
}

fn damaged(offset: usize, what: &'static str, expected: &dyn ToString, found: &dyn ToString) -> Stop {
    Stop::Damaged { offset: offset as u64, what, expected: expected.to_string(), found: found.to_string() }
}
