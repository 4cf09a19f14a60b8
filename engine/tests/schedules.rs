//! The whole store under many schedules of its threads, with a crash inside most of them: `just schedules`.
//!
//! Threads are tasks of shuttle. It chooses the next task at every lock, condition and atomic of log and engine, and at
//! every call of the simulated machine. Half of the schedules use priorities that change twice (PCT of depth 3), a quarter
//! is random, a quarter is random with few switches. In seven of eight the process dies or the power fails at a random
//! event. Then the production recovery opens the store, and its contents are compared with the operations that the tasks
//! sent and their results (`history`). Reads inside the schedules are checked by the same rules.
#![cfg(shuttle)]
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]
#![expect(clippy::print_stdout, reason = "the counts of each series are printed")]
#![expect(clippy::print_stderr, reason = "the seed of a failure is printed")]

#[path = "schedules/history.rs"]
mod history;
#[path = "schedules/machine.rs"]
mod machine;
#[cfg(planted)]
#[path = "schedules/planted.rs"]
mod planted;
#[path = "schedules/run.rs"]
mod run;
#[path = "schedules/scheduler.rs"]
mod scheduler;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, Errno};
use esker::testing::{DbExt, Sizes};
use esker::{Durability, Error, MultiGet};
use history::{KEYS, Seen, Shape};
use run::{Bed, SMALL, Scenario, TEMPORARY, below, chance, explore, key, number};
use shuttle::thread;

fn join(tasks: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for task in tasks {
        task.join().expect("a panic ends the run");
    }
}

/// Starts every writer in a task of its own. One write in `powerful` waits for stable media.
fn writing(bed: &Bed, operations: u64, powerful: u64) -> Vec<thread::JoinHandle<()>> {
    let writers = bed.history(|history| history.writers());
    (0..writers).map(|writer| bed.spawn(move |bed| bed.write_all(writer, operations, powerful))).collect()
}

fn scenario(name: &'static str, writers: &'static [Shape], body: fn(&Bed)) -> Scenario {
    Scenario { name, writers, sizes: SMALL, value_bytes: 40, body }
}

#[test]
fn puts_survive_power_loss() {
    explore(scenario("puts_survive_power_loss", &[Shape::Puts; 3], |bed| join(writing(bed, 3, 1))));
}

#[test]
fn puts_survive_the_process() {
    explore(scenario("puts_survive_the_process", &[Shape::Puts; 3], |bed| {
        let mut tasks = writing(bed, 4, 4);
        tasks.push(bed.spawn(|bed| (0..5).for_each(|_| look_at_all_by_multi_get(&bed))));
        bed.sync_by(esker::Db::sync);
        join(tasks);
    }));
}

/// Readers, and the store after the crash, see all of a batch or nothing of it, in both keyspaces.
#[test]
fn batches_are_whole() {
    explore(scenario("batches_are_whole", &[Shape::Batches; 2], |bed| {
        let mut tasks = writing(bed, 3, 2);
        tasks.push(bed.spawn(|bed| {
            for _ in 0..2 {
                bed.look_at(|snapshot| {
                    let mut seen = bed.nothing_seen();
                    for (at, keyspace) in bed.keyspaces.iter().enumerate() {
                        bed.gather(&mut seen, at, snapshot.iter(keyspace))?;
                    }
                    Ok(seen)
                });
            }
        }));
        join(tasks);
    }));
}

/// The keys of all writers: first writer and number of each, then the keys themselves in the same order.
fn all_keys(bed: &Bed) -> (Vec<(usize, u64)>, Vec<String>) {
    let places = |writer| (0..KEYS).map(move |number| (writer, number));
    let places: Vec<(usize, u64)> = (0..bed.nothing_seen().len()).flat_map(places).collect();
    let keys = places.iter().map(|&(writer, number)| key(writer, number)).collect();
    (places, keys)
}

/// Reads the keys of all writers in one call.
fn look_at_all_by_multi_get(bed: &Bed) {
    let (places, keys) = all_keys(bed);
    bed.look(|| {
        let mut seen: Vec<Seen> = bed.nothing_seen();
        for (&(writer, at), found) in places.iter().zip(bed.keyspaces[0].multi_get(&keys)?) {
            seen[writer].extend(found.map(|value| ((0, at), number(&value, bed.value_bytes))));
        }
        Ok(seen)
    });
}

