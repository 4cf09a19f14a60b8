//! One piece of an arena's memory: from the allocator, or a huge page of its own.
//!
//! A huge page avoids most misses of the address translation, which take a third of an insert's time. The mapping is twice as
//! large as the page, for its alignment. The rest of it is never touched and so takes no memory.

use memmap2::{Advice, MmapMut};

/// A chunk of this size gets a huge page, if the kernel has one.
pub(super) const HUGE_BYTES: usize = 2 << 20;

/// Alignment of every chunk; its size is a multiple of this.
pub(super) const LINE_BYTES: usize = 64;

#[repr(align(64))]
struct CacheLine {
    _bytes: [u8; LINE_BYTES],
}

const _: () = assert!(size_of::<CacheLine>() == LINE_BYTES);

/// Uninitialised memory that does not move.
pub(super) struct Chunk {
    bytes: usize,
    memory: Backing,
}

/// The source of the memory.
enum Backing {
    Heap(Vec<CacheLine>),
    Huge(MmapMut),
}

impl Chunk {
    /// `bytes` is a multiple of [`LINE_BYTES`].
    pub(super) fn new(bytes: usize) -> Chunk {
        debug_assert!(bytes.is_multiple_of(LINE_BYTES));
        let huge = if bytes == HUGE_BYTES && cfg!(not(loom)) { map_huge() } else { None };
        let memory =
            huge.map_or_else(|| Backing::Heap(Vec::with_capacity(bytes / LINE_BYTES)), Backing::Huge);
        Chunk { bytes, memory }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first byte, aligned to [`LINE_BYTES`]: valid for reads and writes of [`Chunk::bytes`] until the chunk is dropped.
    pub(super) fn base(&mut self) -> *mut u8 {
        match &mut self.memory {
            Backing::Heap(lines) => lines.as_mut_ptr().cast(),
            Backing::Huge(map) => {
                let from = huge_offset(map);
                map[from..from + HUGE_BYTES].as_mut_ptr()
            }
        }
    }
}

/// `None` if the kernel refuses the mapping. The caller then uses the allocator.
fn map_huge() -> Option<MmapMut> {
    let map = MmapMut::map_anon(2 * HUGE_BYTES).ok()?;
    // Only advice. If the kernel ignores it, these are ordinary pages.
    let _ = map.advise_range(Advice::HugePage, huge_offset(&map), HUGE_BYTES);
    Some(map)
}

/// The address of the first aligned huge page.
fn huge_offset(map: &MmapMut) -> usize {
    let address = map.as_ptr().addr();
    address.next_multiple_of(HUGE_BYTES) - address
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunk").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
