//! The ring of an earlier incarnation. Only the requested part is read.
//!
//! After a clean close no record of the ring is needed, and the replay stops at the first record that does not
//! validate. Reading the whole ring would take most of the time of such an open.
//!
//! Invariants: nothing is changed; bytes missing from the file are read as zeros, which are no record.

use std::path::Path;

use aio::{Backend, Buf, Errno, File, OpenMode, Operation, Queue, SECTOR_BYTES};

use crate::error::{Error, Result};

/// Bytes of the first read, and of each that follows.
const READS_BYTES: [usize; 2] = [64 << 10, 1 << 20];

/// The kind of the ring in a profile.
pub(crate) const RING_KIND: &str = "ring";

/// Opens a file of the log, of this kind in a profile. Returns how many of its first `len_bytes` exist, rounded down to whole sectors, and the
/// damage if the file is shorter.
///
/// # Errors
/// [`Error::Corrupt`] if the file is missing; or the file cannot be opened.
pub(crate) fn open_existing(
    backend: &dyn Backend,
    path: &Path,
    len_bytes: usize,
    kind: &'static str,
) -> Result<(File, usize, Result<()>)> {
    let file = match aio::wait_out(backend, || backend.open(path, OpenMode::Read)) {
        Err(error) if error.errno() == Some(Errno::NOT_FOUND) => {
            return Err(Error::corrupt(path, 0, "a file of the log is missing", &len_bytes, &"no file"));
        }
        opened => opened?,
    };
    file.set_kind(kind);
    let found = backend.size_bytes(&file)?;
    match usize::try_from(found) {
        Ok(short) if short < len_bytes => {
            let damage = Error::corrupt(path, found, "size of a file of the log", &len_bytes, &found);
            Ok((file, short - short % SECTOR_BYTES, Err(damage)))
        }
        _ => Ok((file, len_bytes, Ok(()))),
    }
}

/// The sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSizes {
    /// Of the ring: the length of a lap.
    pub(crate) bytes: usize,
    /// Of its file, which may be smaller.
    pub(crate) file_bytes: usize,
}

/// Reads the ring in parts, in any order. See the module.
pub(crate) struct EndedRing<'a> {
    queue: &'a mut dyn Queue,
    file: File,
    bytes: usize,
    /// Bytes that exist in the file, in whole sectors.
    there_bytes: usize,
    /// The part read last; lent to the queue during a read.
    part: Option<Buf>,
    /// Ring offset of `part`.
    part_start: usize,
    reads: usize,
}

impl<'a> EndedRing<'a> {
    /// Opens a ring. Returns the damage too if the file is shorter than it should be.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file is missing; or the file cannot be opened.
    pub(crate) fn open(
        backend: &dyn Backend,
        queue: &'a mut dyn Queue,
        path: &Path,
        sizes: RingSizes,
    ) -> Result<(EndedRing<'a>, Result<()>)> {
        let (file, there_bytes, size) = open_existing(backend, path, sizes.file_bytes, RING_KIND)?;
        let ring =
            EndedRing { queue, file, bytes: sizes.bytes, there_bytes, part: None, part_start: 0, reads: 0 };
        Ok((ring, size))
    }

    /// Appends `len_bytes` of the ring to `into`. `position` counts bytes from the start of the incarnation: the ring
    /// starts again after each lap.
    ///
    /// # Errors
    /// A read failed.
    pub(crate) fn copy(&mut self, position: u64, len_bytes: usize, into: &mut Vec<u8>) -> Result<()> {
        let at = usize::try_from(position % self.bytes as u64).expect("a ring offset is below its size");
        let (mut at, mut left) = (at, len_bytes);
        while left > 0 {
            let before = into.len();
            if at < self.there_bytes {
                let part = self.part_at(at)?;
                into.extend_from_slice(part.get(..left).unwrap_or(part));
            } else {
                into.resize(before + left.min(self.bytes - at), 0);
            }
            let copied = into.len() - before;
            left -= copied;
            at = if at + copied == self.bytes { 0 } else { at + copied };
        }
        Ok(())
    }

    /// One or more bytes of the ring that begin at offset `at`.
    fn part_at(&mut self, at: usize) -> Result<&[u8]> {
        let has = |part: &Buf| (self.part_start..self.part_start + part.len()).contains(&at);
        if !self.part.as_ref().is_some_and(has) {
            self.read_part(at)?;
        }
        let part = self.part.as_ref().expect("a part was read");
        Ok(&part[at - self.part_start..])
    }

    fn read_part(&mut self, at: usize) -> Result<()> {
        let align = self.file.alignment().offset_bytes;
        let start = at - at % align;
        let most = READS_BYTES[self.reads.min(1)].next_multiple_of(align);
        let wanted = most.min(self.there_bytes - start);
        let mut buf =
            self.part.take().filter(|part| part.capacity() >= most).unwrap_or_else(|| Buf::zeroed(most));
        // The end of the file may lie inside the last aligned unit.
        buf.set_len(wanted.next_multiple_of(align));
        let operation = Operation::read(&self.file, start as u64, buf);
        for completion in aio::file::run(self.queue, [operation])? {
            let mut buf = match completion.result {
                Ok(found) if found >= wanted => completion.operation.into_buf(),
                _ => completion.whole()?.into_buf(),
            };
            buf.set_len(wanted);
            self.part = Some(buf);
        }
        (self.part_start, self.reads) = (start, self.reads + 1);
        Ok(())
    }
}
