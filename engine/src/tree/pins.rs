//! The pins: positions of the log that must stay readable.
//!
//! Every scan pins a position while it lives. So pins of different threads take different locks, and a pin rarely
//! allocates: each of a few shards has a sorted list of positions.
//!
//! Invariant: a flush or compaction that calls [`Pins::retained`] finds a pin in the list, or that pin reads its `Seq` later
//! and so sees every entry of the inputs. This holds for each shard alone, so the shards need not be read at one moment.

use std::sync::Arc;

use crate::base::key::Seq;
use crate::base::sync::shared::{Mutex, thread_number};

/// How many threads can pin at the same time without waiting for each other.
const SHARDS: usize = 16;

/// The pinned positions of one store. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    shards: Arc<[Shard; SHARDS]>,
}

/// Aligned, so that two shards never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Ascending. The innermost lock: only `at` of [`Pins::pin`] runs under it.
    pinned: Mutex<Vec<Pinned>>,
}

/// A pinned position of one shard.
#[derive(Debug)]
struct Pinned {
    seq: Seq,
    /// How many guards of this shard pin it; at least one.
    guards: usize,
}

impl Pins {
    /// Pins the position that `at` reads. `at` runs under the shard's lock, so that no compaction reads the list between the
    /// read of the position and the pin. It must take no lock.
    pub(crate) fn pin(&self, at: impl FnOnce() -> Seq) -> PinGuard {
        // A thread always uses the same shard.
        let shard = thread_number() % SHARDS;
        let mut pinned = self.shards[shard].pinned.lock();
        let seq = at();
        match pinned.binary_search_by_key(&seq, |pinned| pinned.seq) {
            Ok(at) => pinned[at].guards += 1,
            // Usually at the end: positions rise.
            Err(at) => pinned.insert(at, Pinned { seq, guards: 1 }),
        }
        drop(pinned);
        PinGuard { registry: self.clone(), shard, seq }
    }

    /// The pinned positions, ascending, each once.
    pub(crate) fn retained(&self) -> Vec<Seq> {
        let mut all = Vec::new();
        for shard in self.shards.iter() {
            all.extend(shard.pinned.lock().iter().map(|pinned| pinned.seq));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The lowest pinned position.
    pub(crate) fn oldest(&self) -> Option<Seq> {
        self.retained().first().copied()
    }

    /// How many guards there are.
    pub(crate) fn count(&self) -> usize {
        let count = |shard: &Shard| shard.pinned.lock().iter().map(|pinned| pinned.guards).sum::<usize>();
        self.shards.iter().map(count).sum()
    }
}

/// Keeps one position readable until it is dropped. Cloning pins once more.
#[derive(Debug)]
pub(crate) struct PinGuard {
    registry: Pins,
    /// The shard that has the position.
    shard: usize,
    seq: Seq,
}

impl PinGuard {
    /// The pinned position: a reader sees entries with a `Seq` below it.
    #[inline]
    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }
}

impl Clone for PinGuard {
    fn clone(&self) -> PinGuard {
        self.registry.pin(|| self.seq)
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        let mut pinned = self.registry.shards[self.shard].pinned.lock();
        if let Ok(at) = pinned.binary_search_by_key(&self.seq, |pinned| pinned.seq) {
            pinned[at].guards -= 1;
            if pinned[at].guards == 0 {
                pinned.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_pinned_until_its_last_guard_is_dropped() {
        let snapshots = Pins::default();
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

    #[test]
    fn pins_of_all_threads_are_known_and_may_be_dropped_by_others() {
        let snapshots = Pins::default();
        let guards: Vec<PinGuard> = std::thread::scope(|scope| {
            let pin = |seq| {
                let snapshots = &snapshots;
                scope.spawn(move || {
                    [snapshots.pin(|| Seq::new(seq)), snapshots.pin(|| Seq::new(100 + seq % 2))]
                })
            };
            let threads: Vec<_> = (0..40).map(pin).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let expected: Vec<Seq> = (0..40).chain([100, 101]).map(Seq::new).collect();
        assert_eq!(snapshots.retained(), expected);
        assert_eq!((snapshots.oldest(), snapshots.count()), (Some(Seq::new(0)), 80));
        drop(guards);
        assert_eq!((snapshots.oldest(), snapshots.count()), (None, 0));
    }
}
