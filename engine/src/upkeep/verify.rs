//! Reading everything and checking every checksum and every rule between files.
//!
//! Order: the manifest, the files it names, the log, then every segment. Cost: one read of every byte of the store.
//!
//! Invariant: it changes nothing, and reported damage is damage on the device: no file is written while it is read.

use std::collections::BTreeSet;

use crate::base::error::{Error, Result};
use crate::io::kinds::FileKind;
use crate::manifest::replay_input::replay_input;
use crate::tree::store::Store;
use crate::tree::writing::Writing;

/// The counts of a successful check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Segments checked.
    pub segments: u64,
    /// Their blocks' bytes, as stored.
    pub segment_bytes: u64,
    /// Entries in them.
    pub entries: u64,
    /// Log files checked.
    pub log_files: u64,
    /// Records found in the log.
    pub log_records: u64,
}

/// Checks manifest, log and segments. Flushes and compactions wait, so that no file is replaced meanwhile; writers wait
/// while the log is read.
///
/// A store without a writing part checks segments only: it has no open log, and its manifest was checked when it was read.
pub(crate) fn verify(store: &Store, writing: Option<&Writing>) -> Result<VerifyReport> {
    let _no_job = writing.map(|writing| (writing.exclude_compactions(), writing.exclude_flushes()));
    store.check_open()?;
    let _held = store.files.removals().hold();
    let mut report = VerifyReport::default();
    if let Some(writing) = writing {
        writing.manifest.verify()?;
    }
    verify_names(store)?;
    if let Some(writing) = writing {
        verify_log(writing, &mut report)?;
    }
    verify_segments(store, &mut report)?;
    Ok(report)
}

/// Checks every byte of every segment.
fn verify_segments(store: &Store, report: &mut VerifyReport) -> Result<()> {
    for tree in store.all_trees() {
        for segment in tree.load().zones.segments() {
            // A close waits for this.
            store.check_open()?;
            report.segment_bytes += segment.verify()?;
            report.segments += 1;
            report.entries += segment.meta().entries;
        }
    }
    Ok(())
}

/// Checks that every live segment has a file. Files that no manifest names are no damage; the next open removes them.
fn verify_names(store: &Store) -> Result<()> {
    let found: BTreeSet<u64> = store.files.numbers(FileKind::Segment)?.into_iter().collect();
    for segment in store.version().segments() {
        if !found.contains(&segment.id) {
            let path = store.files.segment_path(segment.id);
            return Err(Error::corrupt(&path, 0, "segment file", "present", "missing"));
        }
    }
    Ok(())
}

/// Checks that the durable part of the log can be replayed.
fn verify_log(store: &Writing, report: &mut VerifyReport) -> Result<()> {
    // No group may be written while the files are read, since half of it would be found. Writers wait meanwhile. The log
    // may still write empty groups by itself: they contain no records.
    let _alone = store.hold_gate_alone();
    store.log.sync()?;
    let durable = store.log.durable();
    let version = store.version();
    let input = replay_input(&store.files, &version);
    let replayed = store.files.with_queue(|queue| {
        Ok(wal::replay(store.files.backend().as_ref(), queue, &input, &mut |_, _| Ok(()))?)
    })?;
    if replayed.end < durable {
        let dir = store.files.wal_dir();
        return Err(Error::corrupt(
            &dir,
            replayed.end.get(),
            "end of the log",
            durable.get(),
            replayed.end.get(),
        ));
    }
    report.log_files = version.logs.len() as u64;
    report.log_records = replayed.records;
    Ok(())
}
