//! Open: the steps from a directory to a store whose log is open. `api/builder.rs` then starts flushes and compactions.
//!
//! 1. `enter`: the directory, its lock, and that its entries are what their names say; 2. read the manifest, make folders;
//!    3. `replay`: read the log and the ring; 4. `load`: open the segments (so far only empty directories and the lock file
//!    were made, so a refused open changes no data); 5. `replay`: write the replayed records to segments, synced; 6. `begin`:
//!    begin a new incarnation in the version, which forgets the old log, and make its ring unless the old one serves;
//!    `Manifest::create` writes that version as a new manifest; 7. `assemble`: open the log, which starts the commit thread,
//!    and put the store together; 8. `orphans`: remove the files that the manifest does not name, but for the log files that
//!    the new log uses again.
//!
//! An open that fails in steps 5 to 7 takes back what it has written (`orphans::take_back`), the new manifest too. So the
//! tries of a service that restarts for ever add no files and begin no incarnations. What stays of a first open is the lock
//! file, which may be another process's by then, and empty directories. Step 8 does not fail an open. If the threads of
//! `api/builder.rs` cannot be started, the new incarnation stays, and the next open replaces it.
//!
//! After a crash before the end of step 6 the old manifest is in force, and there may be files that it does not name. After
//! a later crash the new manifest is in force. A repeated recovery gives the same store, so a crash during recovery has the
//! same effect as one before it. Replayed records go to segments and not to a log: after a failed write the blocks of the
//! old log may be in the device's cache only, and an incarnation never continues in a file of another one: it begins a new use
//! of it, from its start.

use std::path::Path;
use std::sync::Arc;

use aio::{Backend, Lock};
use wal::Replayed;

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::options::Options;
use crate::io::files::Files;
use crate::manifest::edit_log::{self, Manifest};
use crate::manifest::version::Version;
use crate::recovery::assemble::assemble;
use crate::recovery::begin::{
    begin_incarnation, check_kept, first_version, new_manifest_number, remove_incomplete,
};
use crate::recovery::enter::{check_entries, enter, make_folders, no_store};
use crate::recovery::load::{Loading, SharedMemory, open_trees};
use crate::recovery::orphans::{Begun, kept_logs, number_above_all, remove_orphans, take_back};
use crate::recovery::repair::LogDamage;
use crate::recovery::replay::Replay;
use crate::tree::store::{Store, Trees};
use crate::tree::writing::Writing;

/// The result of an open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Arc<Writing>,
    pub(crate) lock: Box<dyn Lock>,
    /// The cut in the log, if the log was damaged and a repair was requested.
    pub(crate) damage: Option<LogDamage>,
}

/// Opens or creates the store in `root`.
pub(crate) fn open(backend: Arc<dyn Backend>, root: &Path, options: Options) -> Result<Opened> {
    let files = Files::with_limits(
        backend,
        root,
        options.read_ahead_bytes(),
        (options.max_open_files, options.background_bytes_per_second),
    );
    let files = Arc::new(files);
    let lock = enter(&files, options.create)?;
    check_entries(&files)?;
    let loaded = edit_log::load(&files)?;
    if loaded.is_none() && !options.create {
        return Err(no_store(root));
    }
    if loaded.is_some() {
        edit_log::secure_first(&files)?;
    }
    make_folders(&files)?;
    let memory = SharedMemory::new(&options);
    let mut replay = Replay::new(&memory);
    let replayed = match &loaded {
        Some(version) => Some(replay.read(&files, version, options.repair)?),
        None => None,
    };
    let is_new = loaded.is_none();
    let version = loaded.unwrap_or_else(|| first_version(&files));
    let loading = Loading { files: &files, memory: &memory, options: &options };
    let trees = open_trees(&loading, &version)?;
    let step = Switch { loading, trees: &trees, replay: &replay, replayed: replayed.as_ref(), is_new };
    let (begun, manifest) = step.switch(version)?;
    let damage = replay.finish();
    // After a repair no log file is kept: the damage may be in it.
    let most = if options.repair { 0 } else { options.max_log_files() };
    let kept = kept_logs(&files, &manifest.version(), most);
    let assembled = assemble(Arc::clone(&files), memory, options, (manifest, kept.clone()), trees);
    let store = assembled.inspect_err(|_| take_back(&files, begun, true))?;
    let cleaned = remove_orphans(&files, &store.version(), begun.manifest, &kept);
    announce(&store, replayed.as_ref(), cleaned);
    Ok(Opened { store, lock, damage })
}

/// The steps that change the store: from the old manifest to the new one.
struct Switch<'a> {
    loading: Loading<'a>,
    trees: &'a Trees,
    replay: &'a Replay,
    replayed: Option<&'a Replayed>,
    /// The directory had no manifest.
    is_new: bool,
}

impl Switch<'_> {
    /// Writes the replayed records and the new manifest.
    fn switch(&self, mut version: Version) -> Result<(Begun, Manifest)> {
        let files = self.loading.files;
        check_kept(files, self.loading.options, &version)?;
        version.next_file = number_above_all(files)?.max(version.next_file);
        let begun =
            Begun { manifest: new_manifest_number(files, self.is_new)?, first_new: version.next_file };
        let written = self.write(version, begun.manifest);
        let is_named = |error: &Error| matches!(error, Error::Halted { .. });
        let manifest = written.inspect_err(|error| take_back(files, begun, is_named(error)))?;
        Ok((begun, manifest))
    }

    /// The new manifest.
    fn write(&self, mut version: Version, number: u64) -> Result<Manifest> {
        let (files, options) = (self.loading.files, self.loading.options);
        self.replay.write(&self.loading, &mut version, self.trees)?;
        begin_incarnation(files, options, &mut version, self.replayed)?;
        if self.is_new {
            remove_incomplete(files)?;
        }
        Manifest::create(files, number, version, options.manifest_bytes())
    }
}

fn announce(store: &Store, replayed: Option<&Replayed>, cleaned: Result<()>) {
    if let Err(error) = cleaned {
        store.tell(&Event::BackgroundError { error });
    }
    store.tell_fall_backs();
    let torn_tail = replayed.is_some_and(|replayed| replayed.verdict == wal::Verdict::TornTail);
    let replayed_records = replayed.map_or(0, |replayed| replayed.records);
    store.tell(&Event::Opened { replayed_records, torn_tail });
}
