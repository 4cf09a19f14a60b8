//! Memory under one budget: the block cache, and the parts that other code reserves of it.

pub(crate) mod cache;
pub(crate) mod reserve;
