//! SIGKILL at any moment: everything acknowledged is there, and no half batch is visible.
//!
//! The test starts itself again as a writer. Batch `n` writes to two keyspaces, and deletes earlier keys in both. So the
//! content after `n` batches is known, and a half batch is a difference between the keyspaces. The writer prints `@ack n`
//! to its standard error, a pipe, after the call has returned. A second thread flushes and compacts all the time, and
//! prints when it begins and ends. The parent kills the writer in the middle of either, opens the store, and compares all
//! of it with the content after everything acknowledged, or with that and the one batch in flight. Then the next writer
//! continues from there, so that one store is killed again and again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use esker::{Db, Durability};
use fastrand::Rng;

use crate::{loud, seed, temp_dir};

/// Set for the writer: directory, level, and the number of its first batch.
const WRITER: &str = "ESKER_TEST_WRITER";
/// The smallest sensible store, so that flushes and log files come round quickly.
const BUDGET_BYTES: u64 = 16 << 20;
const SIGKILL: i32 = 9;
const KEYSPACES: [&str; 2] = ["left", "right"];
/// A batch also deletes the key that is this many batches old, in both keyspaces, if its number is divisible.
const DELETE_EVERY: u64 = 7;
const DELETE_BACK: u64 = 5;

fn key(number: u64) -> Vec<u8> {
    // Spread, so that flushes overlap and compactions have something to merge.
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

fn value(number: u64) -> Vec<u8> {
    let length = 64 + usize::try_from(number * 37 % 2000).expect("small");
    number.to_string().into_bytes().into_iter().cycle().take(length).collect()
}

/// The content of each keyspace after this many batches.
fn model(batches: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let deleted = |number: u64| {
        let by = number + DELETE_BACK;
        by.is_multiple_of(DELETE_EVERY) && by <= batches
    };
    (1..=batches).filter(|number| !deleted(*number)).map(|number| (key(number), value(number))).collect()
}

fn say(text: &str) {
    // One call per line, so that lines of two threads do not mix.
    std::io::stderr().write_all(format!("@{text}\n").as_bytes()).expect("the parent listens");
}

fn open(dir: &Path) -> Db {
    Db::builder().memory_budget_bytes(BUDGET_BYTES).open(dir).expect("the store opens")
}

/// The writer; does nothing in an ordinary run of the tests.
#[test]
fn writer() {
    let Ok(task) = std::env::var(WRITER) else { return };
    let mut words = task.splitn(3, ' ');
    let mut word = || words.next().expect("three words");
    let level = if word() == "power" { Durability::Power } else { Durability::Process };
    let first: u64 = word().parse().expect("a number");
    let db = open(Path::new(word()));
    let [left, right] = KEYSPACES.map(|name| db.keyspace(name).expect("a keyspace"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                say("job begins");
                if round.is_multiple_of(3) { db.compact() } else { db.flush() }.expect("the job runs");
                say("job ends");
                round += 1;
            }
        });
        for number in first..first + 1_000_000 {
            let mut batch = db.batch();
            batch.durability(level);
            for keyspace in [&left, &right] {
                batch.put(keyspace, key(number), value(number));
                if number.is_multiple_of(DELETE_EVERY) && number > DELETE_BACK {
                    batch.delete(keyspace, key(number - DELETE_BACK));
                }
            }
            batch.commit().expect("the batch is written");
            say(&format!("ack {number}"));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum When {
    /// After this many acknowledgements.
    Acknowledged(u64),
    /// When the job of this number has begun.
    InJob(usize),
}

/// The observations of a writer until its death.
#[derive(Debug, Default)]
struct Died {
    acknowledged: u64,
    in_job: bool,
}

/// Runs a writer from batch `done + 1` on, and kills it.
fn kill(dir: &Path, level: &str, done: u64, when: When) -> Died {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "kill::writer", "--nocapture"])
        .env(WRITER, format!("{level} {} {}", done + 1, dir.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the writer starts");
    let pipe = child.stderr.take().expect("a pipe");
    let died = listen(pipe, done, when, || child.kill().expect("a child can be killed"));
    let status = child.wait().expect("a child ends");
    assert_eq!(status.signal(), Some(SIGKILL), "the writer ended by itself: {status}");
    died
}

fn listen(pipe: ChildStderr, done: u64, when: When, mut kill: impl FnMut()) -> Died {
    let mut died = Died { acknowledged: done, in_job: false };
    let (mut jobs, mut killed) = (0, false);
    for line in BufReader::new(pipe).lines() {
        let line = line.expect("text");
        if line == "@job begins" {
            jobs += 1;
            died.in_job = true;
        } else if line == "@job ends" {
            died.in_job = false;
        } else if let Some(number) = line.strip_prefix("@ack ") {
            assert_eq!(number.parse(), Ok(died.acknowledged + 1));
            died.acknowledged += 1;
        } else {
            loud(&line);
        }
        let now = match when {
            When::Acknowledged(count) => died.acknowledged >= done + count,
            // Not before the first acknowledgement: a kill comes between the first and the last record.
            When::InJob(number) => jobs >= number && died.in_job && died.acknowledged > done,
        };
        if now && !killed {
            kill();
            killed = true;
        }
    }
    died
}

/// Compares the store with the model. Returns the number of its batches.
fn check(dir: &Path, acknowledged: u64) -> u64 {
    let db = open(dir);
    let [left, right] = KEYSPACES.map(|name| {
        let keyspace = db.keyspace(name).expect("a keyspace");
        let all = keyspace.iter().map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec())));
        all.collect::<esker::Result<BTreeMap<_, _>>>().expect("the store can be read")
    });
    assert!(left == right, "half a batch: {} keys left, {} right", left.len(), right.len());
    let in_flight = left.contains_key(&key(acknowledged + 1));
    let batches = acknowledged + u64::from(in_flight);
    let expected = model(batches);
    let keyspace = db.keyspace(KEYSPACES[0]).expect("a keyspace");
    for (key, value) in &expected {
        let name = String::from_utf8_lossy(key);
        assert!(left.get(key) == Some(value), "{name} of {batches} batches is gone or changed");
        let got = keyspace.get(key).expect("the store can be read");
        assert_eq!(got.as_deref(), Some(value.as_slice()), "{name}");
    }
    assert_eq!(left.len(), expected.len(), "keys that were deleted, or never written");
    db.close().expect("the store closes");
    batches
}

