//! The open store as a whole: keyspaces, batches, snapshots, maintenance, close. Each call is passed on; this file has no
//! format, no policy and no I/O of its own. `builder.rs` opens stores.

use std::fmt;

use crate::api::batch::Batch;
use crate::api::handle::Handle;
use crate::api::keyspace::Keyspace;
use crate::api::snapshot::Snapshot;
use crate::base::error::{Error, Result};
use crate::base::metrics::Metrics;
use crate::compaction::job::{Depth, compact_all};
use crate::compaction::scheduler;
use crate::tree::writing::Writing;
use crate::upkeep::report;
use crate::upkeep::verify::{self, VerifyReport};
use crate::write::commit;
use crate::write::create_drop;

/// An open store. Cheap to clone; clones are the same store.
///
/// # Durability
/// What a write survives is chosen by handle and batch, see [`Durability`](crate::Durability); the default is power loss.
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
    pub(crate) fn new(handle: Handle) -> Db {
        Db { handle }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
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
        create_drop::drop_keyspace(self.handle.writing()?, name)
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
    /// As if every write before had been made with [`Durability::Power`](crate::Durability::Power).
    ///
    /// # Concurrency
    /// One sync of the device, shared with all who wait for one at that moment; none if there is nothing new.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Halted`](crate::Error::Halted).
    pub fn sync(&self) -> Result<()> {
        let store = self.handle.writing()?;
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
        let store = self.handle.writing()?;
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
        compact_all(self.handle.writing()?, Depth::Full, &|| false)?;
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
        verify::verify(self.handle.store(), self.writing())
    }

    /// The largest record that this store takes, in bytes: a batch as [`Batch::size_bytes`] counts it.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        usize::try_from(commit::max_record_bytes(self.handle.store())).unwrap_or(usize::MAX)
    }

    /// Numbers about what the store does and holds. Costs microseconds and stops nothing; also after [`Db::close`].
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        report::metrics(self.handle.store(), self.writing())
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

    fn writing(&self) -> Option<&Writing> {
        self.handle.writing().ok().map(|writing| &**writing)
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.handle.store().files.root().display())
    }
}
