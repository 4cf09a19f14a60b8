//! What one snapshot sees: one value per key, from both ends.
//!
//! Under it lies a cursor that shows every version of every key. A cursor walks one way only, so each end has its own,
//! made when that end is first used. What is left to give lies in `from <= key < upto`; the front raises `from`, the
//! back lowers `upto`, and that is all they know of each other.
//!
//! # Cost
//! A step in one direction moves the cursor and gives the entry in place. Keys are compared only where a cursor does not
//! know that the next entry has another key ([`Cursor::ends_key`]). Nor is the key of a pair copied to `from` or
//! `upto` when it is given, since the cursor stands on it: only when its cursor is replaced, or the other end asks.
//!
//! Invariants:
//! - `from` and `upto`, and the entries on which cursors stand, alone say where the iterator stands; a cursor can be
//!   dropped and made anew any time;
//! - before each step a cursor of an older generation of its source is replaced, so that what was flushed or compacted
//!   meanwhile is let go, and no lock is held between steps.

use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::range::KeyBounds;
use crate::read::cursor::Cursor;
use crate::tree::pins::PinGuard;

/// Where an iterator gets its entries from: a keyspace.
pub(crate) trait Source {
    /// Shows all versions of all keys, and tombstones.
    type Cursor: Cursor;

    /// Whether there is anything to read any more; asked before each step that may read from the device or wait.
    fn check(&self) -> Result<()>;

    /// A cursor over every entry below `position`, after a [`Source::check`]. It may show others: the iterator passes over
    /// entries at and above its position.
    fn cursor(&self, position: Seq) -> Result<Self::Cursor>;

    /// Changes whenever cursors should be made anew: a memtable was frozen or flushed, segments were compacted, the
    /// keyspace was dropped.
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
    /// The smallest key that is not given yet, unless `front` stands on it: the last one given, with a zero byte
    /// appended. Empty: that of `bounds`.
    raised: Vec<u8>,
    /// Above every key that is not given yet, unless `back` stands on it. Empty: that of `bounds`.
    lowered: Vec<u8>,
    front: Option<Walk<S::Cursor>>,
    back: Option<Walk<S::Cursor>>,
    /// The value last given at the back, if it had to be copied and values are wanted.
    back_value: Vec<u8>,
    wants_values: bool,
    /// A key whose other versions are passed over.
    passed: Vec<u8>,
    progress: Progress,
}

/// A cursor in use.
struct Walk<C> {
    generation: u64,
    cursor: C,
    stands: Stands,
}

/// Where a cursor stands between two steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// Anywhere: it has to seek.
    Anywhere,
    /// On the pair given last, whose key is not noted yet.
    OnGiven,
    /// As before, and the key is noted.
    OnNoted,
    /// Behind the pair given last, which was copied.
    Behind,
    /// On an entry that was not looked at yet. Only within a step.
    OnNext,
}

enum Progress {
    Open,
    /// Nothing visible is left.
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

    /// From now on values are only given where it costs nothing, else empty ones.
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
        Ok(self.front.as_ref().and_then(Walk::pair))
    }

    /// The next pair from the back.
    #[inline]
    pub(crate) fn next_back_ref(&mut self) -> Result<Option<PairRef<'_>>> {
        if !self.quick_back() && !self.run(SnapshotIter::step_back)? {
            return Ok(None);
        }
        match &self.back {
            Some(back) if back.stands == Stands::Behind => Ok(Some((&self.lowered, &self.back_value))),
            back => Ok(back.as_ref().and_then(Walk::pair)),
        }
    }

    /// Continues at the first key `>= key` of the range; the back at the end of the range. The cursors stay, for the
    /// memory and the places that they have.
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

    /// The common step, without anything that can fail: at one end only, on in the same block, from the last version of
    /// a key to a visible entry of the next. If it says `false`, [`SnapshotIter::step_front`] has to go on.
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

    /// As [`SnapshotIter::quick_front`], at the back.
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

    /// One step, if there is something left; whether it found a pair.
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

    /// Nothing is left, or nobody knows what.
    fn end(&mut self, error: Option<&Error>) {
        self.progress = error.map_or(Progress::Finished, |error| Progress::Failed(error.clone()));
        self.front = None;
        self.back = None;
    }

    /// To the next visible pair, on which `front` then stands.
    fn step_front(&mut self) -> Result<bool> {
        self.source.check()?;
        self.note_back();
        let generation = self.source.generation();
        if self.front.as_ref().is_some_and(|front| front.is_older(generation)) {
            self.note_front();
            // The old cursor goes first, so that never both hold memory.
            self.front = None;
        }
        let snapshot = self.snapshot.seq();
        let front = Walk::ready(&mut self.front, &self.source, generation, snapshot)?;
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

    /// To the visible pair before: `back` then stands on it, or behind a copy of it in `lowered` and `back_value`.
    fn step_back(&mut self) -> Result<bool> {
        self.source.check()?;
        self.note_front();
        let generation = self.source.generation();
        if self.back.as_ref().is_some_and(|back| back.is_older(generation)) {
            self.note_back();
            self.back = None;
        }
        let snapshot = self.snapshot.seq();
        let back = Walk::ready(&mut self.back, &self.source, generation, snapshot)?;
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
        if let Some(key) = self.front.as_mut().and_then(Walk::key_to_note) {
            self.raised.clear();
            self.raised.extend_from_slice(key);
            self.raised.push(0);
        }
    }

    /// Notes the key on which the back stands.
    #[inline]
    fn note_back(&mut self) {
        if let Some(key) = self.back.as_mut().and_then(Walk::key_to_note) {
            self.lowered.clear();
            self.lowered.extend_from_slice(key);
        }
    }
}

/// No key below is left to give.
fn from<'a>(bounds: &'a KeyBounds, raised: &'a [u8]) -> &'a [u8] {
    if raised.is_empty() { &bounds.from } else { raised }
}

/// No key at or above is left to give.
fn upto<'a>(bounds: &'a KeyBounds, lowered: &'a [u8]) -> Option<&'a [u8]> {
    if lowered.is_empty() { bounds.upto.as_deref() } else { Some(lowered) }
}

impl<C: Cursor> Walk<C> {
    /// The cursor in `slot`, or a new one put there.
    fn ready<'a, S: Source<Cursor = C>>(
        slot: &'a mut Option<Walk<C>>,
        source: &S,
        generation: u64,
        position: Seq,
    ) -> Result<&'a mut Walk<C>> {
        match slot {
            Some(walk) => Ok(walk),
            // The generation was read before: should it change in between, the next step makes one more.
            None => Ok(slot.insert(Walk {
                generation,
                cursor: source.cursor(position)?,
                stands: Stands::Anywhere,
            })),
        }
    }

    /// Whether it has to be replaced. Not in the middle of a step: the pair given last is not known any more.
    fn is_older(&self, generation: u64) -> bool {
        self.generation != generation && self.stands != Stands::OnNext
    }

    #[inline]
    fn pair(&self) -> Option<PairRef<'_>> {
        self.cursor.entry().map(|entry| (entry.key, entry.value))
    }

    /// The key of the pair given last, if it stands on it and this is the first time it is asked.
    #[inline]
    fn key_to_note(&mut self) -> Option<&[u8]> {
        if self.stands != Stands::OnGiven {
            return None;
        }
        self.stands = Stands::OnNoted;
        self.cursor.entry().map(|entry| entry.key)
    }

    /// Forward to the next key.
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
