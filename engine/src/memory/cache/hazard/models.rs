//! Every schedule of small cases, for loom (`just loom`): threads that load, take out, free and end at once.
//!
//! A thread has one guard here, so that a second one needs a count. Memory of freed values is reused at once, the last first.
//!
//! Checked invariants: a load finds a value that was in that slot; while it is held it is not freed, and its uses are ordered
//! before its freeing; at the end every value is freed, once.
#![expect(unsafe_code, reason = "the models reuse the memory of values")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Count;

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::*;

/// The memory of a value. It stays until the process ends.
struct Body {
    counts: AtomicUsize,
    /// The number of the value; 0 after it was freed. Loom notices a read and a write without an order.
    number: UnsafeCell<usize>,
}

// SAFETY: loom checks the accesses to `number`, and runs one thread at a time.
unsafe impl Sync for Body {}

/// The memory of the freed values of this run, which is reused, and the number of all values.
struct ModelMemory {
    free: Vec<&'static Body>,
    bodies: usize,
}

loom::lazy_static! {
    static ref MEMORY: Mutex<ModelMemory> = Mutex::new(ModelMemory { free: Vec::new(), bodies: 0 });
}

/// One count of a value.
struct Watched(&'static Body);

impl Watched {
    fn new(number: usize) -> Watched {
        let mut memory = MEMORY.lock().unwrap();
        if let Some(body) = memory.free.pop() {
            drop(memory);
            body.write(number);
            body.counts.store(1, Ordering::Relaxed);
            return Watched(body);
        }
        memory.bodies += 1;
        Watched(Box::leak(Box::new(Body { counts: AtomicUsize::new(1), number: UnsafeCell::new(number) })))
    }

    fn number(&self) -> usize {
        // SAFETY: loom fails if a thread writes at the same time, and runs one thread at a time.
        let number = self.0.number.with(|number| unsafe { *number });
        assert_ne!(number, 0, "it was freed");
        number
    }
}

impl Body {
    fn write(&self, number: usize) {
        // SAFETY: as in `Watched::number`.
        self.number.with_mut(|place| unsafe { *place = number });
    }
}

impl Clone for Watched {
    fn clone(&self) -> Watched {
        assert!(self.0.counts.fetch_add(1, Ordering::Relaxed) > 0, "it was freed");
        Watched(self.0)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let before = self.0.counts.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "it was freed twice");
        if before == 1 {
            self.0.write(0);
            MEMORY.lock().unwrap().free.push(self.0);
        }
    }
}

// SAFETY: a value is a reference to its body and nothing else, and bodies stay.
unsafe impl Counted for Watched {
    fn into_raw(self) -> NonNull<()> {
        NonNull::from(ManuallyDrop::new(self).0).cast()
    }

    fn address(&self) -> usize {
        ptr::from_ref(self.0).addr()
    }

    unsafe fn from_raw(raw: NonNull<()>) -> Watched {
        // SAFETY: `into_raw` made it of a reference that stays.
        Watched(unsafe { raw.cast().as_ref() })
    }
}

/// Two slots; the first holds value 1, the second value 2.
type Slots = [Slot<Watched>; 2];

fn slots() -> Arc<Slots> {
    Arc::new([1, 2].map(|number| {
        let slot = Slot::empty();
        slot.fill(Watched::new(number));
        slot
    }))
}

fn explore(name: &str, preemptions: usize, model: fn()) {
    let schedules = Arc::new(Count::new(0));
    let count = Arc::clone(&schedules);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
        let memory = MEMORY.lock().unwrap();
        assert_eq!(memory.free.len(), memory.bodies, "a value without a holder is freed");
    });
    println!("{name}: {} schedules", schedules.load(Ordering::Relaxed));
}

fn spawn(slots: &Arc<Slots>, work: fn(&Slots)) -> thread::JoinHandle<()> {
    let slots = Arc::clone(slots);
    thread::spawn(move || {
        work(&slots);
        hazard_slots::end_thread();
    })
}

/// The number of the value that is found, read twice with other threads in between.
fn read(slot: &Slot<Watched>) -> Option<usize> {
    let held = slot.load();
    let value = held.as_ref()?;
    let number = value.number();
    thread::yield_now();
    assert_eq!(value.number(), number, "another value came to its address while it was held");
    Some(number)
}

/// Empties the slot. A held value waits; another is freed.
fn throw_out(slot: &Slot<Watched>) -> Vec<Taken<Watched>> {
    let mut taken: Vec<_> = slot.take(0).into_iter().collect();
    free_unheld(&mut taken);
    taken
}

/// Called when no value is held.
fn free_all(mut taken: Vec<Taken<Watched>>) {
    free_unheld(&mut taken);
    assert_eq!(taken.len(), 0, "nothing is held any more");
}

