//! Files that no manifest names: the file numbers that they use, their removal, and the log files that are used again.
//!
//! Invariant: a file is removed as an orphan only after the manifest that does not name it is durable, and the store is
//! open. A log file is kept for the new incarnation only after that, too: until then the old manifest may name it.

use wal::KeptFiles;

use crate::base::error::Result;
use crate::base::planted::{Bug, planted};
use crate::io::files::Files;
use crate::io::kinds::FileKind;
use crate::manifest::replay_input::to_usize;
use crate::manifest::version::Version;

/// One more than every file number in use, orphans included.
pub(crate) fn number_above_all(files: &Files) -> Result<u64> {
    let mut highest = 0;
    for kind in counted() {
        highest = files.numbers(kind)?.last().copied().unwrap_or(0).max(highest);
    }
    Ok(highest + 1)
}

/// The files of an incarnation that an open is about to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// Its manifest.
    pub(crate) manifest: u64,
    /// The first number of its other files.
    pub(crate) first_new: u64,
}

/// Removes the files that a failed open has written, so that no number of tries adds to the directory. `is_named`: the new
/// manifest may be on the disk. Then it goes first and durably, and only then the files that it names: until the orphans
/// are removed, the manifest before it and all its files are there. Nothing was written for the new incarnation yet, so
/// another open may begin one with the same number.
pub(crate) fn take_back(files: &Files, begun: Begun, is_named: bool) {
    if is_named && withdraw(files, begun.manifest).is_err() {
        return;
    }
    for kind in counted() {
        for number in files.numbers(kind).unwrap_or_default() {
            if number >= begun.first_new {
                // The next successful open removes a file that cannot be removed now.
                let _ = files.backend().remove(&files.path(kind, number));
            }
        }
    }
}

/// Takes the manifest back out of force.
fn withdraw(files: &Files, manifest: u64) -> Result<()> {
    files.backend().remove(&files.manifest_path(manifest))?;
    Ok(files.backend().sync_dir(files.root())?)
}

/// The log files of earlier incarnations that the new one, whose version is durable, may use again: at most `most`, and only
/// of its size. The log looks at each before it uses it.
pub(crate) fn kept_logs(files: &Files, version: &Version, most: u64) -> KeptFiles {
    let is_whole = |id: &u64| {
        let stat = files.backend().stat(&files.path(FileKind::Log, *id));
        stat.is_ok_and(|stat| stat.is_some_and(|stat| stat.size_bytes == version.incarnation.log_file_bytes))
    };
    let numbers = files.numbers(FileKind::Log).unwrap_or_default();
    let ids = numbers.into_iter().filter(is_whole).take(to_usize(most)).collect();
    KeptFiles { ids, next_epoch: version.next_epoch }
}

/// Removes files that the manifest with this number does not name, but for `kept` log files. This manifest is durable, so no
/// older one can come into force again.
///
/// # Errors
/// The first one; the other files were removed all the same. It is no reason to fail the open: a file that cannot be removed
/// does no harm, and at the next try it is as before.
pub(crate) fn remove_orphans(
    files: &Files,
    version: &Version,
    manifest: u64,
    kept: &KeptFiles,
) -> Result<()> {
    let mut outcome = Ok(());
    for kind in FileKind::ALL {
        let mut stay = live(kind, version, manifest);
        if kind == FileKind::Log {
            stay.extend(&kept.ids);
        }
        outcome = outcome.and(remove_orphans_of(files, kind, &stay));
    }
    outcome
}

fn remove_orphans_of(files: &Files, kind: FileKind, live: &[u64]) -> Result<()> {
    let mut outcome = Ok(());
    let mut removed = false;
    for number in files.numbers(kind)? {
        if !live.contains(&number) && !planted(Bug::OrphansAreKept) {
            let result = files.backend().remove(&files.path(kind, number));
            removed |= result.is_ok();
            outcome = outcome.and(result);
        }
    }
    if removed {
        outcome = outcome.and(files.backend().sync_dir(&files.folder(kind.folder())));
    }
    Ok(outcome?)
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
