//! Aligned heap memory that an operation can own.
//!
//! Direct I/O wants the buffer, the file offset and the length aligned to the device's sector; a [`Buf`] is aligned
//! to a page, which satisfies every file system. It is moved into an operation and comes back with the completion,
//! so nobody can free or touch it while the kernel writes into it.
//!
//! Invariants: `ptr` is an allocation of `capacity` bytes (a multiple of [`Buf::ALIGN`], never 0) made with that
//! alignment; all of it is initialised; `len <= capacity`.
#![expect(unsafe_code, reason = "aligned allocation")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A page-aligned, initialised, fixed-capacity byte buffer.
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: a `Buf` owns its memory exclusively and has no interior mutability, like a `Box<[u8]>`.
unsafe impl Send for Buf {}
// SAFETY: shared references to a `Buf` only read, like `&Box<[u8]>`.
unsafe impl Sync for Buf {}

impl Buf {
    /// The alignment of the memory in bytes; no device asks for more.
    pub const ALIGN: usize = 4096;

    /// A buffer of `len_bytes` zero bytes. Its capacity is rounded up to a multiple of [`Buf::ALIGN`].
    ///
    /// # Panics
    /// If the length does not fit into the address space.
    #[must_use]
    pub fn zeroed(len_bytes: usize) -> Buf {
        let capacity = len_bytes.max(1).next_multiple_of(Buf::ALIGN);
        let layout = Buf::layout(capacity);
        // SAFETY: the layout's size is at least `ALIGN`, so not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Buf { ptr, len: len_bytes, capacity }
    }

    /// Bytes that [`Buf::set_len`] may go up to.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the length. Bytes that come into view are zero or whatever was written there before.
    ///
    /// # Panics
    /// If `len_bytes` is above the capacity.
    pub fn set_len(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.capacity, "length above capacity");
        self.len = len_bytes;
    }

    /// Address of the first byte, for the kernel.
    pub(crate) fn address(&self) -> u64 {
        self.ptr.as_ptr().expose_provenance() as u64
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, Buf::ALIGN).expect("capacity was rounded up to the alignment")
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `capacity >= len` initialised bytes, borrowed as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, freed only here.
        unsafe { dealloc(self.ptr.as_ptr(), Buf::layout(self.capacity)) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity)
    }
}

impl From<&[u8]> for Buf {
    fn from(bytes: &[u8]) -> Buf {
        let mut buf = Buf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        for len in [0, 1, 511, 512, 4096, 4097, 1 << 20] {
            let mut buf = Buf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(buf.address().is_multiple_of(Buf::ALIGN as u64));
            assert!(buf.iter().all(|&byte| byte == 0));
            buf.set_len(buf.capacity());
            buf.fill(7);
        }
    }

    #[test]
    #[should_panic(expected = "length above capacity")]
    fn length_stays_within_capacity() {
        Buf::zeroed(10).set_len(4097);
    }
}
