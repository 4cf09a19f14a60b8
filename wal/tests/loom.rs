//! Models of the lock-free parts and of the flush token, run through every schedule by loom: `just loom`.
//!
//! A model shows that no schedule loses a wake-up (loom ends a run in which no thread can go on), loses a record, or lets
//! a position pass a range that is not complete. All schedules are tried in which threads are switched against their will
//! at most as often as stands at each model (once to three times); their number is printed. The models of the whole log
//! run on a simulated disk. No timer ever rings: no promise of a log depends on one.
#![cfg(loom)]

#[path = "it/support.rs"]
#[allow(dead_code, reason = "made for other tests")]
mod support;

use std::path::Path;
use std::sync::Arc;

use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use aio::{Backend, Errno};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use support::{Manifest, record};
use wal::{Background, Error, GRANULE, Log, LogOptions, ReplayInput, Seq, Watermark, replay};

/// Runs a model through every schedule with at most so many switches against a thread's will.
fn explore(switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.max_branches = 100_000;
    let schedules = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = Arc::clone(&schedules);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} schedules", schedules.load(Ordering::Relaxed));
}

fn granules(from: u64, to: u64) -> (Seq, Seq) {
    (Seq::new(from * GRANULE as u64), Seq::new(to * GRANULE as u64))
}

/// Completes ranges of the first lap, each after it has marked it as written.
fn complete(watermark: &Watermark, written: &[AtomicU64], ranges: &[(u64, u64)]) {
    for &(from, to) in ranges {
        written[usize::try_from(from).unwrap()].store(to, Ordering::Relaxed);
        let (seq, end) = granules(from, to);
        watermark.complete(seq, end);
    }
}

