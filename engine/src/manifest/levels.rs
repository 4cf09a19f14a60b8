//! The levels of one keyspace as plain data: the segments, the key bounds inside which each counts, and their order by age.
//!
//! ```text
//!   stamp 96   | a ------- f |                 | p -- s |        newest run
//!   stamp 64        | c ------------------ m |
//!   stamp  0   | a ---- e || f ---- k || m ------------ z |      bottom run
//!              key order ->     each | - | is a piece: a segment and the bounds inside which it counts
//! ```
//!
//! A merge takes the parts of neighbouring runs inside one stretch of keys and leaves the parts outside. So one segment may
//! be here as several pieces. Its file is needed until the last of them is gone.
//!
//! Invariant: of two pieces whose bounds hold a key, every entry of the higher stamp at that key is newer. A stamp is the
//! position in the log up to which a flush took the records; a merge keeps the newest stamp of its inputs, or takes
//! [`BOTTOM`] when nothing older lies below them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use crate::base::key::Seq;
use crate::base::range::KeyBounds;
use crate::segment::SegmentMeta;

/// The stamp of the bottom run: nothing is older anywhere.
pub(crate) const BOTTOM: Seq = Seq::ZERO;

/// A segment, and the bounds inside which its entries count.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PieceMeta {
    pub(crate) segment: SegmentMeta,
    /// All keys, or a part of the range between the segment's first and last key.
    pub(crate) bounds: KeyBounds,
}

impl PieceMeta {
    /// A piece with all keys of a segment, as for every new segment.
    pub(crate) fn whole(segment: SegmentMeta) -> PieceMeta {
        PieceMeta { segment, bounds: KeyBounds::all() }
    }

    /// The start of the bounds, or else the segment's first key. No smaller key counts.
    pub(crate) fn lower(&self) -> &[u8] {
        if self.bounds.from.is_empty() { &self.segment.smallest } else { &self.bounds.from }
    }

    /// Whether no key at or above `key` counts.
    pub(crate) fn ends_by(&self, key: &[u8]) -> bool {
        self.bounds.upto.as_ref().map_or(&self.segment.largest[..] < key, |upto| &upto[..] <= key)
    }

    fn overlaps(&self, stretch: &KeyBounds) -> bool {
        !self.ends_by(&stretch.from) && stretch.upto.as_ref().is_none_or(|upto| self.lower() < &upto[..])
    }

    fn lies_in(&self, stretch: &KeyBounds) -> bool {
        self.lower() >= &stretch.from[..] && stretch.upto.as_ref().is_none_or(|upto| self.ends_by(upto))
    }

    /// The parts of this piece before and behind `stretch`, in this order.
    fn outside(&self, stretch: &KeyBounds) -> impl Iterator<Item = PieceMeta> {
        let before = (self.lower() < &stretch.from[..]).then(|| {
            let mut before = self.clone();
            if !self.ends_by(&stretch.from) {
                before.bounds.upto = Some(stretch.from.clone());
            }
            before
        });
        let behind = stretch.upto.as_ref().filter(|upto| !self.ends_by(upto)).map(|upto| {
            let mut behind = self.clone();
            if self.lower() < &upto[..] {
                behind.bounds.from = upto.clone();
            }
            behind
        });
        before.into_iter().chain(behind)
    }

    fn check(&self) -> Result<(), &'static str> {
        let SegmentMeta { id, smallest, largest, .. } = &self.segment;
        if *id == 0 {
            return Err("a segment has the number 0");
        }
        if smallest > largest {
            return Err("pieces of one run overlap");
        }
        let inside = |bound: &bytes::Bytes| bound > smallest && bound <= largest;
        let KeyBounds { from, upto } = &self.bounds;
        if !(from.is_empty() || inside(from)) || !upto.as_ref().is_none_or(inside) || self.bounds.is_empty() {
            return Err("bounds are not inside the reach of their segment");
        }
        Ok(())
    }
}

/// A run: all pieces of one stamp.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunMeta {
    pub(crate) stamp: Seq,
    /// Rising by key, without overlap; never empty.
    pub(crate) pieces: Vec<PieceMeta>,
}

impl RunMeta {
    /// Its segments, each once.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &SegmentMeta> {
        distinct(self.pieces.iter())
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.size_bytes).sum()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.segments().map(|segment| segment.entries).sum()
    }

    pub(crate) fn tombstones(&self) -> u64 {
        self.segments().map(|segment| segment.tombstones).sum()
    }
}

/// The change of the levels by one merge.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merged {
    /// The merged keys.
    pub(crate) stretch: KeyBounds,
    /// The merge took every piece with a stamp from `oldest` to `newest`, as far as it lies in the stretch.
    pub(crate) newest: Seq,
    pub(crate) oldest: Seq,
    /// The stamp of `out`.
    pub(crate) into: Seq,
    /// New segments, segments that move, or none.
    pub(crate) out: Vec<PieceMeta>,
}

/// The runs of one keyspace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Levels {
    /// Newest first: stamps fall.
    runs: Vec<RunMeta>,
}

impl Levels {
    /// Newest first.
    pub(crate) fn runs(&self) -> &[RunMeta] {
        &self.runs
    }

