//! The iterator that users see: one value per key, as of one snapshot.
//!
//! Under it lie merges over memtables and segments, which show every version of every key. A cursor walks one
//! way only, so each end of the iterator has its own, made when that end is first used. What is left to give
//! lies in `from <= key < upto`; the front raises `from`, the back lowers `upto`, and that is all they know
//! of each other.
//!
//! Invariants:
//! - `from` and `upto` alone say where the iterator stands; a cursor can be dropped and made anew any time;
//! - before each step a cursor of an older generation of its source is replaced, so that what was flushed or
//!   compacted meanwhile is let go, and no lock is held between steps.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::iter::Cursor;
use crate::key::{Kind, Seq};
use crate::range::KeyBounds;
use crate::snapshots::SnapshotGuard;

/// Where an iterator gets its entries from: a keyspace.
pub(crate) trait Source: Send + Sync {
    /// A cursor over every entry there is, also those that a snapshot does not see.
    fn cursor(&self) -> Result<Box<dyn Cursor>>;

    /// Changes whenever cursors should be made anew: a memtable was frozen or flushed, segments were
    /// compacted, the keyspace was dropped.
    fn generation(&self) -> u64;
}

/// Key-value pairs in ascending order of keys; from the back in descending order.
///
/// Shows the state at its creation, whatever is written meanwhile; also by the thread that iterates, which
/// may put and delete at will between two steps. Both ends can be used in turn; they stop when they meet.
///
/// # Concurrency
///
/// `Send`: may be moved to another thread. A step may read from the device, waits for no writer and holds no
/// lock when it returns. The iterator keeps its snapshot, and with it older entries, from being compacted
/// away: do not keep it for longer than it is used. Creating it costs nothing; the first step at either end
/// seeks.
///
/// # Errors
///
/// A step that fails returns the error, and so does every step after it: what comes next is not known, and
/// skipping it would lose data silently. (So `filter_map(Result::ok)` never ends.) [`Iter::seek`] tries
/// again.
///
/// # Examples
///
/// Deleting while iterating is fine; what the loop writes, it does not see:
///
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let db = esker::Db::open(dir.path().join("store"))?;
/// # let keyspace = db.keyspace("default")?;
/// keyspace.put("session/1", "expired")?;
/// keyspace.put("session/2", "fresh")?;
/// for pair in keyspace.prefix("session/") {
///     let (key, value) = pair?;
///     if value == "expired" {
///         keyspace.delete(&key)?;
///     }
/// }
/// // From the back, or on from any key.
/// let mut iter = keyspace.iter();
/// assert_eq!(iter.next_back().transpose()?, Some(("session/2".into(), "fresh".into())));
/// iter.seek("session/1");
/// assert_eq!(iter.next().transpose()?, Some(("session/2".into(), "fresh".into())));
/// # Ok(())
/// # }
/// ```
pub struct Iter {
    source: Arc<dyn Source>,
    snapshot: SnapshotGuard,
    /// The whole range; [`Iter::seek`] moves in it.
    bounds: KeyBounds,
    /// The smallest key that is not given yet. After a step the key given, with a zero byte appended.
    from: Vec<u8>,
    /// Above every key that is not given yet; `None`: no such bound.
    upto: Option<Vec<u8>>,
    front: Option<Walk>,
    back: Option<Walk>,
    /// The value last given at the back: its cursor has gone on.
    back_value: Vec<u8>,
    state: State,
}

/// A cursor in use.
struct Walk {
    generation: u64,
    cursor: Box<dyn Cursor>,
}

enum State {
    Open,
    /// Nothing visible is left between `from` and `upto`.
    Finished,
    Failed(Error),
}

impl Iter {
    pub(crate) fn new(source: Arc<dyn Source>, snapshot: SnapshotGuard, bounds: KeyBounds) -> Iter {
        Iter {
            source,
            snapshot,
            from: bounds.from.to_vec(),
            upto: bounds.upto.as_ref().map(|upto| upto.to_vec()),
            state: if bounds.is_empty() { State::Finished } else { State::Open },
            bounds,
            front: None,
            back: None,
            back_value: Vec::new(),
        }
    }

    /// The next pair from the front, borrowed until the next call. Copies the key, never the value.
    ///
    /// # Errors
    ///
    /// Those of reading: [`Error::Io`], [`Error::Corrupt`]; [`Error::Closed`] when store or keyspace are
    /// gone. See [`Iter`] for what follows.
    pub fn next_ref(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        if !self.run(Iter::step_front)? {
            return Ok(None);
        }
        Ok(self.front.as_ref().and_then(|front| front.cursor.entry()).map(|entry| (entry.key, entry.value)))
    }

    /// The next pair from the back, borrowed until the next call.
    ///
    /// # Errors
    ///
    /// As [`Iter::next_ref`].
    pub fn next_back_ref(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        if !self.run(Iter::step_back)? {
            return Ok(None);
        }
        Ok(self.upto.as_deref().map(|key| (key, self.back_value.as_slice())))
    }

