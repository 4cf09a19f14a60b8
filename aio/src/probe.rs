//! Properties of one file: direct I/O, its alignment, shared mappings, its device's queue.
//!
//! No version number is trusted. The kernel reports for each file the alignment that direct I/O needs (`statx`,
//! `STATX_DIOALIGN`, since Linux 6.1). A file system that reports nothing is taken as direct only if its type always
//! is. The flag `O_DIRECT` alone proves nothing: several file systems accept it and use the page cache. The alignment
//! must not depend on the contents of a file, so it is never found by trying.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::buf::Buf;
use crate::error::Errno;
use crate::insist::insist;
use crate::open_file::{Alignment, SECTOR_BYTES};

/// Used where the alignment is not known: every device accepts a page.
pub(crate) const UNKNOWN: Alignment = Alignment { memory_bytes: Buf::ALIGN, offset_bytes: Buf::ALIGN };

/// Used for buffered files too, so that each sector belongs to one write.
const BUFFERED: Alignment = Alignment { memory_bytes: SECTOR_BYTES, offset_bytes: SECTOR_BYTES };

/// The result of [`make_direct`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direct {
    pub(crate) is_direct: bool,
    pub(crate) alignment: Alignment,
}

/// Switches an open file to direct I/O if the file supports it; else the file is unchanged.
///
/// Also called for files that were opened with `O_DIRECT`: the flag alone does not prove that I/O is direct.
pub(crate) fn make_direct(descriptor: BorrowedFd<'_>) -> Result<Direct, Errno> {
    let buffered = Direct { is_direct: false, alignment: BUFFERED };
    match insist(|| rustix::fs::fcntl_setfl(descriptor, OFlags::DIRECT)) {
        Ok(()) => {}
        Err(Errno::INVALID) => return Ok(buffered),
        Err(errno) => return Err(errno),
    }
    match direct_alignment(descriptor) {
        Some(Alignment { memory_bytes: 0, .. } | Alignment { offset_bytes: 0, .. }) => Ok(buffered),
        Some(alignment) if is_usable(alignment) => Ok(Direct { is_direct: true, alignment }),
        Some(_) => {
            // Sectors larger than pages, or an invalid alignment: the page cache hides them.
            insist(|| rustix::fs::fcntl_setfl(descriptor, OFlags::empty()))?;
            Ok(buffered)
        }
        None => Ok(Direct { is_direct: always_direct(magic(descriptor)?), alignment: UNKNOWN }),
    }
}

/// The alignment that the kernel reports; `None` if it reports none. Zeros mean: no direct I/O on this file.
fn direct_alignment(descriptor: BorrowedFd<'_>) -> Option<Alignment> {
    let answer =
        insist(|| rustix::fs::statx(descriptor, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)).ok()?;
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

/// Whether a shared mapping of the file is coherent with direct writes to its file system.
pub(crate) fn is_map_shared(descriptor: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(shares_maps(magic(descriptor)?))
}

/// How many requests the queue of the device below a file takes before a submit blocks; `None` where there is no such
/// device (memory, network, several devices) or the kernel does not report it.
pub(crate) fn device_queue_slots(descriptor: BorrowedFd<'_>) -> Option<usize> {
    let device = rustix::fs::fstat(descriptor).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's queue is that of the whole device, one folder up.
    ["queue", "../queue"].iter().find_map(|folder| {
        let path = format!("/sys/dev/block/{major}:{minor}/{folder}/nr_requests");
        let slots: usize = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
        Some(slots).filter(|&slots| slots > 0)
    })
}

const EXT: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;

/// The magic number of a file's file system.
pub(crate) fn magic(descriptor: BorrowedFd<'_>) -> Result<u64, Errno> {
    // The kernel's type is signed and some magic numbers have the top bit of 32 set.
    Ok(insist(|| rustix::fs::fstatfs(descriptor))?.f_type.cast_unsigned() & 0xFFFF_FFFF)
}

/// Whether a file system that reports nothing about direct I/O always has it.
pub(crate) fn always_direct(magic: u64) -> bool {
    matches!(magic, EXT | XFS)
}

/// Whether shared mappings are coherent with direct writes.
pub(crate) fn shares_maps(magic: u64) -> bool {
    matches!(magic, EXT | XFS | TMPFS)
}

/// The name, as far as it can be told: ext2, ext3 and ext4 cannot be told apart.
pub(crate) fn file_system_name(magic: u64) -> &'static str {
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
}
