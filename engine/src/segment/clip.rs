//! The part of a segment inside the bounds of a piece.

use std::ops::Range;

use super::block::Block;
use crate::base::planted::{Bug, planted};
use crate::base::range::KeyBounds;
use crate::read::cursor::Direction;

/// The key from which a seek searches: the bounds may begin behind `key`.
#[inline]
pub(super) fn clipped_from<'a>(clip: Option<&'a KeyBounds>, key: &'a [u8]) -> &'a [u8] {
    clip.map_or(key, |clip| key.max(&clip.from))
}

/// The key before which a seek searches backwards: the bounds may end before `key`. `None`: no key is too large.
#[inline]
pub(super) fn clipped_before<'a>(clip: Option<&'a KeyBounds>, key: Option<&'a [u8]>) -> Option<&'a [u8]> {
    let upto = clip.and_then(|clip| clip.upto.as_deref());
    key.zip(upto).map_or(key.or(upto), |(key, upto)| Some(key.min(upto)))
}

/// The entries of a block that count: all, unless a bound lies in it.
#[inline]
pub(super) fn counted(clip: Option<&KeyBounds>, block: Block<'_>, way: Direction) -> Range<usize> {
    clip.map_or(0..block.len(), |clip| inside(clip, block, way))
}

#[cold]
fn inside(clip: &KeyBounds, block: Block<'_>, way: Direction) -> Range<usize> {
    let ignores_start = way == Direction::Backward && planted(Bug::ClipIgnoredBackwards);
    let ignores_end = way == Direction::Forward && planted(Bug::ClipIgnoredByScan);
    let start = if ignores_start { 0 } else { block.lower_bound(&clip.from) };
    let end = clip.upto.as_ref().filter(|_| !ignores_end).map(|upto| block.lower_bound(upto));
    start..end.unwrap_or(block.len())
}
