//! Puts the parts of a store together, once its manifest is durable. Opens the log, which starts the commit thread.

use std::sync::Arc;

use wal::{Host, KeptFiles, Log, LogOptions, Watermark};

use crate::base::error::Result;
use crate::base::options::{Background, Options};
use crate::io::files::Files;
use crate::manifest::edit_log::{self, Manifest};
use crate::manifest::replay_input::to_usize;
use crate::manifest::version::Version;
use crate::recovery::load::SharedMemory;
use crate::tree::store::{Store, StoreParts, Trees};
use crate::tree::writing::Writing;

/// With `Process`, power loss takes at most this much of the log (or the records of one drain interval).
const DRAIN_BYTES: u64 = 1 << 20;

/// Makes the store of these parts, without the threads of flushes and compactions. `kept`: log files to use again.
pub(crate) fn assemble(
    files: Arc<Files>,
    memory: SharedMemory,
    options: Options,
    (manifest, kept): (Manifest, KeptFiles),
    trees: Trees,
) -> Result<Arc<Writing>> {
    let manifest = Arc::new(manifest);
    let version = manifest.version();
    let incarnation_start = version.incarnation.start;
    let ring_bytes = to_usize(version.incarnation.ring_bytes);
    let host = Arc::clone(&manifest) as Arc<dyn Host>;
    let log_options = LogOptions { kept, ..log_options(&files, &options, &version) };
    let log = Log::open(Arc::clone(files.backend()), log_options, host)?;
    let store = Store::new(StoreParts {
        files,
        cache: memory.cache,
        options,
        version: manifest.current(),
        is_direct: manifest.is_direct(),
        trees,
        visible: Watermark::new(incarnation_start, ring_bytes),
    });
    Ok(Arc::new(Writing::new(Arc::new(store), manifest, log, memory.pool)))
}

/// The log of the incarnation that begins.
fn log_options(files: &Files, options: &Options, version: &Version) -> LogOptions {
    let incarnation = &version.incarnation;
    LogOptions {
        directory: files.wal_dir(),
        store_id: incarnation.store_id,
        incarnation: incarnation.number,
        start: incarnation.start,
        ring_path: files.ring_path(incarnation.ring),
        ring_bytes: to_usize(incarnation.ring_bytes),
        ring_file_bytes: to_usize(version.ring_file_bytes),
        file_bytes: incarnation.log_file_bytes,
        max_files: to_usize(options.max_log_files()),
        keep_files: to_usize(log_files_kept(options)),
        kept: KeptFiles::default(),
        drain_bytes: DRAIN_BYTES.min(incarnation.ring_bytes / 2),
        drain_interval: options.drain_interval,
        sync_method: options.sync_method,
        background: match options.background {
            Background::Threads => wal::Background::Threads,
            Background::Manual => wal::Background::Manual,
        },
    }
}

/// On a full disk a spare is of use only if a manifest that cannot be replaced still takes its activation. Two of the last
/// edits that it takes are for the ends of keyspaces; the current file, which is counted here, needs no activation.
fn log_files_kept(options: &Options) -> u64 {
    let most = edit_log::reserve_steps(options.manifest_bytes()).saturating_sub(1);
    options.max_log_files().min(most)
}
