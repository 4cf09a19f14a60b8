//! Under construction.

mod coding;
mod error;
mod files;
mod iter;
mod key;

pub use error::{Error, Result};
pub use key::{MAX_KEY_BYTES, Seq};
