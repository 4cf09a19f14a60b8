//! The order of eviction: S3-FIFO.
//!
//! A new value enters the *small* queue, a tenth of the budget. A value that reaches its end unused, as most values of a scan
//! do, is evicted, but its *ghost* stays for a while. A value that was used more than once moves to the *main* queue. A value
//! that is read again while its ghost exists, or that was hot before a compaction, enters the main queue at once. At the end
//! of the main queue a used value loses one use and goes back to its start. A hit moves no value; it only changes the mark in
//! the slot, and not even that once the mark is full.
//!
//! Source: Yang and others, "FIFO queues are all you need for cache eviction", SOSP 2023.
//!
//! ```text
//!   mark of a slot:  | 0 0 0 0 0 | ghost | uses (0 to 3) |
//! ```
//!
//! Invariants: `small_used + main_used` is the sum of the charges of everything queued and at most the budget; each slot
//! that has a value is queued once, and each queued entry's slot has one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use super::hazard::{Counted, Taken};
use super::retired::Retired;
use super::slots::{Slots, Use};

/// The most uses that a mark counts.
const MAX_USES: u8 = 3;

/// The ghost: this value was evicted unused from the small queue a short while ago.
const GHOST: u8 = 4;

/// The small queue's part of the budget.
const SMALL_PART: u64 = 10;

/// Counts a use. Two uses at the same time may count as one, since the mark need not be exact.
pub(super) fn mark_used(mark: &AtomicU8) {
    let before = mark.load(Ordering::Relaxed);
    if before & MAX_USES < MAX_USES {
        mark.store(before + 1, Ordering::Relaxed);
    }
}

/// Whether a value was used recently.
pub(super) fn is_used(mark: &AtomicU8) -> bool {
    mark.load(Ordering::Relaxed) & MAX_USES > 0
}

#[derive(Debug)]
struct QueueEntry<V: Counted> {
    slots: Arc<Slots<V>>,
    block: usize,
    charge: u64,
}

impl<V: Counted> QueueEntry<V> {
    fn mark(&self) -> &AtomicU8 {
        &self.slots.marks[self.block]
    }

    fn uses(&self) -> u8 {
        self.mark().load(Ordering::Relaxed) & MAX_USES
    }

    /// The value leaves its slot.
    fn take(&self) -> Option<Taken<V>> {
        self.slots.values[self.block].take(self.charge)
    }
}

/// The queues of a cache.
#[derive(Debug)]
pub(super) struct Queues<V: Counted> {
    small: VecDeque<QueueEntry<V>>,
    main: VecDeque<QueueEntry<V>>,
    ghosts: VecDeque<(Weak<Slots<V>>, usize)>,
    small_used: u64,
    main_used: u64,
    budget: u64,
    evictions: u64,
    retired: Retired<V>,
}

impl<V: Counted> Queues<V> {
    /// Empty queues for `budget` bytes. Evicted values may wait until they are more than `waiting` bytes.
    pub(super) fn new(budget: u64, waiting: u64) -> Queues<V> {
        Queues {
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            small_used: 0,
            main_used: 0,
            budget,
            evictions: 0,
            retired: Retired::new(waiting),
        }
    }

    /// Returns values to free, if enough wait. The caller frees them outside of the lock.
    pub(super) fn insert(
        &mut self,
        (slots, block): (&Arc<Slots<V>>, usize),
        value: &V,
        charge: u64,
        by: Use,
    ) -> Vec<Taken<V>> {
        if charge > self.budget || slots.values[block].is_some() {
            return Vec::new();
        }
        while self.used_bytes() > self.budget - charge {
            self.make_room();
        }
        let was_ghost = slots.marks[block].swap(0, Ordering::Relaxed) & GHOST != 0;
        slots.values[block].fill(value.clone());
        let entry = QueueEntry { slots: Arc::clone(slots), block, charge };
        if by == Use::Warm || was_ghost && by == Use::Point {
            self.main_used += charge;
            self.main.push_back(entry);
        } else {
            self.small_used += charge;
            self.small.push_back(entry);
        }
        assert!(self.used_bytes() <= self.budget, "the cache is over its budget");
        self.retired.due()
    }

