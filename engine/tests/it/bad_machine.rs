//! Wrong directories, missing rights, damaged files, limits of the process. Each causes an error of one line that names
//! the cause and the place. No data are lost, and nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Error};

const KIB: u64 = 1 << 10;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn builder() -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 * KIB),
        log_file_bytes: Some(64 * KIB),
        memtable_bytes: Some(64 * KIB),
        segment_bytes: Some(64 * KIB),
        manifest_bytes: Some(32 * KIB),
        block_bytes: Some(1 << 10),
    };
    Db::builder().memory_budget_bytes(1 << 20).sizes(sizes)
}

/// All files and directories below a directory, with the contents of the files.
fn contents(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        if path.is_dir() {
            rest.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            found.insert(path, None);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
    found
}

fn one_line(error: &Error, names: &str) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    assert!(text.contains(names), "{text:?} does not name {names:?}");
}

#[test]
fn only_a_create_makes_a_store_and_only_where_there_is_nothing() {
    let dir = dir();
    let missing = dir.path().join("missing");
    let error = builder().create(false).open(&missing).unwrap_err();
    assert!(matches!(error, Error::Format { .. }));
    one_line(&error, "missing");
    assert!(!missing.exists());
    let error = builder().open(missing.join("deeper")).unwrap_err();
    assert!(matches!(error, Error::Io { kind: std::io::ErrorKind::NotFound, .. }), "{error}");
    one_line(&error, "deeper");
    assert!(!missing.exists());

    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let error = builder().open(&file).unwrap_err();
    assert!(matches!(error, Error::Format { .. }));
    one_line(&error, "file");
    one_line(&builder().open(file.join("store")).unwrap_err(), "store");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_directory_of_something_else_is_never_written_to() {
    let foreign: [&[&str]; 6] = [
        &["notes.txt"],
        &["wal/journal"],
        &["LOCK", "CURRENT"],
        &["LOCK"],
        &["LOCK", "wal/000001.sst"],
        &[".hidden"],
    ];
    for names in foreign {
        for create in [true, false] {
            let dir = dir();
            for name in names {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "something else").unwrap();
            }
            let before = contents(dir.path());
            let error = builder().create(create).open(dir.path()).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{names:?}: {error}");
            one_line(&error, dir.path().to_str().unwrap());
            assert!(contents(dir.path()) == before, "{names:?} was written to");
        }
    }
}

/// Makes a store as a killed process leaves it: its data are in segments, in the log and in the ring.
fn killed_store(dir: &Path) -> PathBuf {
    killed_store_with_logs(dir).0
}

/// Makes the same store. Returns the number of log files in use, without the spare ones.
fn killed_store_with_logs(dir: &Path) -> (PathBuf, usize) {
    let path = dir.join("store");
    let output = child("make", &path).stdin(Stdio::null()).output().unwrap();
    let said = result(&output.stdout);
    let logs = said.strip_prefix("made ").unwrap_or_else(|| panic!("{output:?}"));
    (path, logs.parse().unwrap())
}

fn check_data(path: &Path) {
    let db = builder().open(path).unwrap();
    let ks = db.keyspace("default").unwrap();
    for i in 0..ENTRIES {
        assert_eq!(ks.get(i.to_le_bytes()).unwrap().as_deref(), Some(&[7; 300][..]));
    }
    db.verify().unwrap();
}

const ENTRIES: u32 = 500;

