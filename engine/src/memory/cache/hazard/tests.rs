//! Tests of slots and guards: a held value is not freed, and every other value is freed once.
//!
//! A thread may take over a line in which guards of another thread are still announced. It then has fewer free slots and uses
//! counts. So the tests check an upper bound of the waiting values, and the exact number of living ones.

use std::cell::RefCell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::*;
use crate::read::cursor_contract::seed;

/// A value that shows its holder whether it lives, and counts the living values.
struct Live {
    number: u64,
    /// The complement of `number` until the drop.
    seal: AtomicU64,
    count: Arc<AtomicUsize>,
}

impl Live {
    fn new(number: u64, count: &Arc<AtomicUsize>) -> Arc<Live> {
        count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Live { number, seal: AtomicU64::new(!number), count: Arc::clone(count) })
    }

    fn check(&self) -> u64 {
        assert_eq!(self.seal.load(Ordering::Relaxed), !self.number, "it was freed");
        self.number
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.check();
        self.seal.store(self.number, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

type LiveSlot = Slot<Arc<Live>>;

fn check_all(held: &[Protected<Arc<Live>>]) {
    for live in held.iter().filter_map(|held| held.as_ref()) {
        live.check();
    }
}

/// Makes slots with a value each, whose number is that of the slot.
fn filled(slots: u64, count: &Arc<AtomicUsize>) -> Vec<LiveSlot> {
    let filled = |number| {
        let slot = Slot::empty();
        slot.fill(Live::new(number, count));
        slot
    };
    (0..slots).map(filled).collect()
}

fn take_all(slots: &[LiveSlot]) -> Vec<Taken<Arc<Live>>> {
    slots.iter().filter_map(|slot| slot.take(0)).collect()
}

#[test]
fn a_value_is_freed_when_it_is_no_longer_held() {
    let count = Arc::default();
    let slots = filled(3, &count);
    let held = slots[1].load();
    assert!(slots.iter().all(LiveSlot::is_some));
    let mut taken = take_all(&slots);
    assert!(slots.iter().all(|slot| !slot.is_some() && slot.load().is_none()));
    assert_eq!(count.load(Ordering::Relaxed), 3, "no search has run yet");
    free_unheld(&mut taken);
    assert!(taken.len() <= 1);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(held.as_ref().unwrap().check(), 1);
    drop(held);
    free_unheld(&mut taken);
    assert_eq!((taken.len(), count.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_value_in_two_slots_is_freed_with_the_second() {
    let count = Arc::default();
    let value = Live::new(7, &count);
    let slots = [Slot::empty(), Slot::empty()];
    for slot in &slots {
        slot.fill(Arc::clone(&value));
    }
    drop(value);
    let (first, second) = (slots[0].load(), slots[0].load());
    let mut taken: Vec<_> = slots.iter().filter_map(|slot| slot.take(0)).collect();
    free_unheld(&mut taken);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    drop(first);
    free_unheld(&mut taken);
    assert_eq!(second.as_ref().unwrap().check(), 7);
    drop(second);
    free_unheld(&mut taken);
    assert_eq!((taken.len(), count.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_thread_may_hold_more_values_than_it_has_hazard_slots() {
    let count = Arc::default();
    let slots = filled(50, &count);
    for _ in 0..3 {
        let held: Vec<_> = slots.iter().map(LiveSlot::load).collect();
        assert!(held.iter().zip(0..).all(|(held, number)| held.as_ref().unwrap().check() == number));
    }
    let held: Vec<_> = slots.iter().map(LiveSlot::load).collect();
    let mut taken = take_all(&slots);
    free_unheld(&mut taken);
    assert!(taken.len() <= 7, "values in hazard slots wait, the others have counts");
    assert_eq!(count.load(Ordering::Relaxed), 50);
    assert!(held.iter().zip(0..).all(|(held, number)| held.as_ref().unwrap().check() == number));
    drop(held);
    free_unheld(&mut taken);
    assert_eq!((taken.len(), count.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_guard_is_let_go_by_any_thread_and_outlives_its_own() {
    let count = Arc::default();
    let slots = filled(7, &count);
    let held: Vec<_> = thread::scope(|scope| {
        let load = || slots.iter().map(LiveSlot::load).collect();
        scope.spawn(load).join().unwrap()
    });
    let mut taken = take_all(&slots);
    free_unheld(&mut taken);
    assert_eq!(count.load(Ordering::Relaxed), 7, "their thread has ended");
    // Other threads take over its line, in which all slots are in use.
    let more = filled(40, &count);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let held: Vec<_> = more.iter().map(LiveSlot::load).collect();
                assert!(held.iter().all(|held| held.is_some()));
            });
        }
    });
    free_unheld(&mut taken);
    assert!(held.iter().zip(0..).all(|(held, number)| held.as_ref().unwrap().check() == number));
    drop(held);
    free_unheld(&mut taken);
    drop(more);
    assert_eq!((taken.len(), count.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn threads_that_end_leave_their_lines_to_others() {
    let count = Arc::default();
    let slots = filled(1, &count);
    for _ in 0..1000 {
        let number = thread::scope(|scope| scope.spawn(|| slots[0].load().as_ref().unwrap().check()).join());
        assert_eq!(number.unwrap(), 0);
    }
    // Other tests run at the same time, with threads of their own.
    assert!(hazard_slots::count_lines() < 500, "{} lines", hazard_slots::count_lines());
}

#[test]
fn the_end_of_a_thread_may_load_and_let_go() {
    /// At the end of its thread it loads once more and drops the held values.
    struct AtTheEnd(RefCell<Vec<Protected<Arc<Live>>>>, RefCell<Option<Arc<Vec<LiveSlot>>>>);

    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            for slot in self.1.take().unwrap().iter() {
                slot.load().as_ref().unwrap().check();
                assert_eq!(
                    Protected::into_inner(slot.load()).unwrap().check(),
                    slot.load().as_ref().unwrap().check()
                );
            }
            check_all(&self.0.borrow());
        }
    }

    impl AtTheEnd {
        fn hold(&self, slots: &Arc<Vec<LiveSlot>>) {
            *self.1.borrow_mut() = Some(Arc::clone(slots));
            self.0.borrow_mut().extend(slots.iter().map(LiveSlot::load));
        }
    }

    thread_local! {
        static BEFORE: AtTheEnd = const { AtTheEnd(RefCell::new(Vec::new()), RefCell::new(None)) };
        static BEHIND: AtTheEnd = const { AtTheEnd(RefCell::new(Vec::new()), RefCell::new(None)) };
    }

    let count = Arc::default();
    let slots = Arc::new(filled(4, &count));
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Destructors run in either order, so one of the two runs after the line was given back.
            BEFORE.with(|before| *before.1.borrow_mut() = Some(Arc::clone(&slots)));
            BEFORE.with(|before| before.hold(&slots));
            BEHIND.with(|behind| behind.hold(&slots));
        });
        // The end of a scope does not wait for the destructors of thread-locals.
        thread.join().unwrap();
    });
    let mut taken = take_all(&slots);
    free_unheld(&mut taken);
    assert_eq!((taken.len(), count.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_value_held_when_its_slot_is_dropped_is_freed_later() {
    let count = Arc::default();
    let slots = filled(5, &count);
    let held = [slots[1].load(), slots[4].load()];
    drop(slots);
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert_eq!(held.iter().map(|held| held.as_ref().unwrap().check()).sum::<u64>(), 5);
    drop(held);
    // Any later call frees it, even a call without values of its own. Another test may be doing so now.
    while count.load(Ordering::Relaxed) > 0 {
        free_unheld::<Arc<Live>>(&mut Vec::new());
        thread::yield_now();
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// Some threads load from slots, others empty and fill them. Guards are kept for a while, several at once, and are handed to
/// other threads and dropped there. Readers end and new ones start. Each value shows whether it lives; at the end none does.
struct Stress {
    slots: Vec<LiveSlot>,
    handed: Mutex<Vec<Protected<Arc<Live>>>>,
    count: Arc<AtomicUsize>,
    is_over: AtomicBool,
}

const STRESSED: usize = 8;

impl Stress {
    fn read(&self, mut random: Random) {
        let mut held = Vec::new();
        for _ in 0..500 {
            for _ in 0..random.below(10) {
                held.push(self.slots[random.below(STRESSED)].load());
            }
            check_all(&held);
            if random.below(8) == 0 && !held.is_empty() {
                let one = held.swap_remove(random.below(held.len()));
                let mut handed = self.handed.lock().unwrap();
                handed.push(one);
                if handed.len() > 5 {
                    let at = random.below(handed.len());
                    held.push(handed.swap_remove(at));
                }
            }
            if let Some(value) = held.pop().and_then(Protected::into_inner) {
                value.check();
            }
            held.truncate(random.below(12));
        }
    }

    /// Only one thread empties and fills a slot, as under a lock.
    fn change(&self, own: std::ops::Range<usize>, mut random: Random) -> Vec<Taken<Arc<Live>>> {
        let mut taken = Vec::new();
        let mut number = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let slot = &self.slots[own.start + random.below(own.len())];
            taken.extend(slot.take(0));
            if random.below(4) > 0 {
                number += 1;
                slot.fill(Live::new(number, &self.count));
            }
            if taken.len() > random.below(30) {
                free_unheld(&mut taken);
            }
        }
        taken
    }
}

#[test]
fn threads_that_load_and_evict_at_once_never_see_a_freed_value() {
    let seed = seed();
    let slots = (0..STRESSED).map(|_| Slot::empty()).collect();
    let stress =
        Stress { slots, handed: Mutex::default(), count: Arc::default(), is_over: AtomicBool::new(false) };
    let together = Barrier::new(6);
    let mut taken = thread::scope(|scope| {
        let changers = [0..STRESSED / 2, STRESSED / 2..STRESSED].map(|own| {
            let random = Random((seed ^ (own.end as u64) << 32) | 1);
            let (stress, together) = (&stress, &together);
            scope.spawn(move || {
                together.wait();
                stress.change(own, random)
            })
        });
        let readers: Vec<_> = (1..5_u64)
            .map(|reader| {
                let (stress, together) = (&stress, &together);
                scope.spawn(move || {
                    together.wait();
                    for generation in 1..30_u64 {
                        let random = Random(seed.wrapping_mul(reader * 100 + generation) | 1);
                        thread::scope(|scope| scope.spawn(|| stress.read(random)).join().unwrap());
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().unwrap();
        }
        stress.is_over.store(true, Ordering::Relaxed);
        changers.into_iter().flat_map(|changer| changer.join().unwrap()).collect::<Vec<_>>()
    });
    drop(std::mem::take(&mut *stress.handed.lock().unwrap()));
    let Stress { slots, count, .. } = stress;
    taken.extend(take_all(&slots));
    free_unheld(&mut taken);
    assert_eq!((taken.len(), count.load(Ordering::Relaxed)), (0, 0));
}
