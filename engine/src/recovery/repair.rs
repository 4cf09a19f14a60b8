//! The damage in a store: its description, and the part of the log that a repair keeps.
//!
//! An open refuses a damaged log: behind the damage there were acknowledged writes, and a program cannot decide which of
//! them may be lost. A repair is that decision, made by a person: the log ends with the last whole record before the damage,
//! or continues with the records that the ring still has.
//!
//! Invariant: only [`Builder::repair`](crate::Builder::repair) repairs.

use std::fmt;

use crate::base::error::Error;

/// The damage of a store, apart from its manifest.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Damage {
    /// Damage in the log, which [`Builder::repair`](crate::Builder::repair) cuts off.
    pub log: Option<LogDamage>,
    /// The first damage of each damaged or missing segment, with file and offset. No repair can make good for it: restore a
    /// backup. Reads of other files still work once the store is open, but an open may be refused, too.
    pub segments: Vec<Error>,
    /// The log ends in a group of writes that is cut off, as a loss of power leaves it. None of them was acknowledged as durable,
    /// unless the medium has lost a part of the group since, which looks the same. This is no damage. An open keeps those that the
    /// ring still has, and drops the others.
    pub torn_tail: bool,
}

impl Damage {
    /// Whether no damage was found. The newest groups of log or manifest, to the end of the file, that a medium has lost without
    /// a trace, and damage in the ring, cannot be found: they look like the effect of a loss of power.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.log.is_none() && self.segments.is_empty()
    }
}

/// Damage in the log, and the records that a cut there keeps and loses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogDamage {
    /// The error of an open, with file and offset.
    pub error: Error,
    /// Records of log and ring that are kept. Entries of segments are kept in any case.
    pub kept_records: u64,
    /// How much is lost.
    pub loss: Loss,
}

/// The writes that a cut loses, as bytes of the log: keys, values and what frames them. Writes that are in segments do not count.
///
/// All bounds are as far as the files show. An end of a log file that looks unused is taken for unused, unless the same file
/// proves the opposite. So where a medium has lost more files or parts of files than the damaged one, more may be missing.
///
/// It prints as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// As much is lost for certain of the log that was durable: the part that can be read proves it. Where records ended in it,
    /// nothing shows. So its last bytes may be of writes that were under way at the crash and never acknowledged, or the durable
    /// part of a large one.
    pub at_least_bytes: u64,
    /// As much can be lost of the writes that were durable, which are those of [`Durability::Power`](crate::Durability::Power)
    /// and all before them. Where a file is missing or cannot be read, it is taken for full.
    pub at_most_durable_bytes: u64,
    /// As much can be lost of all writes: also of those of [`Durability::Process`](crate::Durability::Process) that only the ring
    /// had: nothing proves where they ended.
    pub at_most_bytes: u64,
}

/// Other damage may hide more.
const SHOWN: &str = " as far as the files show";

/// The proof is of bytes, not of records.
const UNDER_WAY: &str = " (the last of them may be of a write that was not acknowledged)";

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { at_least_bytes: least, at_most_durable_bytes: durable, at_most_bytes: most } = *self;
        match (least, durable) {
            (_, 0) => write!(f, "no durable write is lost{SHOWN}"),
            (0, _) => {
                write!(
                    f,
                    "it is unknown how many durable writes are lost: up to {durable} bytes of log{SHOWN}"
                )
            }
            (least, durable) if least == durable => {
                write!(f, "{least} bytes of durable log are lost{SHOWN}{UNDER_WAY}")
            }
            _ => write!(f, "between {least} and {durable} bytes of durable log are lost{SHOWN}{UNDER_WAY}"),
        }?;
        if most > durable {
            write!(f, "; with newer ones, which only the ring had, it can be up to {most} bytes")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_unknown_is_never_called_none() {
        let text = |least, durable, most| {
            Loss { at_least_bytes: least, at_most_durable_bytes: durable, at_most_bytes: most }.to_string()
        };
        assert!(text(0, 900, 1000).starts_with("it is unknown"), "{}", text(0, 900, 1000));
        assert!(text(500, 900, 1000).contains("between 500 and 900"));
        assert!(text(900, 900, 1000).contains("900 bytes of durable log are lost"));
        for (least, durable) in [(500, 900), (900, 900)] {
            assert!(text(least, durable, 1000).contains("not acknowledged"), "bytes are no whole writes");
        }
        for (least, durable) in [(0, 0), (0, 900), (900, 900)] {
            let text = text(least, durable, 1000);
            assert!(text.contains("up to 1000 bytes") && !text.contains("at least 0"), "{text}");
            assert!(text.contains("as far as the files show"), "{text}");
        }
    }
}
