//! The manifest: the log of edits that names the live files. A file is live only through it.
//!
//! ```text
//!   manifest-NNNNNN, zero-written once, of fixed size:
//!   +---------------------------+-------------+-------------+-- --+------------+
//!   | group: the whole version  | group: edit | group: edit | ... | zeros      |
//!   +---------------------------+-------------+-------------+-- --+------------+
//!   groups and sectors as in the log (`wal::seal`), at steps of 4096 bytes, synced one by one
//!
//!   OFFSET  SIZE  FIELD
//!        0     n  first group: an edit list that begins with `Format` and builds the version (see `edit`)
//!        n     m  one group for each append
//! ```
//!
//! Sectors are sealed with store id 0 (the store's id is known only from the manifest), the manifest's number as file id
//! and epoch 1; the group header's `incarnation` is 0. Each group claims that all before it are durable, so a lost sector
//! anywhere but in the newest group is noticed; a cut file is noticed by its size.
//!
//! The manifest with the highest number whose first group is complete is in force. A new one is written at each open and
//! when the old one is full. The old one is removed after the new one is durable.
//!
//! Invariant: an edit is durable before anything that depends on it is done. A failed edit halts the manifest: it may or may
//! not be on disk, so the running store writes and removes nothing after it. (An open that has failed takes the manifest back: `orphans`.)
//! Written and read here. Version gate: [`FORMAT_VERSION`].

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use aio::{Buf, Errno, File, Queue};
use arc_swap::ArcSwap;
use wal::{ChainRules, Group, Place, STEP, read_chain};

use crate::base::coding::Reader;
use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::planted::{Bug, planted};
use crate::base::sync::shared::{AtomicU64, Mutex, turn};
use crate::io::files::Files;
use crate::io::kinds::{FileKind, Proof};
use crate::manifest::edit;
use crate::manifest::version::{Edit, Version};

/// The one version of manifest, log and ring.
pub(crate) const FORMAT_VERSION: u32 = 6;

/// The largest step of a group, on any device: edits are rare, and a program of any version finds its gate in the first group.
const STEP_BYTES: u32 = 4096;
const _: () = assert!(STEP_BYTES as usize == STEP);

/// Steps that ordinary edits leave free, at most a quarter of the file. On a full disk, where the manifest cannot be
/// replaced, the edits of [`Reserve::Use`] still fit.
const RESERVE_STEPS: u64 = 16;

/// The number of edits, each in a group of its own, that fit into a manifest of this size which is full and cannot be
/// replaced.
pub(crate) fn reserve_steps(manifest_bytes: u64) -> u64 {
    RESERVE_STEPS.min(manifest_bytes / 4 / STEP as u64)
}

/// Whether an edit may use the reserved steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// No: edits that need space for other files anyway.
    Keep,
    /// Yes: edits that need no other space, such as the activation of a spare log file and the drop of a keyspace.
    Use,
}

/// Feature bits that this program knows.
const KNOWN_FEATURES: u64 = 0;

/// The open manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    files: Arc<Files>,
    store_id: u64,
    /// The next file number. A number that was handed out is never reused, even if no edit names it: an open starts above
    /// every number that it finds.
    next_number: AtomicU64,
    current: Arc<ArcSwap<Version>>,
    /// The first failure; nothing is written after it. Every commit reads it, so it is outside the lock that is held across
    /// I/O.
    halted: OnceLock<Arc<Error>>,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    number: u64,
    /// The last number tried for the next manifest. After a full disk its file may still exist, without a first group. Such a
    /// file is not a manifest, but its name is in use.
    tried: u64,
    /// Offset of the next group, in bytes.
    offset: u64,
    /// Bytes of edits so far: the position in the manifest's own stream.
    end: Seq,
    groups: u64,
}

