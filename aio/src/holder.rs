//! The process that holds the lock of a store, as far as another one can tell.
//!
//! A process id alone says little: in another PID namespace it names another process, in each container there is a process
//! 1, and on another machine it is a number. Later, another process of the same machine may have it. So a holder writes its
//! namespace, its boot and its start beside its id.

use std::fmt;

/// The holder of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// This process, by its id, namespace, boot and start. Or a child that it forked while it had the lock, if it has executed
    /// another program since.
    ThisProcess,
    /// A process with this id.
    Process(u32),
    /// A process with this id has taken the lock and has ended. One that it started still has the lock, or another process is
    /// just taking it.
    Ended(u32),
    /// A process of another PID namespace, such as another container, or the host of this one. It has this id there.
    OtherNamespace(u32),
    /// A process of another machine that shares the file system. It has this id there.
    OtherMachine(u32),
    /// A process that has left no id, or has not left it yet: perhaps this one.
    Unknown,
}

impl Holder {
    /// Its id, if it means this process or one that this process can see.
    #[must_use]
    pub fn pid(self) -> Option<u32> {
        match self {
            Holder::ThisProcess => Some(std::process::id()),
            Holder::Process(pid) => Some(pid),
            _ => None,
        }
    }

    /// The next step, as a clause.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Holder::ThisProcess => "use that one, which can be cloned",
            Holder::Process(_) => "close it there, or end that process",
            Holder::Ended(_) | Holder::Unknown => "`fuser` shows which process has the lock file open",
            Holder::OtherNamespace(_) => {
                "close it there, or end the container; on the host, `fuser` shows which process has the lock file open"
            }
            Holder::OtherMachine(_) => "close it there",
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::ThisProcess => f.write_str("this process already"),
            Holder::Process(pid) => write!(f, "process {pid}"),
            Holder::Ended(pid) => {
                write!(f, "another process, perhaps one that was started by process {pid}, which has ended")
            }
            Holder::OtherNamespace(pid) => {
                write!(f, "another container or PID namespace, by the process that has id {pid} there")
            }
            Holder::OtherMachine(pid) => write!(f, "another machine, by the process that has id {pid} there"),
            Holder::Unknown => f.write_str("this process or another one"),
        }
    }
}
