//! Values that left the cache and that somebody may still hold: they wait until it is worth the while to look who does.
//!
//! Invariant: what waits and nobody held at the last look is less than the limit, except while its bytes are handed out.

use super::hazard::{Counted, Taken};

/// Those of one shard, under its lock.
#[derive(Debug)]
pub(super) struct Retired<V: Counted> {
    waiting: Vec<Taken<V>>,
    bytes: u64,
    /// Of those that nobody has looked for yet.
    new_bytes: u64,
    limit_bytes: u64,
}

impl<V: Counted> Retired<V> {
    pub(super) fn new(limit_bytes: u64) -> Retired<V> {
        Retired { waiting: Vec::new(), bytes: 0, new_bytes: 0, limit_bytes }
    }

    pub(super) fn add(&mut self, taken: Taken<V>) {
        self.bytes += taken.charge();
        self.new_bytes += taken.charge();
        self.waiting.push(taken);
    }

    /// What waits, if that is enough for a look: those that were held at the last look count no more, so a few values that
    /// are held for long do not make every eviction look.
    pub(super) fn due(&mut self) -> Vec<Taken<V>> {
        if self.new_bytes > 0 && self.new_bytes >= self.limit_bytes { self.all() } else { Vec::new() }
    }

    /// All that waits.
    pub(super) fn all(&mut self) -> Vec<Taken<V>> {
        (self.bytes, self.new_bytes) = (0, 0);
        std::mem::take(&mut self.waiting)
    }

    /// Those of `all` or `due` that somebody holds.
    pub(super) fn wait_again(&mut self, held: Vec<Taken<V>>) {
        self.bytes += held.iter().map(Taken::charge).sum::<u64>();
        self.waiting.extend(held);
    }

    /// Charges of what waits.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
