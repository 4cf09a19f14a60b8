//! Compaction: merging runs so that a read meets few of them and dead entries give their space back.
//!
//! `picker` decides what to merge and does no I/O; `output` writes and decides nothing; `warm` brings back into the cache
//! what was hot. Simple inside for now: whole
//! runs are merged, one merge at a time. Key-range partitions, parallel merges and pacing come later.

pub(crate) mod flush;
pub(crate) mod job;
pub(crate) mod output;
pub(crate) mod pacing;
pub(crate) mod picker;
pub(crate) mod retain;
pub(crate) mod scheduler;
pub(crate) mod warm;
