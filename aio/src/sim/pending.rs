//! The units that a power cut keeps or drops.
//!
//! Invariant: a unit names its location and not its contents, so that the decision cannot depend on the bytes.

use std::path::Path;

use super::rng::hash_bytes;

/// An un-synced change that a power cut may keep or drop. See [`DiskImage::power_cut`](super::DiskImage::power_cut).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PendingUnit<'a> {
    /// One version of one sector. Versions of the same sector come oldest first, and the last kept one is the result.
    Sector {
        /// Number of the file, see
        /// [`DiskImage::path_of`](super::DiskImage::path_of).
        inode: u64,
        /// Offset of the sector in the file, in bytes.
        offset: u64,
    },
    /// A physical block that was written in part since the last sync. Dropping it destroys all of its bytes. Comes after the
    /// sectors of its file.
    Block {
        /// Number of the file.
        inode: u64,
        /// Offset of the block in the file, in bytes.
        offset: u64,
    },
    /// One change of a file's size. Dropping it drops the later ones of this file as well.
    Size {
        /// Number of the file.
        inode: u64,
        /// The size after the change, in bytes.
        size_bytes: u64,
    },
    /// One change of a directory: a name made, linked or removed. Dropping it drops later changes to the same
    /// name as well.
    Name {
        /// The directory.
        dir: &'a Path,
        /// Position among the directory's un-synced changes.
        index: usize,
    },
}

impl PendingUnit<'_> {
    /// A number that is the same for all units of one file or directory.
    pub(crate) fn owner(&self) -> u64 {
        match self {
            PendingUnit::Sector { inode, .. }
            | PendingUnit::Block { inode, .. }
            | PendingUnit::Size { inode, .. } => *inode,
            PendingUnit::Name { dir, .. } => hash_bytes(dir.as_os_str().as_encoded_bytes()),
        }
    }
}
