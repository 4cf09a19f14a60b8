//! Types for all other parts: errors, keys, options, coding, locks.

pub(crate) mod clock;
pub(crate) mod coding;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod key;
pub(crate) mod meaning;
pub(crate) mod metrics;
pub(crate) mod options;
pub mod planted;
pub(crate) mod prefetch;
pub(crate) mod range;
pub(crate) mod sync;
