//! The read core: every read of a keyspace, at a position that the caller's kind of read decides.
//!
//! ```text
//!   Keyspace  --- Latest ------+                                             +--> point reads   superversion.rs, multi_get.rs
//!                              +--> View: check, take layers and position ---+--> futures       futures.rs
//!   Snapshot  --- PinGuard ----+                                             +--> iterators     iter.rs
//! ```
//!
//! A keyspace reads at the watermark of each call, a snapshot at its pin; nothing else differs. A transaction would be a
//! third [`ReadAt`]: it reads at the pin that it began with, and its own writes are one more layer, newer than all others
//! and with a `Seq` just below its position. Its iterators would have a [`Source`](crate::read::snapshot_iter::Source) of
//! their own, whose cursor adds that layer to those of the superversion.
//!
//! Invariant: the superversion that a read uses was the current one when its position was taken. A newer superversion may
//! lack entries that the position sees, since a merge drops them. An older one lacks the table of the newest writes below
//! the position. Only a pinned position may be read in any later superversion: merges keep the entries that a pin sees.

use std::sync::Arc;

use arc_swap::Guard;
use bytes::Bytes;

use crate::api::futures::{Get, MultiGet};
use crate::api::handle::Handle;
use crate::api::iter::Iter;
use crate::base::error::Result;
use crate::base::key::Seq;
use crate::base::planted::{Bug, planted};
use crate::base::range::KeyBounds;
use crate::read::multi_get::multi_get_with;
use crate::tree::pins::PinGuard;
use crate::tree::store::Store;
use crate::tree::superversion::{Superversion, Tree};
use crate::write::ops::check_key;

/// How a read gets its position.
pub(crate) trait ReadAt {
    /// The superversion that one read searches, and the position below which it sees entries.
    fn look(&self, store: &Store, tree: &Tree) -> Result<(Guard<Arc<Superversion>>, Seq)>;

    /// A pin for a read of many steps.
    fn pin(&self, store: &Store) -> PinGuard;
}

/// At the newest state: a read sees every write that returned before the call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latest;

impl ReadAt for Latest {
    #[inline]
    fn look(&self, store: &Store, tree: &Tree) -> Result<(Guard<Arc<Superversion>>, Seq)> {
        tree.view(|| store.visible())
    }

    fn pin(&self, store: &Store) -> PinGuard {
        store.pin()
    }
}

/// At a pinned position: nothing that it sees is dropped, so any later superversion will do.
impl ReadAt for &PinGuard {
    #[inline]
    fn look(&self, store: &Store, tree: &Tree) -> Result<(Guard<Arc<Superversion>>, Seq)> {
        let sees_later = planted(Bug::SnapshotSeesLater);
        tree.view(|| if sees_later { store.visible() } else { self.seq() })
    }

    fn pin(&self, _: &Store) -> PinGuard {
        PinGuard::clone(self)
    }
}

/// One keyspace, as reads at `at` see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a, P> {
    pub(crate) handle: &'a Handle,
    pub(crate) tree: &'a Arc<Tree>,
    pub(crate) at: P,
}

impl<P: ReadAt> View<'_, P> {
    /// A copy of the value of `key`.
    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.get_with(key, Bytes::copy_from_slice)
    }

    /// Shows the value of `key` to `found`.
    #[inline]
    pub(crate) fn get_with<R>(&self, key: &[u8], found: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        self.check()?;
        check_key(key)?;
        let (superversion, position) = self.look()?;
        superversion.get_with(key, position, found)
    }

    /// Whether `key` has a value.
    pub(crate) fn contains_key(&self, key: &[u8]) -> Result<bool> {
        Ok(self.get_with(key, |_| ())?.is_some())
    }

    /// Copies of the values of `keys`, in their order.
    pub(crate) fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        let mut values = vec![None; keys.len()];
        self.multi_get_with(keys, |at, value| values[at] = value.map(Bytes::copy_from_slice))?;
        Ok(values)
    }

    /// Shows the values of `keys` to `found`, in any order.
    #[inline]
    pub(crate) fn multi_get_with<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<()> {
        self.check_keys(keys)?;
        let (superversion, position) = self.look()?;
        multi_get_with(&superversion, keys, position, found)
    }

    /// A future of a copy of the value of `key`.
    pub(crate) fn get_async(&self, key: &[u8]) -> Get {
        Get::of(self.multi_get_async(&[key]))
    }

    /// A future of copies of the values of `keys`.
    pub(crate) fn multi_get_async<K: AsRef<[u8]>>(&self, keys: &[K]) -> MultiGet {
        match self.check_keys(keys).and_then(|()| self.look()) {
            Ok((superversion, position)) => MultiGet::start(self.handle, superversion, keys, position),
            Err(error) => MultiGet::failed(error),
        }
    }

    /// The pairs in `bounds`. The position is taken now, everything else at the first step.
    pub(crate) fn iterate(&self, bounds: KeyBounds) -> Iter {
        let pin = self.at.pin(self.handle.store());
        Iter::new(self.handle.clone(), Arc::clone(self.tree), pin, bounds)
    }

    #[inline]
    fn look(&self) -> Result<(Guard<Arc<Superversion>>, Seq)> {
        self.at.look(self.handle.store(), self.tree)
    }

    #[inline]
    fn check(&self) -> Result<()> {
        self.handle.store().check_open()?;
        self.tree.check()
    }

    fn check_keys<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<()> {
        self.check()?;
        keys.iter().try_for_each(|key| check_key(key.as_ref()).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use aio::SimBackend;

    use super::*;
    use crate::api::db::Db;
    use crate::api::testing::{Background, BuilderExt};

    #[test]
    fn a_view_is_taken_again_if_the_layers_were_replaced_before_the_position() {
        let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
        let db = builder.open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        ks.put("key", "old").unwrap();
        let before = ks.tree().number();
        let calls = std::cell::Cell::new(0);
        // All that can happen in between: a newer version, a flush, a compaction that drops the older one.
        let view = ks.tree().view(|| {
            if calls.replace(calls.get() + 1) == 0 {
                ks.put("key", "new").unwrap();
                db.compact().unwrap();
            }
            db.handle().store().visible()
        });
        let (superversion, position) = view.unwrap();
        assert!(superversion.number > before);
        assert_eq!((superversion.number, calls.get()), (ks.tree().number(), 2));
        let found = superversion.get_with(b"key", position, <[u8]>::to_vec).unwrap();
        assert_eq!(found.as_deref(), Some(&b"new"[..]), "the layers have all that the position sees");
    }

    #[test]
    fn a_view_of_a_pin_reads_below_it_and_the_latest_view_above() {
        let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
        let db = builder.open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        ks.put("key", "old").unwrap();
        let pin = db.handle().store().pin();
        ks.put("key", "new").unwrap();
        db.compact().unwrap();
        let (handle, tree) = (db.handle(), ks.tree());
        let pinned = View { handle, tree, at: &pin };
        let latest = View { handle, tree, at: Latest };
        assert_eq!(pinned.get(b"key").unwrap().as_deref(), Some(&b"old"[..]));
        assert_eq!(latest.get(b"key").unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(pinned.iterate(KeyBounds::all()).next().unwrap().unwrap().1, "old");
        assert_eq!(latest.multi_get_async(&["key"]).wait().unwrap(), [Some("new".into())]);
    }
}
