//! The read path: cursors, their merge, one snapshot's view of it, many gets at once.

pub(crate) mod cursor;
#[cfg(test)]
pub(crate) mod cursor_contract;
pub(crate) mod merge;
pub(crate) mod multi_get;
pub(crate) mod snapshot_iter;
pub(crate) mod staged_seek;
