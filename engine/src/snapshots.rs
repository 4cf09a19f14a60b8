//! Which positions of the log must stay readable.
//!
//! Invariant: a compaction that reads [`Snapshots::retained`] either finds a snapshot in the list, or that
//! snapshot reads its `Seq` afterwards and so sees everything the compaction can have taken as input.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::key::Seq;

/// The pinned positions of one store. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshots {
    /// How many guards pin each. The innermost lock: only `at` of [`Snapshots::pin`] runs under it.
    pinned: Arc<Mutex<BTreeMap<Seq, usize>>>,
}

impl Snapshots {
    /// Pins the position that `at` reads. It is read under the lock, so that no compaction can look at the
    /// list between the reading and the pinning; it must take no lock itself.
    pub(crate) fn pin(&self, at: impl FnOnce() -> Seq) -> SnapshotGuard {
        let mut pinned = self.pinned.lock();
        let seq = at();
        *pinned.entry(seq).or_insert(0) += 1;
        SnapshotGuard { registry: self.clone(), seq }
    }

    /// The pinned positions, ascending, each once.
    pub(crate) fn retained(&self) -> Vec<Seq> {
        self.pinned.lock().keys().copied().collect()
    }

    /// The lowest pinned position.
    pub(crate) fn oldest(&self) -> Option<Seq> {
        self.pinned.lock().keys().next().copied()
    }

    /// How many guards there are.
    pub(crate) fn count(&self) -> usize {
        self.pinned.lock().values().sum()
    }
}

/// Keeps one position readable until it is dropped. Cloning pins once more.
#[derive(Debug)]
pub(crate) struct SnapshotGuard {
    registry: Snapshots,
    seq: Seq,
}

impl SnapshotGuard {
    /// Entries with `seq < ` this are seen.
    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }
}

impl Clone for SnapshotGuard {
    fn clone(&self) -> SnapshotGuard {
        self.registry.pin(|| self.seq)
    }
}

impl Drop for SnapshotGuard {
    fn drop(&mut self) {
        let mut pinned = self.registry.pinned.lock();
        if let Some(count) = pinned.get_mut(&self.seq) {
            *count -= 1;
            if *count == 0 {
                pinned.remove(&self.seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_pinned_until_its_last_guard_is_dropped() {
        let snapshots = Snapshots::default();
        let later = snapshots.pin(|| Seq::new(9));
        let first = snapshots.pin(|| Seq::new(4));
        let second = first.clone();
        assert_eq!(snapshots.retained(), [Seq::new(4), Seq::new(9)]);
        assert_eq!(snapshots.count(), 3);
        drop(first);
        assert_eq!(snapshots.oldest(), Some(Seq::new(4)));
        drop(second);
        assert_eq!(snapshots.retained(), [Seq::new(9)]);
        drop(later);
        assert_eq!((snapshots.oldest(), snapshots.count()), (None, 0));
    }
}
