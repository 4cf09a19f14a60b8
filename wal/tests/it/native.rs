//! The log on the disk of this machine, with real threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{Manifest, RING_FIRST_BYTES, record};
use aio::{Backend, NativeBackend};
use wal::{Log, LogOptions, ReplayInput, Seq, replay};

fn stress(threads: u64, records: u64) {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(NativeBackend::new());
    let manifest = Arc::new(Manifest::default());
    let options = LogOptions {
        ring_bytes: 256 << 10,
        ring_file_bytes: RING_FIRST_BYTES,
        file_bytes: 256 << 10,
        ..LogOptions::new(scratch.path(), 11, 1, Seq::ZERO)
    };
    let ring_path = options.ring_path.clone();
    let host: Arc<Manifest> = Arc::clone(&manifest);
    let log = Arc::new(Log::open(Arc::clone(&backend), options, host).unwrap());
    let begun = backend.now();
    let expected = Arc::new(Mutex::new(BTreeMap::new()));
    let writers: Vec<_> = (0..threads)
        .map(|thread| {
            let (log, expected) = (Arc::clone(&log), Arc::clone(&expected));
            std::thread::Builder::new()
                .spawn(move || {
                    for nth in 0..records {
                        let payload = format!("{thread}-{nth}-").repeat(10);
                        let at = log.append(&mut record(payload.as_bytes())).unwrap();
                        log.wait_durable(at.end).unwrap();
                        assert!(log.durable() >= at.end);
                        expected.lock().unwrap().insert(at.seq, payload);
                    }
                })
                .unwrap()
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let took = backend.now().saturating_sub(begun);
    let metrics = log.metrics();
    println!("{threads} threads: {} commits in {took:?}: {metrics:?}", threads * records);
    // On a busy machine a writer may be delayed for so long that a claim group is due.
    assert!(metrics.syncs - metrics.claim_groups <= threads * records, "more syncs than commits");
    log.close().unwrap();
    let end = log.published();
    drop(log);
    let input = ReplayInput {
        directory: scratch.path().to_owned(),
        store_id: 11,
        incarnation: 1,
        incarnation_start: Seq::ZERO,
        from: Seq::ZERO,
        files: manifest.files(),
        file_bytes: 256 << 10,
        ring_path,
        ring_bytes: 256 << 10,
        ring_file_bytes: manifest.ring_file_bytes(),
    };
    assert_replays(&*backend, &input, end, &expected.lock().unwrap());
}

fn assert_replays(backend: &dyn Backend, input: &ReplayInput, end: Seq, expected: &BTreeMap<Seq, String>) {
    let mut queue = backend.queue(4).unwrap();
    let mut found = BTreeMap::new();
    let replayed = replay(backend, &mut *queue, input, &mut |seq, payload| {
        found.insert(seq, String::from_utf8(payload.to_vec()).unwrap());
        Ok(())
    })
    .unwrap();
    assert_eq!((replayed.end, replayed.ring_bytes), (end, 0));
    assert_eq!(&found, expected);
}

#[test]
fn one_thread_commits_durably() {
    stress(1, 400);
}

#[test]
fn eight_threads_commit_durably() {
    stress(8, 400);
}

#[test]
fn sixty_four_threads_commit_durably() {
    stress(64, 100);
}

#[test]
fn unwaited_records_are_drained_in_the_background() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = LogOptions {
        ring_bytes: 64 << 10,
        ring_file_bytes: 64 << 10,
        file_bytes: 64 << 10,
        drain_bytes: 8 << 10,
        ..LogOptions::new(scratch.path(), 11, 1, Seq::ZERO)
    };
    let log = Log::open(Arc::new(NativeBackend::new()), options, Arc::new(Manifest::default())).unwrap();
    for _ in 0..3000 {
        log.append(&mut record(&[5; 100])).unwrap();
    }
    let end = log.published();
    // No thread waits in the log: the commit thread runs the rounds by itself.
    while log.durable() < end {
        std::thread::yield_now();
    }
    log.close().unwrap();
}

/// With an interval of an hour, only a wake-up can make the commit thread run a round.
#[test]
fn requests_and_full_drains_wake_the_sleeping_commit_thread() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = LogOptions {
        ring_bytes: 64 << 10,
        ring_file_bytes: 64 << 10,
        file_bytes: 64 << 10,
        drain_bytes: 8 << 10,
        drain_interval: Duration::from_hours(1),
        ..LogOptions::new(scratch.path(), 11, 1, Seq::ZERO)
    };
    let log = Log::open(Arc::new(NativeBackend::new()), options, Arc::new(Manifest::default())).unwrap();
    for _ in 0..50 {
        let end = log.append(&mut record(b"requested")).unwrap().end;
        log.request_durable(end);
        while log.durable() < end {
            std::thread::yield_now();
        }
        let begin = log.durable();
        while log.published().since(begin) < 8 << 10 {
            log.append(&mut record(&[5; 1000])).unwrap();
        }
        while log.durable() == begin {
            std::thread::yield_now();
        }
    }
    log.close().unwrap();
}
