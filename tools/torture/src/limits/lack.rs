//! Why a trial has no result.

use crate::report::Failure;

/// See the module.
#[derive(Debug)]
pub(super) enum Lack {
    /// The machine cannot do that.
    Machine(String),
    Store(Failure),
}

impl From<Failure> for Lack {
    fn from(failure: Failure) -> Lack {
        Lack::Store(failure)
    }
}
