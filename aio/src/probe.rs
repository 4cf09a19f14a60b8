//! Properties of one file: direct I/O, its alignment, shared mappings, its device's queue and physical block.
//!
//! No version number is trusted. The kernel reports for each file the alignment that direct I/O needs (`statx`,
//! `STATX_DIOALIGN`, since Linux 6.1). The flag `O_DIRECT` alone proves nothing: several file systems accept it and use the
//! page cache, and some in user space accept it and then refuse every read. So a file with bytes in it is read before it
//! counts as direct. Where the kernel reports nothing, a misaligned read that is refused proves direct I/O, and the
//! smallest aligned read that is accepted is the alignment. An empty file has nothing to read: its alignment is a page, and
//! it counts as direct if its type of file system always is.
//!
//! So a file may have a smaller alignment when it is opened again than when it was made. No format depends on that: stores
//! write in units of their own, each of at least a page, which is the largest alignment, or say in the bytes how large they are.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use crate::buf::Buf;
use crate::device;
use crate::error::{Errno, Error, Result};
use crate::insist::insist;
use crate::open_file::{Alignment, SECTOR_BYTES};
use crate::sys;

/// Used where the alignment is not known: every device accepts a page.
pub(crate) const UNKNOWN: Alignment = Alignment { memory_bytes: Buf::ALIGN, offset_bytes: Buf::ALIGN };

/// Used for buffered files too, so that each sector belongs to one write.
const BUFFERED: Alignment = Alignment { memory_bytes: SECTOR_BYTES, offset_bytes: SECTOR_BYTES };

/// How a file is read and written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) is_direct: bool,
    pub(crate) alignment: Alignment,
    /// The answer to a direct read of the file, if its file system accepts the flag but not the read.
    pub(crate) refused: Option<Errno>,
}

impl Access {
    pub(crate) const BUFFERED: Access = Access { is_direct: false, alignment: BUFFERED, refused: None };

    /// Whether the file may keep the flag `O_DIRECT`. With the alignment of a page that is right for both ways.
    pub(crate) fn keeps_flag(self) -> bool {
        self.is_direct || self.alignment == UNKNOWN
    }
}

/// Finds out how a file that was opened with `O_DIRECT` is read and written: the flag alone proves nothing. Costs one read of
/// a file with bytes in it, and three where the kernel reports nothing.
pub(crate) fn access(path: &Path, descriptor: BorrowedFd<'_>, size_bytes: u64) -> Result<Access> {
    let found = match direct_alignment(descriptor) {
        // Zeros, sectors larger than pages, or an invalid alignment: the page cache hides them.
        Some(alignment) if !is_usable(alignment) => Ok(Access::BUFFERED),
        Some(alignment) if size_bytes == 0 => Ok(Access { is_direct: true, alignment, refused: None }),
        Some(alignment) => try_reported(descriptor, alignment),
        None if size_bytes == 0 => by_type(descriptor),
        None => try_all(descriptor),
    };
    found.map_err(|errno| Error::failed("pread", path, errno))
}

/// What is known of an empty file if the kernel reports nothing. The flag stays, since direct I/O that nothing proves is
/// still direct. If the first write is refused, the file leaves it (`File::leave_direct`).
fn by_type(descriptor: BorrowedFd<'_>) -> std::result::Result<Access, Errno> {
    Ok(Access { is_direct: always_direct(magic(descriptor)?), alignment: UNKNOWN, refused: None })
}

fn try_reported(descriptor: BorrowedFd<'_>, alignment: Alignment) -> std::result::Result<Access, Errno> {
    let len_bytes = alignment.memory_bytes.max(alignment.offset_bytes);
    Ok(match refusal_of_read(descriptor, 0, len_bytes)? {
        None => Access { is_direct: true, alignment, refused: None },
        refused => Access { refused, ..Access::BUFFERED },
    })
}

/// Finds out by reading. A hole is read without a look at the alignment, so a file that begins with one does not count as
/// direct, although it is.
fn try_all(descriptor: BorrowedFd<'_>) -> std::result::Result<Access, Errno> {
    let refused = refusal_of_read(descriptor, 0, Buf::ALIGN)?;
    if refused.is_some() {
        return Ok(Access { refused, ..Access::BUFFERED });
    }
    let is_direct = refusal_of_read(descriptor, 1, 1)? == Some(Errno::INVALID);
    let takes_sectors = is_direct && refusal_of_read(descriptor, SECTOR_BYTES, SECTOR_BYTES)?.is_none();
    Ok(Access { is_direct, alignment: if takes_sectors { BUFFERED } else { UNKNOWN }, refused: None })
}

