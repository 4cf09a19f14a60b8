//! An errand under way.
//!
//! Invariant: once it is dropped its process has ended.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use rustix::process::Pid;

use super::lack::Lack;
use crate::errand::sent::{End, Noted, Sent};
use crate::errand::terms::Mode;
use crate::report::{Check, Counts, Failure};

/// What takes longer than this does not come.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Work {
    sent: Sent,
    store: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
    clock: NativeBackend,
}

impl Work {
    /// Starts an errand with these options, which is run by `wrapper` and waits until it is let go. Its store is in
    /// `disk` if given.
    pub(super) fn begin(
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

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn pid(&self) -> Check<Pid> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| Failure::new("a process without a number"))
    }

    /// Lets it go.
    pub(super) fn go(&mut self) -> Check {
        let gate = self.child.stdin.as_mut().map(|gate| gate.write_all(b"g"));
        match gate {
            Some(Ok(())) => Ok(()),
            _ => Err(Failure::new("the errand cannot be let go")),
        }
    }

    pub(super) fn noted(&self) -> Check<Noted> {
        self.sent.noted()
    }

    pub(super) fn is_running(&mut self) -> Check<bool> {
        if self.status.is_none() {
            let status = self.child.try_wait();
            self.status = status.map_err(|error| Failure::new(format!("wait for an errand: {error}")))?;
        }
        Ok(self.status.is_none())
    }

    /// Waits for something that it notes.
    ///
    /// # Errors
    /// It does not come, or the errand has ended.
    pub(super) fn until(&mut self, what: &str, is_there: impl Fn(Noted) -> bool) -> Check {
        let deadline = self.clock.now() + PATIENCE;
        while !is_there(self.noted()?) {
            let is_running = self.is_running()?;
            if !is_running || self.clock.now() > deadline {
                let why = if is_running { "it does not go on" } else { "it has ended" };
                let noted = self.noted()?;
                let said = self.sent.said();
                return Err(Failure::new(format!("waiting for {what}: {why}, after {noted:?}: {said}")));
            }
            self.clock.park(POLL);
        }
        Ok(())
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

    /// Waits for its end, which must be one of these.
    pub(super) fn ends(&mut self, ends: &[End]) -> Check<End> {
        let status = self.wait()?;
        let end = self.sent.end(status)?;
        if ends.contains(&end) {
            return Ok(end);
        }
        Err(Failure::new(format!("it ended with {end:?} instead of {ends:?}: {}", self.sent.said())))
    }

    /// Waits for its end; it has done everything, and met no error.
    pub(super) fn ends_unnoticed(&mut self) -> Check {
        self.ends(&[End::Done])?;
        match self.noted()?.errors {
            0 => Ok(()),
            errors => Err(Failure::new(format!("it met {errors} errors: {}", self.sent.said()))),
        }
    }

    /// Waits for its end; says whether the allocator ended it, which is how a program without memory ends.
    pub(super) fn ends_for_want_of_memory(&mut self) -> Check<bool> {
        let status = self.wait()?;
        if !status.success() && self.sent.said().contains("memory allocation of") {
            return Ok(true);
        }
        self.ends(&[End::Done, End::GaveUp]).map(|_| false)
    }

    pub(super) fn kill(&mut self) -> Check {
        // It may have ended already; how, is looked at.
        let _ = self.child.kill();
        self.ends(&[End::Signal(9)]).map(drop)
    }

    /// A healthy process finds everything. See [`Sent::judge`].
    pub(super) fn judge(&self) -> Result<Counts, Lack> {
        Ok(counted(self.sent.judge(&self.store, false)?))
    }

    /// Everything that was to survive a loss of power.
    pub(super) fn judge_what_is_durable(&self) -> Result<Counts, Lack> {
        Ok(counted(self.sent.judge(&self.store, true)?))
    }

    pub(super) fn kill_and_judge(mut self) -> Result<Counts, Lack> {
        self.kill()?;
        self.judge()
    }
}

fn counted(noted: Noted) -> Counts {
    let mut counts = Counts::default();
    counts.add("acknowledged", noted.acknowledged);
    counts.add("errors_met", noted.errors);
    counts
}

impl Drop for Work {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
