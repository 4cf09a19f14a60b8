//! Open: a straight line from a directory to a store, before any thread starts.
//!
//! 1. lock; 2. read the manifest; 3. open the segments; 4. read the log and the ring (nothing was changed so far: a
//!    refusal leaves everything as it was); 5. write what was replayed to segments, synced; 6. write a new manifest
//!    that begins a new life and forgets the old log; 7. remove what no manifest names.
//!
//! A crash before the end of step 6 leaves the old manifest in force and files that nobody names; a crash after it
//! leaves the new one. Doing it all again gives the same store, so a crash during recovery is like one before it.
//! Replayed records go to segments, not back to a log, because after a failed write the old log's blocks may be in the
//! device's cache only, and a life never goes on in a file of another.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aio::{Backend, Bug, Lock, planted};
use wal::{Host, Log, LogOptions, Ordered, Replayed};

use crate::base::error::{Error, Result};
use crate::base::events::Event;
use crate::base::key::Seq;
use crate::base::metrics::Counters;
use crate::base::options::{Background, Options};
use crate::base::sync::shared::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, RwLock};
use crate::compaction::output::{Output, open_run, write_run};
use crate::compaction::picker::{Layers, filter_bits};
use crate::compaction::retain::{Retain, Tombstones};
use crate::io::files::Files;
use crate::manifest::edit_log::{self, FIRST_NUMBER, Manifest};
use crate::manifest::version::{Edit, Life, RunMeta, Version};
use crate::memtable::{ArenaPool, Memtable};
use crate::recovery::lost_edit;
use crate::recovery::repair::LogDamage;
use crate::segment::{BlockCache, Opening, Segment, SegmentMeta};
use crate::tree::pins::Snapshots;
use crate::tree::run::Run;
use crate::tree::store::{Store, Wanted};
use crate::tree::superversion::Tree;
use crate::write::ops;

/// The keyspace that every store has.
pub(crate) const DEFAULT_KEYSPACE: &str = "default";

/// A store that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Arc<Store>,
    pub(crate) lock: Box<dyn Lock>,
    /// Where the log was cut, if it was damaged and a repair was asked for.
    pub(crate) damage: Option<LogDamage>,
}

/// Opens or creates the store in `root`.
pub(crate) fn open(backend: Arc<dyn Backend>, root: &Path, options: Options) -> Result<Opened> {
    let files = Arc::new(Files::new(backend, root, options.read_ahead_bytes()));
    let lock = enter(&files, options.create)?;
    let loaded = edit_log::load(&files)?;
    if loaded.is_none() && !options.create {
        return Err(no_store(root));
    }
    if loaded.is_some() {
        edit_log::secure_first(&files)?;
    }
    make_dirs(&files)?;
    let memory = Memory::new(&options);
    let mut version = loaded.clone().unwrap_or_else(|| first_version(&files));
    let mut replay = Replay::new(&memory);
    let mut replayed = None;
    if loaded.is_some() {
        replayed = Some(replay.read(&files, &version, options.repair)?);
    }
    let place = Place { files: &files, memory: &memory, options: &options };
    let trees = open_trees(&place, &version)?;
    version.next_file = number_above_all(&files)?.max(version.next_file);
    let (first_new, is_first) = (version.next_file, loaded.is_none());
    let begun = replay
        .write(&place, &mut version, &trees)
        .and_then(|()| begin_life(&files, &options, &mut version, replayed.as_ref()))
        .and_then(|()| new_manifest_number(&files, is_first))
        .and_then(|number| {
            Ok((number, Manifest::create(&files, number, version, options.manifest_bytes())?))
        });
    let (number, manifest) = begun.inspect_err(|error| discard(&files, first_new, error))?;
    remove_orphans(&files, &manifest, number)?;
    drop(replay.tables);
    let store = assemble(files, memory, options, manifest, trees)?;
    announce(&store, replayed.as_ref());
    Ok(Opened { store, lock, damage: replay.damage })
}

/// What is damaged in the log of the store in `root`, if anything is. Holds the store's lock meanwhile, and changes nothing
/// else.
pub(crate) fn find_damage(backend: Arc<dyn Backend>, root: &Path) -> Result<Option<LogDamage>> {
    let options = Options::default();
    let files = Arc::new(Files::new(backend, root, options.read_ahead_bytes()));
    let _lock = enter(&files, false)?;
    let Some(version) = edit_log::load(&files)? else { return Err(no_store(root)) };
    let mut replay = Replay::new(&Memory::new(&options));
    replay.read(&files, &version, true)?;
    Ok(replay.damage)
}

