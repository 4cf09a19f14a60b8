//! Opening a store: its options, and the calls that lead from a directory to a [`Db`].

use std::path::Path;
use std::sync::Arc;

use aio::{Backend, NativeBackend};
use wal::SyncMethod;

use crate::api::db::Db;
use crate::api::handle::Handle;
use crate::base::error::{Error, Result};
use crate::base::events::Listener;
use crate::base::options::{Durability, Options};
use crate::compaction::scheduler;
use crate::recovery::damage::find_damage;
use crate::recovery::open;
use crate::recovery::repair::{Damage, LogDamage};

impl Db {
    /// Opens the store in a directory. Creates it if the directory is missing or empty; the parent must exist.
    ///
    /// Records of the log that are in no segment are replayed and written to segments first. So an open after a crash takes
    /// as long as a write of the lost memtables. After [`Db::close`] there is nothing to replay.
    ///
    /// # Durability
    /// Every write that was acknowledged is there, and survives power loss from now on, at any level of the write. A crash
    /// during an open loses nothing: the next open starts again.
    ///
    /// # Errors
    /// * [`Error::Locked`](crate::Error::Locked): the store is open in another process or in this one.
    /// * [`Error::Format`](crate::Error::Format): the directory is no store, or one of another version. Nothing is written.
    /// * [`Error::Corrupt`](crate::Error::Corrupt): acknowledged data is damaged or missing. Nothing is changed.
    /// * [`Error::NoSpace`](crate::Error::NoSpace), [`Error::Io`](crate::Error::Io): try again after the cause is removed.
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Db::builder().open(path)
    }

    /// Options for an open, all at their defaults.
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
    /// Memory of the store in bytes, at least 1 MiB; default 256 MiB. Memtables, ring, cache, indexes, filters and I/O buffers
    /// are planned from it. Indexes and filters that do not fit are read through the cache
    /// ([`Metrics::paged_segments`](crate::Metrics::paged_segments)).
    ///
    /// The sizes of log files, ring and segments follow from it, and so does the largest record
    /// ([`Db::max_record_bytes`]). Each open of a store may have another budget.
    pub fn memory_budget_bytes(mut self, bytes: u64) -> Builder {
        self.options.memory_budget_bytes = bytes.max(1 << 20);
        self
    }

    /// The level at which writes return, unless a handle or a batch sets its own; default [`Durability::Power`].
    pub fn durability(mut self, level: Durability) -> Builder {
        self.options.durability = level;
        self
    }

    /// Whether a missing store is created; default true. With `false`, the open of a missing or empty directory fails with
    /// [`Error::Format`](crate::Error::Format).
    pub fn create(mut self, create: bool) -> Builder {
        self.options.create = create;
        self
    }

    /// The listener that gets the store's events; none by default.
    pub fn listener(mut self, listener: impl Listener) -> Builder {
        self.options.listener = Some(Arc::new(listener));
        self
    }

    /// The longest time until a [`Durability::Process`] write is on stable media; default 10 ms. It gets there earlier when 1
    /// MiB of log has come together. A shorter interval costs more syncs of the device, for which no call waits.
    pub fn drain_interval(mut self, interval: std::time::Duration) -> Builder {
        self.options.drain_interval = interval;
        self
    }

    /// How a group of durable writes gets to stable media; default [`SyncMethod::Fdatasync`]. Both are equally safe, and
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

    /// The most segment files that stay open; default 16,384, or half of the process's limit on open files (`ulimit -n`) if
    /// that is less. Only a smaller number has an effect.
    ///
    /// A store with more segments opens a file again when a read needs it, which takes some ten microseconds, and closes
    /// another one. So the least useful number is that of the segments that a few reads touch at the same time: 16 for each
    /// thread that reads. A few more descriptors are in use for the log, the manifest, and the files that are written.
    pub fn max_open_files(mut self, files: usize) -> Builder {
        self.options.max_open_files = Some(files);
        self
    }

    /// The most bytes per second that flushes and merges read and write together; no limit by default. Less than 1 MiB counts
    /// as 1 MiB.
    ///
    /// It leaves the device to others. Merges wait for it, and writes slow down to the rate that merges then sustain: about a
    /// tenth of the limit. Flushes count, but do not wait, since writers wait for them: while they alone are above the limit,
    /// merges go on slowly. Reads and the log do not count, nor does the hundredth of the bytes that opens new files. A close
    /// does not wait for it; [`Db::compact`], [`Db::verify`] and [`Db::drop_keyspace`] wait for a merge under way.
    pub fn background_bytes_per_second(mut self, bytes: u64) -> Builder {
        self.options.background_bytes_per_second = Some(bytes.max(1 << 20));
        self
    }

    /// Opens or creates the store with these options. See [`Db::open`].
    ///
    /// # Errors
    /// Those of [`Db::open`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<Db> {
        Ok(self.open_or_repair(path.as_ref())?.0)
    }

    /// Reads the log and all segments and tells what is damaged, and how much [`Builder::repair`] would keep and lose. Changes
    /// nothing.
    ///
    /// # Errors
    /// Those of [`Db::open`] with [`Builder::create`]`(false)`, except [`Error::Corrupt`](crate::Error::Corrupt) for log and
    /// segments: that is one of the manifest, which only a backup replaces, or says which files of the log have changed their
    /// names and must get them back first.
    pub fn find_damage(self, path: impl AsRef<Path>) -> Result<Damage> {
        find_damage(self.machine(), path.as_ref(), &self.options).map_err(Error::of_open)
    }

    /// Cuts a damaged log before the damage, for good, so that the store opens again; then closes the store. Does nothing to a
    /// log without damage. Returns the damage that there was: of the log, which is cut now, and of segments, which stay as they
    /// are. **Copy the directory first.**
    ///
    /// It keeps all segments, all records before the damage, and those records behind it that the ring still has without a
    /// gap: the newest ones, often all, unless the power failed. **All other acknowledged writes behind the damage are
    /// lost**, except those that were flushed; [`Loss`](crate::Loss) says how many at least and at most. A keyspace that was
    /// flushed later than another keeps more, so a batch over several keyspaces may be there in part.
    ///
    /// It does not repair a damaged manifest or segment. One case is an exception: if the manifest has lost its last edit and
    /// that edit named a log file, the file itself replaces the edit. A file with sectors that the device cannot read must be
    /// copied first, with bytes that are not zero for those sectors, such as 0xFF: zeros look
    /// like space that was never used.
    ///
    /// # Durability
    /// The store that is left survives power loss when this returns. A crash in between leaves the log damaged as before, or
    /// repaired.
    ///
    /// # Errors
    /// Those of [`Builder::find_damage`], and [`Error::NoSpace`](crate::Error::NoSpace). If the log is damaged,
    /// [`Error::Corrupt`](crate::Error::Corrupt) also for a segment that an open refuses: nothing was changed then. After other
    /// errors the log may be cut all the same; [`Builder::find_damage`], called before, tells the damage.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> esker::Result<()> {
    /// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    /// # let path = dir.path().join("store");
    /// # esker::Db::open(&path)?.close()?;
    /// let damage = esker::Db::builder().find_damage(&path)?;
    /// for segment in &damage.segments {
    ///     eprintln!("no repair helps here: {segment}");
    /// }
    /// if let Some(log) = damage.log {
    ///     eprintln!("{}; {} records are kept; {}", log.error, log.kept_records, log.loss);
    ///     esker::Db::builder().repair(&path)?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn repair(mut self, path: impl AsRef<Path>) -> Result<Damage> {
        self.options.create = false;
        let mut damage = self.clone().find_damage(path.as_ref())?;
        if damage.log.is_some() {
            self.options.repair = true;
            let (db, cut) = self.open_or_repair(path.as_ref())?;
            db.close()?;
            damage.log = cut;
        }
        Ok(damage)
    }

    fn open_or_repair(self, path: &Path) -> Result<(Db, Option<LogDamage>)> {
        let opened = open::open(self.machine(), path, self.options).map_err(Error::of_open)?;
        let threads = scheduler::start(&opened.store)?;
        Ok((Db::new(Handle::new(opened.store, threads, opened.lock)), opened.damage))
    }

    fn machine(&self) -> Arc<dyn Backend> {
        self.options.backend.clone().unwrap_or_else(|| Arc::new(NativeBackend::new()))
    }
}
