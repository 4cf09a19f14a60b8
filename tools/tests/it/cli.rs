//! The tool as people and scripts see it: its output and its exit codes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::support::{self, SAMPLE, kvtool, loud, run, seed, temp_dir, tool, tool_with};

/// Commands that must not make a store.
const READERS: [(&str, &[&str]); 7] = [
    ("get", &["k"]),
    ("del", &["k"]),
    ("scan", &[]),
    ("stats", &[]),
    ("compact", &[]),
    ("verify", &[]),
    ("repair", &["--cut"]),
];

/// Keys and values of JSON lines.
fn records(lines: &str) -> BTreeMap<String, String> {
    let parse = |line: &str| {
        let fields: BTreeMap<&str, &RawValue> = serde_json::from_str(line).expect("JSON");
        let key: String = serde_json::from_str(fields["key"].get()).expect("a string");
        (key, fields["value"].get().to_owned())
    };
    lines.lines().map(parse).collect()
}

fn lines(pairs: &[(&str, &str)]) -> String {
    let line = |(key, value): &(&str, &str)| format!("{{\"key\":\"{key}\",\"value\":{value}}}\n");
    pairs.iter().map(line).collect::<Vec<_>>().concat()
}

#[test]
fn the_sample_is_loaded_and_read_back_byte_for_byte() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let sample = records(&std::fs::read_to_string(SAMPLE).unwrap());
    for level in ["power", "process"] {
        let said = tool("load", &dir, &[SAMPLE, "--durability", level, "--json"]).fine();
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["records"], 1000);
        assert_eq!(said["duplicate_keys"], 0);
    }
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "1000\n");
    assert_eq!(records(&tool("scan", &dir, &["--json"]).fine()), sample);
    let mut random = seed();
    for _ in 0..8 {
        let (key, value) = sample.iter().nth(random.below(sample.len())).unwrap();
        assert_eq!(tool("get", &dir, &[key]).fine(), format!("{value}\n"));
    }
    tool("compact", &dir, &[]).fine();
    tool("verify", &dir, &[]).fine();
    assert_eq!(records(&tool("scan", &dir, &["--json"]).fine()), sample);
}

#[test]
fn the_whole_data_set_is_loaded_and_read_back() {
    let Some(data) = std::env::var_os("ESKER_DATA") else {
        loud("ESKER_DATA is not set: only the sample was loaded, not the whole data set");
        return;
    };
    let file = Path::new(&data).join("cities.ndjson.gz");
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let name = file.to_str().unwrap();
    println!("{}", tool("load", &dir, &[name, "--durability", "power"]).fine());
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "69472\n");
    let mut text = String::new();
    let packed = std::fs::read(&file).unwrap();
    flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
    let all: Vec<(String, String)> = records(&text).into_iter().collect();
    let mut random = seed();
    for _ in 0..10 {
        let (key, value) = &all[random.below(all.len())];
        assert_eq!(tool("get", &dir, &[key]).fine(), format!("{value}\n"));
    }
    let db = esker::Db::open(&dir).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    for _ in 0..1000 {
        let (key, value) = &all[random.below(all.len())];
        assert_eq!(keyspace.get(key).unwrap().as_deref(), Some(value.as_bytes()), "{key}");
    }
}

