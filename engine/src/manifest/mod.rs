//! Which files are live: the version, the edits between two versions, and the log that keeps them.

pub(crate) mod edit;
pub(crate) mod edit_log;
pub(crate) mod levels;
pub(crate) mod replay_input;
pub(crate) mod version;
