//! The physical block of a device, as far as sysfs can tell.
//!
//! The kernel says 512 bytes also of a device that tells it nothing, and a virtual disk hides the block of the disk below it.
//! If the block is larger than that, a power cut can destroy acknowledged groups beside a write. So sectors are believed of
//! few devices only: of `NVMe` drives on PCI Express that a known maker of drives has made, alone or below device mapper and
//! RAID. All others count as if they had blocks of a page.
//!
//! That is no proof. Such a drive may leave its preferred unit untold (bit 4 of `NSFEAT`), and the kernel takes its logical
//! block for it. But flash is never rewritten in place, as it is on the disks with large blocks that took small writes first. A
//! program that poses as such a drive (the kernel's `NVMe` endpoint target) is believed, too, unless its model says Linux.
//!
//! Rejected: SCSI and ATA disks. Hypervisors, RAID controllers and bridges of USB make up their names and sizes, and the first
//! disks with blocks of 4096 bytes said 512. Loop devices: the file below may be anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use crate::buf::Buf;
use crate::open_file::SECTOR_BYTES;

/// PCI vendors that make drives. Clouds and hypervisors have numbers of their own, but QEMU may use Intel's,
/// so that is not here.
const MAKERS: [&str; 11] = [
    "0x025e", // Solidigm
    "0x1179", // Toshiba
    "0x1344", // Micron
    "0x144d", // Samsung
    "0x15b7", // SanDisk
    "0x1b96", // Western Digital
    "0x1bb1", // Seagate
    "0x1c58", // HGST
    "0x1c5c", // SK hynix
    "0x1e0f", // Kioxia
    "0xc0a9", // Crucial
];

/// Devices that may stand one on another.
const MAX_DEPTH: usize = 8;

/// The physical block of a device in bytes: a sector, or a page. `sysfs` is where the kernel's tree is, `/sys`.
///
/// A larger block than a page counts as one: a file system puts the pages of a file anywhere, so beside them in the block
/// may be another file, and no alignment inside the file helps. Nor does it in a partition that begins inside a block.
pub(crate) fn physical_block_bytes(sysfs: &Path, device: u64) -> usize {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let folder = sysfs.join(format!("dev/block/{major}:{minor}"));
    if writes_sectors(&folder, MAX_DEPTH) { SECTOR_BYTES } else { Buf::ALIGN }
}

fn writes_sectors(folder: &Path, depth: usize) -> bool {
    let Some(device) = whole_device(folder) else { return false };
    // An NVMe drive tells the unit that it writes best as the second one, and the kernel lowers the first to what is atomic. For
    // RAID the second one is the stripe of one disk.
    let has_sectors = ["queue/physical_block_size", "queue/minimum_io_size"]
        .iter()
        .all(|name| fact(&device, name).and_then(|bytes| bytes.parse().ok()) == Some(SECTOR_BYTES));
    has_sectors && (is_drive(&device) || depth > 0 && stands_on_drives(&device, depth - 1))
}

/// A partition's facts are those of the whole device, one folder up.
fn whole_device(folder: &Path) -> Option<PathBuf> {
    let folder = fs::canonicalize(folder).ok()?;
    if folder.join("partition").exists() { folder.parent().map(Path::to_owned) } else { Some(folder) }
}

/// Whether it is the mapper or RAID, and all devices below it write sectors.
fn stands_on_drives(device: &Path, depth: usize) -> bool {
    let below = entries(&device.join("slaves"));
    let is_known = device.join("dm").exists() || device.join("md").exists();
    is_known && !below.is_empty() && below.iter().all(|folder| writes_sectors(folder, depth))
}

/// Whether it is a drive that is believed. Above it is its controller, or, where it may have several, what they have in common.
fn is_drive(device: &Path) -> bool {
    let above = device.join("device");
    let mut controllers = entries(&above);
    controllers.push(above);
    controllers.retain(|folder| folder.join("transport").exists());
    let is_known = |controller: &PathBuf| {
        let maker = fact(controller, "device/vendor");
        let poses = fact(controller, "model").is_none_or(|model| model.starts_with("Linux"));
        !poses
            && fact(controller, "transport").is_some_and(|transport| transport == "pcie")
            && maker.is_some_and(|maker| MAKERS.contains(&maker.as_str()))
    };
    !controllers.is_empty() && controllers.iter().all(is_known)
}