#[test]
fn a_held_value_is_not_freed() {
    explore("one reader", 4, || {
        let slots = slots();
        let reader = spawn(&slots, |slots| assert!([None, Some(1)].contains(&read(&slots[0]))));
        let waiting = throw_out(&slots[0]);
        reader.join().unwrap();
        free_all(waiting);
    });
}

#[test]
fn two_threads_may_hold_a_value_that_a_third_takes_out() {
    explore("two readers", 3, || {
        let slots = slots();
        let readers = [(); 2].map(|()| {
            spawn(&slots, |slots| {
                read(&slots[0]);
            })
        });
        let waiting = throw_out(&slots[0]);
        for reader in readers {
            reader.join().unwrap();
        }
        free_all(waiting);
    });
}

/// The new value gets the address of the old one, if that was freed already.
#[test]
fn a_load_finds_the_new_value_at_a_reused_address() {
    explore("an address again", 3, || {
        let slots = slots();
        let reader = spawn(&slots, |slots| {
            let first = read(&slots[0]);
            assert!([None, Some(1), Some(3)].contains(&first), "{first:?}");
            let second = read(&slots[0]);
            assert!(second == Some(3) || (second, first) != (Some(1), Some(3)), "{second:?} after {first:?}");
        });
        let mut waiting = throw_out(&slots[0]);
        slots[0].fill(Watched::new(3));
        reader.join().unwrap();
        waiting.extend(slots[0].take(0));
        free_all(waiting);
    });
}

#[test]
fn a_thread_may_free_a_value_that_another_one_took_out() {
    explore("freed elsewhere", 3, || {
        let slots = slots();
        let reader = spawn(&slots, |slots| {
            read(&slots[0]);
        });
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&waiting);
        let freeing = thread::spawn(move || {
            let mut taken = std::mem::take(&mut *list.lock().unwrap());
            free_unheld(&mut taken);
            list.lock().unwrap().extend(taken);
        });
        let taken = slots[0].take(0);
        waiting.lock().unwrap().extend(taken);
        reader.join().unwrap();
        freeing.join().unwrap();
        free_all(std::mem::take(&mut *waiting.lock().unwrap()));
    });
}

#[test]
fn a_thread_without_a_free_slot_counts() {
    explore("two at once", 3, || {
        let slots = slots();
        let reader = spawn(&slots, |slots| {
            let first = slots[0].load();
            assert!([None, Some(2)].contains(&read(&slots[1])));
            assert!([None, Some(1)].contains(&first.as_ref().map(Watched::number)));
        });
        let mut waiting = throw_out(&slots[1]);
        waiting.append(&mut throw_out(&slots[0]));
        reader.join().unwrap();
        free_all(waiting);
    });
}

#[test]
fn a_count_may_be_taken_of_a_held_value() {
    explore("counted", 4, || {
        let slots = slots();
        let reader = spawn(&slots, |slots| {
            let counted = Protected::into_inner(slots[0].load());
            thread::yield_now();
            assert!([None, Some(1)].contains(&counted.as_ref().map(Watched::number)));
        });
        let waiting = throw_out(&slots[0]);
        reader.join().unwrap();
        free_all(waiting);
    });
}

/// The first thread ends. The second takes over its line, or has its own line if it started earlier.
#[test]
fn a_line_goes_from_a_thread_that_ends_to_another() {
    explore("a thread ends", 3, || {
        let slots = slots();
        let first = spawn(&slots, |slots| {
            read(&slots[0]);
        });
        let second = spawn(&slots, |slots| {
            read(&slots[1]);
            read(&slots[0]);
        });
        let waiting = throw_out(&slots[0]);
        first.join().unwrap();
        second.join().unwrap();
        free_all(waiting);
        free_all(slots[1].take(0).into_iter().collect());
    });
}

/// A thread drops a guard that another one made, while that thread reuses its hazard slot.
#[test]
fn a_guard_may_be_let_go_elsewhere() {
    explore("let go elsewhere", 3, || {
        let slots = slots();
        let handed = Arc::new(Mutex::new(None));
        let (theirs, into) = (Arc::clone(&slots), Arc::clone(&handed));
        let reader = thread::spawn(move || {
            *into.lock().unwrap() = Some(theirs[0].load());
            read(&theirs[1]);
            hazard_slots::end_thread();
        });
        let held = handed.lock().unwrap().take();
        let number = held.as_ref().and_then(|held| held.as_ref()).map(Watched::number);
        assert!([None, Some(1)].contains(&number));
        drop(held);
        let mut waiting = throw_out(&slots[0]);
        waiting.append(&mut throw_out(&slots[1]));
        reader.join().unwrap();
        drop(handed.lock().unwrap().take());
        free_all(waiting);
    });
}
