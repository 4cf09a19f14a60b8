//! Files and direct I/O above the backend.

pub(crate) mod files;
pub(crate) mod kinds;
pub(crate) mod read_ahead;
pub(crate) mod removals;
