//! The contract of everything that walks entries in order: memtables, blocks, segments, runs, merges.
//!
//! A cursor stands on an entry or past either end. It is positioned by a seek and then moved in **one** direction;
//! turning round is a new seek. That keeps merges free of direction switches: an iterator that is used from both ends
//! has one cursor for each.

use crate::base::error::Result;
use crate::base::key::Entry;

/// Where a seek goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// As [`Cursor::seek`].
    From(&'a [u8]),
    /// As [`Cursor::seek_before`].
    Before(Option<&'a [u8]>),
}

/// Walks entries in internal order (key ascending, newest first), or exactly backwards.
pub(crate) trait Cursor: Send {
    /// To the first entry whose key is `>= key`; its newest version. The empty key is before every key.
    fn seek(&mut self, key: &[u8]) -> Result<()>;

    /// To the last entry whose key is `< key`: the oldest version of that key. `None`: to the very last entry.
    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()>;

    /// All of `cursors` are about to seek `target`, one after the other: the moment to let their waits overlap.
    fn prepare<'a>(cursors: impl Iterator<Item = &'a mut Self>, target: Target<'_>)
    where
        Self: Sized + 'a,
    {
        let _ = (cursors, target);
    }

    /// One entry on. Only after [`Cursor::seek`], and only while [`Cursor::entry`] is not `None`.
    fn next(&mut self) -> Result<()>;

    /// One entry back. Only after [`Cursor::seek_before`], and only while [`Cursor::entry`] is not `None`.
    fn prev(&mut self) -> Result<()>;

    /// The entry it stands on; `None` past the end (also before the first seek).
    fn entry(&self) -> Option<Entry<'_>>;

    /// Whether the entry behind the one it stands on, in the direction of the walk, is known to have another key, so that
    /// nobody needs to compare keys. `false` is always right.
    fn ends_key(&self) -> bool {
        false
    }

    /// To the next key, if what stands between is no other version and no work: `true` when it was moved, and stands on
    /// an entry; else nothing has happened. Cannot fail, and is small enough to become part of the loop that calls it.
    fn quick_next(&mut self) -> bool {
        false
    }

    /// As [`Cursor::quick_next`], backwards.
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
