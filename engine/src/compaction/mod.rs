//! Compaction: merges runs, so that a read searches few of them and dead entries take no space.
//!
//! `picker` chooses the runs to merge and does no I/O. `output` writes segments and decides nothing. `warm` reads the hot
//! blocks of the inputs back into the cache. A merge takes whole runs, and one merge runs at a time. `pacing` says how fast
//! writes may go, `pace` keeps what it needs to know.

pub(crate) mod flush;
pub(crate) mod job;
pub(crate) mod output;
pub(crate) mod pace;
pub(crate) mod pacing;
pub(crate) mod picker;
pub(crate) mod retain;
pub(crate) mod scheduler;
pub(crate) mod warm;
