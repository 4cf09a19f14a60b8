//! The promises of a backend, and the report of `probe`, on file systems made for it: loop-mounted and in memory.
//!
//! Needs root, `unshare`, `mount`, a loop device, and the `mkfs` of each file system; a file system that cannot be made
//! is reported as ignored, with the reason, never as passed. All mounts are in a mount namespace of the test's own, so
//! none remains after it, even if it is killed.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "test helpers")]
#![expect(clippy::disallowed_methods, reason = "makes the disks that the backend is then tried on")]

#[path = "it/promises.rs"]
mod promises;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aio::{Backend, Errno, Flags, NativeBackend, OperationKind, Probe};
use libtest_mimic::{Arguments, Failed, Trial};
use promises::BackendFixture;
use rustix::fs::{FallocateFlags, fallocate};

/// Set in the process that has a mount namespace of its own.
const INSIDE: &str = "AIO_TEST_MOUNTS";

/// Bytes of an image; XFS takes no less. Sparse.
const IMAGE_BYTES: u64 = 320 << 20;

/// A file system to make.
struct Kind {
    name: &'static str,
    /// The program that makes it in an image, with its arguments.
    make: &'static [&'static str],
    /// Options of `mount`.
    options: &'static str,
    /// Checks the report of `probe`.
    expects: fn(&Probe),
}

const KINDS: [Kind; 8] = [
    Kind { name: "ext4", make: &["mkfs.ext4", "-q", "-F"], options: "loop", expects: is_direct },
    Kind {
        name: "ext4_data_journal",
        make: &["mkfs.ext4", "-q", "-F"],
        options: "loop,data=journal",
        expects: is_buffered,
    },
    Kind { name: "xfs", make: &["mkfs.xfs", "-q", "-f"], options: "loop", expects: is_direct },
    Kind { name: "btrfs", make: &["mkfs.btrfs", "-q", "-f"], options: "loop", expects: is_buffered },
    Kind {
        name: "btrfs_without_checksums",
        make: &["mkfs.btrfs", "-q", "-f"],
        options: "loop,nodatacow,nodatasum",
        expects: is_any,
    },
    Kind { name: "tmpfs", make: &[], options: "size=256m", expects: is_buffered },
    Kind { name: "overlay_on_ext4", make: &["mkfs.ext4", "-q", "-F"], options: "loop", expects: is_any },
    Kind { name: "overlay_on_tmpfs", make: &[], options: "size=256m", expects: is_buffered },
];

/// File systems that a test fills to the last block.
const FULL: [Kind; 3] = [
    Kind { name: "full_ext4", make: &["mkfs.ext4", "-q", "-F"], options: "loop", expects: is_any },
    Kind { name: "full_xfs", make: &["mkfs.xfs", "-q", "-f"], options: "loop", expects: is_any },
    Kind { name: "full_tmpfs", make: &[], options: "size=8m", expects: is_any },
];

fn is_direct(probe: &Probe) {
    assert!(probe.is_direct, "{probe}");
    assert!(probe.is_asynchronous, "{probe}");
    assert!(probe.alignment.offset_bytes <= 4096, "{probe}");
    assert!(probe.maps_are_shared, "{probe}");
}

fn is_buffered(probe: &Probe) {
    assert!(!probe.is_direct, "{probe}");
    assert!(probe.reason.contains("page cache"), "{probe}");
}

fn is_any(_: &Probe) {}

/// Checks that hold on every file system.
fn check_probe(probe: &Probe) {
    assert!(probe.kernel.contains('.'), "{probe}");
    for (kind, found) in &probe.operations {
        assert_eq!(*found, Ok(()), "{kind:?} on {probe}");
    }
    assert_eq!(probe.operations.len(), 7, "{probe}");
    assert!(probe.operations.iter().any(|(kind, _)| *kind == OperationKind::Poll));
    let flag = |wanted| probe.flags.iter().find(|(flag, _)| *flag == wanted).unwrap().1;
    assert_eq!((flag(Flags::DATA_SYNC), flag(Flags::SYNC)), (Ok(()), Ok(())), "{probe}");
    // The answer depends on kernel and file system, but is one of these.
    for (flag, found) in &probe.flags {
        let is_known = matches!(found, Ok(()) | Err(Errno::NOT_SUPPORTED | Errno::AGAIN | Errno::INVALID));
        assert!(is_known, "{flag:?} on {probe}");
    }
}

/// Runs a program. The error is the first line of its error output.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", said.lines().next().unwrap_or("failed")))
}

/// Makes and mounts a file system; the directory to work in, or why there is none.
fn mount(kind: &Kind, base: &Path) -> Result<PathBuf, String> {
    let below = |name: &str| base.join(format!("{}-{name}", kind.name));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (image, lower) = (below("image"), below("mounted"));
    std::fs::create_dir_all(&lower).map_err(|error| error.to_string())?;
    if let Some((program, arguments)) = kind.make.split_first() {
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(IMAGE_BYTES))
            .map_err(|e| e.to_string())?;
        run(program, &[arguments, &[&text(&image)]].concat())?;
        run("mount", &["-o", kind.options, &text(&image), &text(&lower)])?;
    } else {
        run("mount", &["-t", "tmpfs", "-o", kind.options, "tmpfs", &text(&lower)])?;
    }
    if !kind.name.starts_with("overlay") {
        return Ok(lower);
    }
    let merged = below("merged");
    for dir in [&merged, &lower.join("lower"), &lower.join("upper"), &lower.join("work")] {
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    }
    let at = text(&lower);
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    run("mount", &["-t", "overlay", "-o", &options, "overlay", &text(&merged)])?;
    Ok(merged)
}