fn fact(folder: &Path, name: &str) -> Option<String> {
    fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned())
}

/// The entries of a folder; none if it cannot be read to its end.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).and_then(|found| found.map(|entry| Ok(entry?.path())).collect());
    all.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const MAKER: &str = "0x144d";

    /// A tree as the kernel has it.
    struct Sysfs(tempfile::TempDir);

    impl Sysfs {
        fn new() -> Sysfs {
            Sysfs(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(self.0.path().join(to), path).unwrap();
        }

        /// A device with this minor number. Says where it is.
        fn disk(&self, folder: &str, minor: u32, [physical, preferred]: [usize; 2]) -> String {
            self.write(&format!("{folder}/queue/physical_block_size"), &physical.to_string());
            self.write(&format!("{folder}/queue/minimum_io_size"), &preferred.to_string());
            self.link(&format!("dev/block/259:{minor}"), folder);
            folder.to_owned()
        }

        fn controller(&self, number: u32, vendor: &str, transport: &str) -> String {
            let folder = format!("devices/pci/{number}/nvme/nvme{number}");
            self.write(&format!("{folder}/transport"), transport);
            self.write(&format!("{folder}/model"), "A drive of 1 TB");
            self.write(&format!("devices/pci/{number}/vendor"), vendor);
            self.link(&format!("{folder}/device"), &format!("devices/pci/{number}"));
            folder
        }

        /// A drive with its controller.
        fn drive(&self, minor: u32, vendor: &str, transport: &str, blocks: [usize; 2]) -> String {
            let controller = self.controller(minor, vendor, transport);
            let disk = self.disk(&format!("{controller}/nvme{minor}n1"), minor, blocks);
            self.link(&format!("{disk}/device"), &controller);
            disk
        }

        /// A device that stands on others; `kind` is its folder.
        fn on(&self, below: &[&str], (minor, kind): (u32, &str), blocks: [usize; 2]) -> String {
            let disk = self.disk(&format!("devices/virtual/block/{kind}-{minor}"), minor, blocks);
            self.write(&format!("{disk}/{kind}/name"), "x");
            for (nth, device) in below.iter().enumerate() {
                self.link(&format!("{disk}/slaves/{nth}"), device);
            }
            disk
        }

        fn block_bytes(&self, minor: u32) -> usize {
            physical_block_bytes(self.0.path(), rustix::fs::makedev(259, minor))
        }
    }

    #[test]
    fn a_drive_of_a_known_maker_is_believed_if_it_prefers_no_larger_unit() {
        for (blocks, expected) in [
            ([512, 512], 512),
            // It rewrites a larger unit than it writes at once.
            ([512, 4096], 4096),
            ([4096, 4096], 4096),
            ([4096, 512], 4096),
            ([1024, 1024], 4096),
            ([16384, 16384], 4096),
            ([0, 512], 4096),
        ] {
            let sysfs = Sysfs::new();
            let drive = sysfs.drive(1, MAKER, "pcie", blocks);
            assert_eq!(sysfs.block_bytes(1), expected, "{blocks:?}");
            sysfs.write(&format!("{drive}/p1/partition"), "1");
            sysfs.link("dev/block/259:2", &format!("{drive}/p1"));
            assert_eq!(sysfs.block_bytes(2), expected, "a partition: {blocks:?}");
            sysfs.write(&format!("{drive}/queue/minimum_io_size"), "");
            assert_eq!(sysfs.block_bytes(1), 4096, "not told: {blocks:?}");
        }
    }

    #[test]
    fn sectors_of_all_other_devices_are_not_believed() {
        let sysfs = Sysfs::new();
        let others = [
            ("0x1b36", "pcie"), // QEMU
            ("0x8086", "pcie"), // QEMU, or Intel
            ("0x1d0f", "pcie"), // Amazon
            ("0x1ae0", "pcie"), // Google
            ("0x1414", "pcie"), // Microsoft
            ("0x15ad", "pcie"), // VMware
            (MAKER, "tcp"),
            (MAKER, "loop"),
            (MAKER, ""),
            ("", "pcie"),
        ];
        for (minor, (vendor, transport)) in (1..).zip(others) {
            sysfs.drive(minor, vendor, transport, [512, 512]);
            assert_eq!(sysfs.block_bytes(minor), 4096, "{vendor} {transport}");
        }
        for (minor, name) in
            (20..).zip(["vda", "xvda", "sda", "loop0", "nbd0", "rbd0", "zram0", "ram0", "mmcblk0"])
        {
            let disk = sysfs.disk(&format!("devices/virtual/block/{name}"), minor, [512, 512]);
            assert_eq!(sysfs.block_bytes(minor), 4096, "{name}");
            sysfs.write(&format!("{disk}/device/vendor"), MAKER);
            sysfs.write(&format!("{disk}/loop/backing_file"), "/disk");
            assert_eq!(sysfs.block_bytes(minor), 4096, "{name} with more facts");
        }
        assert_eq!(sysfs.block_bytes(99), 4096, "no such device");
        sysfs.drive(30, MAKER, "pcie", [512, 512]);
        assert_eq!(sysfs.block_bytes(30), 512);
        sysfs.write("devices/pci/30/nvme/nvme30/model", "Linux");
        assert_eq!(sysfs.block_bytes(30), 4096, "a program that poses as a drive");
    }

    #[test]
    fn a_drive_with_several_controllers_is_believed_if_all_are() {
        for (vendors, expected) in
            [(&[MAKER, MAKER][..], 512), (&[MAKER, "0x1b36"], 4096), (&["0x1b36", MAKER], 4096), (&[], 4096)]
        {
            let sysfs = Sysfs::new();
            let common = "devices/virtual/nvme-subsystem/nvme-subsys0";
            let disk = sysfs.disk(&format!("{common}/nvme0n1"), 1, [512, 512]);
            sysfs.link(&format!("{disk}/device"), common);
            for (number, vendor) in (0..).zip(vendors) {
                let controller = sysfs.controller(number, vendor, "pcie");
                sysfs.link(&format!("{common}/nvme{number}"), &controller);
            }
            assert_eq!(sysfs.block_bytes(1), expected, "{vendors:?}");
        }
    }

    #[test]
    fn mapper_and_raid_are_believed_if_they_and_all_below_them_write_sectors() {
        let sysfs = Sysfs::new();
        let drives: Vec<_> = (1..4).map(|minor| sysfs.drive(minor, MAKER, "pcie", [512, 512])).collect();
        let [a, b, c] = [&drives[0], &drives[1], &drives[2]].map(String::as_str);
        let large = sysfs.drive(4, MAKER, "pcie", [512, 4096]);
        let looped = sysfs.disk("devices/virtual/block/loop0", 5, [512, 512]);
        let mirror = sysfs.on(&[a, b], (10, "md"), [512, 512]);
        for (minor, kind, below, blocks, expected) in [
            (20, "dm", &[c, mirror.as_str()][..], [512, 512], 512),
            (21, "dm", &[c, &mirror, &looped], [512, 512], 4096),
            (22, "dm", &[a, &large], [512, 512], 4096),
            (23, "md", &[a, b], [512, 65536], 4096),
            (24, "dm", &[a, b], [4096, 512], 4096),
            (25, "dm", &[], [512, 512], 4096),
            (26, "bcache", &[a, b], [512, 512], 4096),
        ] {
            sysfs.on(below, (minor, kind), blocks);
            assert_eq!(sysfs.block_bytes(minor), expected, "{minor}");
        }
    }

    #[test]
    fn devices_that_stand_on_themselves_or_too_high_are_not_believed() {
        let sysfs = Sysfs::new();
        let mut top = sysfs.drive(1, MAKER, "pcie", [512, 512]);
        for minor in 10..20 {
            top = sysfs.on(&[&top], (minor, "dm"), [512, 512]);
            let expected = if minor < 10 + u32::try_from(MAX_DEPTH).unwrap() { 512 } else { 4096 };
            assert_eq!(sysfs.block_bytes(minor), expected, "{minor}");
        }
        let circle = sysfs.on(&[], (30, "dm"), [512, 512]);
        sysfs.link(&format!("{circle}/slaves/0"), &circle);
        assert_eq!(sysfs.block_bytes(30), 4096);
    }
}
