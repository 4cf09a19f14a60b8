//! Every illness of a disk at every kind of file of a store: the matrix that a run tries cell by cell.
//!
//! A disk that refuses (reads, writes, flushes, no space, gone, dead) may cause errors and nothing else. After its repair
//! everything acknowledged is there. A disk that is slow or silent for a while may only cost time. A disk that lies (flips
//! bits, loses writes or parts of them, misdirects them) must be found out: each answer is right, or it is an error that
//! names a damaged file. With the right bytes restored, everything acknowledged is there.
//!
//! One lie cannot be found out: that the newest group of log or manifest was never written. The store must then still hold
//! a prefix. Without the newest group of the log it lacks at most the writes that were acknowledged since the start of the
//! operation that wrote it. Without the newest edit no commit is lost, because a log file that the edit named proves
//! the loss; only a created or dropped keyspace is lost. Such cases are counted.
//!
//! Invariant: a cell is tried until its fault has struck. A fault that never strikes is a failure of the run.

use std::time::Duration;

use fastrand::Rng;
use rustix::io::Errno;

use super::fault::{Content, Effect, FaultTarget, Kind, RequestFault};
use super::lane::{IncarnationLog, Lane};
use super::protocol::{Allow, Look, Play};
use crate::config::CONFIGS;
use crate::model::{Acks, Bounds, Prefix};
use crate::report::{Check, Failure, Tally};

/// The names of the counts of the matrix.
pub(super) const COUNTS: [&str; 10] = [
    "cells",
    "cells_struck",
    "detected",
    "detected_in_log",
    "detected_in_segment",
    "detected_in_manifest",
    "harmless",
    "undetectable_by_design",
    "disks_replaced",
    "opens_refused",
];

/// Operations of an incarnation.
const OPS: usize = 40;

/// How many times a cell is tried with other operations until its fault strikes.
const TRIES: u64 = 40;

/// How many times a lie is told until it is found out: many concern data that are no longer needed.
const LIES: u64 = 15;

/// The delay of a late request, and of a silent disk.
const LATE: Duration = Duration::from_millis(4);
const SILENT: Duration = Duration::from_millis(200);

/// An illness, with the name of its count.
struct Illness {
    name: &'static str,
    kind: Kind,
    effect: Effect,
    /// How many requests it strikes.
    times: u64,
}

const ILLNESSES: [Illness; 14] = [
    illness("failed_reads", Kind::Read, Effect::Fail(Errno::IO), u64::MAX),
    illness("failed_writes", Kind::Write, Effect::Fail(Errno::IO), u64::MAX),
    illness("failed_once", Kind::Write, Effect::Fail(Errno::IO), 1),
    illness("failed_flushes", Kind::Flush, Effect::Fail(Errno::IO), 1),
    illness("no_space", Kind::Write, Effect::Fail(Errno::NOSPC), u64::MAX),
    illness("flipped_reads", Kind::Read, Effect::Flip, 1),
    illness("flipped_writes", Kind::Write, Effect::Flip, 1),
    illness("dropped_writes", Kind::Write, Effect::Drop, 1),
    illness("misdirected_writes", Kind::Write, Effect::Misdirect, 1),
    illness("torn_writes", Kind::Write, Effect::Tear, 1),
    illness("slow", Kind::Any, Effect::Late(LATE), u64::MAX),
    illness("hung", Kind::Any, Effect::Hang(SILENT), 1),
    illness("hung_and_gone", Kind::Any, Effect::Gone(SILENT), 1),
    illness("daemon_killed", Kind::Any, Effect::Die, 1),
];

const fn illness(name: &'static str, kind: Kind, effect: Effect, times: u64) -> Illness {
    Illness { name, kind, effect, times }
}

/// The number of cells: each illness at each kind of file, and a full thin pool.
pub(super) const CELLS: u64 = 14 * 3 + 1;

/// The name of a cell.
pub(super) fn name(case: u64) -> String {
    let (illness, target) = cell(case);
    format!("{} of a {}", illness.name, target.map_or("pool", FaultTarget::name))
}

fn cell(case: u64) -> (Illness, Option<FaultTarget>) {
    let number = usize::try_from(case % CELLS).unwrap_or(0);
    match ILLNESSES.into_iter().nth(number / FaultTarget::ALL.len()) {
        Some(illness) => (illness, Some(FaultTarget::ALL[number % FaultTarget::ALL.len()])),
        None => (illness("pool_full", Kind::Write, Effect::Full, u64::MAX), None),
    }
}

