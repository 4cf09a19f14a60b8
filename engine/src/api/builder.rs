//! Opening a store: its options, and the calls that lead from a directory to a [`Db`].

use std::path::Path;
use std::sync::Arc;

use aio::{Backend, NativeBackend};
use wal::SyncMethod;

use crate::api::db::Db;
use crate::api::handle::Handle;
use crate::base::error::Result;
use crate::base::events::Listener;
use crate::base::options::{Durability, Options};
use crate::compaction::scheduler;
use crate::recovery::open;
use crate::recovery::repair::LogDamage;

impl Db {
    /// Opens the store in a directory, or creates it there if the directory is missing or empty (its parent must
    /// exist).
    ///
    /// What the log holds beyond the segments is replayed and written to segments first, so an open after a crash takes
    /// as long as writing the memtables that were lost; after [`Db::close`] there is nothing to replay.
    ///
    /// # Durability
    /// Everything that was acknowledged is there, and survives power loss from now on whatever it was acknowledged
    /// with. A crash during an open loses nothing: the next open does it again.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) if it is open elsewhere or in this process,
    /// [`Error::Format`](crate::Error::Format) for a directory of something else (nothing is written to it),
    /// [`Error::Corrupt`](crate::Error::Corrupt) if acknowledged data is damaged or missing (nothing is changed),
    /// [`Error::NoSpace`](crate::Error::NoSpace), [`Error::Io`](crate::Error::Io).
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Db::builder().open(path)
    }

    /// Options for an open.
    pub fn builder() -> Builder {
        Builder { options: Options::default() }
    }
}

/// Options for [`Db::builder`]; each setter takes and returns the builder.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    pub(crate) options: Options,
}

impl Builder {
    /// Memory of the store in bytes: memtables, ring, cache, indexes and filters, and I/O buffers are planned from it. Indexes
    /// and filters that do not fit are read through the cache ([`Metrics::paged_segments`](crate::Metrics::paged_segments)). At least 1 MiB; default 256
    /// MiB.
    ///
    /// Sizes of log files, ring and segments follow from it, and with them the largest record
    /// ([`Db::max_record_bytes`]). A store may be opened with another budget each time.
    pub fn memory_budget_bytes(mut self, bytes: u64) -> Builder {
        self.options.memory_budget_bytes = bytes.max(1 << 20);
        self
    }

    /// What writes survive unless a handle or batch says otherwise; default [`Durability::Power`].
    pub fn durability(mut self, level: Durability) -> Builder {
        self.options.durability = level;
        self
    }

    /// Whether a missing store is created; default true. Without it a missing or empty directory is
    /// [`Error::Format`](crate::Error::Format).
    pub fn create(mut self, create: bool) -> Builder {
        self.options.create = create;
        self
    }

    /// Who hears of events; nobody unless this is set.
    pub fn listener(mut self, listener: impl Listener) -> Builder {
        self.options.listener = Some(Arc::new(listener));
        self
    }

    /// How long a [`Durability::Process`] write may wait for stable media, if 1 MiB of log does not come together before;
    /// default 10 ms. A shorter interval costs syncs of the device, also when nobody waits for them.
    pub fn drain_interval(mut self, interval: std::time::Duration) -> Builder {
        self.options.drain_interval = interval;
        self
    }

    /// How a group of durable writes gets to stable media; default [`SyncMethod::Fdatasync`]. All are equally safe, and
    /// differ in speed by device.
    pub fn sync_method(mut self, method: SyncMethod) -> Builder {
        self.options.sync_method = method;
        self
    }

    /// Whether blocks are compressed with LZ4; default true. Existing segments stay as they are.
    pub fn compress(mut self, compress: bool) -> Builder {
        self.options.compress = compress;
        self
    }

    /// Opens or creates the store; see [`Db::open`].
    ///
    /// # Errors
    /// As [`Db::open`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<Db> {
        Ok(self.open_or_repair(path.as_ref())?.0)
    }

    /// Whether the log is damaged, and what [`Builder::repair`] would keep and lose. Reads the log, and changes nothing.
    ///
    /// # Errors
    /// As [`Db::open`] of a store that is there, without [`Error::Corrupt`](crate::Error::Corrupt) for the log.
    pub fn find_damage(self, path: impl AsRef<Path>) -> Result<Option<LogDamage>> {
        open::find_damage(self.machine(), path.as_ref())
    }

    /// Cuts a damaged log before the damage, for good, so that the store opens again; then closes the store. `None`:
    /// the log was not damaged.
    ///
    /// All records before the damage are kept, everything in segments, and what the ring still has of the records that
    /// follow without a gap: the newest ones, often all, unless the power failed. **What was acknowledged behind that is
    /// lost**, except what was flushed already: a keyspace that was flushed later than another keeps more, so a batch over
    /// several keyspaces may be there in part. Copy the directory first. A damaged manifest or segment is not
    /// repaired (but where the manifest has lost its last edit, and that named a log file, the file itself makes it good),
    /// and a file that cannot be read at all (an error of the device) has to be copied before, with zeros for what is
    /// unreadable.
    ///
    /// # Durability
    /// What is left survives power loss when this returns. After a crash meanwhile the log is as damaged as before, or
    /// repaired.
    ///
    /// # Errors
    /// As [`Builder::find_damage`], and [`Error::NoSpace`](crate::Error::NoSpace). The log may be cut all the same: ask
    /// [`Builder::find_damage`] before, to know what was.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> esker::Result<()> {
    /// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    /// # let path = dir.path().join("store");
    /// # esker::Db::open(&path)?.close()?;
    /// if let Some(damage) = esker::Db::builder().find_damage(&path)? {
    ///     eprintln!("{}: {} records before it, {} bytes behind it", damage.error, damage.kept_records, damage.cut_bytes);
    ///     esker::Db::builder().repair(&path)?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn repair(mut self, path: impl AsRef<Path>) -> Result<Option<LogDamage>> {
        self.options.create = false;
        self.options.repair = true;
        let (db, damage) = self.open_or_repair(path.as_ref())?;
        db.close()?;
        Ok(damage)
    }

    fn open_or_repair(self, path: &Path) -> Result<(Db, Option<LogDamage>)> {
        let opened = open::open(self.machine(), path, self.options)?;
        let threads = scheduler::start(&opened.store)?;
        Ok((Db::new(Handle::new(opened.store, threads, opened.lock)), opened.damage))
    }

    fn machine(&self) -> Arc<dyn Backend> {
        self.options.backend.clone().unwrap_or_else(|| Arc::new(NativeBackend::new()))
    }
}
