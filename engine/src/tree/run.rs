//! A run: open pieces in key order without overlap, read as one sorted sequence; whole, or the part that a zone shows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aio::File;

use crate::base::error::Result;
use crate::base::key::{Entry, Seq};
use crate::io::files::Files;
use crate::io::lane::{Lane, Ticket};
use crate::io::read_stream::Extent;
use crate::read::cursor::{Cursor, Target};
use crate::segment::{Segment, SegmentCursor};
use crate::tree::piece::Piece;

/// The pieces of one stamp. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Rising by key, without overlap; never empty.
    pieces: Arc<[Piece]>,
}

impl Run {
    pub(crate) fn new(pieces: Vec<Piece>) -> Run {
        assert!(!pieces.is_empty(), "a run has at least one piece");
        Run { pieces: pieces.into() }
    }

    /// Of whole segments.
    #[cfg(test)]
    pub(crate) fn of(segments: Vec<Arc<Segment>>) -> Run {
        let piece = |segment| Piece { segment, clip: None, stamp: Seq::ZERO };
        Run::new(segments.into_iter().map(piece).collect())
    }

    pub(crate) fn stamp(&self) -> Seq {
        self.pieces[0].stamp
    }

    /// The segments of its pieces.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.pieces.iter().map(|piece| &piece.segment)
    }

    /// Bytes that its segments hold in memory beside their blocks.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.memory_bytes()).sum()
    }

    /// A cursor over the whole run; with `fill_cache` the blocks that it reads enter the cache.
    #[cfg(test)]
    pub(crate) fn cursor(&self, fill_cache: bool) -> RunCursor {
        RunCursor::new(&self.pieces, 0..self.pieces.len(), fill_cache)
    }

    /// A cursor over the whole run for a job, on the context of the job.
    pub(crate) fn job_cursor(&self, lane: &Arc<Lane>) -> RunCursor {
        let inner = self.pieces[0].segment.job_cursor(lane);
        RunCursor::over(&self.pieces, 0..self.pieces.len(), inner)
    }
}

/// Walks pieces of one stamp one after the other; one of them is open at a time.
pub(crate) struct RunCursor {
    /// Those that a seek goes to are `slice` of these.
    pieces: Arc<[Piece]>,
    slice: Range<usize>,
    /// Those that are still to come in the direction of the walk.
    ahead: Range<usize>,
    /// Whether a piece was entered since the last seek.
    has_entered: bool,
    inner: SegmentCursor,
}

impl fmt::Debug for RunCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunCursor({:?} of {:?} to come)", self.ahead, self.slice)
    }
}

impl RunCursor {
    /// Over `slice` of `pieces`, which is not empty and has one stamp.
    pub(crate) fn new(pieces: &Arc<[Piece]>, slice: Range<usize>, fill_cache: bool) -> RunCursor {
        RunCursor::over(pieces, slice.clone(), pieces[slice.start].segment.cursor(fill_cache))
    }

    fn over(pieces: &Arc<[Piece]>, slice: Range<usize>, inner: SegmentCursor) -> RunCursor {
        RunCursor { pieces: Arc::clone(pieces), ahead: 0..0, slice, has_entered: false, inner }
    }

    pub(crate) fn stamp(&self) -> Seq {
        self.pieces[self.slice.start].stamp
    }

    /// Seeks go to these pieces of the same stamp from now on; until then it stands nowhere.
    pub(crate) fn move_to(&mut self, pieces: &Arc<[Piece]>, slice: Range<usize>) {
        self.pieces = Arc::clone(pieces);
        self.slice = slice;
        self.leave();
    }

    /// Adds the slice of the next zone behind its end; its position does not change.
    pub(crate) fn extend(&mut self, pieces: &Arc<[Piece]>, slice: Range<usize>) -> Result<()> {
        let left = self.left();
        let is_shown = |piece: &Piece| left.last().map_or(self.is_on(piece), |last| last.is(piece));
        let skipped = usize::from(is_shown(&pieces[slice.start]));
        let new = slice.start + skipped..slice.end;
        let joined = (!left.is_empty()).then(|| [left, &pieces[new.clone()]].concat());
        self.show(pieces, slice, new, joined);
        if self.is_at_end() { self.go_on() } else { Ok(()) }
    }

