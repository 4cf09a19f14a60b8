//! The memory of one memtable: objects are placed one behind the other, never move, and are freed with the table.
//!
//! ```text
//!   reference (32 bits)  | number of the chunk, from 1 | offset in it, in units of 8 bytes |
//!   version (aligned to 8)  | KeyVersion: seq, lengths, kind, older | key | value |
//! ```
//!
//! An allocation is one addition to a shared word, which holds the number of the current chunk and its used units. A
//! thread that finds the chunk full gets the next one under a lock. The first chunks are small and double in size; an
//! object larger than a quarter of a full chunk gets a chunk of its own. Running out of memory or of references ends in a
//! panic, as with [`Vec`].
//!
//! Invariants, on which all unsafe code here rests:
//! - a [`Ref<T>`] is made by [`Arena::place`] or [`Arena::version`] only, after the object is complete, and it reaches
//!   other threads through a [`Link`], which stores it with release and loads it with acquire;
//! - a reference is used only with the arena that made it: a memtable has one arena, and its references stay inside `memtable`;
//! - once the reference exists, only atomics of the object are written;
//! - the memory of a chunk is given back only when the arena is dropped, so a reference to an object lives as long as
//!   the borrow of the arena.
#![expect(unsafe_code, reason = "objects of several types in memory that many threads fill")]

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Bump;

use parking_lot::Mutex;

use super::chunk::{Chunk, LINE_BYTES};
use super::directory::Directory;
use super::pool::ArenaPool;
use crate::base::key::{Entry, Kind, Seq};
use crate::base::prefetch::prefetch_bytes;
use crate::base::sync::{AtomicU32, Ordering, Witness};

/// The unit of references, and the least alignment.
const UNIT_BYTES: usize = 8;

/// The first chunk of a table: a node and an entry.
const FIRST_CHUNK_BYTES: usize = 1 << 10;

/// An allocation above this part of a full chunk gets a chunk of its own.
const LARGEST_PART: usize = 4;

/// Cache lines of a version that [`Arena::prefetch`] fetches.
const VERSION_LINES: usize = 2;

/// The position of an object in an arena.
pub(super) struct Ref<T>(NonZeroU32, PhantomData<fn() -> T>);

/// A reference that may change: it publishes the object to the threads that load it.
pub(super) struct Link<T>(AtomicU32, PhantomData<fn() -> T>);

/// One version of one key. Key and value are directly behind it.
#[derive(Debug)]
#[repr(C, align(8))]
pub(super) struct KeyVersion {
    seq: Seq,
    value_bytes: u32,
    /// The next older version of the same key.
    older: Link<KeyVersion>,
    key_bytes: u16,
    kind: Kind,
    witness: Witness,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<KeyVersion>() == 24);

/// See the [module](self).
pub(super) struct Arena {
    pool: Arc<ArenaPool>,
    /// Number of low bits of a reference that are the offset.
    offset_bits: u32,
    /// The number of the current chunk in the upper half, its used units in the lower half. Stored with release after the
    /// chunk is in the directory. The lower half cannot overflow: a thread that finds the chunk full has added a quarter of
    /// a chunk at most, and then waits for the next chunk.
    bump: Bump,
    directory: Directory,
    chunks: Mutex<Chunks>,
}

#[derive(Default)]
struct Chunks {
    all: Vec<Chunk>,
    bytes: usize,
}

impl Arena {
    pub(super) fn new(pool: &Arc<ArenaPool>) -> Arena {
        Arena {
            pool: Arc::clone(pool),
            offset_bits: (pool.chunk_bytes() / UNIT_BYTES).ilog2(),
            bump: Bump::new(0),
            directory: Directory::default(),
            chunks: Mutex::default(),
        }
    }

    pub(super) fn pool(&self) -> &ArenaPool {
        &self.pool
    }