#[test]
fn scan_takes_bounds_direction_and_limit() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let input = lines(&[("a", "1"), ("b/1", "2"), ("b/2", "3"), ("b/3", "4"), ("c", "5")]);
    tool_with("load", &dir, &["-"], input.as_bytes()).fine();
    let keys =
        |args: &[&str]| tool("scan", &dir, &[args, &["--keys-only"]].concat()).fine().replace('\n', " ");
    assert_eq!(keys(&[]), "a b/1 b/2 b/3 c ");
    assert_eq!(keys(&["--prefix", "b/"]), "b/1 b/2 b/3 ");
    assert_eq!(keys(&["--from", "b/2"]), "b/2 b/3 c ");
    assert_eq!(keys(&["--to", "b/2"]), "a b/1 ");
    assert_eq!(keys(&["--from", "b", "--to", "c", "--reverse"]), "b/3 b/2 b/1 ");
    assert_eq!(keys(&["--prefix", "b/", "--from", "b/2", "--to", "b/3"]), "b/2 ");
    assert_eq!(keys(&["--reverse", "--limit", "2"]), "c b/3 ");
    assert_eq!(keys(&["--from", "z", "--to", "a"]), "");
    assert_eq!(keys(&["--limit", "0"]), "");
    assert_eq!(tool("scan", &dir, &["--count", "--prefix", "b/"]).fine(), "3\n");
    assert_eq!(tool("scan", &dir, &["--count", "--json"]).fine(), "{\"count\":5}\n");
    assert_eq!(tool("scan", &dir, &["--limit", "1"]).fine(), "a\t1\n");
}

#[test]
fn put_get_and_del_work_with_text_bytes_and_json() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    assert_eq!(tool("put", &dir, &["k", "v w"]).fine(), "");
    assert_eq!(tool("get", &dir, &["k"]).fine(), "v w\n");
    assert_eq!(tool("get", &dir, &["k", "--json"]).fine(), "{\"key\":\"k\",\"value_text\":\"v w\"}\n");
    tool("put", &dir, &["00ff", "0a0d", "--hex"]).fine();
    assert_eq!(tool("get", &dir, &["00ff", "--hex"]).fine(), "0a0d\n");
    assert_eq!(tool("scan", &dir, &["--hex", "--limit", "1"]).fine(), "00ff\t0a0d\n");
    tool_with("put", &dir, &["from-stdin", "-", "--durability", "process"], b"line\nline").fine();
    assert_eq!(tool("get", &dir, &["from-stdin"]).fine(), "line\nline\n");
    tool("put", &dir, &["k", "", "--keyspace", "other"]).fine();
    assert_eq!(tool("get", &dir, &["k", "--keyspace", "other"]).fine(), "\n");
    assert_eq!(tool("del", &dir, &["k", "--json"]).fine(), "{\"deleted\":1}\n");
    tool("get", &dir, &["k"]).fails(1, &["no key `k`"]);
    tool("del", &dir, &["k"]).fails(1, &["no key `k`"]);
    tool("scan", &dir, &["--keyspace", "none"]).fails(1, &["no keyspace `none`", "other"]);
    let stats: Value = serde_json::from_str(&tool("stats", &dir, &["--json"]).fine()).unwrap();
    assert!(stats["direct_io"].is_boolean());
    assert!(stats["fall_backs"].is_array());
}

