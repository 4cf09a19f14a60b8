//! `load`: JSON lines into a keyspace, in batches.
//!
//! Invariant: when a line is refused, everything before it is committed at the chosen durability.
//!
//! Cost: one log record and one wait for the log per batch, for any number of lines.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::path::PathBuf;

use clap::Args;
use esker::{Batch, Db, Error, Keyspace};
use serde_json::{Map, Value};

use crate::error::{Failure, Kind, Result};
use crate::input::{self, Lines, Record};
use crate::render::{Notation, Out, Stopwatch, Style, thousands};
use crate::store::{Common, Dir, Level, Missing};

/// Records in a batch. At 300 bytes a record this keeps well under [`BATCH_BYTES`]; more gains nothing.
const BATCH_RECORDS: u64 = 1000;

/// Bytes in a batch, so that large values do not make it too large for the log.
const BATCH_BYTES: usize = 1 << 20;

/// Keys remembered to count duplicates: 8 bytes each, and not more than this.
const DUPLICATE_WINDOW: usize = 4 << 20;

/// Loads JSON lines.
#[derive(Args, Debug)]
pub(crate) struct Load {
    #[command(flatten)]
    dir: Dir,
    /// Lines of {"key":"...","value":...}, gzip or plain; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The loss that each record survives after the command has succeeded
    #[arg(long, value_enum, default_value_t = Level::Power)]
    durability: Level,
}

impl Load {
    pub(crate) fn run(&self, common: &Common, out: &mut Out) -> Result<()> {
        // The input first: a wrong name must not make a store.
        let mut lines = Lines::open(&self.file)?;
        let watch = Stopwatch::start();
        let db = self.dir.open(Missing::Create)?;
        let mut loader = Loader::new(&self.dir, &db, common, self.durability)?;
        let result = loader.run(&mut lines, out.notation());
        drop(lines);
        let totals = loader.totals;
        let closed = self.dir.map(db.close());
        let stays = format!("{} records before it are in the store", thousands(totals.records));
        result.map_err(|failure| match failure.kind() {
            Kind::Input => Failure::input(format!("{}; the {stays}", failure.message())),
            _ => failure,
        })?;
        closed?;
        self.report(&totals, watch, out)
    }

    fn report(&self, totals: &Totals, watch: Stopwatch, out: &mut Out) -> Result<()> {
        let seconds = watch.elapsed().as_secs_f64();
        if out.style() == Style::Json {
            return out.table(&Map::from_iter([
                ("records".to_owned(), Value::from(totals.records)),
                ("bytes".to_owned(), Value::from(totals.bytes)),
                ("duplicate_keys".to_owned(), Value::from(totals.duplicates)),
                ("blank_lines".to_owned(), Value::from(totals.blank_lines)),
                ("seconds".to_owned(), Value::from(seconds)),
            ]));
        }
        let survived = match (self.durability, self.dir.in_memory()) {
            (Level::Power, None) => "they survive a power cut".to_owned(),
            (Level::Process, None) => "they survive the death of this process".to_owned(),
            (_, Some(name)) => {
                format!("they survive the death of this process, but no power cut, since {name} is in memory")
            }
        };
        out.line(format!(
            "loaded {} records, {} bytes, in {seconds:.2} s; {survived}",
            thousands(totals.records),
            thousands(totals.bytes)
        ))?;
        if totals.duplicates > 0 {
            let least = if totals.window_full { "at least " } else { "" };
            out.line(format!(
                "{least}{} duplicate keys: the later line counts",
                thousands(totals.duplicates)
            ))?;
        }
        if totals.blank_lines > 0 {
            out.line(format!("{} blank lines skipped", thousands(totals.blank_lines)))?;
        }
        Ok(())
    }
}

/// The counts so far. Only a committed record counts.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    records: u64,
    bytes: u64,
    duplicates: u64,
    blank_lines: u64,
    window_full: bool,
}

struct Loader<'a> {
    dir: &'a Dir,
    keyspace: Keyspace,
    batch: Batch,
    batch_records: u64,
    batch_bytes: usize,
    limit_bytes: usize,
    seen: HashSet<u64>,
    totals: Totals,
}

impl<'a> Loader<'a> {
    fn new(dir: &'a Dir, db: &Db, common: &Common, level: Level) -> Result<Loader<'a>> {
        let keyspace = dir.map(db.keyspace(&common.keyspace))?;
        let mut batch = db.batch();
        batch.durability(level.into());
        // Half, because a record holds more than keys and values.
        let limit_bytes = BATCH_BYTES.min(db.max_record_bytes() / 2);
        Ok(Loader {
            dir,
            keyspace,
            batch,
            batch_records: 0,
            batch_bytes: 0,
            limit_bytes,
            seen: HashSet::new(),
            totals: Totals::default(),
        })
    }

    fn run(&mut self, lines: &mut Lines, notation: Notation) -> Result<()> {
        let result = self.take_all(lines, notation);
        // Lines before a bad one stay, so the rest of the batch is committed in either case.
        let rest = self.commit();
        result.and(rest)
    }

    fn take_all(&mut self, lines: &mut Lines, notation: Notation) -> Result<()> {
        loop {
            let Some(line) = lines.next()? else { return Ok(()) };
            if line.trim_ascii().is_empty() {
                self.totals.blank_lines += 1;
                continue;
            }
            match input::parse(line, notation) {
                Ok(record) => {
                    if let Err(refused) = self.add(&record)? {
                        return Err(lines.malformed(refused));
                    }
                }
                Err(what) => return Err(lines.malformed(what)),
            }
        }
    }

    /// Adds a record; commits the batch when it is full. The inner error says why the store refuses this record.
    fn add(&mut self, record: &Record<'_>) -> Result<std::result::Result<(), Error>> {
        let size = record.key.len() + record.value.len();
        if self.batch_bytes + size > self.limit_bytes {
            self.commit()?;
        }
        // Large and impossible records go alone, so that a refusal names their line and affects no other record.
        let alone =
            size > self.limit_bytes || record.key.is_empty() || record.key.len() > esker::MAX_KEY_BYTES;
        if alone {
            self.commit()?;
        }
        self.count(&record.key);
        self.batch.put(&self.keyspace, &record.key, &record.value);
        self.batch_records += 1;
        self.batch_bytes += size;
        if alone {
            match self.batch.commit() {
                Ok(_) => self.committed(),
                Err(error @ (Error::TooLarge { .. } | Error::InvalidArgument { .. })) => {
                    // `commit` keeps a refused batch; it must not be committed later.
                    self.batch_records = 0;
                    return Ok(Err(error));
                }
                Err(error) => return Err(Failure::store(&self.dir.dir, &error)),
            }
        } else if self.batch_records >= BATCH_RECORDS {
            self.commit()?;
        }
        Ok(Ok(()))
    }

    fn commit(&mut self) -> Result<()> {
        if self.batch_records == 0 {
            return Ok(());
        }
        self.dir.map(self.batch.commit().map(drop))?;
        self.committed();
        Ok(())
    }

    fn committed(&mut self) {
        self.totals.records += self.batch_records;
        self.totals.bytes += u64::try_from(self.batch_bytes).unwrap_or(u64::MAX);
        (self.batch_records, self.batch_bytes) = (0, 0);
    }

    fn count(&mut self, key: &[u8]) {
        let hash = self.seen.hasher().hash_one(key);
        if self.seen.contains(&hash) {
            self.totals.duplicates += 1;
        } else if self.seen.len() < DUPLICATE_WINDOW {
            self.seen.insert(hash);
        } else {
            self.totals.window_full = true;
        }
    }
}
