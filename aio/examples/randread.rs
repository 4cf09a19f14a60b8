//! Random reads of 4 KiB: `randread FILE DEPTH SECONDS [ring|call]`. Prints operations a second and CPU time for each.
//!
//! The same work as `fio --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=DEPTH`, so that the two can be run in
//! turn on one file. Completions are fetched as they come, and as many operations follow.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program")]
#![expect(clippy::disallowed_methods, reason = "times itself")]

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use aio::{Backend, Buf, Context, NativeBackend, OpenMode, Operation, Reaping};

const BLOCK_BYTES: u64 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let (path, depth, seconds) = match &arguments[..] {
        [_, path, depth, seconds, ..] => (Path::new(path), depth.parse()?, seconds.parse()?),
        _ => return Err("usage: randread FILE DEPTH SECONDS [ring|call]".into()),
    };
    let by_call = arguments.get(4).is_some_and(|how| how == "call");
    let reaping = if by_call { Reaping::SystemCall } else { Reaping::Ring };
    let backend = NativeBackend::new();
    let file = backend.open(path, OpenMode::Read)?;
    let blocks = backend.size_bytes(&file)? / BLOCK_BYTES;
    let mut context = Context::builder().slots(depth).reaping(reaping).build()?;
    let mut random = backend.random();
    let mut next = |buf| {
        // xorshift: any spread will do.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        Operation::read(&file, random % blocks * BLOCK_BYTES, buf)
    };
    let mut operations: VecDeque<Operation> = (0..depth).map(|_| next(Buf::zeroed(4096))).collect();
    let mut done = Vec::with_capacity(depth);
    let (begin, cpu) = (Instant::now(), cpu_time()?);
    let end = begin + Duration::from_secs(seconds);
    let mut count = 0_u32;
    while Instant::now() < end {
        context.submit(&mut operations)?;
        context.wait(1, None, &mut done)?;
        for done in done.drain(..) {
            operations.push_back(next(done.whole()?.into_buf()));
            count += 1;
        }
    }
    let (elapsed, cpu) = (begin.elapsed().as_secs_f64(), cpu_time()?.saturating_sub(cpu).as_secs_f64());
    println!("{:.0} {:.2}", f64::from(count) / elapsed, cpu * 1e6 / f64::from(count));
    Ok(())
}

/// User and system time of this process.
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}
