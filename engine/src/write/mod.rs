//! The write path: operations as bytes, one commit from admission to acknowledgement, keyspaces made and dropped.

pub(crate) mod admission;
pub(crate) mod commit;
pub(crate) mod create_drop;
pub(crate) mod ops;
pub(crate) mod reserved;
