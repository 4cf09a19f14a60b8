//! A full disk: writes are refused with `NoSpace`, no acknowledged write is lost, and the store recovers by itself when
//! there is space again. Most tests use the simulated disk, whose capacity is a number; one uses a real disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use aio::{Backend, Errno};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Durability, Error, Event, Keyspace, Listener};

const KIB: u64 = 1 << 10;

fn builder(backend: &SimBackend, background: Background) -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 * KIB),
        log_file_bytes: Some(64 * KIB),
        memtable_bytes: Some(64 * KIB),
        segment_bytes: Some(64 * KIB),
        manifest_bytes: Some(32 * KIB),
        block_bytes: Some(1 << 10),
    };
    Db::builder()
        .memory_budget_bytes(1 << 20)
        .backend(Arc::new(backend.clone()))
        .background(background)
        .sizes(sizes)
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Values that do not compress, so that a full disk is full.
fn value(i: u64) -> Vec<u8> {
    let mut word = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let len = 200 + usize::try_from(i % 7).unwrap() * 150;
    std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()[0]
    })
    .take(len)
    .collect()
}

fn is_no_space(error: &Error) -> bool {
    matches!(error, Error::NoSpace { .. })
}

/// Puts new keys until the disk is full. A refused put must not be visible.
fn fill(ks: &Keyspace, model: &mut Model, next: &mut u64) {
    for _ in 0..10_000 {
        let (key, value) = (next.to_be_bytes().to_vec(), value(*next));
        match ks.put(&key, &value) {
            Ok(()) => model.insert(key, value),
            Err(error) => {
                assert!(is_no_space(&error), "{error}");
                assert_eq!(ks.get(&key).unwrap(), None, "a refused put was not written");
                return;
            }
        };
        *next += 1;
    }
    panic!("the disk did not become full");
}

fn check(ks: &Keyspace, model: &Model) {
    for (key, value) in model {
        assert_eq!(ks.get(key).unwrap().as_deref(), Some(&value[..]));
    }
    let found: Model = ks.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect();
    assert!(found == *model, "{} pairs instead of {}", found.len(), model.len());
}

#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_goes_on() {
    for background in [Background::Manual, Background::Threads] {
        for durability in [Durability::Power, Durability::Process] {
            for extra in (200..800).step_by(150) {
                let sim = SimBackend::new(extra);
                let open = || builder(&sim, background).durability(durability).open("/store").unwrap();
                let db = open();
                let ks = db.keyspace("default").unwrap();
                sim.set_capacity_bytes(sim.used_bytes() + extra * KIB);
                let (mut model, mut next) = (Model::new(), 0);
                fill(&ks, &mut model, &mut next);
                for _ in 0..5 {
                    fill(&ks, &mut model, &mut next);
                }
                let metrics = db.metrics();
                assert_eq!(metrics.halted, None);
                check(&ks, &model);
                db.verify().unwrap();
                let flushed = db.flush();
                assert_eq!(db.metrics().flush_error.is_some(), flushed.is_err());

                sim.set_capacity_bytes(u64::MAX);
                for _ in 0..200 {
                    let (key, value) = (next.to_be_bytes().to_vec(), value(next));
                    ks.put(&key, &value).unwrap();
                    model.insert(key, value);
                    next += 1;
                }
                db.flush().unwrap();
                assert_eq!(db.metrics().flush_error, None);
                check(&ks, &model);
                db.verify().unwrap();
                drop((ks, db));
                let db = open();
                check(&db.keyspace("default").unwrap(), &model);
            }
        }
    }
}

#[test]
fn deletes_and_a_compaction_make_room_again() {
    for background in [Background::Manual, Background::Threads] {
        let sim = SimBackend::new(2);
        let db = builder(&sim, background).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        let capacity = sim.used_bytes() + 900 * KIB;
        sim.set_capacity_bytes(capacity);
        let (mut model, mut next) = (Model::new(), 0);
        fill(&ks, &mut model, &mut next);
        let full = sim.used_bytes();
        // The user adds space, deletes most of the keys, and takes the space back. A compaction may begin at any of the
        // deletes and takes as much again as the store holds.
        sim.set_capacity_bytes(2 * capacity + 1024 * KIB);
        let keys: Vec<Vec<u8>> = model.keys().cloned().collect();
        for (i, key) in keys.iter().enumerate() {
            if i % 10 != 0 {
                ks.delete(key).unwrap();
                model.remove(key);
            }
        }
        db.compact().unwrap();
        check(&ks, &model);
        assert!(sim.used_bytes() < full - 200 * KIB, "{} of {full} bytes are still used", sim.used_bytes());
        sim.set_capacity_bytes(capacity);
        let before = model.len();
        fill(&ks, &mut model, &mut next);
        assert!(model.len() > before + 50, "the space can be used");
        check(&ks, &model);
        sim.set_capacity_bytes(u64::MAX);
        db.compact().unwrap();
        db.close().unwrap();
        let db = builder(&sim, background).open("/store").unwrap();
        check(&db.keyspace("default").unwrap(), &model);
        db.verify().unwrap();
    }
}

