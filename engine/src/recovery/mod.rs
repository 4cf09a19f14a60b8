//! From a directory to an open store, and what a repair of the log gives up.

pub(crate) mod lost_edit;
pub(crate) mod open;
pub(crate) mod repair;
#[cfg(test)]
mod tests;