fn survive(level: &str) {
    let mut random = Rng::with_seed(seed());
    // For a long run ten stores one after the other: each check reads all that the store holds.
    let stores = if std::env::var_os("ESKER_DEEP").is_some() { 10 } else { 1 };
    for _ in 0..stores {
        survive_kills(level, &mut random);
    }
}

/// One store, killed at least 20 times.
fn survive_kills(level: &str, random: &mut Rng) {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let (mut batches, mut kills, mut in_job) = (0, 0, 0);
    while kills < 14 || in_job < 8 {
        assert!(kills < 100, "of {kills} kills only {in_job} were during a flush or a compaction");
        let when = if kills % 2 == 0 {
            When::Acknowledged(1 + random.u64(..150))
        } else {
            When::InJob(1 + random.usize(..5))
        };
        let died = kill(&dir, level, batches, when);
        assert!(died.acknowledged > batches, "killed before the first record");
        kills += 1;
        in_job += u32::from(died.in_job);
        batches = check(&dir, died.acknowledged);
    }
    // Both levels together: at least 40 in all, 10 during jobs.
    while kills < 20 {
        let died = kill(&dir, level, batches, When::Acknowledged(1 + random.u64(..150)));
        batches = check(&dir, died.acknowledged);
        kills += 1;
        in_job += u32::from(died.in_job);
    }
    open(&dir).verify().expect("the store is sound");
    loud(&format!(
        "{level}: {kills} kills, {in_job} of them during a flush or a compaction; {batches} batches"
    ));
}

#[test]
fn acknowledged_power_writes_survive_sigkill() {
    survive("power");
}

#[test]
fn acknowledged_process_writes_survive_sigkill() {
    survive("process");
}

#[test]
fn the_model_deletes_the_keys_that_the_writer_deletes() {
    assert_eq!(model(6).len(), 6);
    assert_eq!(model(7).len(), 6);
    assert!(!model(7).contains_key(&key(2)));
    assert_eq!(model(14).len(), 12);
}