/// Tries a cell, with other operations each time, until its fault has struck.
pub(super) fn try_cell(lane: &mut Lane, case: u64, seed: u64) -> Check<Tally> {
    let (illness, target) = cell(case);
    let mut tally = Tally::default();
    tally.counts.add("cells", 1);
    let mut struck = 0;
    for nth in 0..TRIES {
        let rng = Rng::with_seed(seed.wrapping_add(nth));
        let mut trial = CellTrial { rng, illness: &illness, target, struck: 0 };
        let found = trial.run(lane).map_err(|failure| failure.at(name(case)))?;
        tally.merge(&found);
        struck += trial.struck;
        let is_shown = !trial.is_lasting_lie() || found.counts.get("detected") > 0;
        if trial.struck > 0 && (is_shown || nth >= LIES) {
            break;
        }
    }
    if struck == 0 {
        return Err(Failure::new(format!(
            "{}: no request met the fault in {TRIES} incarnations",
            name(case)
        )));
    }
    tally.counts.add("cells_struck", 1);
    tally.counts.add(illness.name, 1);
    Ok(tally)
}

/// Runs an incarnation with a fault, and checks the result.
struct CellTrial<'a> {
    rng: Rng,
    illness: &'a Illness,
    target: Option<FaultTarget>,
    struck: u64,
}

/// The number of writes that the disk had seen after the open and after each operation.
type Ends = Vec<u64>;

impl CellTrial<'_> {
    fn run(&mut self, lane: &mut Lane) -> Check<Tally> {
        let mut tally = Tally::default();
        lane.clear();
        let (fault, at) = (self.fault(), self.rng.usize(..OPS / 2));
        let play = Play {
            seed: self.rng.u64(..),
            ops: OPS,
            config: self.rng.usize(..CONFIGS.len()),
            threads: false,
            bounds: None,
            stays: true,
            allow: self.allow(),
            shutdown: None,
        };
        let mut ends = Ends::new();
        let incarnation = lane.live(play, &mut |nth, device| {
            ends.push(device.writes());
            if nth == at {
                device.set_fault(Some(fault));
            }
        })?;
        let place = format!("{fault:?} from operation {at} on");
        if let Some(wrong) = incarnation.wrong {
            return Err(Failure::new(wrong).at(place));
        }
        self.struck += lane.device.struck();
        let is_noticed = incarnation.refused > 0 || lane.device.content().wrong().next().is_some();
        if self.is_lasting_lie() && !is_noticed {
            // The lie was never read, or was overwritten before it was read.
            self.struck = 0;
            lane.device.set_fault(None);
            return lane.rest().map(|()| tally);
        }
        let after = if self.is_lasting_lie() {
            self.find_out(lane, &incarnation, &ends, &mut tally)
        } else {
            self.recover(lane, &incarnation, &mut tally)
        };
        after.map_err(|failure| failure.at(place))?;
        Ok(tally)
    }

    fn fault(&mut self) -> RequestFault {
        let Illness { kind, effect, times, .. } = *self.illness;
        let most = match (kind, self.target) {
            (Kind::Read | Kind::Flush, _) | (_, Some(FaultTarget::Segment | FaultTarget::Manifest)) => 4,
            _ => 12,
        };
        RequestFault { kind, target: self.target, skip: self.rng.u64(..most), times, effect }
    }

    fn allow(&self) -> Allow {
        match self.illness.effect {
            Effect::Late(_) | Effect::Hang(_) => Allow::None,
            effect if effect.is_lie() => Allow::Damage,
            _ => Allow::Refusals,
        }
    }

    fn is_lasting_lie(&self) -> bool {
        self.illness.kind == Kind::Write && self.illness.effect.is_lie()
    }

    fn detected(&self) -> &'static str {
        match self.target {
            Some(FaultTarget::Log) => "detected_in_log",
            Some(FaultTarget::Segment) => "detected_in_segment",
            _ => "detected_in_manifest",
        }
    }

    /// Opens the content of a disk that lied, and opens it once more with the right bytes restored.
    fn find_out(
        &mut self,
        lane: &mut Lane,
        incarnation: &IncarnationLog,
        ends: &Ends,
        tally: &mut Tally,
    ) -> Check {
        let content = lane.device.content();
        lane.device.set_fault(None);
        lane.rest()?;
        lane.device.set_content(content.clone());
        let strict = acks(incarnation).after_power_cut();
        let bounds = without_unnoticed(&content, incarnation, ends, strict.clone());
        let mut look = self.look(bounds.clone());
        let found = lane.look(look.clone()).map_err(|failure| failure.at("on the disk that has lied"))?;
        let is_missed = found.is_some_and(|found| !strict.contain(found));
        let is_detected = incarnation.refused > 0 || found.is_none();
        let outcome = match (is_missed, is_detected) {
            (true, _) => "undetectable_by_design",
            (false, true) => "detected",
            (false, false) => "harmless",
        };
        tally.counts.add(outcome, 1);
        if is_detected {
            tally.counts.add(self.detected(), 1);
        }
        if found.is_some() {
            return Ok(());
        }
        let mut content = lane.device.content();
        content.heal();
        lane.device.set_content(content);
        // A misdirected write may have been found at one place and been lost at the other before that.
        look.bounds = if self.illness.effect == Effect::Misdirect { bounds } else { strict };
        must_be_whole(lane, look).map_err(|failure| failure.at("with the right bytes back"))
    }

    /// Opens the content of a sick disk: with another fault of the same kind, and after the repair of the disk.
    fn recover(&mut self, lane: &mut Lane, incarnation: &IncarnationLog, tally: &mut Tally) -> Check {
        // A store that can still be closed leaves nothing in its log.
        let crashed = (self.illness.kind == Kind::Read || self.rng.bool()).then(|| lane.device.content());
        let is_mended_late = self.rng.bool();
        if !is_mended_late {
            lane.device.set_fault(None);
        }
        lane.rest()?;
        lane.device.set_fault(None);
        revive(lane, tally)?;
        if let Some(crashed) = crashed {
            lane.device.set_content(crashed);
        }
        let mut look = self.look(acks(incarnation).after_power_cut());
        let fault = self.fault();
        lane.device.set_fault(Some(fault));
        let found =
            lane.look(look.clone()).map_err(|failure| failure.at(format!("{fault:?} in a recovery")))?;
        self.struck += lane.device.struck();
        lane.device.set_fault(None);
        revive(lane, tally)?;
        match found {
            // Everything that an open has shown is durable.
            Some(found) => look.bounds = Bounds::exactly(found),
            None => tally.counts.add("opens_refused", 1),
        }
        must_be_whole(lane, look).map_err(|failure| failure.at("when the disk was whole again"))
    }

    fn look(&mut self, bounds: Bounds) -> Look {
        let config = self.rng.usize(..CONFIGS.len());
        Look { bounds, config, again: false, verify: true, allow: self.allow() }
    }
}

