//! Files, direct I/O above the backend, and streams over it.

pub(crate) mod background;
pub(crate) mod contexts;
pub(crate) mod files;
pub(crate) mod kinds;
pub(crate) mod lane;
pub(crate) mod open_files;
pub(crate) mod pool;
pub(crate) mod read_ahead;
pub(crate) mod read_stream;
pub(crate) mod removals;
pub(crate) mod write_stream;
