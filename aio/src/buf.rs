//! Page-aligned memory that an operation can own.
//!
//! Direct I/O needs buffer, file offset and length aligned to the device's sector. A [`Buf`] is aligned to a page, which
//! satisfies every file system. It is moved into an operation and comes back with the completion, so no one can free or
//! touch it while the kernel uses it.
//!
//! ```text
//!   Buf::zeroed -> heap ------------------------------------------------> drop: freed
//!   Buf::leased -> pages of a lender -> operation -> completion reaped -> drop: back to the lender
//! ```
//!
//! A buffer is dropped only by its owner. While an operation is in flight that is the context, which drops nothing that it
//! has not reaped. So a lender gets pages back only after the kernel is done with them, also on errors and panics.
//!
//! Invariants: `ptr` points to `capacity` bytes (a multiple of [`Buf::ALIGN`], never 0), which are `pages` if there is a
//! lender and else an allocation with that alignment; all of them are initialised; `len <= capacity`.
#![expect(unsafe_code, reason = "aligned allocation")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

/// A page-aligned, initialised, fixed-capacity byte buffer.
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
    lease: Option<Lease>,
}

/// Whole pages of memory, mapped from the kernel and zero at first.
pub struct Pages(MmapMut);

/// Owns the pages that [`Buf::leased`] lends.
pub trait Lender: Send + Sync + fmt::Debug {
    /// A buffer of these pages was dropped. They hold the bytes that were written last.
    fn take_back(&self, pages: Pages);
}

/// Where the memory of a buffer goes when the buffer is dropped.
struct Lease {
    pages: Pages,
    lender: Arc<dyn Lender>,
}

// SAFETY: a `Buf` owns its memory exclusively and has no interior mutability, like a `Box<[u8]>`.
unsafe impl Send for Buf {}
// SAFETY: shared references to a `Buf` only read, like `&Box<[u8]>`.
unsafe impl Sync for Buf {}

impl Pages {
    /// Maps `len_bytes`, rounded up to whole pages; `None` if the kernel has no memory.
    #[must_use]
    pub fn map(len_bytes: usize) -> Option<Pages> {
        MmapMut::map_anon(len_bytes.max(1).next_multiple_of(Buf::ALIGN)).ok().map(Pages)
    }

    /// Their length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({} bytes)", self.len_bytes())
    }
}

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
        Buf { ptr, len: len_bytes, capacity, lease: None }
    }

    /// A buffer of all of `pages` with the bytes that are in them. When it is dropped they go back to the lender.
    #[must_use]
    pub fn leased(mut pages: Pages, lender: Arc<dyn Lender>) -> Buf {
        let capacity = pages.len_bytes();
        let ptr = NonNull::from(&mut pages.0[..]).cast();
        Buf { ptr, len: capacity, capacity, lease: Some(Lease { pages, lender }) }
    }

    /// Bytes that [`Buf::set_len`] may go up to.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the length. Bytes that come into view are zero, or those that were written there before.
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
        if let Some(Lease { pages, lender }) = self.lease.take() {
            lender.take_back(pages);
            return;
        }
        // SAFETY: without a lease it was allocated in `zeroed` with this layout, and it is freed only here.
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

    #[derive(Debug, Default)]
    struct Shelf(parking_lot::Mutex<Vec<Pages>>);

    impl Lender for Shelf {
        fn take_back(&self, pages: Pages) {
            self.0.lock().push(pages);
        }
    }

    #[test]
    fn leased_pages_go_back_with_their_bytes() {
        let shelf = Arc::<Shelf>::default();
        let mut buf = Buf::leased(Pages::map(5000).unwrap(), shelf.clone());
        assert_eq!((buf.len(), buf.capacity()), (8192, 8192));
        assert!(buf.address().is_multiple_of(Buf::ALIGN as u64));
        assert!(buf.iter().all(|&byte| byte == 0));
        buf.set_len(100);
        buf.fill(7);
        drop(buf);
        let pages = shelf.0.lock().pop().unwrap();
        assert_eq!(pages.len_bytes(), 8192);
        let buf = Buf::leased(pages, shelf);
        assert!(buf[..100].iter().all(|&byte| byte == 7) && buf[100..].iter().all(|&byte| byte == 0));
    }

    #[test]
    #[should_panic(expected = "length above capacity")]
    fn length_stays_within_capacity() {
        Buf::zeroed(10).set_len(4097);
    }
}
