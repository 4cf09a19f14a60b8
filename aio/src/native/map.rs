//! Memory shared with a file, as words that any thread may read and write at any time.
//!
//! Invariants: the mapping is at least `words * 8` bytes long, page-aligned, and lives as long as the struct; the file
//! had that many bytes when its size was last read, and does not become shorter; every access is a relaxed atomic, so
//! it is defined even if other threads or another mapping of the file access the same words. A shared mapping is not
//! inherited by forked children: to touch it there is a segmentation fault. Anonymous memory is theirs as a copy.
#![expect(unsafe_code, reason = "words of a mapping")]

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use rustix::fs::FallocateFlags;

use crate::backend::SharedMap;
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};
use crate::insist::named;
use crate::open_file::File;
use crate::probe;
use crate::sys;

const WORD_BYTES: usize = 8;

/// Size of one read in bytes when a file is copied into anonymous memory.
const COPY_CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct NativeMap {
    file: File,
    map: MmapRaw,
    /// How many words may be accessed. Only grows. Their contents are published by the caller's own synchronization.
    words: AtomicUsize,
    is_shared: bool,
}

impl NativeMap {
    /// Maps the first `len_bytes` of the file. Where a shared mapping is not safe, copies the part of them inside the
    /// file. `len_bytes` must be a multiple of 8 and not 0.
    pub(crate) fn new(file: &File, len_bytes: usize) -> Result<NativeMap> {
        let is_shared = probe::is_map_shared(file.descriptor().as_fd())
            .map_err(|errno| Error::failed("fstatfs", file.path(), errno))?;
        NativeMap::map(file, len_bytes, is_shared)
    }

    fn map(file: &File, len_bytes: usize, is_shared: bool) -> Result<NativeMap> {
        if len_bytes == 0 || !len_bytes.is_multiple_of(WORD_BYTES) {
            return Err(Error::failed("mmap", file.path(), Errno::INVALID));
        }
        let shared = if is_shared { share(file, len_bytes)? } else { None };
        let is_shared = shared.is_some();
        let map = match shared {
            Some(map) => map,
            None => named("mmap", file.path(), || {
                MmapMut::map_anon(len_bytes).map(MmapRaw::from).map_err(|error| Errno::from(&error))
            })?,
        };
        let mapped = NativeMap { file: file.clone(), map, words: AtomicUsize::new(0), is_shared };
        mapped.extend()?;
        Ok(mapped)
    }

    /// Copies the bytes `from..` of the file, up to the accessible length.
    fn copy_from(&self, from: usize) -> Result<()> {
        let mut buf = Buf::zeroed(COPY_CHUNK_BYTES);
        let mut offset = from;
        while offset < self.len_bytes() {
            let found = read_full(&self.file, offset, &mut buf)?;
            let expected = buf.len().min(self.len_bytes() - offset);
            if found < expected {
                let path = self.file.path().to_owned();
                return Err(Error::Short { call: "pread", path, offset: offset as u64, expected, found });
            }
            self.write(offset, &buf[..expected]);
            offset += expected;
        }
        Ok(())
    }

