//! `soak`: a real store on a real disk for a chosen time. A worker process does everything at once and is killed at random
//! moments. In every third incarnation the device fails now and then. After each one the store is opened, and all of it is
//! compared with the acknowledged writes.
//!
//! ```text
//!   worker   | open, write, read, scan, flush, compact ... | SIGKILL    or: halted by a fault, everything refused
//!   board    acknowledgements, counts, latencies           '--> survive
//!   parent                                                      open, compare, verify, close, next worker
//! ```
//!
//! Invariant: everything acknowledged of each writer is there, and at most its one write in flight beside it. Both
//! keyspaces are equal. The parent leaks no handles and no threads.

pub(crate) mod board;
mod faulty;
pub(crate) mod plan;
mod worker;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use clap::Args;
use esker::Db;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::report::{Check, Failure, say};
use crate::seed::SeedArg;
use board::{Board, Count, Latencies, usage};
use plan::{BUDGET_BYTES, KEYSPACES, WRITERS, key, number_of, slot_of, value};

/// In an incarnation with faults one write or sync in this many fails.
const FAULT_ONE_IN: u64 = 1000;
/// One incarnation in this many has faults.
const FAULTY_EVERY: u64 = 3;
const SIGKILL: i32 = 9;
/// A worker that has not opened its store by then hangs.
const OPEN_LIMIT: Duration = Duration::from_mins(1);
const LONGEST_LIFE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(10);

/// Options of a soak.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// The duration in minutes.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Where the store is made; must be empty or absent. It stays there after a failure.
    #[arg(long, default_value = "soak-store")]
    dir: PathBuf,
    /// Decides the written data and the moments of the kills.
    #[command(flatten)]
    seed: SeedArg,
    /// The last line is one JSON object with the figures.
    #[arg(long)]
    json: bool,
}

/// Options of the worker process.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    dir: PathBuf,
    board: PathBuf,
    seed: u64,
    /// One write or sync in this many fails.
    #[arg(long)]
    faults: Option<u64>,
}

/// The hidden command that a soak starts.
pub(crate) fn work(args: &WorkerArgs) -> Check {
    worker::work(&args.dir, &args.board, args.seed, args.faults)
}

/// The measurements of one quarter of the time.
#[derive(Debug)]
struct Quarter {
    writes: Latencies,
    reads: Latencies,
    /// The last reading of each incarnation: resident KiB, handles, threads.
    usage: Vec<[u64; 3]>,
}

/// A running soak.
struct Soak<'a> {
    args: &'a SoakArgs,
    seed: u64,
    clock: NativeBackend,
    rng: fastrand::Rng,
    began: Duration,
    length: Duration,
    /// For each writer, the number of its writes that are in the store.
    settled: [u64; WRITERS],
    /// The content of the store: the number of the write that put each key.
    expected: BTreeMap<Vec<u8>, u64>,
    totals: BTreeMap<&'static str, u64>,
    quarters: Vec<Quarter>,
    /// The parent's handles and threads after its first check.
    resting: Option<[u64; 2]>,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(format!("{what}: {error}"))
}

