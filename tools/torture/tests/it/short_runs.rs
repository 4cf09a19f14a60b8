//! Short runs of `kvtorture`, with a new seed each time, or that of `SEED=`. A failure names it and the command that replays
//! it.

use std::process::Command;

use serde_json::Value;

use crate::{loud, seed, temp_dir};

/// Runs the tool to its limit and returns its last line.
fn torture(args: &[&str]) -> Value {
    try_torture(args).unwrap_or_else(|failure| panic!("{failure}"))
}

/// The same, or the message of its failure.
fn try_torture(args: &[&str]) -> Result<Value, String> {
    torture_with(seed(), args)
}

/// The same with this seed.
pub(crate) fn torture_with(seed: u64, args: &[&str]) -> Result<Value, String> {
    let seed = seed.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_kvtorture"))
        .args(args)
        .args(["--json", "--seed", &seed])
        .output()
        .expect("the tool runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("SEED={seed} {args:?}\n{out}\n{err}"));
    }
    Ok(serde_json::from_str(out.lines().last().expect("a last line")).expect("JSON"))
}

fn count(counts: &Value, name: &str) -> u64 {
    counts[name].as_u64().unwrap_or_else(|| panic!("{name} in {counts}"))
}

fn must_be_positive(counts: &Value, names: &[&str]) {
    for name in names {
        assert!(count(counts, name) > 0, "{name} in {counts}");
    }
}

#[test]
fn a_store_survives_a_crash_at_every_event_of_some_workloads() {
    let counts = torture(&["sim", "--no-short", "--states", "8000"]);
    must_be_positive(
        &counts,
        &[
            "crash_states",
            "distinct",
            "process_crashes",
            "power_cuts",
            "in_recovery",
            "second_opens",
            "verified",
        ],
    );
    must_be_positive(
        &counts["operations"],
        // Of the rarer ones a run of this length may have none.
        &["put", "delete", "batch", "flush", "compact", "sync", "create"],
    );
}

#[test]
fn a_store_survives_every_subset_after_short_sequences() {
    let counts = torture(&["sim", "--time", "10"]);
    must_be_positive(&counts, &["short_sequences", "distinct", "workloads"]);
}

#[test]
fn a_store_answers_like_a_sorted_map() {
    let counts = torture(&["model", "--sequences", "4000"]);
    must_be_positive(&counts, &["sequences", "lists_on_every_configuration"]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut counts = torture(&["sim", "--no-short", "--states", "2000"]);
        let line = counts.as_object_mut().expect("an object");
        line.remove("milliseconds");
        counts
    };
    assert_eq!(run(), run());
}

#[test]
fn a_store_keeps_everything_acknowledged_when_any_call_fails() {
    let counts = torture(&["errors", "--workloads", "1", "--step", "23"]);
    assert_eq!(count(&counts, "loops_cut_short") + count(&counts, "cases_left_out"), 0);
    must_be_positive(
        &counts,
        &[
            "eio",
            "enospc",
            "erofs",
            "eagain",
            "eintr",
            "short",
            "reordered",
            "late",
            "sync_eio",
            "sync_log_folder_eio",
            "sync_log_folder_enospc",
            "sync_log_folder_eintr",
            "sync_segments_eio",
            "sync_segments_enospc",
        ],
    );
    must_be_positive(&counts, &["error_indexes", "recovery_error_indexes", "opens_refused"]);
}

#[test]
fn a_damaged_store_gives_the_right_value_or_says_corrupt() {
    let counts = torture(&["sweep", "--step", "97"]);
    assert_eq!(count(&counts, "pieces"), count(&counts, "pieces_swept"));
    must_be_positive(
        &counts,
        &["bits", "zeroed", "swapped", "aged", "duplicated", "truncated", "missing", "exchanged"],
    );
    assert!(count(&counts, "detected") > count(&counts, "images") / 10, "{counts}");
}

#[test]
fn a_store_on_the_real_disk_survives_kills_and_faults() {
    let temp = temp_dir();
    let dir = temp.path().join("soak");
    let dir = dir.to_str().expect("text");
    let figures = torture(&["soak", "--minutes", "0.25", "--dir", dir]);
    must_be_positive(&figures, &["kills", "verified", "writes", "reads", "scans", "snapshots", "jobs"]);
    assert!(count(&figures, "kills") >= 3, "{figures}");
}

