//! A write-ahead log on native AIO.
//!
//! # The bytes
//! The log is one endless stream of records; a position in it is a [`Seq`]. `record`, `sector` and `seal` define the
//! bytes, each with its table:
//!
//! ```text
//!   stream      | record | record | record     | record | ...        crc over store, incarnation, position, payload
//!               |        |        |            |        |
//!   ring file   [ the newest records, lap after lap, mapped         ]   survives kill -9
//!               |                      |
//!   group       | header | stream bytes .. padding |                    made durable by one sync
//!               |        |        |    /
//!   log file    [ sector | sector | sector | ... ]                      512 bytes: crc, epoch, 504 payload
//! ```
//!
//! # The contract
//! * [`Log::reserve`] gives a record its place in the order of writes. A crash always leaves a prefix of that
//!   order. A [`Reservation`] that is dropped leaves a void, over which replay steps: a panic does not stop the log.
//! * After [`Log::wait_process`] it survives the death of the process by any signal: it is in a mapped file.
//! * After [`Log::wait_durable`] it, and everything before it, survives a loss of power: it was written, the write was
//!   reaped whole, and a sync that began afterwards succeeded.
//! * [`replay`] gives back a prefix that holds at least all of that, or refuses with file and offset. A torn tail,
//!   which any power cut may leave, is told from damage, which none can: every sector has a checksum, and is current,
//!   older, or damaged.
//! * The first failed write or sync stops the log for good. Nothing is retried: after a failed sync the kernel may
//!   have dropped any of the written pages.
//!
//! The log needs a manifest beside it (the [`Host`]): a few numbers, made durable before a file is used, that tell a
//! replay where to look. An incarnation, one writable open, never writes to a file of another incarnation in use.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
//!
//! use aio::Backend;
//! use wal::{Host, Log, LogOptions, RecordBuf, Seq};
//!
//! /// A manifest that forgets everything: enough until the first replay.
//! #[derive(Debug, Default)]
//! struct NoManifest(AtomicU64, AtomicU32);
//!
//! impl Host for NoManifest {
//!     fn new_file_id(&self) -> u64 {
//!         self.0.fetch_add(1, Ordering::Relaxed)
//!     }
//!     fn activate(&self, _file_id: u64, _start: Seq) -> wal::Result<u32> {
//!         Ok(self.1.fetch_add(1, Ordering::Relaxed) + 1)
//!     }
//!     fn ring_grown(&self, _file_bytes: u64) -> wal::Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A simulated machine; `aio::NativeBackend` is the real one.
//! let backend = Arc::new(aio::SimBackend::new(1));
//! backend.make_dir("/wal".as_ref())?;
//! let log = Log::open(backend, LogOptions::new("/wal", 7, 1, Seq::ZERO), Arc::new(NoManifest::default()))?;
//!
//! let mut record = RecordBuf::new();
//! record.push(b"a batch of writes");
//! let first = log.append(&mut record)?;
//! let second = log.append(&mut record)?;
//! assert_eq!(second.seq, first.end);
//!
//! // One sync for both: an acknowledgement covers everything up to a position.
//! log.wait_durable(second.end)?;
//! assert_eq!(log.metrics().syncs, 1);
//! log.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Reading order
//! `log` (the handle), `reservation` (a place in the stream), `commit_thread` (the rounds that are due), `group_commit`
//! (which thread runs a round), `flusher` (the steps of a round), `log_file`, `ring`, `watermark`, `front`, `bounds`,
//! `replay`, `ended_ring`, `chain`, `seal`, `sector`, `record`.

mod bounds;
mod chain;
mod commit_thread;
mod ended_ring;
mod error;
mod flusher;
mod front;
mod group_commit;
mod log;
mod log_file;
#[doc(hidden)]
pub mod planted;
mod record;
mod replay;
mod reservation;
mod ring;
#[cfg(shuttle)]
pub mod scheduled;
mod seal;
mod sector;
mod sync;
mod watermark;

/// Locks of the models, for those of the engine.
#[cfg(loom)]
pub mod modelled {
    pub use crate::sync::model::{Condvar, Mutex, MutexGuard};
}

pub use bounds::{Bounds, bounds};
pub use chain::{Chain, ChainRules, Stop, Verdict, read_chain};
pub use error::{Error, Result};
pub use flusher::SyncMethod;
pub use front::Front;
pub use log::{Background, Log, LogMetrics, LogOptions};
pub use log_file::{ActiveFile, Host, KeptFiles, log_file_path};
pub use record::{
    Decoded, GRANULE, Prepared, RECORD_HEADER_BYTES, RecordBuf, Seq, StreamOrigin, decode, void_header,
};
pub use replay::{ReplayInput, Replayed, read_whole, replay, replay_to_damage};
pub use reservation::{Appended, Reservation};
pub use seal::{GROUP_HEADER_BYTES, Group, STEP, seal};
pub use sector::{MAX_EPOCH, Place, SECTOR_PAYLOAD_BYTES, SectorState, classify, seal_sector};
pub use watermark::Watermark;
