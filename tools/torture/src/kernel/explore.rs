//! Rebuilds the disk states that a power cut could have left, and has each checked.
//!
//! A cut is a position in the log of the disk. Everything before the last flush is there. Of the writes between it and the
//! cut there is nothing, everything, some whole writes, some sectors, or all with the last one torn. Only the superblock
//! is never torn: no file system mounts without it.
//!
//! Invariant: a state must hold everything that was acknowledged as durable before the cut, and nothing that was submitted
//! after it. A state that was seen before gets the earlier result.

use std::collections::HashMap;
use std::fmt;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;

use fastrand::Rng;

use super::image::{Event, Image, SECTOR_BYTES};
use super::lane::{IncarnationLog, Lane};
use super::protocol::{Allow, Fs, Look};
use crate::config::CONFIGS;
use crate::explore::Distinct;
use crate::model::{Bounds, Prefix};
use crate::report::{Check, Counts, Failure};
use crate::runner::Settings;

/// Cuts tried in each incarnation, drawn anew for each.
const CUTS: usize = 24;

/// One in this many states is opened a second time, or verified.
const AGAIN: usize = 5;
const VERIFY: usize = 16;

/// The names of the counts of an exploration.
pub(super) const COUNTS: [&str; 12] = [
    "states",
    "distinct",
    "seen_before",
    "kept_nothing",
    "kept_all",
    "kept_writes",
    "kept_sectors",
    "torn",
    "second_opens",
    "verified",
    "device_writes",
    "device_flushes",
];

/// Which of the writes after the last flush a cut leaves.
#[derive(Clone, Copy, Debug)]
enum Keep {
    Nothing,
    All,
    /// Each write whole or not at all.
    Writes(u64),
    /// Each sector by itself.
    Sectors(u64),
    /// All, but only the first sectors of the last write.
    Torn(usize),
}

/// Explores the disk of a lane.
pub(super) struct KernelExplorer<'a> {
    settings: &'a Settings,
    distinct: &'a Distinct,
    /// Stop at this many different states.
    asked: u64,
    /// Where the image of a failure goes.
    keep: Option<&'a Path>,
    case: u64,
    fs: Fs,
    rng: Rng,
    seen: HashMap<u64, Prefix>,
    pub(super) counts: Counts,
}

/// A state on which the next incarnation can continue.
pub(super) struct Left {
    pub(super) image: Image,
    pub(super) bounds: Bounds,
}

