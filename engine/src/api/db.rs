//! The open store as a whole: keyspaces, batches, snapshots, maintenance, close. Each call is passed on; this file has no
//! format, no policy and no I/O of its own. `builder.rs` opens stores.

use std::fmt;

use crate::api::batch::Batch;
use crate::api::handle::Handle;
use crate::api::keyspace::Keyspace;
use crate::api::snapshot::Snapshot;
use crate::base::error::{Error, Result};
use crate::base::metrics::Metrics;
use crate::compaction::job::compact_fully;
use crate::compaction::scheduler;
use crate::tree::writing::Writing;
use crate::upkeep::report;
use crate::upkeep::verify::{self, VerifyReport};
use crate::write::commit;
use crate::write::create_drop;

/// An open store. Cheap to clone; clones are the same store.
///
/// # Durability
/// Each handle and batch has a level, see [`Durability`](crate::Durability). By default a write survives power loss when it
/// returns.
///
/// # Concurrency
/// `Send + Sync`. Reads take no lock that a writer holds across I/O. The store closes when its last handle is dropped: a
/// `Db`, [`Keyspace`], [`Batch`], [`Snapshot`], [`Iter`](crate::Iter) or future. A drop without [`Db::close`] loses nothing,
/// but its errors are not reported.
///
/// # Errors
/// Calls that write fail with [`Error::ReadOnly`](crate::Error::ReadOnly) on a store that was opened for reading only.
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
    pub(crate) fn new(handle: Handle) -> Db {
        Db { handle }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A keyspace by name (1 to 255 bytes); it is created if it does not exist. Every store has the keyspace `default`.
    ///
    /// Each keyspace has its own memtables and runs. So it is for a kind of data, not for one user or document.
    ///
    /// # Durability
    /// A created keyspace survives power loss when this returns.
    ///
    /// # Concurrency
    /// The call does no I/O for a keyspace that exists. A creation writes and syncs the manifest, one at a time.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty or long name,
    /// [`Error::Closed`](crate::Error::Closed). A creation also fails with [`Error::Halted`](crate::Error::Halted),
    /// [`Error::NoSpace`](crate::Error::NoSpace), [`Error::ReadOnly`](crate::Error::ReadOnly).
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        let store = self.handle.store();
        store.check_open()?;
        let tree = match store.find_tree(name) {
            Some(tree) => tree,
            None => create_drop::create(self.handle.writing()?, name)?,
        };
        Ok(Keyspace::new(self.handle.clone(), tree))
    }

    /// The names of all keyspaces, sorted.
    #[must_use]
    pub fn keyspaces(&self) -> Vec<String> {
        let trees = self.handle.store().all_trees();
        let mut names: Vec<String> = trees.iter().map(|tree| tree.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Removes a keyspace with all its pairs. Calls on its handles fail with [`Error::Closed`](crate::Error::Closed) from now
    /// on, also those of older snapshots and iterators. The keyspace `default` cannot be removed.
    ///
    /// # Durability
    /// The removal survives power loss when this returns.
    ///
    /// # Concurrency
    /// Waits for a flush or compaction under way. All writes wait while the manifest is written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for `default`, or if no keyspace has that name,
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Halted`](crate::Error::Halted),
    /// [`Error::NoSpace`](crate::Error::NoSpace): nothing was removed.
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        create_drop::drop_keyspace(self.handle.writing()?, name)
    }

    /// An empty batch: several writes, to several keyspaces, of which a crash leaves all or none.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.handle.clone())
    }

    /// The state at this moment, for any number of reads of any keyspace. Does no I/O and copies nothing.
    ///
    /// It sees every visible write, also writes of other threads that are not durable yet: a power cut may still take those
    /// back.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.handle.clone(), self.handle.store().pin())
    }

    /// Returns when every write so far, of any thread, survives power loss.
    ///
    /// # Durability
    /// Every earlier write has the level [`Durability::Power`](crate::Durability::Power).
    ///
    /// # Concurrency
    /// One sync of the device, shared with all calls that wait for one at that moment; none if all writes are durable.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Halted`](crate::Error::Halted),
    /// [`Error::NoSpace`](crate::Error::NoSpace).
    pub fn sync(&self) -> Result<()> {
        let store = self.handle.writing()?;
        store.check_open()?;
        store.latch(store.log.sync().map_err(Error::from))
    }

    /// Writes all memtables to segments, in the calling thread. Durability never needs it; it frees memory and log, and
    /// shortens the next open.
    ///
    /// # Durability
    /// Every earlier write survives power loss when this returns.
    ///
    /// # Concurrency
    /// Waits for a flush under way. Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) and [`Error::Io`](crate::Error::Io): nothing is lost, and the store tries
    /// again by itself. [`Error::Closed`](crate::Error::Closed), [`Error::Halted`](crate::Error::Halted).
    pub fn flush(&self) -> Result<()> {
        let store = self.handle.writing()?;
        store.check_open()?;
        store.freeze(|_| true);
        scheduler::flush_now(store)?;
        store.check_open()
    }

    /// Flushes, then merges each keyspace into a single run without dead entries. This takes long on a large store.
    ///
    /// The calling thread reads and rewrites all segments. The disk needs as much free space as the largest keyspace takes:
    /// inputs are removed after their output is live. Entries that a snapshot sees are kept.
    ///
    /// # Concurrency
    /// Waits for a merge under way. Reads, writes and flushes go on meanwhile. A close ends it at once: it fails with
    /// [`Error::Closed`](crate::Error::Closed) then.
    ///
    /// # Errors
    /// Those of [`Db::flush`], and [`Error::Corrupt`](crate::Error::Corrupt) if a segment is damaged. Where one keyspace fails, the
    /// others are merged all the same.
    pub fn compact(&self) -> Result<()> {
        self.flush()?;
        let compacted = compact_fully(self.handle.writing()?);
        self.handle.store().tell_fall_backs();
        compacted
    }

    /// Reads every file and checks all checksums and all rules between the files.
    ///
    /// # Concurrency
    /// Reads go on meanwhile. Writes wait while the log is read; flushes and compactions wait until this returns.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) with file and offset of the first damage; [`Error::Io`](crate::Error::Io),
    /// [`Error::Closed`](crate::Error::Closed); [`Error::Halted`](crate::Error::Halted): only a reopen tells which bytes of
    /// a failed write are on disk.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.handle.store().check_open()?;
        verify::verify(self.handle.store(), self.writing())
    }

    /// The largest record that this store takes, in bytes. [`Batch::size_bytes`] is the size of a batch as a record.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        usize::try_from(commit::max_record_bytes(self.handle.store())).unwrap_or(usize::MAX)
    }

    /// Numbers about the store's work and contents. Costs microseconds, stops nothing, and works after [`Db::close`].
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        report::metrics(self.handle.store(), self.writing())
    }

    /// Flushes and closes the store, for all handles: calls on the others fail with [`Error::Closed`](crate::Error::Closed)
    /// from now on, iterators at their next step. A second close does nothing.
    ///
    /// # Durability
    /// Every write survives power loss when this returns, at any level. The next open replays nothing, unless the disk was
    /// too full to flush: then the log keeps the writes.
    ///
    /// # Concurrency
    /// Waits for writes and flushes under way. A compaction is given up, and begins again after the next open; a verification
    /// ends after the segment that it reads.
    ///
    /// # Errors
    /// [`Error::Halted`](crate::Error::Halted), [`Error::NoSpace`](crate::Error::NoSpace) or
    /// [`Error::Io`](crate::Error::Io) if a write could not be made durable; the store is closed all the same. After
    /// `NoSpace` acknowledged writes survive this process, and the next open has them. In a forked child it fails, and the
    /// parent's store stays open.
    pub fn close(self) -> Result<()> {
        self.handle.close()
    }

    fn writing(&self) -> Option<&Writing> {
        self.handle.writing().ok().map(|writing| &**writing)
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.handle.store().files.root().display())
    }
}
