//! `sweep`: damages every file of a store that has every structure, opens it, and reads everything.
//!
//! Invariant: an answer is right, or it is an error that names a file. A missing key is a wrong answer. There is one
//! exception. A sector of the newest group of the log or the manifest that is lost (zero, or an older version) looks like a
//! write that a power cut tore; and the bytes of the ring beyond the log have no promise against a power cut. The store
//! must then still hold a prefix that lacks at most that group, or the records that only the ring had. Such images are
//! counted as `undetectable_by_design`. A store whose log is refused is repaired, and then holds a prefix of its history.

mod damage;
mod specimen;

use std::path::Path;

use aio::SimBackend;
use aio::sim::DiskImage;
use esker::{Error, LogDamage};

use crate::check::compare;
use crate::model::Bounds;
use crate::report::{Check, Counts, Failure, Tally};
use crate::runner::Settings;
use damage::{Damage, Pieces};
use specimen::{Loss, Size, Specimen};

/// The result of a damaged image. A wrong answer has no name here: it ends the run.
const CATEGORIES: [&str; 4] = ["detected", "harmless", "recovered", "undetectable_by_design"];

/// A store and all damages to it, in pieces.
#[derive(Debug)]
pub(crate) struct Sweep {
    specimen: Specimen,
    pieces: Pieces,
    seed: u64,
}

impl Sweep {
    /// Builds all stores. Flips only every `step`-th bit (at least 1).
    pub(crate) fn all(seed: u64, step: usize) -> Check<Vec<Sweep>> {
        let new = |size| {
            let specimen = Specimen::new(seed, size).map_err(|failure| failure.at(format!("{size:?}")))?;
            let pieces = Pieces::of(&specimen, size, (seed, step));
            Ok(Sweep { specimen, pieces, seed })
        };
        [Size::Small, Size::Cut, Size::Large].into_iter().map(new).collect()
    }

    /// The numbers of all pieces in an order drawn from the seed. Pieces come from the stores in turn, and flipped bits
    /// alternate with the other damages, so that the few pieces of a kind are not lost among the many of another.
    pub(crate) fn order(sweeps: &[Sweep], settings: &Settings) -> Vec<u64> {
        let mut first = 0;
        let mut order: Vec<(usize, u64)> = Vec::new();
        for sweep in sweeps {
            let shuffled = settings.shuffled(sweep.pieces());
            let (bits, rest): (Vec<u64>, Vec<u64>) =
                shuffled.into_iter().partition(|number| sweep.pieces.is_bits(*number));
            for numbers in [bits, rest] {
                order.extend(numbers.into_iter().map(|number| first + number).enumerate());
            }
            first += sweep.pieces();
        }
        order.sort_unstable();
        order.into_iter().map(|(_, number)| number).collect()
    }

