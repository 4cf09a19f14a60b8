//! A state that stays readable: the position in the log up to which its reads see.
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

/// The store as it was at one moment, across keyspaces. Owned, cheap to clone.
///
/// While it lives, older entries that it sees are kept through flushes and compactions; do not keep it for longer than
/// it is used. Keyspaces dropped since are gone for it, too.
///
/// # Concurrency
/// `Send + Sync`. Reads through it take no more locks than others.
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

    /// Its position: it sees every record below, and none at or above.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.pin.seq()
    }

    /// The value that a key had; costs what [`Keyspace::get`] costs.
    ///
    /// # Errors
    /// As [`Keyspace::get`]; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.view(keyspace)?.get(key.as_ref())
    }

    /// Shows the value that a key had to `found` without copying it, see [`Keyspace::get_with`].
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn get_with<R>(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        found: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        self.view(keyspace)?.get_with(key.as_ref(), found)
    }

    /// The values that many keys had, see [`Keyspace::multi_get`].
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        self.view(keyspace)?.multi_get(keys)
    }

    /// Shows the values that many keys had to `found` without copying them, see [`Keyspace::multi_get_with`].
    ///
    /// # Errors
    /// As [`Keyspace::multi_get_with`]; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
    pub fn multi_get_with<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: &[K],
        found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<()> {
        self.view(keyspace)?.multi_get_with(keys, found)
    }

    /// The value that a key had, as a future that needs the snapshot no more, see [`Keyspace::get_async`].
    ///
    /// # Errors
    /// As [`Keyspace::get_async`]; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
    pub fn get_async(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Get {
        Get::of(self.multi_get_async(keyspace, &[key]))
    }

    /// The values that many keys had, as a future that needs the snapshot no more, see [`Keyspace::multi_get_async`].
    ///
    /// # Errors
    /// As [`Keyspace::multi_get_async`]; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
    pub fn multi_get_async<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, keys: &[K]) -> MultiGet {
        match self.view(keyspace) {
            Ok(view) => view.multi_get_async(keys),
            Err(error) => MultiGet::failed(error),
        }
    }

    /// The pairs whose keys lay in a range, see [`Keyspace::range`].
    ///
    /// # Errors
    /// Those of [`Iter`], at its steps; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
    #[must_use]
    pub fn range(&self, keyspace: &Keyspace, range: impl KeyRange) -> Iter {
        self.iterate(keyspace, range.into_bounds())
    }

    /// The pairs whose keys began with `prefix`.
    ///
    /// # Errors
    /// Those of [`Iter`], at its steps; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
    #[must_use]
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Iter {
        self.iterate(keyspace, KeyBounds::prefix(prefix.as_ref()))
    }

    /// All pairs.
    ///
    /// # Errors
    /// Those of [`Iter`], at its steps; [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store.
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
