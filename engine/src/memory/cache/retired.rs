//! Values that left the cache and may still be held. They wait until they are enough for one search of the hazard slots.
//!
//! Invariant: the waiting values that came after the last search are together smaller than the limit, except while they
//! are handed out.

use super::hazard::{Counted, Taken};

/// The retired values of one shard, under its lock.
#[derive(Debug)]
pub(super) struct Retired<V: Counted> {
    waiting: Vec<Taken<V>>,
    bytes: u64,
    /// Bytes of the values that came after the last search.
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

    /// The waiting values, if they are enough for a search. Values that were held at the last search do not count. Otherwise a
    /// few values that are held for long would make every eviction search.
    pub(super) fn due(&mut self) -> Vec<Taken<V>> {
        if self.new_bytes > 0 && self.new_bytes >= self.limit_bytes { self.all() } else { Vec::new() }
    }

    /// All waiting values.
    pub(super) fn all(&mut self) -> Vec<Taken<V>> {
        (self.bytes, self.new_bytes) = (0, 0);
        std::mem::take(&mut self.waiting)
    }

    /// Takes back the values of `all` or `due` that are held.
    pub(super) fn wait_again(&mut self, held: Vec<Taken<V>>) {
        self.bytes += held.iter().map(Taken::charge).sum::<u64>();
        self.waiting.extend(held);
    }

    /// Charges of the waiting values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
