//! Runs numbered cases on a few threads until a limit, watches them, and prints how to replay a failure.
//!
//! Invariants: a case depends on its number and the seed only. Without a time limit the set of cases does not depend on the
//! threads, because the limits are checked between rounds of a fixed number of cases.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::{Condvar, Mutex};

use crate::report::{Check, Failure, Tally, complain};

/// A case that takes longer counts as a hang. Cases take seconds on a slow machine.
const HANG_AFTER: Duration = Duration::from_mins(5);

/// The interval between two updates of the terminal, and two looks for hangs.
const TICK: Duration = Duration::from_millis(500);

/// The settings that all commands share.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    /// No case begins after this reading of `clock`.
    pub(crate) deadline: Option<Duration>,
    pub(crate) clock: NativeBackend,
}

impl Settings {
    /// A number for a case, different for every seed and case.
    pub(crate) fn case_seed(&self, case: u64) -> u64 {
        fastrand::Rng::with_seed(self.seed.rotate_left(32) ^ case.wrapping_mul(0x9E37_79B9_7F4A_7C15)).u64(..)
    }

    /// The numbers below `count` in an order drawn from the seed, so that a shortened run is a fair sample.
    pub(crate) fn shuffled(&self, count: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..count).collect();
        fastrand::Rng::with_seed(self.seed).shuffle(&mut order);
        order
    }

    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.clock.now() >= deadline)
    }
}

/// The cases to run: from `first`, in order, until `enough` returns true.
pub(crate) struct Cases<'a> {
    /// The command line without the seed, for the replay; the number of the case follows it.
    pub(crate) replay: &'a str,
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// The numbers in the order of the run; empty: rising.
    pub(crate) order: &'a [u64],
    /// Cases between two checks of the limits.
    pub(crate) round: u64,
    /// Asked after every round.
    pub(crate) enough: &'a (dyn Fn(&Tally) -> bool + Sync),
    /// Runs one case.
    pub(crate) run: &'a (dyn Fn(u64) -> Check<Tally> + Sync),
}

/// The data that the threads of a round share.
struct Round<'a> {
    settings: &'a Settings,
    cases: &'a Cases<'a>,
    next: AtomicU64,
    end: u64,
    tally: Mutex<Tally>,
    failure: Mutex<Option<(u64, Failure)>>,
    stop: AtomicBool,
    /// The present case of each thread, and its start.
    running: Mutex<Vec<Option<(u64, Duration)>>>,
}

/// Runs cases.
///
/// # Errors
/// The first failure, with the command that replays it.
pub(crate) fn run(settings: &Settings, cases: &Cases<'_>) -> Check<Tally> {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    let mut total = Tally::default();
    let last = cases.first.saturating_add(cases.count);
    let mut first = cases.first;
    while first < last && !settings.is_over() && !(cases.enough)(&total) {
        let end = last.min(first.saturating_add(cases.round));
        total.merge(&run_round(settings, cases, first..end, &bar)?);
        bar.set_message(format!("{} cases {}", cases.replay, total.counts.to_json()));
        first = end;
    }
    bar.finish_and_clear();
    Ok(total)
}

/// Runs all cases, also those after a failure, so that one run shows everything that fails.
///
/// # Errors
/// The number of failures. Each was printed, with the command that replays it.
pub(crate) fn survey(settings: &Settings, cases: &Cases<'_>) -> Check<Tally> {
    let failures = Mutex::new(BTreeMap::new());
    let tally = run(
        settings,
        &Cases {
            run: &|case| {
                (cases.run)(case).or_else(|failure| {
                    failures.lock().insert(case, failure);
                    Ok(Tally::default())
                })
            },
            ..*cases
        },
    )?;
    let failures = failures.into_inner();
    for (case, failure) in &failures {
        complain(format!("FAILED, replay with: {}: {failure}", replay(settings, cases, *case)));
    }
    match failures.len() {
        0 => Ok(tally),
        failed => Err(Failure::new(format!("{failed} of {} cases FAILED", cases.count))),
    }
}

fn run_round(
    settings: &Settings,
    cases: &Cases<'_>,
    numbers: std::ops::Range<u64>,
    bar: &ProgressBar,
) -> Check<Tally> {
    let round = Round {
        settings,
        cases,
        next: AtomicU64::new(numbers.start),
        end: numbers.end,
        tally: Mutex::default(),
        failure: Mutex::default(),
        stop: AtomicBool::new(false),
        running: Mutex::new(vec![None; settings.threads]),
    };
    let (ended, waking) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..settings.threads)
            .map(|thread| {
                scope.spawn({
                    let round = &round;
                    move || round.work(thread)
                })
            })
            .collect();
        let watchdog = scope.spawn(|| {
            let mut ended = ended.lock();
            while !*ended {
                waking.wait_for(&mut ended, TICK);
                bar.tick();
                round.look_for_hangs();
            }
        });
        for worker in workers {
            // `work` catches the panics of the store.
            let _ = worker.join();
        }
        *ended.lock() = true;
        waking.notify_all();
        let _ = watchdog.join();
    });
    match round.failure.into_inner() {
        Some((case, failure)) => {
            Err(failure.at(format!("FAILED, replay with: {}", replay(settings, cases, case))))
        }
        None => Ok(round.tally.into_inner()),
    }
}

impl Round<'_> {
    fn work(&self, thread: usize) {
        while !self.stop.load(Ordering::Relaxed) && !self.settings.is_over() {
            let nth = self.next.fetch_add(1, Ordering::Relaxed);
            if nth >= self.end {
                break;
            }
            let case =
                usize::try_from(nth).ok().and_then(|nth| self.cases.order.get(nth)).map_or(nth, |case| *case);
            self.running.lock()[thread] = Some((case, self.settings.clock.now()));
            let result = catch_unwind(AssertUnwindSafe(|| (self.cases.run)(case)));
            self.running.lock()[thread] = None;
            match result.unwrap_or_else(|panic| Err(Failure::new(format!("panic: {}", message(&*panic))))) {
                Ok(tally) => self.tally.lock().merge(&tally),
                Err(failure) => {
                    self.stop.store(true, Ordering::Relaxed);
                    self.failure.lock().get_or_insert((case, failure));
                }
            }
        }
    }

    fn look_for_hangs(&self) {
        let now = self.settings.clock.now();
        for (case, since) in self.running.lock().iter().flatten() {
            if now.saturating_sub(*since) > HANG_AFTER {
                complain(format!("HANG, replay with: {}", replay(self.settings, self.cases, *case)));
                std::process::exit(1);
            }
        }
    }
}

fn replay(settings: &Settings, cases: &Cases<'_>, case: u64) -> String {
    format!("kvtorture {} {case} --seed {}", cases.replay, settings.seed)
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
