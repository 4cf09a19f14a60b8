//! The whole simulated disk as a value: the states that a crash can leave, and ways to damage it.
//!
//! Invariants: every file entry of a directory names an inode of `inodes`; inode numbers are never reused. A clone
//! shares everything; changing one of the two copies pages only where they differ.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::dir::{Dir, DirEntry, NameChange, Names};
use super::inode::Inode;
use super::pages::{Contents, to_usize};
use super::pending::PendingUnit;
use super::rng::{Rng, hash_bytes, mix};
use crate::error::Errno;
use crate::open_file::SECTOR_BYTES;

type Dirs = BTreeMap<Arc<OsStr>, Arc<Dir>>;

/// A simulated disk at one moment: the visible state, the state on stable media, and the changes in between. Clones
/// share all pages.
#[derive(Clone, Debug)]
pub struct DiskImage {
    inodes: BTreeMap<u64, Arc<Inode>>,
    /// By normal path, in the order of the bytes: cheaper to compare than components, and parents still come first.
    dirs: Dirs,
    next_inode: u64,
    seq: u64,
    physical_block_bytes: usize,
    zeroes_ranges: bool,
}

impl Default for DiskImage {
    fn default() -> DiskImage {
        DiskImage::new()
    }
}

impl DiskImage {
    /// An empty disk: the directories `/` and the current one.
    #[must_use]
    pub fn new() -> DiskImage {
        let roots = ["/", ""].map(|path| (Arc::from(OsStr::new(path)), Arc::new(Dir::default())));
        DiskImage {
            inodes: BTreeMap::new(),
            dirs: BTreeMap::from(roots),
            next_inode: 1,
            seq: 0,
            physical_block_bytes: SECTOR_BYTES,
            zeroes_ranges: false,
        }
    }

