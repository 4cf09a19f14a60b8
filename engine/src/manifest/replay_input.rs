//! The description of a version's log for a replay.

use wal::ReplayInput;

use crate::io::files::Files;
use crate::manifest::version::Version;

/// Describes log and ring of the version's incarnation, from the horizon on: all entries below it are in segments.
pub(crate) fn replay_input(files: &Files, version: &Version) -> ReplayInput {
    let incarnation = &version.incarnation;
    ReplayInput {
        directory: files.wal_dir(),
        store_id: incarnation.store_id,
        incarnation: incarnation.number,
        files: version.logs.clone(),
        file_bytes: incarnation.log_file_bytes,
        from: version.horizon.max(incarnation.start),
        incarnation_start: incarnation.start,
        ring_path: files.ring_path(incarnation.ring),
        ring_bytes: to_usize(incarnation.ring_bytes),
        ring_file_bytes: to_usize(version.ring_file_bytes),
    }
}

/// Converts a size of mapped or counted memory, which fits into the address space.
pub(crate) fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
