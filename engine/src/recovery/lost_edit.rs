//! Log files that were used but are not in the manifest: the proof that an edit of the manifest is lost, or that files have
//! changed their names.
//!
//! A manifest that has lost its whole newest edit looks like one that never had it. If that edit named a log file, an open
//! that trusted the manifest would skip acknowledged records in the file and remove it as an orphan. The file itself proves
//! the loss: its sectors have an epoch that the manifest has not handed out yet.
//!
//! No crash leaves such a store. [`Manifest::activate`](crate::manifest::edit_log::Manifest) returns an epoch after its edit
//! is synced, the log writes no sector of that epoch earlier, and every later manifest begins with the counter. A failed
//! activation stops the log, or has no effect and is repeated with the same epoch. In both cases no sector was written. So
//! if a power cut keeps any part of the file, the manifest keeps the edit. A crash can leave two other kinds of orphans:
//! spares that were never used (zeros, or shorter), and files of earlier uses and incarnations, with epochs below the
//! counter.
//!
//! Only files that the manifest does not name are examined. If a file is named with an earlier use, its chain meets a
//! sector of a later epoch, and that is damage (see `wal::sector`).
//!
//! Invariant: no file is changed, and only the first sector of each file is read.

use wal::{ActiveFile, LogFileId, MAX_EPOCH};

use crate::base::error::{Error, LOST_EDIT, Result};
use crate::io::files::Files;
use crate::io::kinds::FileKind;
use crate::manifest::edit_log;
use crate::manifest::version::Version;

/// The log files whose activation the manifest has lost, in the order of use.
pub(crate) fn find(files: &Files, version: &Version) -> Result<Vec<ActiveFile>> {
    // A store that has used up the epochs does not open, so no store has written a sector with the last one.
    let unknown = version.next_epoch..MAX_EPOCH;
    let mut lost = Vec::new();
    for id in files.numbers(FileKind::Log)? {
        if version.logs.iter().any(|file| file.id == id) {
            continue;
        }
        let (backend, path) = (files.backend().as_ref(), files.path(FileKind::Log, id));
        let id = LogFileId { store_id: version.incarnation.store_id, file_id: id };
        let found = files.with_queue(|queue| Ok(wal::use_of_file(backend, queue, &path, id)?))?;
        lost.extend(found.filter(|file| unknown.contains(&file.epoch)));
    }
    lost.sort_unstable_by_key(|file| file.epoch);
    Ok(lost)
}

/// The error of a log file whose groups are in another file, which the manifest does not name. The named one may be a new file
/// then, without a group, and would look like one that was never written to.
pub(crate) fn stray(files: &Files, version: &Version) -> Result<Option<Error>> {
    for id in files.numbers(FileKind::Log)? {
        if version.logs.iter().any(|file| file.id == id) {
            continue;
        }
        let (backend, path) = (files.backend().as_ref(), files.path(FileKind::Log, id));
        let named = (version.incarnation.store_id, version.logs.as_slice());
        if let Some(file) = files.with_queue(|queue| Ok(wal::stray_group(backend, queue, &path, named)?))? {
            let (own, other) = (files.path(FileKind::Log, file.id), path.display());
            let what = "the groups of this log file are in another one";
            return Ok(Some(Error::corrupt(&own, 0, what, "them here", other)));
        }
    }
    Ok(None)
}

/// The error of an open: the manifest lacks the edit that activates this file.
pub(crate) fn error(files: &Files, lost: &ActiveFile) -> Result<Error> {
    let number = edit_log::numbers(files)?.last().copied().unwrap_or(edit_log::FIRST_NUMBER);
    let (path, expected) =
        (files.manifest_path(number), format!("one that activates log file {:06}, which was used", lost.id));
    Ok(Error::corrupt(&path, 0, LOST_EDIT, expected, "none"))
}
