//! Log files that do not fit the manifest: used but not named by it, the proof that an edit of the manifest is lost; or under
//! each other's names.
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
//! Only files that the manifest does not name can prove a lost edit. If a file is named with an earlier use, its chain meets
//! a sector of a later epoch, and that is damage (see `wal::sector`).
//!
//! No crash moves a group to another file, since it is sealed for its own. But a person may exchange, rename or copy files. If
//! the groups of a named file are only in another one, no group is lost, but an open and a repair would remove that file. So
//! both refuse. A copy beside the file itself holds nothing that is needed, and is an orphan as any other.
//!
//! Invariant: no file is changed, and only the first sector of each file is read.

use wal::{ActiveFile, Front, MAX_EPOCH};

use crate::base::error::{Error, LOST_EDIT, NAMES_EXCHANGED, Result};
use crate::io::files::Files;
use crate::io::kinds::FileKind;
use crate::manifest::edit_log;
use crate::manifest::version::Version;

/// The front of each log file in the directory, by its number.
pub(crate) fn fronts(files: &Files) -> Result<Vec<(u64, Front)>> {
    let read = |id: u64| {
        let (backend, path) = (files.backend().as_ref(), files.path(FileKind::Log, id));
        files.with_queue(|queue| Ok((id, Front::read(backend, queue, &path)?)))
    };
    files.numbers(FileKind::Log)?.into_iter().map(read).collect()
}

/// The log files whose activation the manifest has lost, in the order of use.
pub(crate) fn find(fronts: &[(u64, Front)], version: &Version) -> Vec<ActiveFile> {
    let store_id = version.incarnation.store_id;
    // A store that has used up the epochs does not open, so no store has written a sector with the last one.
    let unknown = version.next_epoch..MAX_EPOCH;
    let unnamed = fronts.iter().filter(|(id, _)| version.logs.iter().all(|file| file.id != *id));
    let used = unnamed.filter_map(|(id, front)| front.newest_use(store_id, *id));
    let mut lost: Vec<_> = used.filter(|file| unknown.contains(&file.epoch)).collect();
    lost.sort_unstable_by_key(|file| file.epoch);
    lost
}

/// Refuses a log file whose groups are in another file alone. It may be a new file itself then, without a group, and would
/// look like one that was never written to.
///
/// A file with a damaged sector is no such file: its groups may go on behind it, and a copy that lies beside it may be older.
pub(crate) fn check_names(files: &Files, fronts: &[(u64, Front)], version: &Version) -> Result<()> {
    let store_id = version.incarnation.store_id;
    let is_of_any = |front: &Front| fronts.iter().any(|(id, _)| front.newest_use(store_id, *id).is_some());
    for file in &version.logs {
        let own = fronts.iter().find(|(id, _)| *id == file.id).map(|(_, front)| front);
        let is_damaged = |front: &Front| front.is_damaged(store_id, file) && !is_of_any(front);
        if own.is_some_and(|front| front.is_of(store_id, file) || is_damaged(front)) {
            continue;
        }
        if let Some((other, _)) = fronts.iter().find(|(_, front)| front.is_of(store_id, file)) {
            let [own, other] = [file.id, *other].map(|id| files.path(FileKind::Log, id));
            return Err(Error::corrupt(&own, 0, NAMES_EXCHANGED, "them here", other.display()));
        }
    }
    Ok(())
}

/// The error of an open: the manifest lacks the edit that activates this file.
pub(crate) fn error(files: &Files, lost: &ActiveFile) -> Result<Error> {
    let number = edit_log::numbers(files)?.last().copied().unwrap_or(edit_log::FIRST_NUMBER);
    let (path, expected) =
        (files.manifest_path(number), format!("one that activates log file {:06}, which was used", lost.id));
    Ok(Error::corrupt(&path, 0, LOST_EDIT, expected, "none"))
}