#[test]
fn a_keyspace_can_be_dropped_on_a_full_disk() {
    let sim = SimBackend::new(3);
    let db = builder(&sim, Background::Manual).open("/store").unwrap();
    let (ks, other) = (db.keyspace("default").unwrap(), db.keyspace("other").unwrap());
    let (mut model, mut next) = (Model::new(), 0u64);
    for i in 0..500 {
        other.put(next.to_be_bytes(), value(i)).unwrap();
        next += 1;
    }
    db.compact().unwrap();
    sim.set_capacity_bytes(sim.used_bytes() + 100 * KIB);
    fill(&ks, &mut model, &mut next);
    sim.set_capacity_bytes(sim.used_bytes());
    drop(other);
    db.drop_keyspace("other").unwrap();
    sim.set_capacity_bytes(sim.used_bytes() + 200 * KIB);
    let before = model.len();
    fill(&ks, &mut model, &mut next);
    assert!(model.len() > before);
    check(&ks, &model);
}

#[test]
fn opening_on_a_full_disk_fails_changes_nothing_and_can_be_repeated() {
    let sim = SimBackend::new(4);
    let open = || builder(&sim, Background::Manual).open("/store");
    let (mut model, mut next) = (Model::new(), 0);
    {
        let db = open().unwrap();
        sim.set_capacity_bytes(sim.used_bytes() + 500 * KIB);
        fill(&db.keyspace("default").unwrap(), &mut model, &mut next);
        // The close must not flush: the next open has to write segments.
        sim.set_capacity_bytes(sim.used_bytes());
    }
    for free in [0, 4, 16, 40] {
        let used = sim.used_bytes();
        sim.set_capacity_bytes(used + free * KIB);
        let names = |dir: &str| sim.list(Path::new(dir)).unwrap();
        let before = (names("/store"), names("/store/wal"), names("/store/segments"));
        for _ in 0..3 {
            let error = open().unwrap_err();
            assert!(is_no_space(&error), "{error}");
            assert!(error.to_string().contains("/store/"), "it names the file: {error}");
            assert_eq!((names("/store"), names("/store/wal"), names("/store/segments")), before);
        }
        assert_eq!(sim.used_bytes(), used);
    }
    sim.set_capacity_bytes(u64::MAX);
    let db = open().unwrap();
    check(&db.keyspace("default").unwrap(), &model);
}

/// Does all kinds of operations on a store. They may be refused for lack of space; true if one was.
fn incarnation(db: &Db, model: &mut Model) -> bool {
    let mut refused = false;
    let mut allow = |result: esker::Result<()>| {
        if let Err(error) = &result {
            assert!(is_no_space(error), "{error}");
            refused = true;
        }
        result.is_ok()
    };
    let ks = db.keyspace("default").unwrap();
    for i in 0..160u64 {
        let (key, value) = ((i % 50).to_be_bytes().to_vec(), value(i));
        let before = ks.get(&key).unwrap();
        if allow(ks.put(&key, &value)) {
            model.insert(key, value);
        } else {
            assert!(ks.get(&key).unwrap() == before, "a refused put was not written");
        }
        if i % 40 == 20 {
            allow(db.keyspace(&format!("{i}")).map(drop));
        }
        if i % 50 == 30 {
            allow(db.flush());
        }
    }
    allow(db.compact());
    refused
}

#[test]
fn space_that_is_missing_at_any_one_call_is_no_halt() {
    let kinds = [EventKind::Create, EventKind::Allocate, EventKind::MakeDir];
    let mut refusals = 0;
    for forever in [false, true] {
        for skip in 0.. {
            let sim = SimBackend::new(5);
            let mut model = Model::new();
            let db = builder(&sim, Background::Manual).open("/store").unwrap();
            let plan = FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&kinds).skip(skip);
            sim.fail(if forever { plan.forever() } else { plan });
            refusals += usize::from(incarnation(&db, &mut model));
            let struck = sim.faults_struck() > 0;
            assert_eq!(db.metrics().halted, None);
            sim.clear_faults();
            incarnation(&db, &mut model);
            check(&db.keyspace("default").unwrap(), &model);
            db.verify().unwrap();
            db.close().unwrap();
            let db = builder(&sim, Background::Manual).open("/store").unwrap();
            check(&db.keyspace("default").unwrap(), &model);
            if !struck {
                break;
            }
        }
    }
    assert!(refusals > 20, "only {refusals}");
}

