//! The tool on a machine with limits: full, out of handles, out of AIO slots, without permission; and on damaged files.
//!
//! A fault that needs another tool (strace, unshare) or another user is skipped without it, with a message.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{self, Ended, SAMPLE, kvtool, loud, run, temp_dir, tool};

const KVTOOL: &str = env!("CARGO_BIN_EXE_kvtool");

/// Whether a command can be run here.
fn works(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

fn loaded() -> (tempfile::TempDir, PathBuf) {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    tool("load", &dir, &[SAMPLE]).fine();
    tool("compact", &dir, &[]).fine();
    (temp, dir)
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let all = support::contents(dir).into_iter().map(|(path, _)| path);
    all.filter(|path| path.is_file() && path.to_str().is_some_and(|name| name.contains(ending))).collect()
}

#[test]
fn without_permission_it_says_so() {
    let (temp, dir) = loaded();
    let forbid = |mode: u32| std::fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).unwrap();
    let mut command = kvtool();
    if rustix::process::getuid().is_root() {
        use std::os::unix::process::CommandExt;
        // The user `nobody` must reach the program and the directory's parent, but not the store.
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
        command.uid(65_534).gid(65_534);
        if command.arg("--version").output().is_err() {
            return loud(
                "skipped: the user `nobody` cannot reach the program here, and root ignores permissions",
            );
        }
        command = kvtool();
        command.uid(65_534).gid(65_534);
        forbid(0o700);
    } else {
        forbid(0o000);
    }
    let ended = run(command.arg("scan").arg(&dir), b"");
    forbid(0o755);
    ended.fails(4, &["ermission denied", "owner"]);
    aio::assert_said_once(&ended.err);
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "1000\n");
}

#[test]
fn a_full_disk_is_named_and_the_store_stays_sound() {
    if !works("unshare", &["-rm", "true"]) {
        return loud("skipped: no unshare here, so no small file system for the test of a full disk");
    }
    let temp = temp_dir();
    let big = temp.path().join("big.ndjson");
    let line = |n: u32| format!("{{\"key\":\"{n:08}\",\"value\":\"{}\"}}\n", noise(n));
    std::fs::write(&big, (0..120_000).map(line).collect::<Vec<_>>().concat()).unwrap();
    let mount = temp.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let on_a_small_disk = |megabytes: u32, then: &str| {
        let script = format!(
            "mount -t tmpfs -o size={megabytes}m none '{mount}' && \
             head -c 1m /dev/zero >'{mount}/ballast' && '{KVTOOL}' load '{mount}/store' '{file}'; code=$?; \
             {then}; exit $code",
            mount = mount.display(),
            file = big.display(),
        );
        run(Command::new("unshare").args(["-rm", "sh", "-c", &script]), b"")
    };
    // Too small for a store at all.
    on_a_small_disk(3, "true").fails(4, &["no space left", "free some space"]);
    // Full in the middle: with more space, everything that was loaded is there.
    let mount = mount.display();
    let scan = format!("mount -o remount,size=512m '{mount}' && '{KVTOOL}' scan '{mount}/store' --count");
    let ended = on_a_small_disk(96, &scan);
    ended.fails(4, &["no space left"]);
    let kept: u32 = ended.out.trim().parse().expect("a count");
    assert!((1..120_000).contains(&kept), "{kept}");
}

/// Text that does not compress well.
fn noise(number: u32) -> String {
    let mut word = u64::from(number) | 1 << 33;
    let mut text = String::new();
    while text.len() < 1000 {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        write!(text, "{:08x}", word >> 32).expect("a string takes everything");
    }
    text
}

/// A store on a small file system, in which `script` runs with `$STORE`. `None` if that is impossible here.
fn on_a_mount(options: &str, script: &str) -> Option<Ended> {
    if !works("unshare", &["-rm", "true"]) {
        loud("skipped: no unshare here, so no small file system");
        return None;
    }
    let temp = temp_dir();
    let mount = temp.path().join("mount");
    std::fs::create_dir(&mount).expect("a new directory");
    let script = format!(
        "mount -t tmpfs -o {options} none '{mount}' && export STORE='{mount}/store' MOUNT='{mount}' TOOL='{KVTOOL}' && \
         {script}",
        mount = mount.display()
    );
    Some(run(Command::new("unshare").args(["-rm", "sh", "-c", &script]), b""))
}

#[test]
fn used_up_inodes_are_not_called_a_full_disk() {
    let script = "exec \"$TOOL\" put \"$STORE\" k v";
    // The root of the mount, the store, and its lock file.
    let Some(ended) = on_a_mount("size=64m,nr_inodes=4", script) else { return };
    ended.fails(4, &["no inodes left", "more inodes"]);
    assert!(!ended.err.contains("space left"), "{ended:?}");
    aio::assert_said_once(&ended.err);
}

#[test]
fn a_read_only_file_system_says_that_an_open_writes() {
    let script = "\"$TOOL\" put \"$STORE\" k v 2>\"$MOUNT/notes\" && mount -o remount,ro \"$MOUNT\" && \
                  exec \"$TOOL\" get \"$STORE\" k";
    let Some(ended) = on_a_mount("size=64m", script) else { return };
    ended.fails(4, &["Read-only", "mount the file system for writing", "not even to read"]);
    aio::assert_said_once(&ended.err);
}

#[test]
fn a_limit_on_file_sizes_is_named_and_does_not_end_the_process() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    // Blocks of 512 bytes: less than the first manifest.
    let script = format!("ulimit -f 4 && exec '{KVTOOL}' put '{}' k v", dir.display());
    let ended = run(Command::new("sh").args(["-c", &script]), b"");
    ended.fails(4, &["File too large", "ulimit -f"]);
    aio::assert_said_once(&ended.err);
}