#[test]
fn a_store_without_direct_io_says_so_once_and_in_its_stats() {
    let temp = tempfile::tempdir_in("/dev/shm").expect("a file system in memory");
    let dir = temp.path().join("store");
    let output = kvtool().arg("demo").arg(&dir).stdin(Stdio::null()).output().expect("the tool starts");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert_eq!(notes.matches("go through the page cache").count(), 1, "of several opens: {notes}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("safe from a power cut") && said.contains("tmpfs is in memory"), "{said}");
    let load = kvtool().arg("load").arg(&dir).arg(SAMPLE).output().expect("the tool starts");
    let said = String::from_utf8_lossy(&load.stdout);
    assert!(said.contains("but no power cut") && !said.contains("they survive a power cut"), "{said}");
    let put = kvtool().arg("put").arg(&dir).args(["k", "v"]).output().expect("the tool starts");
    let notes = String::from_utf8_lossy(&put.stderr);
    assert!(notes.contains("no write there survives a power cut"), "{notes}");
    let stats: Value = serde_json::from_str(&tool("stats", &dir, &["--json"]).fine()).unwrap();
    assert_eq!(stats["direct_io"], false);
    let told = stats["fall_backs"].as_array().expect("a list");
    assert!(
        told.iter().any(|line| line.as_str().expect("a sentence").contains("the page cache")),
        "{told:?}"
    );
    let text = tool("stats", &dir, &[]).fine();
    assert!(
        text.lines().any(|line| line.starts_with("fall backs  ") && line.contains("the page cache")),
        "{text}"
    );
}

#[test]
fn hexadecimal_json_lines_go_out_and_in() {
    let temp = temp_dir();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    tool("put", &one, &["00ff", "fe", "--hex"]).fine();
    tool("put", &one, &["6b", "7b7d", "--hex"]).fine();
    let out = tool("scan", &one, &["--json", "--hex"]).fine();
    tool_with("load", &two, &["-", "--hex"], out.as_bytes()).fine();
    assert_eq!(tool("scan", &two, &["--json", "--hex"]).fine(), out);
    tool_with("load", &two, &["-", "--hex"], b"{\"key\":\"xy\",\"value\":\"00\"}")
        .fails(2, &["line 1", "hexadecimal"]);
    tool("get", &one, &["0", "--hex"]).fails(2, &["`0`", "--hex"]);
}

#[test]
fn a_bad_line_is_named_and_the_lines_before_stay() {
    let temp = temp_dir();
    let line = |n: u32| format!("{{\"key\":\"{n:04}\",\"value\":{n}}}\n");
    let good = (0..2500).map(line).collect::<Vec<_>>().concat();
    let long = format!("{{\"key\":\"{}\",\"value\":1}}", "k".repeat(65_536));
    let cases: [(&str, &str); 5] = [
        ("{\"key\":\"x\"", "column"),
        ("not json", "column"),
        ("{\"key\":7,\"value\":1}", "string"),
        ("{\"key\":\"\",\"value\":1}", "key"),
        (&long, "65535"),
    ];
    for (number, (bad, word)) in cases.into_iter().enumerate() {
        let dir = temp.path().join(format!("store{number}"));
        let input = format!("{good}{bad}\n{{\"key\":\"after\",\"value\":1}}\n");
        let ended = tool_with("load", &dir, &["-"], input.as_bytes());
        ended.fails(2, &["standard input: line 2501", word, "2,500 records before it are in the store"]);
        assert_eq!(tool("scan", &dir, &["--count"]).fine(), "2500\n");
    }
}

#[test]
fn a_value_that_is_too_large_is_refused_and_nothing_else_is_lost() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let value = "9".repeat(80 << 20);
    let input = format!("{{\"key\":\"a\",\"value\":1}}\n{{\"key\":\"b\",\"value\":{value}}}\n");
    tool_with("load", &dir, &["-"], input.as_bytes()).fails(2, &["line 2", "1 records before it", "at most"]);
    tool_with("put", &dir, &["b", "-"], value.as_bytes()).fails(2, &["at most"]);
    assert_eq!(tool("scan", &dir, &[]).fine(), "a\t1\n");
}

#[test]
fn an_empty_or_too_long_key_is_refused() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    tool("put", &dir, &["", "v"]).fails(2, &["the key is empty"]);
    assert!(!dir.exists());
    tool("put", &dir, &["k", "v"]).fine();
    tool("put", &dir, &[&"k".repeat(65_536), "v"]).fails(2, &["65536", "65535"]);
    tool("put", &dir, &[&"k".repeat(65_535), "v"]).fine();
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "2\n");
}

#[test]
fn duplicate_and_blank_lines_are_counted() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let input = format!("\n{}\n  \r\n{}", lines(&[("a", "1"), ("b", "2")]), lines(&[("a", "3")]).trim_end());
    let said = tool_with("load", &dir, &["-", "--json"], input.as_bytes()).fine();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["records"], &said["duplicate_keys"]), (&Value::from(3), &Value::from(1)));
    assert_eq!(said["blank_lines"], 3);
    assert_eq!(tool("scan", &dir, &[]).fine(), "a\t3\nb\t2\n");
    tool_with("load", &dir, &["-"], b"").fine();
}