#[test]
fn the_watermark_leaves_nothing_behind_and_publishes_written_ranges() {
    explore(3, || {
        let watermark = Arc::new(Watermark::new(Seq::ZERO, 4 * GRANULE));
        let written: Arc<[AtomicU64; 4]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
        let threads: Vec<_> = [(0, 1), (1, 3)]
            .into_iter()
            .map(|range| {
                let (watermark, written) = (Arc::clone(&watermark), Arc::clone(&written));
                thread::spawn(move || complete(&watermark, &*written, &[range]))
            })
            .collect();
        complete(&watermark, &*written, &[(3, 4)]);
        let seen = watermark.get().get() / GRANULE as u64;
        for (from, to) in [(0, 1), (1, 3)] {
            if seen >= to {
                assert_eq!(written[usize::try_from(from).unwrap()].load(Ordering::Relaxed), to);
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(watermark.get(), granules(4, 4).0);
    });
}

#[test]
fn the_watermark_wakes_who_waits_for_it() {
    explore(3, || {
        let watermark = Arc::new(Watermark::new(Seq::ZERO, 2 * GRANULE));
        let threads: Vec<_> = [(0, 1), (1, 2)]
            .into_iter()
            .map(|(from, to)| {
                let watermark = Arc::clone(&watermark);
                thread::spawn(move || {
                    let (seq, end) = granules(from, to);
                    watermark.complete(seq, end);
                })
            })
            .collect();
        watermark.wait_for(granules(2, 2).0);
        assert_eq!(watermark.get(), granules(2, 2).0);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Three laps of a ring of two granules: a writer that is a lap ahead waits, and entries of the lap before never count.
#[test]
fn the_watermark_goes_round() {
    explore(3, || {
        let watermark = Arc::new(Watermark::new(Seq::ZERO, 2 * GRANULE));
        let other = Arc::clone(&watermark);
        let thread = thread::spawn(move || {
            for (from, to) in [(1, 2), (2, 4)] {
                let (seq, end) = granules(from, to);
                other.complete(seq, end);
            }
        });
        for (from, to) in [(0, 1), (4, 5), (5, 6)] {
            let (seq, end) = granules(from, to);
            watermark.complete(seq, end);
        }
        thread.join().unwrap();
        assert_eq!(watermark.get(), granules(6, 6).0);
    });
}

const RING_BYTES: usize = 4096;
const FILE_BYTES: u64 = 64 << 10;

fn options(background: Background) -> LogOptions {
    LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_BYTES,
        file_bytes: FILE_BYTES,
        background,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    }
}

/// A log of the smallest ring on a new simulated machine.
struct Bed {
    sim: SimBackend,
    manifest: Arc<Manifest>,
    log: Arc<Log>,
}

fn bed(background: Background) -> Bed {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let manifest = Arc::new(Manifest::default());
    let host = Arc::clone(&manifest) as Arc<dyn wal::Host>;
    let log = Arc::new(Log::open(Arc::new(sim.clone()), options(background), host).unwrap());
    Bed { sim, manifest, log }
}

impl Bed {
    /// Runs `write` in a thread for each of these lengths, the first in this one.
    fn in_threads<T: Send + 'static>(&self, lengths: &[usize], write: fn(&Log, usize) -> T) -> Vec<T> {
        let (first, others) = lengths.split_first().unwrap();
        let threads: Vec<_> = others
            .iter()
            .map(|&length| {
                let log = Arc::clone(&self.log);
                thread::spawn(move || write(&log, length))
            })
            .collect();
        let mut results = vec![write(&self.log, *first)];
        results.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
        results
    }

    /// The power fails with nothing kept that was not synced: the lengths of the records that are there all the same.
    fn after_a_power_cut(&self) -> Vec<usize> {
        let sim = SimBackend::from_image(self.sim.snapshot().power_cut_none(), 1);
        let options = options(Background::Manual);
        let input = ReplayInput {
            directory: options.directory,
            store_id: options.store_id,
            incarnation: options.incarnation,
            incarnation_start: options.start,
            from: options.start,
            files: self.manifest.files(),
            file_bytes: options.file_bytes,
            ring_path: options.ring_path,
            ring_bytes: options.ring_bytes,
            ring_file_bytes: options.ring_bytes,
        };
        let mut lengths = Vec::new();
        let mut queue = sim.queue(1).unwrap();
        replay(&sim, &mut *queue, &input, &mut |_, payload| {
            lengths.push(payload.len());
            assert!(payload.iter().all(|&byte| usize::from(byte) == payload.len() % 251));
            Ok(())
        })
        .unwrap();
        lengths
    }
}

fn append(log: &Log, length: usize) -> Seq {
    let byte = u8::try_from(length % 251).unwrap();
    log.append(&mut record(&vec![byte; length])).unwrap().end
}

fn append_durably(log: &Log, length: usize) {
    let end = append(log, length);
    log.wait_durable(end).unwrap();
    assert!(log.durable() >= end);
}

fn every_writer_is_acknowledged(background: Background, switches: usize, lengths: &'static [usize]) {
    explore(switches, move || {
        let bed = bed(background);
        bed.in_threads(lengths, append_durably);
        let mut found = bed.after_a_power_cut();
        found.sort_unstable();
        assert_eq!(found, lengths);
    });
}

#[test]
fn two_writers_run_their_own_rounds() {
    every_writer_is_acknowledged(Background::Manual, 2, &[10, 40]);
}

#[test]
fn three_writers_run_their_own_rounds() {
    every_writer_is_acknowledged(Background::Manual, 1, &[10, 20, 40]);
}

#[test]
fn two_writers_and_the_commit_thread_share_the_token() {
    every_writer_is_acknowledged(Background::Threads, 2, &[10, 40]);
}

/// A writer gives its place up: others are acknowledged, in front of it and behind, and nothing of it comes back.
#[test]
fn a_reservation_that_is_dropped_holds_nobody_up() {
    for background in [Background::Manual, Background::Threads] {
        explore(2, move || {
            let bed = bed(background);
            bed.in_threads(&[10, 40], |log, length| {
                let mut record = record(&vec![u8::try_from(length).unwrap(); length]);
                let reservation = log.reserve(&mut record).unwrap();
                if length == 10 {
                    drop(reservation)
                } else {
                    log.wait_durable(reservation.publish().end).unwrap()
                }
            });
            assert_eq!(bed.log.published(), Seq::new(32 + 64));
            assert_eq!(bed.after_a_power_cut(), [40]);
        });
    }
}

/// Two records of a quarter of the ring each: nothing else fits until a round has made room.
#[test]
fn writers_wait_for_room_in_the_ring() {
    explore(1, || {
        let bed = bed(Background::Manual);
        bed.in_threads(&[900, 901], |log, length| {
            for _ in 0..3 {
                append(log, length);
            }
        });
        bed.log.sync().unwrap();
        let mut found = bed.after_a_power_cut();
        found.sort_unstable();
        assert_eq!(found, [900, 900, 900, 901, 901, 901]);
    });
}

/// A round that was requested and that no thread waits for.
#[test]
fn a_requested_position_becomes_durable() {
    explore(2, || {
        let bed = bed(Background::Threads);
        let ends = bed.in_threads(&[10, 40], |log, length| {
            let end = append(log, length);
            log.request_durable(end);
            end
        });
        bed.log.close().unwrap();
        assert!(ends.iter().all(|&end| bed.log.durable() >= end));
    });
}

/// The sync fails: every waiter gets the error, now or later, and none gets anything else.
#[test]
fn a_failed_sync_wakes_all_waiters() {
    for background in [Background::Manual, Background::Threads] {
        explore(2, move || {
            let bed = bed(background);
            let plan = FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Sync]).path(".log");
            bed.sim.fail(plan);
            let outcomes = bed.in_threads(&[10, 40], |log, length| {
                let appended = log.append(&mut record(&vec![1; length]));
                appended.and_then(|appended| log.wait_durable(appended.end))
            });
            for outcome in outcomes {
                assert!(matches!(outcome, Err(Error::Halted { .. })), "{outcome:?}");
            }
        });
    }
}
