//! Counts of everything that was tried, and how they and a failure are printed.
//!
//! Invariant: counts are sums over cases, so they do not depend on the distribution of cases over threads.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;

/// A mistake of the store, or something that the harness did not expect.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    what: String,
    /// The store returned this error instead of an answer. With a fault in the machine that may be right.
    refused: Option<esker::Error>,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), refused: None }
    }

    /// The same, with its place in front.
    #[must_use]
    pub(crate) fn at(self, place: impl fmt::Display) -> Failure {
        Failure { what: format!("{place}: {}", self.what), ..self }
    }

    /// The store's own error, if the failure is only that.
    pub(crate) fn refused(&self) -> Option<&esker::Error> {
        self.refused.as_ref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl From<esker::Error> for Failure {
    fn from(error: esker::Error) -> Failure {
        Failure { what: error.to_string(), refused: Some(error) }
    }
}

/// Result of everything that can find a failure.
pub(crate) type Check<T = ()> = Result<T, Failure>;

/// Named numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// All names with zero, so that a case that never happened is visible.
    pub(crate) fn of(names: &[&'static str]) -> Counts {
        Counts(names.iter().map(|name| (*name, 0)).collect())
    }

    pub(crate) fn add(&mut self, name: &'static str, amount: u64) {
        *self.0.entry(name).or_default() += amount;
    }

    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn merge(&mut self, other: &Counts) {
        for (name, amount) in &other.0 {
            self.add(name, *amount);
        }
    }

    /// Names whose count is zero.
    pub(crate) fn zeros(&self) -> Vec<&'static str> {
        self.0.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        self.0.iter().map(|(name, count)| ((*name).to_owned(), serde_json::Value::from(*count))).collect()
    }
}

/// All counts of a run or of a part of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// States, cases, and the other counts of the command.
    pub(crate) counts: Counts,
    /// Operations by kind.
    pub(crate) operations: Counts,
}

impl Tally {
    pub(crate) fn merge(&mut self, other: &Tally) {
        self.counts.merge(&other.counts);
        self.operations.merge(&other.operations);
    }
}

/// Writes one line to standard output. A closed pipe is no failure.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes one line to standard error.
pub(crate) fn complain(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
