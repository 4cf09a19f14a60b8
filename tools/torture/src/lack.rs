//! Why a trial has no result.

use crate::report::Failure;

/// Why a trial has no result.
#[derive(Debug)]
pub(crate) enum Lack {
    /// This machine cannot run it.
    Machine(String),
    Store(Failure),
}

impl From<Failure> for Lack {
    fn from(failure: Failure) -> Lack {
        Lack::Store(failure)
    }
}
