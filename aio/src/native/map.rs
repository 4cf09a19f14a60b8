//! Memory shared with a file, as words that any thread may read and write at any time.
//!
//! Invariants: the mapping is `words * 8` bytes long, page-aligned, and lives as long as the struct; every access goes
//! through relaxed atomics, so neither other threads nor a second mapping of the file can make one undefined.
//! The mapping is not inherited by forked children: to touch it there is a segmentation fault.
#![expect(unsafe_code, reason = "words of a mapping")]

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};

use crate::backend::{File, SharedMap};
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};
use crate::probe;

const WORD_BYTES: usize = 8;

/// Bytes of one read when a file's contents are copied into anonymous memory.
const COPY_CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct NativeMap {
    map: MmapRaw,
    words: usize,
    is_shared: bool,
}

impl NativeMap {
    /// Maps the first `len_bytes` of the file, or copies them where a shared mapping is not safe.
    /// `len_bytes` must not be 0 and a multiple of 8.
    pub(crate) fn new(file: &File, len_bytes: usize) -> Result<NativeMap> {
        let is_shared = probe::is_map_shared(file.descriptor().as_fd())
            .map_err(|errno| Error::call("fstatfs", file.path(), errno))?;
        NativeMap::map(file, len_bytes, is_shared)
    }

    fn map(file: &File, len_bytes: usize, is_shared: bool) -> Result<NativeMap> {
        let failed =
            |call, errno| Error::Os { call, path: file.path().to_owned(), offset: 0, len_bytes, errno };
        let descriptor = file.descriptor();
        let size = rustix::fs::fstat(descriptor).map_err(|errno| failed("fstat", errno.into()))?.st_size;
        let is_whole = len_bytes > 0 && len_bytes.is_multiple_of(WORD_BYTES);
        if !is_whole || usize::try_from(size).is_ok_and(|size| size < len_bytes) {
            // Beyond the end of the file every access would be a bus error.
            return Err(failed("mmap", Errno::INVALID));
        }
        let mapped = if is_shared {
            MmapOptions::new().len(len_bytes).map_raw(descriptor.as_raw_fd())
        } else {
            MmapMut::map_anon(len_bytes).map(MmapRaw::from)
        };
        let map = mapped.map_err(|error| failed("mmap", Errno::from(&error)))?;
        map.advise(Advice::DontFork).map_err(|error| failed("madvise", Errno::from(&error)))?;
        let mapped = NativeMap { map, words: len_bytes / WORD_BYTES, is_shared };
        if !is_shared {
            mapped.copy_from(file)?;
        }
        Ok(mapped)
    }

    fn copy_from(&self, file: &File) -> Result<()> {
        let mut buf = Buf::zeroed(COPY_CHUNK_BYTES.min(self.len_bytes().next_multiple_of(Buf::ALIGN)));
        let mut offset = 0;
        while offset < self.len_bytes() {
            let found = read_full(file, offset, &mut buf)?;
            let expected = buf.len().min(self.len_bytes() - offset);
            if found < expected {
                let path = file.path().to_owned();
                return Err(Error::Short { call: "pread", path, offset: offset as u64, expected, found });
            }
            self.write(offset, &buf[..expected]);
            offset += expected;
        }
        Ok(())
    }

    fn words(&self) -> &[AtomicU64] {
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping is aligned to a page")]
        let first = self.map.as_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping holds `words` words of initialised memory, is aligned to a page, lives as long as
        // `self`, and is only ever accessed through these atomics.
        unsafe { std::slice::from_raw_parts(first, self.words) }
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
        self.words * WORD_BYTES
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

/// Fills the buffer from the file, or up to its end; returns how many bytes there were.
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
        // A direct read that is not a multiple of the alignment has met the end of the file.
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
    use crate::backend::{Alignment, FileBody};

    /// This test's own executable: a file that is there without writing one.
    fn executable() -> (File, Vec<u8>) {
        let path = Path::new("/proc/self/exe");
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let alignment = Alignment { memory_bytes: 512, offset_bytes: 512 };
        let file = File::new(path, alignment, false, FileBody::Native(descriptor));
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
