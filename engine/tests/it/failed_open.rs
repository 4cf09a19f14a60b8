//! An open that meets an obstacle says which one, begins no incarnation, and adds nothing to the directory, however often a
//! service tries again. After the obstacle is gone the store opens with all data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, BackendLayer, Errno, File, OpenMode, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Error, Event, Listener};

const TRIES: usize = 100;

const ENTRIES: usize = 300;

fn builder() -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 << 10),
        log_file_bytes: Some(64 << 10),
        manifest_bytes: Some(16 << 10),
        ..Sizes::default()
    };
    Db::builder().memory_budget_bytes(1 << 20).sizes(sizes)
}

fn fill(db: &Db) {
    let keyspace = db.keyspace("default").unwrap();
    for number in 0..ENTRIES {
        keyspace.put(format!("{number:04}"), [7; 100]).unwrap();
        if number == ENTRIES / 2 {
            db.flush().unwrap();
        }
    }
}

fn check(db: &Db) {
    assert_eq!(db.keyspace("default").unwrap().iter().map(Result::unwrap).count(), ENTRIES);
    db.verify().unwrap();
}

/// All entries below a directory, with the contents of the files, but for the lock file.
fn contents(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, None);
        } else if !path.ends_with("LOCK") {
            // None for a link to nothing.
            let bytes = std::fs::read(&path).ok();
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn something_else_with_the_name_of_a_file_is_named_and_nothing_is_added() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = dir.path().join("store");
    let db = builder().open(&store).unwrap();
    fill(&db);
    db.close().unwrap();
    let link = "segments/000778.seg";
    for name in ["segments/000777.seg", "manifest-000777", "wal/000777.log", "wal/ring-000777", link] {
        let obstacle = store.join(name);
        if name == link {
            std::os::unix::fs::symlink("nothing", &obstacle).unwrap();
        } else {
            std::fs::create_dir(&obstacle).unwrap();
        }
        let before = contents(&store);
        for _ in 0..TRIES {
            let error = builder().open(&store).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(contents(&store) == before, "{name}: an open that was refused changed the directory");
        std::fs::remove_dir(&obstacle).or_else(|_| std::fs::remove_file(&obstacle)).unwrap();
        let db = builder().open(&store).unwrap();
        check(&db);
        db.close().unwrap();
    }
}

#[test]
fn an_entry_whose_name_is_of_no_kind_is_left_alone() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = dir.path().join("store");
    builder().open(&store).unwrap().close().unwrap();
    let strays = ["segments/777.seg", "manifest-777", "wal/backup", "notes"].map(|name| store.join(name));
    for (number, stray) in strays.iter().enumerate() {
        if number % 2 == 0 {
            std::fs::create_dir(stray).unwrap();
        } else {
            std::fs::write(stray, "not ours").unwrap();
        }
    }
    for _ in 0..3 {
        builder().open(&store).unwrap().close().unwrap();
    }
    assert!(strays.iter().all(|stray| stray.exists()));
}

/// A machine that lets no ring be opened for writing while it is told so.
#[derive(Debug)]
struct ReadOnlyRing {
    sim: SimBackend,
    refuses: Arc<AtomicBool>,
}

impl BackendLayer for ReadOnlyRing {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn open(&self, path: &Path, mode: OpenMode) -> aio::Result<File> {
        let is_ring = path.to_str().unwrap().contains("ring-");
        if is_ring && mode == OpenMode::Write && self.refuses.load(Ordering::Relaxed) {
            return Err(aio::Error::call("open", path, Errno::ACCESS));
        }
        Backend::open(&self.sim, path, mode)
    }
}

#[test]
fn a_ring_that_may_not_be_written_is_named_and_nothing_is_added() {
    let sim = SimBackend::new(1);
    let refuses = Arc::new(AtomicBool::new(false));
    let open = || {
        let machine = ReadOnlyRing { sim: sim.clone(), refuses: Arc::clone(&refuses) };
        builder().background(Background::Manual).backend(Arc::new(machine)).open("/store")
    };
    let db = open().unwrap();
    fill(&db);
    // Without a flush of its own, so that the next open has records to write to segments.
    sim.set_capacity_bytes(sim.used_bytes());
    drop(db);
    sim.set_capacity_bytes(u64::MAX);
    let before = sim.snapshot().files();
    refuses.store(true, Ordering::Relaxed);
    for _ in 0..TRIES {
        let error = open().unwrap_err();
        assert!(error.to_string().contains("ring-"), "{error}");
        assert_eq!(sim.snapshot().files(), before);
    }
    refuses.store(false, Ordering::Relaxed);
    check(&open().unwrap());
}

#[derive(Clone, Debug, Default)]
struct Failures(Arc<Mutex<Vec<String>>>);

impl Listener for Failures {
    fn event(&self, event: &Event) {
        if let Event::BackgroundError { error, .. } = event {
            self.0.lock().unwrap().push(error.to_string());
        }
    }
}

#[test]
fn an_orphan_that_cannot_be_removed_is_reported_and_the_store_opens() {
    let open = |sim: &SimBackend, failures: &Failures| {
        let builder = builder().background(Background::Manual).listener(failures.clone());
        builder.backend(Arc::new(sim.clone())).open("/store").unwrap()
    };
    let sim = SimBackend::new(1);
    let db = open(&sim, &Failures::default());
    fill(&db);
    db.close().unwrap();
    let mut image = sim.snapshot().power_cut_all();
    for name in ["000777.seg", "000778.seg"] {
        image.write_file(&Path::new("/store/segments").join(name), b"an orphan");
    }
    let sim = SimBackend::from_image(image, 2);
    let segments = || sim.list(Path::new("/store/segments")).unwrap();
    sim.fail(
        FaultPlan::new(Fault::Errno(Errno::ACCESS)).on(&[EventKind::Remove]).path("000777.seg").forever(),
    );
    for _ in 0..3 {
        let failures = Failures::default();
        let db = open(&sim, &failures);
        check(&db);
        db.close().unwrap();
        let told = failures.0.lock().unwrap();
        assert!(told.len() == 1 && told[0].contains("000777.seg"), "{told:?}");
        assert!(segments().contains(&"000777.seg".to_owned()));
        assert!(!segments().contains(&"000778.seg".to_owned()), "the others go all the same");
    }
    sim.clear_faults();
    let failures = Failures::default();
    check(&open(&sim, &failures));
    assert!(!segments().contains(&"000777.seg".to_owned()));
    assert!(failures.0.lock().unwrap().is_empty());
}
