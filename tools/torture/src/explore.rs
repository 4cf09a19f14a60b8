//! Reopens the possible remains of a crash, and compares them with the allowed states.
//!
//! Invariants: every new image is opened by the production recovery and compared in full. An image that was seen before
//! gets the earlier result, because recovery depends on nothing but the image.

use std::collections::{HashMap, HashSet};

use aio::SimBackend;
use aio::sim::{DiskImage, EventKind};
use fastrand::Rng;
use parking_lot::Mutex;

use crate::check::compare;
use crate::config::CONFIGS;
use crate::model::{Acks, Bounds, Model, Prefix};
use crate::report::{Check, Counts, Failure};
use crate::runner::Settings;
use crate::world::{CrashPoint, Points};

/// Fingerprints of all images of a run, to count distinct states. Sharded, because all threads add to it.
#[derive(Debug)]
pub(crate) struct Distinct([Mutex<HashSet<u64>>; 16]);

impl Distinct {
    pub(crate) fn new() -> Distinct {
        Distinct(std::array::from_fn(|_| Mutex::default()))
    }

    /// Returns whether it is new.
    pub(crate) fn add(&self, fingerprint: u64) -> bool {
        let shard = usize::try_from(fingerprint % 16).unwrap_or(0);
        self.0[shard].lock().insert(fingerprint)
    }

    /// The number of fingerprints.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|shard| shard.lock().len() as u64).sum()
    }
}

/// Which power cuts to try at each point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cuts {
    /// Nothing kept, everything kept, and this many random subsets.
    Random(usize),
    /// Every subset of up to 12 units. Of more units: none, all, each alone, each missing, and 64 random subsets.
    Exhaustive,
}

/// Up to this many unsynced units all subsets are tried.
const MOST_UNITS: usize = 12;
const RANDOM_SUBSETS: usize = 64;

/// One state in this many is also ...
const SECOND_OPEN: usize = 4;
const VERIFY: usize = 16;
const CLEAN_CLOSE: usize = 32;
/// ... crashed again at every event of its recovery.
const RECOVERY: usize = 150;

/// Random power cuts at each point of a recovery.
const RECOVERY_CUTS: usize = 3;

/// Explores crash points.
#[derive(Debug)]
pub(crate) struct Explorer<'a> {
    settings: &'a Settings,
    distinct: &'a Distinct,
    cuts: Cuts,
    rng: Rng,
    seen: HashMap<u64, Prefix>,
    pub(crate) counts: Counts,
}

/// The names of the counts of an exploration.
pub(crate) const STATES: [&str; 8] = [
    "crash_states",
    "distinct",
    "process_crashes",
    "power_cuts",
    "in_recovery",
    "second_opens",
    "verified",
    "seen_before",
];