/// Runs the soak and prints the verdict.
pub(crate) fn run(args: &SoakArgs) -> Check {
    if !(args.minutes > 0.0 && args.minutes < 1e6) {
        return Err(Failure::new("--minutes must be above 0"));
    }
    std::fs::create_dir_all(&args.dir).map_err(io("make the directory"))?;
    if std::fs::read_dir(&args.dir).map_err(io("read the directory"))?.next().is_some() {
        return Err(Failure::new(format!("{} is not empty: choose another directory", args.dir.display())));
    }
    let seed = args.seed.choose()?;
    let clock = NativeBackend::new();
    let quarter = || Quarter { writes: Latencies::new(), reads: Latencies::new(), usage: Vec::new() };
    let mut soak = Soak {
        args,
        began: clock.now(),
        clock,
        seed,
        rng: fastrand::Rng::with_seed(seed),
        length: Duration::from_secs_f64(args.minutes * 60.0),
        settled: [0; WRITERS],
        expected: BTreeMap::new(),
        totals: BTreeMap::new(),
        quarters: (0..4).map(|_| quarter()).collect(),
        resting: None,
    };
    let figures = soak.all().map_err(|failure| failure.at(format!("seed {seed}, {}", args.dir.display())))?;
    std::fs::remove_dir_all(&args.dir).map_err(io("remove the store"))?;
    say(format!("soak: nothing wrong in {:.0} s, seed {seed}", soak.length.as_secs_f64()));
    if args.json {
        say(&figures);
    } else if let Value::Object(figures) = &figures {
        for (name, figure) in figures {
            say(format!("{name:20} {figure}"));
        }
    }
    Ok(())
}

