//! Looks for damage in a store that is not open, in its log and in each of its segments.
//!
//! Invariant: it holds the store's lock meanwhile, and changes nothing else.

use std::path::Path;
use std::sync::Arc;

use aio::Backend;

use crate::base::error::{Error, Result};
use crate::base::options::Options;
use crate::io::files::Files;
use crate::manifest::edit_log;
use crate::manifest::version::Version;
use crate::recovery::enter::{check_entries, enter, no_store};
use crate::recovery::load::SharedMemory;
use crate::recovery::repair::Damage;
use crate::recovery::replay::Replay;
use crate::segment::{Opening, Segment, SegmentMeta};

/// The damage in the log and the segments of the store in `root`. Reads every byte of them.
pub(crate) fn find_damage(backend: Arc<dyn Backend>, root: &Path, options: &Options) -> Result<Damage> {
    let files = Arc::new(Files::new(backend, root, options.read_ahead_bytes()));
    let _lock = enter(&files, false)?;
    check_entries(&files)?;
    let Some(version) = edit_log::load(&files)? else { return Err(no_store(root)) };
    let memory = SharedMemory::new(options);
    let mut replay = Replay::new(&memory);
    let torn_tail = replay.read(&files, &version, true)?.verdict == wal::Verdict::TornTail;
    let log = replay.finish();
    let segments = damaged_segments(&files, &version, &memory)?;
    Ok(Damage { torn_tail: torn_tail && log.is_none(), log, segments })
}

/// The first damage of each segment that has some.
fn damaged_segments(files: &Arc<Files>, version: &Version, memory: &SharedMemory) -> Result<Vec<Error>> {
    let mut damaged = Vec::new();
    for meta in version.segments() {
        match verify(files, version, memory, meta) {
            Ok(()) => {}
            Err(error @ Error::Corrupt { .. }) => damaged.push(error),
            Err(other) => return Err(other),
        }
    }
    Ok(damaged)
}

fn verify(files: &Arc<Files>, version: &Version, memory: &SharedMemory, meta: &SegmentMeta) -> Result<()> {
    let opening =
        Opening { files, cache: &memory.cache, origin: version.origin_of(meta.id), leaving_bytes: 0 };
    Segment::open(&opening, meta)?.verify().map(drop)
}
