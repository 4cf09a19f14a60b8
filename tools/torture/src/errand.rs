//! The errand: a process that works on a real store, writes, flushes, compacts, reads, closes and opens again, while
//! somebody outside is in its way. `strace` and `limits` send it.
//!
//! ```text
//!   parent   starts it, arranges what will be in its way | says go |                  | looks at board and exit code,
//!   errand   makes its store's first life ready          |         | works, opens again | opens the store, compares
//! ```
//!
//! It ends in one of three ways: all was done (0), also if it met errors on its way and went on after them; it gave up
//! because errors did not end (`GAVE_UP`); or something was wrong (1): a wrong value, a lost write, an error
//! that blames the files. It never panics: a panic is an abort here.
//!
//! Invariant: a write is noted on the board only after its commit has returned, and one is in flight at a time.

pub(crate) mod ledger;
pub(crate) mod sent;
pub(crate) mod terms;
pub(crate) mod watchdog;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use aio::{Backend as _, Context, NativeBackend, Waking, block_on};
use clap::Args;
use esker::{Db, Durability, Error, Keyspace};

use crate::report::{Check, Failure, complain, say};
use crate::soak::board::{Board, Count, usage};
use crate::soak::plan::{KEYSPACES, key, slot_of, value};
use ledger::Ledger;
use terms::{GAVE_UP, Mode, WRITER};

/// Lives that may end by an error before the errand gives up.
const PATIENCE: u64 = 4;

/// Calls that must be refused in the same way once a store has halted.
const REFUSED: usize = 3;

/// What the process is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct ErrandArgs {
    dir: PathBuf,
    board: PathBuf,
    /// Writes to make, of all lives together.
    #[arg(long, default_value_t = 200)]
    commits: u64,
    #[arg(long, value_enum, default_value = "manual")]
    mode: Mode,
    /// Never end by itself: go on after the last write, and after any number of errors.
    #[arg(long)]
    endless: bool,
    /// Have a handler for `SIGUSR1`, which interrupts what a thread waits in.
    #[arg(long)]
    catch: bool,
}

const SIGUSR1: i32 = 10;

/// The hidden command.
pub(crate) fn run(args: &ErrandArgs) -> ExitCode {
    // Whatever the store may catch or lose with a thread: the parent must see it.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
    // The context has the handler made, without `SA_RESTART`, and is not used.
    let catching = args.catch.then(|| Context::builder().slots(1).waking(Waking::Signal(SIGUSR1)).build());
    if let Some(Err(error)) = catching {
        complain(format!("errand: no handler: {error}"));
        return ExitCode::FAILURE;
    }
    match Errand::new(args).and_then(|mut errand| errand.all()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(format!("errand: {failure}"));
            if failure.refused().is_some() { ExitCode::from(GAVE_UP) } else { ExitCode::FAILURE }
        }
    }
}

/// Says that it has come up, and waits until the parent lets it go.
fn wait_for_go() -> Check {
    say("ready");
    let mut go = [0];
    std::io::stdin().read_exact(&mut go).map_err(|error| Failure::new(format!("nobody says go: {error}")))
}

fn on_board(error: &std::io::Error) -> Failure {
    Failure::new(format!("the board: {error}"))
}

struct Errand<'a> {
    args: &'a ErrandArgs,
    board: Board,
    clock: NativeBackend,
    ledger: Ledger,
    errors: u64,
}

/// A store that is open.
struct Life {
    db: Db,
    keyspaces: [Keyspace; 2],
}

