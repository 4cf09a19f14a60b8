//! A piece: an open segment, and the keys inside which its entries count.
//!
//! A point read compares its key with the smallest and the largest key of the segment. Most pieces are whole segments and
//! have no bounds of their own. Where a merge has left a part of a segment, the read compares its bounds as well.

use std::ops::Range;
use std::sync::Arc;

use crate::base::key::Seq;
use crate::base::planted::{Bug, planted};
use crate::base::range::KeyBounds;
use crate::segment::Segment;

/// An open piece of a run. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) segment: Arc<Segment>,
    /// `None`: the whole segment.
    pub(crate) clip: Option<Arc<KeyBounds>>,
    /// The stamp of its run: of two pieces that hold a key, the one with the higher stamp has the newer entries.
    pub(crate) stamp: Seq,
}

impl Piece {
    /// Whether an entry of `key` may be here.
    #[inline]
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        let meta = self.segment.meta();
        meta.largest.as_ref() >= key && meta.smallest.as_ref() <= key && self.counts(key)
    }

    /// Whether the clip, if there is one, lets entries of `key` count.
    #[inline]
    fn counts(&self, key: &[u8]) -> bool {
        let Some(clip) = &self.clip else { return true };
        clip.holds(key) || planted(Bug::ClipIgnoredByGet)
    }

    /// No key below counts.
    pub(crate) fn lower(&self) -> &[u8] {
        match &self.clip {
            Some(clip) if !clip.from.is_empty() => &clip.from,
            _ => &self.segment.meta().smallest,
        }
    }

    /// Whether no key at or above `key` counts.
    pub(crate) fn ends_by(&self, key: &[u8]) -> bool {
        match self.clip.as_ref().and_then(|clip| clip.upto.as_ref()) {
            Some(upto) => upto.as_ref() <= key,
            None => self.segment.meta().largest.as_ref() < key,
        }
    }

    /// Whether both are the same part of the same open segment.
    pub(crate) fn is(&self, other: &Piece) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment) && self.clip == other.clip && self.stamp == other.stamp
    }
}

/// The slices of a zone, newest first: the pieces of each stamp.
pub(crate) fn slices(zone: &[Piece]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    zone.chunk_by(|a, b| a.stamp == b.stamp).map(move |slice| {
        let range = start..start + slice.len();
        start = range.end;
        range
    })
}

/// The first piece at `at` or behind whose bounds hold `key`.
#[inline]
pub(crate) fn next_holding<'a>(zone: &'a [Piece], mut at: usize, key: &[u8]) -> Option<(usize, &'a Piece)> {
    while let Some(piece) = zone.get(at) {
        let is_alone = zone.get(at + 1).is_none_or(|next| next.stamp != piece.stamp);
        if !is_alone {
            let slice = slice_from(zone, at);
            if let Some(found) = find_in_slice(zone, slice.clone(), key) {
                return Some(found);
            }
            at = slice.end;
        } else if piece.holds(key) {
            return Some((at, piece));
        } else {
            at += 1;
        }
    }
    None
}

/// The piece of a slice whose bounds hold `key`. Mostly a slice is one piece, and this is not asked.
#[cold]
fn find_in_slice<'a>(zone: &'a [Piece], slice: Range<usize>, key: &[u8]) -> Option<(usize, &'a Piece)> {
    let nth = slice.start + zone[slice.clone()].partition_point(|piece| piece.ends_by(key));
    let piece = zone[..slice.end].get(nth).filter(|piece| piece.holds(key))?;
    Some((nth, piece))
}

/// The pieces at `at` and behind that have the same stamp.
#[cold]
fn slice_from(zone: &[Piece], at: usize) -> Range<usize> {
    let stamp = zone[at].stamp;
    at..at + zone[at..].partition_point(|piece| piece.stamp == stamp)
}
