//! Which block goes when room is needed: CLOCK with a small counter for each value.
//!
//! A value starts with no credit, so one that is never read again goes when the hand first meets it; each hit gives
//! credit, up to [`MAX_CREDIT`], and each pass of the hand takes one. That keeps a hot set through scans of about its
//! own size without the second queue of fancier orders.
//!
//! Invariants: `used` is the sum of the charges of all occupied slots and at most `budget`; `map` names exactly the
//! occupied slots; `free` exactly the others.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Passes of the hand that a much-used value survives.
const MAX_CREDIT: u8 = 3;

/// Names a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) segment: u64,
    pub(super) block: u32,
}

impl Key {
    /// 64 well-mixed bits. Fixed, so that a simulated run replays.
    pub(super) fn mix(self) -> u64 {
        let mut bits = self.segment.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.block);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mix());
    }
}

/// Passes on the one word that [`Key`] writes.
#[derive(Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    value: Arc<V>,
    charge: u64,
    credit: u8,
}

/// One shard.
#[derive(Debug)]
pub(super) struct Clock<V> {
    map: HashMap<Key, usize, BuildHasherDefault<Mixed>>,
    slots: Vec<Option<Slot<V>>>,
    free: Vec<usize>,
    hand: usize,
    used: u64,
    budget: u64,
    evictions: u64,
}

impl<V> Clock<V> {
    pub(super) fn new(budget: u64) -> Clock<V> {
        Clock {
            map: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            hand: 0,
            used: 0,
            budget,
            evictions: 0,
        }
    }

    pub(super) fn get(&mut self, key: Key) -> Option<Arc<V>> {
        let slot = self.slots.get_mut(*self.map.get(&key)?)?.as_mut()?;
        slot.credit = MAX_CREDIT.min(slot.credit + 1);
        Some(slot.value.clone())
    }

    pub(super) fn peek(&self, key: Key) -> Option<Arc<V>> {
        Some(self.slots.get(*self.map.get(&key)?)?.as_ref()?.value.clone())
    }

    /// Returns what had to go, so that the caller frees it outside of the lock.
    pub(super) fn insert(&mut self, key: Key, value: &Arc<V>, charge: u64) -> Vec<Arc<V>> {
        let mut evicted = Vec::new();
        if charge > self.budget || self.map.contains_key(&key) {
            return evicted;
        }
        while self.used > self.budget - charge {
            evicted.extend(self.evict_one());
        }
        let slot = Some(Slot { key, value: value.clone(), charge, credit: 0 });
        let index = if let Some(index) = self.free.pop() {
            *self.slots.get_mut(index).expect("free slots exist") = slot;
            index
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        };
        self.map.insert(key, index);
        self.used += charge;
        assert!(self.used <= self.budget, "the cache is over its budget");
        evicted
    }

    pub(super) fn remove_segment(&mut self, segment: u64) -> Vec<Arc<V>> {
        let mut removed = Vec::new();
        for index in 0..self.slots.len() {
            if matches!(self.slots.get(index), Some(Some(slot)) if slot.key.segment == segment) {
                removed.extend(self.take(index));
            }
        }
        removed
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used
    }

    pub(super) fn values(&self) -> u64 {
        self.map.len() as u64
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Moves the hand to the next value without credit and takes it. Ends, since every pass takes credit away.
    fn evict_one(&mut self) -> Option<Arc<V>> {
        assert!(!self.map.is_empty(), "bytes are charged to no value");
        loop {
            let index = self.hand;
            self.hand = if index + 1 < self.slots.len() { index + 1 } else { 0 };
            match self.slots.get_mut(index) {
                Some(Some(slot)) if slot.credit > 0 => slot.credit -= 1,
                Some(Some(_)) => {
                    self.evictions += 1;
                    return self.take(index);
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, index: usize) -> Option<Arc<V>> {
        let slot = self.slots.get_mut(index)?.take()?;
        self.map.remove(&slot.key);
        self.free.push(index);
        self.used -= slot.charge;
        Some(slot.value)
    }
}