/// Removes what an open that failed has written, so that trying again on a full disk does not fill it further.
fn discard(files: &Files, first_new: u64, error: &Error) {
    // Then the new manifest may be on the disk, and what it names must stay.
    if matches!(error, Error::Halted { .. }) {
        return;
    }
    for (dir, prefix, suffix) in [(files.wal_dir(), "ring-", ""), (files.segments_dir(), "", ".seg")] {
        for name in files.backend().list(&dir).unwrap_or_default() {
            if Files::number(&name, prefix, suffix).is_some_and(|number| number >= first_new) {
                // Best effort: an orphan is removed by the next open that succeeds.
                let _ = files.backend().remove(&dir.join(&name));
            }
        }
    }
}

/// Makes the directory if asked to, and takes its lock; refuses a directory of something else untouched.
fn enter(files: &Files, create: bool) -> Result<Box<dyn Lock>> {
    let (backend, root) = (files.backend(), files.root());
    let mut is_store = false;
    match backend.stat(root)? {
        Some(stat) if !stat.is_dir => {
            return Err(Error::Format { path: root.to_owned(), what: "is not a directory".to_owned() });
        }
        Some(_) => {
            let mut names = backend.list(root)?;
            names.retain(|name| name != "lost+found");
            is_store = names.iter().any(|name| Files::number(name, "manifest-", "").is_some());
            // An open that was interrupted before the first manifest leaves these, the lock file first.
            if !is_store && !is_begun(files, &names)? {
                let what = "is not an Esker store, and not empty: nothing was written to it".to_owned();
                return Err(Error::Format { path: root.to_owned(), what });
            }
            if !is_store && !create {
                return Err(no_store(root));
            }
            if !is_store {
                // It may have been made by an open that ended before its name was durable.
                match sync_parent(files) {
                    // Whoever may not look there has been given the directory by somebody else.
                    Err(Error::Io { kind: std::io::ErrorKind::PermissionDenied, .. }) => {}
                    other => other?,
                }
            }
        }
        None if !create => return Err(no_store(root)),
        None => {
            backend.make_dir(root)?;
            sync_parent(files)?;
        }
    }
    let lock = backend.lock(&files.lock_path())?;
    if !is_store {
        // Before anything else is made: a power cut must not leave a part of a store that has no lock file to say whose
        // it is.
        backend.sync_dir(root)?;
    }
    Ok(lock)
}

/// Makes the name of the store's directory durable.
fn sync_parent(files: &Files) -> Result<()> {
    match files.root().parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(files.backend().sync_dir(Path::new("."))?),
        Some(parent) => Ok(files.backend().sync_dir(parent)?),
        None => Ok(()),
    }
}

/// Whether these are what an open leaves that was interrupted before the first manifest: the lock file first, as long
/// as a lock file is, then two directories with nothing in them but our own names.
fn is_begun(files: &Files, names: &[String]) -> Result<bool> {
    if names.is_empty() {
        return Ok(true);
    }
    let backend = files.backend();
    let lock = backend.stat(&files.lock_path())?;
    let mut ours = lock.is_some_and(|stat| !stat.is_dir && [0, 4096].contains(&stat.size_bytes));
    for name in names.iter().filter(|name| *name != "LOCK") {
        let dir = files.root().join(name);
        let is_ours = |name: &String| {
            [("ring-", ""), ("", ".log"), ("", ".seg")]
                .iter()
                .any(|(prefix, suffix)| Files::number(name, prefix, suffix).is_some())
        };
        ours = ours
            && (dir == files.wal_dir() || dir == files.segments_dir())
            && backend.stat(&dir)?.is_some_and(|stat| stat.is_dir)
            && backend.list(&dir)?.iter().all(is_ours);
    }
    Ok(ours)
}

fn no_store(root: &Path) -> Error {
    let what = "holds no Esker store: check the path, or let the open create one";
    Error::Format { path: root.to_owned(), what: what.to_owned() }
}

fn make_dirs(files: &Files) -> Result<()> {
    for dir in [files.wal_dir(), files.segments_dir()] {
        if files.backend().stat(&dir)?.is_none() {
            files.backend().make_dir(&dir)?;
        }
    }
    Ok(files.backend().sync_dir(files.root())?)
}

fn first_version(files: &Files) -> Version {
    let mut version = Version { next_file: 1, next_epoch: 1, next_keyspace: 1, ..Version::default() };
    version.life.store_id = files.backend().random();
    let edit = Edit::KeyspaceCreated { keyspace: 1, name: DEFAULT_KEYSPACE.to_owned() };
    version.apply(&edit).expect("an empty version takes a keyspace");
    version
}

