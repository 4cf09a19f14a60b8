//! Open: the steps from a directory to a store whose log is open. `api/builder.rs` then starts flushes and compactions.
//!
//! 1. `enter`: the directory and its lock; 2. read the manifest, make folders; 3. `replay`: read the log and the ring; 4. `load`: open the
//!    segments (so far only empty directories and the lock file were made, so a refused open changes no data); 5. `replay`:
//!    write the replayed records to segments, synced; 6. `begin`: begin a new incarnation in the version, which forgets the
//!    old log, and make its ring unless the old one serves; `Manifest::create` writes that version as a new manifest; 7. `orphans`: remove the files
//!    that no manifest names; 8. `assemble`: open the log, which starts the commit thread, and put the store together.
//!
//! After a crash before the end of step 6 the old manifest is in force, and there may be files that it does not name. After
//! a later crash the new manifest is in force. A repeated recovery gives the same store, so a crash during recovery has the
//! same effect as one before it. Replayed records go to segments and not to a log: after a failed write the blocks of the
//! old log may be in the device's cache only, and an incarnation never continues in a file of another incarnation.

use std::path::Path;
use std::sync::Arc;

use aio::{Backend, Lock};
use wal::Replayed;

use crate::base::error::Result;
use crate::base::events::Event;
use crate::base::options::Options;
use crate::io::files::Files;
use crate::manifest::edit_log::{self, Manifest};
use crate::manifest::version::Version;
use crate::recovery::assemble::assemble;
use crate::recovery::begin::{begin_incarnation, first_version, new_manifest_number};
use crate::recovery::enter::{enter, make_folders, no_store};
use crate::recovery::load::{Loading, SharedMemory, open_trees};
use crate::recovery::orphans::{discard, number_above_all, remove_orphans};
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
    let files = Files::new(backend, root, options.read_ahead_bytes()).with_most_open(options.max_open_files);
    let files = Arc::new(files);
    let lock = enter(&files, options.create)?;
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
    let manifest = step.switch(version)?;
    let damage = replay.finish();
    let store = assemble(files, memory, options, manifest, trees)?;
    announce(&store, replayed.as_ref());
    Ok(Opened { store, lock, damage })
}

/// The damage in the log of the store in `root`, if there is any. Holds the store's lock meanwhile, and changes nothing
/// else.
pub(crate) fn find_damage(backend: Arc<dyn Backend>, root: &Path) -> Result<Option<LogDamage>> {
    let options = Options::default();
    let files = Arc::new(Files::new(backend, root, options.read_ahead_bytes()));
    let _lock = enter(&files, false)?;
    let Some(version) = edit_log::load(&files)? else { return Err(no_store(root)) };
    let mut replay = Replay::new(&SharedMemory::new(&options));
    replay.read(&files, &version, true)?;
    Ok(replay.finish())
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
    /// Writes the replayed records and the new manifest, and removes the files that it does not name.
    fn switch(&self, mut version: Version) -> Result<Manifest> {
        let files = self.loading.files;
        version.next_file = number_above_all(files)?.max(version.next_file);
        let first_new = version.next_file;
        let (number, manifest) = self.write(version).inspect_err(|error| discard(files, first_new, error))?;
        remove_orphans(files, &manifest.version(), number)?;
        Ok(manifest)
    }

    /// The new manifest, and its number.
    fn write(&self, mut version: Version) -> Result<(u64, Manifest)> {
        let (files, options) = (self.loading.files, self.loading.options);
        self.replay.write(&self.loading, &mut version, self.trees)?;
        begin_incarnation(files, options, &mut version, self.replayed)?;
        let number = new_manifest_number(files, self.is_new)?;
        Ok((number, Manifest::create(files, number, version, options.manifest_bytes())?))
    }
}

fn announce(store: &Store, replayed: Option<&Replayed>) {
    if !store.is_direct() {
        store.tell(&Event::BufferedIo { directory: store.files.root().to_owned() });
    }
    let torn_tail = replayed.is_some_and(|replayed| replayed.verdict == wal::Verdict::TornTail);
    let replayed_records = replayed.map_or(0, |replayed| replayed.records);
    store.tell(&Event::Opened { replayed_records, torn_tail });
}
