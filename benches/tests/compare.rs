//! The comparison as a person runs it: tiny, with Esker only, and with wrong names.

use std::path::Path;
use std::process::{Command, Output};

/// The program, on files below `target`.
fn compare(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_compare")).args(args).output().expect("it starts")
}

#[test]
fn a_smoke_run_leaves_rows_a_report_and_pictures() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let out = dir.path().join("out");
    let names = "durable_put/1,load,get_hot/1,scan_all,get_cold/8,ycsb_a,overwrite";
    let out_text = out.to_str().expect("a name in UTF-8");
    let run = compare(&["--smoke", "--seconds", "0.05", "--workloads", names, "--out", out_text]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));

    let rows = read(&out, "results.jsonl");
    for name in names.split(',') {
        let row = format!("{{\"store\":\"esker\",\"workload\":\"{name}\",\"threads\":");
        assert!(rows.contains(&row), "{name} in {rows}");
    }
    assert!(rows.contains("{\"store\":\"device\",\"workload\":\"durable_put/1\""));
    assert!(rows.contains("{\"store\":\"device\",\"workload\":\"get_cold/8\""));
    assert_eq!(rows.lines().count(), 9, "{rows}");

    let report = read(&out, "report.md");
    for part in ["## Throughput", "| get_cold/8 |", "kernel: Linux", "**esker** 0."] {
        assert!(report.contains(part), "{part} in {report}");
    }
    for picture in ["throughput.svg", "latency.svg", "pauses.svg"] {
        assert!(report.contains(picture));
        assert!(read(&out, picture).ends_with("</svg>\n"));
    }
    assert!(!out.join("stores").exists(), "the stores are removed at the end");
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn unknown_names_are_refused_before_anything_runs() {
    for (args, said) in [
        (["--stores", "esker,oracle"], "no store `oracle`; there are: esker"),
        (["--workloads", "put/1,put/2"], "no workload `put/2`; there are: durable_put/1"),
        (["--rounds", "0"], "at least one round"),
    ] {
        let run = compare(&args);
        assert_eq!(run.status.code(), Some(1));
        let error = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn the_list_names_every_store_and_workload() {
    let run = compare(&["--list"]);
    let list = String::from_utf8_lossy(&run.stdout).into_owned();
    for name in ["esker", "surrealkv", "rocksdb", "durable_put/64", "multi_get_cold", "overwrite"] {
        assert!(list.contains(name), "{name} in {list}");
    }
}