impl Soak<'_> {
    fn store(&self) -> PathBuf {
        self.args.dir.join("store")
    }

    fn add(&mut self, name: &'static str, amount: u64) {
        *self.totals.entry(name).or_default() += amount;
    }

    fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.began)
    }

    /// Runs incarnations until the time is over, and returns the figures.
    fn all(&mut self) -> Check<Value> {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(self.length.as_secs())
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}") {
            bar.set_style(style);
        }
        let mut incarnation = 0;
        while self.elapsed() < self.length {
            let faulty = incarnation % FAULTY_EVERY == FAULTY_EVERY - 1;
            self.incarnation(incarnation, faulty)
                .map_err(|failure| failure.at(format!("incarnation {incarnation}")))?;
            incarnation += 1;
            bar.set_position(self.elapsed().min(self.length).as_secs());
            let total = |name: &str| self.totals.get(name).copied().unwrap_or(0);
            bar.set_message(format!(
                "{} kills, {} faults, {} writes",
                total("kills"),
                total("faults"),
                total("writes")
            ));
        }
        bar.finish_and_clear();
        self.totals.insert("incarnations", incarnation);
        self.compare(true).map_err(|failure| failure.at("the end"))?;
        Ok(self.figures())
    }

    /// Runs one worker to its end, and checks its store.
    fn incarnation(&mut self, incarnation: u64, faulty: bool) -> Check {
        let path = self.args.dir.join("board");
        let board = Board::create(&path, &self.settled).map_err(io("the board"))?;
        let mut child = self.start(incarnation, &path, faulty)?;
        let ended = self.end(&mut child, &board);
        // On every path no worker stays behind.
        let _ = child.kill();
        let status = child.wait().map_err(io("wait for the worker"))?;
        self.judge(ended?.unwrap_or(status), &board, faulty)?;
        self.take(&board).map_err(io("the board"))?;
        let acknowledged = board.acknowledged().map_err(io("the board"))?;
        // The check counts the handles of this process.
        drop(board);
        self.settle(&acknowledged)?;
        self.compare(incarnation % 4 == 3)
    }

    fn start(&mut self, incarnation: u64, board: &Path, faulty: bool) -> Check<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.args.dir.join("worker.log"));
        let mut command = Command::new(std::env::current_exe().map_err(io("find this program"))?);
        command.arg("soak-worker").arg(self.store()).arg(board);
        command.arg((self.seed ^ incarnation << 32).to_string());
        if faulty {
            command.arg("--faults").arg(FAULT_ONE_IN.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.map_err(io("worker.log"))?);
        command.spawn().map_err(io("start the worker"))
    }

    /// Kills the worker at a random time after its store is open. Returns its status if it ended by itself before.
    fn end(&mut self, child: &mut Child, board: &Board) -> Check<Option<ExitStatus>> {
        let started = self.clock.now();
        while board.count(Count::Opened).map_err(io("the board"))? == 0 {
            if let Some(status) = child.try_wait().map_err(io("wait for the worker"))? {
                return Ok(Some(status));
            }
            if self.clock.now().saturating_sub(started) > OPEN_LIMIT {
                return Err(Failure::new("a worker does not open the store: it hangs"));
            }
            self.clock.park(POLL);
        }
        let longest = (self.length / 12).clamp(Duration::from_millis(300), LONGEST_LIFE);
        let kill_at = self.clock.now() + longest.mul_f64(self.rng.f64());
        while self.clock.now() < kill_at {
            if let Some(status) = child.try_wait().map_err(io("wait for the worker"))? {
                return Ok(Some(status));
            }
            self.clock.park(POLL);
        }
        child.kill().map_err(io("kill the worker"))?;
        Ok(None)
    }

    /// A worker dies of the signal, or ends because a fault has halted its store.
    fn judge(&mut self, status: ExitStatus, board: &Board, faulty: bool) -> Check {
        self.add("faults", board.count(Count::Faults).map_err(io("the board"))?);
        if status.signal() == Some(SIGKILL) {
            self.add("kills", 1);
            return Ok(());
        }
        let halted = board.count(Count::Halted).map_err(io("the board"))? == 1;
        if status.success() && halted && faulty {
            self.add("halted", 1);
            return Ok(());
        }
        let log = std::fs::read_to_string(self.args.dir.join("worker.log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(8).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Err(Failure::new(format!("the worker ended by itself ({status}): {}", last.join(" | "))))
    }

    /// Adds the counts of the worker.
    fn take(&mut self, board: &Board) -> std::io::Result<()> {
        for (name, count) in [
            ("writes", Count::Writes),
            ("reads", Count::Reads),
            ("scans", Count::Scans),
            ("snapshots", Count::Snapshots),
            ("jobs", Count::Jobs),
        ] {
            self.add(name, board.count(count)?);
        }
        let share = self.elapsed().as_secs_f64() / self.length.as_secs_f64();
        let nth = [0.25, 0.5, 0.75].iter().filter(|end| share >= **end).count();
        let usage = [board.count(Count::RssKib)?, board.count(Count::Handles)?, board.count(Count::Threads)?];
        let [writes, reads] = board.latencies()?;
        let quarter = &mut self.quarters[nth];
        quarter.writes.merge(&writes);
        quarter.reads.merge(&reads);
        if usage[0] > 0 {
            quarter.usage.push(usage);
        }
        Ok(())
    }

    fn open(&self) -> Check<Db> {
        Ok(Db::builder().memory_budget_bytes(BUDGET_BYTES).open(self.store())?)
    }

    /// Finds out which writes are there: all acknowledged ones of each writer, and perhaps the next one.
    fn settle(&mut self, acknowledged: &[u64; WRITERS]) -> Check {
        let db = self.open()?;
        let keyspace = db.keyspace(KEYSPACES[0])?;
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            for number in self.settled[writer] + 1..=*acknowledged {
                self.apply(writer, number);
            }
            let next = acknowledged + 1;
            let (slot, deletes) = slot_of(writer, next);
            let key = key(writer, slot);
            let there = match keyspace.get(&key)? {
                Some(found) => !deletes && number_of(&key, &found).map_err(Failure::new)? == next,
                // If the key was absent anyway, there is no difference; the write is made once more.
                None => deletes && self.expected.contains_key(&key),
            };
            self.settled[writer] = acknowledged + u64::from(there);
            if there {
                self.apply(writer, next);
                self.add("in_flight_kept", 1);
            }
        }
        Ok(db.close()?)
    }

    fn apply(&mut self, writer: usize, number: u64) {
        let (slot, deletes) = slot_of(writer, number);
        if deletes {
            self.expected.remove(&key(writer, slot));
        } else {
            self.expected.insert(key(writer, slot), number);
        }
    }

    /// Checks every pair of both keyspaces, with `verify` every checksum, and then that the parent has leaked nothing.
    fn compare(&mut self, verify: bool) -> Check {
        let db = self.open()?;
        for name in KEYSPACES {
            let keyspace = db.keyspace(name)?;
            let mut iter = keyspace.iter();
            let mut expected = self.expected.iter();
            while let Some((found_key, found)) = iter.next_ref()? {
                let name_of = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
                let number = number_of(found_key, found).map_err(Failure::new)?;
                match expected.next() {
                    Some((key, wanted)) if key == found_key && *wanted == number => {}
                    Some((key, wanted)) => {
                        return Err(Failure::new(format!(
                            "{name}: expected {} of write {wanted}, found {} of write {number}",
                            name_of(key),
                            name_of(found_key)
                        )));
                    }
                    None => return Err(Failure::new(format!("{name}: {} is too much", name_of(found_key)))),
                }
            }
            if let Some((key, wanted)) = expected.next() {
                let key = String::from_utf8_lossy(key);
                return Err(Failure::new(format!("{name}: {key} of write {wanted} is gone")));
            }
        }
        if verify {
            db.verify().map_err(|error| Failure::from(error).at("verify"))?;
            self.add("verified", 1);
        }
        db.close()?;
        self.rest()
    }

    /// A closed store leaves nothing behind.
    fn rest(&mut self) -> Check {
        let [rss_kib, handles, threads] = usage().map_err(io("look at this process"))?;
        self.totals.insert("parent_rss_kib", rss_kib);
        let now = [handles, threads];
        let first = *self.resting.get_or_insert(now);
        if now == first {
            return Ok(());
        }
        Err(Failure::new(format!("handles and threads of this process went from {first:?} to {now:?}")))
    }

    fn figures(&self) -> Value {
        let total = |name: &str| self.totals.get(name).copied().unwrap_or(0);
        let mean = |quarter: &Quarter, at: usize| {
            let sum: u64 = quarter.usage.iter().map(|usage| usage[at]).sum();
            sum / (quarter.usage.len() as u64).max(1)
        };
        let (first, last) = (&self.quarters[0], &self.quarters[3]);
        let ends = |figure: &dyn Fn(&Quarter) -> u64| json!([figure(first), figure(last)]);
        let live: usize = self.expected.iter().map(|(key, number)| pair_bytes(key, *number)).sum();
        json!({
            "command": "soak",
            "seed": self.seed,
            "seconds": self.elapsed().as_secs(),
            "incarnations": total("incarnations"),
            "kills": total("kills"),
            "faults": total("faults"),
            "halted": total("halted"),
            "in_flight_kept": total("in_flight_kept"),
            "verified": total("verified"),
            "writes": total("writes"),
            "reads": total("reads"),
            "scans": total("scans"),
            "snapshots": total("snapshots"),
            "jobs": total("jobs"),
            // Of the first quarter and of the last.
            "durable_p50_us": ends(&|quarter| quarter.writes.percentile(50)),
            "durable_p99_us": ends(&|quarter| quarter.writes.percentile(99)),
            "get_p50_us": ends(&|quarter| quarter.reads.percentile(50)),
            "get_p99_us": ends(&|quarter| quarter.reads.percentile(99)),
            "worker_rss_kib": ends(&|quarter| mean(quarter, 0)),
            "worker_handles": ends(&|quarter| mean(quarter, 1)),
            "worker_threads": ends(&|quarter| mean(quarter, 2)),
            "parent_rss_kib": total("parent_rss_kib"),
            "parent_handles": self.resting.map(|resting| resting[0]),
            "parent_threads": self.resting.map(|resting| resting[1]),
            "live_bytes": live * KEYSPACES.len(),
            "store_bytes": size_of_dir(&self.store()),
        })
    }
}

fn pair_bytes(key: &[u8], number: u64) -> usize {
    plan::slot_of_key(key).map_or(0, |(writer, _)| key.len() + value(writer, number).len())
}

/// The bytes of the files below a directory.
fn size_of_dir(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of_dir(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