/// Makes the tests of one file system.
type Trials = fn(&'static Kind, &Result<PathBuf, String>) -> Vec<Trial>;

/// The tests of one file system: those of its mount, or ignored ones that say why.
fn trials(kind: &'static Kind, mounted: &Result<PathBuf, String>) -> Vec<Trial> {
    let next = Arc::new(AtomicU32::new(0));
    let mut trials = Vec::new();
    macro_rules! push {
        ($($promise:ident)*) => {
            $(trials.push(trial(kind, stringify!($promise), mounted, &next, |dir| {
                let backend = NativeBackend::new();
                promises::$promise(&BackendFixture { backend: &backend, dir });
            }));)*
        };
    }
    promises::with_promises!(push);
    trials.push(trial(kind, "the_probe_finds_it_out", mounted, &next, |dir| {
        let probe = aio::probe(&dir).unwrap();
        check_probe(&probe);
        (kind.expects)(&probe);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing is left behind");
    }));
    trials
}

/// The test of a file system that is full.
fn full_trials(kind: &'static Kind, mounted: &Result<PathBuf, String>) -> Vec<Trial> {
    let next = Arc::new(AtomicU32::new(0));
    vec![trial(kind, "a_hole_in_a_map_is_an_error_and_not_a_signal", mounted, &next, |dir| {
        const LEN_BYTES: usize = 64 * 4096;
        let hole = 16 * 4096..32 * 4096;
        let backend = NativeBackend::new();
        let mut queue = backend.queue(1).unwrap();
        let file =
            aio::file::create_zeroed(&backend, &mut *queue, (&dir.join("ring"), "ring"), LEN_BYTES as u64)
                .unwrap();
        let map = backend.map_shared(&file, LEN_BYTES).unwrap();
        assert!(map.is_shared());
        let inside = std::fs::File::options().write(true).open(file.path()).unwrap();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&inside, flags, hole.start as u64, hole.len() as u64).unwrap();
        let filler = std::fs::File::create(dir.join("filler")).unwrap();
        let mut end = 0;
        let mut step = 64 << 20;
        while step >= 4096 {
            match fallocate(&filler, FallocateFlags::empty(), end, step) {
                Ok(()) => end += step,
                Err(_) => step /= 2,
            }
        }
        for _ in 0..2 {
            let error = map.make_room(hole.start, hole.len()).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::NO_SPACE), "{error}");
        }
        map.make_room(hole.end, LEN_BYTES - hole.end).unwrap();
        map.write(hole.end, &[7; 4096]);
        filler.set_len(0).unwrap();
        map.make_room(hole.start, hole.len()).unwrap();
        map.write(hole.start, &[7; 4096]);
        backend.sync(&file).unwrap();
    })]
}

fn trial(
    kind: &Kind,
    name: &str,
    mounted: &Result<PathBuf, String>,
    next: &Arc<AtomicU32>,
    test: impl FnOnce(PathBuf) + Send + 'static,
) -> Trial {
    let title = format!("{}::{name}", kind.name);
    let (mounted, next) = (mounted.clone(), Arc::clone(next));
    let reason = mounted.as_ref().err().cloned();
    let trial = Trial::test(title, move || {
        let dir = mounted.map_err(Failed::from)?.join(next.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&dir)?;
        test(dir);
        Ok(())
    });
    match reason {
        Some(reason) => trial.with_kind(format!("skipped: {reason}")).with_ignored_flag(true),
        None => trial,
    }
}

/// Runs this program again in a mount namespace of its own; `None` if none can be made.
fn again_inside() -> Option<ExitCode> {
    run("unshare", &["--mount", "--propagation", "private", "true"]).ok()?;
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().ok()?);
    let status = inside.args(std::env::args_os().skip(1)).env(INSIDE, "1").status().ok()?;
    Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main() -> ExitCode {
    let is_inside = std::env::var_os(INSIDE).is_some();
    if !is_inside && let Some(code) = again_inside() {
        return code;
    }
    let arguments = Arguments::from_args();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut all = Vec::new();
    let mut mounts = Vec::new();
    let kinds = KINDS.iter().map(|kind| (kind, trials as Trials));
    for (kind, trials) in kinds.chain(FULL.iter().map(|kind| (kind, full_trials as Trials))) {
        let mounted = if !is_inside {
            Err("needs root and unshare".to_owned())
        } else if arguments.list {
            Err("only listed".to_owned())
        } else {
            mount(kind, dir.path())
        };
        all.extend(trials(kind, &mounted));
        mounts.extend(mounted);
    }
    let conclusion = libtest_mimic::run(&arguments, all);
    for mounted in mounts.iter().rev() {
        // Remaining mounts end with the namespace.
        let _ = run("umount", &["--lazy", mounted.to_str().unwrap()]);
    }
    conclusion.exit_code()
}
