//! `put`, `get`, `del`: one key at a time.

use std::io::Read;
use std::path::Path;

use clap::Args;
use serde_json::{Map, Value};

use crate::error::{Failure, Result};
use crate::render::{Out, Style};
use crate::store::{self, Common, Dir, Level, Missing};

/// Writes one value.
#[derive(Args, Debug)]
pub(crate) struct Put {
    #[command(flatten)]
    dir: Dir,
    /// The key, 1 to 65,535 bytes
    key: String,
    /// The value, or - to read it from standard input
    value: String,
    /// The loss that the write survives after the command has succeeded
    #[arg(long, value_enum, default_value_t = Level::Power)]
    durability: Level,
}

impl Put {
    pub(crate) fn run(&self, common: &Common, out: &mut Out) -> Result<()> {
        let key = common.bytes("key", &self.key)?;
        // Checked before the store is opened, so that a mistake does not create one.
        if key.is_empty() {
            return Err(Failure::input("the key is empty: a key has 1 to 65,535 bytes"));
        }
        let value = if self.value == "-" {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .map_err(|error| Failure::input_stream(Path::new("standard input"), &error))?;
            bytes
        } else {
            common.bytes("value", &self.value)?
        };
        let db = self.dir.open(Missing::Create)?;
        let keyspace = self.dir.map(db.keyspace(&common.keyspace))?;
        self.dir.warn_of_memory(self.durability);
        self.dir.map(keyspace.with_durability(self.durability.into()).put(key, value))?;
        self.dir.map(db.close())?;
        done(out, "put")
    }
}

/// Prints one value.
#[derive(Args, Debug)]
pub(crate) struct Get {
    #[command(flatten)]
    dir: Dir,
    /// The key
    key: String,
}

impl Get {
    pub(crate) fn run(&self, common: &Common, out: &mut Out) -> Result<()> {
        let key = common.bytes("key", &self.key)?;
        let db = self.dir.open(Missing::Refuse)?;
        let value = match store::existing(&self.dir, &db, common)? {
            Some(keyspace) => self.dir.map(keyspace.get(&key))?,
            None => None,
        };
        self.dir.map(db.close())?;
        let value = value.ok_or_else(|| absent(&self.dir, &self.key))?;
        match out.style() {
            Style::Text => out.bytes(&value),
            Style::Json => out.record(&key, &value),
        }
    }
}

/// Deletes one key.
#[derive(Args, Debug)]
pub(crate) struct Del {
    #[command(flatten)]
    dir: Dir,
    /// The key; if it is not there, nothing is written and the exit code is 1
    key: String,
    /// The loss that the deletion survives after the command has succeeded
    #[arg(long, value_enum, default_value_t = Level::Power)]
    durability: Level,
}

impl Del {
    pub(crate) fn run(&self, common: &Common, out: &mut Out) -> Result<()> {
        let key = common.bytes("key", &self.key)?;
        let db = self.dir.open(Missing::Refuse)?;
        let keyspace =
            store::existing(&self.dir, &db, common)?.ok_or_else(|| absent(&self.dir, &self.key))?;
        if self.dir.map(keyspace.get(&key))?.is_none() {
            self.dir.map(db.close())?;
            return Err(absent(&self.dir, &self.key));
        }
        self.dir.warn_of_memory(self.durability);
        self.dir.map(keyspace.with_durability(self.durability.into()).delete(key))?;
        self.dir.map(db.close())?;
        done(out, "deleted")
    }
}

fn absent(dir: &Dir, key: &str) -> Failure {
    Failure::not_found(format!("{}: no key `{key}`", dir.dir.display()))
}

/// Text prints nothing on success; JSON always prints an answer.
fn done(out: &mut Out, what: &str) -> Result<()> {
    match out.style() {
        Style::Text => Ok(()),
        Style::Json => out.table(&Map::from_iter([(what.to_owned(), Value::from(1))])),
    }
}