    /// Adds the slice of the zone before, in front of its start. See [`RunCursor::extend`].
    pub(crate) fn extend_back(&mut self, pieces: &Arc<[Piece]>, slice: Range<usize>) -> Result<()> {
        let left = self.left();
        let is_shown = |piece: &Piece| left.first().map_or(self.is_on(piece), |first| first.is(piece));
        let skipped = usize::from(is_shown(&pieces[slice.end - 1]));
        let new = slice.start..slice.end - skipped;
        let joined = (!left.is_empty()).then(|| [&pieces[new.clone()], left].concat());
        self.show(pieces, slice, new, joined);
        if self.is_at_end() { self.go_back() } else { Ok(()) }
    }

    fn left(&self) -> &[Piece] {
        &self.pieces[self.ahead.clone()]
    }

    fn show(
        &mut self,
        pieces: &Arc<[Piece]>,
        slice: Range<usize>,
        ahead: Range<usize>,
        joined: Option<Vec<Piece>>,
    ) {
        match joined {
            None => (self.pieces, self.slice, self.ahead) = (Arc::clone(pieces), slice, ahead),
            // Some of the zone before are still to come.
            Some(joined) => {
                self.slice = 0..joined.len();
                self.ahead = 0..joined.len();
                self.pieces = joined.into();
            }
        }
    }

    /// Whether it walks this piece, or has walked it last.
    fn is_on(&self, piece: &Piece) -> bool {
        self.has_entered && self.inner.is_on(&piece.segment, piece.clip.as_ref())
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.inner.is_at_end()
    }

    /// Enters piece `index`. The caller positions it there.
    fn enter(&mut self, index: usize) {
        let piece = &self.pieces[index];
        self.inner.change_segment(&piece.segment, piece.clip.as_ref());
        self.has_entered = true;
    }

    /// Stands nowhere, and nothing is to come.
    fn leave(&mut self) {
        self.ahead = 0..0;
        self.has_entered = false;
        self.inner.clear();
    }

    /// Moves to the first entry of the pieces ahead.
    fn go_on(&mut self) -> Result<()> {
        while self.inner.is_at_end() {
            let Some(next) = self.ahead.next() else { break };
            self.enter(next);
            self.inner.move_to_first()?;
        }
        Ok(())
    }

    /// Moves backwards to the last entry of the pieces ahead.
    fn go_back(&mut self) -> Result<()> {
        while self.inner.is_at_end() {
            let Some(next) = self.ahead.next_back() else { break };
            self.enter(next);
            self.inner.move_to_last()?;
        }
        Ok(())
    }

    /// Goes to the piece where a seek begins, and notes which are to come behind it; `false`: there is none.
    fn aim(&mut self, target: Target<'_>) -> bool {
        let slice = &self.pieces[self.slice.clone()];
        let (start, end) = (self.slice.start, self.slice.end);
        let found = match target {
            // The only piece finds by itself that it ends before the key, for less than a comparison here.
            Target::From(_) if slice.len() == 1 && slice[0].clip.is_none() => Some(start),
            Target::From(key) => Some(start + slice.partition_point(|piece| piece.ends_by(key))),
            Target::Before(None) => end.checked_sub(1),
            Target::Before(Some(key)) => {
                let before = slice.partition_point(|piece| piece.lower() < key).checked_sub(1);
                before.map(|nth| start + nth)
            }
        };
        let Some(found) = found.filter(|found| (start..end).contains(found)) else {
            self.leave();
            return false;
        };
        self.ahead = match target {
            Target::From(_) => found + 1..end,
            Target::Before(_) => start..found,
        };
        self.enter(found);
        true
    }

    /// First step of a seek together with others: goes to the segment and says which block will be wanted.
    pub(crate) fn locate(&mut self, target: Target<'_>) -> Option<usize> {
        if self.aim(target) { self.inner.locate(target) } else { None }
    }

