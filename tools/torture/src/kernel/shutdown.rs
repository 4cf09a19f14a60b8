//! File systems that end below a running store.
//!
//! ext4 and XFS are shut down without a flush of their journal, at a random moment of an operation. Every later write must
//! be refused, and after the next mount everything acknowledged is there. btrfs has no shutdown: its disk is copied
//! repeatedly while the store writes, and each copy is opened.

use fastrand::Rng;

use super::explore::bounds_at;
use super::lane::Lane;
use super::protocol::{Allow, Fs, Look, Play};
use crate::config::CONFIGS;
use crate::model::Bounds;
use crate::report::{Check, Failure, Tally};

/// The names of the counts.
pub(super) const COUNTS: [&str; 3] = ["shutdowns", KILLED, "copies_opened"];

/// Processes that the kernel killed at a store into the mapped ring, after the file system had ended and before the store had
/// heard of it: one in a thousand. Nothing protects a mapped file from that.
pub(super) const KILLED: &str = "killed_by_a_map";

/// More operations than any shutdown permits.
const MANY: usize = 2000;

/// The most operations before a shutdown, and of an incarnation that is copied.
const OPS: usize = 30;

/// The most copies of an incarnation.
const COPIES: usize = 8;

/// Runs one shutdown, or some copies of one incarnation.
pub(super) fn end(lane: &mut Lane, fs: Fs, seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    lane.clear();
    if fs == Fs::Btrfs { copy(lane, &mut rng) } else { shut_down(lane, &mut rng) }
}

fn play(rng: &mut Rng, allow: Allow, shutdown: Option<usize>) -> Play {
    Play {
        seed: rng.u64(..),
        ops: if shutdown.is_some() { MANY } else { OPS },
        config: rng.usize(..CONFIGS.len()),
        threads: rng.bool(),
        bounds: None,
        stays: true,
        allow,
        shutdown,
    }
}

fn look(rng: &mut Rng, bounds: Bounds) -> Look {
    Look { bounds, config: rng.usize(..CONFIGS.len()), again: rng.bool(), verify: true, allow: Allow::None }
}

fn shut_down(lane: &mut Lane, rng: &mut Rng) -> Check<Tally> {
    let at = rng.usize(..OPS);
    let play = play(rng, Allow::Refusals, Some(at));
    let mut tally = Tally::default();
    let incarnation = match lane.live(play, &mut |_, _| ()) {
        Err(_) if lane.is_killed_by_a_map() => {
            *lane = lane.another()?;
            tally.counts.add(KILLED, 1);
            return Ok(tally);
        }
        lived => lived?,
    };
    let place = format!("shut down after operation {at}");
    if let Some(wrong) = incarnation.wrong {
        return Err(Failure::new(wrong).at(place));
    }
    lane.rest().map_err(|failure| failure.at(&place))?;
    let acks = incarnation.stamps.last().map(|(_, acks)| *acks).unwrap_or_default();
    lane.look(look(rng, acks.after_power_cut())).map_err(|failure| failure.at(place))?;
    tally.counts.add("shutdowns", 1);
    Ok(tally)
}

fn copy(lane: &mut Lane, rng: &mut Rng) -> Check<Tally> {
    let play = play(rng, Allow::None, None);
    lane.device.copy_every(rng.usize(5..60));
    let incarnation = lane.play(play);
    lane.device.copy_every(0);
    let (incarnation, mut copies) = (incarnation?, lane.device.take_copies());
    if let Some(wrong) = incarnation.wrong {
        return Err(Failure::new(wrong).at("while the disk was copied"));
    }
    rng.shuffle(&mut copies);
    let mut tally = Tally::default();
    for (position, image) in copies.into_iter().filter(|copy| copy.0 <= incarnation.events.len()).take(COPIES)
    {
        lane.device.set_image(image);
        let place = || format!("a copy after {position} events of {}", incarnation.events.len());
        lane.look(look(rng, bounds_at(&incarnation, position))).map_err(|failure| failure.at(place()))?;
        tally.counts.add("copies_opened", 1);
    }
    Ok(tally)
}
