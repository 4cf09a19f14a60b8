//! One piece of an arena's memory: from the allocator, or a huge page of its own.
//!
//! A huge page saves most misses of the address translation, a third of an insert's time. It is mapped twice as large as
//! it is, for its alignment; what is outside is never touched and so takes no memory.

use memmap2::{Advice, MmapMut};

/// Chunks of this size lie on a huge page each, if the kernel gives one.
pub(super) const HUGE_BYTES: usize = 2 << 20;

/// What the memory of every chunk is aligned to, and a multiple of.
pub(super) const LINE_BYTES: usize = 64;

#[repr(align(64))]
struct Line {
    _bytes: [u8; LINE_BYTES],
}

const _: () = assert!(size_of::<Line>() == LINE_BYTES);

/// Memory that stays where it is, and that nobody has initialised.
pub(super) struct Chunk {
    bytes: usize,
    memory: Memory,
}

enum Memory {
    Heap(Vec<Line>),
    Huge(MmapMut),
}

impl Chunk {
    /// `bytes` is a multiple of [`LINE_BYTES`].
    pub(super) fn new(bytes: usize) -> Chunk {
        debug_assert!(bytes.is_multiple_of(LINE_BYTES));
        let huge = if bytes == HUGE_BYTES && cfg!(not(loom)) { map_huge() } else { None };
        let memory = huge.map_or_else(|| Memory::Heap(Vec::with_capacity(bytes / LINE_BYTES)), Memory::Huge);
        Chunk { bytes, memory }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins, aligned to [`LINE_BYTES`]: valid for reads and writes of [`Chunk::bytes`] until it is dropped.
    pub(super) fn base(&mut self) -> *mut u8 {
        match &mut self.memory {
            Memory::Heap(lines) => lines.as_mut_ptr().cast(),
            Memory::Huge(map) => {
                let from = huge_offset(map);
                map[from..from + HUGE_BYTES].as_mut_ptr()
            }
        }
    }
}

/// `None` when the kernel gives no mapping; the allocator has the last word then.
fn map_huge() -> Option<MmapMut> {
    let map = MmapMut::map_anon(2 * HUGE_BYTES).ok()?;
    // Only advice: without it these are pages as others are.
    let _ = map.advise_range(Advice::HugePage, huge_offset(&map), HUGE_BYTES);
    Some(map)
}

/// Where the first aligned huge page begins.
fn huge_offset(map: &MmapMut) -> usize {
    let address = map.as_ptr().addr();
    address.next_multiple_of(HUGE_BYTES) - address
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunk").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
