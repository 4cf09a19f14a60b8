//! Files that no manifest names: the file numbers that they use, and their removal.
//!
//! Invariant: a file is removed as an orphan only after the manifest that does not name it is durable.

use crate::base::error::{Error, Result};
use crate::base::planted::{Bug, planted};
use crate::io::files::Files;
use crate::io::kinds::FileKind;
use crate::manifest::version::Version;

/// One more than every file number in use, orphans included.
pub(crate) fn number_above_all(files: &Files) -> Result<u64> {
    let mut highest = 0;
    for kind in counted() {
        highest = files.numbers(kind)?.last().copied().unwrap_or(0).max(highest);
    }
    Ok(highest + 1)
}

/// Removes the files that a failed open has written, numbered from `first_new` on. Otherwise each retry on a full disk
/// would fill it further.
pub(crate) fn discard(files: &Files, first_new: u64, error: &Error) {
    // After a halt the new manifest may be on the disk. The files that it names must stay.
    if matches!(error, Error::Halted { .. }) {
        return;
    }
    for kind in counted() {
        for number in files.numbers(kind).unwrap_or_default() {
            if number >= first_new {
                // The next successful open removes a file that cannot be removed now.
                let _ = files.backend().remove(&files.path(kind, number));
            }
        }
    }
}

/// Removes files that the manifest with this number does not name. This manifest is durable, so no older one can come into
/// force again.
pub(crate) fn remove_orphans(files: &Files, version: &Version, manifest: u64) -> Result<()> {
    for kind in FileKind::ALL {
        let live = live(kind, version, manifest);
        let mut removed = false;
        for number in files.numbers(kind)? {
            if !live.contains(&number) && !planted(Bug::OrphansAreKept) {
                files.backend().remove(&files.path(kind, number))?;
                removed = true;
            }
        }
        if removed {
            files.backend().sync_dir(&files.folder(kind.folder()))?;
        }
    }
    Ok(())
}

/// The numbers of the files of one kind that stay.
fn live(kind: FileKind, version: &Version, manifest: u64) -> Vec<u64> {
    match kind {
        FileKind::Lock => vec![0],
        FileKind::Manifest => vec![manifest],
        FileKind::Ring => vec![version.incarnation.ring],
        FileKind::Log => version.logs.iter().map(|file| file.id).collect(),
        FileKind::Segment => version.segments().map(|segment| segment.id).collect(),
    }
}

/// The kinds whose numbers come from the one counter.
fn counted() -> impl Iterator<Item = FileKind> {
    FileKind::ALL.into_iter().filter(|kind| kind.is_counted())
}