/// Reads the keys of all writers with one future, or with one future for each key, which then begins at its own moment. One future in three is polled once.
/// One time in three all futures are dropped unfinished.
fn look_by_futures(bed: &Bed) {
    let (places, keys) = all_keys(bed);
    let alone = chance(2);
    bed.look_later(
        alone,
        || {
            let keyspace = &bed.keyspaces[0];
            let parts: Vec<&[String]> = if alone { keys.chunks(1).collect() } else { vec![&keys] };
            parts.into_iter().map(|part| keyspace.multi_get_async(part)).collect::<Vec<_>>()
        },
        |mut gets| {
            let mut pending = 0;
            for get in &mut gets {
                let mut task = Context::from_waker(Waker::noop());
                if chance(3) {
                    match Pin::new(&mut *get).poll(&mut task) {
                        Poll::Pending => pending += 1,
                        // This poll has taken the values out of the future, so the read is not checked.
                        Poll::Ready(_) => return None,
                    }
                }
            }
            bed.history(|history| {
                history.futures += gets.len() as u64;
                history.pending += pending;
            });
            if chance(3) {
                return None;
            }
            let found: esker::Result<Vec<_>> = gets.into_iter().map(MultiGet::wait).collect();
            Some(found.map(|found| {
                let mut seen: Vec<Seen> = bed.nothing_seen();
                for (&(writer, at), found) in places.iter().zip(found.into_iter().flatten()) {
                    seen[writer].extend(found.map(|value| ((0, at), number(&value, bed.value_bytes))));
                }
                seen
            }))
        },
    );
}

/// Each value fills a block, so that no two keys share a read.
const BLOCK_VALUE_BYTES: usize = 700;

#[test]
fn futures_beside_flushes_and_compactions() {
    let writers: &[Shape] = &[Shape::Puts, Shape::Deletes];
    let small = scenario("futures_beside_flushes_and_compactions", writers, |bed| {
        let mut tasks: Vec<_> =
            (0..2).map(|_| bed.spawn(|bed| (0..3).for_each(|_| look_by_futures(&bed)))).collect();
        tasks.extend(writing(bed, 3, 3));
        tasks.push(bed.spawn(|bed| {
            bed.sync_by(esker::Db::flush);
            bed.sync_by(esker::Db::compact);
        }));
        join(tasks);
    });
    explore(Scenario { value_bytes: BLOCK_VALUE_BYTES, ..small });
}

/// The store closes while futures wait. Each future ends, with its values or with `Closed`.
#[test]
fn futures_while_the_store_closes() {
    let small = scenario("futures_while_the_store_closes", &[Shape::Puts; 3], |bed| {
        let tasks: Vec<_> =
            (0..3).map(|_| bed.spawn(|bed| (0..2).for_each(|_| look_by_futures(&bed)))).collect();
        bed.write_all(0, 1 + below(3), 2);
        bed.sync_by(|db| db.clone().close());
        join(tasks);
    });
    explore(Scenario { value_bytes: BLOCK_VALUE_BYTES, ..small });
}

#[test]
fn multi_gets_beside_flushes() {
    explore(scenario("multi_gets_beside_flushes", &[Shape::Puts, Shape::Deletes], |bed| {
        let mut tasks = writing(bed, 4, 3);
        tasks.push(bed.spawn(|bed| {
            bed.sync_by(esker::Db::flush);
            bed.sync_by(esker::Db::flush);
        }));
        tasks.push(bed.spawn(|bed| (0..4).for_each(|_| look_at_all_by_multi_get(&bed))));
        join(tasks);
    }));
}

#[test]
fn deletes_beside_compactions() {
    explore(scenario("deletes_beside_compactions", &[Shape::Deletes; 2], |bed| {
        let mut tasks = writing(bed, 5, 4);
        tasks.push(bed.spawn(|bed| bed.sync_by(esker::Db::compact)));
        tasks.push(bed.spawn(|bed| {
            for _ in 0..4 {
                let writer = usize::try_from(below(2)).expect("two writers");
                bed.look_up(writer, (0, below(KEYS)));
            }
        }));
        bed.sync_by(esker::Db::flush);
        join(tasks);
    }));
}

/// A merge is planned while a flush installs its run: the merge may not replace a run that it did not read.
#[test]
fn merges_beside_flushes() {
    explore(scenario("merges_beside_flushes", &[Shape::Puts; 2], |bed| {
        let mut tasks = writing(bed, 3, 4);
        tasks.push(bed.spawn(|bed| (0..3).for_each(|_| bed.sync_by(esker::Db::compact))));
        (0..3).for_each(|_| bed.sync_by(esker::Db::flush));
        join(tasks);
    }));
}