impl Manifest {
    /// Writes `version` as a new manifest and brings it into force.
    pub(crate) fn create(
        files: &Arc<Files>,
        number: u64,
        mut version: Version,
        min_bytes: u64,
    ) -> Result<Manifest> {
        let writer = write_new(files, number, &mut version, min_bytes)?;
        Ok(Manifest {
            files: Arc::clone(files),
            store_id: version.incarnation.store_id,
            next_number: AtomicU64::new(version.next_file),
            current: Arc::new(ArcSwap::from_pointee(version)),
            halted: OnceLock::new(),
            writer: Mutex::new(writer),
        })
    }

    pub(crate) fn store_id(&self) -> u64 {
        self.store_id
    }

    /// The current version, which each edit replaces, for threads that only read it.
    pub(crate) fn current(&self) -> Arc<ArcSwap<Version>> {
        Arc::clone(&self.current)
    }

    /// The live files right now.
    pub(crate) fn version(&self) -> Arc<Version> {
        turn();
        self.current.load_full()
    }

    /// A new file number.
    pub(crate) fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The first failure, if there was one. It never changes.
    pub(crate) fn health(&self) -> Result<()> {
        match self.halted.get() {
            Some(cause) => Err(Error::Halted { cause: Arc::clone(cause) }),
            None => Ok(()),
        }
    }

    /// Whether the store's files use direct I/O.
    pub(crate) fn is_direct(&self) -> bool {
        self.writer.lock().file.is_direct()
    }

    /// Makes the edits durable, all or none, and then current. Returns the resulting version.
    ///
    /// `NoSpace` and a lack of handles change nothing. Any other failure halts the manifest.
    pub(crate) fn append(&self, edits: &[Edit]) -> Result<Arc<Version>> {
        self.append_with(Reserve::Keep, |_| edits.to_vec())
    }

    /// Like [`Manifest::append`], with edits that depend on the version to which they are applied.
    pub(crate) fn append_with(
        &self,
        reserve: Reserve,
        edits: impl FnOnce(&Version) -> Vec<Edit>,
    ) -> Result<Arc<Version>> {
        let mut writer = self.writer.lock();
        self.health()?;
        let mut version = Version::clone(&self.current.load());
        let edits = edits(&version);
        for edit in &edits {
            version.apply(edit).expect("an edit fits the version it was made for");
        }
        debug_assert_eq!(version.check(), Ok(()), "an edit keeps the version sound");
        let mut bytes = Vec::new();
        edit::encode(&edits, &mut bytes);
        let manifest_bytes = version.format.manifest_bytes;
        let room_bytes = manifest_bytes - writer.offset;
        let group_bytes = writer.group(bytes.len()).1;
        let reserve_bytes = reserve_steps(manifest_bytes) * STEP as u64;
        let rolled = if group_bytes + reserve_bytes <= room_bytes {
            None
        } else {
            match self.roll(&mut writer, &version) {
                Ok(rolled) => Some(rolled),
                Err(error) => {
                    let fits = reserve == Reserve::Use && group_bytes <= room_bytes;
                    if !(fits && error.is_shortage()) {
                        return Err(error);
                    }
                    None
                }
            }
        };
        if rolled.is_none() {
            self.files.with_job_queue(|queue| {
                match writer.write_group(&self.files, queue, &bytes) {
                    // Nothing was written: a shortage like any other.
                    Err(error) if error.is_not_now() => Err(error.into()),
                    written => written.map_err(|error| self.halt(error.into())),
                }
            })?;
        }
        let version = Arc::new(rolled.unwrap_or(version));
        self.current.store(Arc::clone(&version));
        Ok(version)
    }

    /// Reads the file back and compares the version that it builds with the current one. No edit is appended meanwhile, since a
    /// half-written group looks like damage.
    pub(crate) fn verify(&self) -> Result<()> {
        let writer = self.writer.lock();
        // After a failed append the content of the disk is unknown.
        self.health()?;
        let loaded = load(&self.files)?;
        if loaded.as_ref() == Some(&*self.version()) {
            return Ok(());
        }
        let path = self.files.manifest_path(writer.number);
        let found = if loaded.is_some() { "another one" } else { "none" };
        Err(Error::corrupt(&path, 0, "manifest", "the version in use", found))
    }

