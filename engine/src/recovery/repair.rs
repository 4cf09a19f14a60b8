//! The losses of a repair of the log.
//!
//! An open refuses a damaged log: behind the damage there were acknowledged writes, and a program cannot decide which of
//! them may be lost. A repair is that decision, made by a person: the log ends with the last whole record before the damage,
//! or continues with the records that the ring still has.
//!
//! Invariant: only [`Builder::repair`](crate::Builder::repair) repairs.

use crate::base::error::Error;

/// Damage in the log, and the records that a cut there keeps and loses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogDamage {
    /// The error of an open, with file and offset.
    pub error: Error,
    /// Records of log and ring that are kept. Entries of segments are kept in any case.
    pub kept_records: u64,
    /// Bytes of acknowledged log behind the cut, as far as the readable part of the log shows. 0 if the ring has all of them.
    /// Records that keyspaces had flushed already are kept.
    pub cut_bytes: u64,
}
