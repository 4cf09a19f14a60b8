//! The ordered write buffer of one keyspace.
//!
//! `table` holds the entries, `cursor` walks them without holding a lock between calls.
//!
//! Invariants:
//! - an entry that was inserted is never changed or removed: a memtable only grows, then is dropped as a
//!   whole;
//! - no two entries have the same key and `Seq`;
//! - who reads decides by `Seq` what he sees: the memtable knows nothing of visibility.

mod chunk;
mod cursor;
mod table;

pub(crate) use cursor::MemtableCursor;
pub(crate) use table::Memtable;
