//! Shared by the tests of the tool: running it, directories on a real disk, a seeded generator.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The sample that `demo` has built in.
pub(crate) const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/sample.ndjson");

/// A directory below `target`.
pub(crate) fn temp_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory is writable")
}

/// A line on standard error that the test harness does not capture.
pub(crate) fn loud(text: &str) {
    writeln!(std::io::stderr(), "\n*** {text}").expect("standard error is open");
}

/// How a run of the tool ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn kvtool() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kvtool"))
}

/// Runs a command to its end, with this on its standard input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    let mut pipe = child.stdin.take().expect("standard input is a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || drop(pipe.write_all(input)));
        let output = child.wait_with_output().expect("the tool ends");
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("text"),
            err: without_notes(&String::from_utf8(output.stderr).expect("text")),
        }
    })
}

/// Its messages, without the notes on what this machine refuses.
pub(crate) fn without_notes(err: &str) -> String {
    let is_note = |line: &&str| {
        ["is refused here", "go through the page cache", "which is in memory"]
            .iter()
            .any(|note| line.contains(note))
    };
    err.split_inclusive('\n').filter(|line| !is_note(line)).collect()
}

/// Runs `kvtool COMMAND DIR ARGS…`.
pub(crate) fn tool(command: &str, dir: &Path, args: &[&str]) -> Ended {
    tool_with(command, dir, args, b"")
}

pub(crate) fn tool_with(command: &str, dir: &Path, args: &[&str], input: &[u8]) -> Ended {
    run(kvtool().arg(command).arg(dir).args(args.iter().map(OsStr::new)), input)
}

impl Ended {
    /// It succeeded; returns its output.
    #[track_caller]
    pub(crate) fn fine(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// It failed with this code and one line that contains all these words.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("kvtool: "), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is missing: {self:?}");
        }
    }
}

/// Names and contents of everything below a directory.
pub(crate) fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("the directory is there").path();
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).expect("the file is there");
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// The number in `SEED`, or one that is printed, so that a failing run can be repeated.
pub(crate) fn seed() -> Random {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => u64::from(std::process::id()) | 1 << 40,
    };
    loud(&format!("SEED={seed}"));
    Random(seed)
}

/// Good enough for the choice of test cases (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        let limit = u64::try_from(limit).expect("64 bits");
        usize::try_from(word % limit).expect("below a usize")
    }
}
