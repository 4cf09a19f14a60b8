//! `demo`: real data, a loader that dies by SIGKILL in the middle, and a comparison of everything it had acknowledged.
//!
//! The loader is this program again, with a hidden command. It writes one record at a time with `Power`, and prints the
//! number of the record to its standard output, a pipe, after the call has returned. So every number that the parent reads
//! from the pipe was acknowledged, and its record must be there after the kill. Of the other records at most the one in
//! flight may be there.
//!
//! Invariant: `demo` touches one keyspace only, and only if that holds nothing but the sample.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use clap::Args;
use esker::Keyspace;
use serde_json::Value;

use crate::commands::admin;
use crate::error::{Failure, Result};
use crate::input::{self, Record};
use crate::render::{self, Notation, Out, Stopwatch, thousands};
use crate::store::{Dir, Level, Missing};

/// A thousand places of the `GeoNames` gazetteer; see `data/README.md`.
const SAMPLE: &str = include_str!("../../data/sample.ndjson");

/// The demo's own keyspace.
const KEYSPACE: &str = "demo";

/// The acknowledged tenths of the sample at each kill.
const KILL_AFTER_TENTHS: [usize; 3] = [1, 4, 7];

/// On a busy machine the loader may finish before this process wakes up to kill it; then the demo starts over.
const ATTEMPTS: usize = 5;

/// Deletions in a batch when the data of an earlier demo are removed.
const CLEAR_BATCH: usize = 500;

/// Signal number of SIGKILL on every Linux.
const SIGKILL: i32 = 9;

/// Loads, kills, reopens, compares.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    #[command(flatten)]
    dir: Dir,
}

/// Loads the sample from a record on, and acknowledges each record.
#[derive(Args, Debug)]
pub(crate) struct DemoLoader {
    #[command(flatten)]
    dir: Dir,
    /// The number of the first record to write
    from: usize,
}

impl DemoLoader {
    pub(crate) fn run(&self, out: &mut Out) -> Result<()> {
        let sample = sample()?;
        let db = self.dir.open_quietly(Missing::Create)?;
        let keyspace = self.dir.map(db.keyspace(KEYSPACE))?.with_durability(Level::Power.into());
        for (number, record) in sample.iter().enumerate().skip(self.from) {
            self.dir.map(keyspace.put(&record.key, &record.value))?;
            out.line(number.to_string())?;
            out.flush()?;
        }
        self.dir.map(db.close())
    }
}

impl Demo {
    pub(crate) fn run(&self, out: &mut Out) -> Result<()> {
        let watch = Stopwatch::start();
        let sample = sample()?;
        let mut killed_after = Vec::new();
        for _ in 0..ATTEMPTS {
            self.clear(&sample)?;
            killed_after = self.load_and_kill(&sample)?;
            if !killed_after.is_empty() {
                break;
            }
        }
        if killed_after.is_empty() {
            return Err(Failure::environment(format!(
                "{}: the loader was always done before it could be killed: run the demo on a machine that is less busy",
                self.dir.dir.display()
            )));
        }
        let watch_open = Stopwatch::start();
        let db = self.dir.open(Missing::Refuse)?;
        let opened = watch_open.elapsed();
        let keyspace = self.dir.map(db.keyspace(KEYSPACE))?;
        self.compare(&keyspace, &sample, sample.len())?;
        self.scan(&keyspace, &sample)?;
        let report = self.dir.map(db.verify())?;
        let mut rows = admin::statistics(&db);
        self.dir.map(db.close())?;
        let count = thousands(u64::try_from(sample.len()).unwrap_or(u64::MAX));
        let kills = killed_after.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let safe = match self.dir.in_memory() {
            None => "each safe from a power cut before the next".to_owned(),
            Some(name) => {
                format!("each acknowledged before the next; {name} is in memory, so no power cut spares them")
            }
        };
        let lines = [
            ("loaded", format!("{count} places one by one, {safe}")),
            ("killed", format!("the loader {} times with SIGKILL, after {kills} writes", killed_after.len())),
            ("reopened", format!("after each kill; the last time in {} ms", opened.as_millis())),
            ("compared", format!("every acknowledged value, {count} in all: equal byte for byte")),
            ("scanned", format!("{count} records forwards and backwards, in order")),
            (
                "verified",
                format!("{} segments and {} log files, every checksum", report.segments, report.log_files),
            ),
            ("took", format!("{:.1} s", watch.elapsed().as_secs_f64())),
        ];
        if out.style() == render::Style::Json {
            for (name, line) in lines {
                rows.insert(name.to_owned(), Value::from(line));
            }
            return out.table(&rows);
        }
        for (name, line) in lines {
            out.line(format!("{name:9} {line}"))?;
        }
        out.line("")?;
        out.table(&rows)?;
        let dir = self.dir.dir.display();
        out.line("")?;
        out.line(format!("Look around: kvtool scan {dir} --keyspace {KEYSPACE} --prefix CH/ --limit 5"))
    }

