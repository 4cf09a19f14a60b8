//! Decides which task runs next. Each schedule has its own seed, so any of them can be run again alone.
//!
//! Invariant: a schedule is a function of its seed, the scenario, and the number of steps in the scenario's first run.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// Priority changes in one schedule by priority (PCT). A bug that takes `d` ordered steps is found with a known
/// probability by schedules of depth `d`. Two changes are depth three.
const CHANGES: usize = 2;

/// The purpose of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunKind {
    /// Makes the disk that all others start from.
    Setup,
    /// Runs without a crash, to count steps and events.
    Probe,
    /// A schedule.
    Seed(u64),
}

/// State shared by the scheduler and the runs.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) kind: RunKind,
    /// Choices of the first run.
    steps: u64,
}

/// A small generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `limit`, or 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// The rule that chooses the next task.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A random task at each step.
    Any,
    /// The same task as before, seven times of eight.
    Reluctant,
    /// The task of highest priority. A task that yields, or runs at a priority change, gets the lowest priority.
    Priority,
}

/// The scheduler of one series.
#[derive(Debug)]
pub(crate) struct Seeded {
    board: Arc<Mutex<Board>>,
    seeds: Range<u64>,
    runs: u64,
    way: Way,
    choices: Random,
    values: Random,
    /// Priorities of the tasks by number. The highest runs first.
    priorities: Vec<u64>,
    /// Lower than all priorities given so far.
    lowest: u64,
    changes: [u64; CHANGES],
    steps: u64,
}

impl Seeded {
    /// The seeds of the runs after setup and probe.
    pub(crate) fn new(seeds: Range<u64>) -> (Seeded, Arc<Mutex<Board>>) {
        let board = Arc::new(Mutex::new(Board { kind: RunKind::Setup, steps: 0 }));
        let seeded = Seeded {
            board: Arc::clone(&board),
            seeds,
            runs: 0,
            way: Way::Any,
            choices: Random::new(0),
            values: Random::new(0),
            priorities: Vec::new(),
            lowest: 0,
            changes: [0; CHANGES],
            steps: 0,
        };
        (seeded, board)
    }

    fn priority(&mut self, task: TaskId) -> u64 {
        while self.priorities.len() <= usize::from(task) {
            let priority = (1 << 32) + self.choices.below(1 << 32);
            self.priorities.push(priority);
        }
        self.priorities[usize::from(task)]
    }

    fn highest(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> TaskId {
        let changes = self.changes.contains(&self.steps);
        if let Some(current) = current.filter(|_| is_yielding || changes) {
            self.priority(current);
            self.lowest -= 1;
            self.priorities[usize::from(current)] = self.lowest;
        }
        let tasks = runnable.iter().map(|task| task.id());
        tasks.max_by_key(|task| self.priority(*task)).expect("a task can run")
    }

    fn any(&mut self, runnable: &[&Task]) -> TaskId {
        let chosen = self.choices.below(runnable.len() as u64);
        runnable[usize::try_from(chosen).expect("an index")].id()
    }
}

impl Scheduler for Seeded {
    fn new_execution(&mut self) -> Option<Schedule> {
        let mut board = self.board.lock().unwrap();
        if board.kind == RunKind::Probe {
            board.steps = self.steps;
        }
        let (kind, seed) = match self.runs {
            0 => (RunKind::Setup, 0),
            1 => (RunKind::Probe, 0),
            _ => {
                let seed = self.seeds.next()?;
                (RunKind::Seed(seed), seed)
            }
        };
        self.runs += 1;
        board.kind = kind;
        self.choices = Random::new(seed);
        self.values = Random::new(self.choices.next());
        self.way = match (kind, seed % 4) {
            (RunKind::Seed(_), 0 | 2) => Way::Priority,
            (RunKind::Seed(_), 1) => Way::Reluctant,
            _ => Way::Any,
        };
        self.priorities.clear();
        self.lowest = 1 << 32;
        self.steps = 0;
        // A run may be longer than the first.
        let length = board.steps * 5 / 4;
        self.changes = std::array::from_fn(|_| 1 + self.choices.below(length));
        Some(Schedule::new(seed))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        if let [only] = runnable {
            return Some(only.id());
        }
        self.steps += 1;
        Some(match self.way {
            Way::Priority => self.highest(runnable, current, is_yielding),
            Way::Reluctant if !is_yielding && self.choices.below(8) > 0 => {
                let same = current.filter(|current| runnable.iter().any(|task| task.id() == *current));
                same.unwrap_or_else(|| self.any(runnable))
            }
            Way::Reluctant | Way::Any => self.any(runnable),
        })
    }

    fn next_u64(&mut self) -> u64 {
        self.values.next()
    }
}
