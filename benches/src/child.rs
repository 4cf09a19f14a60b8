//! One run in its own process: opens a store, warms it up, drives it, and writes its result.
//!
//! The page cache holds nothing of the store's files at the open. A workload that only reads data that fit into memory
//! first walks over all of them; one that reads more than fits first reads for a while.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::data::KEY_BYTES;
use crate::device::{self, Ran};
use crate::drive::{self, Outcome, Plan};
use crate::error::{Error, Result};
use crate::machine::{self, Cost, Reading};
use crate::result::{QUANTILES, Row, Run};
use crate::store::{Config, Kind, Store};
use crate::stores;
use crate::workload::{Family, Step, Workload};

/// Exit code of a process whose store gave a wrong answer.
pub const WRONG: u8 = 3;

/// The name under which the device's own rows stand.
pub const DEVICE: &str = "device";

/// The job of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The store, or [`DEVICE`].
    pub store: String,
    /// The workload.
    pub workload: String,
    /// Only load the data set of the workload's family.
    pub is_load: bool,
    /// The store's directory.
    pub dir: PathBuf,
    /// Records of the data set.
    pub records: u64,
    /// Memory for everything.
    pub memory_bytes: u64,
    /// The repetition, from 1.
    pub round: u32,
    /// The length that [`Workload::lengths`] are multiples of.
    pub seconds: f64,
    /// The file that puts this process under the memory limit.
    pub door: Option<PathBuf>,
    /// Where the [`Run`] goes.
    pub output: PathBuf,
}

/// Does a job given as JSON.
///
/// # Errors
/// The store failed or answered wrong, or a file could not be written.
pub fn run(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).map_err(|error| Error::Usage(format!("a bad job: {error}")))?;
    let workload = Workload::named(&job.workload)
        .ok_or_else(|| Error::Usage(format!("no workload `{}`", job.workload)))?;
    if let Some(door) = &job.door {
        let pid = std::process::id().to_string();
        fs::write(door, pid).map_err(Error::io("come under the memory limit through", door))?;
    }
    machine::evict(&job.dir);
    let run = if job.store == DEVICE {
        measure_device(&job, &workload)?
    } else {
        let kind = stores::named(&job.store)?;
        if job.is_load {
            return drive::load(&*open(&kind, &job, false)?, job.records, workload.value_bytes);
        }
        measure(&kind, &job, &workload)?
    };
    let text = serde_json::to_string(&run).map_err(|error| Error::Usage(error.to_string()))?;
    fs::write(&job.output, text).map_err(Error::io("write", &job.output))
}

fn open(kind: &Kind, job: &Job, is_durable: bool) -> Result<Box<dyn Store>> {
    (kind.open)(&Config { dir: job.dir.clone(), memory_bytes: job.memory_bytes, is_durable })
}

/// The length of a workload's run, and the first number of its random choices.
fn plan(job: &Job, workload: &Workload) -> Plan {
    let lengths = workload.lengths();
    let target_bytes = if workload.fills_memory() { 4 * job.memory_bytes } else { 0 };
    // Different rounds must insert different keys, because they share a data set.
    let first_new = match workload.family {
        Family::Fresh => 0,
        _ => job.records + (u64::from(job.round) << 40),
    };
    Plan {
        workload: *workload,
        records: job.records,
        first_new,
        at_least: Duration::from_secs_f64(job.seconds * lengths.at_least),
        target_bytes,
        at_most: Duration::from_secs_f64(job.seconds * lengths.at_most),
        seed: u64::from(job.round),
    }
}

fn measure(kind: &Kind, job: &Job, workload: &Workload) -> Result<Run> {
    let store = open(kind, job, workload.is_durable())?;
    let plan = plan(job, workload);
    warm_up(kind, job, &*store, &plan)?;

    let before = Reading::take(&job.dir);
    let outcome = drive::run(kind.name, &*store, &plan)?;
    let after = Reading::take(&job.dir);

    let space_bytes = machine::space_bytes(&job.dir);
    drive::check_sample((kind.name, &*store), &plan, &outcome)?;
    let mut run = summarize(job, workload, &outcome, &after.since(&before));
    let live = job.records + outcome.new_records;
    run.row.space_per_user_byte = ratio(space_bytes, live * (KEY_BYTES + workload.value_bytes) as u64);
    if outcome.user_bytes < plan.target_bytes {
        run.notes.push(format!(
            "wrote {:.2} times its memory when the time was up, not 4 times",
            ratio(outcome.user_bytes, job.memory_bytes)
        ));
    }
    Ok(run)
}

/// Brings a store into its settled state.
fn warm_up(kind: &Kind, job: &Job, store: &dyn Store, plan: &Plan) -> Result<()> {
    let (is_scanned, step) = match plan.workload.family {
        Family::Fresh | Family::Overwrite => return Ok(()),
        Family::Hot => (true, plan.workload.step),
        Family::Ycsb => (true, Step::Get),
        Family::Cold => (false, plan.workload.step),
    };
    if is_scanned {
        store.scan(&[0; KEY_BYTES], usize::MAX, &mut |_, _| ())?;
    }
    let time = Duration::from_secs_f64(job.seconds * plan.workload.lengths().warm_up);
    let workload = Workload { step, ..plan.workload };
    let warm = Plan { workload, at_least: time, at_most: time, seed: plan.seed ^ 0xff, ..plan.clone() };
    drive::run(kind.name, store, &warm).map(|_| ())
}

fn measure_device(job: &Job, workload: &Workload) -> Result<Run> {
    let file_bytes = job.records * (KEY_BYTES + workload.value_bytes) as u64;
    let time = Duration::from_secs_f64(job.seconds);
    let Ran { outcome, cost, how } = device::run(workload, &job.dir, file_bytes, time)?;
    let mut run = summarize(job, workload, &outcome, &cost);
    run.notes.push(how);
    Ok(run)
}

fn summarize(job: &Job, workload: &Workload, outcome: &Outcome, cost: &Cost) -> Run {
    let micros = |nanos: u64| ratio(nanos, 1000);
    let at = |quantile| micros(outcome.latency.value_at_quantile(quantile));
    let seconds = outcome.elapsed.as_secs_f64();
    let row = Row {
        store: job.store.clone(),
        workload: job.workload.clone(),
        threads: workload.threads,
        value_bytes: workload.value_bytes,
        ops_per_s: ratio(outcome.operations, 1) / seconds,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: at(1.0),
        cpu_us_per_op: cost.cpu.as_secs_f64() * 1e6 / ratio(outcome.operations.max(1), 1),
        bytes_dirtied_per_user_byte: ratio(cost.dirtied_bytes, outcome.user_bytes),
        device_bytes_per_user_byte: ratio(cost.device_bytes, outcome.user_bytes),
        space_per_user_byte: 0.0,
        peak_rss_bytes: machine::peak_rss_bytes(),
        foreign_cpu: cost.foreign_cpu,
    };
    Run {
        row,
        round: job.round,
        seconds,
        final_sync_seconds: outcome.final_sync.as_secs_f64(),
        user_bytes: outcome.user_bytes,
        notes: Vec::new(),
        latency_us: QUANTILES.iter().map(|quantile| at(*quantile)).collect(),
        pauses_us: outcome.pauses.iter().map(|nanos| micros(*nanos)).collect(),
    }
}

/// A quotient; 0 for a divisor of 0.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes of a run are far below 2^52")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
