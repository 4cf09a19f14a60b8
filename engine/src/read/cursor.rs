//! The contract of all cursors: those of memtables, segments, runs and merges walk entries in order.
//!
//! A cursor stands on an entry or past either end. A seek positions it, and then it moves in **one** direction; to turn
//! round, it seeks again. So a merge never switches its direction. An iterator that is used from both ends has one cursor
//! for each.

use crate::base::error::Result;
use crate::base::key::Entry;

/// The goal of a seek.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// The goal of [`Cursor::seek`].
    From(&'a [u8]),
    /// The goal of [`Cursor::seek_before`].
    Before(Option<&'a [u8]>),
}

/// The direction in which a cursor moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// Walks entries in internal order (key ascending, newest first), or exactly backwards.
pub(crate) trait Cursor: Send {
    /// Moves to the newest version of the first key `>= key`. The empty key is before every key.
    fn seek(&mut self, key: &[u8]) -> Result<()>;

    /// Moves to the oldest version of the last key `< key`. `None`: to the very last entry.
    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()>;

    /// All of `cursors` are about to seek `target`, one after the other. An implementation can start their reads together
    /// here, so that their waits overlap.
    fn prepare<'a>(cursors: impl Iterator<Item = &'a mut Self>, target: Target<'_>)
    where
        Self: Sized + 'a,
    {
        let _ = (cursors, target);
    }

    /// Moves to the next entry. Only after [`Cursor::seek`], and only while [`Cursor::entry`] is not `None`.
    fn next(&mut self) -> Result<()>;

    /// Moves to the entry before. Only after [`Cursor::seek_before`], and only while [`Cursor::entry`] is not `None`.
    fn prev(&mut self) -> Result<()>;

    /// The entry on which the cursor stands; `None` past the end, and before the first seek.
    fn entry(&self) -> Option<Entry<'_>>;

    /// Whether the next entry in the direction of the walk is known to have another key. Then the caller need not compare
    /// keys. `false` is always right.
    fn ends_key(&self) -> bool {
        false
    }

    /// Moves to the next key if that is the next entry and can be had without I/O or any other work. `true`: the cursor has
    /// moved and stands on an entry. `false`: nothing has happened. It cannot fail, and is small enough to be inlined into
    /// the loop that calls it.
    fn quick_next(&mut self) -> bool {
        false
    }

    /// Moves to the key before, under the conditions of [`Cursor::quick_next`].
    fn quick_prev(&mut self) -> bool {
        false
    }
}

impl<C: Cursor + ?Sized> Cursor for Box<C> {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        (**self).seek(key)
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        (**self).seek_before(key)
    }

    fn next(&mut self) -> Result<()> {
        (**self).next()
    }

    fn prev(&mut self) -> Result<()> {
        (**self).prev()
    }

    fn entry(&self) -> Option<Entry<'_>> {
        (**self).entry()
    }

    fn ends_key(&self) -> bool {
        (**self).ends_key()
    }

    fn quick_next(&mut self) -> bool {
        (**self).quick_next()
    }

    fn quick_prev(&mut self) -> bool {
        (**self).quick_prev()
    }
}