impl<'a> Errand<'a> {
    fn new(args: &'a ErrandArgs) -> Check<Errand<'a>> {
        let board = Board::open(&args.board).map_err(|error| on_board(&error))?;
        let mut ledger = Ledger::default();
        ledger.take(board.acknowledged().map_err(|error| on_board(&error))?[WRITER]);
        Ok(Errand { args, board, clock: NativeBackend::new(), ledger, errors: 0 })
    }

    /// Life after life, until one got to its end and one more has found everything.
    fn all(&mut self) -> Check {
        // Room for the path of a panic, should memory be gone.
        let before = usage().map_err(|error| on_board(&error))?;
        wait_for_go()?;
        let mut whole_lives = 0;
        while whole_lives < 2 {
            match self.life() {
                Ok(()) => whole_lives += 1,
                Err(failure) => self.met(failure)?,
            }
        }
        self.board.put(Count::Halted, 1).map_err(|error| on_board(&error))?;
        // What is in the way may also be in the way of this.
        let Ok(after) = usage() else { return Ok(()) };
        // Less was counted if that was cut short; a leak is more.
        if after[1] <= before[1] && after[2] <= before[2] {
            return Ok(());
        }
        Err(Failure::new(format!(
            "handles and threads went from {:?} to {:?} although every store was closed",
            &before[1..],
            &after[1..]
        )))
    }

    /// Counts an error of the store; it may go on after a few.
    ///
    /// # Errors
    /// It was one too many, or none that a machine in the way excuses.
    fn met(&mut self, failure: Failure) -> Check {
        let Some(error) = failure.refused() else { return Err(failure) };
        if blames_the_files(error) {
            return Err(Failure::new(format!("an error that blames the files: {failure}")));
        }
        self.errors += 1;
        self.board.put(Count::Faults, self.errors).map_err(|error| on_board(&error))?;
        complain(format!("errand: met: {failure}"));
        if self.errors > PATIENCE && !self.args.endless {
            return Err(failure);
        }
        if self.args.endless {
            self.clock.park(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Opens, compares, writes what is left to write, compares, closes.
    fn life(&mut self) -> Check {
        let life = self.open()?;
        self.board.put(Count::Opened, 1).map_err(|error| on_board(&error))?;
        match self.work(&life).and_then(|()| self.ledger.compare(&life.db)) {
            Ok(()) => {
                let Life { db, keyspaces } = life;
                drop(keyspaces);
                db.close().map_err(|error| Failure::from(error).at("close"))
            }
            Err(failure) => {
                if let Some(Error::Halted { .. }) = failure.refused() {
                    self.must_stay_halted(&life)?;
                }
                Err(failure)
            }
        }
    }

    fn open(&mut self) -> Check<Life> {
        let at_open = |error: Error| Failure::from(error).at("open");
        let db = self.args.mode.builder().open(&self.args.dir).map_err(at_open)?;
        let [left, right] = KEYSPACES.map(|name| db.keyspace(name));
        let keyspaces = [left.map_err(at_open)?, right.map_err(at_open)?];
        self.ledger.settle(&db, self.ledger.written() + 1)?;
        self.note()?;
        self.ledger.compare(&db).map_err(|failure| failure.at("after open"))?;
        Ok(Life { db, keyspaces })
    }

    fn note(&self) -> Check {
        self.board.acknowledge(WRITER, self.ledger.written()).map_err(|error| on_board(&error))
    }

    fn work(&mut self, life: &Life) -> Check {
        while self.ledger.written() < self.args.commits || self.args.endless {
            let number = self.ledger.written() + 1;
            self.attempt(|_| commit(life, number))?;
            self.ledger.apply(number);
            self.note()?;
            self.attempt(|errand| errand.beside(life, number))?;
        }
        Ok(())
    }

    /// Does something; after an error that is not for good once more, since one call alone may have failed.
    fn attempt(&mut self, what: impl Fn(&Errand<'_>) -> Check) -> Check {
        loop {
            match what(self) {
                Err(failure)
                    if failure.refused().is_some_and(|error| !matches!(error, Error::Halted { .. })) =>
                {
                    self.met(failure)?;
                }
                done => return done,
            }
        }
    }

    /// What is done beside the write of a number.
    fn beside(&self, life: &Life, number: u64) -> Check {
        let at = |what: &'static str| move |error: Error| Failure::from(error).at(what);
        match number % 20 {
            3 => self.ledger.get(&life.keyspaces[1], number),
            6 => self.ledger.multi_get(number, |keys| life.keyspaces[0].multi_get(keys)),
            9 => self.ledger.multi_get(number, |keys| block_on(life.keyspaces[1].multi_get_async(keys))),
            12 => self.ledger.scan(&life.keyspaces[0]),
            15 => life.db.flush().map_err(at("flush")),
            18 if number % 60 == 58 => life.db.compact().map_err(at("compact")),
            18 if number % 60 == 18 => life.db.verify().map(drop).map_err(at("verify")),
            _ => Ok(()),
        }
    }

    /// After it has halted a store takes nothing, and says why; what is in it can be read.
    fn must_stay_halted(&self, life: &Life) -> Check {
        for again in 0..REFUSED {
            // The same number, since nobody knows whether that write happened.
            match commit(life, self.ledger.written() + 1) {
                Err(failure) if matches!(failure.refused(), Some(Error::Halted { .. })) => {}
                other => {
                    return Err(Failure::new(format!("halted, and then {other:?} at attempt {again}")));
                }
            }
        }
        self.ledger.get_all(&life.keyspaces[0])
    }
}

/// One write: both keyspaces or none. Every other one waits for stable media.
fn commit(life: &Life, number: u64) -> Check {
    let (slot, deletes) = slot_of(WRITER, number);
    let key = key(WRITER, slot);
    let mut batch = life.db.batch();
    batch.durability(if number.is_multiple_of(2) { Durability::Power } else { Durability::Process });
    for keyspace in &life.keyspaces {
        if deletes {
            batch.delete(keyspace, &key);
        } else {
            batch.put(keyspace, &key, value(WRITER, number));
        }
    }
    batch.commit().map(drop).map_err(|error| Failure::from(error).at(format!("write {number}")))
}

/// The files are sound: errors of a call are no reason to send people off to repair them.
fn blames_the_files(error: &Error) -> bool {
    match error {
        Error::Halted { cause, .. } => blames_the_files(cause),
        Error::Io { .. } | Error::NoSpace { .. } | Error::Busy { .. } => false,
        _ => true,
    }
}