impl<'a> Explorer<'a> {
    pub(crate) fn new(settings: &'a Settings, distinct: &'a Distinct, cuts: Cuts, seed: u64) -> Explorer<'a> {
        Explorer {
            settings,
            distinct,
            cuts,
            rng: Rng::with_seed(seed),
            seen: HashMap::new(),
            counts: Counts::of(&STATES),
        }
    }

    /// Tries all possible remains of a crash at each of these points, while there is time.
    pub(crate) fn explore(&mut self, points: &[CrashPoint], model: &Model) -> Check {
        for point in points {
            if self.settings.is_over() {
                self.counts.add("unfinished", 1);
                break;
            }
            self.crash_at(point, model, 0).map_err(|failure| failure.at(place(point)))?;
        }
        Ok(())
    }

    fn crash_at(&mut self, point: &CrashPoint, model: &Model, depth: usize) -> Check {
        let image = point.image.process_crash(self.rng.u64(..));
        self.counts.add("process_crashes", 1);
        self.examine(image, point.acks, model, depth).map_err(|failure| failure.at("process crash"))?;
        let acks = point.acks.cut();
        let visit = |explorer: &mut Self, keep: &mut dyn FnMut(usize) -> bool, what: &str| {
            let mut unit = 0;
            let image = point.image.power_cut(&mut |_| {
                unit += 1;
                keep(unit - 1)
            });
            explorer.counts.add("power_cuts", 1);
            explorer.examine(image, acks, model, depth).map_err(|failure| failure.at(what))
        };
        visit(self, &mut |_| false, "power cut that keeps nothing")?;
        let units = point.image.pending_units();
        if units == 0 {
            return Ok(());
        }
        visit(self, &mut |_| true, "power cut that keeps all")?;
        match if depth == 0 { self.cuts } else { Cuts::Random(RECOVERY_CUTS) } {
            Cuts::Exhaustive if units <= MOST_UNITS => {
                for mask in 1..(1_u32 << units) - 1 {
                    visit(
                        self,
                        &mut |unit| mask >> unit & 1 == 1,
                        &format!("power cut that keeps {mask:b}"),
                    )?;
                }
            }
            Cuts::Exhaustive => {
                for one in 0..units {
                    visit(self, &mut |unit| unit == one, &format!("power cut that keeps {one} only"))?;
                    visit(self, &mut |unit| unit != one, &format!("power cut that loses {one} only"))?;
                }
                self.random_cuts(point, model, depth, RANDOM_SUBSETS)?;
            }
            Cuts::Random(count) => self.random_cuts(point, model, depth, count)?,
        }
        Ok(())
    }

    fn random_cuts(&mut self, point: &CrashPoint, model: &Model, depth: usize, count: usize) -> Check {
        for _ in 0..count {
            let seed = self.rng.u64(..);
            let image = point.image.power_cut_random(seed);
            self.counts.add("power_cuts", 1);
            self.examine(image, point.acks.cut(), model, depth)
                .map_err(|failure| failure.at(format!("random power cut {seed:#x}")))?;
        }
        Ok(())
    }

    /// Opens and compares, unless this image was seen before.
    fn examine(&mut self, image: DiskImage, acks: Acks, model: &Model, depth: usize) -> Check {
        let bounds = acks.after_process_crash();
        let fingerprint = image.fingerprint();
        if self.seen.get(&fingerprint).is_some_and(|found| bounds.contain(*found)) {
            self.counts.add("seen_before", 1);
            return Ok(());
        }
        self.counts.add("crash_states", 1);
        if self.distinct.add(fingerprint) {
            self.counts.add("distinct", 1);
        }
        let deeper = depth == 0 && self.one_in(RECOVERY);
        let (found, points) = self.reopen(image, acks, model, deeper)?;
        self.seen.insert(fingerprint, found);
        if depth > 0 {
            self.counts.add("in_recovery", 1);
        }
        for point in points {
            self.crash_at(&point, model, depth + 1)
                .map_err(|failure| failure.at(place(&point)).at("then, in recovery"))?;
        }
        Ok(())
    }

    /// Opens the image. A sample is opened twice, verified, or closed and opened. Returns the crash points of the recovery
    /// if it is watched.
    fn reopen(
        &mut self,
        image: DiskImage,
        acks: Acks,
        model: &Model,
        watch: bool,
    ) -> Check<(Prefix, Vec<CrashPoint>)> {
        let is_settled = image.pending_units() == 0;
        let sim = SimBackend::from_image(image, self.rng.u64(..));
        sim.stop_tracing();
        let points = Points::default();
        if watch {
            let points = Points::clone(&points);
            sim.on_event(move |event, image| {
                let event = Some((event.index, event.kind, event.path.display().to_string()));
                points.lock().push(CrashPoint { image: image.clone(), acks, event });
            });
        }
        let config = &CONFIGS[self.rng.usize(..CONFIGS.len())];
        let db = config.open(&sim).map_err(|error| Failure::new(format!("open with {config:?}: {error}")))?;
        sim.stop_observing();
        let found = compare(&db, model, &acks.after_process_crash())?;
        let mut points = std::mem::take(&mut *points.lock());
        if is_settled {
            // Everything was durable, so a crash in recovery cannot change the result.
            for point in &mut points {
                point.acks = Acks::exactly(found);
            }
        }
        let exactly = Bounds::exactly(found);
        if self.one_in(SECOND_OPEN) {
            self.counts.add("second_opens", 1);
            let again = SimBackend::from_image(sim.snapshot().power_cut_none(), 0);
            let reopened =
                config.open(&again).map_err(|error| Failure::new(format!("second open: {error}")))?;
            compare(&reopened, model, &exactly).map_err(|failure| failure.at("second open"))?;
            again.crash();
        }
        if self.one_in(VERIFY) {
            self.counts.add("verified", 1);
            db.verify().map_err(|error| Failure::new(format!("verify: {error}")))?;
        }
        if self.one_in(CLEAN_CLOSE) {
            db.close().map_err(|error| Failure::new(format!("close: {error}")))?;
            let reopened =
                config.open(&sim).map_err(|error| Failure::new(format!("open after close: {error}")))?;
            compare(&reopened, model, &exactly).map_err(|failure| failure.at("open after close"))?;
        }
        // The machine is dropped with everything on it; a close would only take time.
        sim.crash();
        Ok((found, points))
    }

    fn one_in(&mut self, count: usize) -> bool {
        count > 0 && self.rng.usize(..count) == 0
    }
}

fn place(point: &CrashPoint) -> String {
    match &point.event {
        Some((index, kind, path)) => {
            let kind: &EventKind = kind;
            format!("crash before event {index}, {kind:?} {path}")
        }
        None => "crash at the end".to_owned(),
    }
}