#[test]
fn segments_whose_blocks_do_not_fit_are_removed_and_written_again() {
    for kind in [EventKind::Write, EventKind::Sync] {
        for skip in 0.. {
            let sim = SimBackend::new(6);
            let mut model = Model::new();
            let db = builder(&sim, Background::Manual).open("/store").unwrap();
            sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[kind]).path("segments").skip(skip));
            incarnation(&db, &mut model);
            if sim.faults_struck() == 0 {
                assert!(skip > 3);
                break;
            }
            check(&db.keyspace("default").unwrap(), &model);
            db.compact().unwrap();
            let live: usize = db.metrics().keyspaces.iter().map(|keyspace| keyspace.segments).sum();
            assert_eq!(sim.list(Path::new("/store/segments")).unwrap().len(), live, "no orphans");
            db.close().unwrap();
            let db = builder(&sim, Background::Manual).open("/store").unwrap();
            check(&db.keyspace("default").unwrap(), &model);
        }
    }
}

#[derive(Debug)]
struct Tell(mpsc::Sender<Event>);

impl Listener for Tell {
    fn event(&self, event: &Event) {
        // The test may have ended.
        let _ = self.0.send(event.clone());
    }
}

#[test]
fn the_background_flushes_by_itself_when_there_is_space() {
    let sim = SimBackend::new(7);
    let (tell, events) = mpsc::channel();
    let db = builder(&sim, Background::Threads).listener(Tell(tell)).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    sim.fail(
        FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Allocate]).path("segments").forever(),
    );
    let (mut model, mut next) = (Model::new(), 0);
    fill(&ks, &mut model, &mut next);
    assert!(db.metrics().flush_error.is_some_and(|error| error.contains("no space")));
    sim.clear_faults();
    let mut waited = events.iter().map(|event| matches!(event, Event::Flushed { .. }));
    assert!(waited.any(|flushed| flushed), "without another write");
    drop(waited);
    ks.put("more", "space").unwrap();
    db.flush().unwrap();
    assert_eq!(db.metrics().flush_error, None);
    let told = events.try_iter().count();
    assert!(told > 0);
    assert!(events.recv_timeout(Duration::ZERO).is_err());
}

/// A small ext4 in a file; `None` where this process may not mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, point) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::create_dir(&point).unwrap();
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            std::process::Command::new(program)
                .args(args)
                .output()
                .is_ok_and(|output| output.status.success())
        };
        let made = run("truncate", &["-s".as_ref(), "24M".as_ref(), image.as_ref()])
            && run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()])
            && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), point.as_ref()]);
        made.then_some(SmallDisk(dir))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_real_disk_that_is_full_goes_on_when_a_file_is_emptied() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED: cannot make and mount a small ext4 here (root and a loop device are needed)");
        return;
    };
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let store = disk.path().join("store");
    let open = || Db::builder().memory_budget_bytes(4 << 20).open(&store);
    let db = open().unwrap();
    let ks = db.keyspace("default").unwrap().with_durability(Durability::Process);
    let (mut model, mut next) = (Model::new(), 0);
    let mut fill_up = || {
        for i in 0..100_000u64 {
            let (key, value) = ((next + i).to_be_bytes().to_vec(), value(i).repeat(8));
            match ks.put(&key, &value) {
                Ok(()) => model.insert(key, value),
                Err(error) => {
                    assert!(is_no_space(&error), "{error}");
                    assert_eq!(ks.get(&key).unwrap(), None);
                    next += i + 1;
                    return;
                }
            };
        }
        panic!("24 MiB did not become full");
    };
    fill_up();
    fill_up();
    assert_eq!(db.metrics().halted, None);
    std::fs::write(&ballast, "").unwrap();
    fill_up();
    check(&ks, &model);
    let closed = db.close();
    assert!(closed.as_ref().map_or_else(is_no_space, |()| true), "{closed:?}");
    drop(ks);
    match open() {
        Ok(db) => check(&db.keyspace("default").unwrap(), &model),
        Err(error) => assert!(is_no_space(&error), "{error}"),
    }
}
