//! The whole comparison: loads each store's data sets once, lets the stores take turns, and writes the report.
//!
//! Nothing runs beside a run: the next process starts after the previous one has ended. Results are written at once, so a
//! comparison that is stopped leaves its results so far. A store that fails is left out with a note; a store that gives a
//! wrong answer ends everything. All of it keeps to a [`Budget`] of time.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::budget::{self, Budget};
use crate::child::{self, DEVICE, Job};
use crate::device;
use crate::error::{Error, Result};
use crate::machine::{self, MemoryLimit, now, pause};
use crate::options::Options;
use crate::report::{self, Header};
use crate::result::{FOREIGN_LIMIT, Run};
use crate::workload::{Family, Workload};

/// The signal that the kernel sends to a process above its memory limit, SIGKILL.
const KILLED: i32 = 9;

/// The longest that a load may take.
const LOAD_PATIENCE: Duration = Duration::from_mins(2);

/// The longest time of a run beyond its own length: a store that hangs is left out.
const RUN_PATIENCE: Duration = Duration::from_mins(1);

/// Compares and writes everything into the output directory.
///
/// # Errors
/// A store gave a wrong answer or failed (then there is a report all the same), or a file could not be written.
pub fn run(options: &Options) -> Result<()> {
    let begin = now();
    for dir in [&options.out, &options.dir] {
        fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
    }
    let budget = Budget::new(begin, Duration::from_secs_f64(options.minutes * 60.0));
    let mut session = Session {
        options,
        budget,
        seconds: options.seconds,
        shortest: options.seconds,
        runs: Vec::new(),
        failures: Vec::new(),
        given_up: Vec::new(),
        loaded: Vec::new(),
        limits: 0,
    };
    say(&format!(
        "expected to take {:.1} min; ends after {:.1} min at most",
        budget::estimate(options).as_secs_f64() / 60.0,
        options.minutes
    ));
    let limit = memory_limit();
    let result = session.run_all();
    // Data sets are useless to the next comparison, which may be of another version.
    let removed = fs::remove_dir_all(&options.dir).map_err(Error::io("remove", &options.dir));
    let header = Header::collect(options, &limit, (begin.elapsed(), session.shortest));
    report::write(&options.out, &header, &session.runs, &session.failures)?;
    result?;
    removed?;
    match session.failures.first() {
        Some(first) => Err(Error::Usage(format!("{} failed; {first}", session.failures.len()))),
        None => Ok(()),
    }
}

/// Whether there can be a memory limit, as a sentence of the report.
fn memory_limit() -> String {
    match MemoryLimit::new(&format!("esker-compare-{}", std::process::id()), 64 << 20) {
        Ok(_) => {
            "each run in a control group that limits anonymous memory and page cache together".to_owned()
        }
        Err(error) => {
            format!("**no limit could be set** ({error}): buffered stores had all of the page cache")
        }
    }
}

struct Session<'a> {
    options: &'a Options,
    budget: Budget,
    /// Length of the runs of the present workload, and the shortest of all so far.
    seconds: f64,
    shortest: f64,
    runs: Vec<Run>,
    failures: Vec<String>,
    /// Stores that failed in the present workload: another round would fail too, and cost time.
    given_up: Vec<String>,
    /// Stores that have their data set of the present family.
    loaded: Vec<&'static str>,
    /// Memory limits made so far, to name them.
    limits: u32,
}

