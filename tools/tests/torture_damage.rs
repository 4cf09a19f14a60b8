//! Short forms of `kvtorture errors` and `kvtorture sweep`. `SEED=` chooses the seed; a failure names it and the command
//! that replays it.
#![forbid(unsafe_code)]

use std::process::Command;

use serde_json::Value;

/// Runs the tool and gives its last line.
fn torture(args: &[&str]) -> Value {
    let seed = std::env::var("SEED").unwrap_or_else(|_| "1".to_owned());
    let output = Command::new(env!("CARGO_BIN_EXE_kvtorture"))
        .args(args)
        .args(["--json", "--seed", &seed])
        .output()
        .expect("the tool runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "SEED={seed} {args:?}\n{out}\n{err}");
    serde_json::from_str(out.lines().last().expect("a last line")).expect("JSON")
}

fn count(counts: &Value, name: &str) -> u64 {
    counts[name].as_u64().unwrap_or_else(|| panic!("{name} in {counts}"))
}

#[test]
fn a_store_keeps_what_it_acknowledged_whatever_call_fails() {
    let counts = torture(&["errors", "--workloads", "1", "--step", "23"]);
    assert_eq!(count(&counts, "loops_cut_short") + count(&counts, "cases_left_out"), 0);
    for way in ["eio", "enospc", "erofs", "eagain", "eintr", "short", "reordered", "late", "sync_eio"] {
        assert!(count(&counts, way) > 0, "{way} in {counts}");
    }
    for name in ["error_indexes", "recovery_error_indexes", "opens_refused"] {
        assert!(count(&counts, name) > 0, "{name} in {counts}");
    }
}

#[test]
fn a_damaged_store_gives_the_right_value_or_says_corrupt() {
    let counts = torture(&["sweep", "--step", "97"]);
    assert_eq!(count(&counts, "silent"), 0);
    assert_eq!(count(&counts, "pieces"), count(&counts, "pieces_swept"));
    for kind in ["bits", "zeroed", "swapped", "aged", "duplicated", "truncated", "missing", "exchanged"] {
        assert!(count(&counts, kind) > 0, "{kind} in {counts}");
    }
    assert!(count(&counts, "detected") > count(&counts, "images") / 10, "{counts}");
}