/// Snapshots are read later, while the flush thread writes the entries that they see to segments.
#[test]
fn snapshots_beside_flushes() {
    explore(scenario("snapshots_beside_flushes", &[Shape::Puts, Shape::Batches], |bed| {
        let mut tasks = writing(bed, 4, 4);
        tasks.push(bed.spawn(|bed| {
            for _ in 0..2 {
                let frozen = bed.db.freeze();
                bed.alive(frozen);
            }
        }));
        tasks.push(bed.spawn(|bed| {
            bed.look_at(|snapshot| {
                bed.alive(bed.db.freeze());
                let mut seen = bed.nothing_seen();
                for (at, keyspace) in bed.keyspaces.iter().enumerate() {
                    for (writer, seen) in seen.iter_mut().enumerate() {
                        for number_of_key in 0..KEYS {
                            let found = snapshot.get(keyspace, key(writer, number_of_key))?;
                            let found = found.map(|value| number(&value, bed.value_bytes));
                            seen.extend(found.map(|found| ((at, number_of_key), found)));
                        }
                    }
                }
                Ok(seen)
            });
        }));
        join(tasks);
    }));
}

#[test]
fn iterators_beside_compactions() {
    explore(scenario("iterators_beside_compactions", &[Shape::Deletes, Shape::Puts], |bed| {
        let mut tasks = writing(bed, 4, 4);
        tasks.push(bed.spawn(|bed| {
            bed.sync_by(esker::Db::flush);
            bed.sync_by(esker::Db::compact);
        }));
        tasks.push(bed.spawn(|bed| {
            for backwards in [false, true] {
                bed.look(|| {
                    let mut seen = bed.nothing_seen();
                    let pairs = bed.keyspaces[0].iter();
                    if backwards {
                        bed.gather(&mut seen, 0, pairs.rev())?;
                    } else {
                        bed.gather(&mut seen, 0, pairs)?;
                    }
                    Ok(seen)
                });
            }
        }));
        join(tasks);
    }));
}

/// Several threads that miss the same block at once cause one read of it.
#[test]
fn readers_of_one_cold_block() {
    explore(scenario("readers_of_one_cold_block", &[Shape::Puts], |bed| {
        let reads = || bed.machine.profile().read().count;
        let before = reads();
        let readers: Vec<_> = (0..3).map(|_| bed.spawn(|bed| bed.look_up(0, (0, 0)))).collect();
        join(readers);
        assert!(reads() - before <= 1, "one block was read {} times", reads() - before);
        join(writing(bed, 2, 2));
    }));
}

/// A write that returns `Closed` has no effect. All other writes stay.
#[test]
fn a_close_beside_writers_and_readers() {
    explore(scenario("a_close_beside_writers_and_readers", &[Shape::Puts; 3], |bed| {
        let writer = |writer| {
            bed.spawn(move |bed| {
                for _ in 0..4 {
                    let level = if chance(2) { Durability::Power } else { Durability::Process };
                    let written = bed.write(writer, level);
                    if matches!(written, Err(Error::Closed)) || bed.alive(written).is_none() {
                        return;
                    }
                }
            })
        };
        let tasks = [
            writer(1),
            writer(2),
            bed.spawn(|bed| {
                let pairs: Result<Vec<_>, _> = bed.keyspaces[0].iter().collect();
                match pairs {
                    Err(Error::Closed) => {}
                    pairs => drop(bed.alive(pairs)),
                }
            }),
        ];
        bed.write_all(0, 1 + below(3), 2);
        bed.sync_by(|db| db.clone().close());
        join(tasks);
    }));
}

/// A keyspace is made, written to, read, dropped, and made again, when it is empty.
#[test]
fn a_keyspace_dropped_beside_readers() {
    explore(scenario("a_keyspace_dropped_beside_readers", &[Shape::Puts], |bed| {
        let mut tasks = writing(bed, 3, 2);
        bed.history(|history| history.temporary = None);
        let made = bed.db.keyspace(TEMPORARY);
        let Some(keyspace) = bed.alive(made) else { return join(tasks) };
        bed.history(|history| history.temporary = Some(true));
        let closed_or = |bed: &Bed, result: esker::Result<()>| match result {
            Err(Error::Closed) => {}
            result => drop(bed.alive(result)),
        };
        let (written, read) = (keyspace.clone(), keyspace);
        tasks.push(bed.spawn(move |bed| {
            for number in 0..4 {
                closed_or(&bed, written.put(key(0, number), "short-lived"));
            }
        }));
        tasks.push(bed.spawn(move |bed| {
            let pairs: esker::Result<Vec<_>> = read.iter().collect();
            closed_or(&bed, pairs.map(drop));
            closed_or(&bed, read.get(key(0, 1)).map(drop));
        }));
        tasks.push(bed.spawn(|bed| bed.sync_by(esker::Db::flush)));
        bed.history(|history| history.temporary = None);
        let dropped = bed.db.drop_keyspace(TEMPORARY);
        if bed.alive(dropped).is_some() {
            bed.history(|history| history.temporary = Some(false));
            if chance(2) {
                bed.history(|history| history.temporary = None);
                let empty = bed.db.keyspace(TEMPORARY).and_then(|keyspace| keyspace.is_empty());
                assert_ne!(bed.alive(empty), Some(false), "a keyspace that was made anew is empty");
            }
        }
        join(tasks);
    }));
}