    /// The disk after a power cut. Calls `keep` once for every un-synced unit. The order of the units is the same for
    /// every call on this image and does not depend on the answers. The new image holds the kept units, all durable.
    ///
    /// Every sequence of answers gives a legal outcome, so trying all sequences enumerates the crash states.
    #[must_use]
    pub fn power_cut(&self, keep: &mut dyn FnMut(PendingUnit<'_>) -> bool) -> DiskImage {
        let mut dirs = Dirs::new();
        let mut reachable = Vec::new();
        // Directories without pending changes are shared. Parents come before children in path order. `keep` is called
        // for every directory, even for one that does not survive.
        for (name, dir) in &self.dirs {
            let path = Path::new(name);
            let left = if dir.is_settled() { Arc::clone(dir) } else { Arc::new(dir.power_cut(path, keep)) };
            if is_root(path) || survives(&dirs, path) {
                reachable.extend(left.names().values().filter_map(|entry| inode_of(*entry)));
                dirs.insert(Arc::clone(name), left);
            }
        }
        reachable.sort_unstable();
        let mut inodes = BTreeMap::new();
        for (&number, inode) in &self.inodes {
            let left = if inode.is_settled() {
                Arc::clone(inode)
            } else {
                Arc::new(Inode::durable(inode.power_cut(number, self.physical_block_bytes as u64, keep)))
            };
            if reachable.binary_search(&number).is_ok() {
                inodes.insert(number, left);
            }
        }
        DiskImage { inodes, dirs, ..*self }
    }

    /// The physical block of the disk, in bytes.
    #[must_use]
    pub fn physical_block_bytes(&self) -> usize {
        self.physical_block_bytes
    }

    /// A power cut that loses all un-synced units.
    #[must_use]
    pub fn power_cut_none(&self) -> DiskImage {
        self.power_cut(&mut |_| false)
    }

    /// A power cut that loses no unit, not even writes in flight.
    #[must_use]
    pub fn power_cut_all(&self) -> DiskImage {
        self.power_cut(&mut |_| true)
    }

    /// A power cut by seed. Each file and directory independently keeps all, none, or about a tenth, a half or nine
    /// tenths of its units, so that few and many losses are both likely.
    #[must_use]
    pub fn power_cut_random(&self, seed: u64) -> DiskImage {
        let mut rng = Rng::new(seed);
        let mut owner = None;
        let mut percent = 0;
        self.power_cut(&mut |unit| {
            if owner != Some(unit.owner()) {
                owner = Some(unit.owner());
                percent = [0, 10, 50, 90, 100][rng.index(5)];
            }
            rng.chance(percent)
        })
    }

    /// The disk after the death of the process. Completed operations and stores into maps are kept. Each operation in
    /// flight is done or not, by seed. Changes that were not durable still are not: a power cut may follow.
    #[must_use]
    pub fn process_crash(&self, seed: u64) -> DiskImage {
        let mut rng = Rng::new(seed);
        let mut image = self.clone();
        image.seq += 1;
        for inode in image.inodes.values_mut() {
            if !inode.is_settled() {
                Arc::make_mut(inode).process_crash(image.seq, || rng.chance(50));
            }
        }
        image.sweep(&[]);
        image
    }

    /// The number `n` of units that a power cut may keep or drop: there are up to 2^n crash states.
    #[must_use]
    pub fn pending_units(&self) -> usize {
        let mut units = 0;
        let _ = self.power_cut(&mut |_| {
            units += 1;
            false
        });
        units
    }

    /// The un-synced sectors, as (file number, offset in bytes), each once.
    #[must_use]
    pub fn pending_sectors(&self) -> Vec<(u64, u64)> {
        let mut sectors = BTreeSet::new();
        let _ = self.power_cut(&mut |unit| {
            if let PendingUnit::Sector { inode, offset } = unit {
                sectors.insert((inode, offset));
            }
            false
        });
        sectors.into_iter().collect()
    }

    /// A hash of names, sizes and bytes, for counting distinct states. Hashes of unchanged pages are remembered.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hash = 0;
        for (path, dir) in &self.dirs {
            hash = mix(hash, hash_bytes(path.as_encoded_bytes()));
            for (name, entry) in dir.names() {
                let digest = match entry {
                    DirEntry::File(inode) => self.inodes[inode].digest(),
                    DirEntry::Dir => 1,
                };
                hash = mix(mix(hash, hash_bytes(name.as_bytes())), digest);
            }
        }
        hash
    }

