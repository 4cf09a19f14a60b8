//! From a directory to an open store, and the losses of a repair of the log.
//!
//! `open` is the sequence of steps; most have a file here.

pub(crate) mod assemble;
pub(crate) mod begin;
pub(crate) mod damage;
pub(crate) mod enter;
#[cfg(test)]
mod failed_open_tests;
pub(crate) mod load;
pub(crate) mod lost_edit;
pub(crate) mod open;
pub(crate) mod orphans;
pub(crate) mod repair;
pub(crate) mod replay;
#[cfg(test)]
mod tests;
