//! Disks that break below a running store: reads, writes or flushes fail, once, for a while or permanently.
//!
//! The fault strikes in the middle of an incarnation. It strikes requests of the store and those of the file system for
//! its journal. The store may return errors, and no wrong value; after the repair of the disk everything that was
//! acknowledged is there. The same is done in a recovery.

use fastrand::Rng;
use rustix::io::Errno;

use super::fault::{Effect, Kind, RequestFault};
use super::lane::Lane;
use super::protocol::{Allow, Look, Play};
use crate::config::CONFIGS;
use crate::model::{Acks, Bounds};
use crate::report::{Check, Failure, Tally};

/// The names of the counts of broken disks.
pub(super) const COUNTS: [&str; 8] = [
    "faults",
    "faults_struck",
    "failed_requests",
    "broken_reads",
    "broken_writes",
    "broken_flushes",
    "disks_gone",
    "opens_refused",
];

/// The number of operations of an incarnation.
const OPS: usize = 30;

/// A fault strikes within this many requests of its kind.
const WITHIN: u64 = 24;

/// One incarnation with one fault, and one recovery with another.
pub(super) fn break_disk(lane: &mut Lane, seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::default();
    lane.clear();
    let (fault, at) = (draw(&mut rng), rng.usize(..OPS / 2));
    let play = Play {
        seed: rng.u64(..),
        ops: OPS,
        config: rng.usize(..CONFIGS.len()),
        threads: false,
        bounds: None,
        stays: true,
        allow: Allow::Refusals,
        shutdown: None,
    };
    let incarnation = lane.live(play, &mut |nth, device| {
        if nth == at {
            device.set_fault(Some(fault));
        }
    })?;
    let place = || format!("{fault:?} from operation {at} on");
    if let Some(wrong) = incarnation.wrong {
        return Err(Failure::new(wrong).at(place()));
    }
    count(&mut tally, lane, fault);
    let is_mended_late = rng.bool();
    if is_mended_late {
        lane.rest().map_err(|failure| failure.at(place()))?;
    }
    lane.device.set_fault(None);
    if !is_mended_late {
        lane.rest().map_err(|failure| failure.at(place()))?;
    }
    let acks = incarnation.stamps.last().map(|(_, acks)| *acks).unwrap_or_default();
    recover(lane, &mut rng, &mut tally, acks).map_err(|failure| failure.at(place()))?;
    Ok(tally)
}

/// Opens the store on a disk that breaks, and after the repair of the disk.
fn recover(lane: &mut Lane, rng: &mut Rng, tally: &mut Tally, acks: Acks) -> Check {
    let mut look = Look {
        bounds: acks.after_power_cut(),
        config: rng.usize(..CONFIGS.len()),
        again: false,
        verify: false,
        allow: Allow::Refusals,
    };
    let fault = draw(rng);
    lane.device.set_fault(Some(fault));
    let found = lane.look(look.clone()).map_err(|failure| failure.at(format!("{fault:?} in a recovery")))?;
    count(tally, lane, fault);
    lane.device.set_fault(None);
    match found {
        // Everything that an open has shown is durable.
        Some(found) => look.bounds = Bounds::exactly(found),
        None => tally.counts.add("opens_refused", 1),
    }
    look.allow = Allow::None;
    look.verify = true;
    let whole = lane.look(look).map_err(|failure| failure.at("when the disk was whole again"))?;
    whole.map(|_| ()).ok_or_else(|| Failure::new("a whole disk was refused"))
}

fn draw(rng: &mut Rng) -> RequestFault {
    let kind = [Kind::Read, Kind::Write, Kind::Write, Kind::Flush, Kind::Flush, Kind::Any][rng.usize(..6)];
    let errno = if kind == Kind::Write && rng.bool() { Errno::NOSPC } else { Errno::IO };
    let times = if kind == Kind::Any { u64::MAX } else { [1, 1, 5, u64::MAX][rng.usize(..4)] };
    RequestFault { kind, target: None, skip: rng.u64(..WITHIN), times, effect: Effect::Fail(errno) }
}

fn count(tally: &mut Tally, lane: &Lane, fault: RequestFault) {
    let struck = lane.device.struck();
    let kind = match fault.kind {
        Kind::Read => "broken_reads",
        Kind::Write => "broken_writes",
        Kind::Flush => "broken_flushes",
        Kind::Any => "disks_gone",
    };
    tally.counts.add("faults", 1);
    tally.counts.add("failed_requests", struck);
    if struck > 0 {
        tally.counts.add("faults_struck", 1);
        tally.counts.add(kind, 1);
    }
}
