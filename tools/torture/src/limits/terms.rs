//! How long a limit lasts, and the result of a trial.

use fastrand::Rng;

use crate::lack::Lack;
use crate::report::{Counts, Failure};

/// The result of a trial.
pub(super) type Found = Result<Counts, Lack>;

/// The number of errors to wait for.
pub(super) const ERRORS: u64 = 3;
/// Writes that must follow after the limit is removed.
pub(super) const MORE: u64 = 50;

/// The most writes of an errand before the limit is set.
pub(super) fn at_first(rng: &mut Rng) -> u64 {
    rng.u64(20..90)
}

pub(super) fn io(what: &'static str) -> impl Fn(std::io::Error) -> Lack {
    move |error| Lack::Store(Failure::new(format!("{what}: {error}")))
}
