//! The public iterator: the pairs of a keyspace, as owned or borrowed bytes. `snapshot_iter.rs` decides which pairs.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use bytes::Bytes;

use crate::api::handle::Handle;
use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::range::KeyBounds;
use crate::read::snapshot_iter::{PairRef, SnapshotIter, Source};
use crate::tree::pins::PinGuard;
use crate::tree::scan::Scan;
use crate::tree::superversion::Tree;

/// Key-value pairs in ascending order of keys; from the back in descending order.
///
/// Shows the state at its creation. Later writes do not change that, also not those of the thread that iterates: it may put
/// and delete between two steps. Both ends can be used in turn; they stop when they meet.
///
/// # Concurrency
///
/// `Send`: it may be moved to another thread. A step may read from the device. It waits for no writer and holds no lock when
/// it returns. While the iterator lives, flushes and compactions keep the entries that it sees, and their space: drop it
/// when it is not used any more. Its creation does no I/O; the first step at either end seeks.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) and [`Error::Corrupt`](crate::Error::Corrupt) of a read;
/// [`Error::Closed`](crate::Error::Closed) when store or keyspace are gone. After a step has failed, every later step returns
/// the same error: the next pair is not known, and to skip it would lose data silently. (So `filter_map(Result::ok)` never
/// ends.) [`Iter::seek`] tries again.
///
/// # Examples
///
/// The loop may delete; it does not see its own writes:
///
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let db = esker::Db::open(dir.path().join("store"))?;
/// # let keyspace = db.keyspace("default")?;
/// keyspace.put("session/1", "expired")?;
/// keyspace.put("session/2", "fresh")?;
/// for pair in keyspace.prefix("session/") {
///     let (key, value) = pair?;
///     if value == "expired" {
///         keyspace.delete(&key)?;
///     }
/// }
/// // From the back, or on from any key.
/// let mut iter = keyspace.iter();
/// assert_eq!(iter.next_back().transpose()?, Some(("session/2".into(), "fresh".into())));
/// iter.seek("session/1");
/// assert_eq!(iter.next().transpose()?, Some(("session/2".into(), "fresh".into())));
/// # Ok(())
/// # }
/// ```
pub struct Iter {
    pairs: SnapshotIter<KeyspaceSource>,
}

/// The keyspace that an iterator walks; it keeps the store open.
struct KeyspaceSource {
    handle: Handle,
    tree: Arc<Tree>,
    /// Every step fails with this: the iterator must not read from `tree`.
    refused: Option<Error>,
}

impl Source for KeyspaceSource {
    type Cursor = Scan;

    fn check(&self) -> Result<()> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        self.handle.store().check_open()?;
        self.tree.check()
    }

    fn cursor(&self, _: Seq) -> Result<Scan> {
        let superversion = self.tree.load();
        // One that is empty since the keyspace was dropped must not be read.
        self.tree.check()?;
        Ok(superversion.cursor())
    }

    #[inline]
    fn generation(&self) -> u64 {
        // A drop and a close change it, too: the next step must notice them.
        self.tree.number()
    }
}

impl Iter {
    pub(crate) fn new(handle: Handle, tree: Arc<Tree>, snapshot: PinGuard, bounds: KeyBounds) -> Iter {
        Iter { pairs: SnapshotIter::new(KeyspaceSource { handle, tree, refused: None }, snapshot, bounds) }
    }

    /// An iterator that fails with `error` at each step, also after a seek.
    pub(crate) fn refused(handle: Handle, tree: Arc<Tree>, snapshot: PinGuard, error: Error) -> Iter {
        let source = KeyspaceSource { handle, tree, refused: Some(error) };
        Iter { pairs: SnapshotIter::new(source, snapshot, KeyBounds::all()) }
    }

    /// The next pair from the front, borrowed until the next call; `None` at the end. Allocates nothing for the pair, and
    /// copies no value.
    ///
    /// # Errors
    ///
    /// Those of [`Iter`].
    #[inline]
    pub fn next_ref(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        self.pairs.next_ref()
    }

    /// The next pair from the back, borrowed until the next call; `None` at the end. Allocates nothing for the pair, and
    /// copies a value only where its key may have other versions.
    ///
    /// # Errors
    ///
    /// Those of [`Iter`].
    #[inline]
    pub fn next_back_ref(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        self.pairs.next_back_ref()
    }

    /// Continues at the first key `>= key` of the iterator's range, which may be ahead or behind, also after an error. The
    /// back starts again at the end of the range. The call does no I/O; the next step seeks, in the memory of the steps
    /// before.
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.pairs.seek(key.as_ref());
    }

    /// The keys of the pairs that are left, without their values, from both ends.
    pub fn keys(mut self) -> Keys {
        self.pairs.forgo_values();
        Keys { iter: self }
    }
}

