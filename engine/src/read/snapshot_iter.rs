//! The snapshot iterator: the pairs that one position sees, one value per key, from both ends.
//!
//! It stands on cursors that show every version of every key. A cursor walks one way only, so each end has its own, made at
//! the first step of that end. The pairs that are left have `from <= key < upto`. The front raises `from`, the back lowers
//! `upto`; the ends share nothing else.
//!
//! # Cost
//! A step in one direction moves the cursor and shows the entry in place. Keys are compared only where a cursor does not
//! know that the next entry has another key ([`Cursor::ends_key`]). The key of a pair is not copied to `from` or `upto`
//! when the pair is returned, since the cursor stands on it. It is copied when the cursor is replaced, or when the other
//! end needs it.
//!
//! Invariants:
//! - `from`, `upto` and the entries on which the cursors stand are the whole state of the walk, so a cursor can be dropped
//!   and made again at any time;
//! - before a step, a cursor of an older generation of its source is replaced. So memtables and segments that were flushed
//!   or compacted meanwhile are released, and no lock is held between steps.

use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::range::KeyBounds;
use crate::read::cursor::Cursor;
use crate::tree::pins::PinGuard;

/// The entries that an iterator walks: those of a keyspace.
pub(crate) trait Source {
    /// Shows all versions of all keys, and tombstones.
    type Cursor: Cursor;

    /// Whether the source can still be read. Called before each step that may read from the device or wait.
    fn check(&self) -> Result<()>;

    /// A cursor over every entry below `position`, after a [`Source::check`]. It may show others: the iterator passes over
    /// entries at and above its position.
    fn cursor(&self, position: Seq) -> Result<Self::Cursor>;

    /// A number that changes when cursors should be made again: a memtable was frozen or flushed, segments were compacted,
    /// the keyspace was dropped.
    fn generation(&self) -> u64;
}

/// A pair, borrowed until the next step.
pub(crate) type PairRef<'a> = (&'a [u8], &'a [u8]);

/// The pairs of a range that one snapshot sees.
pub(crate) struct SnapshotIter<S: Source> {
    source: S,
    snapshot: PinGuard,
    /// The whole range; [`SnapshotIter::seek`] moves in it.
    bounds: KeyBounds,
    /// No smaller key is left at the front: the last key that was returned, with a zero byte appended. Empty: the start of
    /// `bounds`. Not raised yet while `front` stands on the pair that was returned last.
    raised: Vec<u8>,
    /// No key at or above it is left at the back. Empty: the end of `bounds`. Not lowered yet while `back` stands on the
    /// pair that was returned last.
    lowered: Vec<u8>,
    front: Option<EndCursor<S::Cursor>>,
    back: Option<EndCursor<S::Cursor>>,
    /// The value that the back returned last, if it had to be copied and values are wanted.
    back_value: Vec<u8>,
    wants_values: bool,
    /// The key whose other versions a step passes over; kept for its memory.
    passed: Vec<u8>,
    progress: Progress,
}

/// The cursor of one end.
struct EndCursor<C> {
    generation: u64,
    cursor: C,
    stands: Stands,
}

/// Where a cursor stands between two steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// At no known place: it has to seek.
    Anywhere,
    /// On the pair that was returned last, whose key is not in `raised` or `lowered` yet.
    OnGiven,
    /// On the pair that was returned last, whose key is in `raised` or `lowered`.
    OnNoted,
    /// Behind the pair that was returned last, which was copied.
    Behind,
    /// On an entry that the step has not examined yet. Only within a step.
    OnNext,
}

enum Progress {
    Open,
    /// No pair is left.
    Finished,
    Failed(Error),
}

impl<S: Source> SnapshotIter<S> {
    pub(crate) fn new(source: S, snapshot: PinGuard, bounds: KeyBounds) -> SnapshotIter<S> {
        SnapshotIter {
            source,
            snapshot,
            raised: Vec::new(),
            lowered: Vec::new(),
            progress: if bounds.is_empty() { Progress::Finished } else { Progress::Open },
            bounds,
            front: None,
            back: None,
            back_value: Vec::new(),
            wants_values: true,
            passed: Vec::new(),
        }
    }

    pub(crate) fn snapshot(&self) -> Seq {
        self.snapshot.seq()
    }

    pub(crate) fn bounds(&self) -> &KeyBounds {
        &self.bounds
    }

    /// From now on a pair has its value only where that costs nothing, else an empty one.
    pub(crate) fn forgo_values(&mut self) {
        self.wants_values = false;
        self.back_value = Vec::new();
    }

