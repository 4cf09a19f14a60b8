//! Memory under one budget: the block cache, and what others reserve of it.

pub(crate) mod cache;
pub(crate) mod reserve;