type Trees = BTreeMap<u32, Arc<Tree>>;

/// Memory that all keyspaces share.
#[derive(Debug)]
struct Memory {
    cache: Arc<BlockCache>,
    pool: Arc<ArenaPool>,
}

impl Memory {
    fn new(options: &Options) -> Memory {
        Memory {
            cache: Arc::new(BlockCache::new(options.cache_bytes())),
            pool: Arc::new(ArenaPool::new(options.freeze_bytes(), options.memtables_bytes())),
        }
    }
}

/// Where and how this store keeps its files.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    files: &'a Arc<Files>,
    memory: &'a Memory,
    options: &'a Options,
}

impl<'a> Place<'a> {
    fn output(self, store_id: u64, keyspace: u32, layers: Layers) -> Output<'a> {
        Output {
            files: self.files,
            cache: &self.memory.cache,
            store_id,
            keyspace,
            segment_bytes: self.options.segment_bytes(),
            block_bytes: self.options.block_bytes(),
            compress: self.options.compress,
            filter_bits: filter_bits(layers),
            leaving_bytes: 0,
        }
    }
}

/// What the log holds beyond the segments, by keyspace.
#[derive(Debug)]
struct Replay {
    pool: Arc<ArenaPool>,
    tables: BTreeMap<u32, Arc<Memtable>>,
    end: Seq,
    /// Above the epochs of log files whose edits are lost; 0 if none are.
    next_epoch: u32,
    /// Where the log was cut, if it was.
    damage: Option<LogDamage>,
}

impl Replay {
    fn new(memory: &Memory) -> Replay {
        let (pool, tables) = (Arc::clone(&memory.pool), BTreeMap::new());
        Replay { pool, tables, end: Seq::default(), next_epoch: 0, damage: None }
    }

    /// Reads log and ring, or, for a repair, what stands before the first damage; changes nothing.
    fn read(&mut self, files: &Files, version: &Version, repair: bool) -> Result<Replayed> {
        let life = &version.life;
        if let Err(what) = version.check_log() {
            return Err(Error::corrupt(&files.ring_path(life.ring), 0, what, "a ring", life.ring_bytes));
        }
        let lost = lost_edit::find(files, version)?;
        let missing = lost.first().map(|file| lost_edit::error(files, file)).transpose()?;
        if let (Some(missing), false) = (&missing, repair) {
            return Err(missing.clone());
        }
        self.next_epoch = lost.last().map_or(0, |file| file.epoch + 1);
        let input = wal::ReplayInput {
            directory: files.wal_dir(),
            store_id: life.store_id,
            life: life.number,
            files: [&version.logs[..], &lost].concat(),
            file_bytes: life.log_file_bytes,
            from: version.horizon.max(life.start),
            life_start: life.start,
            ring_path: files.ring_path(life.ring),
            ring_bytes: to_usize(life.ring_bytes),
            ring_file_bytes: to_usize(version.ring_file_bytes),
        };
        let place = files.wal_dir();
        let (mut replayed, cut) = files.with_queue(|queue| {
            let backend = files.backend().as_ref();
            let mut visit =
                |seq: Seq, payload: &[u8]| self.take(&place, version, seq, payload).map_err(Error::into_wal);
            if repair {
                return Ok(wal::replay_to_damage(backend, queue, &input, &mut visit)?);
            }
            Ok((wal::replay(backend, queue, &input, &mut visit)?, None))
        })?;
        let at_end = replayed.end;
        let damage = match (missing, cut) {
            (Some(missing), cut) => Some((missing, cut.map_or(at_end, |cut| cut.acknowledged))),
            (None, cut) => cut.map(|cut| (cut.damage.into(), cut.acknowledged)),
        };
        if let Some((error, acknowledged)) = damage {
            // Positions never repeat: what segments hold from behind the cut must stay older than what comes.
            let flushed = version.keyspaces.values().map(|keyspace| keyspace.flushed);
            let next = flushed.fold(acknowledged, Seq::max);
            self.damage = Some(LogDamage::new(error, replayed.records, (at_end, acknowledged)));
            replayed.end = next;
        }
        self.end = replayed.end;
        Ok(replayed)
    }