    /// The next pair from the front.
    #[inline]
    pub(crate) fn next_ref(&mut self) -> Result<Option<PairRef<'_>>> {
        if !self.quick_front() && !self.run(SnapshotIter::step_front)? {
            return Ok(None);
        }
        Ok(self.front.as_ref().and_then(EndCursor::pair))
    }

    /// The next pair from the back.
    #[inline]
    pub(crate) fn next_back_ref(&mut self) -> Result<Option<PairRef<'_>>> {
        if !self.quick_back() && !self.run(SnapshotIter::step_back)? {
            return Ok(None);
        }
        match &self.back {
            Some(back) if back.stands == Stands::Behind => Ok(Some((&self.lowered, &self.back_value))),
            back => Ok(back.as_ref().and_then(EndCursor::pair)),
        }
    }

    /// Continues at the first key `>= key` of the range; the back at the end of the range. The cursors stay: they keep their
    /// memory and the blocks that they hold.
    pub(crate) fn seek(&mut self, key: &[u8]) {
        self.raised.clear();
        self.raised.extend_from_slice(self.bounds.from.as_ref().max(key));
        self.lowered.clear();
        for walk in [&mut self.front, &mut self.back].into_iter().flatten() {
            walk.stands = Stands::Anywhere;
        }
        let is_empty = self.bounds.upto.as_ref().is_some_and(|upto| *upto <= self.raised);
        self.progress = Progress::Open;
        if is_empty {
            self.end(None);
        }
    }

    /// The common step, which cannot fail: only one end is used, the next entry is in the same block and has another key,
    /// and the snapshot sees it. After `false`, [`SnapshotIter::step_front`] has to go on.
    #[inline]
    fn quick_front(&mut self) -> bool {
        let Some(front) = &mut self.front else { return false };
        let is_ready = front.stands == Stands::OnGiven
            && self.back.is_none()
            && front.generation == self.source.generation();
        if !is_ready || !front.cursor.quick_next() {
            return false;
        }
        let upto = upto(&self.bounds, &self.lowered);
        let is_given = front.cursor.entry().is_some_and(|entry| {
            entry.seq < self.snapshot.seq()
                && entry.value_seen().is_some()
                && upto.is_none_or(|upto| entry.key < upto)
        });
        if !is_given {
            front.stands = Stands::OnNext;
        }
        is_given
    }

    /// The common step at the back. After `false`, [`SnapshotIter::step_back`] has to go on.
    #[inline]
    fn quick_back(&mut self) -> bool {
        let Some(back) = &mut self.back else { return false };
        let is_ready = back.stands == Stands::OnGiven
            && self.front.is_none()
            && back.generation == self.source.generation();
        if !is_ready || !back.cursor.quick_prev() {
            return false;
        }
        let from = from(&self.bounds, &self.raised);
        let is_given = back.cursor.ends_key()
            && back.cursor.entry().is_some_and(|entry| {
                entry.seq < self.snapshot.seq() && entry.value_seen().is_some() && entry.key >= from
            });
        if !is_given {
            back.stands = Stands::OnNext;
        }
        is_given
    }

    /// Takes one step unless the iterator has ended. Returns whether it found a pair.
    #[inline]
    fn run(&mut self, step: impl FnOnce(&mut SnapshotIter<S>) -> Result<bool>) -> Result<bool> {
        match &self.progress {
            Progress::Open => {}
            Progress::Finished => return Ok(false),
            Progress::Failed(error) => return Err(error.clone()),
        }
        let found = step(self);
        if !matches!(found, Ok(true)) {
            self.end(found.as_ref().err());
        }
        found
    }

    /// Ends the iterator: no pair is left, or `error` has happened.
    fn end(&mut self, error: Option<&Error>) {
        self.progress = error.map_or(Progress::Finished, |error| Progress::Failed(error.clone()));
        self.front = None;
        self.back = None;
    }

    /// Moves `front` onto the next visible pair. Returns whether there is one.
    fn step_front(&mut self) -> Result<bool> {
        self.source.check()?;
        self.note_back();
        let generation = self.source.generation();
        if self.front.as_ref().is_some_and(|front| front.is_older(generation)) {
            self.note_front();
            // The old cursor is dropped first, so that only one of both holds memory.
            self.front = None;
        }
        let snapshot = self.snapshot.seq();
        let front = EndCursor::ready(&mut self.front, &self.source, generation, snapshot)?;
        match front.stands {
            Stands::Anywhere | Stands::Behind => front.cursor.seek(from(&self.bounds, &self.raised))?,
            Stands::OnGiven | Stands::OnNoted => front.pass(&mut self.passed)?,
            Stands::OnNext => {}
        }
        let upto = upto(&self.bounds, &self.lowered);
        while let Some(entry) = front.cursor.entry() {
            if upto.is_some_and(|upto| entry.key >= upto) {
                return Ok(false);
            }
            if entry.seq >= snapshot {
                front.cursor.next()?;
            } else if entry.value_seen().is_some() {
                front.stands = Stands::OnGiven;
                return Ok(true);
            } else {
                front.pass(&mut self.passed)?;
            }
        }
        Ok(false)
    }

    /// Moves `back` onto the visible pair before, or behind it; then `lowered` and `back_value` hold a copy. Returns whether
    /// there is one.
    fn step_back(&mut self) -> Result<bool> {
        self.source.check()?;
        self.note_front();
        let generation = self.source.generation();
        if self.back.as_ref().is_some_and(|back| back.is_older(generation)) {
            self.note_back();
            self.back = None;
        }
        let snapshot = self.snapshot.seq();
        let back = EndCursor::ready(&mut self.back, &self.source, generation, snapshot)?;
        match back.stands {
            Stands::Anywhere => back.cursor.seek_before(upto(&self.bounds, &self.lowered))?,
            Stands::OnGiven | Stands::OnNoted => back.cursor.prev()?,
            Stands::Behind | Stands::OnNext => {}
        }
        let from = from(&self.bounds, &self.raised);
        while let Some(entry) = back.cursor.entry() {
            if entry.key < from {
                return Ok(false);
            }
            if back.cursor.ends_key() {
                if entry.seq < snapshot && entry.value_seen().is_some() {
                    back.stands = Stands::OnGiven;
                    return Ok(true);
                }
                back.cursor.prev()?;
            } else {
                self.lowered.clear();
                self.lowered.extend_from_slice(entry.key);
                let value = self.wants_values.then_some(&mut self.back_value);
                if back.newest_visible(&self.lowered, snapshot, value)? {
                    back.stands = Stands::Behind;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Notes the key on which the front stands.
    #[inline]
    fn note_front(&mut self) {
        if let Some(key) = self.front.as_mut().and_then(EndCursor::key_to_note) {
            self.raised.clear();
            self.raised.extend_from_slice(key);
            self.raised.push(0);
        }
    }

    /// Notes the key on which the back stands.
    #[inline]
    fn note_back(&mut self) {
        if let Some(key) = self.back.as_mut().and_then(EndCursor::key_to_note) {
            self.lowered.clear();
            self.lowered.extend_from_slice(key);
        }
    }
}

/// No key below this is left.
fn from<'a>(bounds: &'a KeyBounds, raised: &'a [u8]) -> &'a [u8] {
    if raised.is_empty() { &bounds.from } else { raised }
}

/// No key at or above this is left.
fn upto<'a>(bounds: &'a KeyBounds, lowered: &'a [u8]) -> Option<&'a [u8]> {
    if lowered.is_empty() { bounds.upto.as_deref() } else { Some(lowered) }
}

impl<C: Cursor> EndCursor<C> {
    /// The cursor in `slot`; if there is none, a new one is put there.
    fn ready<'a, S: Source<Cursor = C>>(
        slot: &'a mut Option<EndCursor<C>>,
        source: &S,
        generation: u64,
        position: Seq,
    ) -> Result<&'a mut EndCursor<C>> {
        match slot {
            Some(walk) => Ok(walk),
            // The generation was read earlier: if it has changed since, the next step replaces the cursor again.
            None => Ok(slot.insert(EndCursor {
                generation,
                cursor: source.cursor(position)?,
                stands: Stands::Anywhere,
            })),
        }
    }

    /// Whether it has to be replaced. Not in the middle of a step: then no key says where to go on.
    fn is_older(&self, generation: u64) -> bool {
        self.generation != generation && self.stands != Stands::OnNext
    }

    #[inline]
    fn pair(&self) -> Option<PairRef<'_>> {
        self.cursor.entry().map(|entry| (entry.key, entry.value))
    }

    /// The key of the pair that was returned last, if the cursor stands on it and the key was not noted before.
    #[inline]
    fn key_to_note(&mut self) -> Option<&[u8]> {
        if self.stands != Stands::OnGiven {
            return None;
        }
        self.stands = Stands::OnNoted;
        self.cursor.entry().map(|entry| entry.key)
    }

    /// Moves forward to the next key.
    #[inline]
    fn pass(&mut self, passed: &mut Vec<u8>) -> Result<()> {
        if self.cursor.ends_key() { self.cursor.next() } else { self.pass_versions(passed) }
    }

    fn pass_versions(&mut self, passed: &mut Vec<u8>) -> Result<()> {
        passed.clear();
        passed.extend_from_slice(self.cursor.entry().map_or(&[], |entry| entry.key));
        while self.cursor.entry().is_some_and(|entry| entry.key == passed.as_slice()) {
            self.cursor.next()?;
        }
        Ok(())
    }

    /// Walks back over all versions of `key`, oldest first. Returns whether a reader at `snapshot` sees a value, and copies
    /// it to `value` if one is given.
    fn newest_visible(&mut self, key: &[u8], snapshot: Seq, mut value: Option<&mut Vec<u8>>) -> Result<bool> {
        let mut is_seen = false;
        while let Some(entry) = self.cursor.entry().filter(|entry| entry.key == key) {
            if entry.seq < snapshot {
                let seen = entry.value_seen();
                is_seen = seen.is_some();
                if let (Some(copy), Some(seen)) = (&mut value, seen) {
                    copy.clear();
                    copy.extend_from_slice(seen);
                }
            }
            self.cursor.prev()?;
        }
        Ok(is_seen)
    }
}

#[cfg(test)]
#[path = "snapshot_iter_tests.rs"]
mod tests;