    /// Sets the budget. Returns values to free, like [`Queues::insert`].
    pub(super) fn resize(&mut self, budget: u64) -> Vec<Taken<V>> {
        self.budget = budget;
        while self.used_bytes() > self.budget {
            self.make_room();
        }
        self.retired.all()
    }

    /// Returns all that is to be freed, as [`Queues::insert`].
    pub(super) fn forget(&mut self, slots: &Arc<Slots<V>>) -> Vec<Taken<V>> {
        let retired = &mut self.retired;
        for (queue, used) in [(&mut self.small, &mut self.small_used), (&mut self.main, &mut self.main_used)]
        {
            queue.retain(|entry| {
                let stays = !Arc::ptr_eq(&entry.slots, slots);
                if !stays {
                    *used -= entry.charge;
                    entry.take().into_iter().for_each(|taken| retired.add(taken));
                }
                stays
            });
        }
        self.retired.all()
    }

    /// Returns all that is to be freed, as [`Queues::insert`].
    pub(super) fn clear(&mut self) -> Vec<Taken<V>> {
        (self.small_used, self.main_used) = (0, 0);
        self.ghosts.clear();
        let entries = self.small.drain(..).chain(self.main.drain(..));
        entries.filter_map(|entry| entry.take()).for_each(|taken| self.retired.add(taken));
        self.retired.all()
    }

    /// Takes back values that were to be freed and are held.
    pub(super) fn wait_again(&mut self, held: Vec<Taken<V>>) {
        self.retired.wait_again(held);
    }

    /// Charges of values that left the queues and are not freed yet.
    pub(super) fn retired_bytes(&self) -> u64 {
        self.retired.bytes()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.small_used + self.main_used
    }

    pub(super) fn values(&self) -> u64 {
        (self.small.len() + self.main.len()) as u64
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// One step of an eviction: the oldest entry of the small queue moves to the main queue or is evicted, or the oldest entry
    /// of the main queue is evicted or loses a use and stays. Repeated steps always evict a value, since uses run out.
    fn make_room(&mut self) {
        if self.small_used > self.budget / SMALL_PART || self.main.is_empty() {
            self.leave_small();
        } else {
            self.turn_main();
        }
    }

    fn leave_small(&mut self) {
        let entry = self.small.pop_front().expect("bytes are charged to some value");
        self.small_used -= entry.charge;
        if entry.uses() > 1 {
            entry.mark().store(0, Ordering::Relaxed);
            self.main_used += entry.charge;
            self.main.push_back(entry);
            return;
        }
        entry.mark().store(GHOST, Ordering::Relaxed);
        self.ghosts.push_back((Arc::downgrade(&entry.slots), entry.block));
        // At most as many ghosts as values: older ones say nothing about recent use.
        while self.ghosts.len() > self.small.len() + self.main.len() + 1 {
            self.lay_ghost();
        }
        self.evict(&entry);
    }

    fn turn_main(&mut self) {
        let Some(entry) = self.main.pop_front() else { return };
        let uses = entry.uses();
        if uses > 0 {
            entry.mark().store(uses - 1, Ordering::Relaxed);
            self.main.push_back(entry);
            return;
        }
        self.main_used -= entry.charge;
        self.evict(&entry);
    }

    fn evict(&mut self, entry: &QueueEntry<V>) {
        self.evictions += 1;
        entry.take().into_iter().for_each(|taken| self.retired.add(taken));
    }

    fn lay_ghost(&mut self) {
        if let Some((slots, block)) = self.ghosts.pop_front()
            && let Some(slots) = slots.upgrade()
        {
            slots.marks[block].fetch_and(!GHOST, Ordering::Relaxed);
        }
    }
}