    /// Creates the store, or removes the data of an earlier demo.
    fn clear(&self, sample: &[Record<'_>]) -> Result<()> {
        let db = self.dir.open(Missing::Create)?;
        let keyspace = self.dir.map(db.keyspace(KEYSPACE))?;
        let ours: std::collections::HashSet<&[u8]> =
            sample.iter().map(|record| record.key.as_ref()).collect();
        let mut batch = db.batch();
        batch.durability(Level::Power.into());
        let mut keys = Vec::new();
        for record in &keyspace {
            let (key, _) = self.dir.map(record)?;
            if !ours.contains(key.as_ref()) {
                return Err(Failure::environment(format!(
                    "{}: the keyspace `{KEYSPACE}` holds `{}`, which is not of the sample: choose another directory",
                    self.dir.dir.display(),
                    String::from_utf8_lossy(&key)
                )));
            }
            keys.push(key);
        }
        for some in keys.chunks(CLEAR_BATCH) {
            for key in some {
                batch.delete(&keyspace, key);
            }
            self.dir.map(batch.commit().map(drop))?;
        }
        self.dir.map(db.close())
    }

    /// Runs loaders until everything is loaded, and kills all but the last. Returns the number of writes before each kill;
    /// none if every loader was too fast.
    fn load_and_kill(&self, sample: &[Record<'_>]) -> Result<Vec<usize>> {
        let mut acknowledged = 0;
        let mut kills = Vec::new();
        for tenths in KILL_AFTER_TENTHS {
            let target = (sample.len() * tenths / 10).max(acknowledged + 1);
            let killed = self.run_loader(&mut acknowledged, target)?;
            if killed && acknowledged < sample.len() {
                kills.push(acknowledged);
            }
            let db = self.dir.open(Missing::Refuse)?;
            self.compare(&self.dir.map(db.keyspace(KEYSPACE))?, sample, acknowledged)?;
            self.dir.map(db.close())?;
        }
        self.run_loader(&mut acknowledged, usize::MAX)?;
        if acknowledged == sample.len() {
            return Ok(kills);
        }
        Err(Failure::environment(format!(
            "the loader stopped after {acknowledged} of {} records",
            sample.len()
        )))
    }

    /// Starts a loader at the first record that is not acknowledged, and kills it after `target` acknowledgements. The
    /// acknowledgements that are in the pipe by then count, too. True if the signal ended it.
    fn run_loader(&self, acknowledged: &mut usize, target: usize) -> Result<bool> {
        let failed = |error: std::io::Error| Failure::environment(format!("start the loader: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .arg("demo-loader")
            .arg(&self.dir.dir)
            .arg(acknowledged.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let pipe = child.stdout.take().ok_or_else(|| Failure::environment("the loader has no output"))?;
        let mut wrong = None;
        for line in BufReader::new(pipe).lines() {
            let line = line.map_err(failed)?;
            if line.parse() != Ok(*acknowledged) && wrong.is_none() {
                wrong = Some(format!("the loader acknowledged `{line}` where {acknowledged} was next"));
            }
            *acknowledged += 1;
            if *acknowledged == target || wrong.is_some() {
                child.kill().map_err(failed)?;
            }
        }
        let status = child.wait().map_err(failed)?;
        match wrong {
            Some(wrong) => Err(Failure::environment(wrong)),
            None if status.signal() == Some(SIGKILL) => Ok(true),
            None if status.success() => Ok(false),
            None => Err(Failure::environment(format!("the loader failed: {status}"))),
        }
    }

    /// Everything acknowledged is there and equal; beside it at most the one record in flight.
    fn compare(&self, keyspace: &Keyspace, sample: &[Record<'_>], acknowledged: usize) -> Result<()> {
        for (number, record) in sample.iter().enumerate() {
            let found = self.dir.map(keyspace.get(&record.key))?;
            let wrong = match found {
                Some(value) if *value != *record.value => "has another value",
                Some(_) if number > acknowledged => "is there, but was not written yet",
                None if number < acknowledged => "is gone, though it was acknowledged",
                _ => continue,
            };
            let key = String::from_utf8_lossy(&record.key);
            return Err(Failure::corrupt(format!(
                "{}: record {number}, `{key}`, {wrong}",
                self.dir.dir.display()
            )));
        }
        Ok(())
    }

    /// A scan in each direction gives exactly the sample, in the order of its keys.
    fn scan(&self, keyspace: &Keyspace, sample: &[Record<'_>]) -> Result<()> {
        let mut expected: Vec<_> = sample.iter().map(|record| (&*record.key, &*record.value)).collect();
        expected.sort_unstable();
        let forwards = self.dir.map(keyspace.iter().collect::<esker::Result<Vec<_>>>())?;
        let mut backwards = self.dir.map(keyspace.iter().rev().collect::<esker::Result<Vec<_>>>())?;
        backwards.reverse();
        for (name, found) in [("forwards", forwards), ("backwards", backwards)] {
            let equal =
                found.iter().map(|(key, value)| (key.as_ref(), value.as_ref())).eq(expected.iter().copied());
            if !equal {
                return Err(Failure::corrupt(format!(
                    "{}: a scan {name} gives {} records that are not the {} of the sample",
                    self.dir.dir.display(),
                    found.len(),
                    expected.len()
                )));
            }
        }
        Ok(())
    }
}

/// The records of the sample.
fn sample() -> Result<Vec<Record<'static>>> {
    SAMPLE
        .lines()
        .map(|line| input::parse(line.as_bytes(), Notation::Plain).map_err(Failure::input))
        .collect::<Result<Vec<_>>>()
        .map_err(|failure| failure.context("the built-in sample"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_a_thousand_different_keys() {
        let keys: std::collections::BTreeSet<_> =
            sample().unwrap().into_iter().map(|record| record.key).collect();
        assert_eq!(keys.len(), 1000);
    }
}
