//! A run: open segments in key order without overlap, read as one sorted sequence.

use std::fmt;
use std::sync::Arc;

use aio::Buf;

use crate::base::error::Result;
use crate::base::key::{Entry, Kind, Seq};
use crate::io::files::Files;
use crate::read::cursor::{Cursor, Target};
use crate::segment::{Missing, Segment, SegmentCursor};

/// What one flush or one compaction made, open for reading. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Rising by key, without overlap; never empty.
    segments: Arc<[Arc<Segment>]>,
}

impl Run {
    pub(crate) fn new(segments: Vec<Arc<Segment>>) -> Run {
        assert!(!segments.is_empty(), "a run has at least one segment");
        Run { segments: segments.into() }
    }

    pub(crate) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.meta().size_bytes).sum()
    }

    /// What its segments hold in memory beside their blocks.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.memory_bytes()).sum()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.segments.iter().map(|segment| segment.meta().entries).sum()
    }

    /// Shows the newest entry of `key` below `snapshot`, in place; `hash` is `key_hash(key)`. At most one block is read.
    pub(crate) fn get_with<R>(
        &self,
        (key, hash): (&[u8], u64),
        snapshot: Seq,
        found: impl FnOnce(Kind, Seq, &[u8]) -> R,
    ) -> Result<Option<R>> {
        match self.segment_of(key) {
            Some((_, segment)) => segment.get_with((key, hash), snapshot, found),
            None => Ok(None),
        }
    }

    /// The segment whose bounds hold `key`, and its place in the run; there is at most one.
    pub(crate) fn segment_of(&self, key: &[u8]) -> Option<(usize, &Arc<Segment>)> {
        let at = self.first_reaching(key);
        let segment = self.segments.get(at)?;
        (segment.meta().smallest.as_ref() <= key).then_some((at, segment))
    }

    /// The segment and the block in which the first entry at or behind `key` stands, or stood if there is none: then past the
    /// last segment, or the last block.
    pub(crate) fn place_of(&self, key: &[u8]) -> (usize, usize) {
        let at = self.first_reaching(key);
        (at, self.segments.get(at).map_or(0, |segment| segment.block_of(key)))
    }

    /// A cursor over the whole run; `fill_cache` keeps what it reads.
    pub(crate) fn cursor(&self, fill_cache: bool) -> RunCursor {
        let first = self.segments.first().expect("a run has at least one segment");
        RunCursor { inner: first.cursor(fill_cache), run: self.clone(), at: 0 }
    }

    /// Index of the first segment whose largest key is `>= key`.
    fn first_reaching(&self, key: &[u8]) -> usize {
        self.segments.partition_point(|segment| segment.meta().largest < key)
    }
}

/// Walks the segments of a run one after the other; one of them is open at a time.
pub(crate) struct RunCursor {
    run: Run,
    /// The segment that `inner` walks.
    at: usize,
    inner: SegmentCursor,
}

impl fmt::Debug for RunCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunCursor(segment {} of {})", self.at, self.run.segments.len())
    }
}

impl RunCursor {
    /// Goes to segment `index` and lets `seek` position there; stands nowhere if there is none.
    fn enter(
        &mut self,
        index: Option<usize>,
        seek: impl FnOnce(&mut SegmentCursor) -> Result<()>,
    ) -> Result<()> {
        let Some((index, segment)) = index.and_then(|index| Some((index, self.run.segments.get(index)?)))
        else {
            self.inner.leave();
            return Ok(());
        };
        self.at = index;
        self.inner.enter(segment);
        seek(&mut self.inner)
    }
}

impl RunCursor {
    /// The segment where a seek begins.
    fn segment_for(&self, target: Target<'_>) -> Option<usize> {
        match target {
            Target::From(key) => Some(self.run.first_reaching(key)),
            Target::Before(None) => self.run.segments.len().checked_sub(1),
            Target::Before(Some(key)) => {
                self.run.segments.partition_point(|segment| segment.meta().smallest < key).checked_sub(1)
            }
        }
    }

    /// First step of a seek together with others: goes to the segment and says which block will be wanted.
    pub(crate) fn foresee(&mut self, target: Target<'_>) -> Option<usize> {
        let mut block = None;
        let entered = self.enter(self.segment_for(target), |segment| {
            block = segment.foresee(target);
            Ok(())
        });
        entered.ok().and(block)
    }

    /// Second step: the block, if it is not in memory.
    pub(crate) fn missing(&self, block: usize) -> Option<Missing> {
        self.inner.missing(block)
    }

    /// Last step: a missing block was read.
    pub(crate) fn hand(&mut self, block: &Missing, buf: Buf) {
        self.inner.hand(block, buf);
    }

    /// Where its segments stand.
    pub(crate) fn files(&self) -> &Arc<Files> {
        self.inner.files()
    }
}

impl Cursor for RunCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.enter(self.segment_for(Target::From(key)), |segment| segment.seek(key))
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.enter(self.segment_for(Target::Before(key)), |segment| segment.seek_before(key))
    }

    fn next(&mut self) -> Result<()> {
        self.inner.next()?;
        if self.inner.is_at_end() {
            self.enter(Some(self.at + 1), SegmentCursor::enter_front)
        } else {
            Ok(())
        }
    }

    fn prev(&mut self) -> Result<()> {
        self.inner.prev()?;
        if self.inner.is_at_end() {
            self.enter(self.at.checked_sub(1), SegmentCursor::enter_back)
        } else {
            Ok(())
        }
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
    use crate::base::key::key_hash;
    use crate::compaction::output::{Output, open_run, write_run};
    use crate::compaction::retain::{Retain, Tombstones};
    use crate::io::files::Files;
    use crate::read::cursor_contract::{Owned, VecCursor, check_all};
    use crate::segment::BlockCache;

    /// A run of as many segments as there are keys, with every entry in it.
    fn run(entries: &[Owned]) -> Option<Run> {
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
            segment_bytes: 1,
            block_bytes: 512,
            compress: true,
            filter_bits: 14,
            leaving_bytes: 0,
        };
        let number = std::cell::Cell::new(1);
        let next = || number.replace(number.get() + 1);
        // Every position is somebody's snapshot, so nothing is dropped.
        let retain = Retain::new((0..=1001).map(Seq::new).collect(), Tombstones::Keep);
        let metas = write_run(&output, &next, &mut VecCursor::new(entries.to_vec()), retain).unwrap();
        let mut keys: Vec<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
        keys.dedup();
        assert_eq!(metas.len(), keys.len(), "each key has a segment of its own");
        open_run(&output, &metas).unwrap()
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
            run.get_with(key, Seq::new(below), |_, seq, value| (seq.get(), value.to_vec())).unwrap()
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