/// Replaces a dead disk with one of the same content.
fn revive(lane: &mut Lane, tally: &mut Tally) -> Check {
    if !lane.device.is_dead() {
        return Ok(());
    }
    tally.counts.add("disks_replaced", 1);
    let content = lane.device.content();
    lane.replace_disk(content)
}

fn must_be_whole(lane: &mut Lane, look: Look) -> Check {
    let found = lane.look(Look { allow: Allow::None, ..look })?;
    found.map(drop).ok_or_else(|| Failure::new("a whole disk was refused"))
}

fn acks(incarnation: &IncarnationLog) -> Acks {
    incarnation.stamps.last().map(|(_, acks)| *acks).unwrap_or_default()
}

/// The least that must be there if the newest group of log or manifest may have been lost unnoticed.
fn without_unnoticed(content: &Content, incarnation: &IncarnationLog, ends: &Ends, strict: Bounds) -> Bounds {
    let mut bounds = strict;
    for target in [FaultTarget::Log, FaultTarget::Manifest] {
        let Some(newest) = content.newest(target) else { continue };
        // The operation that wrote it, and the writes that were acknowledged before that operation.
        let operation = ends.partition_point(|end| *end < newest);
        let begin = operation.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
        let is_lost = content.wrong().any(|wrong| {
            wrong.owner.target == target && wrong.owner.write > begin && wrong.looks_unwritten()
        });
        if !is_lost {
            continue;
        }
        let before: Prefix = operation
            .checked_sub(1)
            .and_then(|before| incarnation.stamps.get(before))
            .map(|(_, acks)| acks.power)
            .unwrap_or_default();
        let least = |first: usize, start: &usize| first.min(*start);
        match target {
            FaultTarget::Manifest => {
                bounds.edits = least(before.edits, bounds.edits.start())..=*bounds.edits.end();
            }
            _ => bounds.commits = least(before.commits, bounds.commits.start())..=*bounds.commits.end(),
        }
    }
    bounds
}