    /// Every file by its names, with its size in bytes, in path order.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut files = Vec::new();
        for (path, dir) in &self.dirs {
            for (name, entry) in dir.names() {
                if let DirEntry::File(inode) = entry {
                    files.push((Path::new(path).join(&**name), self.inodes[inode].size_bytes()));
                }
            }
        }
        files
    }

    /// A name of the file with this number; a [`PendingUnit`] gives such numbers.
    #[must_use]
    pub fn path_of(&self, inode: u64) -> Option<PathBuf> {
        self.dirs.iter().find_map(|(path, dir)| {
            let mut names = dir.names().iter().chain(dir.durable_names());
            let (name, _) = names.find(|(_, entry)| **entry == DirEntry::File(inode))?;
            Some(Path::new(path).join(&**name))
        })
    }

    /// The bytes of a file; `None` if there is no file of this name.
    #[must_use]
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.inode(self.file_at(path).ok()?);
        let mut bytes = vec![0; to_usize(inode.size_bytes())];
        inode.volatile().read(0, &mut bytes);
        Some(bytes)
    }

    /// Makes or replaces the bytes of a file behind the store's back, durably. All of the file's names see it.
    ///
    /// # Panics
    /// If the directory does not exist.
    pub fn write_file(&mut self, path: &Path, bytes: &[u8]) {
        let mut contents = Contents::default();
        contents.write(0, bytes);
        contents.set_size(bytes.len() as u64);
        let inode = self.file_at(path).or_else(|_| self.create(path)).expect("the directory exists");
        self.inodes.insert(inode, Arc::new(Inode::durable(contents)));
        let (dir, _) = split(path).expect("a file has a name");
        self.dir_mut(&dir).expect("the file is in it").sync();
    }

    /// Removes a file behind the store's back, durably. Returns whether it existed.
    pub fn remove_file(&mut self, path: &Path) -> bool {
        let Ok((dir, _)) = split(path) else { return false };
        let removed = self.remove(path).is_ok() && self.dir_mut(&dir).map(Dir::sync).is_ok();
        self.sweep(&[]);
        removed
    }

    /// Changes the bytes of a file in place, durably, to simulate damage. The length may change too.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn damage(&mut self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.read_file(path).expect("a file to damage");
        change(&mut bytes);
        self.write_file(path, &bytes);
    }

    /// Flips one bit of a file, durably: bit 0 is the lowest of byte 0.
    ///
    /// # Panics
    /// If there is no such file or bit.
    pub fn flip_bit(&mut self, path: &Path, bit: u64) {
        let inode = self.file_at(path).expect("a file to damage");
        let (offset, mut byte) = (bit / 8, [0]);
        assert!(offset < self.inode(inode).size_bytes(), "no such bit");
        let mut contents = self.inode(inode).volatile().clone();
        contents.read(offset, &mut byte);
        contents.write(offset, &[byte[0] ^ 1 << (bit % 8)]);
        self.inodes.insert(inode, Arc::new(Inode::durable(contents)));
    }

    /// Overwrites one sector of a file with zeros, durably. `sector` counts from 0; the part beyond the end of the file
    /// is ignored.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn zero_sector(&mut self, path: &Path, sector: u64) {
        let inode = self.file_at(path).expect("a file to damage");
        let mut contents = self.inode(inode).volatile().clone();
        contents.write(sector * SECTOR_BYTES as u64, &[0; SECTOR_BYTES]);
        self.inodes.insert(inode, Arc::new(Inode::durable(contents)));
    }
}

/// Operations of the machine on its disk. Errors are those of the kernel.
impl DiskImage {
    pub(crate) fn set_physical_block_bytes(&mut self, bytes: usize) {
        self.physical_block_bytes = bytes;
    }

    pub(crate) fn zeroes_ranges(&self) -> bool {
        self.zeroes_ranges
    }

    pub(crate) fn set_zeroes_ranges(&mut self, zeroes_ranges: bool) {
        self.zeroes_ranges = zeroes_ranges;
    }

    /// The next position in the order of all changes.
    pub(crate) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Position of the last change.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn inode(&self, number: u64) -> &Inode {
        &self.inodes[&number]
    }

    pub(crate) fn inode_mut(&mut self, number: u64) -> &mut Inode {
        let inode = self.inodes.get_mut(&number).expect("an open handle keeps its inode");
        Arc::make_mut(inode)
    }

    /// The entry at a path.
    pub(crate) fn entry(&self, path: &Path) -> Result<DirEntry, Errno> {
        let path = normal(path);
        if self.dirs.contains_key(path.as_os_str()) {
            return Ok(DirEntry::Dir);
        }
        let (dir, name) = parts(&path)?;
        self.dir(dir)?.names().get(name).copied().ok_or(Errno::NOT_FOUND)
    }

    /// The inode of a file.
    pub(crate) fn file_at(&self, path: &Path) -> Result<u64, Errno> {
        inode_of(self.entry(path)?).ok_or(Errno(libc::EISDIR))
    }

    pub(crate) fn names(&self, path: &Path) -> Result<&Names, Errno> {
        self.dir(&normal(path)).map(Dir::names)
    }

