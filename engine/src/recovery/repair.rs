//! What a repair of the log gives up.
//!
//! An open that finds damage in the log refuses, since behind the damage there were acknowledged writes, and which of
//! them may be missed is nothing that a program can decide. A repair is that decision, made by a person: the log ends
//! with the last whole record before the damage, or goes on from there with what the ring still has.
//!
//! Invariant: nothing is repaired by any other call than [`Builder::repair`](crate::Builder::repair).

use crate::base::error::Error;
use crate::base::key::Seq;

/// Damage in the log, and what cutting the log there keeps and loses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogDamage {
    /// What an open refuses, with file and offset.
    pub error: Error,
    /// Records of log and ring that are kept. What segments hold is kept in any case.
    pub kept_records: u64,
    /// Bytes of acknowledged log behind the cut, as far as what can still be read of the log tells. 0 if the ring has it
    /// all. What keyspaces had flushed of them already is kept.
    pub cut_bytes: u64,
}

impl LogDamage {
    /// What is kept ends at `kept`, and the log was acknowledged up to `acknowledged` at least.
    pub(crate) fn new(error: Error, kept_records: u64, (kept, acknowledged): (Seq, Seq)) -> LogDamage {
        LogDamage { error, kept_records, cut_bytes: acknowledged.since(kept) }
    }
}
