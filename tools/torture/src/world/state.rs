//! A store on a simulated machine (or on the real one) beside its model. It runs operations on both, compares them, and
//! records the acknowledged writes.
//!
//! Invariants: `acks` is updated before each call into the store and right after it, so that an observer of the disk during
//! the call knows the promises of that moment. An error of the store is not a failure of the world: the caller gets it, and
//! knows whether one was due.

use std::path::PathBuf;
use std::sync::Arc;

use aio::sim::{DiskImage, EventKind};
use aio::{Buf, SECTOR_BYTES, SimBackend};
use esker::testing::{Background, DbExt};
use esker::{Db, Error, Keyspace, Seq};
use parking_lot::Mutex;

use crate::check::compare;
use crate::config::{CONFIGS, Config};
use crate::futures::ColdGets;
use crate::held::Held;
use crate::model::{Acks, Bounds, Model, Prefix, State, Table};
use crate::report::{Check, Failure};
use crate::workload::{CrashKind, Op, SLOTS};

/// The disk before one event, and the states that it may recover to.
#[derive(Clone, Debug)]
pub(crate) struct CrashPoint {
    pub(crate) image: DiskImage,
    pub(crate) acks: Acks,
    /// The event that did not happen: its index and kind; `None` at the end of an incarnation.
    pub(crate) event: Option<(u64, EventKind, String)>,
}

/// Where crash points go while the store runs.
pub(crate) type Points = Arc<Mutex<Vec<CrashPoint>>>;

/// The result of an operation.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It happened, and every answer was right.
    Done,
    /// It was skipped: its keyspace does not exist, or nothing is held.
    Skipped,
    /// The store gave an error that no rule of the model asks for.
    Refused(Error),
}

/// The store, its model and its machine.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sim: SimBackend,
    /// The directory of the store on the real machine; the simulated one is idle then.
    pub(super) real: Option<(PathBuf, Background)>,
    pub(crate) config: &'static Config,
    pub(crate) model: Model,
    pub(super) acks: Arc<Mutex<Acks>>,
    pub(super) db: Option<Db>,
    pub(super) handles: [Option<Keyspace>; SLOTS.len()],
    /// Handles to dropped keyspaces.
    pub(super) stale: [Option<Keyspace>; SLOTS.len()],
    pub(crate) held: Held,
    pub(super) cold: Vec<ColdGets>,
    /// The store halted while it created or dropped (`false`) a keyspace: after the next open that may have happened.
    pub(super) in_doubt: Option<(&'static str, bool)>,
    pub(super) last_seq: Option<Seq>,
    /// Records that the log has taken since the store was opened.
    pub(super) records: u64,
    pub(super) points: Option<Points>,
}

impl World {
    /// A machine with nothing on it, whose disk has small or large physical blocks, and zeroes or not. [`World::open`] makes the store.
    pub(crate) fn new(seed: u64, config: usize) -> World {
        let sim = SimBackend::new(seed);
        sim.set_physical_block_bytes(if seed.is_multiple_of(2) { SECTOR_BYTES } else { Buf::ALIGN });
        sim.set_zeroes_ranges(seed & 2 == 0);
        World {
            sim,
            real: None,
            config: &CONFIGS[config],
            model: Model::new(),
            acks: Arc::default(),
            db: None,
            handles: Default::default(),
            stale: Default::default(),
            held: Held::default(),
            cold: Vec::new(),
            in_doubt: None,
            last_seq: None,
            records: 0,
            points: None,
        }
    }

    /// The same, for a store in a directory of the real machine.
    pub(crate) fn in_directory(directory: PathBuf, background: Background, config: usize) -> World {
        World { real: Some((directory, background)), ..World::new(0, config) }
    }

    /// Collects the disk before every event from now on, on this machine and on later ones.
    pub(crate) fn watch(&mut self, points: &Points) {
        self.points = Some(Arc::clone(points));
        self.observe();
    }

