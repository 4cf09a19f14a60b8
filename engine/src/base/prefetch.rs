//! Prefetches cache lines that are needed soon, while the thread still has other work. Only advice to the processor.
#![expect(unsafe_code, reason = "an instruction that affects only caches")]

/// The size of a cache line.
const LINE_BYTES: usize = 64;

/// Prefetches an object.
#[inline]
pub(crate) fn prefetch<T>(object: &T) {
    prefetch_bytes(std::ptr::from_ref(object).cast(), size_of::<T>());
}

/// Prefetches `len_bytes` from an address on, which may be any address.
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "not known how"))]
pub(crate) fn prefetch_bytes(address: *const u8, len_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..len_bytes.div_ceil(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction reads nothing that the program could observe, and every address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line * LINE_BYTES).cast()) };
    }
}
