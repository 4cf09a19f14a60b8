//! A refusal: a seccomp filter that answers system calls of this process with an errno, in all of its threads.
//!
//! Invariants: the kernel does not execute a refused call. Threads and programs that are started later inherit the filter,
//! and nothing removes it. The process gives up new privileges, so the filter needs none.

use std::collections::BTreeMap;
use std::str::FromStr;

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::report::{Check, Failure};

/// `libc` does not name it.
pub(crate) const IO_PGETEVENTS: i64 = if cfg!(target_arch = "x86_64") { 333 } else { 292 };

/// The calls that can be refused.
static CALLS: [(&str, i64); 10] = [
    ("io_setup", libc::SYS_io_setup),
    ("io_destroy", libc::SYS_io_destroy),
    ("io_submit", libc::SYS_io_submit),
    ("io_getevents", libc::SYS_io_getevents),
    ("io_pgetevents", IO_PGETEVENTS),
    ("io_cancel", libc::SYS_io_cancel),
    ("fallocate", libc::SYS_fallocate),
    ("statx", libc::SYS_statx),
    ("preadv2", libc::SYS_preadv2),
    ("pwritev2", libc::SYS_pwritev2),
];

/// The possible answers.
static ERRNOS: [(&str, i32); 4] =
    [("ENOSYS", libc::ENOSYS), ("EPERM", libc::EPERM), ("EACCES", libc::EACCES), ("EINVAL", libc::EINVAL)];

/// Why no call can be refused on this machine, if none can.
pub(crate) fn lack() -> Option<String> {
    const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";
    match std::fs::read_to_string(ACTIONS) {
        Ok(actions) if actions.split_whitespace().any(|action| action == "errno") => None,
        Ok(_) => Some("its seccomp filters cannot answer with an errno".to_owned()),
        Err(error) => Some(format!("it has no seccomp filters ({ACTIONS}: {error})")),
    }
}

/// Calls and their answer, as text `io_setup,io_submit=EPERM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    calls: Vec<i64>,
    errno: i32,
}

impl FromStr for Refusal {
    type Err = String;

    fn from_str(text: &str) -> Result<Refusal, String> {
        let (calls, errno) = text.split_once('=').ok_or("expected CALL,CALL=ERRNO")?;
        let calls = calls.split(',').map(|name| number_of(&CALLS, name)).collect::<Result<_, _>>()?;
        Ok(Refusal { calls, errno: number_of(&ERRNOS, errno)? })
    }
}

fn number_of<T: Copy>(names: &[(&str, T)], name: &str) -> Result<T, String> {
    let found = names.iter().find(|(known, _)| *known == name);
    found.map(|(_, number)| *number).ok_or_else(|| {
        let known: Vec<&str> = names.iter().map(|(known, _)| *known).collect();
        format!("{name} is not one of {}", known.join(", "))
    })
}

impl Refusal {
    /// From now on the calls are refused, for all threads of the process.
    ///
    /// # Errors
    /// The kernel has no filters, or does not allow this one.
    pub(crate) fn install(&self) -> Check {
        let failed = |error: seccompiler::Error| Failure::new(format!("install a seccomp filter: {error}"));
        let program = self.program().map_err(|error| failed(error.into()))?;
        seccompiler::apply_filter_all_threads(&program).map_err(failed)
    }

    fn program(&self) -> Result<BpfProgram, seccompiler::BackendError> {
        // A call without conditions is refused whatever its arguments are.
        let rules: BTreeMap<i64, _> = self.calls.iter().map(|call| (*call, Vec::new())).collect();
        let refused = SeccompAction::Errno(self.errno.unsigned_abs());
        let machine = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, SeccompAction::Allow, refused, machine)?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_from_text_and_compiles() {
        let refusal: Refusal = "io_setup,statx=EACCES".parse().unwrap();
        assert_eq!(
            refusal,
            Refusal { calls: vec![libc::SYS_io_setup, libc::SYS_statx], errno: libc::EACCES }
        );
        assert!(!refusal.program().unwrap().is_empty());
        for wrong in ["statx", "stats=EPERM", "statx=EIO", "=EPERM"] {
            assert!(wrong.parse::<Refusal>().is_err(), "{wrong}");
        }
    }

    /// The refused call is one that no other test of this process makes, because the filter stays.
    #[test]
    fn a_refused_call_answers_with_the_errno_in_every_thread() {
        if lack().is_some() {
            return;
        }
        let call = || rustix::process::getpriority_process(None);
        assert!(call().is_ok());
        let (tell, told) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let earlier = scope.spawn(move || (told.recv().is_err(), call()));
            Refusal { calls: vec![libc::SYS_getpriority], errno: libc::EACCES }.install().unwrap();
            drop(tell);
            assert_eq!(earlier.join().unwrap(), (true, Err(rustix::io::Errno::ACCESS)));
            assert_eq!(call(), Err(rustix::io::Errno::ACCESS));
        });
    }
}
