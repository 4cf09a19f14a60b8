//! Shared by all commands: the place of the store, how it is opened, and the notation of keys.
//!
//! Invariants: only the commands that say so create a store or a keyspace; a foreign directory is refused before any of its
//! files is touched.

use std::mem::{Discriminant, discriminant};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use esker::{Builder, Damage, Db, Durability, Event, FallBack, Keyspace, Listener};

use crate::error::{Failure, Result};
use crate::render::{self, Notation, Out, Style};

/// The keyspace that is used when none is named.
const DEFAULT_KEYSPACE: &str = "default";

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// The keyspace to work on
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_KEYSPACE)]
    pub(crate) keyspace: String,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    /// Keys and values are hexadecimal digits, in and out
    #[arg(long, global = true)]
    hex: bool,
}

impl Common {
    pub(crate) fn out(&self) -> Out {
        let notation = if self.hex { Notation::Hex } else { Notation::Plain };
        Out::new(notation, if self.json { Style::Json } else { Style::Text })
    }

    /// The bytes of a key or value given on the command line.
    pub(crate) fn bytes(&self, what: &str, text: &str) -> Result<Vec<u8>> {
        if !self.hex {
            return Ok(text.as_bytes().to_vec());
        }
        render::unhex(text).ok_or_else(|| {
            Failure::input(format!("{what} `{text}`: --hex wants an even number of hexadecimal digits"))
        })
    }
}

/// The directory of a store.
#[derive(Args, Clone, Debug)]
pub(crate) struct Dir {
    /// The directory of the store
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// The losses that a successful write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// A power cut
    Power,
    /// The death of the process
    Process,
}

impl From<Level> for Durability {
    fn from(level: Level) -> Durability {
        match level {
            Level::Power => Durability::Power,
            Level::Process => Durability::Process,
        }
    }
}

/// Whether a command may make a store where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it.
    Create,
    /// Refuse.
    Refuse,
}

/// Prints what a store does instead of calls that the machine refuses; each kind once, although a command may open several
/// stores.
#[derive(Debug)]
struct Notes;

impl Listener for Notes {
    fn event(&self, event: &Event) {
        static NOTED: Mutex<Vec<Discriminant<FallBack>>> = Mutex::new(Vec::new());
        let Event::FellBack { fall_back, .. } = event else { return };
        let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = discriminant(fall_back);
        if !noted.contains(&kind) {
            noted.push(kind);
            render::note(&fall_back.to_string());
        }
    }
}

impl Dir {
    /// Opens the store. Notes say what it does instead of calls that the machine refuses.
    pub(crate) fn open(&self, missing: Missing) -> Result<Db> {
        self.open_with(missing, Db::builder().listener(Notes))
    }

    /// Opens the store without notes on its machine.
    pub(crate) fn open_quietly(&self, missing: Missing) -> Result<Db> {
        self.open_with(missing, Db::builder())
    }

    fn open_with(&self, missing: Missing, builder: Builder) -> Result<Db> {
        self.check(missing)?;
        self.map(builder.create(missing == Missing::Create).open(&self.dir))
    }

    /// The damage of log and segments.
    pub(crate) fn damage(&self) -> Result<Damage> {
        self.check(Missing::Refuse)?;
        self.map(Db::builder().find_damage(&self.dir))
    }

    /// Cuts a damaged log; returns the damage that there was.
    pub(crate) fn repair(&self) -> Result<Damage> {
        self.map(Db::builder().repair(&self.dir))
    }

    /// The file system of the directory, if that is in memory: then no level survives a power cut.
    pub(crate) fn in_memory(&self) -> Option<&'static str> {
        aio::memory_file_system(&self.dir)
    }

    /// Says so where `level` promises more than such a file system can keep.
    pub(crate) fn warn_of_memory(&self, level: Level) {
        if let (Level::Power, Some(name)) = (level, self.in_memory()) {
            let dir = self.dir.display();
            render::note(&format!(
                "{dir} is on {name}, which is in memory: no write there survives a power cut"
            ));
        }
    }

    /// Turns an error of the store into one of this tool.
    pub(crate) fn map<T>(&self, result: esker::Result<T>) -> Result<T> {
        result.map_err(|error| Failure::store(&self.dir, &error))
    }

    fn check(&self, missing: Missing) -> Result<()> {
        let dir = self.dir.display();
        match std::fs::metadata(&self.dir) {
            Ok(found) if !found.is_dir() => {
                Err(Failure::environment(format!("{dir}: not a directory: give the directory of a store")))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && missing == Missing::Refuse => {
                Err(Failure::environment(format!(
                    "{dir}: no such directory: `kvtool load {dir} FILE` makes a store there"
                )))
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::file(&self.dir, &error))
            }
            Ok(_) if missing == Missing::Refuse && is_empty(&self.dir) => Err(Failure::environment(format!(
                "{dir}: the directory is empty: `kvtool load {dir} FILE` makes a store there"
            ))),
            _ => Ok(()),
        }
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// The keyspace to read from. `None`: the default one, which does not exist before the first write.
pub(crate) fn existing(dir: &Dir, db: &Db, common: &Common) -> Result<Option<Keyspace>> {
    let names = db.keyspaces();
    if names.contains(&common.keyspace) {
        return dir.map(db.keyspace(&common.keyspace)).map(Some);
    }
    if common.keyspace == DEFAULT_KEYSPACE {
        return Ok(None);
    }
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Failure::not_found(format!(
        "{}: no keyspace `{}`: there are: {names}",
        dir.dir.display(),
        common.keyspace
    )))
}
