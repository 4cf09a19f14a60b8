//! Puts the parts of a store together, once its manifest is durable.

use std::sync::Arc;

use wal::{Host, Log, LogOptions, Ordered};

use crate::base::error::Result;
use crate::base::metrics::Counters;
use crate::base::options::{Background, Options};
use crate::base::sync::shared::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, RwLock};
use crate::io::files::Files;
use crate::manifest::edit_log::{self, Manifest};
use crate::manifest::replay_input::to_usize;
use crate::manifest::version::Version;
use crate::recovery::load::{SharedMemory, Trees};
use crate::tree::pins::Snapshots;
use crate::tree::store::{Store, Wanted};

/// With `Process`, power loss takes at most this much of the log (or what came in the drain interval).
const DRAIN_BYTES: u64 = 1 << 20;

/// Makes the store of these parts, without its threads.
pub(crate) fn assemble(
    files: Arc<Files>,
    memory: SharedMemory,
    options: Options,
    manifest: Manifest,
    trees: Trees,
) -> Result<Arc<Store>> {
    let manifest = Arc::new(manifest);
    let version = manifest.version();
    let life_start = version.life.start;
    let ring_bytes = to_usize(version.life.ring_bytes);
    let host = Arc::clone(&manifest) as Arc<dyn Host>;
    let log = Log::open(Arc::clone(files.backend()), log_options(&files, &options, &version), host)?;
    Ok(Arc::new(Store {
        visible: Ordered::new(life_start, ring_bytes),
        last_cut: AtomicU64::new(0),
        spare_asked: AtomicBool::new(false),
        halt_told: AtomicBool::new(false),
        files,
        cache: memory.cache,
        pool: memory.pool,
        options,
        manifest,
        log,
        trees: RwLock::new(trees),
        gate: RwLock::new(()),
        snapshots: Snapshots::default(),
        counters: Counters::default(),
        flushing: Mutex::new(()),
        compacting: Mutex::new(()),
        wanted: Mutex::new(Wanted::default()),
        held: AtomicBool::new(false),
        changed: Condvar::new(),
        active_bytes: AtomicU64::new(0),
        frozen_bytes: AtomicU64::new(0),
        most_runs: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
    }))
}

/// The log of the life that begins.
fn log_options(files: &Files, options: &Options, version: &Version) -> LogOptions {
    let life = &version.life;
    LogOptions {
        directory: files.wal_dir(),
        store_id: life.store_id,
        life: life.number,
        start: life.start,
        ring_path: files.ring_path(life.ring),
        ring_bytes: to_usize(life.ring_bytes),
        ring_file_bytes: to_usize(version.ring_file_bytes),
        file_bytes: life.log_file_bytes,
        keep_files: log_files_kept(options),
        drain_bytes: DRAIN_BYTES.min(life.ring_bytes / 2),
        drain_interval: options.drain_interval,
        sync_method: options.sync_method,
        background: match options.background {
            Background::Threads => wal::Background::Threads,
            Background::Manual => wal::Background::Manual,
        },
        spares: Vec::new(),
    }
}

/// On a full disk a spare is of use only if a manifest that cannot be replaced still takes its activation; two of the last
/// edits that it takes are for the ends of keyspaces.
fn log_files_kept(options: &Options) -> usize {
    let most = edit_log::reserve_steps(options.manifest_bytes()).saturating_sub(1);
    to_usize(options.log_files_kept().min(most))
}