#[test]
fn a_damaged_file_of_any_kind_is_named_and_nothing_is_changed() {
    let dir = dir();
    let (store, live_logs) = killed_store_with_logs(dir.path());
    let whole = contents(&store);
    let mut seen = BTreeMap::new();
    let mut spare_logs = BTreeSet::new();
    for (path, bytes) in &whole {
        let Some(bytes) = bytes else { continue };
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = name.trim_matches(|c: char| c.is_ascii_digit());
        if name == "LOCK" {
            continue;
        }
        let mut foreign = b"this is the file of another program\n".repeat(1 + bytes.len() / 36);
        foreign.truncate(bytes.len());
        for damage in [Some(&bytes[..0]), Some(&bytes[..bytes.len() / 2]), Some(&foreign[..]), None] {
            match damage {
                Some(damage) => std::fs::write(path, damage).unwrap(),
                None => std::fs::rename(path, dir.path().join("away")).unwrap(),
            }
            let before = contents(&store);
            let opened = builder().open(&store).map(drop);
            // The ring holds no record that was acknowledged as durable, and a record in it counts only if it validates.
            let harmless = kind == "ring-" && damage == Some(&foreign[..]);
            match opened {
                // A spare file holds no data. The number of spare files is checked below.
                Ok(()) if kind == ".log" => drop(spare_logs.insert(name.to_owned())),
                Ok(()) => assert!(harmless, "the damage of {name} was not reported"),
                Err(error) => {
                    assert!(matches!(error, Error::Corrupt { .. } | Error::Format { .. }), "{name}: {error}");
                    assert!(!spare_logs.contains(name), "{name}: {error}");
                    // The number of the only manifest is unknown once the file is gone.
                    one_line(&error, if kind == "manifest-" { kind } else { name });
                    let mut after = contents(&store);
                    after.retain(|path, _| !path.ends_with("LOCK"));
                    let mut before = before;
                    before.retain(|path, _| !path.ends_with("LOCK"));
                    assert!(after == before, "{name}: the refused open changed a file");
                }
            }
            // Restore the file.
            std::fs::remove_dir_all(&store).unwrap();
            for (path, bytes) in &whole {
                match bytes {
                    None => std::fs::create_dir_all(path).unwrap(),
                    Some(bytes) => {
                        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                        std::fs::write(path, bytes).unwrap();
                    }
                }
            }
            *seen.entry(kind.to_owned()).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.keys().collect::<Vec<_>>(), [".log", ".seg", "manifest-", "ring-"]);
    assert_eq!(
        seen[".log"] / 4 - spare_logs.len(),
        live_logs,
        "the damage of {spare_logs:?} was not reported"
    );
    check_data(&store);
}

#[test]
fn the_content_of_a_lock_file_does_not_matter_but_its_kind_does() {
    let dir = dir();
    let store = killed_store(dir.path());
    std::fs::write(store.join("LOCK"), "not a process id").unwrap();
    check_data(&store);
    std::fs::rename(store.join("LOCK"), dir.path().join("away")).unwrap();
    std::fs::create_dir(store.join("LOCK")).unwrap();
    let error = builder().open(&store).unwrap_err();
    one_line(&error, "LOCK");
    std::fs::remove_dir(store.join("LOCK")).unwrap();
    check_data(&store);
}

#[test]
fn a_store_held_by_another_process_names_it() {
    let dir = dir();
    let store = killed_store(dir.path());
    let mut holder = child("hold", &store).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("RESULT held")));
    match builder().open(&store) {
        Err(error @ Error::Locked { .. }) => one_line(&error, &format!("process {}", holder.id())),
        other => panic!("{other:?}"),
    }
    holder.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(holder.wait().unwrap().success());
    check_data(&store);
}

#[test]
fn without_permission_the_error_says_so_and_nothing_is_lost() {
    let dir = dir();
    let store = killed_store(dir.path());
    let plain = child("open", &store);
    // Root may do everything, so the child runs as the user `nobody`. Only its owner may enter the test's directory.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(plain.get_program());
    command.args(plain.get_args());
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap());
    }
    match command.output() {
        Ok(output) if !result(&output.stdout).is_empty() => {
            let said = result(&output.stdout);
            assert!(said.contains("Permission denied") && said.contains("store"), "{said}");
        }
        other => eprintln!("SKIPPED: cannot run a child as another user here: {other:?}"),
    }
    check_data(&store);
}

#[test]
fn too_few_file_handles_are_an_error_and_nothing_is_lost() {
    let dir = dir();
    let store = killed_store(dir.path());
    let (mut failed, mut opened) = (0, 0);
    // Each one that is too low is waited out for seconds.
    for limit in (4..40).step_by(3) {
        let plain = child("open", &store);
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        command.args(["-c", &script]).arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            command.env(name, value.unwrap());
        }
        let output = command.output().unwrap();
        match result(&output.stdout).as_str() {
            // The test program itself did not start.
            "" => {}
            "opened" => opened += 1,
            said => {
                assert!(said.contains("ulimit -n"), "{limit}: {said}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "no limit was too low");
    assert!(opened > 0, "no limit was high enough");
    check_data(&store);
}

#[test]
fn an_open_store_reads_without_free_handles_and_writes_when_there_are_some_again() {
    let dir = dir();
    let store = killed_store(dir.path());
    let plain = child("exhaust", &store);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap());
    }
    let output = command.output().unwrap();
    assert_eq!(result(&output.stdout), "exhausted", "{output:?}");
    check_data(&store);
}

/// This program again, as another process that does one thing: see [`child_process`].
fn child(role: &str, store: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "bad_machine::child_process", "--nocapture", "--test-threads=1"]);
    command.env("ESKER_CHILD", role).env("ESKER_STORE", store);
    command
}

