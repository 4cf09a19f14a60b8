//! How far a scan reads ahead, and how much memory all scans of a store may take for it.
//!
//! A scan begins with the one block that it needs, since most scans are short. From then on it may have read twice as many
//! blocks as it has used, and one more: 1, 2, 4, 8, ... blocks if it reads only when it needs one. So at most half of the
//! blocks that a scan reads are in vain wherever it ends, and a scan over a gigabyte makes as few reads as if it had known
//! its length.
//!
//! Invariant: the grants of an [`Allowance`] sum to at most the bytes that it was made with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of one window of a scan at most.
pub(crate) const MOST_BYTES: usize = 256 << 10;

/// Blocks of one window at most: the smallest block has 512 bytes.
const MOST_BLOCKS: usize = MOST_BYTES / 512;

/// How many blocks a walk may read next.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Blocks read since the walk began; `None` for a walk that goes to the end.
    read: Option<usize>,
}

impl Pace {
    /// Of a walk that begins; `may_end`: it may end soon.
    pub(crate) const fn new(may_end: bool) -> Pace {
        Pace { read: if may_end { Some(0) } else { None } }
    }

    /// Whether a walk that may end soon has read nothing.
    pub(crate) fn is_new(&self) -> bool {
        self.read == Some(0)
    }

    /// Blocks that may be read now, of which `unused` of those read before are still to be used.
    pub(crate) fn blocks(&self, unused: usize) -> usize {
        let allowed = |read: usize| (read + 1).saturating_sub(2 * unused).min(MOST_BLOCKS);
        self.read.map_or(MOST_BLOCKS, allowed)
    }

    /// So many more were read.
    pub(crate) fn add(&mut self, blocks: usize) {
        if let Some(read) = &mut self.read {
            *read += blocks;
        }
    }
}

/// Memory for the buffers of all scans of a store.
#[derive(Debug)]
pub(crate) struct Allowance {
    free_bytes: AtomicUsize,
}

impl Allowance {
    pub(crate) fn new(bytes: usize) -> Arc<Allowance> {
        Arc::new(Allowance { free_bytes: AtomicUsize::new(bytes) })
    }

    /// A grant of nothing, to be widened.
    pub(crate) fn grant(self: &Arc<Self>) -> Grant {
        Grant { of: Arc::clone(self), bytes: 0 }
    }
}

/// A part of an [`Allowance`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Grant {
    of: Arc<Allowance>,
    bytes: usize,
}

impl Grant {
    /// Asks for `wanted` bytes in all, and says how many are granted now, perhaps fewer. A grant takes at most half of the
    /// bytes that are free, so that some are left for the next scan.
    pub(crate) fn widen(&mut self, wanted: usize) -> usize {
        let Some(missing) = wanted.checked_sub(self.bytes).filter(|missing| *missing > 0) else {
            return wanted;
        };
        // Relaxed: a number and nothing else.
        let taken = |free: usize| missing.min(free / 2);
        let before = self
            .of
            .free_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| Some(free - taken(free)));
        let (Ok(free) | Err(free)) = before;
        self.bytes += taken(free);
        self.bytes
    }

    /// Bytes that are granted now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back all but `bytes`.
    pub(crate) fn narrow(&mut self, bytes: usize) {
        let excess = self.bytes.saturating_sub(bytes);
        self.bytes -= excess;
        self.of.free_bytes.fetch_add(excess, Ordering::Relaxed);
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self) {
        self.of.free_bytes.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_that_uses_all_it_read_reads_twice_as_much_up_to_a_limit() {
        let mut pace = Pace::new(true);
        assert!(pace.is_new());
        let taken: Vec<usize> = std::iter::repeat_with(|| {
            let blocks = pace.blocks(0);
            pace.add(blocks);
            blocks
        })
        .take(12)
        .collect();
        assert_eq!(taken, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]);
        let full = Pace::new(false);
        assert_eq!((full.blocks(0), full.blocks(1000), full.is_new()), (512, 512, false));
    }

    #[test]
    fn a_walk_has_never_read_more_than_twice_its_used_blocks_and_one() {
        let (mut pace, mut read, mut used) = (Pace::new(true), 0, 0);
        while used < 3000 {
            let allowed = pace.blocks(read - used);
            pace.add(allowed);
            read += allowed;
            assert!(read <= 2 * used + 1, "{read} read, {used} used");
            used += 1;
        }
        assert!(read > 3000);
    }

    #[test]
    fn grants_never_sum_to_more_than_the_allowance_and_come_back() {
        let all = Allowance::new(1 << 20);
        let mut grants: Vec<Grant> = (0..100).map(|_| all.grant()).collect();
        let given: Vec<usize> = grants.iter_mut().map(|grant| grant.widen(MOST_BYTES)).collect();
        assert_eq!(given[..4], [256 << 10, 256 << 10, 256 << 10, 128 << 10]);
        assert!(given.iter().sum::<usize>() <= 1 << 20);
        assert!(given[10] > 0 && given[99] == 0, "{given:?}");
        assert_eq!(grants[0].widen(1000), 1000, "it has more");
        grants.truncate(50);
        grants[0].release();
        assert_eq!(grants[0].widen(256 << 10), 128 << 10, "half of the bytes that came back");
        let free = all.free_bytes.load(Ordering::Relaxed);
        grants[0].narrow(100 << 10);
        assert_eq!(all.free_bytes.load(Ordering::Relaxed), free + (28 << 10));
        grants[0].narrow(1 << 20);
        assert_eq!(grants[0].bytes(), 100 << 10, "it has no more");
        drop(grants);
        assert_eq!(all.grant().widen(10), 10);
        assert_eq!(all.free_bytes.load(Ordering::Relaxed), 1 << 20);
    }

    #[test]
    fn threads_share_an_allowance() {
        let all = Allowance::new(1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..10_000 {
                        let mut grant = all.grant();
                        let given = grant.widen(1 + round % (1 << 20));
                        assert!(given <= 1 << 19, "half of all at most");
                    }
                });
            }
        });
        assert_eq!(all.free_bytes.load(Ordering::Relaxed), 1 << 20);
    }
}
