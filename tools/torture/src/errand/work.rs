//! A running errand.
//!
//! Invariant: when it is dropped its process has ended.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use rustix::process::Pid;

use super::sent::{End, Noted, Sent};
use super::terms::Mode;
use crate::lack::Lack;
use crate::report::{Check, Counts, Failure};

/// Longer than any event that is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longer than any number of them.
const MOST_PATIENCE: Duration = Duration::from_mins(10);
const POLL: Duration = Duration::from_millis(5);

/// A running errand.
#[derive(Debug)]
pub(crate) struct Work {
    sent: Sent,
    store: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
    clock: NativeBackend,
}

impl Work {
    /// Starts an errand with these options. `wrapper` runs it, and it waits for its release. Its store is in `disk` if that is
    /// given.
    pub(crate) fn begin(
        (dir, mode): (&Path, Mode),
        wrapper: &[&str],
        options: &[&str],
        disk: Option<&Path>,
    ) -> Check<Work> {
        let sent = Sent::new(dir, mode)?;
        let store = disk.map_or_else(|| sent.store(), |disk| disk.join("store"));
        let mut command = sent.command(wrapper, &store)?;
        command.args(options);
        let child = sent.start(&mut command)?;
        Ok(Work { sent, store, child, status: None, clock: NativeBackend::new() })
    }

    /// Starts the next errand on the same store. The one before has ended.
    pub(crate) fn again(&mut self, options: &[&str]) -> Check {
        let mut command = self.sent.command(&[], &self.store)?;
        command.args(options);
        self.child = self.sent.start(&mut command)?;
        self.status = None;
        Ok(())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pid(&self) -> Check<Pid> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| Failure::new("a process without a number"))
    }

    /// Releases the errand.
    pub(crate) fn go(&mut self) -> Check {
        let gate = self.child.stdin.as_mut().map(|gate| gate.write_all(b"g"));
        match gate {
            Some(Ok(())) => Ok(()),
            _ => Err(Failure::new("the errand cannot be let go")),
        }
    }

    pub(crate) fn noted(&self) -> Check<Noted> {
        self.sent.noted()
    }

    pub(crate) fn is_running(&mut self) -> Check<bool> {
        if self.status.is_none() {
            let status = self.child.try_wait();
            self.status = status.map_err(|error| Failure::new(format!("wait for an errand: {error}")))?;
        }
        Ok(self.status.is_none())
    }

    /// Waits until the errand notes something.
    ///
    /// # Errors
    /// The errand does not note it, or has ended.
    pub(crate) fn until(&mut self, what: &str, is_there: impl Fn(Noted) -> bool) -> Check {
        let (mut deadline, last) = (self.clock.now() + PATIENCE, self.clock.now() + MOST_PATIENCE);
        let mut before = self.noted()?;
        loop {
            let noted = self.noted()?;
            if is_there(noted) {
                return Ok(());
            }
            // A loaded machine makes it slow, but each step is a sign of life.
            if std::mem::replace(&mut before, noted) != noted {
                deadline = (self.clock.now() + PATIENCE).min(last);
            }
            let is_running = self.is_running()?;
            if !is_running || self.clock.now() > deadline {
                let why = if is_running { "it does not go on" } else { "it has ended" };
                let said = self.sent.said();
                return Err(Failure::new(format!("waiting for {what}: {why}, after {noted:?}: {said}")));
            }
            self.clock.park(POLL);
        }
    }

    fn wait(&mut self) -> Check<ExitStatus> {
        let deadline = self.clock.now() + PATIENCE;
        while self.is_running()? {
            if self.clock.now() > deadline {
                return Err(Failure::new(format!("it hangs: {}", self.sent.said())));
            }
            self.clock.park(POLL);
        }
        self.status.ok_or_else(|| Failure::new("an end without a status"))
    }

    /// Waits for the end of the errand, which must be one of these.
    pub(crate) fn ends(&mut self, ends: &[End]) -> Check<End> {
        let status = self.wait()?;
        let end = self.sent.end(status)?;
        if ends.contains(&end) {
            return Ok(end);
        }
        Err(Failure::new(format!("it ended with {end:?} instead of {ends:?}: {}", self.sent.said())))
    }

    /// Waits for the end of the errand, which must have done everything without an error.
    pub(crate) fn ends_unnoticed(&mut self) -> Check {
        self.ends(&[End::Done])?;
        self.has_met_no_error()
    }

    pub(crate) fn has_met_no_error(&self) -> Check {
        match self.noted()?.errors {
            0 => Ok(()),
            errors => Err(Failure::new(format!("it met {errors} errors: {}", self.sent.said()))),
        }
    }

    /// See [`Sent::fell_back`].
    pub(crate) fn fell_back(&self) -> BTreeSet<String> {
        self.sent.fell_back()
    }

    /// Waits for the end of the errand. Returns whether the allocator aborted it, which is the end of a program without memory.
    pub(crate) fn ends_for_want_of_memory(&mut self) -> Check<bool> {
        let status = self.wait()?;
        if !status.success() && self.sent.said().contains("memory allocation of") {
            return Ok(true);
        }
        self.ends(&[End::Done, End::GaveUp]).map(|_| false)
    }

    pub(crate) fn kill(&mut self) -> Check {
        // The errand may have ended already. Its status is checked.
        let _ = self.child.kill();
        self.ends(&[End::Signal(9)]).map(drop)
    }

    /// A healthy process finds everything. See [`Sent::judge`].
    pub(crate) fn judge(&self) -> Result<Counts, Lack> {
        Ok(counted(self.sent.judge(&self.store, false)?))
    }

    /// Checks everything that survives a loss of power.
    pub(crate) fn judge_durable(&self) -> Result<Counts, Lack> {
        Ok(counted(self.sent.judge(&self.store, true)?))
    }

    /// Removes the directory of an errand that has ended.
    pub(crate) fn remove(&self) -> Check {
        self.sent.remove()
    }

    pub(crate) fn kill_and_judge(mut self) -> Result<Counts, Lack> {
        self.kill()?;
        self.judge()
    }
}

fn counted(noted: Noted) -> Counts {
    let mut counts = Counts::default();
    counts.add("acknowledged", noted.acknowledged);
    if noted.beside > 0 {
        counts.add("acknowledged_beside", noted.beside);
    }
    counts.add("blocks_read", noted.misses);
    counts.add("errors_met", noted.errors);
    counts
}

impl Drop for Work {
    fn drop(&mut self) {
        // The errand has already ended, unless the trial failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