    /// Applies one record, all of it or nothing.
    fn take(&mut self, place: &Path, version: &Version, seq: Seq, payload: &[u8]) -> Result<()> {
        for op in ops::ops(payload) {
            let op = op.map_err(|bad| {
                Error::corrupt(
                    place,
                    seq.get(),
                    bad.what,
                    "operations",
                    format!("byte {} of a record", bad.offset),
                )
            })?;
            if !version.keyspaces.contains_key(&op.keyspace) && !version.dropped.contains(&op.keyspace) {
                return Err(Error::corrupt(
                    place,
                    seq.get(),
                    "keyspace of an operation",
                    "a known one",
                    op.keyspace,
                ));
            }
        }
        let mut found: Vec<_> = ops::ops(payload).flatten().collect();
        if planted(Bug::BatchHalfReplayed) && found.len() > 1 {
            found.pop();
        }
        for op in found {
            // Segments hold what is below the flushed position; dropped keyspaces are skipped.
            if version.keyspaces.get(&op.keyspace).is_some_and(|keyspace| seq >= keyspace.flushed) {
                let new = || Arc::new(Memtable::in_pool(&self.pool, 0));
                let table = self.tables.entry(op.keyspace).or_insert_with(new);
                table.insert(op.key, seq, op.kind, op.value);
            }
        }
        Ok(())
    }

    /// Writes what was read to segments and adds them to the version and to the trees.
    fn write(&self, place: &Place<'_>, version: &mut Version, trees: &Trees) -> Result<()> {
        let next = AtomicU64::new(version.next_file);
        for (&keyspace, tree) in trees {
            let mut run = Vec::new();
            if let Some(table) = self.tables.get(&keyspace) {
                let runs = &tree.load().runs;
                let layers = Layers::before(table.len() as u64, runs.iter().map(Run::entries));
                let output = place.output(version.life.store_id, keyspace, layers);
                let number = || next.fetch_add(1, Ordering::Relaxed);
                let retain = Retain::new(Vec::new(), Tombstones::Keep);
                run = write_run(&output, &number, &mut table.cursor(), retain)?;
                tree.install_flushed(self.end, open_run(&output, &run)?);
            }
            apply(version, &Edit::Flushed { keyspace, to: self.end, run });
        }
        version.next_file = next.into_inner();
        // Else a crash before the orphans are removed would leave files that look lost again.
        version.next_epoch = version.next_epoch.max(self.next_epoch);
        Ok(())
    }
}

/// Ends the old life where its log ended and begins a new one; makes the new ring if the old one cannot be kept.
fn begin_life(
    files: &Files,
    options: &Options,
    version: &mut Version,
    replayed: Option<&Replayed>,
) -> Result<()> {
    let old = version.life.clone();
    let end = replayed.map_or(Seq::default(), |replayed| replayed.end);
    // A repair may be there because of the ring.
    let keeps_ring = old.number > 0 && old.ring_bytes == options.ring_bytes() && !options.repair;
    let (ring, ring_file_bytes) = if keeps_ring {
        (old.ring, version.ring_file_bytes)
    } else {
        (make_ring(files, options, version)?, options.ring_first_bytes())
    };
    let step = u32::from(!planted(Bug::LifeReused) || old.number == 0);
    let number =
        old.number.checked_add(step).ok_or_else(|| Error::invalid("this store was opened too often"))?;
    let life = Life {
        store_id: old.store_id,
        number,
        start: end,
        ring,
        ring_bytes: options.ring_bytes(),
        log_file_bytes: options.log_file_bytes(),
    };
    apply(version, &Edit::Life(life));
    apply(version, &Edit::RingGrown { file_bytes: ring_file_bytes });
    apply(version, &Edit::Horizon { at: end, retired: Vec::new() });
    version.dropped.clear();
    Ok(())
}

/// The number of the manifest to write. A first manifest that never became complete is removed and made again: only
/// number 1 may be incomplete without a complete one beside it.
fn new_manifest_number(files: &Files, is_new: bool) -> Result<u64> {
    let last = edit_log::numbers(files)?.last().copied();
    if is_new && last.is_some() {
        files.backend().remove(&files.manifest_path(FIRST_NUMBER))?;
        files.backend().sync_dir(files.root())?;
        return Ok(FIRST_NUMBER);
    }
    Ok(last.map_or(FIRST_NUMBER, |last| last + 1))
}

fn make_ring(files: &Files, options: &Options, version: &mut Version) -> Result<u64> {
    let number = version.next_file;
    version.next_file += 1;
    let path = files.ring_path(number);
    files.with_queue(|queue| {
        Ok(aio::file::create_zeroed(files.backend().as_ref(), queue, &path, options.ring_first_bytes())?)
    })?;
    Ok(number)
}

/// One more than every file number in use, orphans included.
fn number_above_all(files: &Files) -> Result<u64> {
    let mut highest = 0;
    for (dir, prefix, suffix) in
        [(files.wal_dir(), "ring-", ""), (files.wal_dir(), "", ".log"), (files.segments_dir(), "", ".seg")]
    {
        let names = files.backend().list(&dir)?;
        let numbers = names.iter().filter_map(|name| Files::number(name, prefix, suffix));
        highest = numbers.fold(highest, u64::max);
    }
    Ok(highest + 1)
}

