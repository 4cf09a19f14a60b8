//! Log files that were used, and that the manifest does not know of: the proof that an edit of the manifest is lost.
//!
//! A manifest whose newest edit is lost whole looks like one that never had it. If that edit named a log file, an open that
//! trusted the manifest would skip acknowledged records in that file, and remove it as an orphan. But the file itself is the
//! proof: its sectors have an epoch that the manifest, as it is, has not handed out yet.
//!
//! Why no crash leaves such a store: [`Manifest::activate`](crate::manifest::edit_log::Manifest) returns an epoch after the edit
//! with it is synced, the log writes no sector of that epoch before, and every later manifest begins with the counter.
//! An activation that failed stops the log, or left nothing and is done again with the same epoch; either way no sector
//! was written. So if a power cut keeps any part of the file, the manifest keeps the edit. Orphans that a crash does leave
//! are spares that were never used (zeros, or shorter), and files of earlier uses and lives: epochs below the counter.
//!
//! Only files that are not named need a look: where one is named with an earlier use, its chain meets a sector of a later
//! epoch, and that is damage (see `wal::sector`).
//!
//! Invariant: nothing is changed, and at most one sector of each file is read.

use wal::{ActiveFile, MAX_EPOCH};

use crate::base::error::{Error, Result};
use crate::io::files::Files;
use crate::io::kinds::FileKind;
use crate::manifest::edit_log;
use crate::manifest::version::Version;

/// The log files whose activation the manifest has lost, in the order of use.
pub(crate) fn find(files: &Files, version: &Version) -> Result<Vec<ActiveFile>> {
    // A store that has come to the last epoch does not open: a sector that claims it is not ours.
    let unknown = version.next_epoch..MAX_EPOCH;
    let mut lost = Vec::new();
    for id in files.numbers(FileKind::Log)? {
        if version.logs.iter().any(|file| file.id == id) {
            continue;
        }
        let (backend, path) = (files.backend().as_ref(), files.path(FileKind::Log, id));
        let place = (version.life.store_id, id);
        let found = files.with_queue(|queue| Ok(wal::use_of_file(backend, queue, &path, place)?))?;
        lost.extend(found.filter(|file| unknown.contains(&file.epoch)));
    }
    lost.sort_unstable_by_key(|file| file.epoch);
    Ok(lost)
}

/// The error of an open: the manifest lacks the edit that activates this file.
pub(crate) fn error(files: &Files, lost: &ActiveFile) -> Result<Error> {
    let number = edit_log::numbers(files)?.last().copied().unwrap_or(edit_log::FIRST_NUMBER);
    let (path, expected) =
        (files.manifest_path(number), format!("one that activates log file {:06}, which was used", lost.id));
    Ok(Error::corrupt(&path, 0, "an edit is lost, which a repair may make good", expected, "none"))
}
