//! The system calls of a load: direct files, asynchronous submission, and no other write to a file of the store.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{SAMPLE, loud, run, temp_dir};

/// Calls that put bytes into a file (or memory mapped from one) without asynchronous I/O.
const WRITE_FAMILY: [&str; 10] = [
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "msync",
    "sendfile",
    "splice",
    "copy_file_range",
    "vmsplice",
];

/// The trace of one run, as far as it concerns files below a directory.
#[derive(Debug, Default)]
struct Trace {
    /// Log, segment and manifest files opened with `O_DIRECT`.
    direct: Vec<String>,
    /// The same kinds of files opened in another way.
    buffered: Vec<String>,
    /// Bytes of the writes in `io_submit`.
    submitted_bytes: u64,
    /// Calls of `io_pgetevents`.
    waits: u64,
    /// Lines of the write family that touch a file of the store.
    offences: Vec<String>,
}

impl Trace {
    fn read(text: &str, dir: &Path) -> Trace {
        let dir = dir.to_str().expect("UTF-8");
        let mut trace = Trace::default();
        for line in text.lines() {
            // With -f and -o, each line starts with the number of the thread.
            let line = line.trim_start_matches(|sign: char| sign.is_ascii_digit()).trim_start();
            let Some((call, arguments)) = line.split_once('(') else { continue };
            match call {
                "open" | "openat" | "openat2" => trace.open(arguments, dir),
                "io_submit" => trace.submitted_bytes += written(arguments),
                "io_pgetevents" | "io_pgetevents_time64" => trace.waits += 1,
                _ if WRITE_FAMILY.contains(&call) && touches(call, arguments, dir) => {
                    trace.offences.push(line.to_owned());
                }
                _ => {}
            }
        }
        trace
    }

    fn open(&mut self, arguments: &str, dir: &str) {
        let Some(name) = arguments.split('"').nth(1).and_then(|path| path.strip_prefix(dir)) else { return };
        let counts = [".log", ".seg", "manifest-"].iter().any(|kind| name.contains(kind));
        if counts && !arguments.contains("O_DIRECTORY") {
            let list = if arguments.contains("O_DIRECT|") || arguments.contains("|O_DIRECT") {
                &mut self.direct
            } else {
                &mut self.buffered
            };
            list.push(name.to_owned());
        }
    }
}

/// Bytes of all writes of an `io_submit`.
fn written(arguments: &str) -> u64 {
    let number = |text: &str| -> u64 {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    };
    arguments
        .split("aio_lio_opcode=")
        .filter(|operation| operation.starts_with("IOCB_CMD_PWRITE"))
        .filter_map(|operation| operation.split_once("aio_nbytes="))
        .map(|(_, rest)| number(rest))
        .sum()
}

/// Whether a call of the write family works on a file of the store. A mapping has no name: any `msync` counts.
fn touches(call: &str, arguments: &str, dir: &str) -> bool {
    call == "msync" || arguments.contains(&format!("<{dir}"))
}

#[test]
fn a_load_is_direct_and_asynchronous_and_nothing_else() {
    let can = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        return loud("skipped: strace is missing or not allowed, so the system calls were not watched");
    }
    let temp = temp_dir();
    let dir = temp.path().canonicalize().unwrap().join("store");
    let log = temp.path().join("trace");
    let ended = run(
        Command::new("strace")
            .args(["-f", "-y", "-v", "-qq", "-s", "0", "-o"])
            .arg(&log)
            .arg("-e")
            .arg(format!("trace=open,openat,openat2,io_submit,io_pgetevents,{}", WRITE_FAMILY.join(",")))
            .arg(env!("CARGO_BIN_EXE_kvtool"))
            .arg("load")
            .arg(&dir)
            .args([SAMPLE, "--durability", "power", "--json"]),
        b"",
    );
    let direct_here = !ended.err.contains("direct");
    let said: Value = serde_json::from_str(&ended.fine()).unwrap();
    let trace = Trace::read(&std::fs::read_to_string(&log).unwrap(), &dir);
    assert!(direct_here, "no direct I/O on this file system: {trace:?}");
    assert!(trace.offences.is_empty(), "{trace:#?}");
    assert!(trace.buffered.is_empty(), "{trace:#?}");
    for kind in [".log", ".seg", "manifest-"] {
        assert!(trace.direct.iter().any(|name| name.contains(kind)), "no {kind}: {trace:#?}");
    }
    assert!(trace.submitted_bytes >= said["bytes"].as_u64().unwrap(), "{trace:#?}");
    assert!(trace.waits > 0, "{trace:#?}");
}

#[test]
fn a_trace_is_read_line_by_line() {
    let dir = Path::new("/d/store");
    let text = r#"12 openat(AT_FDCWD</d>, "/d/store/wal/000001.log", O_RDWR|O_CREAT|O_DIRECT|O_CLOEXEC, 0644 <unfinished ...>
12 openat(AT_FDCWD</d>, "/d/store/segments/000002.seg", O_RDONLY|O_CLOEXEC) = 7</d/store/segments/000002.seg>
12 openat(AT_FDCWD</d>, "/d/other/000002.seg", O_RDONLY|O_CLOEXEC) = 8</d/other/000002.seg>
12 openat(AT_FDCWD</d>, "/d/store/wal", O_RDONLY|O_DIRECTORY|O_CLOEXEC) = 8</d/store/wal>
13 io_submit(0x7f, 2, [{aio_data=0x1, aio_lio_opcode=IOCB_CMD_PWRITE, aio_fildes=5</d/store/a>, aio_buf=""..., aio_nbytes=4096, aio_offset=0}, {aio_data=0x2, aio_lio_opcode=IOCB_CMD_PREAD, aio_fildes=5</x>, aio_buf=0x7f, aio_nbytes=512, aio_offset=0}]) = 2
13 io_pgetevents(0x7f, 1, 1, [], NULL, NULL) = 1
13 <... openat resumed>) = 6
13 write(2</dev/null>, ""..., 3) = 3
13 pwrite64(6</d/store/LOCK>, ""..., 3, 0) = 3
14 msync(0x7f, 4096, MS_SYNC) = 0"#;
    let trace = Trace::read(text, dir);
    assert_eq!(trace.direct, ["/wal/000001.log"]);
    assert_eq!(trace.buffered, ["/segments/000002.seg"]);
    assert_eq!((trace.submitted_bytes, trace.waits), (4096, 1));
    assert_eq!(trace.offences.len(), 2, "{trace:?}");
}
