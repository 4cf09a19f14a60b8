//! Linux native AIO, safe: contexts, operations that own their buffers, waiting, waking, futures, a simulated disk.
#![doc = ""]
#![doc = include_str!("../README.md")]

pub mod file;
#[doc(hidden)]
pub mod planted;
pub mod sim;

mod advice;
mod backend;
mod buf;
mod calls;
mod clock;
mod completion_ring;
mod context;
mod device;
mod error;
mod event_fd;
mod every_error;
mod fall_back;
mod flags;
mod holder;
mod identity;
mod in_flight;
mod insist;
mod kind;
mod layer;
mod native;
mod open_file;
mod operation;
mod patience;
mod probe;
mod profile;
mod queue;
mod reactor;
mod report;
mod settings;
mod signal;
mod sys;
mod thread_queue;
mod trace;
mod wait_out;
mod waker;

pub use advice::Full;
pub use backend::{AioSlots, Backend, Lock, OpenMode, SharedMap, Stat};
pub use buf::{Buf, Lender, Pages};
pub use context::{Context, ContextBuilder};
pub use error::{Errno, Error, Result};
pub use event_fd::EventFd;
#[doc(hidden)]
pub use every_error::{assert_said_once, every_error};
pub use fall_back::FallBack;
pub use flags::{Flags, Priority, Readiness};
pub use holder::Holder;
pub use kind::{IoClass, OperationKind};
pub use layer::{BackendLayer, QueueLayer};
pub use native::NativeBackend;
pub use open_file::{Alignment, File, SECTOR_BYTES};
pub use operation::{AnyFile, Completion, Operation};
pub use probe::memory_file_system;
pub use profile::{IoProfile, LatencyBucket, LatencyHistogram, OperationProfile, Place, SIZE_CLASSES_BYTES};
pub use queue::{Cancel, Queue, Wake, WakeUp};
pub use reactor::{DriverThread, Reactor, Refused, Submission, block_on};
pub use report::{Probe, probe};
pub use settings::{Reaping, Waking};
pub use signal::{SignalSet, block_all_signals};
pub use sim::SimBackend;
#[doc(hidden)]
pub use trace::Counting;
pub use wait_out::wait_out;