impl<'a> KernelExplorer<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        (distinct, asked): (&'a Distinct, u64),
        keep: Option<&'a Path>,
        (fs, case): (Fs, u64),
    ) -> KernelExplorer<'a> {
        KernelExplorer {
            settings,
            distinct,
            asked,
            keep,
            case,
            fs,
            rng: Rng::with_seed(settings.case_seed(case)),
            seen: HashMap::new(),
            counts: Counts::of(&COUNTS),
        }
    }

    /// Tries cuts all over an incarnation while there is time. Returns one of the states for the next incarnation.
    pub(super) fn explore(&mut self, lane: &mut Lane, incarnation: &IncarnationLog) -> Check<Option<Left>> {
        self.seen.clear();
        let flushes = incarnation.events.iter().filter(|event| matches!(event, Event::Flush)).count();
        self.counts.add("device_flushes", flushes as u64);
        self.counts.add("device_writes", (incarnation.events.len() - flushes) as u64);
        let mut cuts: Vec<usize> = (0..CUTS).map(|_| self.rng.usize(..=incarnation.events.len())).collect();
        cuts.sort_unstable();
        let mut chosen = None;
        let mut durable = (incarnation.base.clone(), 0);
        for (nth, cut) in cuts.into_iter().enumerate() {
            if self.settings.is_over() {
                self.counts.add("unfinished", 1);
                break;
            }
            if self.distinct.len() >= self.asked {
                break;
            }
            advance(&mut durable, &incarnation.events, cut);
            let (base, settled) = &durable;
            let bounds = bounds_at(incarnation, cut);
            for keep in self.ways(&incarnation.events[*settled..cut]) {
                let mut image = base.clone();
                apply(&mut image, &incarnation.events[*settled..cut], keep, &self.fs.superblock());
                self.examine(lane, &image, &bounds, keep).map_err(|what| {
                    let place =
                        format!("power cut before event {cut} of {}, {keep}", incarnation.events.len());
                    self.fail(&place, &what, &image, &bounds)
                })?;
                if self.rng.usize(..=nth) == 0 {
                    chosen = Some(Left { image, bounds: bounds.clone() });
                }
            }
        }
        Ok(chosen)
    }

    /// Which of these writes to keep.
    fn ways(&mut self, tail: &[Event]) -> Vec<Keep> {
        let mut ways = vec![Keep::Nothing];
        let Some(Event::Write { data, .. }) = tail.last() else { return ways };
        ways.push(Keep::All);
        let sectors = data.len() / SECTOR_BYTES;
        if sectors > 1 {
            ways.push(Keep::Torn(self.rng.usize(1..sectors)));
        }
        ways.push(Keep::Sectors(self.rng.u64(..)));
        if tail.len() > 1 {
            ways.push(Keep::Writes(self.rng.u64(..)));
        }
        ways
    }

    /// Has a state checked, unless it was seen before. The error names the mistake.
    fn examine(&mut self, lane: &mut Lane, image: &Image, bounds: &Bounds, keep: Keep) -> Result<(), String> {
        let fingerprint = image.fingerprint();
        if self.seen.get(&fingerprint).is_some_and(|found| bounds.contain(*found)) {
            self.counts.add("seen_before", 1);
            return Ok(());
        }
        self.counts.add("states", 1);
        self.counts.add(keep.name(), 1);
        if self.distinct.add(fingerprint) {
            self.counts.add("distinct", 1);
        }
        let look = Look {
            bounds: bounds.clone(),
            config: self.rng.usize(..CONFIGS.len()),
            again: self.rng.usize(..AGAIN) == 0,
            verify: self.rng.usize(..VERIFY) == 0,
            allow: Allow::None,
        };
        self.counts.add("second_opens", u64::from(look.again));
        self.counts.add("verified", u64::from(look.verify));
        lane.device.set_image(image.clone());
        if let Some(found) = lane.look(look).map_err(|failure| failure.to_string())? {
            self.seen.insert(fingerprint, found);
        }
        Ok(())
    }

    /// Reports a failure, and keeps the state if there is a place for it.
    fn fail(&self, place: &str, what: &str, image: &Image, bounds: &Bounds) -> Failure {
        let failure = Failure::new(what).at(place);
        let Some(directory) = self.keep else {
            return failure.at("(with --keep DIR the disk is kept)");
        };
        let name = format!("case-{}-seed-{}", self.case, self.settings.seed);
        let path = directory.join(format!("{name}.img"));
        let text = format!("{place}\nallowed: {bounds:?}\n{what}\n");
        match write_sparse(image, &path)
            .and_then(|()| std::fs::write(directory.join(format!("{name}.txt")), text))
        {
            Ok(()) => failure.at(format!("(the disk is kept in {})", path.display())),
            Err(error) => failure.at(format!("(cannot keep the disk in {}: {error})", path.display())),
        }
    }
}

/// Applies the writes that the last flush before the cut made durable.
fn advance(durable: &mut (Image, usize), events: &[Event], cut: usize) {
    let (image, done) = durable;
    let flush = events[*done..cut].iter().rposition(|event| matches!(event, Event::Flush));
    if let Some(flush) = flush {
        apply(image, &events[*done..*done + flush], Keep::All, &(0..0));
        *done += flush + 1;
    }
}

/// Applies the writes that a cut keeps. A write that touches `whole` is not torn.
fn apply(image: &mut Image, tail: &[Event], keep: Keep, whole: &Range<u64>) {
    let mut rng = Rng::with_seed(match keep {
        Keep::Writes(seed) | Keep::Sectors(seed) => seed,
        _ => 0,
    });
    for (nth, event) in tail.iter().enumerate() {
        let Event::Write { offset, data } = event else { continue };
        let is_whole = *offset < whole.end && offset + data.len() as u64 > whole.start;
        let unit = if is_whole { data.len() } else { SECTOR_BYTES };
        match keep {
            Keep::Nothing => {}
            Keep::Writes(_) if rng.bool() => {}
            Keep::Sectors(_) => {
                for (number, sector) in data.chunks(unit).enumerate() {
                    if rng.bool() {
                        image.write(offset + (number * unit) as u64, sector);
                    }
                }
            }
            Keep::Torn(sectors) if nth + 1 == tail.len() && !is_whole => {
                image.write(*offset, &data[..data.len().min(sectors * unit)]);
            }
            Keep::All | Keep::Writes(_) | Keep::Torn(_) => image.write(*offset, data),
        }
    }
}

