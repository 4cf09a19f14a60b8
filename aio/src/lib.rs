//! Linux native AIO, safe. (Under construction.)

pub mod file;

mod backend;
mod buf;
mod error;

pub use backend::{
    Action, Alignment, Backend, Completion, File, Lock, OpenMode, Operation, Queue, SECTOR_BYTES, SharedMap,
    Stat, Wake, WakeUp,
};
pub use buf::Buf;
pub use error::{Errno, Error, Result};
