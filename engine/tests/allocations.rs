//! A get of a value in memory allocates nothing. These tests have a program of their own, since its allocator counts.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use aio::SimBackend;
use esker::testing::{Background, BuilderExt};
use esker::{Db, Error};

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending no longer counts.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on as it came; counting touches no memory of the allocator, and allocates none.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about both.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about all three.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The number of allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn key(number: usize) -> String {
    format!("key {number:04}")
}

#[test]
fn a_get_with_of_a_value_in_memory_allocates_nothing() {
    let sim = SimBackend::new(1);
    let builder = Db::builder().backend(Arc::new(sim)).background(Background::Manual);
    let db = builder.memory_budget_bytes(8 << 20).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    for number in 0..2000 {
        ks.put(key(number), [b'v'; 100]).unwrap();
    }
    db.compact().unwrap();
    for number in 0..1000 {
        ks.put(key(number * 2), [b'w'; 50]).unwrap();
    }
    db.flush().unwrap();
    ks.put(key(7), "in the memtable").unwrap();
    ks.delete(key(8)).unwrap();
    let keys: Vec<String> = (0..2100).map(key).collect();
    // The first round brings every block into the cache and makes the objects that a thread makes once.
    for key in &keys {
        ks.get(key).unwrap();
    }
    let (mut found, mut bytes) = (0, 0);
    let made = allocations(|| {
        for key in &keys {
            found += usize::from(ks.get_with(key, |value| bytes += value.len()).unwrap().is_some());
            assert!(ks.contains_key(key).unwrap() || key == "key 0008" || key.as_str() > "key 1999");
        }
    });
    assert_eq!((found, made), (1999, 0));
    assert_eq!(bytes, 999 * 100 + 15 + 999 * 50);
    // The allocator does count: `get` makes one copy of the value.
    assert!(allocations(|| drop(ks.get(&keys[1]).unwrap())) >= 1);
}

#[test]
fn a_write_that_is_too_large_is_refused_before_it_is_copied() {
    let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
    let db = builder.memory_budget_bytes(8 << 20).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    let value = vec![b'v'; db.max_record_bytes()];
    let mut batch = db.batch();
    batch.put(&ks, "k", &value);
    let made = allocations(|| {
        assert!(matches!(ks.put("k", &value), Err(Error::TooLarge { .. })));
        assert!(matches!(batch.commit(), Err(Error::TooLarge { .. })));
    });
    assert_eq!(made, 0);
    assert!(ks.is_empty().unwrap());
}

#[test]
fn keys_of_entries_in_memory_copy_no_value_and_allocate_nothing() {
    const VALUE_BYTES: usize = 10_000;
    let sim = SimBackend::new(1);
    let builder = Db::builder().backend(Arc::new(sim)).background(Background::Manual);
    let db = builder.memory_budget_bytes(64 << 20).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    // Two versions of every key, so that a step from the back reads both.
    for number in 0..200 {
        ks.put(key(number % 100), vec![b'v'; VALUE_BYTES]).unwrap();
    }
    let (mut front, mut back) = (ks.iter().keys(), ks.iter().keys());
    for step in 0..100 {
        let made = allocations(|| {
            assert!(front.next_ref().unwrap().is_some());
            assert!(back.next_back_ref().unwrap().is_some());
        });
        assert!(made == 0 || step < 2, "{made} allocations in step {step}");
    }
    // The counter sees copies: a pair from the back does copy the first value.
    let mut pairs = ks.iter();
    let copies = allocations(|| assert_eq!(pairs.next_back_ref().unwrap().unwrap().1.len(), VALUE_BYTES));
    let mut keys = ks.iter().keys();
    assert!(copies > allocations(|| assert!(keys.next_back_ref().unwrap().is_some())));
}
