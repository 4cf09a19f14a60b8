//! The contract of everything that walks entries in order: memtables, blocks, segments, runs, merges.
//!
//! A cursor stands on an entry or past either end. It is positioned by a seek and then moved in **one** direction;
//! turning round is a new seek. That keeps merges free of direction switches: an iterator that is used from both ends
//! has one cursor for each.

use crate::error::Result;
use crate::key::Entry;

/// Walks entries in internal order (key ascending, newest first), or exactly backwards.
pub(crate) trait Cursor: Send {
    /// To the first entry whose key is `>= key`; its newest version. The empty key is before every key.
    fn seek(&mut self, key: &[u8]) -> Result<()>;

    /// To the last entry whose key is `< key`: the oldest version of that key. `None`: to the very last entry.
    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()>;

    /// One entry on. Only after [`Cursor::seek`], and only while [`Cursor::entry`] is not `None`.
    fn next(&mut self) -> Result<()>;

    /// One entry back. Only after [`Cursor::seek_before`], and only while [`Cursor::entry`] is not `None`.
    fn prev(&mut self) -> Result<()>;

    /// The entry it stands on; `None` past the end (also before the first seek).
    fn entry(&self) -> Option<Entry<'_>>;
}