    /// The segments of all runs, each once.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &SegmentMeta> {
        distinct(self.runs.iter().flat_map(|run| &run.pieces))
    }

    /// Adds a run that is newer than all others. Does nothing if it has no pieces.
    pub(crate) fn add(&mut self, stamp: Seq, pieces: &[PieceMeta]) -> Result<(), &'static str> {
        if pieces.is_empty() {
            return Ok(());
        }
        if self.runs.first().is_some_and(|newest| newest.stamp >= stamp) {
            return Err("a flushed run is not newer than all others");
        }
        self.runs.insert(0, RunMeta { stamp, pieces: pieces.to_vec() });
        Ok(())
    }

    /// Replaces the inputs of a merge by its output.
    pub(crate) fn merge(&mut self, merged: &Merged) -> Result<(), &'static str> {
        if !self.cut_out(merged) {
            return Err("a merge has no input");
        }
        if merged.out.iter().any(|piece| !piece.lies_in(&merged.stretch)) {
            return Err("the output of a merge leaves its stretch");
        }
        if merged.into > merged.newest || self.lies_above(merged) {
            return Err("a merge changes the order of entries");
        }
        self.insert(merged.into, &merged.out);
        Ok(())
    }

    /// Removes the inputs of a merge; true if there were any.
    fn cut_out(&mut self, Merged { stretch, newest, oldest, .. }: &Merged) -> bool {
        let mut found = false;
        for run in self.runs.iter_mut().filter(|run| (*oldest..=*newest).contains(&run.stamp)) {
            let is_input = |piece: &PieceMeta| piece.overlaps(stretch);
            if run.pieces.iter().any(is_input) {
                found = true;
                run.pieces = run.pieces.iter().flat_map(|piece| piece.outside(stretch)).collect();
            }
        }
        self.runs.retain(|run| !run.pieces.is_empty());
        found
    }

    /// Whether the output would be below a piece that was older than the inputs.
    fn lies_above(&self, Merged { oldest, into, out, .. }: &Merged) -> bool {
        let passed = self.runs.iter().filter(|run| *into < run.stamp && run.stamp < *oldest);
        let mut passed = passed.flat_map(|run| &run.pieces);
        passed.any(|other| {
            out.iter().any(|piece| !piece.ends_by(other.lower()) && !other.ends_by(piece.lower()))
        })
    }

    fn insert(&mut self, stamp: Seq, pieces: &[PieceMeta]) {
        if pieces.is_empty() {
            return;
        }
        let at = self.runs.partition_point(|run| run.stamp > stamp);
        if self.runs.get(at).is_none_or(|run| run.stamp != stamp) {
            self.runs.insert(at, RunMeta { stamp, pieces: Vec::new() });
        }
        let run = &mut self.runs[at].pieces;
        run.extend_from_slice(pieces);
        run.sort_by(|a, b| a.lower().cmp(b.lower()));
    }

    /// Checks the rules between the pieces of keyspace `id`, whose entries below `flushed` are all in segments.
    pub(crate) fn check(&self, id: u32, flushed: Seq) -> Result<(), &'static str> {
        if !self.runs.windows(2).all(|pair| pair[0].stamp > pair[1].stamp) {
            return Err("runs are not in the order of their stamps");
        }
        let mut files: BTreeMap<u64, Vec<&PieceMeta>> = BTreeMap::new();
        for run in &self.runs {
            if run.stamp > flushed {
                return Err("a stamp is above the flushed position");
            }
            for piece in &run.pieces {
                piece.check()?;
                check_segment(&piece.segment, id)?;
                if piece.segment.max_seq >= flushed {
                    return Err("a segment holds entries above the flushed position");
                }
                if run.stamp != BOTTOM && piece.segment.max_seq >= run.stamp {
                    return Err("a segment holds entries that are not below its stamp");
                }
                files.entry(piece.segment.id).or_default().push(piece);
            }
            if !are_apart(&run.pieces) {
                return Err("pieces of one run overlap");
            }
        }
        files.into_values().try_for_each(check_file)
    }
}

/// The segments of these pieces, each once.
fn distinct<'a>(pieces: impl Iterator<Item = &'a PieceMeta>) -> impl Iterator<Item = &'a SegmentMeta> {
    let mut seen = BTreeSet::new();
    pieces.map(|piece| &piece.segment).filter(move |segment| seen.insert(segment.id))
}

fn check_segment(segment: &SegmentMeta, keyspace: u32) -> Result<(), &'static str> {
    if segment.keyspace == keyspace { Ok(()) } else { Err("a segment belongs to another keyspace") }
}

/// Whether no two neighbours share a key.
fn are_apart(pieces: &[impl Borrow<PieceMeta>]) -> bool {
    pieces.windows(2).all(|pair| pair[0].borrow().ends_by(pair[1].borrow().lower()))
}

/// Checks that the pieces of one file describe the same file, and that no key of it counts twice.
fn check_file(mut pieces: Vec<&PieceMeta>) -> Result<(), &'static str> {
    pieces.sort_by(|a, b| a.lower().cmp(b.lower()));
    let is_one_file = pieces.windows(2).all(|pair| pair[0].segment == pair[1].segment);
    if is_one_file && are_apart(&pieces) { Ok(()) } else { Err("a file number is used twice") }
}

#[cfg(test)]
#[path = "levels_tests.rs"]
mod tests;
