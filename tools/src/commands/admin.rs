//! `stats`, `compact`, `verify`, `repair`: the store as a whole.

use std::time::Duration;

use clap::Args;
use esker::IoClass;
use serde_json::{Map, Value, json};

use crate::error::{Failure, Result};
use crate::render::{self, Out, Stopwatch};
use crate::store::{Common, Dir, Missing};

/// Prints figures of the store.
#[derive(Args, Debug)]
pub(crate) struct Stats {
    #[command(flatten)]
    dir: Dir,
}

impl Stats {
    pub(crate) fn run(&self, _: &Common, out: &mut Out) -> Result<()> {
        let db = self.dir.open(Missing::Refuse)?;
        let rows = statistics(&db);
        self.dir.map(db.close())?;
        out.table(&rows)
    }
}

/// The figures of `stats`, in the order in which they are shown.
pub(crate) fn statistics(db: &esker::Db) -> Map<String, Value> {
    let metrics = db.metrics();
    let mut rows = Map::new();
    let mut row = |name: &str, value: Value| rows.insert(name.to_owned(), value);
    row("direct_io", Value::from(metrics.direct_io));
    let fall_backs = metrics.fall_backs.iter().map(ToString::to_string);
    row("fall_backs", fall_backs.collect());
    row("incarnation", Value::from(metrics.incarnation));
    row("log_files", Value::from(metrics.log_files));
    row("log_bytes", Value::from(metrics.log_bytes));
    row("memtable_bytes", Value::from(metrics.memtable_bytes));
    row("cache_bytes", Value::from(metrics.cache_bytes));
    row("pinned_bytes", Value::from(metrics.pinned_bytes));
    row("open_files", Value::from(metrics.open_files));
    row("aio_slots", Value::from(metrics.aio_slots));
    row("paged_segments", Value::from(metrics.paged_segments));
    row("flushes", Value::from(metrics.flushes));
    row("compactions", Value::from(metrics.compactions));
    row("stalls", Value::from(metrics.stalls));
    row("slowed_writes", Value::from(metrics.slowed_writes));
    row("merge_bytes_per_second", Value::from(metrics.merge_bytes_per_second));
    row("flush_bytes_per_second", Value::from(metrics.flush_bytes_per_second));
    row("failed_jobs", Value::from(metrics.failed_jobs));
    if let Some(error) = metrics.flush_error {
        row("flush_error", Value::from(error));
    }
    if let Some(cause) = metrics.halted {
        row("halted", Value::from(cause));
    }
    row("io", io(&metrics.io));
    row("keyspaces", Value::Array(metrics.keyspaces.iter().map(keyspace).collect()));
    rows
}

fn io(profile: &esker::IoProfile) -> Value {
    let class = |class: IoClass| {
        let sum = profile.class(class);
        let figures = json!({
            "count": sum.count,
            "bytes": sum.bytes,
            "errors": sum.errors,
            "p50_us": micros(sum.latency.percentile(500)),
            "p99_us": micros(sum.latency.percentile(990)),
        });
        (class.name().to_owned(), figures)
    };
    // A store makes no polls that a user asked for.
    let classes = IoClass::ALL.into_iter().filter(|class| *class != IoClass::Poll);
    let mut all: Map<String, Value> = classes.map(class).collect();
    all.insert("submit_calls".to_owned(), Value::from(profile.submit_calls));
    Value::Object(all)
}

