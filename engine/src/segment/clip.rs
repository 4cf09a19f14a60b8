//! What the bounds of a piece leave of a segment.

use std::ops::Range;

use super::block::Block;
use super::reader::Way;
use crate::base::planted::{Bug, planted};
use crate::base::range::KeyBounds;
use crate::read::cursor::Target;

/// Where a seek goes whose target may lie outside the bounds.
pub(super) fn clipped<'a>(clip: Option<&'a KeyBounds>, target: Target<'a>) -> Target<'a> {
    let Some(clip) = clip else { return target };
    match target {
        Target::From(key) => Target::From(key.max(&clip.from)),
        Target::Before(key) => {
            let upto = clip.upto.as_deref();
            Target::Before(key.zip(upto).map_or(key.or(upto), |(key, upto)| Some(key.min(upto))))
        }
    }
}

/// The entries of a block that count: all, unless a bound lies in it.
#[inline]
pub(super) fn counted(clip: Option<&KeyBounds>, block: Block<'_>, way: Way) -> Range<usize> {
    clip.map_or(0..block.len(), |clip| inside(clip, block, way))
}

#[cold]
fn inside(clip: &KeyBounds, block: Block<'_>, way: Way) -> Range<usize> {
    let ignores_start = way == Way::Backward && planted(Bug::ClipIgnoredBackwards);
    let ignores_end = way == Way::Forward && planted(Bug::ClipIgnoredByScan);
    let start = if ignores_start { 0 } else { block.lower_bound(&clip.from) };
    let end = clip.upto.as_ref().filter(|_| !ignores_end).map(|upto| block.lower_bound(upto));
    start..end.unwrap_or(block.len())
}
