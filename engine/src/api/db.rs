//! The store as a whole: open, keyspaces, batches, snapshots, maintenance, close. Routes only: no format, no policy, no
//! I/O of its own.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aio::{Backend, NativeBackend};
use wal::SyncMethod;

use crate::api::batch::Batch;
use crate::api::handle::Handle;
use crate::api::keyspace::Keyspace;
use crate::api::snapshot::Snapshot;
use crate::base::error::{Error, Result};
use crate::base::events::Listener;
use crate::base::metrics::Metrics;
use crate::base::options::{Background, Durability, Options, Sizes};
use crate::compaction::job::{Depth, compact_all};
use crate::compaction::scheduler;
use crate::recovery::open;
use crate::recovery::repair::LogDamage;
use crate::upkeep::report;
use crate::upkeep::verify::{self, VerifyReport};
use crate::write::commit;
use crate::write::create_drop;

/// An open store. Cheap to clone; clones are the same store.
///
/// # Durability
/// What a write survives is chosen by handle and batch, see [`Durability`]; the default is power loss.
///
/// # Concurrency
/// `Send + Sync`. Reads take no lock that a writer holds across I/O. The store closes with its last handle (`Db`,
/// [`Keyspace`], [`Batch`], [`Snapshot`], [`Iter`](crate::Iter)); dropping without [`Db::close`] is safe.
///
/// # Examples
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// let db = esker::Db::open(dir.path().join("store"))?;
/// let users = db.keyspace("users")?;
/// users.put("ann", "1")?;
/// assert_eq!(users.get("ann")?.as_deref(), Some(&b"1"[..]));
/// db.close()
/// # }
/// ```
#[derive(Clone)]
pub struct Db {
    handle: Handle,
}

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

    /// A keyspace by name (1 to 255 bytes); it is created if it does not exist. Every store has `default`.
    ///
    /// Each keyspace has memtables and runs of its own: it is for a kind of data, not for one user or document.
    ///
    /// # Durability
    /// A created keyspace survives power loss when this returns.
    ///
    /// # Concurrency
    /// Finding one takes no I/O. Making one is a write and a sync of the manifest; one is made at a time.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for the name, [`Error::Closed`](crate::Error::Closed),
    /// [`Error::Halted`](crate::Error::Halted), [`Error::NoSpace`](crate::Error::NoSpace).
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        let tree = create_drop::open_or_create(self.handle.store(), name)?;
        Ok(Keyspace::new(self.handle.clone(), tree))
    }

    /// The names of all keyspaces, sorted.
    #[must_use]
    pub fn keyspaces(&self) -> Vec<String> {
        create_drop::names(self.handle.store())
    }

    /// Removes a keyspace and everything in it. Handles to it get [`Error::Closed`](crate::Error::Closed) from now on.
    ///
    /// # Durability
    /// Survives power loss when this returns.
    ///
    /// # Concurrency
    /// Waits for a flush or compaction under way. All writes wait while the manifest is written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is none of that name,
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Halted`](crate::Error::Halted),
    /// [`Error::NoSpace`](crate::Error::NoSpace): nothing was removed.
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        create_drop::drop_keyspace(self.handle.store(), name)
    }

    /// An empty batch: several writes, to several keyspaces, of which a crash leaves all or none.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.handle.clone())
    }

    /// The state right now, for any number of reads of any keyspace. Takes no I/O and copies nothing.
    ///
    /// It sees what is visible: also writes of other threads that are not durable yet, which a power cut could still
    /// take back.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.handle.clone(), self.handle.store().pin())
    }

    /// Returns when everything written so far, by any thread, survives power loss.
    ///
    /// # Durability
    /// As if every write before had been made with [`Durability::Power`].
    ///
    /// # Concurrency
    /// One sync of the device, shared with all who wait for one at that moment; none if there is nothing new.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Halted`](crate::Error::Halted).
    pub fn sync(&self) -> Result<()> {
        let store = self.handle.store();
        store.check_open()?;
        store.latch(store.log.sync().map_err(Error::from))
    }

    /// Moves everything written so far from memory to segments, in the calling thread. Never needed for safety; it frees
    /// memory and log, and shortens the next open.
    ///
    /// # Durability
    /// Everything written before survives power loss when this returns.
    ///
    /// # Concurrency
    /// Waits for a flush under way. Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) (nothing is lost, it is tried again),
    /// [`Error::Io`](crate::Error::Io), [`Error::Closed`](crate::Error::Closed),
    /// [`Error::Halted`](crate::Error::Halted).
    pub fn flush(&self) -> Result<()> {
        let store = self.handle.store();
        store.check_open()?;
        store.freeze(|_| true);
        scheduler::flush_now(store)?;
        store.check_open()
    }

    /// Flushes, then merges each keyspace into a single run without dead entries; long work on a large store.
    ///
    /// Reads and rewrites everything, in the calling thread, and needs as much free space as the largest keyspace takes:
    /// inputs are removed after their output is live. What a snapshot still sees is kept.
    ///
    /// # Concurrency
    /// Waits for a compaction under way. Reads, writes and flushes go on meanwhile.
    ///
    /// # Errors
    /// As [`Db::flush`], and [`Error::Corrupt`](crate::Error::Corrupt) if a segment is damaged.
    pub fn compact(&self) -> Result<()> {
        self.flush()?;
        compact_all(self.handle.store(), Depth::Full, &|| false)?;
        self.handle.store().check_open()
    }

    /// Reads every file and checks every checksum and every rule between the files. Reads go on
    /// meanwhile; writes wait while the log is read, flushes and compactions to the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) with file and offset of the first damage; [`Error::Io`](crate::Error::Io),
    /// [`Error::Closed`](crate::Error::Closed); [`Error::Halted`](crate::Error::Halted), since what is on disk after a
    /// failed write is known only after a reopen.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.handle.store().check_open()?;
        verify::verify(self.handle.store())
    }

    /// For tests, with [`Background::Manual`]: holds background work back, or lets it go (and does what was asked for
    /// meanwhile), so that the states in between are reached without threads. What a caller must wait for is done all
    /// the same.
    #[doc(hidden)]
    pub fn hold_jobs(&self, held: bool) {
        scheduler::hold(self.handle.store(), held);
    }

    /// For tests: freezes every memtable and asks for their flush, as writers do when memory or log are full.
    ///
    /// # Errors
    /// The store is closed or has halted.
    #[doc(hidden)]
    pub fn freeze(&self) -> Result<()> {
        let store = self.handle.store();
        store.check_writable()?;
        store.freeze(|_| true);
        scheduler::request_flush(store);
        Ok(())
    }

    /// The largest record that this store takes, in bytes: a batch as [`Batch::size_bytes`] counts it.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        usize::try_from(commit::max_record_bytes(self.handle.store())).unwrap_or(usize::MAX)
    }

    /// Numbers about what the store does and holds. Costs microseconds and stops nothing; also after [`Db::close`].
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        report::metrics(self.handle.store())
    }

    /// Flushes and closes, for all handles: the others get [`Error::Closed`](crate::Error::Closed) from now on, iterators
    /// at their next step. Closing twice is fine.
    ///
    /// # Durability
    /// Everything written survives power loss, at any level. The next open replays nothing, unless the disk was too full
    /// to flush: then the log keeps it.
    ///
    /// # Concurrency
    /// Waits for writes, flushes and compactions under way.
    ///
    /// # Errors
    /// [`Error::Halted`](crate::Error::Halted), [`Error::NoSpace`](crate::Error::NoSpace) or
    /// [`Error::Io`](crate::Error::Io) if something could not be made durable; the store is closed all the same. After
    /// `NoSpace` what was acknowledged survives this process, and the next open goes on with it. In a forked child an
    /// error, and the parent's store stays open.
    pub fn close(self) -> Result<()> {
        self.handle.close()
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.handle.store().files.root().display())
    }
}

/// Options for [`Db::builder`]; each setter takes and returns the builder.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    options: Options,
}

impl Builder {
    /// Memory of the store in bytes: memtables, ring, cache, indexes and filters, and I/O buffers are planned from it. Indexes
    /// and filters that do not fit are read through the cache ([`Metrics::paged_segments`]). At least 1 MiB; default 256
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

    /// Who does the background work; default [`Background::Threads`].
    pub fn background(mut self, background: Background) -> Builder {
        self.options.background = background;
        self
    }

    /// The machine to run on; default this one. For tests over a simulated disk.
    pub fn backend(mut self, backend: Arc<dyn Backend>) -> Builder {
        self.options.backend = Some(backend);
        self
    }

    /// Overrides sizes that otherwise follow from the memory budget. For tests: small files reach the interesting
    /// states sooner.
    pub fn sizes(mut self, sizes: Sizes) -> Builder {
        self.options.sizes = sizes;
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
        Ok((Db { handle: Handle::new(opened.store, threads, opened.lock) }, opened.damage))
    }

    fn machine(&self) -> Arc<dyn Backend> {
        self.options.backend.clone().unwrap_or_else(|| Arc::new(NativeBackend::new()))
    }
}
