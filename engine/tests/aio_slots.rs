//! The machine has no slots for asynchronous I/O left. An open names the limit to raise, and no data are lost.
//!
//! The test has a program of its own: the limit is that of the whole machine, so no other test of this crate may run at the
//! same time. A child holds the slots during one open.

use std::path::PathBuf;
use std::process::Command;

use aio::{Backend, NativeBackend};
use esker::{Db, Error};

#[test]
fn without_slots_an_open_names_the_limit_and_loses_nothing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = dir.path().join("store");
    let open = || Db::builder().memory_budget_bytes(1 << 20).open(&store);
    open().unwrap().keyspace("default").unwrap().put("key", "value").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_process", "--nocapture"]).env("ESKER_STORE", &store);
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.contains("RESULT plenty") {
        eprintln!("SKIPPED: the machine's slots (fs.aio-max-nr) cannot be used up here");
    } else {
        assert!(said.contains("RESULT") && said.contains("fs.aio-max-nr"), "{output:?}");
    }
    let db = open().unwrap();
    assert_eq!(db.keyspace("default").unwrap().get("key").unwrap().as_deref(), Some(&b"value"[..]));
}

/// The child's part of the test above: it takes all slots and opens the store. Does nothing when run alone.
#[test]
fn child_process() {
    let Ok(store) = std::env::var("ESKER_STORE").map(PathBuf::from) else { return };
    let backend = NativeBackend::new();
    let mut taken = Vec::new();
    let mut slots = 1 << 14;
    while slots > 0 && taken.len() < 4096 {
        match backend.queue(slots) {
            Ok(queue) => taken.push(queue),
            Err(_) => slots /= 2,
        }
    }
    let opened = Db::builder().memory_budget_bytes(1 << 20).open(&store);
    match opened {
        Err(error @ Error::Io { .. }) => println!("RESULT {error}"),
        Err(other) => println!("RESULT another error: {other}"),
        Ok(_) => println!("RESULT plenty"),
    }
    // The kernel frees the slots with the process, sooner than by dropping them one by one.
    std::process::exit(0);
}
