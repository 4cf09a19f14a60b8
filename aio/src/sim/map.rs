//! Handles of the simulated machine that are not files: mapped memory and locks.
//!
//! Invariant: an accessed range of a map lies within the size that the file had when it was last read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::faults::EventKind;
use super::machine::{Call, SharedMachine, sim_handle};
use crate::backend::{Lock, SharedMap};
use crate::error::{Errno, Error, Result};
use crate::open_file::File;

/// The unit of access to mapped memory.
const WORD_BYTES: usize = 8;

/// The first bytes of a file as memory. It keeps the file open.
pub(crate) struct SimMap {
    machine: SharedMachine,
    file: File,
    most_bytes: usize,
    len_bytes: AtomicUsize,
    /// The memory of a map that is not shared with its file.
    private: Option<Arc<Mutex<Vec<u8>>>>,
}

impl std::fmt::Debug for SimMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimMap({}, {} bytes)", self.file.path().display(), self.len_bytes())
    }
}

/// How much of a file is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSizes {
    /// Accessible so far.
    pub(crate) len_bytes: usize,
    /// The length of the mapping.
    pub(crate) most_bytes: usize,
}

impl SimMap {
    pub(crate) fn new(
        machine: SharedMachine,
        file: File,
        sizes: MapSizes,
        private: Option<Vec<u8>>,
    ) -> SimMap {
        let MapSizes { len_bytes, most_bytes } = sizes;
        let private = private.map(|bytes| Arc::new(Mutex::new(bytes)));
        SimMap { machine, file, most_bytes, len_bytes: AtomicUsize::new(len_bytes), private }
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(offset.is_multiple_of(WORD_BYTES), "offset inside a word");
        assert!(len.is_multiple_of(WORD_BYTES), "length inside a word");
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len_bytes());
        assert!(fits, "{offset}+{len} beyond a map of {} bytes", self.len_bytes());
    }
}

impl SharedMap for SimMap {
    fn len_bytes(&self) -> usize {
        self.len_bytes.load(Ordering::Relaxed)
    }

    fn extend(&self) -> Result<()> {
        let machine = self.machine.lock();
        let size_bytes = machine.disk.inode(sim_handle(&self.file).inode).size_bytes();
        let most = usize::try_from(size_bytes).map_or(self.most_bytes, |size| size.min(self.most_bytes));
        self.len_bytes.fetch_max(most, Ordering::Relaxed);
        Ok(())
    }

    fn make_room(&self, offset: usize, len_bytes: usize) -> Result<()> {
        self.check(offset, len_bytes);
        if self.private.is_some() {
            return Ok(());
        }
        let mut machine = self.machine.lock();
        machine.enter("fallocate", EventKind::MakeRoom, self.file.path())?;
        let range = (offset as u64, (offset + len_bytes) as u64);
        if machine.fill_hole(sim_handle(&self.file).inode, range) {
            return Ok(());
        }
        Err(Error::call("fallocate", self.file.path(), Errno::NO_SPACE))
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        if let Some(private) = &self.private {
            private.lock()[offset..offset + bytes.len()].copy_from_slice(bytes);
            return;
        }
        let mut machine = self.machine.lock();
        let range = (offset as u64, (offset + bytes.len()) as u64);
        assert!(
            machine.fill_hole(sim_handle(&self.file).inode, range),
            "SIGBUS: a store into {} at offset {offset} needs space on a full disk",
            self.file.path().display()
        );
        let call = Call { kind: EventKind::MapWrite, path: self.file.path(), offset: offset as u64, bytes };
        // A store into memory cannot report that the machine has crashed.
        if machine.begin(&call).is_ok() {
            let seq = machine.disk.next_seq();
            machine.disk.inode_mut(sim_handle(&self.file).inode).write_mapped(seq, offset, bytes);
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        if let Some(private) = &self.private {
            into.copy_from_slice(&private.lock()[offset..offset + into.len()]);
            return;
        }
        let machine = self.machine.lock();
        machine.disk.inode(sim_handle(&self.file).inode).volatile().read(offset as u64, into);
    }

    fn is_shared(&self) -> bool {
        self.private.is_none()
    }
}

/// A lock on a path, until it is dropped.
pub(crate) struct SimLock {
    machine: SharedMachine,
    path: PathBuf,
}

impl SimLock {
    pub(crate) fn new(machine: SharedMachine, path: &Path) -> SimLock {
        SimLock { machine, path: path.to_owned() }
    }
}

impl std::fmt::Debug for SimLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimLock({})", self.path.display())
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.machine.lock().locks.remove(&self.path);
    }
}

impl Lock for SimLock {}
