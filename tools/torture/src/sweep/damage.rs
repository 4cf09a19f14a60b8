//! The damages to the files of a store, and the list of all of them.
//!
//! Invariant: a piece is a bounded number of damages to one file. Threads share the work by pieces.

use std::path::{Path, PathBuf};

use aio::sim::DiskImage;
use fastrand::Rng;

use super::specimen::{Loss, SECTOR_BYTES, Size, Specimen, is_log, is_manifest, is_ring, is_segment};

/// One damage to a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Damage {
    Bit {
        path: PathBuf,
        bit: usize,
    },
    Zeroed {
        path: PathBuf,
        sector: usize,
    },
    /// Changed places with the next one.
    Swapped {
        path: PathBuf,
        sector: usize,
    },
    /// Replaced with an older version of the file.
    Aged {
        path: PathBuf,
        sector: usize,
        version: usize,
    },
    /// Written over another one.
    Duplicated {
        path: PathBuf,
        sector: usize,
        over: usize,
    },
    Truncated {
        path: PathBuf,
        len: usize,
    },
    Missing {
        path: PathBuf,
    },
    Exchanged {
        path: PathBuf,
        other: PathBuf,
    },
    Extended {
        path: PathBuf,
        by: usize,
        fill: u8,
    },
    /// Replaced with the file of another store that was made in the same way.
    Foreign {
        path: PathBuf,
    },
}

impl Damage {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Damage::Bit { .. } => "bits",
            Damage::Zeroed { .. } => "zeroed",
            Damage::Swapped { .. } => "swapped",
            Damage::Aged { .. } => "aged",
            Damage::Duplicated { .. } => "duplicated",
            Damage::Truncated { .. } => "truncated",
            Damage::Missing { .. } => "missing",
            Damage::Exchanged { .. } => "exchanged",
            Damage::Extended { .. } => "extended",
            Damage::Foreign { .. } => "foreign",
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Damage::Bit { path, .. }
            | Damage::Zeroed { path, .. }
            | Damage::Swapped { path, .. }
            | Damage::Aged { path, .. }
            | Damage::Duplicated { path, .. }
            | Damage::Truncated { path, .. }
            | Damage::Missing { path }
            | Damage::Exchanged { path, .. }
            | Damage::Extended { path, .. }
            | Damage::Foreign { path } => path,
        }
    }

    /// Whether the store also verifies itself when every read is right. For flipped bits one image in eight does, because a
    /// verification takes as long as all other checks.
    pub(super) fn is_verified(&self) -> bool {
        !matches!(self, Damage::Bit { bit, .. } if !(bit / 8 + bit).is_multiple_of(8))
    }

    pub(super) fn hits_log(&self) -> bool {
        is_log(self.path()) || is_ring(self.path())
    }

    pub(super) fn hits_segment(&self) -> bool {
        is_segment(self.path())
    }

    pub(super) fn hits_lock(&self) -> bool {
        self.path().ends_with("LOCK")
    }

    /// Which loss may stay unnoticed. Only a sector that is now zero or an older version looks like the effect of a power cut,
    /// for any cause of the damage. The ring has nothing but the checksums of its records.
    pub(super) fn loss(&self, specimen: &Specimen) -> Option<Loss> {
        let path = self.path();
        match self {
            Damage::Missing { .. } | Damage::Truncated { .. } => return None,
            _ if is_ring(path) => return Some(Loss::Ring),
            Damage::Bit { .. } | Damage::Exchanged { .. } | Damage::Foreign { .. } => return None,
            _ => {}
        }
        let old = specimen.files.get(path)?;
        let new = self.bytes(old, specimen)?;
        let older = specimen.older.get(path)?;
        let mut sectors = new.chunks(SECTOR_BYTES).zip(old.chunks(SECTOR_BYTES)).enumerate();
        sectors.find_map(|(sector, (new, old))| {
            let at = sector * SECTOR_BYTES..sector * SECTOR_BYTES + new.len();
            let was = older.iter().any(|bytes| bytes.get(at.clone()) == Some(new));
            let is_lost = new != old && (was || new.iter().all(|byte| *byte == 0));
            is_lost.then(|| specimen.loss_of(path, sector))?
        })
    }

    /// The disk after it; `None` if that is the same disk.
    pub(super) fn apply(&self, specimen: &Specimen) -> Option<DiskImage> {
        let mut image = specimen.image.clone();
        match self {
            Damage::Bit { path, bit } => image.flip_bit(path, *bit as u64),
            Damage::Missing { path } => {
                image.remove_file(path);
            }
            Damage::Exchanged { path, other } => {
                let (one, two) = (specimen.files.get(path)?, specimen.files.get(other)?);
                image.write_file(path, two);
                image.write_file(other, one);
            }
            Damage::Foreign { path } => image.write_file(path, specimen.foreign.get(path)?),
            _ => {
                let old = specimen.files.get(self.path())?;
                let new = self.bytes(old, specimen)?;
                if new == *old {
                    return None;
                }
                image.write_file(self.path(), &new);
            }
        }
        Some(image)
    }

    /// The damaged bytes of the file.
    fn bytes(&self, old: &[u8], specimen: &Specimen) -> Option<Vec<u8>> {
        let mut new = old.to_vec();
        let at = |sector: usize| sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        match self {
            Damage::Zeroed { sector, .. } => new.get_mut(at(*sector))?.fill(0),
            Damage::Swapped { sector, .. } => {
                let next = old.get(at(sector + 1))?;
                new.get_mut(at(*sector))?.copy_from_slice(next);
                new.get_mut(at(sector + 1))?.copy_from_slice(old.get(at(*sector))?);
            }
            Damage::Aged { path, sector, version } => {
                let older = specimen.older.get(path)?.get(*version)?;
                new.get_mut(at(*sector))?.copy_from_slice(older.get(at(*sector))?);
            }
            Damage::Duplicated { sector, over, .. } => {
                new.get_mut(at(*over))?.copy_from_slice(old.get(at(*sector))?);
            }
            Damage::Truncated { len, .. } => new.truncate(*len),
            Damage::Extended { by, fill, .. } => new.resize(old.len() + by, *fill),
            _ => return None,
        }
        Some(new)
    }
}

