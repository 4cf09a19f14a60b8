//! Zones: for every key, the pieces that may hold it, newest first.
//!
//! ```text
//!   stamp 96   | a ------- f |                 | p -- s |
//!   stamp 64        | c ------------------ m |
//!   bottom     | a ---- e || f ---- k || m ------------ z |
//!   zones      '----------''---------''-------------------
//!                96 64 0     96 64 0    96 64 0   <- stamps of each zone, newest first
//! ```
//!
//! A zone reaches from the lower bound of one piece of the bottom run to that of the next. The first begins before every
//! key, the last is open, and without a bottom run there is one. A piece stands in every zone that it reaches into. The
//! pieces of one run in a zone are a *slice*: mostly one piece.
//!
//! Zones are derived from the levels of the version and never stored. They never change; an install derives new ones.
//! Lists of pieces are shared with those before in chunks, as far as they are equal.
//!
//! Cost of a point read: one search among numbers, then one look at each slice of the zone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::key::{Seq, key_head};
use crate::base::range::KeyBounds;
use crate::manifest::levels::{BOTTOM, Levels, PieceMeta, RunMeta};
use crate::segment::Segment;
use crate::tree::piece::{Piece, next_holding};
use crate::tree::run::Run;

/// Zones whose lists are shared together.
const CHUNK_ZONES: usize = 64;

/// The pieces of one zone, newest first; those of one stamp rise by key.
pub(crate) type Zone = Arc<[Piece]>;

/// All zones of a keyspace.
#[derive(Clone, Debug)]
pub(crate) struct Zones {
    /// [`key_head`] of each of `keys`.
    heads: Arc<[u64]>,
    /// Where each zone but the first begins.
    keys: Arc<[Bytes]>,
    chunks: Box<[Arc<[Zone]>]>,
}

/// Where a piece stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PieceAt {
    zone: usize,
    piece: usize,
}

impl Default for Zones {
    fn default() -> Zones {
        let only: Zone = Arc::new([]);
        Zones { heads: Arc::new([]), keys: Arc::new([]), chunks: Box::new([Arc::new([only])]) }
    }
}

impl Zones {
    /// Derives the zones of `levels`. Their segments are open in `old` or stand in `opened`.
    ///
    /// # Panics
    /// A segment stands in neither.
    pub(crate) fn derive(levels: &Levels, opened: Vec<Arc<Segment>>, old: &Zones) -> Zones {
        let known = old.pieces().map(|piece| Arc::clone(&piece.segment)).chain(opened);
        let open: BTreeMap<u64, Arc<Segment>> = known.map(|segment| (segment.meta().id, segment)).collect();
        let runs: Vec<Vec<Piece>> = levels.runs().iter().map(|run| open_run(run, &open)).collect();
        let bottom = levels.runs().last().filter(|run| run.stamp == BOTTOM);
        let lower = |piece: &PieceMeta| Bytes::copy_from_slice(piece.lower());
        let keys: Arc<[Bytes]> = bottom.into_iter().flat_map(|run| &run.pieces).skip(1).map(lower).collect();
        let zone = |nth: usize| -> Zone {
            let from = nth.checked_sub(1).map_or(&b""[..], |before| &keys[before]);
            let upto = keys.get(nth).map(Bytes::as_ref);
            runs.iter().flat_map(|run| &run[reached(run, from, upto)]).cloned().collect()
        };
        let chunks = (0..=keys.len()).step_by(CHUNK_ZONES).map(|first| {
            let zones: Vec<Zone> = (first..(first + CHUNK_ZONES).min(keys.len() + 1)).map(zone).collect();
            let before = old.chunks.get(first / CHUNK_ZONES).filter(|before| are_same(before, &zones));
            before.map_or_else(|| zones.as_slice().into(), Arc::clone)
        });
        Zones { heads: keys.iter().map(|key| key_head(key)).collect(), chunks: chunks.collect(), keys }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len() + 1
    }

    #[inline]
    pub(crate) fn zone(&self, nth: usize) -> &Zone {
        &self.chunks[nth / CHUNK_ZONES][nth % CHUNK_ZONES]
    }

