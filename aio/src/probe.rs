//! What a file system can do: direct I/O, its alignment, shared mappings.
//!
//! No version number is trusted. The kernel says per file what direct I/O needs (`statx`, `STATX_DIOALIGN`, since
//! Linux 6.1); a file system that says nothing is believed to write directly only if it is one that always does. The
//! flag `O_DIRECT` alone means nothing: several file systems take it and go through the page cache. The alignment must
//! not depend on what a file holds, so it is never found by trying.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::backend::{Alignment, SECTOR_BYTES};
use crate::buf::Buf;
use crate::error::{Errno, Error, Result};

/// Where nothing is known: every device accepts a page.
const UNKNOWN: Alignment = Alignment { memory_bytes: Buf::ALIGN, offset_bytes: Buf::ALIGN };

/// What a write to the page cache is aligned to all the same, so that a sector belongs to one write.
const BUFFERED: Alignment = Alignment { memory_bytes: SECTOR_BYTES, offset_bytes: SECTOR_BYTES };

/// What the file system of a directory can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name, as far as it can be told: ext2, ext3 and ext4 cannot be told apart.
    pub file_system: &'static str,
    /// Whether I/O bypasses the page cache. If not, everything works, but submitting may block.
    pub is_direct: bool,
    /// What reads and writes must be aligned to.
    pub alignment: Alignment,
    /// Whether a mapping may be shared with a file that is also written directly.
    pub maps_are_shared: bool,
}

/// Finds out what the file system of a directory can do, with a file that has no name. Where such files
/// cannot be made the answer is what is known about the file system.
///
/// # Errors
/// The directory cannot be opened or asked.
pub fn probe(dir: &Path) -> Result<Probe> {
    let opened = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::call("open", dir, errno))?;
    let magic = magic(opened.as_fd()).map_err(|errno| Error::call("fstatfs", dir, errno))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let direct = match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(scratch) => make_direct(scratch.as_fd()).map_err(|errno| Error::call("fcntl", dir, errno))?,
        Err(_) => Direct { is_direct: always_direct(magic), alignment: UNKNOWN },
    };
    Ok(Probe {
        file_system: file_system_name(magic),
        is_direct: direct.is_direct,
        alignment: direct.alignment,
        maps_are_shared: shares_maps(magic),
    })
}

/// What [`make_direct`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direct {
    pub(crate) is_direct: bool,
    pub(crate) alignment: Alignment,
}

/// Switches an open file to direct I/O if it can; else it stays as it is.
///
/// Also for files whose `open` asked for it already: the flag alone does not say that I/O is direct.
pub(crate) fn make_direct(descriptor: BorrowedFd<'_>) -> std::result::Result<Direct, Errno> {
    let buffered = Direct { is_direct: false, alignment: BUFFERED };
    match rustix::fs::fcntl_setfl(descriptor, OFlags::DIRECT) {
        Ok(()) => {}
        Err(rustix::io::Errno::INVAL) => return Ok(buffered),
        Err(errno) => return Err(errno.into()),
    }
    match direct_alignment(descriptor) {
        Some(Alignment { memory_bytes: 0, .. } | Alignment { offset_bytes: 0, .. }) => Ok(buffered),
        Some(alignment) if is_usable(alignment) => Ok(Direct { is_direct: true, alignment }),
        Some(_) => {
            // Larger sectors than pages, or nonsense: the page cache hides them.
            rustix::fs::fcntl_setfl(descriptor, OFlags::empty())?;
            Ok(buffered)
        }
        None => Ok(Direct { is_direct: always_direct(magic(descriptor)?), alignment: UNKNOWN }),
    }
}

/// What the kernel says about the file; `None` if it does not say. Zeros mean: no direct I/O on this file.
fn direct_alignment(descriptor: BorrowedFd<'_>) -> Option<Alignment> {
    let answer = rustix::fs::statx(descriptor, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if answer.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    Some(Alignment {
        memory_bytes: usize::try_from(answer.stx_dio_mem_align).ok()?,
        offset_bytes: usize::try_from(answer.stx_dio_offset_align).ok()?,
    })
}

fn is_usable(alignment: Alignment) -> bool {
    let fits = |bytes: usize| bytes.is_power_of_two() && bytes <= Buf::ALIGN;
    fits(alignment.memory_bytes) && fits(alignment.offset_bytes)
}

/// Whether a shared mapping of the file and direct writes to its file system go together.
pub(crate) fn is_map_shared(descriptor: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    Ok(shares_maps(magic(descriptor)?))
}

const EXT: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;

fn magic(descriptor: BorrowedFd<'_>) -> std::result::Result<u64, Errno> {
    // The kernel's type is signed and some magic numbers have the top bit of 32 set.
    Ok(rustix::fs::fstatfs(descriptor)?.f_type.cast_unsigned() & 0xFFFF_FFFF)
}

fn always_direct(magic: u64) -> bool {
    matches!(magic, EXT | XFS)
}

fn shares_maps(magic: u64) -> bool {
    matches!(magic, EXT | XFS | TMPFS)
}

fn file_system_name(magic: u64) -> &'static str {
    match magic {
        EXT => "ext4",
        XFS => "xfs",
        TMPFS => "tmpfs",
        0x9123_683E => "btrfs",
        0x794C_7630 => "overlayfs",
        0x6573_5546 => "fuse",
        0x6969 => "nfs",
        0xFF53_4D42 | 0xFE53_4D42 => "smb",
        0x0102_1997 => "9p",
        0x2FC1_2FC1 => "zfs",
        0xF2F5_2010 => "f2fs",
        0xCA45_1A4E => "bcachefs",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_alignments_are_recognised() {
        let with = |memory_bytes, offset_bytes| Alignment { memory_bytes, offset_bytes };
        assert!(is_usable(with(512, 512)));
        assert!(is_usable(with(4, 4096)));
        assert!(!is_usable(with(512, 65536)));
        assert!(!is_usable(with(512, 513)));
    }

    #[test]
    fn a_directory_without_files_can_be_probed() {
        let found = probe(Path::new("/proc/self")).unwrap();
        assert_eq!(found.file_system, "unknown");
        assert!(!found.is_direct);
        assert!(!found.maps_are_shared);
        assert_eq!(found.alignment, UNKNOWN);
    }

    #[test]
    fn an_absent_directory_is_an_error() {
        let error = probe(Path::new("/proc/self/absent")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOT_FOUND));
    }
}
