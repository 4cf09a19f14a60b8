//! An allocator that stops the program at an allocation larger than the input can justify.
//!
//! Invariant: the limit holds for the one thread that fuzzes, and only while an input runs.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that one allocation may take.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator behind [`with_limit`].
#[derive(Debug)]
pub struct Limited;

/// Runs `work`. An allocation of more than `limit_bytes` in it aborts, which counts as a crash for a fuzzer.
pub fn with_limit(limit_bytes: usize, work: impl FnOnce()) {
    /// Removes the limit on every exit: a panic prints a backtrace, which needs memory.
    struct Lift;
    impl Drop for Lift {
        fn drop(&mut self) {
            LIMIT.store(usize::MAX, Ordering::Relaxed);
        }
    }
    let _lift = Lift;
    LIMIT.store(limit_bytes, Ordering::Relaxed);
    work();
}

#[inline]
fn check(size: usize) {
    let limit = LIMIT.load(Ordering::Relaxed);
    if size > limit {
        refuse(size, limit);
    }
}

#[cold]
fn refuse(size: usize, limit: usize) {
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    // A panic prints a backtrace, which needs memory.
    if std::thread::panicking() {
        return;
    }
    eprintln!("an allocation of {size} bytes where {limit} are justified");
    eprintln!("{}", std::backtrace::Backtrace::force_capture());
    // Not a panic: an allocator must not unwind.
    std::process::abort();
}

// SAFETY: every call is passed to the system's allocator unchanged. The check before it does not allocate and does not
// change the layout.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        check(new_size);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.dealloc(ptr, layout) };
    }
}
