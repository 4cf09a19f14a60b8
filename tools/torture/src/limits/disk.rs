//! File systems of our own: small disks (a file, a loop device, ext4, XFS or btrfs, mounted), and mounts without a disk.
//!
//! Invariant: dropping one unmounts it and releases its device. The file then belongs only to the directory that contains it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aio::{Backend as _, NativeBackend};

use crate::lack::Lack;
use crate::report::Failure;

const MIB: u64 = 1 << 20;

/// How long an unmount may find the disk busy because descriptors are being closed.
const UNMOUNT_TRIES: usize = 200;

/// The file system of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Format {
    Ext4,
    Xfs,
    Btrfs,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Ext4 => "ext4",
            Format::Xfs => "xfs",
            Format::Btrfs => "btrfs",
        }
    }

    fn make(self) -> &'static [&'static str] {
        match self {
            Format::Ext4 => &["mkfs.ext4", "-q", "-m", "0"],
            Format::Xfs => &["mkfs.xfs", "-q", "-m", "reflink=1"],
            Format::Btrfs => &["mkfs.btrfs", "-q"],
        }
    }

    fn options(self) -> &'static str {
        match self {
            Format::Ext4 => "errors=remount-ro",
            Format::Xfs | Format::Btrfs => "defaults",
        }
    }

    /// The size of a small disk, in MiB: about the least that the tools make.
    pub(super) fn least_mib(self) -> u64 {
        match self {
            Format::Ext4 => 24,
            Format::Xfs => 304,
            Format::Btrfs => 128,
        }
    }
}

/// A mount, which ends with this.
#[derive(Debug)]
pub(super) struct Mount {
    path: PathBuf,
}

/// A mounted disk.
#[derive(Debug)]
pub(super) struct Disk {
    /// Dropped before the device is released.
    mount: Mount,
    format: Format,
    device: Device,
}

#[derive(Debug)]
struct Device(String);

/// Runs a program to its end. Returns its output.
pub(super) fn tool(words: &[&str]) -> Result<String, Failure> {
    let name = words.join(" ");
    let Some((program, rest)) = words.split_first() else { return Ok(String::new()) };
    let ended = Command::new(program).args(rest).stdin(Stdio::null()).output();
    let ended = ended.map_err(|error| Failure::new(format!("{name}: {error}")))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned());
    }
    Err(Failure::new(format!("{name}: {}", String::from_utf8_lossy(&ended.stderr).trim())))
}

impl Mount {
    /// Calls a program that mounts something on a new directory below `dir`, the last word.
    pub(super) fn new(dir: &Path, program: &[&str]) -> Result<Mount, Lack> {
        needs_root()?;
        let path = dir.join("mount");
        std::fs::create_dir_all(&path).map_err(|error| broken(&error))?;
        let mount = Mount { path };
        mount.again(program).map_err(|failure| missing(&failure))?;
        Ok(mount)
    }

    fn again(&self, program: &[&str]) -> Result<(), Failure> {
        let path = self.path.to_string_lossy();
        tool(&[program, &[&*path]].concat()).map(drop)
    }

    pub(super) fn unmount(&self) -> Result<(), Failure> {
        let clock = NativeBackend::new();
        let path = self.path.to_string_lossy();
        let mut last = Ok(());
        for _ in 0..UNMOUNT_TRIES {
            last = tool(&["umount", &path]).map(drop);
            if last.is_ok() {
                break;
            }
            clock.park(std::time::Duration::from_millis(10));
        }
        last
    }

    /// The mount point.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Undoes the steps that succeeded. A frozen file system cannot be unmounted.
        let path = self.path.to_string_lossy();
        let _ = tool(&["fsfreeze", "-u", &path]);
        let _ = tool(&["umount", "-l", &path]);
    }
}

fn needs_root() -> Result<(), Lack> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Lack::Machine("a file system of its own needs root".to_owned()))
}

fn missing(failure: &Failure) -> Lack {
    Lack::Machine(failure.to_string())
}

fn broken(error: &std::io::Error) -> Lack {
    Lack::Store(Failure::new(format!("a disk: {error}")))
}

impl Disk {
    /// Makes a disk of this many MiB with sectors of this size, mounted below `dir`.
    pub(super) fn new(dir: &Path, format: Format, mib: u64, sector_bytes: u32) -> Result<Disk, Lack> {
        needs_root()?;
        std::fs::create_dir_all(dir).map_err(|error| broken(&error))?;
        let image = dir.join("image");
        let file = std::fs::File::options().create(true).truncate(true).write(true).open(&image);
        file.and_then(|file| file.set_len(mib * MIB)).map_err(|error| broken(&error))?;
        let (image, sector) = (image.to_string_lossy(), sector_bytes.to_string());
        let device = tool(&["losetup", "-f", "--show", "--sector-size", &sector, &image])
            .map_err(|failure| missing(&failure))?;
        let device = Device(device);
        tool(&[format.make(), &[&device.0]].concat()).map_err(|failure| missing(&failure))?;
        let mount = Mount::new(dir, &Disk::mounting(format, &device))?;
        Ok(Disk { mount, format, device })
    }

    fn mounting(format: Format, device: &Device) -> [&str; 6] {
        ["mount", "-t", format.name(), "-o", format.options(), &device.0]
    }

    /// Mounts it again.
    pub(super) fn mount(&self) -> Result<(), Failure> {
        self.mount.again(&Disk::mounting(self.format, &self.device))
    }

    pub(super) fn unmount(&self) -> Result<(), Failure> {
        self.mount.unmount()
    }

    /// The mount point.
    pub(super) fn path(&self) -> &Path {
        self.mount.path()
    }

    /// The name of its device, without the directory.
    pub(super) fn device_name(&self) -> &str {
        self.device.0.trim_start_matches("/dev/")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Takes all free space.
    pub(super) fn fill(&self) -> Result<(), Lack> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.ballast())
            .map_err(|error| broken(&error))?;
        let (mut len, mut step) = (0, 16 << 20);
        while step >= 1 << 10 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), len, step) {
                Ok(()) => len += step,
                Err(_) => step /= 2,
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub(super) fn empty(&self) -> Result<(), Lack> {
        rustix::fs::unlink(self.ballast()).map_err(|errno| broken(&errno.into()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = tool(&["losetup", "-d", &self.0]);
    }
}