    /// Places an object; adds the growth of the arena to `grown_bytes`.
    pub(super) fn place<T: Send + Sync>(&self, object: T, grown_bytes: &mut usize) -> Ref<T> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= LINE_BYTES) };
        let (at, memory) = self.allocate(size_of::<T>(), align_of::<T>(), grown_bytes);
        // SAFETY: `allocate` gave this memory to this call alone, of this size and alignment.
        unsafe { memory.cast::<T>().write(object) };
        Ref(at, PhantomData)
    }

    /// Places a version with its bytes, linked to nothing; adds the growth of the arena to `grown_bytes`.
    #[expect(clippy::cast_ptr_alignment, reason = "`allocate` was asked for the alignment")]
    #[inline]
    pub(super) fn version(&self, entry: Entry<'_>, grown_bytes: &mut usize) -> Ref<KeyVersion> {
        let Entry { key, seq, kind, value } = entry;
        let version = KeyVersion {
            seq,
            value_bytes: u32::try_from(value.len()).expect("a value fits into a record"),
            older: Link::new(None),
            key_bytes: u16::try_from(key.len()).expect("a key has at most 65,535 bytes"),
            kind,
            witness: Witness::new(),
        };
        let bytes = size_of::<KeyVersion>() + key.len() + value.len();
        let (at, memory) = self.allocate(bytes, align_of::<KeyVersion>(), grown_bytes);
        // SAFETY: inside the memory that `allocate` gave: `bytes` begin with the size of a version.
        let key_at = unsafe { memory.add(size_of::<KeyVersion>()) };
        // SAFETY: likewise, and then with the key.
        let value_at = unsafe { key_at.add(key.len()) };
        // SAFETY: the memory was given to this call alone, so it overlaps nothing, and has room for the key.
        unsafe { key_at.copy_from_nonoverlapping(key.as_ptr(), key.len()) };
        // SAFETY: likewise, for the value.
        unsafe { value_at.copy_from_nonoverlapping(value.as_ptr(), value.len()) };
        // SAFETY: the memory was given to this call alone, is aligned for a version and has room for it.
        unsafe { memory.cast::<KeyVersion>().write(version) };
        let at: Ref<KeyVersion> = Ref(at, PhantomData);
        self.get(at).witness.written();
        at
    }

    /// The object.
    pub(super) fn get<T>(&self, at: Ref<T>) -> &T {
        let object = self.address(at.0).cast::<T>();
        // SAFETY: a `T` was placed there before the reference was made, only its atomics are written since, and it stays
        // until the arena is dropped.
        unsafe { &*object }
    }

    /// The version and its bytes.
    #[inline]
    #[expect(clippy::cast_ptr_alignment, reason = "it was placed with the alignment")]
    pub(super) fn entry(&self, at: Ref<KeyVersion>) -> Entry<'_> {
        // Computed once: the look-up of the chunk is most of the cost of this function.
        let address = self.address(at.0);
        // SAFETY: as in `Arena::get`.
        let version = unsafe { &*address.cast::<KeyVersion>() };
        version.witness.check();
        let KeyVersion { seq, kind, value_bytes, key_bytes, .. } = *version;
        let key_bytes = usize::from(key_bytes);
        // SAFETY: key and value were placed behind the version, so this is inside of the same allocation or at its end.
        let bytes = unsafe { address.add(size_of::<KeyVersion>()) };
        // SAFETY: `Arena::version` wrote these bytes before the reference was made, and nothing writes them after.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, key_bytes + value_bytes as usize) };
        let (key, value) = bytes.split_at(key_bytes);
        Entry { key, seq, kind, value }
    }

    /// The key of the version.
    #[inline]
    pub(super) fn key(&self, at: Ref<KeyVersion>) -> &[u8] {
        self.entry(at).key
    }

    /// Prefetches the version, its key, and the beginning of its value.
    #[inline]
    pub(super) fn prefetch(&self, at: Ref<KeyVersion>) {
        prefetch_bytes(self.address(at.0), VERSION_LINES * LINE_BYTES);
    }

    /// The position of the version.
    #[inline]
    pub(super) fn seq(&self, at: Ref<KeyVersion>) -> Seq {
        self.read(at).seq
    }

    /// The link to the next older version of the same key.
    #[inline]
    pub(super) fn older(&self, at: Ref<KeyVersion>) -> &Link<KeyVersion> {
        &self.read(at).older
    }

    #[inline]
    fn read(&self, at: Ref<KeyVersion>) -> &KeyVersion {
        let version = self.get(at);
        version.witness.check();
        version
    }

    #[inline]
    fn address(&self, at: NonZeroU32) -> *mut u8 {
        let shift = self.offset_bits;
        let (number, unit) = (at.get() >> shift, at.get() & ((1 << shift) - 1));
        let base = self.directory.base(number as usize);
        debug_assert!(!base.is_null(), "a reference of another arena");
        // SAFETY: the reference was made for an object in this chunk, at this offset.
        unsafe { base.add(unit as usize * UNIT_BYTES) }
    }

    /// Memory for one object. No other caller gets it.
    fn allocate(&self, bytes: usize, align: usize, grown_bytes: &mut usize) -> (NonZeroU32, *mut u8) {
        // The bytes before the aligned address are part of the allocation.
        let units = (bytes + align.saturating_sub(UNIT_BYTES)).div_ceil(UNIT_BYTES);
        let (number, unit) = if units * UNIT_BYTES > self.pool.chunk_bytes() / LARGEST_PART {
            (self.grow_for(bytes, grown_bytes), 0)
        } else {
            self.bump(units, grown_bytes)
        };
        let unit = unit.next_multiple_of(align.div_ceil(UNIT_BYTES));
        let at = number << self.offset_bits | unit;
        let at = u32::try_from(at).ok().and_then(NonZeroU32::new).expect("a memtable stays below 32 GiB");
        (at, self.address(at))
    }

    /// Takes units of the current chunk, or of the next one. Returns the chunk's number and the first unit.
    fn bump(&self, units: usize, grown_bytes: &mut usize) -> (usize, usize) {
        loop {
            let word = self.bump.fetch_add(units as u64, Ordering::Acquire);
            let (number, taken) = split(word);
            if (taken + units) * UNIT_BYTES <= self.directory.bytes(number) {
                return (number, taken);
            }
            self.grow(number, units * UNIT_BYTES, grown_bytes);
        }
    }

    /// Replaces the full chunk, unless another thread has already done so.
    fn grow(&self, full: usize, bytes: usize, grown_bytes: &mut usize) {
        let mut chunks = self.chunks.lock();
        if split(self.bump.load(Ordering::Relaxed)).0 != full {
            return;
        }
        let wanted = chunks.bytes.clamp(FIRST_CHUNK_BYTES, self.pool.chunk_bytes()).max(bytes);
        // At most the full size: an object above a quarter of it does not come here.
        let number = self.add_chunk(&mut chunks, wanted.next_power_of_two(), grown_bytes);
        self.bump.store((number as u64) << 32, Ordering::Release);
    }

    /// Makes a chunk for one large object. Returns its number.
    fn grow_for(&self, bytes: usize, grown_bytes: &mut usize) -> usize {
        self.add_chunk(&mut self.chunks.lock(), bytes, grown_bytes)
    }

    fn add_chunk(&self, chunks: &mut Chunks, bytes: usize, grown_bytes: &mut usize) -> usize {
        let mut chunk = self.pool.take(bytes);
        let number = chunks.all.len() + 1;
        self.directory.set(number, chunk.base(), chunk.bytes());
        chunks.bytes += chunk.bytes();
        *grown_bytes += chunk.bytes();
        chunks.all.push(chunk);
        number
    }
}

