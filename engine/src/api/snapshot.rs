//! A snapshot: a pinned position in the log, and reads at it.
//!
//! Invariant: the position stays pinned as long as the snapshot, a clone of it or an iterator made from it lives.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::api::futures::{Get, MultiGet};
use crate::api::handle::Handle;
use crate::api::iter::Iter;
use crate::api::keyspace::Keyspace;
use crate::base::error::Result;
use crate::base::key::Seq;
use crate::base::range::{KeyBounds, KeyRange};
use crate::read::view::View;
use crate::tree::pins::PinGuard;

/// The store at one moment, across keyspaces. Owned, cheap to clone.
///
/// While it lives, flushes and compactions keep the entries that it sees, and their space: drop it when it is not used any
/// more. Reads of a keyspace that was dropped later fail with [`Error::Closed`](crate::Error::Closed).
///
/// # Concurrency
/// `Send + Sync`. Its reads take the locks of other reads, and no more.
///
/// # Errors
/// Every read fails with [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store. Its
/// other errors are those of the same read of [`Keyspace`].
///
/// # Examples
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let db = esker::Db::open(dir.path().join("store"))?;
/// let ks = db.keyspace("default")?;
/// ks.put("a", "old")?;
/// let before = db.snapshot();
/// ks.put("a", "new")?;
/// ks.put("b", "new")?;
/// assert_eq!(before.get(&ks, "a")?.as_deref(), Some(&b"old"[..]));
/// assert_eq!(before.iter(&ks).count(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Snapshot {
    handle: Handle,
    pin: PinGuard,
}

impl Snapshot {
    pub(crate) fn new(handle: Handle, pin: PinGuard) -> Snapshot {
        Snapshot { handle, pin }
    }

    /// Its position: it sees every record below it, and none at or above it.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.pin.seq()
    }

    /// A copy of the value that a key had. See [`Keyspace::get`], which costs as much.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`], and of [`Snapshot`].
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.view(keyspace)?.get(key.as_ref())
    }

    /// Shows the value that a key had to `found` without a copy. See [`Keyspace::get_with`].
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn get_with<R>(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        found: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        self.view(keyspace)?.get_with(key.as_ref(), found)
    }

    /// Copies of the values that many keys had. See [`Keyspace::multi_get`].
    ///
    /// # Errors
    /// Those of [`Keyspace::multi_get`], and of [`Snapshot`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        self.view(keyspace)?.multi_get(keys)
    }

    /// Shows the values that many keys had to `found` without copies. See [`Keyspace::multi_get_with`].
    ///
    /// # Errors
    /// Those of [`Keyspace::multi_get_with`], and of [`Snapshot`].
    pub fn multi_get_with<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: &[K],
        found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<()> {
        self.view(keyspace)?.multi_get_with(keys, found)
    }

    /// A future of a copy of the value that a key had. The snapshot may be dropped before it is ready. See
    /// [`Keyspace::get_async`].
    ///
    /// # Errors
    /// The future has those of [`Keyspace::get_async`], and of [`Snapshot`].
    pub fn get_async(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Get {
        Get::of(self.multi_get_async(keyspace, &[key]))
    }

    /// A future of copies of the values that many keys had. The snapshot may be dropped before it is ready. See
    /// [`Keyspace::multi_get_async`].
    ///
    /// # Errors
    /// The future has those of [`Keyspace::multi_get_async`], and of [`Snapshot`].
    pub fn multi_get_async<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, keys: &[K]) -> MultiGet {
        match self.view(keyspace) {
            Ok(view) => view.multi_get_async(keys),
            Err(error) => MultiGet::failed(error),
        }
    }

    /// The pairs whose keys lay in a range. See [`Keyspace::range`].
    ///
    /// # Errors
    /// The steps have those of [`Iter`], and of [`Snapshot`].
    #[must_use]
    pub fn range(&self, keyspace: &Keyspace, range: impl KeyRange) -> Iter {
        self.iterate(keyspace, range.into_bounds())
    }

    /// The pairs whose keys began with `prefix`. See [`Keyspace::prefix`].
    ///
    /// # Errors
    /// The steps have those of [`Iter`], and of [`Snapshot`].
    #[must_use]
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Iter {
        self.iterate(keyspace, KeyBounds::prefix(prefix.as_ref()))
    }

    /// All pairs. See [`Keyspace::iter`].
    ///
    /// # Errors
    /// The steps have those of [`Iter`], and of [`Snapshot`].
    #[must_use]
    pub fn iter(&self, keyspace: &Keyspace) -> Iter {
        self.iterate(keyspace, KeyBounds::all())
    }

    #[inline]
    fn view<'a>(&'a self, keyspace: &'a Keyspace) -> Result<View<'a, &'a PinGuard>> {
        keyspace.check_belongs_to(self.handle.store())?;
        Ok(View { handle: &self.handle, tree: keyspace.tree(), at: &self.pin })
    }

    fn iterate(&self, keyspace: &Keyspace, bounds: KeyBounds) -> Iter {
        match self.view(keyspace) {
            Ok(view) => view.iterate(bounds),
            Err(error) => {
                let tree = Arc::clone(keyspace.tree());
                Iter::refused(self.handle.clone(), tree, self.pin.clone(), error)
            }
        }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({:?})", self.seq())
    }
}
