//! The read path: views of a keyspace, point reads of many keys, cursors, their merge, the snapshot iterator.

pub(crate) mod cursor;
#[cfg(test)]
pub(crate) mod cursor_contract;
pub(crate) mod merge;
pub(crate) mod multi_get;
pub(crate) mod snapshot_iter;
pub(crate) mod staged_seek;
pub(crate) mod view;
