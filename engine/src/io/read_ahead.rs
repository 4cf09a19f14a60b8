//! How far a scan reads ahead, and how much memory all scans of a store may take for it.
//!
//! A scan begins with the one block that it wants, since most scans are short. Each read that goes on where the one before
//! ended takes twice as many blocks, up to [`MOST_BYTES`] at once. So of the blocks that a scan reads, at most half are in
//! vain wherever it ends; and one over a gigabyte makes as few reads as if it had known its length.
//!
//! Invariant: the grants of an [`Allowance`] sum to at most what it was made with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes that are read ahead at once.
pub(crate) const MOST_BYTES: usize = 256 << 10;

/// More than that many blocks fit into no read: the smallest has 512 bytes.
const MOST_BLOCKS: usize = MOST_BYTES / 512;

/// Blocks that the next read of one scan takes.
#[derive(Debug)]
pub(crate) struct Window {
    blocks: usize,
}

impl Window {
    /// Of a scan that may end soon.
    pub(crate) const fn growing() -> Window {
        Window { blocks: 1 }
    }

    /// Of one that goes to the end, as far as anybody knows.
    pub(crate) const fn full() -> Window {
        Window { blocks: MOST_BLOCKS }
    }

    /// For the next read; at least 1.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// The scan has gone on to another read.
    pub(crate) fn grow(&mut self) {
        self.blocks = (self.blocks * 2).min(MOST_BLOCKS);
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

    /// Nothing yet, to be widened.
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
    /// Asks for `wanted` bytes in all, and says how many there are now, perhaps fewer. Nobody takes more than half of what
    /// is free, so that there is always something left for the next scan.
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
    fn a_window_doubles_up_to_its_limit() {
        let mut window = Window::growing();
        let taken: Vec<usize> = std::iter::repeat_with(|| {
            let blocks = window.blocks();
            window.grow();
            blocks
        })
        .take(12)
        .collect();
        assert_eq!(taken, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]);
        assert_eq!(Window::full().blocks(), 512);
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
        assert_eq!(grants[0].widen(256 << 10), 128 << 10, "half of what came back");
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
