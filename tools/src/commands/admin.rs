//! `stats`, `compact`, `verify`: the store as a whole.

use clap::Args;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::render::{Out, Stopwatch};
use crate::store::{Common, Dir, Missing};

/// Prints what the store is made of.
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
    Map::from_iter([
        ("direct_io".to_owned(), Value::from(metrics.direct_io)),
        ("keyspaces".to_owned(), Value::from(db.keyspaces())),
    ])
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

/// What was checked, and found to be fine.
pub(crate) fn checked(report: &esker::VerifyReport) -> Map<String, Value> {
    Map::from_iter([
        ("files".to_owned(), Value::from(report.files)),
        ("bytes".to_owned(), Value::from(report.bytes)),
        ("entries".to_owned(), Value::from(report.entries)),
    ])
}