    /// Reserves space for a part of the file, for itself alone. The error says why a page cannot be had.
    fn reserve(&self, offset: u64, len_bytes: u64) -> Result<()> {
        // Few file systems share space between files, and know the second call.
        for flags in [FallocateFlags::empty(), FallocateFlags::UNSHARE_RANGE] {
            let call = || rustix::fs::fallocate(self.file.descriptor(), flags, offset, len_bytes);
            match named("fallocate", self.file.path(), call) {
                Err(error) if !error.errno().is_some_and(Errno::is_refusal) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn words(&self) -> &[AtomicU64] {
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping is aligned to a page")]
        let first = self.map.as_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping holds `words` words of initialised memory (`extend` has read a size of the file that
        // covers them), is aligned to a page, lives as long as `self`, and is only ever accessed through these atomics.
        unsafe { std::slice::from_raw_parts(first, self.words.load(Ordering::Relaxed)) }
    }

    fn range(&self, offset: usize, len_bytes: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(WORD_BYTES), "offset of a whole word");
        assert!(len_bytes.is_multiple_of(WORD_BYTES), "whole words");
        let first = offset / WORD_BYTES;
        &self.words()[first..first + len_bytes / WORD_BYTES]
    }
}

impl SharedMap for NativeMap {
    fn len_bytes(&self) -> usize {
        self.words.load(Ordering::Relaxed) * WORD_BYTES
    }

    fn extend(&self) -> Result<()> {
        let size = named("fstat", self.file.path(), || rustix::fs::fstat(self.file.descriptor()))?.st_size;
        // An access beyond the end of the file is a bus error.
        let most = usize::try_from(size).map_or(self.map.len(), |size| size.min(self.map.len()));
        let before = self.words.fetch_max(most / WORD_BYTES, Ordering::Relaxed);
        if !self.is_shared {
            self.copy_from(before * WORD_BYTES)?;
        }
        Ok(())
    }

    fn make_room(&self, offset: usize, len_bytes: usize) -> Result<()> {
        let words = self.range(offset, len_bytes);
        if !self.is_shared || words.is_empty() {
            return Ok(());
        }
        let touch = || sys::touch_pages(words.as_ptr().expose_provenance(), len_bytes);
        if touch().is_ok() {
            return Ok(());
        }
        self.reserve(offset as u64, len_bytes as u64)?;
        touch().map_err(|errno| {
            let (path, offset) = (self.file.path().to_owned(), offset as u64);
            // The caller has passed no address, so a bad one would tell it nothing.
            let errno = if errno == Errno::FAULT { Errno::IO } else { errno };
            Error::Os { call: "touch the mapping", path, offset, len_bytes, errno }
        })
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let (chunks, _) = bytes.as_chunks::<WORD_BYTES>();
        for (word, chunk) in self.range(offset, bytes.len()).iter().zip(chunks) {
            word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let words = self.range(offset, into.len());
        let (chunks, _) = into.as_chunks_mut::<WORD_BYTES>();
        for (word, chunk) in words.iter().zip(chunks) {
            *chunk = word.load(Ordering::Relaxed).to_le_bytes();
        }
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }
}

/// A shared mapping that forked children do not inherit; `None` where that is refused.
fn share(file: &File, len_bytes: usize) -> Result<Option<MmapRaw>> {
    let map = || {
        let map = MmapOptions::new().len(len_bytes).map_raw(file.descriptor().as_raw_fd())?;
        map.advise(Advice::DontFork).map(|()| map)
    };
    match named("mmap", file.path(), || map().map_err(|error| Errno::from(&error))) {
        Err(error) if !error.errno().is_some_and(Errno::is_not_now) => Ok(None),
        mapped => mapped.map(Some),
    }
}

/// Fills the buffer from the file, at most up to its end; returns the number of bytes read.
fn read_full(file: &File, offset: usize, buf: &mut Buf) -> Result<usize> {
    let mut found = 0;
    while found < buf.len() {
        let at = (offset + found) as u64;
        let len_bytes = buf.len() - found;
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(file.descriptor(), &mut buf[found..], at));
        let count = count.map_err(|errno| {
            let path = file.path().to_owned();
            Error::Os { call: "pread", path, offset: at, len_bytes, errno: errno.into() }
        })?;
        found += count;
        // A direct read whose length is not a multiple of the alignment has reached the end of the file.
        if count == 0 || !found.is_multiple_of(file.alignment().offset_bytes) {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::open_file::{Alignment, FileBody};

    /// This test's own executable: an existing file, so the test writes none.
    fn executable() -> (File, Vec<u8>) {
        let path = Path::new("/proc/self/exe");
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let alignment = Alignment { memory_bytes: 512, offset_bytes: 512 };
        let identity = crate::identity::Identity::new(0, 0, path);
        let file = File::new(identity, alignment, false, FileBody::Native(descriptor));
        (file, std::fs::read(path).unwrap())
    }

    #[test]
    fn a_map_that_cannot_be_shared_begins_with_the_files_bytes() {
        let (file, bytes) = executable();
        for len_bytes in [8, 4096, COPY_CHUNK_BYTES + 8, bytes.len() / WORD_BYTES * WORD_BYTES] {
            let map = NativeMap::map(&file, len_bytes, false).unwrap();
            assert!(!map.is_shared());
            let mut found = vec![0; map.len_bytes()];
            map.read(0, &mut found);
            assert!(found == bytes[..len_bytes], "{len_bytes} bytes");
            map.write(0, &[7; 8]);
        }
    }
}