    /// Makes an empty file, whose name must be free.
    pub(crate) fn create(&mut self, path: &Path) -> Result<u64, Errno> {
        let (dir, name) = self.free_name(path)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Arc::new(Inode::default()));
        self.dir_mut(&dir)?.change(NameChange::Set { name, entry: DirEntry::File(inode) });
        Ok(inode)
    }

    pub(crate) fn make_dir(&mut self, path: &Path) -> Result<(), Errno> {
        let (dir, name) = self.free_name(path)?;
        self.dir_mut(&dir)?.change(NameChange::Set { name, entry: DirEntry::Dir });
        self.dirs.insert(normal(path).as_os_str().into(), Arc::new(Dir::default()));
        Ok(())
    }

    pub(crate) fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let inode = self.file_at(from)?;
        let (dir, name) = self.free_name(to)?;
        self.dir_mut(&dir)?.change(NameChange::Set { name, entry: DirEntry::File(inode) });
        Ok(())
    }

    pub(crate) fn remove(&mut self, path: &Path) -> Result<(), Errno> {
        self.file_at(path)?;
        let (dir, name) = split(path)?;
        self.dir_mut(&dir)?.change(NameChange::Clear { name });
        Ok(())
    }

    pub(crate) fn dir_mut(&mut self, path: &Path) -> Result<&mut Dir, Errno> {
        let dir = self.dirs.get_mut(normal(path).as_os_str()).ok_or(Errno::NOT_FOUND)?;
        Ok(Arc::make_mut(dir))
    }

    /// Removes files that no name and no open handle can reach.
    pub(crate) fn sweep(&mut self, open: &[u64]) {
        let entries = self.dirs.values().flat_map(|dir| dir.entries());
        let mut reachable: Vec<u64> = entries.filter_map(inode_of).chain(open.iter().copied()).collect();
        reachable.sort_unstable();
        self.inodes.retain(|number, _| reachable.binary_search(number).is_ok());
    }

    /// Bytes in files that have a name or an open handle.
    pub(crate) fn used_bytes(&self, open: &[u64]) -> u64 {
        let entries = self.dirs.values().flat_map(|dir| dir.names().values().copied());
        let mut used: BTreeSet<u64> = entries.filter_map(inode_of).collect();
        used.extend(open);
        used.iter().map(|number| self.inode(*number).size_bytes()).sum()
    }

    fn dir(&self, path: &Path) -> Result<&Dir, Errno> {
        self.dirs.get(path.as_os_str()).map(|dir| &**dir).ok_or(Errno::NOT_FOUND)
    }

    fn free_name(&self, path: &Path) -> Result<(PathBuf, Arc<str>), Errno> {
        if self.entry(path).is_ok() {
            return Err(Errno::EXISTS);
        }
        let (dir, name) = split(path)?;
        self.dir(&dir)?;
        Ok((dir, name))
    }
}

fn inode_of(entry: DirEntry) -> Option<u64> {
    match entry {
        DirEntry::File(inode) => Some(inode),
        DirEntry::Dir => None,
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

/// Whether the parent survived a power cut with the name of this directory in it.
fn survives(dirs: &Dirs, path: &Path) -> bool {
    parts(path).is_ok_and(|(parent, name)| {
        dirs.get(parent.as_os_str()).is_some_and(|dir| dir.names().get(name) == Some(&DirEntry::Dir))
    })
}

/// The path without `.` and doubled or trailing slashes.
fn normal(path: &Path) -> Cow<'_, Path> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let is_plain = |part: &[u8]| !part.is_empty() && part != b".";
    // An absolute path begins with an empty part.
    if bytes.split(|byte| *byte == b'/').skip(usize::from(bytes.starts_with(b"/"))).all(is_plain) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(path.components().filter(|part| !matches!(part, Component::CurDir)).collect())
}

/// Directory and name of a path.
fn split(path: &Path) -> Result<(PathBuf, Arc<str>), Errno> {
    let path = normal(path);
    let (dir, name) = parts(&path)?;
    Ok((dir.to_owned(), name.into()))
}

/// Directory and name of a normal path.
fn parts(path: &Path) -> Result<(&Path, &str), Errno> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(Errno::INVALID)?;
    let dir = path.parent().ok_or(Errno::INVALID)?;
    Ok((dir, name))
}
