//! Writes pay for the merges of their own keyspace, and for no other.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};
use esker::testing::{Background, BuilderExt, DbExt};
use esker::{Db, Durability, Error, Event, Keyspace, KeyspaceMetrics, Listener, Pressure};

/// Keeps the changes of pressure, and the keyspaces that were merged.
#[derive(Clone, Debug, Default)]
struct Told {
    pressures: Arc<Mutex<Vec<(String, Pressure)>>>,
    merged: Arc<Mutex<Vec<String>>>,
}

impl Listener for Told {
    fn event(&self, event: &Event) {
        match event {
            Event::Pressure { keyspace, pressure, .. } => {
                self.pressures.lock().unwrap().push((keyspace.clone(), *pressure));
            }
            Event::Compacted { keyspace, .. } => self.merged.lock().unwrap().push(keyspace.clone()),
            _ => {}
        }
    }
}

/// A store without threads, whose merges wait until they are let go.
fn held_store(told: &Told) -> Db {
    held_store_on(&SimBackend::new(1), told)
}

fn held_store_on(sim: &SimBackend, told: &Told) -> Db {
    let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
    let db = builder.durability(Durability::Process).listener(told.clone()).open("/store").unwrap();
    db.hold_jobs(true);
    db
}

fn add_runs(db: &Db, keyspace: &Keyspace, runs: u32) {
    for run in 0..runs {
        keyspace.put(run.to_be_bytes(), "value").unwrap();
        db.flush().unwrap();
    }
}

fn of(db: &Db, name: &str) -> KeyspaceMetrics {
    db.metrics().keyspaces.into_iter().find(|keyspace| keyspace.name == name).unwrap()
}

/// Sleeps of so many puts. They are large, since time passes on the simulated disk with each of them.
fn sleeps_of_puts(db: &Db, keyspace: &Keyspace, puts: u32) -> u64 {
    let before = db.metrics().slowed_writes;
    for number in 0..puts {
        keyspace.put(number.to_be_bytes(), vec![7; 64 << 10]).unwrap();
    }
    db.metrics().slowed_writes - before
}

#[test]
fn a_keyspace_with_too_many_runs_slows_its_own_writes_only() {
    let told = Told::default();
    let db = held_store(&told);
    let (busy, quiet) = (db.keyspace("busy").unwrap(), db.keyspace("quiet").unwrap());
    add_runs(&db, &busy, 6);
    assert_eq!((of(&db, "busy").pressure_percent, of(&db, "busy").write_bytes_per_second), (0, None));
    assert_eq!(sleeps_of_puts(&db, &busy, 100), 0);

    add_runs(&db, &busy, 20);
    let metrics = of(&db, "busy");
    assert_eq!(metrics.pressure_percent, 120, "{metrics:?}");
    assert!(metrics.write_bytes_per_second.is_some(), "{metrics:?}");
    let sleeps = sleeps_of_puts(&db, &busy, 100);
    assert!(sleeps > 10, "{sleeps} {metrics:?}");
    assert_eq!(sleeps_of_puts(&db, &quiet, 100), 0);
    assert_eq!((of(&db, "quiet").pressure_percent, of(&db, "quiet").write_bytes_per_second), (0, None));

    db.hold_jobs(false);
    assert_eq!((of(&db, "busy").pressure_percent, of(&db, "busy").write_bytes_per_second), (0, None));
    assert_eq!(sleeps_of_puts(&db, &busy, 100), 0);
    let levels = [Pressure::Slowed, Pressure::Most, Pressure::None];
    assert_eq!(*told.pressures.lock().unwrap(), levels.map(|level| ("busy".to_owned(), level)));
    assert!(db.metrics().slowed.as_micros() > 0);
}

#[test]
fn the_keyspace_that_needs_it_most_is_merged_first() {
    let told = Told::default();
    let db = held_store(&told);
    for (name, runs) in [("a", 8), ("b", 12), ("c", 10)] {
        add_runs(&db, &db.keyspace(name).unwrap(), runs);
    }
    db.hold_jobs(false);
    assert_eq!(*told.merged.lock().unwrap(), ["b", "c", "a"]);
}

#[test]
fn a_keyspace_whose_merge_fails_does_not_stop_the_others() {
    let (sim, told) = (SimBackend::new(1), Told::default());
    let db = held_store_on(&sim, &told);
    for (name, runs) in [("a", 8), ("b", 12), ("c", 10)] {
        add_runs(&db, &db.keyspace(name).unwrap(), runs);
    }
    sim.fail(
        FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Create]).path("segments").times(1),
    );
    db.hold_jobs(false);
    assert_eq!(*told.merged.lock().unwrap(), ["c", "a"]);
    let metrics = of(&db, "b");
    assert!(metrics.due_bytes > 0 && metrics.pressure_percent > 0 && of(&db, "a").due_bytes == 0);
    assert_eq!(metrics.write_bytes_per_second, None, "to wait for merges that fail brings nothing");
    db.freeze().unwrap();
    assert_eq!(*told.merged.lock().unwrap(), ["c", "a", "b"]);
    assert_eq!(of(&db, "b").due_bytes, 0);
}