#[test]
fn gzip_is_recognised_and_damaged_gzip_is_malformed_input() {
    use std::io::Write;
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let sample = std::fs::read(SAMPLE).unwrap();
    let (first, second) = sample.split_at(sample.len() / 2);
    let mut packed = Vec::new();
    for part in [first, second] {
        let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap();
    }
    tool_with("load", &dir, &["-"], &packed).fine();
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "1000\n");

    let cut = temp.path().join("cut.gz");
    std::fs::write(&cut, &packed[..packed.len() - 1000]).unwrap();
    let cut_store = temp.path().join("cut-store");
    tool("load", &cut_store, &[cut.to_str().unwrap()])
        .fails(2, &["cut.gz: line", "truncated", "in the store"]);
    let kept: u64 = tool("scan", &cut_store, &["--count"]).fine().trim().parse().unwrap();
    assert!((500..1000).contains(&kept), "{kept}");

    let foreign = temp.path().join("plain.gz");
    std::fs::write(&foreign, first).unwrap();
    let none = temp.path().join("none");
    tool("load", &none, &[foreign.to_str().unwrap()]).fails(2, &["plain.gz", "not a gzip file"]);
    assert!(!none.exists());
}

#[test]
fn a_missing_directory_is_not_made() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    for (command, args) in READERS {
        tool(command, &dir, args).fails(4, &["no such directory", "kvtool load"]);
        assert!(!dir.exists(), "{command}");
    }
    tool("load", &dir, &["no-such-file"]).fails(4, &["no-such-file"]);
    tool("load", &dir, &["."]).fails(4, &["is a directory"]);
    assert!(!dir.exists());
}

#[test]
fn a_foreign_directory_is_never_written_to() {
    let temp = temp_dir();
    std::fs::create_dir(temp.path().join("wal")).unwrap();
    std::fs::write(temp.path().join("wal/notes.txt"), "mine").unwrap();
    std::fs::write(temp.path().join("notes.txt"), "mine").unwrap();
    let before = support::contents(temp.path());
    let writers: [(&str, &[&str]); 3] = [("put", &["k", "v"]), ("load", &[SAMPLE]), ("demo", &[])];
    for (command, args) in READERS.into_iter().chain(writers) {
        tool(command, temp.path(), args).fails(4, &[temp.path().to_str().unwrap()]);
        assert_eq!(support::contents(temp.path()), before, "{command}");
    }
    let file = temp.path().join("notes.txt");
    for (command, args) in READERS.into_iter().chain(writers) {
        tool(command, &file, args).fails(4, &["not a directory"]);
    }
}

#[test]
fn an_empty_directory_is_a_store_only_for_those_who_make_one() {
    let temp = temp_dir();
    for (command, args) in READERS {
        tool(command, temp.path(), args).fails(4, &[temp.path().to_str().unwrap()]);
        assert_eq!(support::contents(temp.path()), [], "{command}");
    }
    tool("put", temp.path(), &["k", "v"]).fine();
    assert_eq!(tool("get", temp.path(), &["k"]).fine(), "v\n");
}

#[test]
fn a_store_in_use_is_locked_and_says_by_whom() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    let db = esker::Db::open(&dir).unwrap();
    let pid = std::process::id().to_string();
    for (command, args) in
        READERS.into_iter().chain([("put", &["k", "v"][..]), ("load", &[SAMPLE]), ("demo", &[])])
    {
        tool(command, &dir, args).fails(5, &["open in process", &pid]);
    }
    db.close().unwrap();
    tool("put", &dir, &["k", "v"]).fine();
}

