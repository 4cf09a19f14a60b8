//! One keyspace: puts, deletes, gets, ranges. Routes only.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use wal::RecordBuf;

use crate::api::futures::{Get, MultiGet};
use crate::api::handle::Handle;
use crate::api::iter::Iter;
use crate::base::error::{Error, Result};
use crate::base::options::Durability;
use crate::base::range::{KeyBounds, KeyRange};
use crate::base::sync::shared::thread_local;
use crate::read::view::{Latest, View};
use crate::tree::store::Store;
use crate::tree::superversion::Tree;
use crate::write::commit::commit;
use crate::write::ops::{Op, OpsBuilder};

thread_local! {
    /// Each thread encodes its single writes in place of the one before, without allocating.
    static ENCODER: RefCell<(Vec<u8>, RecordBuf)> = RefCell::new((Vec::new(), RecordBuf::new()));
}

/// An ordered map from keys (1 to 65,535 bytes) to values, in bytewise order. Cheap to clone.
///
/// # Durability
/// Writes through a handle are acknowledged at its level, the store's default unless changed with
/// [`Keyspace::with_durability`].
///
/// # Concurrency
/// `Send + Sync`. A write that has returned is seen by every read that starts later.
///
/// # Examples
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let db = esker::Db::open(dir.path().join("store"))?;
/// let ks = db.keyspace("default")?;
/// ks.put("b", "2")?;
/// ks.put("a", "1")?;
/// ks.delete("b")?;
/// for pair in ks.iter() {
///     let (key, value) = pair?;
///     // Writing while iterating is fine: an iterator shows the state at its creation.
///     ks.put([&key[..], b"'"].concat(), value)?;
/// }
/// assert_eq!(ks.range("a"..).count(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keyspace {
    handle: Handle,
    tree: Arc<Tree>,
    durability: Durability,
}

impl Keyspace {
    pub(crate) fn new(handle: Handle, tree: Arc<Tree>) -> Keyspace {
        let durability = handle.store().options.durability;
        Keyspace { handle, tree, durability }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.tree.name
    }

    /// The same keyspace, with writes acknowledged at another level.
    #[must_use]
    pub fn with_durability(&self, level: Durability) -> Keyspace {
        Keyspace { durability: level, ..self.clone() }
    }

