//! An `iostat` of the program's own operations: `iostat FILE`. Reads a file for a few seconds, with a row of numbers
//! each half second.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program")]
#![expect(clippy::disallowed_methods, reason = "times itself")]

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use aio::{Backend, Buf, Context, IoProfile, NativeBackend, OpenMode, Operation};

const INTERVAL: Duration = Duration::from_millis(500);
const INTERVALS: u32 = 6;
const READ_BYTES: usize = 16 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: iostat FILE")?;
    println!("{}", aio::probe(Path::new(&path).parent().unwrap_or(Path::new(".")))?);
    let backend = NativeBackend::new();
    let file = backend.open(Path::new(&path), OpenMode::Read)?;
    let places = (backend.size_bytes(&file)? / READ_BYTES as u64).max(1);
    let mut context = Context::builder().slots(32).build()?;
    let next = |buf| Operation::read(&file, backend.random() % places * READ_BYTES as u64, buf);
    let mut operations: VecDeque<Operation> = (0..32).map(|_| next(Buf::zeroed(READ_BYTES))).collect();
    let mut done = Vec::new();
    let mut before = context.profile();
    println!("    r/s   MiB/s  depth  operations/submit  p50 us  p99 us  repeated  errors");
    for _ in 0..INTERVALS {
        let begin = Instant::now();
        while begin.elapsed() < INTERVAL {
            let _ = context.submit(&mut operations)?;
            context.wait(1, None, &mut done)?;
            operations.extend(done.drain(..).map(|done| next(done.operation.into_buf())));
        }
        let now = context.profile();
        row(&before, &now, begin.elapsed());
        before = now;
    }
    Ok(())
}

/// One row: the operations between two readings. Percentiles are those of the whole run.
fn row(before: &IoProfile, now: &IoProfile, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let (before_read, read) = (before.read(), now.read());
    let count = number(read.count - before_read.count);
    let kibibytes = number((read.bytes - before_read.bytes) >> 10);
    let in_flight = read.time.saturating_sub(before_read.time);
    println!(
        "{:7.0} {:7.1} {:6.1} {:11.1} {:7} {:7} {:9} {:7}",
        count / seconds,
        kibibytes / 1024.0 / seconds,
        in_flight.as_secs_f64() / seconds,
        number(now.submitted - before.submitted) / number((now.submit_calls - before.submit_calls).max(1)),
        read.latency.percentile(500).as_micros(),
        read.latency.percentile(990).as_micros(),
        read.repeated.saturating_sub(before_read.repeated),
        read.errors - before_read.errors,
    );
}
