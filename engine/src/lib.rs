//! Under construction.

mod cache;
mod coding;
mod db_iter;
mod error;
mod files;
mod iter;
#[cfg(test)]
mod iter_contract;
mod key;
mod memtable;
mod merge;
mod ops;
mod range;
mod retain;
mod segment;
mod snapshots;

pub use db_iter::{Iter, Keys};
pub use error::{Error, Result};
pub use key::{MAX_KEY_BYTES, Seq};
pub use range::KeyRange;