#[test]
fn wrong_usage_is_one_line_and_code_2() {
    let here = Path::new(".");
    run(&mut kvtool(), b"").fails(2, &["kvtool --help"]);
    run(kvtool().arg("frob"), b"").fails(2, &["frob"]);
    run(kvtool().arg("get"), b"").fails(2, &["DIR"]);
    tool("load", here, &["-", "--durability", "maybe"]).fails(2, &["maybe", "power"]);
    tool("scan", here, &["--count", "--keys-only"]).fails(2, &["--count"]);
    tool("scan", here, &["--limit", "x"]).fails(2, &["--limit"]);
    let help = run(kvtool().arg("--help"), b"").fine();
    for line in [
        "0  fine",
        "1  not found",
        "2  wrong usage",
        "3  corruption",
        "4  an I/O error",
        "5  the store is locked",
    ] {
        assert!(help.contains(line), "{help}");
    }
    assert!(!help.contains("demo-loader"), "{help}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    tool("load", &dir, &[SAMPLE]).fine();
    let mut child =
        kvtool().arg("scan").arg(&dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains('\t'));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(support::without_notes(&String::from_utf8_lossy(&output.stderr)), "");
}

#[test]
fn the_demo_succeeds_again_and_again() {
    let temp = temp_dir();
    let dir = temp.path().join("store");
    for _ in 0..2 {
        let said = tool("demo", &dir, &[]).fine();
        for word in ["with SIGKILL", "equal byte for byte", "forwards and backwards", "direct io"] {
            assert!(said.contains(word), "{said}");
        }
    }
    assert_eq!(tool("scan", &dir, &["--count", "--keyspace", "demo"]).fine(), "1000\n");
    tool("put", &dir, &["mine", "v", "--keyspace", "demo"]).fine();
    tool("demo", &dir, &[]).fails(4, &["`mine`", "another directory"]);
    assert_eq!(tool("get", &dir, &["mine", "--keyspace", "demo"]).fine(), "v\n");
}

/// Copies an open store: its files hold everything acknowledged.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

#[test]
fn a_damaged_log_is_refused_shown_and_cut() {
    let temp = temp_dir();
    let (open, dir) = (temp.path().join("open"), temp.path().join("killed"));
    let db = esker::Db::open(&open).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    for nth in 0..9 {
        keyspace.put(format!("key {nth}"), "1").unwrap();
    }
    copy_dir(&open, &dir);
    db.close().unwrap();
    let logs = std::fs::read_dir(dir.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let log = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).min().unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    // In the fourth group: each group took one step of the file.
    bytes[3 * 4096 + 300] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    // A power cut may leave the ring like this. A full ring would have replaced the damaged records.
    let names = std::fs::read_dir(dir.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let ring = names.filter(|path| path.extension().is_none()).min().unwrap();
    let len_bytes = std::fs::metadata(&ring).unwrap().len();
    std::fs::write(&ring, vec![0; usize::try_from(len_bytes).unwrap()]).unwrap();

    tool("get", &dir, &["key 0"]).fails(3, &["kvtool repair", "backup", ".log"]);
    for _ in 0..2 {
        let shown = tool("repair", &dir, &["--json"]);
        shown.fails(3, &["nothing was changed", "--cut", ".log"]);
        let shown: Value = serde_json::from_str(&shown.out).unwrap();
        assert_eq!((&shown["log_is_damaged"], &shown["is_cut"]), (&true.into(), &false.into()));
        assert_eq!(shown["kept_records"], 3);
        assert!(shown["log_damage"].as_str().unwrap().contains(".log"), "{shown}");
        assert!(shown["loss"].as_str().unwrap().contains("durable log are lost"), "{shown}");
        let bytes = |name: &str| shown[name].as_u64().unwrap();
        assert!(bytes("lost_bytes_at_least") >= 5 * 32, "{shown}");
        assert!(bytes("lost_durable_bytes_at_most") >= 6 * 32, "{shown}");
        assert!(bytes("lost_bytes_at_most") >= bytes("lost_durable_bytes_at_most"), "{shown}");
    }
    let cut = tool("repair", &dir, &["--cut", "--json"]);
    assert!(cut.err.contains("cutting the log") && cut.err.contains("durable log are lost"), "{cut:?}");
    let cut: Value = serde_json::from_str(&cut.fine()).unwrap();
    assert_eq!(cut["is_cut"], true);
    assert_eq!(tool("scan", &dir, &["--count"]).fine(), "3\n");
    tool("verify", &dir, &[]).fine();
    let after: Value = serde_json::from_str(&tool("repair", &dir, &["--json"]).fine()).unwrap();
    assert_eq!(after["log_is_damaged"], false);
}