    /// Continues at the first key `>= key` of the iterator's range, be it ahead or behind, also after an
    /// error. The back starts again at the end of the range. Costs nothing until the next step.
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.from.clear();
        self.from.extend_from_slice(self.bounds.from.as_ref().max(key.as_ref()));
        self.upto = self.bounds.upto.as_ref().map(|upto| upto.to_vec());
        self.front = None;
        self.back = None;
        let empty = self.upto.as_ref().is_some_and(|upto| *upto <= self.from);
        self.state = if empty { State::Finished } else { State::Open };
    }

    /// The keys only.
    pub fn keys(self) -> Keys {
        Keys { iter: self }
    }

    /// One step, if there is something left; whether it found a pair.
    fn run(&mut self, step: impl FnOnce(&mut Iter) -> Result<bool>) -> Result<bool> {
        match &self.state {
            State::Open => {}
            State::Finished => return Ok(false),
            State::Failed(error) => return Err(error.clone()),
        }
        let found = step(self);
        match &found {
            Ok(true) => return found,
            Ok(false) => self.state = State::Finished,
            Err(error) => self.state = State::Failed(error.clone()),
        }
        self.front = None;
        self.back = None;
        found
    }

    /// To the next visible pair: the key then stands in `from`, its value under the cursor.
    fn step_front(&mut self) -> Result<bool> {
        let snapshot = self.snapshot.seq();
        let front = Walk::renew(&mut self.front, self.source.as_ref(), |cursor| cursor.seek(&self.from))?;
        while let Some(entry) = front.cursor.entry() {
            if self.upto.as_deref().is_some_and(|upto| entry.key >= upto) {
                return Ok(false);
            }
            // Below `from` stand older versions of the key that was decided last.
            if entry.key >= self.from.as_slice() && entry.seq < snapshot {
                self.from.clear();
                self.from.extend_from_slice(entry.key);
                self.from.push(0);
                if entry.kind == Kind::Put {
                    return Ok(true);
                }
            }
            front.cursor.next()?;
        }
        Ok(false)
    }

    /// To the visible pair before: its key then stands in `upto`, its value in `back_value`.
    fn step_back(&mut self) -> Result<bool> {
        let snapshot = self.snapshot.seq();
        let upto = self.upto.as_deref();
        let back = Walk::renew(&mut self.back, self.source.as_ref(), |cursor| cursor.seek_before(upto))?;
        while let Some(entry) = back.cursor.entry() {
            if entry.key < self.from.as_slice() {
                return Ok(false);
            }
            let key = self.upto.get_or_insert_default();
            key.clear();
            key.extend_from_slice(entry.key);
            if back.newest_visible(key, snapshot, &mut self.back_value)? == Some(Kind::Put) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Walk {
    /// The cursor in `slot`, or a new one put there by `seek` if it is missing or outdated.
    fn renew<'a>(
        slot: &'a mut Option<Walk>,
        source: &dyn Source,
        seek: impl FnOnce(&mut dyn Cursor) -> Result<()>,
    ) -> Result<&'a mut Walk> {
        // Read before the cursor is made: should it change in between, the next step makes one more.
        let generation = source.generation();
        if let Some(walk) = slot.take_if(|walk| walk.generation == generation) {
            return Ok(slot.insert(walk));
        }
        // The old cursor goes first, so that never both hold memory.
        *slot = None;
        let mut cursor = source.cursor()?;
        seek(cursor.as_mut())?;
        Ok(slot.insert(Walk { generation, cursor }))
    }

    /// Walks back over all versions of `key`, oldest first; gives the kind of the newest below `snapshot`,
    /// and its value.
    fn newest_visible(&mut self, key: &[u8], snapshot: Seq, value: &mut Vec<u8>) -> Result<Option<Kind>> {
        let mut newest = None;
        while let Some(entry) = self.cursor.entry().filter(|entry| entry.key == key) {
            if entry.seq < snapshot {
                newest = Some(entry.kind);
                value.clear();
                value.extend_from_slice(entry.value);
            }
            self.cursor.prev()?;
        }
        Ok(newest)
    }
}

impl Iterator for Iter {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_ref().map(|pair| pair.map(copied)).transpose()
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.next_back_ref().map(|pair| pair.map(copied)).transpose()
    }
}

impl FusedIterator for Iter {}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter")
            .field("snapshot", &self.snapshot.seq())
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

fn copied((key, value): (&[u8], &[u8])) -> (Bytes, Bytes) {
    (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

/// The keys of an [`Iter`], which see. Values are not copied.
#[derive(Debug)]
pub struct Keys {
    iter: Iter,
}

impl Iterator for Keys {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.iter.next_ref().map(|pair| pair.map(|(key, _)| Bytes::copy_from_slice(key))).transpose()
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.iter.next_back_ref().map(|pair| pair.map(|(key, _)| Bytes::copy_from_slice(key))).transpose()
    }
}

impl FusedIterator for Keys {}

#[cfg(test)]
#[path = "db_iter_tests.rs"]
mod tests;
