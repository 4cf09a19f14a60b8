//! A small disk of our own: a file, a loop device, ext4, mounted.
//!
//! Invariant: dropping it releases the device. The file then belongs only to the directory that contains it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aio::{Backend as _, NativeBackend};

use crate::lack::Lack;
use crate::report::Failure;

const MIB: u64 = 1 << 20;

/// How long an unmount may find the disk busy because descriptors are being closed.
const UNMOUNT_TRIES: usize = 200;

/// A mounted disk.
#[derive(Debug)]
pub(super) struct Disk {
    device: String,
    mount: PathBuf,
}

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

impl Disk {
    /// Makes a disk of this many MiB with sectors of this size, mounted below `dir`.
    pub(super) fn new(dir: &Path, mib: u64, sector_bytes: u32) -> Result<Disk, Lack> {
        if !rustix::process::geteuid().is_root() {
            return Err(Lack::Machine("a disk of its own needs root".to_owned()));
        }
        let missing = |failure: Failure| Lack::Machine(failure.to_string());
        let broken = |error: std::io::Error| Lack::Store(Failure::new(format!("a disk: {error}")));
        let mount = dir.join("mount");
        std::fs::create_dir_all(&mount).map_err(broken)?;
        let image = dir.join("image");
        let file = std::fs::File::options().create(true).truncate(true).write(true).open(&image);
        file.and_then(|file| file.set_len(mib * MIB)).map_err(broken)?;
        let (image, sector) = (image.to_string_lossy(), sector_bytes.to_string());
        let device = tool(&["losetup", "-f", "--show", "--sector-size", &sector, &image]).map_err(missing)?;
        let disk = Disk { device, mount };
        tool(&["mkfs.ext4", "-q", "-m", "0", &disk.device]).map_err(missing)?;
        disk.mount().map_err(missing)?;
        Ok(disk)
    }

    pub(super) fn mount(&self) -> Result<(), Failure> {
        let path = self.path().to_string_lossy();
        tool(&["mount", "-t", "ext4", "-o", "errors=remount-ro", &self.device, &path]).map(drop)
    }

    pub(super) fn unmount(&self) -> Result<(), Failure> {
        let clock = NativeBackend::new();
        let path = self.path().to_string_lossy();
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
        &self.mount
    }

    /// The name of its device, without the directory.
    pub(super) fn device_name(&self) -> &str {
        self.device.trim_start_matches("/dev/")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Undoes the steps that succeeded. A frozen file system cannot be unmounted.
        let path = self.path().to_string_lossy();
        let _ = tool(&["fsfreeze", "-u", &path]);
        let _ = tool(&["umount", "-l", &path]);
        let _ = tool(&["losetup", "-d", &self.device]);
    }
}
