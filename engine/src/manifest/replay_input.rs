//! The description of a version's log for a replay.

use wal::ReplayInput;

use crate::io::files::Files;
use crate::manifest::version::Version;

/// Describes log and ring of the version's life, from the horizon on: all entries below it are in segments.
pub(crate) fn replay_input(files: &Files, version: &Version) -> ReplayInput {
    let life = &version.life;
    ReplayInput {
        directory: files.wal_dir(),
        store_id: life.store_id,
        life: life.number,
        files: version.logs.clone(),
        file_bytes: life.log_file_bytes,
        from: version.horizon.max(life.start),
        life_start: life.start,
        ring_path: files.ring_path(life.ring),
        ring_bytes: to_usize(life.ring_bytes),
        ring_file_bytes: to_usize(version.ring_file_bytes),
    }
}

/// Converts a size of mapped or counted memory, which fits into the address space.
pub(crate) fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