    /// Second step: the read of the block, if it is not in memory.
    pub(crate) fn missing(&self, block: usize) -> Option<Extent> {
        self.inner.missing(block)
    }

    /// Last step: the read of the missing block is in flight.
    pub(crate) fn expect(&mut self, extent: Extent, read: Ticket) {
        self.inner.expect(extent, read);
    }

    /// The file that a missing block is read from.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn file(&self) -> Result<File> {
        self.inner.file()
    }

    /// Where its segments stand.
    pub(crate) fn files(&self) -> &Arc<Files> {
        self.inner.files()
    }
}

impl Cursor for RunCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        if self.aim(Target::From(key)) {
            self.inner.seek(key)?;
            return self.go_on();
        }
        Ok(())
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        if self.aim(Target::Before(key)) {
            self.inner.seek_before(key)?;
            return self.go_back();
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.inner.next()?;
        self.go_on()
    }

    fn prev(&mut self) -> Result<()> {
        self.inner.prev()?;
        self.go_back()
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        self.inner.entry()
    }

    /// All versions of a key stand in one segment.
    #[inline]
    fn ends_key(&self) -> bool {
        self.inner.ends_key()
    }

    #[inline]
    fn quick_next(&mut self) -> bool {
        self.inner.quick_next()
    }

    #[inline]
    fn quick_prev(&mut self) -> bool {
        self.inner.quick_prev()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aio::{Backend, SimBackend};

    use super::*;
    use crate::base::key::Kind;
    use crate::base::key::key_hash;
    use crate::base::range::KeyBounds;
    use crate::compaction::output::{NEVER, Output, open_segments, write_run};
    use crate::compaction::retain::{Retain, Tombstones};
    use crate::io::background::JobKind;
    use crate::io::files::Files;
    use crate::read::cursor_contract::{Owned, VecCursor, any_entries, check, check_all, runner};
    use crate::segment::BlockCache;
    use crate::tree::piece::next_holding;
    use bytes::Bytes;

    /// A run of as many segments as there are keys, with every entry in it.
    fn run(entries: &[Owned]) -> Option<Run> {
        let run = run_of(entries, 1);
        let mut keys: Vec<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
        keys.dedup();
        assert_eq!(run.as_ref().map_or(0, |run| run.pieces.len()), keys.len(), "a segment for each key");
        run
    }

    fn run_of(entries: &[Owned], segment_bytes: u64) -> Option<Run> {
        let sim = SimBackend::new(1);
        for dir in ["/store", "/store/segments"] {
            sim.make_dir(Path::new(dir)).unwrap();
        }
        let files = Arc::new(Files::new(Arc::new(sim), Path::new("/store"), 1 << 20));
        let cache = Arc::new(BlockCache::new(1 << 20));
        let output = Output {
            files: &files,
            cache: &cache,
            store_id: 1,
            keyspace: 1,
            segment_bytes,
            block_bytes: 512,
            compress: true,
            filter_bits: 14,
            leaving_bytes: 0,
        };
        let number = std::cell::Cell::new(1);
        let next = || number.replace(number.get() + 1);
        // Every position has a snapshot, so nothing is dropped.
        let mut retain = Retain::new((0..=1001).map(Seq::new).collect(), Tombstones::Keep);
        let metas = write_run(
            &output,
            &Lane::new(&files, JobKind::Flush).unwrap(),
            &next,
            (VecCursor::new(entries.to_vec()), &mut retain),
            NEVER,
        )
        .unwrap();
        let segments = open_segments(&output, &metas, NEVER).unwrap();
        (!segments.is_empty()).then(|| Run::of(segments))
    }

    /// The same run, each piece clipped to `clip`.
    fn clipped(run: &Run, clip: &KeyBounds) -> Option<Run> {
        let piece = |piece: &Piece| {
            let meta = piece.segment.meta();
            let from = clip.from.clone().max(meta.smallest.clone());
            let upto = clip.upto.clone().filter(|upto| *upto <= meta.largest);
            let is_left = meta.largest >= from && upto.as_ref().is_none_or(|upto| from < *upto);
            let from = if from == meta.smallest { Bytes::new() } else { from };
            is_left.then(|| Piece { clip: Some(Arc::new(KeyBounds { from, upto })), ..piece.clone() })
        };
        let pieces: Vec<Piece> = run.pieces.iter().filter_map(piece).collect();
        (!pieces.is_empty()).then(|| Run::new(pieces))
    }

    /// Bounds at, before and behind these of the keys.
    fn clips(entries: &[Owned]) -> Vec<KeyBounds> {
        let mut keys: Vec<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
        keys.dedup();
        let chosen = keys.iter().step_by(keys.len() / 4 + 1);
        let edges = chosen.flat_map(|key| [key.to_vec(), [*key, &[0]].concat()]);
        let edges: Vec<Bytes> = edges.map(Bytes::from).collect();
        let pair = |(nth, from): (usize, &Bytes)| {
            let upto = edges[nth + 1..].iter().cloned().map(Some).chain([None]);
            upto.map(|upto| KeyBounds { from: from.clone(), upto }).collect::<Vec<_>>()
        };
        let open = edges.iter().map(|upto| KeyBounds { from: Bytes::new(), upto: Some(upto.clone()) });
        edges.iter().enumerate().flat_map(pair).chain(open).collect()
    }

    fn check_clipped(entries: &[Owned], segment_bytes: u64) {
        let Some(run) = run_of(entries, segment_bytes) else { return };
        for clip in clips(entries) {
            let inside: Vec<Owned> = entries.iter().filter(|entry| clip.holds(&entry.key)).cloned().collect();
            check(&inside, &mut || match clipped(&run, &clip) {
                Some(run) => Box::new(run.cursor(true)),
                None => Box::new(VecCursor::new(Vec::new())),
            });
        }
    }

    #[test]
    fn clipped_runs_keep_the_contract() {
        let entry = |key: usize, seq: u64| Owned {
            key: format!("{key:03}").into_bytes(),
            seq: Seq::new(seq),
            kind: Kind::Put,
            value: vec![7; 40],
        };
        // Several blocks; some keys have versions on both sides of a block's end.
        let versions = |key: usize| (1..=if key.is_multiple_of(7) { 40 } else { 2 }).rev();
        let blocks: Vec<Owned> =
            (0..30).flat_map(|key| versions(key).map(move |seq| entry(key, seq))).collect();
        for segment_bytes in [1, 2000, 1 << 20] {
            check_clipped(&blocks, segment_bytes);
        }
        runner(24)
            .run(&any_entries(60), |entries| {
                check_clipped(&entries, 1 << 20);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn the_cursor_keeps_the_contract() {
        check_all(|entries| match run(entries) {
            Some(run) => Box::new(run.cursor(true)),
            None => Box::new(VecCursor::new(Vec::new())),
        });
    }

    #[test]
    fn get_finds_the_newest_entry_below_a_position_in_the_right_segment() {
        let entry = |key: &str, seq, value: &str| Owned {
            key: key.into(),
            seq: Seq::new(seq),
            kind: Kind::Put,
            value: value.into(),
        };
        let run = run(&[entry("b", 7, "new"), entry("b", 3, "old"), entry("d", 5, "d")]).unwrap();
        let get = |key: &str, below| {
            let key = (key.as_bytes(), key_hash(key.as_bytes()));
            let (_, piece) = next_holding(&run.pieces, 0, key.0)?;
            let found = |_, seq: Seq, value: &[u8]| (seq.get(), value.to_vec());
            piece.segment.get_with(key, Seq::new(below), found).unwrap()
        };
        assert_eq!(get("b", 8), Some((7, "new".into())));
        assert_eq!(get("b", 7), Some((3, "old".into())));
        assert_eq!(get("b", 3), None);
        assert_eq!(get("d", 9), Some((5, "d".into())));
        for absent in ["a", "c", "e", "bb"] {
            assert_eq!(get(absent, 9), None);
        }
    }
}
