//! A file that a backend has opened, and the alignment that its reads and writes need.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use crate::identity::Identity;

/// Bytes that a device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// The alignment that direct I/O on a file needs. Both are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffer addresses, in bytes; at most [`Buf::ALIGN`](crate::Buf::ALIGN).
    pub memory_bytes: usize,
    /// Of file offsets and lengths, in bytes.
    pub offset_bytes: usize,
}

/// A counted handle to an open file. The file is closed with the last clone; an operation in flight holds one.
#[derive(Clone)]
pub struct File(Arc<FileInner>);

struct FileInner {
    identity: Arc<Identity>,
    alignment: Alignment,
    /// Falls once, when the kernel refuses a direct read or write.
    direct: AtomicBool,
    body: FileBody,
}

/// The part of a file that only its backend understands.
#[derive(Debug)]
pub(crate) enum FileBody {
    /// An open descriptor.
    Native(OwnedFd),
    /// A file of the simulated disk. The disk counts the handles to know when the file is closed.
    Sim(Arc<SimHandle>),
}

/// An open file of the simulated disk.
#[derive(Debug)]
pub(crate) struct SimHandle {
    /// Its number on the simulated disk.
    pub(crate) inode: u64,
    /// Whether it was opened for writing.
    pub(crate) writable: bool,
}

impl File {
    pub(crate) fn new(identity: Identity, alignment: Alignment, direct: bool, body: FileBody) -> File {
        let (identity, direct) = (Arc::new(identity), AtomicBool::new(direct));
        File(Arc::new(FileInner { identity, alignment, direct, body }))
    }

    /// The path that it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.identity.path
    }

    /// The alignment that reads and writes need.
    #[must_use]
    pub fn alignment(&self) -> Alignment {
        self.0.alignment
    }

    /// Whether I/O bypasses the page cache. False where the file system has no direct I/O, or has refused a read or write
    /// of this file: everything works, but submitting may block.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.0.direct.load(Ordering::Relaxed)
    }

    /// Goes on through the page cache, after the kernel has refused a direct read or write. Also for the operations in
    /// flight, which the kernel has looked at already. False if the file does so already, or the kernel does not let it.
    ///
    /// Asks the kernel and not [`File::is_direct`]: a file may have the flag `O_DIRECT` although nothing proves its effect.
    pub(crate) fn leave_direct(&self) -> bool {
        let flags = rustix::fs::fcntl_getfl(self.descriptor());
        let left = flags.is_ok_and(|flags| flags.contains(OFlags::DIRECT))
            && rustix::fs::fcntl_setfl(self.descriptor(), OFlags::empty()).is_ok();
        if left {
            self.0.direct.store(false, Ordering::Relaxed);
        }
        left
    }

    /// Names the kind of this file, by which a [profile](crate::IoProfile) counts it from now on; the first name stays. A
    /// profile has seven kinds beside "other", and further ones are counted as that.
    pub fn set_kind(&self, kind: &'static str) {
        self.0.identity.set_kind(kind);
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    pub(crate) fn body(&self) -> &FileBody {
        &self.0.body
    }

    /// The descriptor of a file of the native backend.
    ///
    /// # Panics
    /// If it belongs to the simulated disk.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        match self.body() {
            FileBody::Native(descriptor) => descriptor,
            FileBody::Sim(_) => unreachable!("a file of the simulated disk used with the native backend"),
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({})", self.path().display())
    }
}
