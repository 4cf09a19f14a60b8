//! Contents of one simulated file: copy-on-write pages, so that a copy of a disk is cheap.
//!
//! Invariants: a missing page reads as zeros; bytes at and beyond `size_bytes` are zeros, except while a crash state is
//! being built, which ends with [`Contents::set_size`]; cached hashes match the current bytes.

use std::sync::{Arc, OnceLock};

use super::rng::{hash_bytes, mix};

/// Unit of copying.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bytes of a file with its size. A clone shares every page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pages: Arc<SimPages>,
    size_bytes: u64,
}

#[derive(Debug, Default)]
struct SimPages {
    slots: Vec<Option<Arc<Page>>>,
    digest: OnceLock<u64>,
}

struct Page {
    bytes: [u8; PAGE_BYTES],
    digest: OnceLock<u64>,
}

impl Clone for SimPages {
    fn clone(&self) -> SimPages {
        SimPages { slots: self.slots.clone(), digest: OnceLock::new() }
    }
}

impl Clone for Page {
    fn clone(&self) -> Page {
        Page { bytes: self.bytes, digest: OnceLock::new() }
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({:016x})", self.digest())
    }
}

impl Page {
    /// 0 for a page of zeros, so that it counts like a missing one.
    fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| if is_zero(&self.bytes) { 0 } else { hash_bytes(&self.bytes).max(1) })
    }
}

impl Contents {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Copies from `offset` on, zeros where no byte was written. The size is ignored.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        for (slot, start, range) in spans(offset, into.len()) {
            let part = &mut into[range];
            match self.pages.slots.get(slot) {
                Some(Some(page)) => part.copy_from_slice(&page.bytes[start..start + part.len()]),
                _ => part.fill(0),
            }
        }
    }

    /// Whether the bytes at `offset` are `bytes`.
    pub(crate) fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        spans(offset, bytes.len()).all(|(slot, start, range)| {
            let part = &bytes[range];
            match self.pages.slots.get(slot) {
                Some(Some(page)) => page.bytes[start..start + part.len()] == *part,
                _ => is_zero(part),
            }
        })
    }

    /// Stores bytes without changing the size.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let pages = Arc::make_mut(&mut self.pages);
        pages.digest.take();
        for (slot, start, range) in spans(offset, bytes.len()) {
            let part = &bytes[range];
            if pages.slots.len() <= slot {
                pages.slots.resize(slot + 1, None);
            }
            let place = &mut pages.slots[slot];
            if part.len() == PAGE_BYTES {
                *place = new_page(part);
                continue;
            }
            if place.is_none() {
                if is_zero(part) {
                    continue;
                }
                *place = Some(Arc::new(Page { bytes: [0; PAGE_BYTES], digest: OnceLock::new() }));
            }
            if let Some(page) = place {
                let page = Arc::make_mut(page);
                page.digest.take();
                page.bytes[start..start + part.len()].copy_from_slice(part);
            }
        }
    }

    /// Sets the size; all bytes beyond it become zeros.
    pub(crate) fn set_size(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        let whole = to_usize(size_bytes / PAGE_BYTES as u64);
        let rest = to_usize(size_bytes % PAGE_BYTES as u64);
        let kept_slots = whole + usize::from(rest > 0);
        if self.pages.slots.len() > kept_slots {
            let pages = Arc::make_mut(&mut self.pages);
            pages.digest.take();
            pages.slots.truncate(kept_slots);
        }
        let ends_dirty = match self.pages.slots.get(whole) {
            Some(Some(page)) => rest > 0 && !is_zero(&page.bytes[rest..]),
            _ => false,
        };
        if ends_dirty {
            let pages = Arc::make_mut(&mut self.pages);
            pages.digest.take();
            if let Some(Some(page)) = pages.slots.get_mut(whole) {
                let page = Arc::make_mut(page);
                page.digest.take();
                page.bytes[rest..].fill(0);
            }
        }
    }

    /// Hash of size and bytes.
    pub(crate) fn digest(&self) -> u64 {
        let pages = *self.pages.digest.get_or_init(|| {
            let written = self.pages.slots.iter().enumerate();
            written.fold(0, |hash, (slot, page)| match page.as_ref().map_or(0, |page| page.digest()) {
                0 => hash,
                digest => mix(mix(hash, slot as u64), digest),
            })
        });
        mix(pages, self.size_bytes)
    }
}

fn new_page(bytes: &[u8]) -> Option<Arc<Page>> {
    if is_zero(bytes) {
        return None;
    }
    let bytes = bytes.try_into().expect("a whole page");
    Some(Arc::new(Page { bytes, digest: OnceLock::new() }))
}

fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(64);
    chunks.all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && bytes[bytes.len() / 64 * 64..].iter().all(|&byte| byte == 0)
}

/// Splits a range of a file at page borders: page number, first byte in the page, range of the caller's slice.
fn spans(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let first = to_usize(offset);
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let (slot, start) = ((first + done) / PAGE_BYTES, (first + done) % PAGE_BYTES);
        let part = (PAGE_BYTES - start).min(len - done);
        done += part;
        Some((slot, start, done - part..done))
    })
}

/// File offsets of the simulation index memory.
pub(crate) fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("simulated files fit into memory")
}