#[test]
fn a_store_survives_power_cuts_below_a_real_file_system() {
    match try_torture(&["kernel", "--fs", "ext4", "--time", "4"]) {
        Ok(counts) => {
            must_be_positive(&counts, &["distinct_ext4", "kept_nothing", "kept_all", "incarnations"]);
        }
        // Not root, or no FUSE, or no loop devices.
        Err(why) if why.contains("nothing could be tried") => loud(&format!("SKIPPED: {why}")),
        Err(why) => panic!("{why}"),
    }
}

/// A part of `strace`; `None` where system calls cannot be watched.
fn strace(args: &[&str]) -> Option<Value> {
    let temp = temp_dir();
    let dir = temp.path().to_str().expect("text");
    let counts = torture(&[&["strace", "--dir", dir], args].concat());
    if counts["skipped"].is_null() {
        assert_eq!(counts["planned"], counts["runs"], "{counts}");
        return Some(counts);
    }
    loud("SKIPPED: system calls cannot be watched here");
    None
}

#[test]
fn a_store_goes_on_or_says_why_after_any_answer_of_the_kernel() {
    for (only, what) in [
        ("SIGKILL", ["killed", "killed_again"].as_slice()),
        ("io_submit EIO", &["went_on_after_an_error", "gave_up"]),
        ("io_submit half", &["unnoticed"]),
        ("event EIO", &["went_on_after_an_error", "gave_up"]),
        ("fdatasync EIO", &["went_on_after_an_error", "gave_up"]),
    ] {
        let Some(counts) = strace(&["--only", only, "--step", "150"]) else { return };
        must_be_positive(&counts, what);
        must_be_positive(&counts, &["struck", "acknowledged"]);
    }
}

#[test]
fn a_signal_while_a_directory_is_opened_goes_unnoticed() {
    let Some(counts) = strace(&["--only", "openat EINTR", "--step", "8"]) else { return };
    must_be_positive(&counts, &["struck", "unnoticed"]);
}

#[test]
fn an_answer_that_means_not_now_is_only_a_delay() {
    for only in ["FILE once", "io_setup not now: EAGAIN 20", "clone not now: EAGAIN 20"] {
        let Some(counts) = strace(&["--not-now", "--only", only, "--step", "40"]) else { return };
        must_be_positive(&counts, &["struck", "acknowledged"]);
        assert_eq!(counts["unnoticed"], counts["runs"], "{counts}");
    }
}

#[test]
fn a_store_goes_on_when_the_machine_is_no_longer_in_its_way() {
    let temp = temp_dir();
    let counts = torture(&["limits", "--dir", temp.path().to_str().expect("text")]);
    // These need nothing but the kernel.
    must_be_positive(
        &counts["operations"],
        &["file-size", "file-size-deadly", "handles", "address-space", "signals", "stops"],
    );
    must_be_positive(&counts, &["acknowledged", "errors_met"]);
    if let Some(skipped) = counts["skipped"].as_u64() {
        let operations = &counts["operations"];
        loud(&format!("SKIPPED {skipped} limits (root is needed), tried: {operations}"));
    }
}

#[test]
fn a_store_works_where_a_sandbox_refuses_its_system_calls() {
    let temp = temp_dir();
    let dir = temp.path().to_str().expect("text");
    let counts = torture(&["seccomp", "--dir", dir]);
    if !counts["skipped"].is_null() {
        return loud("SKIPPED: this machine has no seccomp filters");
    }
    assert_eq!(counts["planned"], counts["cells"], "{counts}");
    must_be_positive(&counts, &["acknowledged", "acknowledged_beside", "blocks_read", "fell_back"]);
}

#[test]
fn a_store_survives_sick_disks_and_shutdowns_below_a_real_file_system() {
    match try_torture(&[
        "kernel",
        "--fs",
        "ext4",
        "--states",
        "1",
        "--faults",
        "4",
        "--rounds",
        "1",
        "--shutdowns",
        "3",
    ]) {
        Ok(counts) => {
            assert_eq!(count(&counts, "cells"), count(&counts, "cells_struck"), "{counts}");
            must_be_positive(
                &counts,
                &["failed_reads", "no_space", "slow", "hung", "hung_and_gone", "daemon_killed", "pool_full"],
            );
            must_be_positive(&counts, &["detected_in_log", "detected_in_segment", "detected_in_manifest"]);
        }
        // Not root, or no FUSE, or no loop devices.
        Err(why) if why.contains("nothing could be tried") => loud(&format!("SKIPPED: {why}")),
        Err(why) => panic!("{why}"),
    }
}
