//! Linux native AIO, safe. (Under construction.)

pub mod file;
pub mod sim;

mod backend;
mod buf;
mod error;
mod native;
mod planted;
mod probe;
mod signal;
mod sys;
mod trace;
mod waker;

pub use backend::{
    Action, Alignment, Backend, Completion, File, Lock, OpenMode, Operation, Queue, SECTOR_BYTES, SharedMap,
    Stat, Wake, WakeUp,
};
pub use buf::Buf;
pub use error::{Errno, Error, Result};
pub use native::NativeBackend;
pub use planted::{Bug, planted};
pub use probe::{Probe, probe};
pub use signal::{SignalSet, block_all_signals};
pub use sim::SimBackend;
pub use trace::{Counters, LatencyHistogram, OperationCounters};