impl Iterator for Iter {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_ref().map(|pair| pair.map(copied)).transpose()
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.next_back_ref().map(|pair| pair.map(copied)).transpose()
    }
}

impl FusedIterator for Iter {}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter")
            .field("snapshot", &self.pairs.snapshot())
            .field("bounds", self.pairs.bounds())
            .finish_non_exhaustive()
    }
}

fn copied((key, value): PairRef<'_>) -> (Bytes, Bytes) {
    (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

/// The keys of an [`Iter`], made by [`Iter::keys`]. Order, concurrency and errors are those of [`Iter`].
///
/// # Cost
///
/// No value is copied or examined. A value stands in the same block as its key, so the reads are those of the pairs. Where
/// values are long and in the cache, keys are much cheaper than owned pairs, and a little cheaper than [`Iter::next_ref`].
/// Where the device sets the pace, they cost the same.
///
/// # Examples
///
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let db = esker::Db::open(dir.path().join("store"))?;
/// # let keyspace = db.keyspace("default")?;
/// keyspace.put("image/1", vec![0; 100_000])?;
/// keyspace.put("image/2", vec![0; 100_000])?;
/// let mut bytes = 0;
/// let mut keys = keyspace.prefix("image/").keys();
/// while let Some(key) = keys.next_ref()? {
///     bytes += key.len();
/// }
/// assert_eq!(bytes, 14);
/// // Or owned, from the back, and on from any key.
/// keys.seek("image/");
/// assert_eq!(keys.next_back().transpose()?, Some("image/2".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Keys {
    iter: Iter,
}

impl Keys {
    /// The next key from the front, borrowed until the next call; `None` at the end. Allocates nothing for the key.
    ///
    /// # Errors
    ///
    /// Those of [`Iter`].
    #[inline]
    pub fn next_ref(&mut self) -> Result<Option<&[u8]>> {
        Ok(self.iter.next_ref()?.map(|(key, _)| key))
    }

    /// The next key from the back, borrowed until the next call; `None` at the end. Allocates nothing for the key.
    ///
    /// # Errors
    ///
    /// Those of [`Iter`].
    #[inline]
    pub fn next_back_ref(&mut self) -> Result<Option<&[u8]>> {
        Ok(self.iter.next_back_ref()?.map(|(key, _)| key))
    }

    /// Continues at the first key `>= key`, see [`Iter::seek`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.iter.seek(key);
    }
}

impl Iterator for Keys {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_ref().map(|key| key.map(Bytes::copy_from_slice)).transpose()
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.next_back_ref().map(|key| key.map(Bytes::copy_from_slice)).transpose()
    }
}

impl FusedIterator for Keys {}

#[cfg(test)]
mod tests {
    use aio::SimBackend;

    use super::*;
    use crate::Db;
    use crate::testing::{Background, BuilderExt};

    #[test]
    fn keys_gives_the_keys_from_both_ends() {
        let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
        let keyspace = builder.open("/store").unwrap().keyspace("default").unwrap();
        for key in ["a", "b", "c"] {
            keyspace.put(key, "1").unwrap();
        }
        let mut keys = keyspace.iter().keys();
        assert_eq!(keys.next_back().unwrap().unwrap(), "c");
        assert_eq!(keys.next().unwrap().unwrap(), "a");
        assert_eq!(keys.next().unwrap().unwrap(), "b");
        assert!(keys.next().is_none());
    }

    #[test]
    fn keys_takes_over_where_the_pairs_stand_and_sees_the_newest_versions_at_both_ends() {
        let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
        let keyspace = builder.open("/store").unwrap().keyspace("default").unwrap();
        for round in 0..3 {
            for key in ["a", "b", "c", "d", "e"] {
                keyspace.put(key, format!("{key}{round}")).unwrap();
            }
        }
        keyspace.delete("c").unwrap();
        let mut iter = keyspace.iter();
        assert_eq!(iter.next().unwrap().unwrap().0, "a");
        assert_eq!(iter.next_back().unwrap().unwrap(), ("e".into(), "e2".into()));
        let mut keys = iter.keys();
        assert_eq!(keys.next_back_ref().unwrap(), Some(&b"d"[..]));
        assert_eq!(keys.next_ref().unwrap(), Some(&b"b"[..]));
        assert_eq!(keys.next_ref().unwrap(), None);
        assert_eq!(keys.next_back_ref().unwrap(), None);
        keys.seek("bb");
        assert_eq!(keys.by_ref().map(Result::unwrap).collect::<Vec<_>>(), ["d", "e"]);
    }

    #[test]
    fn iterators_may_move_to_other_threads() {
        fn is_send<T: Send + 'static>() {}
        is_send::<Iter>();
        is_send::<Keys>();
    }
}
