//! An errand seen from outside: its directory, its process, and its results.
//!
//! Invariant: only the directory of a failed errand stays behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::ledger::Ledger;
use super::terms::{BESIDE, FELL_BACK, GAVE_UP, Mode, WRITER};
use crate::report::{Check, Failure};
use crate::soak::board::{Board, Count};
use crate::soak::plan::WRITERS;

/// Lines of its output that are shown.
const SHOWN: usize = 6;

/// A started errand.
#[derive(Debug)]
pub(crate) struct Sent {
    dir: PathBuf,
    mode: Mode,
}

/// How an errand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It did everything.
    Done,
    /// It gave up after errors of the store.
    GaveUp,
    /// This signal ended it.
    Signal(i32),
}

/// Its notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) acknowledged: u64,
    /// Acknowledged writes of the writer beside it.
    pub(crate) beside: u64,
    /// Errors of the store that it met.
    pub(crate) errors: u64,
    /// Blocks that it read from the device.
    pub(crate) misses: u64,
}

fn io(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(format!("{what}: {error}"))
}

impl Sent {
    /// Makes the directory and a new errand whose files are in it.
    pub(crate) fn new(dir: &Path, mode: Mode) -> Check<Sent> {
        std::fs::create_dir_all(dir).map_err(io("make a directory"))?;
        let sent = Sent { dir: dir.to_owned(), mode };
        Board::create(&sent.board(), &[0; WRITERS]).map_err(io("the board"))?;
        Ok(sent)
    }

    fn board(&self) -> PathBuf {
        self.dir.join("board")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("said")
    }

    /// The command that starts it with a store at `store`; `wrapper` runs it.
    pub(crate) fn command(&self, wrapper: &[&str], store: &Path) -> Check<Command> {
        // The running program itself, even if another was built in its place.
        let program = format!("/proc/{}/exe", std::process::id());
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("errand").arg(store).arg(self.board()).args(["--mode", self.mode.name()]);
        let log = File::options().create(true).append(true).open(self.log()).map_err(io("a log"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        Ok(command)
    }

    /// The default place of its store.
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Starts it. When this returns it has started and waits for a byte on its standard input.
    pub(crate) fn start(&self, command: &mut Command) -> Check<Child> {
        let mut child = command.spawn().map_err(io("start an errand"))?;
        let mut ready = [0];
        if child.stdout.as_mut().is_some_and(|out| out.read_exact(&mut ready).is_ok()) {
            return Ok(child);
        }
        // Without its output it is useless.
        let _ = child.kill();
        let status = child.wait().map_err(io("wait for an errand"))?;
        Err(Failure::new(format!("an errand did not come up ({status}): {}", self.said())))
    }

    pub(crate) fn noted(&self) -> Check<Noted> {
        let board = Board::open(&self.board()).map_err(io("the board"))?;
        let acknowledged = board.acknowledged().map_err(io("the board"))?;
        let (acknowledged, beside) = (acknowledged[WRITER], acknowledged[BESIDE]);
        let count = |count| board.count(count).map_err(io("the board"));
        Ok(Noted { acknowledged, beside, errors: count(Count::Faults)?, misses: count(Count::Misses)? })
    }

    /// How it ended, unless it found a mistake.
    pub(crate) fn end(&self, status: ExitStatus) -> Check<End> {
        use std::os::unix::process::ExitStatusExt as _;
        /// `abort`: a panic.
        const SIGABRT: i32 = 6;
        /// The processor found something impossible.
        const SIGSEGV: i32 = 11;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(End::Done),
            (Some(code), _) if code == i32::from(GAVE_UP) => Ok(End::GaveUp),
            (None, Some(signal)) if signal != SIGABRT && signal != SIGSEGV => Ok(End::Signal(signal)),
            _ => Err(Failure::new(format!("the errand ended with {status}: {}", self.said()))),
        }
    }

    /// The names of the ways around refused calls that it took, see [`way_around`](super::terms::way_around).
    pub(crate) fn fell_back(&self) -> BTreeSet<String> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let ways = log.lines().filter_map(|line| line.split_once(FELL_BACK)?.1.split_once(':'));
        ways.map(|(way, _)| way.to_owned()).collect()
    }

    /// The end of its output.
    pub(crate) fn said(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join(" | ")
    }

    /// Opens the store in this undisturbed process. Everything acknowledged is there (after a loss of power: everything that
    /// survives one), at most the one write in flight beside it, and no gap. Every checksum is right, and the store takes
    /// writes.
    pub(crate) fn judge(&self, store: &Path, power_was_lost: bool) -> Check<Noted> {
        let noted = self.noted()?;
        let healthy = || -> Check {
            let db = self.mode.builder().open(store)?;
            for (writer, acknowledged) in [(WRITER, noted.acknowledged), (BESIDE, noted.beside)] {
                let mut ledger = Ledger::of(writer);
                // Every second write has waited for stable media.
                ledger.take(if power_was_lost { acknowledged / 2 * 2 } else { acknowledged });
                ledger.settle(&db, acknowledged + 1)?;
                ledger.compare(&db).map_err(|failure| failure.at(format!("writer {writer}")))?;
            }
            db.verify().map_err(|error| Failure::from(error).at("verify"))?;
            db.keyspace("after")?.put("it", "goes on")?;
            Ok(db.close()?)
        };
        healthy().map_err(|failure| {
            let (acknowledged, said) = (noted.acknowledged, self.said());
            failure.at(format!("in a healthy process, after {acknowledged}; the errand said {said}"))
        })?;
        Ok(noted)
    }

    /// Removes everything.
    pub(crate) fn remove(&self) -> Check {
        std::fs::remove_dir_all(&self.dir).map_err(io("remove a directory"))
    }
}
