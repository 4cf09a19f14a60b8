//! Asks memory for what is needed soon, by whoever has something else to do before. Never more than advice.
#![expect(unsafe_code, reason = "an instruction that nobody but a cache notices")]

/// What memory brings at once.
const LINE_BYTES: usize = 64;

/// Of an object.
#[inline]
pub(crate) fn prefetch<T>(object: &T) {
    prefetch_bytes(std::ptr::from_ref(object).cast(), size_of::<T>());
}

/// Of so many bytes from an address on, whatever is there.
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "not known how"))]
pub(crate) fn prefetch_bytes(address: *const u8, len_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..len_bytes.div_ceil(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: nothing is read as far as the program can tell, and no address is wrong.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line * LINE_BYTES).cast()) };
    }
}
