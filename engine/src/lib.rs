//! Esker: an embedded, durable, ordered key-value store for Linux. Its only way to the disk is native AIO on
//! `O_DIRECT` files ([`aio`]), its only promise to a crash is the log ([`wal`]).
//!
//! # Promises
//! * With [`Durability::Power`], the default, a write returns when it and everything before it in the log are on stable
//!   media. Many writers share one sync.
//! * With [`Durability::Process`] it returns when it is in the mapped ring: no signal can take it back, and a power cut
//!   can only within the next 10 ms ([`Builder::drain_interval`]) or 1 MiB of log.
//! * A [`Batch`] is always atomic across keyspaces.
//! * After a crash the store opens with a prefix of its history that holds at least everything acknowledged, or it
//!   refuses with file and offset ([`Error::Corrupt`]). It never returns wrong data, never drops acknowledged data
//!   silently.
//! * A write that has returned is seen by every read that starts later. An [`Iter`] or a [`Snapshot`] shows one moment.
//!   Later writes do not change it.
//! * The first failed write or sync of log or manifest, or sync of the folders of log and segments, stops all writing
//!   ([`Error::Halted`]); reads go on. A full disk ([`Error::NoSpace`]) is no such failure, unless one of these syncs reports it.
//!
//! # Limits
//! * 64-bit Linux on x86-64 and aarch64, kernel 5.4 or later. Where direct I/O or native AIO is
//!   refused it works without, and says so once ([`Event::FellBack`], [`Metrics::fall_backs`]).
//! * Keys have 1 to [`MAX_KEY_BYTES`] bytes, in bytewise order. A value, and a batch, must fit into one record:
//!   [`Db::max_record_bytes`], 4 MiB at the default memory budget.
//! * One process has a store open, once. Handles may be used by any number of threads, and may outlive each other.
//! * Memory is planned from one number, [`Builder::memory_budget_bytes`]. Indexes and filters of all segments (about
//!   2 bytes a key) are part of it: they may take half of the memory that they share with the block cache. The rest comes
//!   through the cache, and a get of a key that is not in memory may then cost three reads instead of one
//!   ([`Metrics::paged_segments`]).
//! * The file formats may change before the first release. Every file says its version.
//!
//! # Example
//! ```
//! use esker::{Db, Durability};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))?;
//! # let path = dir.path().join("store");
//! let db = Db::open(&path)?;
//! let (users, log) = (db.keyspace("users")?, db.keyspace("log")?);
//!
//! users.put("ann", "1")?; // a power cut cannot take it back
//! let fast = log.with_durability(Durability::Process);
//! for minute in 0..60 {
//!     fast.put(format!("{minute:02}"), "ann was here")?; // nor can `kill -9` these
//! }
//! db.batch().delete(&users, "ann").put(&log, "60", "ann left").commit()?; // both or none
//!
//! assert_eq!(users.get("ann")?, None);
//! let late: Vec<_> = log.range("58"..).rev().map(|pair| pair.map(|(key, _)| key)).collect::<Result<_, _>>()?;
//! assert_eq!(late, ["60", "59", "58"]);
//! db.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Reading order
//! `ARCHITECTURE.md` has the map. In short: `api` routes; `write/commit` is the write path, `tree` and `read` are the read
//! path, `recovery` leads from a directory to a store; `compaction` moves data into `segment`s, `manifest` says which of
//! them count.

mod api;
mod base;
mod compaction;
mod io;
mod manifest;
mod memory;
mod memtable;
mod read;
mod recovery;
mod segment;
mod tree;
mod upkeep;
mod write;

pub use aio::{
    Errno, FallBack, Flags, Full, Holder, IoClass, IoProfile, LatencyBucket, LatencyHistogram, OperationKind,
    OperationProfile, Place,
};
pub use api::batch::Batch;
pub use api::builder::Builder;
pub use api::db::Db;
pub use api::futures::{Get, MultiGet};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use api::fuzzing;
pub use api::iter::{Iter, Keys};
pub use api::keyspace::Keyspace;
pub use api::snapshot::Snapshot;
#[doc(hidden)]
pub use api::testing;
pub use base::error::{Error, Result};
pub use base::events::{Event, Listener, Pressure};
pub use base::key::{MAX_KEY_BYTES, Seq};
pub use base::metrics::{KeyspaceMetrics, Metrics};
pub use base::options::Durability;
pub use base::range::KeyRange;
pub use bytes::Bytes;
pub use recovery::repair::{Damage, LogDamage, Loss};
pub use upkeep::verify::VerifyReport;
pub use wal::SyncMethod;

/// The example of the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
