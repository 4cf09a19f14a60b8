//! One keyspace: puts, deletes, gets, ranges. Reads go to `read/view.rs`, writes to `write/commit.rs`.

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
use crate::write::commit::{check_size, commit};
use crate::write::ops::{Op, OpsBuilder, check_key, framed_bytes};

/// The largest operation that is encoded in memory that the thread keeps.
const MAX_KEPT_BYTES: usize = 64 << 10;

thread_local! {
    /// Each thread encodes its single writes in the memory of the previous one, without allocating.
    static ENCODER: RefCell<(Vec<u8>, RecordBuf)> = RefCell::new((Vec::new(), RecordBuf::new()));
}

/// An ordered map from keys (1 to 65,535 bytes) to values, in bytewise order. Cheap to clone; clones are the same keyspace.
///
/// # Durability
/// A write through this handle returns when it is as durable as the handle's level says: the store's default, or the level
/// of [`Keyspace::with_durability`].
///
/// # Concurrency
/// `Send + Sync`. Every read that starts after a write has returned sees that write.
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

    /// A handle on the same keyspace whose writes return at another level.
    #[must_use]
    pub fn with_durability(&self, level: Durability) -> Keyspace {
        Keyspace { durability: level, ..self.clone() }
    }

    /// Sets the value of a key. A key has 1 to 65,535 bytes. A value has any length, also 0, but key and value must fit into
    /// one record, see [`Db::max_record_bytes`](crate::Db::max_record_bytes).
    ///
    /// # Durability
    /// This handle's level, when the call returns. A crash always leaves a prefix of all writes to the store.
    ///
    /// # Concurrency
    /// Writers wait for each other only to become visible in order. Writers at [`Durability::Power`] that wait at the same
    /// time share one sync. A write waits while the memtables are full or the log is at its limit. While merges of its keyspace,
    /// or flushes, are behind, some writes sleep: a few ms, and 100 ms at most.
    ///
    /// # Errors
    /// * [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty key,
    ///   [`Error::TooLarge`](crate::Error::TooLarge) for a key or value over the limit,
    ///   [`Error::Closed`](crate::Error::Closed), [`Error::ReadOnly`](crate::Error::ReadOnly): nothing was written.
    /// * [`Error::NoSpace`](crate::Error::NoSpace), or [`Error::Io`](crate::Error::Io) for a lack of file handles: nothing
    ///   was written, and the same call succeeds when there is space again. One rare case is different. The store makes room
    ///   in the log before it takes a write, with a reserve of an eighth of a log file. If other threads write more than
    ///   that reserve in the moment in which the disk fills up, the write is in the log's ring already. Then it is visible,
    ///   survives the process, becomes durable by itself when there is space, and making it again does no harm.
    /// * [`Error::Halted`](crate::Error::Halted): a reopen tells whether it was written.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(Op::put(self.tree.id, key.as_ref(), value.as_ref()))
    }

    /// Removes a key; does nothing to a key that does not exist. Durability and concurrency are those of [`Keyspace::put`].
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(Op::delete(self.tree.id, key.as_ref()))
    }

    /// A copy of the value of a key; `None` if the key does not exist.
    ///
    /// # Concurrency
    /// Takes no lock that is held across I/O. It reads at most one block from the device for each run whose filter lets the
    /// key through: usually one in all, none if the block is in memory. If another get reads the same block at that moment,
    /// this one waits for it. While the memory does not hold all indexes and filters
    /// ([`Metrics::paged_segments`](crate::Metrics::paged_segments)), up to two more for each run; one more where many versions
    /// of the key fill a block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty key,
    /// [`Error::Corrupt`](crate::Error::Corrupt), [`Error::Io`](crate::Error::Io),
    /// [`Error::Closed`](crate::Error::Closed).
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.view().get(key.as_ref())
    }

    /// Shows the value of a key to `found` without a copy. Returns the result of `found`, or `None` if the key does not
    /// exist. Allocates nothing when the value is in memory.
    ///
    /// # Concurrency
    /// That of [`Keyspace::get`]. No lock is held while `found` runs, so `found` may read and write this store. The value
    /// stays in memory until `found` returns.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
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

    /// Copies of the values of many keys at one moment, in the order of `keys`; `None` for a key that does not exist. A key
    /// may stand there several times. Without keys the list is empty.
    ///
    /// # Concurrency
    /// That of [`Keyspace::multi_get_with`].
    ///
    /// # Errors
    /// Those of [`Keyspace::multi_get_with`]; no value is returned then.
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        self.view().multi_get(keys)
    }

    /// Shows the values of many keys at one moment to `found` without copies: once for each index in `keys`, in any order,
    /// with `None` for a key that does not exist. A key that stands in `keys` several times is shown for each index.
    ///
    /// # Concurrency
    /// Takes no lock that is held across I/O. Blocks that are not in memory are read together, up to 64 at once, each of
    /// them once. So it is faster than as many [`Keyspace::get`]. No lock is held while `found` runs, so `found` may read
    /// and write this store. The value stays in memory until `found` returns.
    ///
    /// # Errors
    /// * [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty key,
    ///   [`Error::TooLarge`](crate::Error::TooLarge) for a key over the limit, [`Error::Closed`](crate::Error::Closed):
    ///   nothing was shown.
    /// * [`Error::Corrupt`](crate::Error::Corrupt), [`Error::Io`](crate::Error::Io): the values that were shown are right,
    ///   the other keys are not decided. The same call may be made again.
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

    /// A future of a copy of the value of a key at the moment of this call. The call does not wait for the device. A value
    /// in memory is ready when the future is first polled. One thread may have any number of these futures under way, on any
    /// executor or without one ([`Get::wait`]).
    ///
    /// # Concurrency
    /// The first asynchronous read starts the store's reactor: one thread that submits all such reads and wakes their tasks.
    /// It ends when the store closes. Up to 128 reads are in flight; the others wait without a buffer, in the order of the
    /// calls. The task that polls decodes the blocks. Two futures that need the same block at the same moment read it twice.
    ///
    /// In tests without threads, and on a simulated machine, no thread is started: then each poll that finds nothing
    /// waits for a read to end, and blocks meanwhile.
    ///
    /// # Errors
    /// The future has those of [`Keyspace::get`], and [`Error::Closed`](crate::Error::Closed) if the store closes before it
    /// is ready.
    ///
    /// # Examples
    /// See [`Get`].
    pub fn get_async(&self, key: impl AsRef<[u8]>) -> Get {
        self.view().get_async(key.as_ref())
    }

    /// A future of copies of the values of many keys at the moment of this call, in the order of `keys`. See
    /// [`Keyspace::get_async`].
    ///
    /// # Concurrency
    /// That of [`Keyspace::get_async`]. Up to 64 reads of one call are in flight at once, each block once.
    ///
    /// # Errors
    /// The future has those of [`Keyspace::multi_get`], and [`Error::Closed`](crate::Error::Closed) if the store closes
    /// before it is ready.
    pub fn multi_get_async<K: AsRef<[u8]>>(&self, keys: &[K]) -> MultiGet {
        self.view().multi_get_async(keys)
    }

    /// Whether a key exists. It costs as much as [`Keyspace::get_with`].
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.view().contains_key(key.as_ref())
    }

    /// The pairs whose keys lie in a range, at the moment of this call, in order from either end. A range that ends before it
    /// begins is empty.
    ///
    /// The call pins the moment and does no I/O. Errors, also that of a closed store, come from the steps. See [`Iter`].
    #[must_use]
    pub fn range(&self, range: impl KeyRange) -> Iter {
        self.view().iterate(range.into_bounds())
    }

    /// The pairs whose keys begin with `prefix`, at the moment of this call; all pairs for an empty prefix. See [`Iter`].
    #[must_use]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        self.view().iterate(KeyBounds::prefix(prefix.as_ref()))
    }

    /// All pairs, at the moment of this call. See [`Iter`].
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.view().iterate(KeyBounds::all())
    }

    /// The pair with the smallest key; `None` if the keyspace is empty.
    ///
    /// # Errors
    /// Those of [`Iter`].
    pub fn first(&self) -> Result<Option<(Bytes, Bytes)>> {
        self.iter().next().transpose()
    }

    /// The pair with the largest key; `None` if the keyspace is empty.
    ///
    /// # Errors
    /// Those of [`Iter`].
    pub fn last(&self) -> Result<Option<(Bytes, Bytes)>> {
        self.iter().next_back().transpose()
    }

    /// Whether no key exists. It costs a seek, which also passes over the tombstones before the first pair.
    ///
    /// # Errors
    /// Those of [`Iter`].
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
        if op.size_bytes() > MAX_KEPT_BYTES {
            return self.write_large(op);
        }
        ENCODER.with(|encoder| self.write_with(&mut encoder.borrow_mut(), op))
    }

    /// Checks the size before the first copy, and keeps no memory.
    #[cold]
    fn write_large(&self, op: Op<'_>) -> Result<()> {
        check_key(op.key)?;
        let store = self.handle.writing()?;
        store.check_open()?;
        check_size(store, framed_bytes(OpsBuilder::single_bytes(&op)))?;
        self.write_with(&mut (Vec::new(), RecordBuf::new()), op)
    }

    #[inline]
    fn write_with(&self, (payload, record): &mut (Vec<u8>, RecordBuf), op: Op<'_>) -> Result<()> {
        payload.clear();
        let mut ops = OpsBuilder::begin(payload);
        ops.push(payload, op)?;
        ops.finish(payload);
        record.clear();
        record.push(payload);
        commit(self.handle.writing()?, record, std::slice::from_ref(&self.tree), self.durability)?;
        Ok(())
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

#[cfg(test)]
mod tests {
    use aio::SimBackend;

    use super::*;
    use crate::api::db::Db;
    use crate::testing::{Background, BuilderExt};

    #[test]
    fn a_thread_keeps_no_memory_of_a_large_write() {
        let sim = Arc::new(SimBackend::new(1));
        let db = Db::builder().backend(sim).background(Background::Manual).open("/store").unwrap();
        let keyspace = db.keyspace("default").unwrap();
        keyspace.put("k", vec![1; 1 << 20]).unwrap();
        keyspace.put("k", vec![1; MAX_KEPT_BYTES / 2]).unwrap();
        let kept_bytes = ENCODER.with(|encoder| encoder.borrow().0.capacity());
        assert!((MAX_KEPT_BYTES / 2..=2 * MAX_KEPT_BYTES).contains(&kept_bytes), "{kept_bytes}");
    }
}
