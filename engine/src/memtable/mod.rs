//! The ordered write buffer of one keyspace.
//!
//! `table` is the whole, `cursor` walks it. Inside: a `filter` in front of a `tree` of `node`s with one `latch` each, in
//! an `arena`, whose `chunk`s (found through a `directory`) come from a `pool` that all tables of a store share.
//!
//! Invariants:
//! - an entry that was inserted is never changed or removed: a memtable only grows, then is dropped as a
//!   whole;
//! - no two entries have the same key and `Seq`;
//! - a reader chooses the entries that it sees by their `Seq`: the memtable does not know snapshots.

mod arena;
mod chunk;
mod cursor;
mod directory;
mod filter;
mod latch;
#[cfg(loom)]
#[cfg(test)]
mod models;
mod node;
mod pool;
mod table;
mod tree;

pub(crate) use cursor::MemtableCursor;
pub(crate) use pool::ArenaPool;
pub(crate) use table::Memtable;