fn micros(time: Duration) -> Value {
    Value::from(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn keyspace(keyspace: &esker::KeyspaceMetrics) -> Value {
    json!({
        "name": keyspace.name,
        "runs": keyspace.runs,
        "segments": keyspace.segments,
        "segment_bytes": keyspace.segment_bytes,
        "entries": keyspace.entries,
        "tombstones": keyspace.tombstones,
        "raw_bytes": keyspace.raw_bytes,
        "memtable_bytes": keyspace.memtable_bytes,
        "pressure_percent": keyspace.pressure_percent,
        "merge_amplification_percent": keyspace.merge_amplification_percent,
        "due_bytes": keyspace.due_bytes,
    })
}

/// Compacts the store.
#[derive(Args, Debug)]
pub(crate) struct Compact {
    #[command(flatten)]
    dir: Dir,
}

impl Compact {
    pub(crate) fn run(&self, _: &Common, out: &mut Out) -> Result<()> {
        let watch = Stopwatch::start();
        let db = self.dir.open(Missing::Refuse)?;
        self.dir.map(db.flush())?;
        self.dir.map(db.compact())?;
        let mut rows = statistics(&db);
        self.dir.map(db.close())?;
        rows.insert("seconds".to_owned(), Value::from(watch.elapsed().as_secs_f64()));
        out.table(&rows)
    }
}

/// Checks the store.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    #[command(flatten)]
    dir: Dir,
}

impl Verify {
    pub(crate) fn run(&self, _: &Common, out: &mut Out) -> Result<()> {
        let watch = Stopwatch::start();
        let db = self.dir.open(Missing::Refuse)?;
        let report = self.dir.map(db.verify())?;
        self.dir.map(db.close())?;
        let mut rows = checked(&report);
        rows.insert("seconds".to_owned(), Value::from(watch.elapsed().as_secs_f64()));
        out.table(&rows)
    }
}

/// The checked items; all of them are sound.
pub(crate) fn checked(report: &esker::VerifyReport) -> Map<String, Value> {
    Map::from_iter([
        ("segments".to_owned(), Value::from(report.segments)),
        ("segment_bytes".to_owned(), Value::from(report.segment_bytes)),
        ("entries".to_owned(), Value::from(report.entries)),
        ("log_files".to_owned(), Value::from(report.log_files)),
        ("log_records".to_owned(), Value::from(report.log_records)),
    ])
}

/// Shows the damage of log and segments, or cuts the log before its damage.
#[derive(Args, Debug)]
pub(crate) struct Repair {
    #[command(flatten)]
    dir: Dir,
    /// Cut the log before the damage: acknowledged writes behind it are lost for good. Copy the directory first
    #[arg(long)]
    cut: bool,
}

impl Repair {
    pub(crate) fn run(&self, _: &Common, out: &mut Out) -> Result<()> {
        let mut damage = self.dir.damage()?;
        let is_cut = self.cut && damage.log.is_some();
        if let Some(log) = damage.log.as_ref().filter(|_| is_cut) {
            // Printed before the cut, so that the user sees it even if the cut fails.
            render::note(&format!(
                "cutting the log before its damage at {}; {}",
                place(&log.error),
                log.loss
            ));
            damage = self.dir.repair()?;
        }
        out.table(&damaged(&damage, is_cut))?;
        let dir = self.dir.dir.display();
        match (&damage.log, damage.segments.as_slice()) {
            (_, segments @ [_, ..]) => Err(Failure::corrupt(format!(
                "{dir}: segments are damaged, and no repair can make good for that: {}: keep a copy of the directory, then \
                 restore a backup",
                segments.iter().map(place).collect::<Vec<_>>().join("; ")
            ))),
            (Some(log), _) if !is_cut => Err(Failure::corrupt(format!(
                "{dir}: the log is damaged at {}: nothing was changed: copy the directory, then run this again with --cut",
                place(&log.error)
            ))),
            _ => Ok(()),
        }
    }
}

/// The damage as rows.
fn damaged(damage: &esker::Damage, is_cut: bool) -> Map<String, Value> {
    let mut rows = Map::new();
    rows.insert("log_is_damaged".to_owned(), Value::from(damage.log.is_some()));
    if let Some(log) = &damage.log {
        rows.insert("log_damage".to_owned(), Value::from(place(&log.error)));
        rows.insert("kept_records".to_owned(), Value::from(log.kept_records));
        rows.insert("loss".to_owned(), Value::from(log.loss.to_string()));
        rows.insert("lost_bytes_at_least".to_owned(), Value::from(log.loss.at_least_bytes));
        rows.insert("lost_durable_bytes_at_most".to_owned(), Value::from(log.loss.at_most_durable_bytes));
        rows.insert("lost_bytes_at_most".to_owned(), Value::from(log.loss.at_most_bytes));
        rows.insert("is_cut".to_owned(), Value::from(is_cut));
    }
    if damage.torn_tail {
        let tail = "cut off, as by a loss of power: no write of it was acknowledged as safe from one, unless the device \
                    has lost a part of it; an open keeps those that the ring still has";
        rows.insert("log_tail".to_owned(), Value::from(tail));
    }
    rows.insert("damaged_segments".to_owned(), damage.segments.iter().map(place).collect());
    rows
}

/// The place of damage, without the advice of its error.
fn place(error: &esker::Error) -> String {
    match error {
        esker::Error::Corrupt { file, offset, what, expected, found, .. } => {
            format!("{}, offset {offset}: {what} (expected {expected}, found {found})", file.display())
        }
        other => other.to_string(),
    }
}