/// The states that may be found after a cut here. Before the store was open it is the finding of its recovery, or nothing.
pub(super) fn bounds_at(incarnation: &IncarnationLog, cut: usize) -> Bounds {
    let stamps = &incarnation.stamps;
    let ended = stamps.partition_point(|(position, _)| *position <= cut);
    let begun = stamps.partition_point(|(position, _)| *position < cut);
    let first = stamps.first().map(|(_, acks)| acks.power).unwrap_or_default();
    let least = ended.checked_sub(1).map_or(first, |last| stamps[last].1.power);
    let latest = stamps.get(begun).or(stamps.last());
    let most = latest.map(|(_, acks)| acks.submitted).unwrap_or_default();
    Bounds { commits: least.commits..=most.commits, edits: least.edits..=most.edits }
}

fn write_sparse(image: &Image, path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.set_len(image.len())?;
    for (offset, page) in image.pages() {
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(page)?;
    }
    Ok(())
}

impl Keep {
    fn name(self) -> &'static str {
        match self {
            Keep::Nothing => "kept_nothing",
            Keep::All => "kept_all",
            Keep::Writes(_) => "kept_writes",
            Keep::Sectors(_) => "kept_sectors",
            Keep::Torn(_) => "torn",
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keep::Nothing => f.write_str("keeping nothing after the last flush"),
            Keep::All => f.write_str("keeping all"),
            Keep::Writes(seed) => write!(f, "keeping writes by {seed:#x}"),
            Keep::Sectors(seed) => write!(f, "keeping sectors by {seed:#x}"),
            Keep::Torn(sectors) => write!(f, "keeping all, of the last write {sectors} sectors"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Acks;

    fn write(offset: u64, byte: u8) -> Event {
        Event::Write { offset, data: vec![byte; 1024].into() }
    }

    fn sectors(image: &Image) -> [u8; 4] {
        [0, 512, 1024, 1536].map(|offset| {
            let mut byte = [0];
            image.read(offset, &mut byte);
            byte[0]
        })
    }

    #[test]
    fn a_flush_makes_everything_before_it_durable_and_nothing_after_it() {
        let events = [write(0, 1), Event::Flush, write(512, 2), Event::Flush, write(0, 3), write(1024, 4)];
        let mut durable = (Image::new(4096), 0);
        for (cut, expected, flushed) in [(1, [0; 4], 0), (2, [1, 1, 0, 0], 2), (6, [1, 2, 2, 0], 4)] {
            advance(&mut durable, &events, cut);
            assert_eq!((sectors(&durable.0), durable.1), (expected, flushed), "{cut}");
        }
        let left = |keep, whole: Range<u64>| {
            let mut image = durable.0.clone();
            apply(&mut image, &events[4..], keep, &whole);
            sectors(&image)
        };
        assert_eq!(left(Keep::Nothing, 0..0), [1, 2, 2, 0]);
        assert_eq!(left(Keep::All, 0..0), [3, 3, 4, 4]);
        assert_eq!(left(Keep::Torn(1), 0..0), [3, 3, 4, 0]);
        let seen: std::collections::BTreeSet<_> =
            (0..200).map(|seed| left(Keep::Sectors(seed), 0..0)).collect();
        assert_eq!(seen.len(), 16);
        let seen: std::collections::BTreeSet<_> =
            (0..200).map(|seed| left(Keep::Writes(seed), 0..0)).collect();
        assert_eq!(seen.len(), 4);
        let seen: std::collections::BTreeSet<_> =
            (0..200).map(|seed| left(Keep::Sectors(seed), 0..4096)).collect();
        assert_eq!(seen.len(), 4);
        assert_eq!(left(Keep::Torn(1), 1500..1501), [3, 3, 4, 4]);
    }

    #[test]
    fn writes_acknowledged_before_a_cut_are_required_and_none_after_it() {
        let acks = |power, submitted| Acks {
            process: Prefix { commits: submitted, edits: 0 },
            power: Prefix { commits: power, edits: 0 },
            submitted: Prefix { commits: submitted, edits: 0 },
        };
        let incarnation = IncarnationLog {
            base: Image::new(0),
            events: Vec::new(),
            stamps: vec![(10, acks(0, 0)), (20, acks(1, 1)), (20, acks(1, 2)), (30, acks(3, 3))],
            refused: 0,
            wrong: None,
        };
        for (cut, expected) in [(0, 0..=0), (10, 0..=0), (11, 0..=1), (20, 1..=1), (21, 1..=3), (40, 3..=3)] {
            let bounds = bounds_at(&incarnation, cut);
            assert_eq!(bounds.commits, expected, "{cut}");
        }
    }
}