/// A part of the list of all damages.
#[derive(Clone, Debug)]
enum Piece {
    /// Bits of a sector: all, or one of each byte; of these every `step`-th.
    Bits { path: PathBuf, sector: usize, seed: Option<u64>, step: usize },
    /// The sectors of a file, from a first one on.
    Sectors { path: PathBuf, from: usize, seed: u64 },
    /// The whole file.
    Whole { path: PathBuf },
}

/// Sectors of one piece.
const SECTORS: usize = 16;

/// Older versions of a sector to try.
const VERSIONS: usize = 3;

/// All damages.
#[derive(Debug)]
pub(super) struct Pieces(Vec<Piece>);

impl Pieces {
    pub(super) fn of(specimen: &Specimen, size: Size, (seed, step): (u64, usize)) -> Pieces {
        let mut pieces = Vec::new();
        for (path, bytes) in &specimen.files {
            if size == Size::Cut && !(is_log(path) || is_manifest(path)) {
                // The same as in the small store.
                continue;
            }
            pieces.push(Piece::Whole { path: path.clone() });
            let sectors = bytes.len().div_ceil(SECTOR_BYTES);
            for sector in 0..sectors {
                let seed = (size != Size::Small).then_some(seed ^ sector as u64);
                pieces.push(Piece::Bits { path: path.clone(), sector, seed, step });
            }
            for from in (0..sectors).step_by(SECTORS) {
                pieces.push(Piece::Sectors { path: path.clone(), from, seed: seed ^ from as u64 });
            }
        }
        Pieces(pieces)
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether this piece flips bits.
    pub(super) fn is_bits(&self, number: u64) -> bool {
        let piece = usize::try_from(number).ok().and_then(|number| self.0.get(number));
        matches!(piece, Some(Piece::Bits { .. }))
    }

    pub(super) fn damages(&self, specimen: &Specimen, number: u64) -> Vec<Damage> {
        let piece = usize::try_from(number).ok().and_then(|number| self.0.get(number));
        match piece {
            Some(Piece::Bits { path, sector, seed, step }) => {
                let all = bits(specimen, path, *sector, *seed);
                all.into_iter().skip(*sector % *step).step_by(*step).collect()
            }
            Some(Piece::Sectors { path, from, seed }) => sectors(specimen, path, *from, *seed),
            Some(Piece::Whole { path }) => whole(specimen, path),
            None => Vec::new(),
        }
    }
}

fn bits(specimen: &Specimen, path: &Path, sector: usize, seed: Option<u64>) -> Vec<Damage> {
    let len = specimen.files.get(path).map_or(0, Vec::len);
    let bytes = sector * SECTOR_BYTES..len.min((sector + 1) * SECTOR_BYTES);
    let damage = |bit| Damage::Bit { path: path.to_owned(), bit };
    match seed {
        None => (bytes.start * 8..bytes.end * 8).map(damage).collect(),
        Some(seed) => {
            let mut rng = Rng::with_seed(seed);
            bytes.map(|byte| damage(byte * 8 + rng.usize(..8))).collect()
        }
    }
}

fn sectors(specimen: &Specimen, path: &Path, from: usize, seed: u64) -> Vec<Damage> {
    let all = specimen.files.get(path).map_or(0, |bytes| bytes.len() / SECTOR_BYTES);
    let versions = specimen.older.get(path).map_or(0, |versions| versions.len().min(VERSIONS));
    let mut rng = Rng::with_seed(seed);
    let mut damages = Vec::new();
    let own = || path.to_owned();
    for sector in from..all.min(from + SECTORS) {
        damages.push(Damage::Zeroed { path: own(), sector });
        damages.push(Damage::Swapped { path: own(), sector });
        damages.extend((0..versions).map(|version| Damage::Aged { path: own(), sector, version }));
        damages.push(Damage::Duplicated { path: own(), sector, over: rng.usize(..all) });
        damages.push(Damage::Truncated { path: own(), len: sector * SECTOR_BYTES });
    }
    damages
}

fn whole(specimen: &Specimen, path: &Path) -> Vec<Damage> {
    let kind = |path: &Path| path.extension().map(ToOwned::to_owned);
    let name = |path: &Path| path.parent().map(ToOwned::to_owned);
    let mut damages = vec![Damage::Missing { path: path.to_owned() }];
    if specimen.foreign.contains_key(path) {
        damages.push(Damage::Foreign { path: path.to_owned() });
    }
    for by in [1, 512, 4096, 5000] {
        damages.extend([0, 0xa5].map(|fill| Damage::Extended { path: path.to_owned(), by, fill }));
    }
    for other in specimen.files.keys() {
        if other > &path.to_owned()
            && kind(other).is_some()
            && kind(other) == kind(path)
            && name(other) == name(path)
        {
            damages.push(Damage::Exchanged { path: path.to_owned(), other: other.clone() });
        }
    }
    damages
}
