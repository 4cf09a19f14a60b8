//! Looking at an open store: verification and metrics.

pub(crate) mod report;
pub(crate) mod verify;
