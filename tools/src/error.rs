//! The end of a failed command: an exit code and one line with the cause, the file, and the remedy.
//!
//! Invariants: every error of the store is mapped here and nowhere else; a message is always one line.

use std::path::Path;
use std::process::ExitCode;

use esker::Error;

/// Result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The table of exit codes, as `--help` shows it.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  fine
  1  not found (the key, or the keyspace)
  2  wrong usage or malformed input
  3  corruption: the message names the file and the offset
  4  an I/O error, or something about this machine or directory
  5  the store is locked by another process";

/// Why a command ended. The number of each kind is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reader closed standard output: no failure, and no message.
    Quiet,
    /// No such key or keyspace.
    NotFound,
    /// Wrong usage or malformed input.
    Input,
    /// Bytes on disk differ from the written ones.
    Corrupt,
    /// The machine, the file system or the directory.
    Environment,
    /// Another process holds the store.
    Locked,
}

/// A command that ended early.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    /// A failure with its message; line breaks become spaces.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Failure {
        let message = message.into().split_whitespace().collect::<Vec<_>>().join(" ");
        Failure { kind, message }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(Kind::NotFound, message)
    }

    pub(crate) fn input(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Input, message)
    }

    pub(crate) fn environment(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Environment, message)
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Corrupt, message)
    }

    /// A failed call on a file that is not part of a store.
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Failure {
        Failure::environment(format!("{}: {}", path.display(), of_machine("open", error)))
    }

    /// A failed read of standard input, or of a file that is read like it.
    pub(crate) fn input_stream(name: &Path, error: &std::io::Error) -> Failure {
        Failure::environment(format!("{}: {}", name.display(), of_machine("read stream", error)))
    }

    /// A failed write to standard output. A closed pipe is normal: `head` closes it when it has enough lines.
    pub(crate) fn output(error: &std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::new(Kind::Quiet, "");
        }
        Failure::environment(format!("standard output: {}", of_machine("write stream", error)))
    }

    /// An error of the store in `dir`. It says its next step itself; only what this tool can do is added.
    pub(crate) fn store(dir: &Path, error: &Error) -> Failure {
        let dir = dir.display();
        match error {
            Error::Locked { .. } => Failure::new(Kind::Locked, format!("{dir}: {error}")),
            Error::Corrupt { .. } if error.is_repairable() => {
                Failure::corrupt(format!("{error}; `kvtool repair {dir}` shows how much would be lost"))
            }
            Error::Corrupt { .. } => Failure::corrupt(error.to_string()),
            Error::Halted { cause, .. } if matches!(**cause, Error::Corrupt { .. }) => {
                Failure::corrupt(format!("{dir}: {error}"))
            }
            Error::InvalidArgument { .. } | Error::TooLarge { .. } => {
                Failure::input(format!("{dir}: {error}"))
            }
            Error::Format { .. } => Failure::environment(error.to_string()),
            _ => Failure::environment(format!("{dir}: {error}")),
        }
    }

    /// The same failure with a text in front.
    pub(crate) fn context(self, what: impl std::fmt::Display) -> Failure {
        Failure { kind: self.kind, message: format!("{what}: {}", self.message) }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Quiet => 0,
            Kind::NotFound => 1,
            Kind::Input => 2,
            Kind::Corrupt => 3,
            Kind::Environment => 4,
            Kind::Locked => 5,
        })
    }
}

/// An error of the operating system, with the next step.
fn of_machine(call: &str, error: &std::io::Error) -> String {
    let advice = error.raw_os_error().and_then(|code| esker::Errno(code).advice(call));
    advice.map_or_else(|| error.to_string(), |advice| format!("{error}: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        let failure = Failure::input("first\n  second\r\nthird");
        assert_eq!(failure.message(), "first second third");
        assert_eq!(failure.exit_code(), ExitCode::from(2));
    }

    #[test]
    fn no_message_says_anything_twice() {
        let dir = Path::new("/data/store");
        for error in aio::every_error() {
            let store = Error::from(error.clone());
            aio::assert_said_once(Failure::store(dir, &store).message());
            if let Some(errno) = error.errno() {
                let error = std::io::Error::from_raw_os_error(errno.0);
                aio::assert_said_once(Failure::file(dir, &error).message());
                aio::assert_said_once(Failure::input_stream(dir, &error).message());
                aio::assert_said_once(Failure::output(&error).message());
            }
        }
    }

    #[test]
    fn a_terminal_that_is_gone_is_not_a_failed_disk() {
        let error = std::io::Error::from_raw_os_error(esker::Errno::IO.0);
        for failure in [Failure::output(&error), Failure::input_stream(Path::new("standard input"), &error)] {
            assert!(failure.message().contains("if it is a terminal, it is gone"), "{}", failure.message());
        }
    }

    #[test]
    fn a_closed_pipe_is_fine() {
        let failure = Failure::output(&std::io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.kind(), Kind::Quiet);
        assert_eq!(failure.exit_code(), ExitCode::SUCCESS);
    }
}