    pub(super) fn observe(&self) {
        let Some(points) = self.points.clone() else { return };
        let acks = Arc::clone(&self.acks);
        self.sim.on_event(move |event, image| {
            let path = event.path.display().to_string();
            points.lock().push(CrashPoint {
                image: image.clone(),
                acks: *acks.lock(),
                event: Some((event.index, event.kind, path)),
            });
        });
    }

    /// The writes that were acknowledged and submitted so far.
    pub(crate) fn acks(&self) -> Acks {
        *self.acks.lock()
    }

    /// Sets the states that the disk may have, before an open after a crash.
    pub(crate) fn set_acks(&mut self, acks: Acks) {
        *self.acks.lock() = acks;
    }

    /// Opens the closed store, and finds out which of the allowed prefixes it holds. Does not change the model: see
    /// [`World::settle`].
    ///
    /// # Errors
    /// The store did not open, or it holds another state.
    pub(crate) fn open(&mut self, bounds: &Bounds) -> Check<Prefix> {
        let struck = self.sim.faults_struck();
        let opened = match &self.real {
            Some((directory, background)) => self.config.open_in(directory, *background),
            None => self.config.open(&self.sim),
        };
        let db = opened.map_err(|error| Failure::from(error).at("open"))?;
        // A file that cannot be removed stays until the next open.
        if self.real.is_none() && self.sim.faults_struck() == struck {
            check_files(&self.sim, &db)?;
        }
        self.start_cold(&db)?;
        let found = compare(&db, &self.model, bounds)?;
        self.db = Some(db);
        self.records = 0;
        Ok(found)
    }

    /// Cuts the model to the prefix that an open has found, which is durable from then on.
    ///
    /// # Errors
    /// A keyspace that is listed cannot be opened.
    pub(crate) fn settle(&mut self, found: Prefix) -> Check {
        self.model.truncate(found);
        *self.acks.lock() = Acks { process: found, power: found, submitted: found };
        self.in_doubt = None;
        self.last_seq = None;
        for (slot, name) in SLOTS.iter().enumerate() {
            self.stale[slot] = None;
            let exists = self.model.newest_names().contains_key(name);
            self.handles[slot] = if exists { Some(self.db()?.keyspace(name)?) } else { None };
        }
        self.settle_cold();
        Ok(())
    }

