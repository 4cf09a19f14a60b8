//! The version with which a new incarnation begins: the old one with the log of its incarnation ended.

use aio::OpenMode;
use wal::Replayed;

use crate::base::error::{Error, Result};
use crate::base::key::Seq;
use crate::base::options::Options;
use crate::base::planted::{Bug, planted};
use crate::io::files::Files;
use crate::io::kinds::FileKind;
use crate::manifest::edit_log::{self, FIRST_NUMBER};
use crate::manifest::version::{Edit, Incarnation, Version};

/// The keyspace that every store has.
pub(crate) const DEFAULT_KEYSPACE: &str = "default";

/// The version of a new store.
pub(crate) fn first_version(files: &Files) -> Version {
    let mut version = Version { next_file: 1, next_epoch: 1, next_keyspace: 1, ..Version::default() };
    version.incarnation.store_id = files.backend().random();
    apply(&mut version, &Edit::KeyspaceCreated { keyspace: 1, name: DEFAULT_KEYSPACE.to_owned() });
    version
}

/// Ends the old incarnation where its log ended and begins a new one; makes the new ring if the old one cannot be kept.
pub(crate) fn begin_incarnation(
    files: &Files,
    options: &Options,
    version: &mut Version,
    replayed: Option<&Replayed>,
) -> Result<()> {
    let old = version.incarnation.clone();
    let end = replayed.map_or(Seq::default(), |replayed| replayed.end);
    let (ring, ring_file_bytes) = if keeps_ring(options, &old) {
        (old.ring, version.ring_file_bytes)
    } else {
        (make_ring(files, options, version)?, options.ring_first_bytes())
    };
    let step = u32::from(!planted(Bug::IncarnationReused) || old.number == 0);
    let number =
        old.number.checked_add(step).ok_or_else(|| Error::invalid("this store was opened too often"))?;
    let incarnation = Incarnation {
        store_id: old.store_id,
        number,
        start: end,
        ring,
        ring_bytes: options.ring_bytes(),
        log_file_bytes: options.log_file_bytes(),
    };
    apply(version, &Edit::Incarnation(incarnation));
    apply(version, &Edit::RingGrown { file_bytes: ring_file_bytes });
    apply(version, &Edit::Horizon { at: end, retired: Vec::new() });
    version.dropped.clear();
    Ok(())
}

/// Whether the ring of this incarnation serves the next one.
fn keeps_ring(options: &Options, old: &Incarnation) -> bool {
    // After a repair the ring is not kept: the damage may be in it.
    old.number > 0 && old.ring_bytes == options.ring_bytes() && !options.repair
}

/// Whether the new incarnation will be able to use the files that it takes over. Changes nothing.
///
/// # Errors
/// The ring cannot be opened for writing.
pub(crate) fn check_kept(files: &Files, options: &Options, version: &Version) -> Result<()> {
    let old = &version.incarnation;
    if keeps_ring(options, old) {
        files.open(&files.ring_path(old.ring), OpenMode::Write)?;
    }
    Ok(())
}

fn make_ring(files: &Files, options: &Options, version: &mut Version) -> Result<u64> {
    let number = version.next_file;
    version.next_file += 1;
    let path = files.path(FileKind::Ring, number);
    files.with_queue(|queue| {
        let place = (&*path, FileKind::Ring.label());
        Ok(aio::file::create_zeroed(files.backend().as_ref(), queue, place, options.ring_first_bytes())?)
    })?;
    Ok(number)
}

/// The number of the manifest to write.
pub(crate) fn new_manifest_number(files: &Files, is_new: bool) -> Result<u64> {
    let last = edit_log::numbers(files)?.last().copied();
    Ok(if is_new { FIRST_NUMBER } else { last.map_or(FIRST_NUMBER, |last| last + 1) })
}

/// Makes room for the first manifest of a new store. One that never became complete is removed and made again: only number
/// 1 may be incomplete without a complete one beside it.
pub(crate) fn remove_incomplete(files: &Files) -> Result<()> {
    if edit_log::numbers(files)?.contains(&FIRST_NUMBER) {
        files.backend().remove(&files.manifest_path(FIRST_NUMBER))?;
        files.backend().sync_dir(files.root())?;
    }
    Ok(())
}

/// Applies an edit that recovery made.
pub(crate) fn apply(version: &mut Version, edit: &Edit) {
    version.apply(edit).expect("recovery makes edits that fit");
}
