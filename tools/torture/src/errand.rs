//! The errand: a process that works on a real store (it writes, flushes, compacts, reads, closes and opens again) while
//! another process disturbs it. `strace`, `limits` and `seccomp` start it.
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

mod beside;
pub(crate) mod ledger;
pub(crate) mod refusal;
pub(crate) mod sent;
mod store;
pub(crate) mod terms;
pub(crate) mod watchdog;
pub(crate) mod work;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use aio::{Backend as _, Context, NativeBackend, Waking, block_on};
use clap::Args;
use esker::Error;

use crate::report::{Check, Failure, complain, say};
use crate::soak::board::{Board, Count, usage};
use ledger::Ledger;
use refusal::Refusal;
use store::OpenStore;
use terms::{BESIDE, GAVE_UP, Mode, WRITER};

/// Incarnations that may end with an error before the errand gives up.
const PATIENCE: u64 = 4;

/// How long an ended thread may be counted.
const LEAVING: Duration = Duration::from_secs(5);

/// Calls that must be refused in the same way after a store has halted.
const REFUSED: usize = 3;

/// Options of the process.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option by itself")]
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
    /// Only write: no flush, no read beside it. A write that is refused is sent again, with a record of its own.
    #[arg(long)]
    only_writes: bool,
    /// After this write, wait to be released once more.
    #[arg(long)]
    wait_after: Option<u64>,
    /// Install a handler for `SIGUSR1`, which interrupts blocking calls.
    #[arg(long)]
    catch: bool,
    /// Refuse system calls of this process: `CALL,CALL=ERRNO`.
    #[arg(long)]
    refuse: Option<Refusal>,
    /// Only after this write; 0 means from the start.
    #[arg(long, default_value_t = 0)]
    refuse_after: u64,
    /// Threads write and read beside it. They end the process with the first failure.
    #[arg(long)]
    beside: bool,
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
    match begin(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(format!("errand: {failure}"));
            if failure.refused().is_some() { ExitCode::from(GAVE_UP) } else { ExitCode::FAILURE }
        }
    }
}

fn begin(args: &ErrandArgs) -> Check {
    let mut errand = Errand::new(args)?;
    errand.refuse_after(0)?;
    errand.all()
}

/// Says that the process waits, and waits for its release.
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
    /// The writes of the thread beside it.
    beside: Ledger,
    errors: u64,
    misses: u64,
}

impl<'a> Errand<'a> {
    fn new(args: &'a ErrandArgs) -> Check<Errand<'a>> {
        let board = Board::open(&args.board).map_err(|error| on_board(&error))?;
        let acknowledged = board.acknowledged().map_err(|error| on_board(&error))?;
        let ledger_of = |writer| {
            let mut ledger = Ledger::of(writer);
            ledger.take(acknowledged[writer]);
            ledger
        };
        let (ledger, beside) = (ledger_of(WRITER), ledger_of(BESIDE));
        Ok(Errand { args, board, clock: NativeBackend::new(), ledger, beside, errors: 0, misses: 0 })
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
        self.leaves_nothing_behind(before)
    }

    /// Handles and threads are as before. The kernel counts a thread a moment longer than others can wait for it.
    fn leaves_nothing_behind(&self, before: [u64; 3]) -> Check {
        let deadline = self.clock.now() + LEAVING;
        loop {
            // The disturbance may also affect this.
            let Ok(after) = usage() else { return Ok(()) };
            // A count that was cut short is lower; a leak makes it higher.
            if after[1] <= before[1] && after[2] <= before[2] {
                return Ok(());
            }
            if self.clock.now() > deadline {
                return Err(Failure::new(format!(
                    "handles and threads went from {:?} to {:?} although every store was closed",
                    &before[1..],
                    &after[1..]
                )));
            }
            self.clock.park(Duration::from_millis(5));
        }
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
        let worked = self.work_in_company(&store).and_then(|()| self.compare(&store));
        self.misses += store.db.metrics().cache_misses;
        self.board.put(Count::Misses, self.misses).map_err(|error| on_board(&error))?;
        match worked {
            Ok(()) => store.close(),
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
        let store = OpenStore::open(self.args.mode, &self.args.dir).map_err(at_open)?;
        self.ledger.settle(&store.db, self.ledger.written() + 1)?;
        self.beside.settle(&store.db, self.beside.written() + 1)?;
        self.note()?;
        self.board.acknowledge(BESIDE, self.beside.written()).map_err(|error| on_board(&error))?;
        self.compare(&store).map_err(|failure| failure.at("after open"))?;
        Ok(store)
    }

    fn compare(&self, store: &OpenStore) -> Check {
        self.ledger.compare(&store.db)?;
        self.beside.compare(&store.db).map_err(|failure| failure.at("the writer beside it"))
    }

    fn note(&self) -> Check {
        self.board.acknowledge(WRITER, self.ledger.written()).map_err(|error| on_board(&error))
    }

    /// Installs the filter if this is its moment.
    fn refuse_after(&self, written: u64) -> Check {
        match &self.args.refuse {
            Some(refusal) if self.args.refuse_after == written => refusal.install(),
            _ => Ok(()),
        }
    }

    /// Does the work, beside the threads if there are to be some.
    fn work_in_company(&mut self, store: &OpenStore) -> Check {
        if !self.args.beside {
            return self.work(store);
        }
        let (args, written) = (self.args, self.beside.written());
        let (worked, written) = beside::during(store, &args.board, written, || self.work(store));
        self.beside.take(written);
        worked
    }

    fn work(&mut self, store: &OpenStore) -> Check {
        while self.ledger.written() < self.args.commits || self.args.endless {
            let number = self.ledger.written() + 1;
            self.attempt(|_| store.commit(WRITER, number))?;
            self.ledger.apply(number);
            self.note()?;
            self.refuse_after(number)?;
            if self.args.wait_after == Some(number) {
                wait_for_go()?;
            }
            if !self.args.only_writes {
                self.attempt(|errand| errand.beside(store, number))?;
            }
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
            match store.commit(WRITER, self.ledger.written() + 1) {
                Err(failure) if matches!(failure.refused(), Some(Error::Halted { .. })) => {}
                other => {
                    return Err(Failure::new(format!("halted, and then {other:?} at attempt {again}")));
                }
            }
        }
        self.ledger.get_all(&store.keyspaces[0])
    }
}

/// The files are sound, so an error of a call must not tell the user to repair them.
fn blames_the_files(error: &Error) -> bool {
    match error {
        Error::Halted { cause, .. } => blames_the_files(cause),
        Error::Io { .. } | Error::NoSpace { .. } | Error::Busy { .. } => false,
        _ => true,
    }
}