    /// The store.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) fn db(&self) -> Check<&Db> {
        self.db.as_ref().ok_or_else(|| Failure::new("the store is not open"))
    }

    /// Ends the machine and drops all handles. Returns the remaining disk, and its allowed states.
    pub(crate) fn crash(&mut self, kind: CrashKind, seed: u64) -> (DiskImage, Bounds) {
        self.sim.crash();
        self.sim.stop_observing();
        self.held.machine_crashed().expect("every future ends after a crash");
        self.let_go();
        let (disk, acks) = (self.sim.snapshot(), self.acks());
        match kind {
            CrashKind::Process => (disk.process_crash(seed), acks.after_process_crash()),
            CrashKind::Power => (disk.power_cut_random(seed), acks.after_power_cut()),
            CrashKind::PowerNone => (disk.power_cut_none(), acks.after_power_cut()),
        }
    }

    /// Whether the store has threads of its own.
    pub(super) fn has_threads(&self) -> bool {
        matches!(self.real, Some((_, Background::Threads)))
    }

    /// Drops every handle, and with them the store.
    pub(crate) fn let_go(&mut self) {
        self.held.clear();
        self.cold.clear();
        self.handles = Default::default();
        self.stale = Default::default();
        self.db = None;
    }

    /// A new machine with this disk.
    pub(crate) fn restart(&mut self, image: DiskImage, seed: u64, config: usize) {
        self.sim = SimBackend::from_image(image, seed);
        self.config = &CONFIGS[config];
        self.observe();
    }

    /// Runs one operation.
    ///
    /// # Errors
    /// The store gave a wrong answer.
    pub(crate) fn run(&mut self, op: &Op) -> Check<Outcome> {
        let outcome = match op {
            Op::Put { .. }
            | Op::Delete { .. }
            | Op::Batch { .. }
            | Op::TooLarge { .. }
            | Op::BadKey { .. } => self.run_write(op),
            Op::Sync
            | Op::Flush
            | Op::Compact
            | Op::Freeze
            | Op::Hold { .. }
            | Op::Verify
            | Op::Metrics
            | Op::Keyspaces
            | Op::Create { .. }
            | Op::Drop { .. }
            | Op::UseDropped { .. } => self.run_upkeep(op),
            Op::Reopen { .. } | Op::DropAll { .. } | Op::Crash { .. } => self.run_lifecycle(op),
            Op::Get { .. }
            | Op::ContainsKey { .. }
            | Op::MultiGet { .. }
            | Op::Range { .. }
            | Op::Prefix { .. }
            | Op::Iter { .. }
            | Op::Seek { .. }
            | Op::Keys { .. }
            | Op::First { .. }
            | Op::Last { .. }
            | Op::IsEmpty { .. } => self.run_read(op),
            _ => self.run_held(op),
        };
        let checked = outcome.and_then(|outcome| self.check_log().map(|()| outcome));
        checked.map_err(|failure| failure.at(format!("{op:?}")))
    }

    /// The number of log files on the simulated disk.
    pub(crate) fn log_files(&self) -> u64 {
        self.log_sizes().count() as u64
    }

    fn log_sizes(&self) -> impl Iterator<Item = u64> {
        let files = self.sim.snapshot().files();
        files.into_iter().filter(|(path, _)| path.to_string_lossy().contains(".log")).map(|(_, bytes)| bytes)
    }

    /// The files of the log are within the limit and one file.
    fn check_log(&self) -> Check {
        let Some(db) = self.db.as_ref().filter(|_| self.real.is_none()) else { return Ok(()) };
        let bytes: u64 = self.log_sizes().sum();
        let most = db.log_limit_bytes() + db.log_file_bytes();
        // A file that cannot be removed stays until the next open.
        if bytes > most && self.sim.faults_struck() == 0 {
            return Err(Failure::new(format!("{bytes} bytes of log files, above {most}")));
        }
        Ok(())
    }

    /// States that reads may show now.
    pub(crate) fn views(&self) -> Vec<State> {
        vec![self.model.newest().clone()]
    }

    /// Adds the edit of unknown result to the submitted ones. Call it after the incarnation is over.
    pub(crate) fn end_doubt(&mut self) {
        match self.in_doubt.take() {
            Some((name, true)) => self.model.create(name),
            Some((name, false)) => self.model.drop_keyspace(name),
            None => return,
        }
        self.acks.lock().submitted.edits = self.model.end().edits;
    }

    /// The handle and the model's number of the keyspace of a slot, if it exists.
    pub(super) fn keyspace(&self, slot: usize) -> Option<(Keyspace, u32)> {
        let number = self.model.newest_names().get(SLOTS[slot])?;
        Some((self.handles[slot].clone()?, *number))
    }

    pub(super) fn tables(&self, keyspace: u32) -> Vec<Arc<Table>> {
        self.views().iter().map(|state| state.table(keyspace)).collect()
    }
}

/// An open leaves no file that the store does not need.
fn check_files(sim: &SimBackend, db: &Db) -> Check {
    let metrics = db.metrics();
    let segments = metrics.keyspaces.iter().map(|keyspace| keyspace.segments).sum();
    let files = sim.snapshot().files();
    // Log files of earlier incarnations are kept, and have the size that they need.
    let log_bytes = db.log_file_bytes();
    let kept = |bytes: u64| metrics.log_files == 0 && bytes == log_bytes;
    let logs =
        files.iter().filter(|(path, bytes)| path.to_string_lossy().contains(".log") && kept(*bytes)).count();
    for (part, due) in [("/manifest-", 1), ("/ring-", 1), (".log", logs), (".seg", segments)] {
        let names: Vec<_> = files.iter().filter(|(path, _)| path.to_string_lossy().contains(part)).collect();
        if names.len() != due {
            return Err(Failure::new(format!(
                "{due} files {part} are due after an open, there are {names:?}"
            )));
        }
    }
    Ok(())
}
