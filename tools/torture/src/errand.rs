//! The errand: a process that works on a real store (it writes, flushes, compacts, reads, closes and opens again) while
//! another process disturbs it. `strace` and `limits` start it.
//!
//! ```text
//!   parent   starts it, arranges the disturbance         | says go |                  | looks at board and exit code,
//!   errand   makes its store ready                       |         | works, opens again | opens the store, compares
//! ```
//!
//! It ends in one of three ways: it did all its work (0), possibly after errors; it gave up because errors did not end
//! (`GAVE_UP`); or it found a wrong value, a lost write or an error that blames the files (1). It never panics: a panic is
//! an abort here.
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

/// Incarnations that may end with an error before the errand gives up.
const PATIENCE: u64 = 4;

/// Calls that must be refused in the same way after a store has halted.
const REFUSED: usize = 3;

/// Options of the process.
#[derive(Args, Clone, Debug)]
pub(crate) struct ErrandArgs {
    dir: PathBuf,
    board: PathBuf,
    /// Writes of all incarnations together.
    #[arg(long, default_value_t = 200)]
    commits: u64,
    #[arg(long, value_enum, default_value = "manual")]
    mode: Mode,
    /// Never end: continue after the last write, and after any number of errors.
    #[arg(long)]
    endless: bool,
    /// Install a handler for `SIGUSR1`, which interrupts blocking calls.
    #[arg(long)]
    catch: bool,
}

const SIGUSR1: i32 = 10;

/// The hidden command.
pub(crate) fn run(args: &ErrandArgs) -> ExitCode {
    // The store might catch a panic or lose it with its thread. The parent must see it.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
    // The context is unused; building it installs the handler without `SA_RESTART`.
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

/// Reports that the process has started, and waits for its release.
fn wait_for_go() -> Check {
    say("ready");
    let mut go = [0];
    std::io::stdin()
        .read_exact(&mut go)
        .map_err(|error| Failure::new(format!("the parent did not release it: {error}")))
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

/// An open store.
struct OpenStore {
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

    /// Runs incarnations until one completes and one more has found everything.
    fn all(&mut self) -> Check {
        // Reserves memory for the message of a panic, in case there is none left then.
        let before = usage().map_err(|error| on_board(&error))?;
        wait_for_go()?;
        let mut whole_lives = 0;
        while whole_lives < 2 {
            match self.incarnation() {
                Ok(()) => whole_lives += 1,
                Err(failure) => self.met(failure)?,
            }
        }
        self.board.put(Count::Halted, 1).map_err(|error| on_board(&error))?;
        // The disturbance may also affect this.
        let Ok(after) = usage() else { return Ok(()) };
        // A count that was cut short is lower; a leak makes it higher.
        if after[1] <= before[1] && after[2] <= before[2] {
            return Ok(());
        }
        Err(Failure::new(format!(
            "handles and threads went from {:?} to {:?} although every store was closed",
            &before[1..],
            &after[1..]
        )))
    }

    /// Counts an error of the store. A few errors are allowed.
    ///
    /// # Errors
    /// It was one error too many, or an error that no disturbance explains.
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

    /// Opens, compares, makes the remaining writes, compares, closes.
    fn incarnation(&mut self) -> Check {
        let store = self.open()?;
        self.board.put(Count::Opened, 1).map_err(|error| on_board(&error))?;
        match self.work(&store).and_then(|()| self.ledger.compare(&store.db)) {
            Ok(()) => {
                let OpenStore { db, keyspaces } = store;
                drop(keyspaces);
                db.close().map_err(|error| Failure::from(error).at("close"))
            }
            Err(failure) => {
                if let Some(Error::Halted { .. }) = failure.refused() {
                    self.must_stay_halted(&store)?;
                }
                Err(failure)
            }
        }
    }

    fn open(&mut self) -> Check<OpenStore> {
        let at_open = |error: Error| Failure::from(error).at("open");
        let db = self.args.mode.builder().open(&self.args.dir).map_err(at_open)?;
        let [left, right] = KEYSPACES.map(|name| db.keyspace(name));
        let keyspaces = [left.map_err(at_open)?, right.map_err(at_open)?];
        self.ledger.settle(&db, self.ledger.written() + 1)?;
        self.note()?;
        self.ledger.compare(&db).map_err(|failure| failure.at("after open"))?;
        Ok(OpenStore { db, keyspaces })
    }

    fn note(&self) -> Check {
        self.board.acknowledge(WRITER, self.ledger.written()).map_err(|error| on_board(&error))
    }

    fn work(&mut self, store: &OpenStore) -> Check {
        while self.ledger.written() < self.args.commits || self.args.endless {
            let number = self.ledger.written() + 1;
            self.attempt(|_| commit(store, number))?;
            self.ledger.apply(number);
            self.note()?;
            self.attempt(|errand| errand.beside(store, number))?;
        }
        Ok(())
    }

    /// Does something. After a temporary error it tries once more, because one call alone may have failed.
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

    /// The other operations that go with the write of a number.
    fn beside(&self, store: &OpenStore, number: u64) -> Check {
        let at = |what: &'static str| move |error: Error| Failure::from(error).at(what);
        match number % 20 {
            3 => self.ledger.get(&store.keyspaces[1], number),
            6 => self.ledger.multi_get(number, |keys| store.keyspaces[0].multi_get(keys)),
            9 => self.ledger.multi_get(number, |keys| block_on(store.keyspaces[1].multi_get_async(keys))),
            12 => self.ledger.scan(&store.keyspaces[0]),
            15 => store.db.flush().map_err(at("flush")),
            18 if number % 60 == 58 => store.db.compact().map_err(at("compact")),
            18 if number % 60 == 18 => store.db.verify().map(drop).map_err(at("verify")),
            _ => Ok(()),
        }
    }

    /// A halted store refuses all writes with its cause, and still reads.
    fn must_stay_halted(&self, store: &OpenStore) -> Check {
        for again in 0..REFUSED {
            // The same number, because it is unknown whether that write happened.
            match commit(store, self.ledger.written() + 1) {
                Err(failure) if matches!(failure.refused(), Some(Error::Halted { .. })) => {}
                other => {
                    return Err(Failure::new(format!("halted, and then {other:?} at attempt {again}")));
                }
            }
        }
        self.ledger.get_all(&store.keyspaces[0])
    }
}

/// One write to both keyspaces or to none. Every other one waits for stable media.
fn commit(store: &OpenStore, number: u64) -> Check {
    let (slot, deletes) = slot_of(WRITER, number);
    let key = key(WRITER, slot);
    let mut batch = store.db.batch();
    batch.durability(if number.is_multiple_of(2) { Durability::Power } else { Durability::Process });
    for keyspace in &store.keyspaces {
        if deletes {
            batch.delete(keyspace, &key);
        } else {
            batch.put(keyspace, &key, value(WRITER, number));
        }
    }
    batch.commit().map(drop).map_err(|error| Failure::from(error).at(format!("write {number}")))
}

/// The files are sound, so an error of a call must not tell the user to repair them.
fn blames_the_files(error: &Error) -> bool {
    match error {
        Error::Halted { cause, .. } => blames_the_files(cause),
        Error::Io { .. } | Error::NoSpace { .. } | Error::Busy { .. } => false,
        _ => true,
    }
}