    /// The number of pieces.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces.len()
    }

    /// Bytes that are not zero, in all files.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.specimen.content_bytes()
    }

    /// Tries all damages of a piece.
    pub(crate) fn piece(&self, number: u64) -> Check<Tally> {
        let mut counts = Counts::of(&CATEGORIES);
        for damage in self.pieces.damages(&self.specimen, number) {
            let Some(image) = damage.apply(&self.specimen) else { continue };
            let category =
                self.category(&image, &damage).map_err(|failure| failure.at(format!("{damage:?}")))?;
            counts.add("images", 1);
            counts.add(damage.kind(), 1);
            counts.add(category, 1);
        }
        Ok(Tally { counts, ..Tally::default() })
    }

    /// A store whose log was refused opens after a repair, with a prefix of its history. The announced loss is not smaller than
    /// the real one. But files that have only changed their names are not cut.
    fn repair(&self, image: &DiskImage, damage: &Damage) -> Check {
        let specimen = &self.specimen;
        let sim = SimBackend::from_image(image.clone(), self.seed);
        sim.crash_after_calls(1_000_000);
        let repaired = specimen.repair(&sim);
        if let (Damage::Exchanged { .. }, Err(error)) = (damage, &repaired)
            && !error.is_repairable()
        {
            must_be_found(error)?;
            let is_unchanged = sim.snapshot().fingerprint() == image.fingerprint();
            return if is_unchanged {
                Ok(())
            } else {
                Err(Failure::new("a refused repair has changed something"))
            };
        }
        let Some(LogDamage { loss, .. }) = repaired?.log else {
            return Err(Failure::new("found nothing where an open found damage"));
        };
        let end = specimen.end();
        let bounds = Bounds { commits: 0..=end.commits, edits: end.edits..=end.edits };
        let db = specimen.open(&sim)?;
        let found = compare(&db, &specimen.model, &bounds);
        sim.crash();
        let [durable, all] = specimen.lost_bytes(found?.commits);
        if durable > loss.at_most_durable_bytes || all > loss.at_most_bytes {
            return Err(Failure::new(format!(
                "lost {durable} durable bytes, {all} in all, announced {loss:?}"
            )));
        }
        Ok(())
    }

    /// The damage of a segment is named, and nothing is changed.
    fn find(&self, image: &DiskImage, damage: &Damage) -> Check {
        let sim = SimBackend::from_image(image.clone(), self.seed);
        sim.crash_after_calls(1_000_000);
        let found = self.specimen.find_damage(&sim)?;
        let is_hit = |error: &Error| matches!(error, Error::Corrupt { file, .. } if file == damage.path());
        if !found.segments.iter().any(is_hit) {
            return Err(Failure::new(format!("a repair does not name the segment: {found:?}")));
        }
        if !damage.hits_lock() && sim.snapshot().fingerprint() != image.fingerprint() {
            return Err(Failure::new("the search for damage has changed something"));
        }
        Ok(())
    }

    fn category(&self, image: &DiskImage, damage: &Damage) -> Check<&'static str> {
        let specimen = &self.specimen;
        let sim = SimBackend::from_image(image.clone(), self.seed);
        // An undamaged store needs far less.
        sim.crash_after_calls(1_000_000);
        let db = match specimen.open(&sim) {
            Ok(db) => db,
            Err(error) => {
                must_be_found(&error).map_err(|failure| failure.at("open"))?;
                if !damage.hits_lock() && sim.snapshot().fingerprint() != image.fingerprint() {
                    return Err(Failure::new("an open that was refused has changed something"));
                }
                if damage.hits_log() {
                    self.repair(image, damage).map_err(|failure| failure.at("repair"))?;
                } else if damage.hits_segment() {
                    self.find(image, damage).map_err(|failure| failure.at("find damage"))?;
                }
                return Ok("detected");
            }
        };
        let loss = damage.loss(specimen);
        let bounds = specimen.bounds(loss);
        let found = compare(&db, &specimen.model, &bounds);
        let verified = (found.is_ok() && damage.is_verified()).then(|| db.verify());
        sim.crash();
        match (found, verified) {
            (Err(failure), _) => {
                let Some(error) = failure.refused() else { return Err(failure.at("SILENT")) };
                must_be_found(error)?;
                Ok("detected")
            }
            (Ok(_), Some(Err(error))) => {
                must_be_found(&error).map_err(|failure| failure.at("verify"))?;
                if damage.hits_segment() {
                    self.find(image, damage).map_err(|failure| failure.at("find damage"))?;
                }
                Ok("detected")
            }
            (Ok(found), _) if found != specimen.end() => Ok("undetectable_by_design"),
            (Ok(_), _) => match loss {
                // A group was lost, and the ring had its records.
                Some(Loss::LogGroup | Loss::ManifestGroup) => Ok("recovered"),
                Some(Loss::Ring) | None => Ok("harmless"),
            },
        }
    }
}

/// Damage is reported as such, with the file.
fn must_be_found(error: &Error) -> Check {
    let file = match error {
        Error::Corrupt { file, .. } => file,
        Error::Format { path, .. } => path,
        other => return Err(Failure::new(format!("neither right nor Corrupt: {other:?}"))),
    };
    let is_named = file.starts_with(crate::config::ROOT) && file != Path::new(crate::config::ROOT);
    if is_named { Ok(()) } else { Err(Failure::new(format!("names no file: {error:?}"))) }
}