fn open_trees(place: &Place<'_>, version: &Version) -> Result<Trees> {
    let mut trees = BTreeMap::new();
    for (&keyspace, state) in &version.keyspaces {
        let runs = state.runs.iter().map(|run| open_run_of(place, version, run)).collect::<Result<_>>()?;
        trees.insert(keyspace, Arc::new(Tree::new(keyspace, &state.name, &place.memory.pool, runs)));
    }
    Ok(trees)
}

fn open_run_of(place: &Place<'_>, version: &Version, run: &RunMeta) -> Result<Run> {
    let (files, cache) = (place.files, &place.memory.cache);
    let open = |meta: &SegmentMeta| {
        let origin = version.origin_of(meta.id);
        Segment::open(&Opening { files, cache, origin, leaving_bytes: 0 }, meta)
    };
    Ok(Run::new(run.iter().map(open).collect::<Result<_>>()?))
}

/// Removes files that the manifest does not name. The new manifest is durable, so nothing else can come back.
fn remove_orphans(files: &Files, manifest: &Manifest, number: u64) -> Result<()> {
    let version = manifest.version();
    let live_segments: Vec<u64> = version.segments().map(|segment| segment.id).collect();
    let ring = version.life.ring;
    let stale = [
        (files.root().to_owned(), "manifest-", "", vec![number]),
        (files.wal_dir(), "ring-", "", vec![ring]),
        (files.wal_dir(), "", ".log", Vec::new()),
        (files.segments_dir(), "", ".seg", live_segments),
    ];
    for (dir, prefix, suffix, live) in stale {
        let mut removed = false;
        for name in files.backend().list(&dir)? {
            let is_orphan =
                Files::number(&name, prefix, suffix).is_some_and(|number| !live.contains(&number));
            if is_orphan && !planted(Bug::OrphansAreKept) {
                files.backend().remove(&dir.join(&name))?;
                removed = true;
            }
        }
        if removed {
            files.backend().sync_dir(&dir)?;
        }
    }
    Ok(())
}

fn assemble(
    files: Arc<Files>,
    memory: Memory,
    options: Options,
    manifest: Manifest,
    trees: Trees,
) -> Result<Arc<Store>> {
    let manifest = Arc::new(manifest);
    let version = manifest.version();
    let life = version.life.clone();
    let log = LogOptions {
        directory: files.wal_dir(),
        store_id: life.store_id,
        life: life.number,
        start: life.start,
        ring_path: files.ring_path(life.ring),
        ring_bytes: to_usize(life.ring_bytes),
        ring_file_bytes: to_usize(version.ring_file_bytes),
        file_bytes: life.log_file_bytes,
        keep_files: log_files_kept(&options),
        drain_bytes: DRAIN_BYTES.min(life.ring_bytes / 2),
        drain_interval: options.drain_interval,
        sync_method: options.sync_method,
        background: match options.background {
            Background::Threads => wal::Background::Threads,
            Background::Manual => wal::Background::Manual,
        },
        spares: Vec::new(),
    };
    let host = Arc::clone(&manifest) as Arc<dyn Host>;
    let log = Log::open(Arc::clone(files.backend()), log, host)?;
    Ok(Arc::new(Store {
        visible: Ordered::new(life.start, to_usize(life.ring_bytes)),
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

/// With `Process`, power loss takes at most this much of the log (or what came in the drain interval).
const DRAIN_BYTES: u64 = 1 << 20;

fn announce(store: &Store, replayed: Option<&Replayed>) {
    if !store.manifest.is_direct() {
        store.tell(&Event::BufferedIo { directory: store.files.root().to_owned() });
    }
    let torn_tail = replayed.is_some_and(|replayed| replayed.verdict == wal::Verdict::TornTail);
    let replayed_records = replayed.map_or(0, |replayed| replayed.records);
    store.tell(&Event::Opened { replayed_records, torn_tail });
}

/// On a full disk a spare is of use only if a manifest that cannot be replaced still takes its activation; two of the last
/// edits that it takes are for the ends of keyspaces.
fn log_files_kept(options: &Options) -> usize {
    let most = edit_log::reserve_steps(options.manifest_bytes()).saturating_sub(1);
    to_usize(options.log_files_kept().min(most))
}

/// Sizes of what is mapped or counted in memory: they fit into the address space.
fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn apply(version: &mut Version, edit: &Edit) {
    version.apply(edit).expect("recovery makes edits that fit");
}