    /// Where zone `nth` begins.
    pub(crate) fn begin(&self, nth: usize) -> &[u8] {
        nth.checked_sub(1).map_or(&[], |before| &self.keys[before])
    }

    /// The zone of `key`.
    #[inline]
    pub(crate) fn zone_of(&self, key: &[u8]) -> usize {
        if self.heads.is_empty() {
            return 0;
        }
        let head = key_head(key);
        let at = self.heads.partition_point(|&other| other < head);
        if self.heads.get(at) == Some(&head) { self.zone_from(at, key) } else { at }
    }

    /// The search of [`Zones::zone_of`] where heads do not decide; at least `at` zones begin below `key`.
    fn zone_from(&self, at: usize, key: &[u8]) -> usize {
        at + self.keys[at..].partition_point(|begin| begin.as_ref() <= key)
    }

    /// The zone in which the keys below `key` end; `None`: all keys.
    pub(crate) fn zone_before(&self, key: Option<&[u8]>) -> usize {
        key.map_or(self.keys.len(), |key| self.keys.partition_point(|begin| begin.as_ref() < key))
    }

    /// Before every piece that may hold `key`.
    #[inline]
    pub(crate) fn start(&self, key: &[u8]) -> PieceAt {
        PieceAt { zone: self.zone_of(key), piece: 0 }
    }

    /// The newest piece, at `at` or behind it, with `key` inside its bounds.
    #[inline]
    pub(crate) fn find(&self, at: PieceAt, key: &[u8]) -> Option<(PieceAt, &Piece)> {
        let (piece, found) = next_holding(self.zone(at.zone), at.piece, key)?;
        Some((PieceAt { piece, ..at }, found))
    }

    pub(crate) fn piece(&self, at: PieceAt) -> &Piece {
        &self.zone(at.zone)[at.piece]
    }

    /// The runs as they stand next to each other, newest first.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<(Seq, Vec<Piece>)> = Vec::new();
        for piece in self.pieces() {
            let at = runs.partition_point(|(stamp, _)| *stamp > piece.stamp);
            if runs.get(at).is_none_or(|(stamp, _)| *stamp != piece.stamp) {
                runs.insert(at, (piece.stamp, Vec::new()));
            }
            let pieces = &mut runs[at].1;
            // The zone before may have shown it.
            if pieces.last().is_none_or(|last| !last.is(piece)) {
                pieces.push(piece.clone());
            }
        }
        runs.into_iter().map(|(_, pieces)| Run::new(pieces)).collect()
    }

    /// Every open segment, once.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        let by_id: BTreeMap<u64, &Arc<Segment>> =
            self.pieces().map(|piece| (piece.segment.meta().id, &piece.segment)).collect();
        by_id.into_values().cloned().collect()
    }

    /// Every piece, once for each zone that it reaches into.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).flat_map(|zone| zone.iter())
    }
}

impl PieceAt {
    /// Behind it.
    #[inline]
    pub(crate) fn next(self) -> PieceAt {
        PieceAt { piece: self.piece + 1, ..self }
    }
}

/// The pieces of a run that reach into the keys `from <= key < upto`.
fn reached(run: &[Piece], from: &[u8], upto: Option<&[u8]>) -> Range<usize> {
    let first = run.partition_point(|piece| piece.ends_by(from));
    let end = upto.map_or(run.len(), |upto| run.partition_point(|piece| piece.lower() < upto));
    first..end.max(first)
}

fn open_run(run: &RunMeta, open: &BTreeMap<u64, Arc<Segment>>) -> Vec<Piece> {
    let piece = |piece: &PieceMeta| Piece {
        segment: Arc::clone(&open[&piece.segment.id]),
        clip: (piece.bounds != KeyBounds::all()).then(|| Arc::new(piece.bounds.clone())),
        stamp: run.stamp,
    };
    run.pieces.iter().map(piece).collect()
}

fn are_same(before: &[Zone], zones: &[Zone]) -> bool {
    let same = |(a, b): (&Zone, &Zone)| a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.is(b));
    before.len() == zones.len() && before.iter().zip(zones).all(same)
}

#[cfg(test)]
#[path = "zones_tests.rs"]
mod tests;