    /// Sets the value of a key: 1 to 65,535 bytes of key, and a value of any length (also 0) that fits into a record with
    /// it, see [`Db::max_record_bytes`](crate::Db::max_record_bytes).
    ///
    /// # Durability
    /// At this handle's level when it returns. What a crash leaves is always a prefix of all writes to the store.
    ///
    /// # Concurrency
    /// Writers do not wait for each other, except for the order in which they become visible; those who wait for power
    /// loss share a sync. A write waits while the memtables are full, and up to a millisecond when compaction is behind.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty key,
    /// [`Error::TooLarge`](crate::Error::TooLarge) for a key or value over the limit,
    /// [`Error::Closed`](crate::Error::Closed): nothing was written.
    /// [`Error::NoSpace`](crate::Error::NoSpace), or [`Error::Io`](crate::Error::Io) for want of file handles: nothing
    /// was written, and the same call succeeds when there is space again. One rare case is different: the store makes
    /// room for a write in the log before it takes it, with a reserve of an eighth of a log file, and when other threads
    /// write more than that reserve in the same moment in which the disk fills up, the write is in the log's ring
    /// already. Then it is visible, survives the process, becomes durable by itself when there is space, and making it
    /// again does no harm.
    /// [`Error::Halted`](crate::Error::Halted): whether it was written is known after a reopen.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(Op::put(self.tree.id, key.as_ref(), value.as_ref()))
    }

    /// Removes a key; fine if it does not exist. A write like any other: durability, concurrency and errors are those of
    /// [`Keyspace::put`].
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(Op::delete(self.tree.id, key.as_ref()))
    }

    /// The value of a key, as a copy of its own; `None` if there is none.
    ///
    /// # Concurrency
    /// Takes no lock that is held across I/O. At most one block is read from the device for each run whose filter lets
    /// the key through, usually one in all, none if it is in memory. A block that another get reads in the same moment is
    /// waited for and not read again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty key,
    /// [`Error::Corrupt`](crate::Error::Corrupt), [`Error::Io`](crate::Error::Io),
    /// [`Error::Closed`](crate::Error::Closed).
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.view().get(key.as_ref())
    }

    /// Shows the value of a key to `found` without copying it; what that returns, or `None` if there is no value.
    /// Nothing is allocated when the value is in memory.
    ///
    /// # Concurrency
    /// As [`Keyspace::get`]. No lock is held while `found` runs, so it may read and write this store; what it was shown
    /// stays in memory until it returns.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    ///
    /// # Examples
    /// ```
    /// # fn main() -> esker::Result<()> {
    /// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    /// # let db = esker::Db::open(dir.path().join("store"))?;
    /// let ks = db.keyspace("default")?;
    /// ks.put("counter", 7u64.to_le_bytes())?;
    /// let number = |value: &[u8]| value.try_into().map(u64::from_le_bytes).ok();
    /// assert_eq!(ks.get_with("counter", number)?.flatten(), Some(7));
    /// assert_eq!(ks.get_with("other", number)?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_with<R>(&self, key: impl AsRef<[u8]>, found: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        self.view().get_with(key.as_ref(), found)
    }

    /// The values of many keys as of one moment, as copies, in the order of the keys; `None` where there is none. A key
    /// may come several times. No keys give an empty list.
    ///
    /// # Concurrency
    /// As [`Keyspace::multi_get_with`].
    ///
    /// # Errors
    /// As [`Keyspace::get`], if any key is at fault or cannot be read.
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        self.view().multi_get(keys)
    }

    /// Shows the values of many keys as of one moment to `found` without copying them: once for every place in `keys`,
    /// in any order, `None` where there is no value. A key may come several times, and is shown for each place. No keys
    /// are fine, and nothing is shown.
    ///
    /// # Concurrency
    /// Takes no lock that is held across I/O. What is not in memory is read from the device together, up to 64 blocks at
    /// once, each of them once; so it is faster than as many [`Keyspace::get`]. No lock is held while `found` runs, so
    /// it may read and write this store; what it was shown stays in memory until it returns.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) or [`Error::TooLarge`](crate::Error::TooLarge) if
    /// any key is empty or over the limit, [`Error::Closed`](crate::Error::Closed): nothing was shown.
    /// [`Error::Corrupt`](crate::Error::Corrupt), [`Error::Io`](crate::Error::Io): what was shown until then is right, of
    /// the rest nothing is known. The same call may be made again.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> esker::Result<()> {
    /// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    /// # let db = esker::Db::open(dir.path().join("store"))?;
    /// let ks = db.keyspace("default")?;
    /// ks.put("a", "1")?;
    /// ks.put("b", "22")?;
    /// let mut lengths = [None; 3];
    /// ks.multi_get_with(&["b", "x", "a"], |at, value| lengths[at] = value.map(<[u8]>::len))?;
    /// assert_eq!(lengths, [Some(2), None, Some(1)]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn multi_get_with<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<()> {
        self.view().multi_get_with(keys, found)
    }

    /// As [`Keyspace::get`], as of this call, without waiting for the device: what is in memory is there when the future is
    /// first polled. Any number of them may be under way from one thread, on any executor or none ([`Get::wait`]).
    ///
    /// # Concurrency
    /// The first read of a store starts its reactor, one thread that submits all asynchronous reads and wakes their tasks;
    /// it ends when the store closes. Up to 128 reads are in flight, the others wait for their turn in the order of the
    /// calls, without a buffer. Blocks are decoded by the task that polls. Blocks that are asked for twice in the same
    /// moment are read twice.
    ///
    /// In tests without threads, and on a simulated machine, no thread is started: then the first poll reads, and blocks
    /// meanwhile.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`], from the future. [`Error::Closed`](crate::Error::Closed) also if the store was closed
    /// meanwhile.
    ///
    /// # Examples
    /// See [`Get`].
    pub fn get_async(&self, key: impl AsRef<[u8]>) -> Get {
        self.view().get_async(key.as_ref())
    }

    /// As [`Keyspace::multi_get`], as of this call, without waiting for the device, see [`Keyspace::get_async`].
    ///
    /// # Concurrency
    /// As [`Keyspace::get_async`]; up to 64 reads of one call are under way at once, each block once.
    ///
    /// # Errors
    /// Those of [`Keyspace::multi_get`], from the future. [`Error::Closed`](crate::Error::Closed) also if the store was
    /// closed meanwhile.
    pub fn multi_get_async<K: AsRef<[u8]>>(&self, keys: &[K]) -> MultiGet {
        self.view().multi_get_async(keys)
    }

    /// Whether a key exists; costs what [`Keyspace::get_with`] costs.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.view().contains_key(key.as_ref())
    }

    /// The pairs whose keys lie in a range, in order from either end, as of now. A range that ends before it begins is
    /// empty.
    ///
    /// Costs nothing and cannot fail; the first step does, and tells also that the store is closed. See [`Iter`].
    #[must_use]
    pub fn range(&self, range: impl KeyRange) -> Iter {
        self.view().iterate(range.into_bounds())
    }

    /// The pairs whose keys begin with `prefix`, as of now; all pairs for an empty one.
    #[must_use]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        self.view().iterate(KeyBounds::prefix(prefix.as_ref()))
    }

    /// All pairs, as of now.
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.view().iterate(KeyBounds::all())
    }

    /// The pair with the smallest key.
    ///
    /// # Errors
    /// As [`Iter`].
    pub fn first(&self) -> Result<Option<(Bytes, Bytes)>> {
        self.iter().next().transpose()
    }

    /// The pair with the largest key.
    ///
    /// # Errors
    /// As [`Iter`].
    pub fn last(&self) -> Result<Option<(Bytes, Bytes)>> {
        self.iter().next_back().transpose()
    }

    /// Whether it holds nothing; a seek, which passes over tombstones.
    ///
    /// # Errors
    /// As [`Iter`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.first()?.is_none())
    }

    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Whether this is a keyspace of that store.
    pub(crate) fn check_belongs_to(&self, store: &Arc<Store>) -> Result<()> {
        if Arc::ptr_eq(self.handle.store(), store) {
            return Ok(());
        }
        Err(Error::invalid(format!("the keyspace {:?} belongs to another store", self.tree.name)))
    }

    #[inline]
    fn view(&self) -> View<'_, Latest> {
        View { handle: &self.handle, tree: &self.tree, at: Latest }
    }

    fn write(&self, op: Op<'_>) -> Result<()> {
        ENCODER.with(|encoder| {
            let (payload, record) = &mut *encoder.borrow_mut();
            payload.clear();
            let mut ops = OpsBuilder::begin(payload);
            ops.push(payload, op)?;
            ops.finish(payload);
            record.clear();
            record.push(payload);
            commit(self.handle.writing()?, record, std::slice::from_ref(&self.tree), self.durability)?;
            Ok(())
        })
    }
}

impl IntoIterator for &Keyspace {
    type Item = Result<(Bytes, Bytes)>;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace")
            .field("name", &self.tree.name)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}