    fn halt(&self, cause: Error) -> Error {
        if planted(Bug::ManifestErrorNotSticky) {
            return cause;
        }
        let cause = self.halted.get_or_init(|| Arc::new(cause));
        Error::Halted { cause: Arc::clone(cause) }
    }

    /// Replaces a full manifest by a new one that holds the version. Returns the version with the size of the new file.
    fn roll(&self, writer: &mut Writer, version: &Version) -> Result<Version> {
        let (old, min_bytes) = (writer.number, version.format.manifest_bytes);
        let mut version = version.clone();
        if planted(Bug::ManifestWithoutNewestEdit) {
            version = Version::clone(&self.current.load());
        }
        writer.tried += 1;
        match write_new(&self.files, writer.tried, &mut version, min_bytes) {
            Ok(new) => *writer = new,
            Err(error) if error.is_shortage() => return Err(error),
            Err(Error::Halted { cause }) => return Err(self.halt(Error::clone(&cause))),
            Err(error) => return Err(self.halt(error)),
        }
        // If the old file stays, the next open removes it: it is never in force beside a complete one with a higher number.
        self.files.removals().remove(&self.files.manifest_path(old));
        Ok(version)
    }
}

impl wal::Host for Manifest {
    fn new_file_id(&self) -> u64 {
        self.new_number()
    }

    fn activate(&self, file_id: u64, start: Seq) -> wal::Result<u32> {
        let mut epoch = 0;
        if planted(Bug::LogFileUsedBeforeTheManifest) {
            return Ok(self.version().next_epoch);
        }
        self.append_with(Reserve::Use, |version| {
            epoch = version.next_epoch;
            vec![Edit::FileActivated(wal::ActiveFile { id: file_id, epoch, start })]
        })
        .map_err(for_log)?;
        Ok(epoch)
    }

    fn ring_grown(&self, file_bytes: u64) -> wal::Result<()> {
        self.append(&[Edit::RingGrown { file_bytes }]).map(drop).map_err(for_log)
    }
}

/// An error for the log. It goes on after a shortage, so it has to see one.
fn for_log(error: Error) -> wal::Error {
    match error {
        Error::Io { errno: Some(code), .. } if Errno(code).is_shortage() => {
            aio::Error::call("write", Path::new("the manifest"), Errno(code)).into()
        }
        other => other.into_wal(),
    }
}

impl Writer {
    /// The next group, and its size in the file.
    fn group(&self, len_bytes: usize) -> (Group, u64) {
        let group = Group {
            incarnation: 0,
            number: self.groups,
            start: self.end,
            end: self.end.plus(len_bytes),
            durable: self.end,
            step_bytes: STEP_BYTES,
        };
        (group, group.sealed_bytes().expect("a list of edits fits into memory") as u64)
    }

    /// After an error that [`is_not_now`](aio::Error::is_not_now) nothing was written.
    fn write_group(&mut self, files: &Files, queue: &mut dyn Queue, bytes: &[u8]) -> aio::Result<()> {
        let (group, group_bytes) = self.group(bytes.len());
        let mut buf = Buf::zeroed(usize::try_from(group_bytes).expect("a group fits into memory"));
        let mut rest = bytes;
        wal::seal(&place(self.number), self.offset, &group, &mut buf, &mut |_, into| {
            let (head, tail) = rest.split_at(into.len());
            into.copy_from_slice(head);
            rest = tail;
        });
        let written = aio::file::write_all(queue, &self.file, self.offset, buf)?;
        if !planted(Bug::ManifestNotSynced) {
            let backend = files.backend().as_ref();
            aio::file::sync_written(backend, queue, &self.file, self.offset, &written)?;
        }
        self.offset += group_bytes;
        self.end = group.end;
        self.groups += 1;
        Ok(())
    }
}

