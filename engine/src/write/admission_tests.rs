//! Tests of admission, against a store of numbers.

use std::cell::{Cell, RefCell};

use super::*;
use crate::base::error::Error;

/// A store with scripted memory. It notes the calls.
#[derive(Default)]
struct Script {
    /// Active and frozen bytes, one pair for each look; the last one stays.
    memory: RefCell<Vec<(u64, u64)>>,
    flush_error: Option<Error>,
    lacks_log_room: Cell<bool>,
    /// Flushes until the log is below its limit.
    flushes_to_limit: Cell<u32>,
    log_error: Option<Error>,
    /// Grows by one second with each flush that was waited for.
    clock: Cell<Duration>,
    calls: RefCell<Vec<String>>,
}

impl Script {
    fn of(memory: &[(u64, u64)]) -> Script {
        Script { memory: RefCell::new(memory.to_vec()), ..Script::default() }
    }

    fn note(&self, call: &str) {
        self.calls.borrow_mut().push(call.to_owned());
    }

    fn admitted(&self) -> (Result<()>, Vec<String>) {
        let outcome = admit(self, 100);
        (outcome, self.calls.take())
    }
}

fn result(error: Option<&Error>) -> Result<()> {
    error.map_or(Ok(()), |error| Err(error.clone()))
}

impl Room for Script {
    fn memory(&self) -> MemtableUsage {
        let mut memory = self.memory.borrow_mut();
        let (active, frozen) = if memory.len() > 1 { memory.remove(0) } else { memory[0] };
        MemtableUsage { active, frozen, freeze_at: 60, limit: 100 }
    }

    fn freeze_largest(&self) {
        self.note("freeze");
    }

    fn wait_for_flush(&self) -> Result<()> {
        self.note("wait");
        self.clock.set(self.clock.get() + Duration::from_secs(1));
        result(self.flush_error.as_ref())
    }

    fn stalled(&self, took: Duration) {
        self.note(&format!("stalled {took:?}"));
    }

    fn now(&self) -> Duration {
        self.clock.get()
    }

    fn has_log_room(&self, len_bytes: usize) -> bool {
        assert_eq!(len_bytes, 100);
        !self.lacks_log_room.get()
    }

    fn make_log_room(&self, len_bytes: usize) -> Result<bool> {
        self.note(&format!("room for {len_bytes}"));
        result(self.log_error.as_ref()).map(|()| self.flushes_to_limit.get() == 0)
    }

    fn wait_for_log(&self, len_bytes: usize) -> Result<()> {
        assert_eq!(len_bytes, 100);
        self.note("freeze oldest");
        self.flushes_to_limit.set(self.flushes_to_limit.get().saturating_sub(1));
        self.wait_for_flush()
    }

    fn prepare_spare(&self) {
        self.note("spare");
    }

    fn release_old_log(&self) {
        self.note("old log");
    }
}

#[test]
fn a_write_with_room_goes_on_at_once() {
    let (outcome, calls) = Script::of(&[(59, 0)]).admitted();
    outcome.unwrap();
    assert_eq!(calls, ["old log", "spare"]);
}

#[test]
fn a_full_table_is_frozen_and_full_memory_waits_until_a_flush_has_freed_some() {
    let (outcome, calls) = Script::of(&[(60, 0), (40, 60), (40, 60), (40, 0)]).admitted();
    outcome.unwrap();
    assert_eq!(calls, ["freeze", "wait", "wait", "stalled 2s", "old log", "spare"]);
}

#[test]
fn a_flush_that_fails_refuses_the_write() {
    let script = Script { flush_error: Some(Error::Closed), ..Script::of(&[(40, 60)]) };
    let (outcome, calls) = script.admitted();
    assert!(matches!(outcome, Err(Error::Closed)));
    assert_eq!(calls, ["wait"]);
}

#[test]
fn a_log_without_room_is_given_some_or_refuses_the_write() {
    let script = Script { lacks_log_room: Cell::new(true), ..Script::of(&[(0, 0)]) };
    let (outcome, calls) = script.admitted();
    outcome.unwrap();
    assert_eq!(calls, ["old log", "room for 100"]);
    let script = Script { log_error: Some(Error::invalid("no space")), ..script };
    assert!(matches!(script.admitted().0, Err(Error::InvalidArgument { .. })));
}

#[test]
fn a_log_at_its_limit_waits_until_a_flush_has_freed_a_file() {
    let script =
        Script { lacks_log_room: Cell::new(true), flushes_to_limit: Cell::new(2), ..Script::of(&[(0, 0)]) };
    let (outcome, calls) = script.admitted();
    outcome.unwrap();
    let round = ["room for 100", "freeze oldest", "wait"];
    assert_eq!(calls, [&["old log"][..], &round, &round, &["room for 100", "stalled 2s"]].concat());
    // A flush that fails gives its error.
    let script = Script { flushes_to_limit: Cell::new(2), flush_error: Some(Error::Closed), ..script };
    let (outcome, calls) = script.admitted();
    assert!(matches!(outcome, Err(Error::Closed)));
    assert_eq!(calls, [&["old log"][..], &round].concat());
}