/// A flush releases the log while a keyspace is made and written to. The keyspace needs its records.
#[test]
fn a_keyspace_made_beside_flushes() {
    explore(scenario("a_keyspace_made_beside_flushes", &[Shape::Puts], |bed| {
        bed.write_all(0, 1, 1);
        // A second flush would give the keyspace's record to a segment.
        let mut tasks = vec![bed.spawn(|bed| bed.sync_by(esker::Db::flush))];
        if chance(4) {
            tasks.extend(writing(bed, 1, 1));
        }
        bed.history(|history| history.temporary = None);
        let made = bed.db.keyspace(TEMPORARY);
        if let Some(keyspace) = bed.alive(made) {
            bed.history(|history| history.temporary = Some(true));
            let written = keyspace.put("key", "value");
            if bed.alive(written).is_some() {
                bed.history(|history| history.temporary_keys = 1);
            }
        }
        join(tasks);
    }));
}

/// Another process may own the files after a close, and it writes to the same log files. In every other run the log has
/// failed before.
#[test]
fn nothing_is_written_after_a_close() {
    const TINY: Sizes = Sizes { log_file_bytes: Some(4 << 10), ..SMALL };
    let tiny = scenario("nothing_is_written_after_a_close", &[Shape::Puts; 3], |bed| {
        if chance(2) {
            let kinds = [EventKind::Sync, EventKind::Write];
            let kind = kinds[usize::from(chance(2))];
            let fault = FaultPlan::new(Fault::Errno(Errno::IO)).on(&[kind]).path(".log");
            bed.machine.sim.fail(fault.skip(below(6)));
        }
        let mut tasks: Vec<_> = (1..3)
            .map(|writer| {
                bed.spawn(move |bed| {
                    for _ in 0..4 {
                        let level = if chance(3) { Durability::Process } else { Durability::Power };
                        let written = bed.write(writer, level);
                        if matches!(written, Err(Error::Closed)) || bed.alive(written).is_none() {
                            return;
                        }
                    }
                })
            })
            .collect();
        bed.write_all(0, 1 + below(3), 2);
        tasks.push(bed.spawn(|bed| {
            let flushed = bed.db.flush();
            if !matches!(flushed, Err(Error::Closed)) {
                bed.alive(flushed);
            }
        }));
        let closed = bed.db.clone().close();
        let events = bed.machine.sim.events();
        bed.alive(closed);
        join(tasks);
        assert_eq!(bed.machine.sim.events(), events, "something was written after the close");
    });
    explore(Scenario { sizes: TINY, ..tiny });
}

/// The log or the manifest fails at one call. Every later call returns the error, and no task hangs.
#[test]
fn a_failing_log_halts_all_writers() {
    explore(scenario("a_failing_log_halts_all_writers", &[Shape::Puts; 3], |bed| {
        let kinds = [EventKind::Sync, EventKind::Write];
        let kind = kinds[usize::from(chance(2))];
        let path = if chance(4) { "manifest" } else { ".log" };
        bed.machine.sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[kind]).path(path).skip(below(4)));
        let mut tasks: Vec<_> = (0..3)
            .map(|writer| {
                bed.spawn(move |bed| {
                    for _ in 0..4 {
                        let level = if chance(3) { Durability::Process } else { Durability::Power };
                        let written = bed.write(writer, level);
                        bed.alive(written);
                    }
                })
            })
            .collect();
        tasks.push(bed.spawn(|bed| {
            bed.sync_by(esker::Db::flush);
            bed.look_up(0, (0, 1));
        }));
        join(tasks);
    }));
}

/// Ring, log files and memtables have the smallest size, so writers wait for each of them.
#[test]
fn writers_that_wait_for_room() {
    const TINY: Sizes = Sizes {
        ring_bytes: Some(4 << 10),
        log_file_bytes: Some(4 << 10),
        memtable_bytes: Some(4 << 10),
        ..SMALL
    };
    let writers: &[Shape] = &[Shape::Puts; 2];
    let tiny = scenario("writers_that_wait_for_room", writers, |bed| join(writing(bed, 8, 8)));
    explore(Scenario { sizes: TINY, value_bytes: 700, ..tiny });
}