#[test]
fn a_compaction_goes_on_with_the_other_keyspaces_where_one_fails() {
    let (sim, told) = (SimBackend::new(1), Told::default());
    let db = held_store_on(&sim, &told);
    for name in ["a", "b", "c"] {
        add_runs(&db, &db.keyspace(name).unwrap(), 2);
    }
    sim.fail(
        FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Create]).path("segments").times(1),
    );
    assert!(matches!(db.compact(), Err(Error::NoSpace { .. })));
    let runs = ["a", "b", "c"].map(|name| of(&db, name).runs);
    assert_eq!((runs.iter().sum::<usize>(), runs.iter().filter(|&&runs| runs == 2).count()), (4, 1));
}

#[test]
fn jobs_keep_to_the_limit_on_background_io() {
    let took = |limit: Option<u64>| {
        let sim = SimBackend::new(1);
        let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
        let builder = builder.compress(false);
        let builder =
            if let Some(limit) = limit { builder.background_bytes_per_second(limit) } else { builder };
        let db = builder.open("/store").unwrap();
        let keyspace = db.keyspace("default").unwrap();
        for run in 0..2_u32 {
            (0..20_u32).for_each(|number| {
                keyspace.put(format!("{run} {number}"), vec![7; 100 << 10]).unwrap();
            });
            db.flush().unwrap();
        }
        let before = sim.now();
        db.compact().unwrap();
        let took = sim.now().checked_sub(before).unwrap();
        (took, db.metrics().compacted_bytes_in + db.metrics().compacted_bytes_out)
    };
    let (free, bytes) = took(None);
    let (limited, _) = took(Some(1 << 20));
    let least = Duration::from_millis(1000 * bytes / (1 << 20));
    assert!(free < Duration::from_secs(1) && limited >= least * 9 / 10, "{free:?}, {limited:?}, {least:?}");
}

#[test]
fn a_merge_that_leaves_no_run_leaves_no_pressure() {
    let told = Told::default();
    let db = held_store(&told);
    let keyspace = db.keyspace("default").unwrap();
    for run in 0..20_u32 {
        keyspace.delete(run.to_be_bytes()).unwrap();
        db.flush().unwrap();
    }
    assert_eq!(of(&db, "default").pressure_percent, 120);
    db.hold_jobs(false);
    let metrics = of(&db, "default");
    assert_eq!((metrics.runs, metrics.pressure_percent, metrics.write_bytes_per_second), (0, 0, None));
}

#[test]
fn writes_have_their_pace_from_the_open_on() {
    let (sim, told) = (SimBackend::new(1), Told::default());
    let db = held_store_on(&sim, &told);
    add_runs(&db, &db.keyspace("busy").unwrap(), 20);
    db.close().unwrap();
    let told = Told::default();
    let db = held_store_on(&sim, &told);
    assert_eq!(of(&db, "busy").pressure_percent, 120);
    assert!(of(&db, "busy").write_bytes_per_second.is_some());
    assert_eq!(*told.pressures.lock().unwrap(), [("busy".to_owned(), Pressure::Most)]);
}

#[test]
fn large_records_keep_to_the_rate() {
    let (sim, told) = (SimBackend::new(1), Told::default());
    let db = held_store_on(&sim, &told);
    let keyspace = db.keyspace("busy").unwrap();
    add_runs(&db, &keyspace, 20);
    let rate = of(&db, "busy").write_bytes_per_second.unwrap();
    let before = (sim.now(), db.metrics().slowed_writes);
    (0..40_u32).for_each(|number| keyspace.put(number.to_be_bytes(), vec![7; 128 << 10]).unwrap());
    let took = sim.now().checked_sub(before.0).unwrap();
    let least = Duration::from_millis(40 * (128 << 10) * 900 / rate);
    assert!(took >= least, "{took:?} instead of {least:?} at {rate}");
    assert!(db.metrics().slowed_writes - before.1 <= 40, "one sleep for each");
}

#[test]
fn a_batch_pays_for_its_own_bytes_in_each_keyspace_and_sleeps_once() {
    let db = held_store(&Told::default());
    let names: Vec<String> = (0..10).map(|number| format!("busy {number}")).collect();
    let busy: Vec<Keyspace> = names.iter().map(|name| db.keyspace(name).unwrap()).collect();
    for keyspace in &busy {
        add_runs(&db, keyspace, 20);
    }
    let quiet = db.keyspace("quiet").unwrap();
    let slowed_by = |large: &[&Keyspace]| {
        let before = db.metrics();
        let mut batch = db.batch();
        for keyspace in busy.iter().chain([&quiet]) {
            let is_large = large.iter().any(|large| large.name() == keyspace.name());
            batch.put(keyspace, "key", vec![7; if is_large { 100 << 10 } else { 10 }]);
        }
        batch.commit().unwrap();
        let after = db.metrics();
        (after.slowed_writes - before.slowed_writes, after.slowed.saturating_sub(before.slowed))
    };
    assert_eq!(slowed_by(&[&quiet]).0, 0);
    let (sleeps, one) = slowed_by(&[&busy[0]]);
    assert_eq!(sleeps, 1);
    let (sleeps, all) = slowed_by(&busy.iter().collect::<Vec<_>>());
    assert_eq!(sleeps, 1);
    assert!(all < one * 2, "{all:?} for ten, {one:?} for one");
}