#[test]
fn a_holder_in_another_pid_namespace_is_not_called_by_its_number_here() {
    if !works("unshare", &["-rpf", "--mount-proc", "true"]) {
        return loud("skipped: no unshare here, so no other PID namespace");
    }
    let temp = temp_dir();
    let dir = temp.path().join("store");
    tool("put", &dir, &["k", "v"]).fine();
    let mut holder = Command::new("unshare");
    // Process 1 of its namespace holds the store for as long as its input is open.
    holder.args(["-rpf", "--mount-proc", KVTOOL, "load"]).arg(&dir).arg("-");
    let mut holder = holder
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The tool opens the store when it has seen the beginning of its input.
    holder.stdin.as_mut().unwrap().write_all(b"{\"key\":\"a\",\"value\":1}\n").unwrap();
    // Until the holder has left its note. A call of the tool might take the lock before it.
    while !std::fs::read(dir.join("LOCK")).unwrap().starts_with(b"1\n") {
        assert!(holder.try_wait().unwrap().is_none(), "the holder has ended");
    }
    let ended = tool("get", &dir, &["k"]);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    ended.fails(5, &["another container or PID namespace", "has id 1 there", "fuser"]);
    assert!(!ended.err.contains("process 1:"), "{ended:?}");
    aio::assert_said_once(&ended.err);
}

#[test]
fn too_few_file_handles_name_the_limit_to_raise() {
    let (_temp, dir) = loaded();
    let script = format!("ulimit -n 6 && exec '{KVTOOL}' scan '{}' --count", dir.display());
    run(Command::new("sh").args(["-c", &script]), b"").fails(4, &["Too many open files", "ulimit -n"]);
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "1000\n");
}

#[test]
fn too_few_aio_slots_name_the_limit_of_the_machine() {
    let (_temp, dir) = loaded();
    let Some(ended) = injected("io_setup:error=EAGAIN", &dir) else { return };
    ended.fails(4, &["aio-max-nr"]);
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "1000\n");
}

/// Runs a scan with a failing system call; `None` if that is impossible here.
fn injected(what: &str, dir: &Path) -> Option<Ended> {
    if !works("strace", &["-qq", "-o", "/dev/null", "true"]) {
        loud("skipped: no strace here, so no failing system calls");
        return None;
    }
    let call = what.split(':').next()?;
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
    command.arg(format!("inject={what}")).args([KVTOOL, "scan"]).arg(dir).arg("--count");
    Some(run(&mut command, b""))
}

#[test]
fn a_flipped_bit_is_found_and_named_with_file_and_offset() {
    let (_temp, dir) = loaded();
    let segments = files(&dir, ".seg");
    assert!(!segments.is_empty());
    for path in &segments {
        let sound = std::fs::read(path).unwrap();
        for at in [100, sound.len() / 2, sound.len() - 4096 + 20] {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            std::fs::write(path, &damaged).unwrap();
            for command in ["verify", "repair"] {
                let ended = tool(command, &dir, &[]);
                ended.fails(3, &[path.to_str().unwrap(), "offset", "backup"]);
                aio::assert_said_once(&ended.err);
            }
        }
        std::fs::write(path, &sound).unwrap();
    }
    tool("verify", &dir, &[]).fine();
    tool("repair", &dir, &["--cut"]).fine();
}

#[test]
fn a_missing_manifest_is_damage_in_every_command() {
    let (_temp, dir) = loaded();
    for path in files(&dir, "manifest-") {
        rustix::fs::unlink(path).unwrap();
    }
    let before = support::contents(&dir);
    let commands: [(&str, &[&str]); 9] = [
        ("get", &["k"]),
        ("put", &["k", "v"]),
        ("del", &["k"]),
        ("scan", &[]),
        ("load", &[SAMPLE]),
        ("stats", &[]),
        ("compact", &[]),
        ("verify", &[]),
        ("repair", &["--cut"]),
    ];
    for (command, args) in commands {
        let ended = tool(command, &dir, args);
        ended.fails(3, &["the manifest is missing", "backup"]);
        assert!(!ended.err.contains("create"), "{ended:?}");
    }
    assert_eq!(support::contents(&dir), before);
}

#[test]
fn a_truncated_or_foreign_file_is_found_and_named() {
    for kind in [".seg", "manifest-"] {
        let (_temp, dir) = loaded();
        // Opening a store may replace its manifest, so each round looks for the file anew.
        for keep in [0, 2, 1] {
            let path = files(&dir, kind).pop().expect("a file of this kind");
            let sound = std::fs::read(&path).unwrap();
            let damaged =
                if keep == 1 { vec![b'x'; sound.len()] } else { sound[..sound.len() * keep / 4].to_vec() };
            std::fs::write(&path, damaged).unwrap();
            let name = path.to_str().unwrap();
            tool("verify", &dir, &[]).fails(3, &[name]);
            tool("put", &dir, &["k", "v"]).fails(3, &[name]);
            std::fs::write(&path, &sound).unwrap();
            assert_eq!(tool("scan", &dir, &["--count"]).fine(), "1000\n");
        }
    }
}

#[test]
fn a_missing_segment_is_corruption() {
    let (_temp, dir) = loaded();
    let path = files(&dir, ".seg").remove(0);
    let removed = path.with_extension("removed");
    rustix::fs::rename(&path, &removed).unwrap();
    tool("verify", &dir, &[]).fails(3, &[path.to_str().unwrap()]);
    rustix::fs::rename(&removed, &path).unwrap();
    tool("verify", &dir, &[]).fine();
}