/// The two halves of [`Arena::bump`].
fn split(word: u64) -> (usize, usize) {
    let low = u64::from(u32::MAX);
    let number = usize::try_from(word >> 32).expect("64-bit machines only");
    let taken = usize::try_from(word & low).expect("64-bit machines only");
    (number, taken)
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.chunks.get_mut().all));
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("bytes", &self.chunks.lock().bytes).finish_non_exhaustive()
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Ref<T> {
        *self
    }
}

impl<T> Copy for Ref<T> {}

impl<T> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ref").field(&self.0).finish()
    }
}

impl<T> Link<T> {
    pub(super) fn new(to: Option<Ref<T>>) -> Link<T> {
        Link(AtomicU32::new(Self::word(to)), PhantomData)
    }

    /// A thread that gets a reference sees the whole object.
    pub(super) fn load(&self) -> Option<Ref<T>> {
        NonZeroU32::new(self.0.load(Ordering::Acquire)).map(|at| Ref(at, PhantomData))
    }

    pub(super) fn store(&self, to: Option<Ref<T>>) {
        self.0.store(Self::word(to), Ordering::Release);
    }

    fn word(to: Option<Ref<T>>) -> u32 {
        to.map_or(0, |to| to.0.get())
    }
}

impl<T> fmt::Debug for Link<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}
