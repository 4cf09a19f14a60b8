//! The content of a disk as a value, and its history.
//!
//! Invariants: copies share pages until one of them writes; a page of zeros need not be present; the fingerprint depends on
//! the content only.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The unit that a power cut keeps or loses.
pub(super) const SECTOR_BYTES: usize = 512;

const PAGE_BYTES: usize = 4096;
const ZEROS: [u8; SECTOR_BYTES] = [0; SECTOR_BYTES];

type Page = [u8; PAGE_BYTES];

/// The content of a disk.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pages: Vec<Option<Arc<Page>>>,
    fingerprint: u64,
}

/// One event of a disk, in order.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Bytes were written behind the cache of the disk.
    Write { offset: u64, data: Arc<[u8]> },
    /// Everything written before is on stable media.
    Flush,
}

impl Image {
    /// Zeros.
    pub(super) fn new(bytes: u64) -> Image {
        let pages = usize::try_from(bytes).map_or(0, |bytes| bytes / PAGE_BYTES);
        Image { pages: vec![None; pages], fingerprint: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES as u64
    }

    /// Equal for equal contents.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether these bytes lie inside.
    pub(super) fn contains(&self, offset: u64, len: usize) -> bool {
        offset.checked_add(len as u64).is_some_and(|end| end <= self.len())
    }

    /// Whether all of these pages were written to.
    pub(super) fn holds(&self, offset: u64, len: usize) -> bool {
        let Ok(first) = usize::try_from(offset / PAGE_BYTES as u64) else { return false };
        let within = usize::try_from(offset % PAGE_BYTES as u64).unwrap_or(0);
        let pages = (within + len).div_ceil(PAGE_BYTES);
        self.pages.iter().skip(first).take(pages).filter(|page| page.is_some()).count() == pages
    }

    /// Fills the buffer; bytes outside read as zeros.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = buf;
        while !rest.is_empty() {
            let within = at % PAGE_BYTES;
            let (piece, behind) = rest.split_at_mut(rest.len().min(PAGE_BYTES - within));
            match self.pages.get(at / PAGE_BYTES) {
                Some(Some(page)) => piece.copy_from_slice(&page[within..within + piece.len()]),
                _ => piece.fill(0),
            }
            at = at.saturating_add(piece.len());
            rest = behind;
        }
    }

    /// Writes; bytes outside are dropped, so check [`Image::contains`] before.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES));
            self.write_within_sector(at, piece);
            at = at.saturating_add(piece.len());
            rest = behind;
        }
    }

    fn write_within_sector(&mut self, at: usize, piece: &[u8]) {
        let Some(page) = self.pages.get_mut(at / PAGE_BYTES) else { return };
        if page.is_none() && piece == &ZEROS[..piece.len()] {
            return;
        }
        let page = Arc::make_mut(page.get_or_insert_with(|| Arc::new([0; PAGE_BYTES])));
        let sector = at % PAGE_BYTES / SECTOR_BYTES * SECTOR_BYTES;
        let number = (at / SECTOR_BYTES) as u64;
        let before = hash(number, &page[sector..sector + SECTOR_BYTES]);
        page[at % PAGE_BYTES..][..piece.len()].copy_from_slice(piece);
        self.fingerprint ^= before ^ hash(number, &page[sector..sector + SECTOR_BYTES]);
    }

    /// The content, for a file: each page with its offset, pages of zeros left out.
    pub(super) fn pages(&self) -> impl Iterator<Item = (u64, &Page)> {
        let numbered = self.pages.iter().enumerate();
        numbered.filter_map(|(number, page)| Some((number as u64 * PAGE_BYTES as u64, &**page.as_ref()?)))
    }
}

/// Zero for zeros, so that an absent page counts nothing.
fn hash(number: u64, sector: &[u8]) -> u64 {
    if sector == ZEROS { 0 } else { xxh3_64_with_seed(sector, number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_depends_on_the_content_only() {
        let (mut one, mut other) = (Image::new(1 << 20), Image::new(1 << 20));
        one.write(4096 * 3 + 512, &[7; 2048]);
        one.write(4096 * 3 + 1024, &[0; 512]);
        other.write(4096 * 3 + 1536, &[7; 1024]);
        assert_ne!(one.fingerprint(), other.fingerprint());
        other.write(4096 * 3 + 512, &[7; 512]);
        assert_eq!(one.fingerprint(), other.fingerprint());
        one.write(0, &[0; 8192]);
        assert_eq!(one.fingerprint(), other.fingerprint());
        assert_eq!(one.pages().count(), 1);
    }

    #[test]
    fn written_bytes_are_read_across_pages() {
        let mut image = Image::new(16 << 10);
        let data: Vec<u8> = (0..9000_u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        image.write(100, &data);
        let copy = image.clone();
        image.write(0, &[1; 16 << 10]);
        let mut found = vec![9; 9000];
        copy.read(100, &mut found);
        assert_eq!(found, data);
        let held = [(0, 512), (4000, 200), (8192, 4096), (12 << 10, 512), (4096, 8193)]
            .map(|(at, len)| copy.holds(at, len));
        assert_eq!(held, [true, true, true, false, false]);
        assert!(copy.contains(0, 16 << 10) && !copy.contains(1, 16 << 10) && !copy.contains(u64::MAX, 1));
    }
}