impl Session<'_> {
    fn run_all(&mut self) -> Result<()> {
        let mut family = Family::Fresh;
        for (at, workload) in self.options.workloads.iter().enumerate() {
            let to_come = self.options.workloads.get(at..).unwrap_or_default();
            self.seconds = self.budget.seconds(now(), self.options, to_come, family);
            self.shortest = self.shortest.min(self.seconds);
            self.given_up.clear();
            if workload.family != family {
                self.drop_data(family)?;
                family = workload.family;
                self.load_all(workload)?;
            }
            for round in 1..=self.options.rounds {
                if device::has_loop_for(workload) {
                    self.turn(DEVICE, workload, round)?;
                }
                for kind in &self.options.stores {
                    if family == Family::Fresh || self.loaded.contains(&kind.name) {
                        self.turn(kind.name, workload, round)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Drops the data of a finished family, so that only one family at a time takes space.
    fn drop_data(&mut self, family: Family) -> Result<()> {
        self.loaded.clear();
        let dir = self.options.dir.join(format!("{family:?}"));
        if dir.exists() { fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir)) } else { Ok(()) }
    }

    fn load_all(&mut self, workload: &Workload) -> Result<()> {
        for kind in &self.options.stores {
            let begin = now();
            let mut job = self.job(kind.name, workload, 1)?;
            job.is_load = true;
            // Loads are not measured, and are faster without a limit.
            match self.start(&job, LOAD_PATIENCE) {
                Ok(()) => self.loaded.push(kind.name),
                Err(wrong @ Error::Wrong { .. }) => return Err(wrong),
                Err(error) => self.fail(&format!("{} load of {:?}: {error}", kind.name, workload.family)),
            }
            let took = begin.elapsed().as_secs_f64();
            say(&format!("{:<10} loaded {:?} in {took:.1} s", kind.name, workload.family));
        }
        Ok(())
    }

    fn fail(&mut self, what: &str) {
        say(what);
        self.failures.push(what.to_owned());
    }

    /// A job with a directory: that of the data set, or an empty one.
    fn job(&self, store: &str, workload: &Workload, round: u32) -> Result<Job> {
        let scale = self.options.size.scale(workload.family);
        let dir = self.options.dir.join(format!("{:?}", workload.family)).join(store);
        if workload.family == Family::Fresh && dir.exists() {
            fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
        }
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        Ok(Job {
            store: store.to_owned(),
            workload: workload.name.to_owned(),
            is_load: false,
            dir,
            records: scale.records,
            memory_bytes: scale.memory_bytes,
            round,
            seconds: self.seconds,
            door: None,
            output: self.options.dir.join("run.json"),
        })
    }

    /// One run of one store.
    fn turn(&mut self, store: &str, workload: &Workload, round: u32) -> Result<()> {
        if self.given_up.iter().any(|name| name == store) {
            return Ok(());
        }
        let mut job = self.job(store, workload, round)?;
        self.limits += 1;
        let name = format!("esker-compare-{}-{}", std::process::id(), self.limits);
        let limit = MemoryLimit::new(&name, job.memory_bytes).ok();
        job.door = limit.as_ref().map(MemoryLimit::door);
        let lengths = workload.lengths();
        let patience =
            RUN_PATIENCE + Duration::from_secs_f64(job.seconds * (lengths.warm_up + lengths.at_most));
        match self.start(&job, patience).and_then(|()| read_run(&job.output)) {
            Ok(run) => self.take(run)?,
            Err(wrong @ Error::Wrong { .. }) => return Err(wrong),
            Err(error) => {
                self.fail(&format!("{store} {} round {round}: {error}", workload.name));
                self.given_up.push(store.to_owned());
            }
        }
        if workload.family == Family::Fresh {
            fs::remove_dir_all(&job.dir).map_err(Error::io("remove", &job.dir))?;
        }
        Ok(())
    }

    fn take(&mut self, run: Run) -> Result<()> {
        let row = &run.row;
        say(&format!(
            "{:<10} {:<15} {:>12.0}/s  p50 {:>9.1} us  p99 {:>9.1} us  {:>4.0} MiB{}",
            row.store,
            row.workload,
            row.ops_per_s,
            row.p50_us,
            row.p99_us,
            report::mebibytes(row.peak_rss_bytes),
            if row.foreign_cpu >= FOREIGN_LIMIT { "  ~" } else { "" },
        ));
        self.runs.push(run);
        report::write_rows(&self.options.out, &self.runs)
    }

    /// Runs a job in a process of its own, to its end.
    fn start(&self, job: &Job, patience: Duration) -> Result<()> {
        let failed = |what: String| move |source| Error::Io { what, source };
        let patience = patience.min(self.budget.left(now()));
        if patience.is_zero() {
            return Err(Error::Usage("left out: the time was up".to_owned()));
        }
        machine::evict(&self.options.dir);
        let program = std::env::current_exe().map_err(failed("find this program".to_owned()))?;
        let text = serde_json::to_string(job).map_err(|error| Error::Usage(error.to_string()))?;
        let mut command = Command::new(program);
        let mut process =
            command.args(["--child", &text]).spawn().map_err(failed("start this program".to_owned()))?;
        let end = now() + patience;
        let status = loop {
            if let Some(status) = process.try_wait().map_err(failed("wait for a run".to_owned()))? {
                break status;
            }
            if now() >= end {
                process.kill().and_then(|()| process.wait()).map_err(failed("end a run".to_owned()))?;
                return Err(Error::Usage(format!("no end after {} s", patience.as_secs())));
            }
            pause(Duration::from_millis(20));
        };
        match status.code() {
            Some(0) => Ok(()),
            Some(code) if code == i32::from(child::WRONG) => {
                let what = format!("in {}; see above", job.workload);
                Err(Error::Wrong { store: job.store.clone(), what })
            }
            None if job.door.is_some() && status.signal() == Some(KILLED) => {
                let limit = job.memory_bytes >> 20;
                let what = format!("killed by the kernel, which happens above the limit of {limit} MiB");
                Err(Error::Usage(what))
            }
            _ => Err(Error::Usage(format!("ended with {status}"))),
        }
    }
}

fn read_run(path: &Path) -> Result<Run> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

/// Shows progress to the user.
fn say(line: &str) {
    // A closed standard error does not end the comparison.
    let _ = writeln!(std::io::stderr(), "{line}");
}
