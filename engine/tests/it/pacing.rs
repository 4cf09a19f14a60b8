//! Writes pay for the merges of their own keyspace, and for no other.

use std::sync::{Arc, Mutex};

use aio::SimBackend;
use esker::testing::{Background, BuilderExt, DbExt};
use esker::{Db, Durability, Event, Keyspace, KeyspaceMetrics, Listener, Pressure};

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
    let builder = Db::builder().backend(Arc::new(SimBackend::new(1))).background(Background::Manual);
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