/// The result that a child printed at its end.
fn result(stdout: &[u8]) -> String {
    let text = String::from_utf8_lossy(stdout);
    text.lines()
        .find_map(|line| line.split_once("RESULT "))
        .map(|(_, said)| said.to_owned())
        .unwrap_or_default()
}

/// The part of the other tests that runs in a child process. Does nothing when run alone.
#[test]
fn child_process() {
    let Ok(role) = std::env::var("ESKER_CHILD") else { return };
    let store = PathBuf::from(std::env::var("ESKER_STORE").unwrap());
    let said = match role.as_str() {
        "make" => {
            let db = builder().background(Background::Manual).open(&store).unwrap();
            let ks = db.keyspace("default").unwrap();
            for i in 0..ENTRIES {
                ks.put(i.to_le_bytes(), [7; 300]).unwrap();
            }
            assert!(db.metrics().flushes > 0);
            assert!(db.metrics().log_bytes > 0);
            println!("RESULT made {}", db.metrics().log_files);
            // Exits as a killed process would, without closing the store.
            std::process::exit(0);
        }
        "open" => match builder().open(&store).and_then(|db| db.keyspace("default")?.put("x", "y")) {
            Ok(()) => "opened".to_owned(),
            Err(error) => error.to_string(),
        },
        "hold" => {
            let _db = builder().open(&store).unwrap();
            println!("RESULT held");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            return;
        }
        "exhaust" => {
            exhaust_handles(&store);
            "exhausted".to_owned()
        }
        other => panic!("no role {other}"),
    };
    println!("RESULT {said}");
}

fn exhaust_handles(store: &Path) {
    use std::os::fd::AsFd;
    let db = builder().open(store).unwrap();
    let ks = db.keyspace("default").unwrap();
    ks.put("warm", "up").unwrap();
    let stdin = std::io::stdin();
    let mut held = Vec::new();
    while let Ok(copy) = stdin.as_fd().try_clone_to_owned() {
        held.push(copy);
    }
    for i in 0..ENTRIES {
        assert!(ks.contains_key(i.to_le_bytes()).unwrap());
    }
    assert_eq!(ks.iter().count(), usize::try_from(ENTRIES).unwrap() + 1);
    let refused = (0..5000u32).find_map(|i| ks.put((ENTRIES + i).to_le_bytes(), [7; 300]).err());
    one_line(&refused.expect("the open fails at the limit of handles"), "ulimit -n");
    assert_eq!(db.metrics().halted, None);
    drop(held);
    ks.put("more", "handles").unwrap();
    ks.delete("more").unwrap();
    db.flush().unwrap();
    db.verify().unwrap();
    drop(ks);
    db.close().unwrap();
}

#[test]
fn keys_and_values_out_of_bounds_write_nothing() {
    let dir = dir();
    let db = builder().open(dir.path()).unwrap();
    let ks = db.keyspace("default").unwrap();
    let most = db.max_record_bytes();
    let (long_key, long_value) = (vec![1; 65_536], vec![1; most]);
    let too_large = |error: Error| {
        one_line(&error, "at most");
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    };
    let invalid = |error: Error| {
        one_line(&error, "empty key");
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    };
    invalid(ks.put("", "value").unwrap_err());
    invalid(ks.delete("").unwrap_err());
    invalid(ks.get("").unwrap_err());
    invalid(db.batch().put(&ks, "fine", "x").delete(&ks, "").commit().unwrap_err());
    too_large(ks.put(&long_key, "").unwrap_err());
    too_large(ks.delete(&long_key).unwrap_err());
    too_large(ks.put("key", &long_value).unwrap_err());
    too_large(db.batch().put(&ks, "fine", "x").put(&ks, &long_key, "").commit().unwrap_err());
    let mut batch = db.batch();
    while batch.size_bytes() <= most {
        batch.put(&ks, format!("{}", batch.len()), [7; 100]);
    }
    too_large(batch.commit().unwrap_err());
    assert!(ks.is_empty().unwrap());
    assert_eq!(db.metrics().records, 0);
    ks.put("k", vec![1; most - 100]).unwrap();
    assert_eq!(ks.iter().count(), 1);
}