/// Reads the manifest in force. `None`: there is none, and no file exists that only a manifest can have named.
///
/// # Errors
/// `Corrupt` if it is damaged or missing, `Format` if a program of another version wrote it.
pub(crate) fn load(files: &Files) -> Result<Option<Version>> {
    let numbers = numbers(files)?;
    for (nth, &number) in numbers.iter().rev().enumerate() {
        if planted(Bug::OldManifestCounts) && nth == 0 && numbers.len() > 1 {
            continue;
        }
        if let Some(version) = read(files, number)? {
            return Ok(Some(version));
        }
    }
    let only_first = numbers.iter().all(|&number| number == FIRST_NUMBER);
    if !only_first {
        return Err(missing(files, numbers.first().copied().unwrap_or(FIRST_NUMBER)));
    }
    match lost(files)? {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

/// The error of a store without a manifest that is no new one: other files prove that it had one. `None`: none is lost.
pub(crate) fn lost(files: &Files) -> Result<Option<Error>> {
    Ok(has_data(files)?.then(|| missing(files, FIRST_NUMBER)))
}

/// The number of a store's first manifest. Only this one may be incomplete without a complete one beside it.
pub(crate) const FIRST_NUMBER: u64 = 1;

/// Makes a store's first manifest durable, if it is the only one: the process that wrote it may have died before its
/// sync, and there is no earlier one to fall back to. Called before any file is made that depends on it.
///
/// # Errors
/// The sync failed.
pub(crate) fn secure_first(files: &Files) -> Result<()> {
    if numbers(files)? == [FIRST_NUMBER] {
        let file = files.open(&files.manifest_path(FIRST_NUMBER), aio::OpenMode::Read)?;
        files.backend().sync(&file)?;
    }
    Ok(())
}

/// The numbers of all manifests in the directory, rising.
pub(crate) fn numbers(files: &Files) -> Result<Vec<u64>> {
    files.numbers(FileKind::Manifest)
}

fn missing(files: &Files, number: u64) -> Error {
    Error::corrupt(
        &files.manifest_path(number),
        0,
        "the manifest is missing",
        "one, since the store has other files",
        "none",
    )
}

/// Whether there is a file that can exist only after a manifest was complete.
fn has_data(files: &Files) -> Result<bool> {
    for kind in FileKind::ALL {
        let numbers = files.numbers(kind)?;
        let has_data = match kind.proof() {
            Proof::Nothing => false,
            Proof::Existence => !numbers.is_empty(),
            Proof::Content => any_content(files, kind, &numbers)?,
        };
        if has_data {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of these files is not blank.
fn any_content(files: &Files, kind: FileKind, numbers: &[u64]) -> Result<bool> {
    for &number in numbers {
        let file = files.open(&files.path(kind, number), aio::OpenMode::Read)?;
        let size_bytes = files.backend().size_bytes(&file)?;
        let len = usize::try_from(size_bytes - size_bytes % STEP as u64).unwrap_or(usize::MAX);
        if files.read(&file, 0, len)?.iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `None` if its first group never became complete.
fn read(files: &Files, number: u64) -> Result<Option<Version>> {
    let path = files.manifest_path(number);
    let file = files.open(&path, aio::OpenMode::Read)?;
    let size_bytes = files.backend().size_bytes(&file)?;
    let whole_steps = size_bytes - size_bytes % STEP as u64;
    let len = usize::try_from(whole_steps)
        .map_err(|_| Error::corrupt(&path, 0, "size of the manifest", "less than memory", size_bytes))?;
    let bytes = files.read(&file, 0, len)?;
    let rules = ChainRules { place: place(number), incarnation: 0, start: Seq::ZERO };
    let chain = read_chain(&bytes, &rules);
    // A torn edit at the end was not acknowledged.
    chain.check(&path)?;
    if chain.groups.is_empty() {
        return Ok(None);
    }
    let version = replay(&path, &chain.stream)?;
    if version.format.manifest_bytes != size_bytes {
        return Err(Error::corrupt(
            &path,
            size_bytes,
            "size of the manifest",
            version.format.manifest_bytes,
            size_bytes,
        ));
    }
    Ok(Some(version))
}

/// The version that a stream of edits builds.
pub(crate) fn replay(path: &Path, stream: &[u8]) -> Result<Version> {
    let corrupt =
        |what: &'static str, expected: &str| Error::corrupt(path, 0, what, expected, "something else");
    let mut version = Version::default();
    let mut reader = Reader::new(stream);
    while !reader.is_empty() {
        let unknown = || corrupt("an edit", "a list of known edits");
        let count = edit::decode_count(&mut reader).ok_or_else(unknown)?;
        for _ in 0..count {
            let edit = edit::decode_edit(&mut reader).ok_or_else(unknown)?;
            version.apply(&edit).map_err(|what| corrupt(what, "a version it applies to"))?;
            check_format(path, &version)?;
        }
    }
    version.check().map_err(|what| corrupt(what, "a sound version"))?;
    Ok(version)
}

fn check_format(path: &Path, version: &Version) -> Result<()> {
    let format = version.format;
    let unknown = format.features & !KNOWN_FEATURES;
    let what = if format.version != FORMAT_VERSION {
        format!("has format version {}; this program reads version {FORMAT_VERSION} only", format.version)
    } else if unknown != 0 {
        format!("uses features that this program does not know (bits {unknown:#x}): use a newer version")
    } else {
        return Ok(());
    };
    Err(Error::Format { path: path.to_owned(), what })
}

/// Creates manifest `number` with the whole version in its first group.
///
/// # Errors
/// `Halted` if the group could not be written: it is then unknown whether this manifest is in force. After any other error the
/// manifest does not exist.
fn write_new(files: &Files, number: u64, version: &mut Version, min_bytes: u64) -> Result<Writer> {
    version.format.version = FORMAT_VERSION;
    let mut bytes = Vec::new();
    // The size that is written into the first group does not change that group's length.
    edit::encode(&version.to_edits(), &mut bytes);
    let blank = Group {
        incarnation: 0,
        number: 0,
        start: Seq::ZERO,
        end: Seq::ZERO.plus(bytes.len()),
        durable: Seq::ZERO,
        step_bytes: STEP_BYTES,
    };
    let first_bytes = blank.sealed_bytes().expect("a version fits into memory") as u64;
    // Four times the first group, so that a replacement stays rare for a version of any size.
    version.format.manifest_bytes = (first_bytes * 4).max(min_bytes).next_multiple_of(STEP as u64);
    bytes.clear();
    edit::encode(&version.to_edits(), &mut bytes);
    let path = files.manifest_path(number);
    files.with_job_queue(|queue| {
        let manifest_bytes = version.format.manifest_bytes;
        let place = (&*path, FileKind::Manifest.label());
        let file = aio::file::create_zeroed(files.backend().as_ref(), queue, place, manifest_bytes)?;
        let mut writer = Writer { file, number, tried: number, offset: 0, end: Seq::ZERO, groups: 0 };
        match writer.write_group(files, queue, &bytes) {
            Ok(()) => Ok(writer),
            Err(error) if error.is_not_now() => {
                let _ = files.backend().remove(&path);
                Err(error.into())
            }
            Err(error) => Err(Error::Halted { cause: Arc::new(error.into()) }),
        }
    })
}

fn place(number: u64) -> Place {
    Place { store_id: 0, file_id: number, epoch: 1 }
}

#[cfg(test)]
#[path = "edit_log_tests.rs"]
mod tests;