/// Reads the first `len_bytes` of a file into memory that begins `memory_bytes` after the start of a page. Returns the answer
/// if the file system refuses such reads. A device that fails does not: the next read reports it.
fn refusal_of_read(
    descriptor: BorrowedFd<'_>,
    memory_bytes: usize,
    len_bytes: usize,
) -> std::result::Result<Option<Errno>, Errno> {
    let mut buf = Buf::zeroed(memory_bytes + len_bytes);
    match insist(|| rustix::io::pread(descriptor, &mut buf[memory_bytes..], 0)) {
        Ok(_) | Err(Errno::IO) => Ok(None),
        Err(errno) if errno.is_not_now() => Err(errno),
        Err(errno) => Ok(Some(errno)),
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
pub(crate) fn is_map_shared(descriptor: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
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

/// The physical block of the device below a file, see [`Backend::physical_block_bytes`](crate::Backend::physical_block_bytes).
/// Not remembered: the calls cost some 20 µs, the number of a device may be given to another one, and volumes move.
pub(crate) fn physical_block_bytes(descriptor: BorrowedFd<'_>) -> usize {
    let is_on_device = magic(descriptor)
        .is_ok_and(|magic| writes_its_device_in_place(magic, || sys::extended_flags(descriptor)));
    let device = rustix::fs::fstat(descriptor).ok().filter(|_| is_on_device).map(|stat| stat.st_dev);
    device.map_or(Buf::ALIGN, |device| device::physical_block_bytes(Path::new("/sys"), device))
}

/// Whether a file system writes the blocks of a file where they are, on the one device that it names. The realtime part of an
/// XFS is on another one.
fn writes_its_device_in_place(
    magic: u64,
    extended_flags: impl FnOnce() -> std::result::Result<u32, Errno>,
) -> bool {
    const REALTIME: u32 = 1;
    match magic {
        EXT => true,
        XFS => extended_flags().is_ok_and(|flags| flags & REALTIME == 0),
        _ => false,
    }
}

const EXT: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58F6;

/// The magic number of a file's file system; 0 where that may not be asked.
pub(crate) fn magic(descriptor: BorrowedFd<'_>) -> std::result::Result<u64, Errno> {
    match insist(|| rustix::fs::fstatfs(descriptor)) {
        // The kernel's type is signed and some magic numbers have the top bit of 32 set.
        Ok(stat) => Ok(stat.f_type.cast_unsigned() & 0xFFFF_FFFF),
        Err(errno) if errno.is_refusal() => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// The name of the file system of a file or directory if that is in memory: then nothing on it survives a loss of power, synced
/// or not. `None` also where it cannot be asked. A stacked file system, such as overlayfs, does not tell what is below it.
#[must_use]
pub fn memory_file_system(path: &Path) -> Option<&'static str> {
    let stat = insist(|| rustix::fs::statfs(path)).ok()?;
    let magic = stat.f_type.cast_unsigned() & 0xFFFF_FFFF;
    matches!(magic, TMPFS | RAMFS).then(|| file_system_name(magic))
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
        RAMFS => "ramfs",
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
    use std::os::fd::AsFd;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_file_system_in_memory_is_named() {
        assert_eq!(memory_file_system(Path::new("/dev/shm")), Some("tmpfs"));
        assert_eq!(memory_file_system(Path::new("/proc/self")), None);
        assert_eq!(memory_file_system(Path::new("/proc/self/absent")), None);
    }

    #[test]
    fn only_file_systems_that_write_their_one_device_in_place_are_asked_for_it() {
        for (magic, flags, expected) in [
            (EXT, Err(Errno::NOT_SUPPORTED), true),
            (XFS, Ok(0), true),
            (XFS, Ok(2), true),
            // On the realtime device.
            (XFS, Ok(1), false),
            (XFS, Ok(3), false),
            (XFS, Err(Errno::NOT_PERMITTED), false),
            (TMPFS, Ok(0), false),
            (0x9123_683E, Ok(0), false),
            (0, Ok(0), false),
        ] {
            assert_eq!(writes_its_device_in_place(magic, || flags), expected, "{magic:x} {flags:?}");
        }
    }

    #[test]
    fn a_files_physical_block_is_a_sector_or_a_page() {
        for dir in [std::env::temp_dir(), std::env::current_dir().unwrap()] {
            let file = tempfile::tempfile_in(&dir).unwrap();
            let found = physical_block_bytes(file.as_fd());
            assert!([SECTOR_BYTES, Buf::ALIGN].contains(&found), "{found}");
        }
        let in_memory = rustix::fs::open("/proc/self/status", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(physical_block_bytes(in_memory.as_fd()), Buf::ALIGN);
    }

    /// Skips a directory whose file system has no such flags.
    #[test]
    fn the_flags_of_a_new_file_say_that_it_is_not_on_a_realtime_device() {
        let file = tempfile::tempfile_in(std::env::current_dir().unwrap()).unwrap();
        match sys::extended_flags(file.as_fd()) {
            Ok(flags) => assert_eq!(flags & 1, 0, "{flags:x}"),
            Err(errno) => assert!([Errno::NOT_SUPPORTED, Errno(libc::ENOTTY)].contains(&errno), "{errno}"),
        }
    }

    #[test]
    fn unusable_alignments_are_recognised() {
        let with = |memory_bytes, offset_bytes| Alignment { memory_bytes, offset_bytes };
        assert!(is_usable(with(512, 512)));
        assert!(is_usable(with(4, 4096)));
        assert!(!is_usable(with(512, 65536)));
        assert!(!is_usable(with(512, 513)));
        assert!(!is_usable(with(0, 0)), "no direct I/O on this file");
    }
}
