//! Copies a file at the speed of the device: `copy FROM TO`.
//!
//! Reads and writes of a megabyte, direct, as many in flight as the device's queue takes, up to a bound on memory.
//! Every buffer that a read returns is then written at the same offset. Buffers are reused, none is allocated twice.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program")]
#![expect(clippy::disallowed_methods, reason = "times itself")]

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use aio::{Backend, Buf, Context, File, NativeBackend, OpenMode, Operation, OperationKind};

const CHUNK_BYTES: usize = 1 << 20;

/// Chunks in memory.
const CHUNKS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, from, to] = &arguments[..] else { return Err("usage: copy FROM TO".into()) };
    let begin = Instant::now();
    let bytes = copy(Path::new(from), Path::new(to))?;
    let seconds = begin.elapsed().as_secs_f64();
    let mebibytes = f64::from(u32::try_from(bytes >> 10)?) / 1024.0;
    println!("{mebibytes:.1} MiB in {seconds:.3} s, {:.0} MiB/s, durable", mebibytes / seconds);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<u64, Box<dyn Error>> {
    let backend = NativeBackend::new();
    let source = backend.open(from, OpenMode::Read)?;
    let target = backend.open(to, OpenMode::Create)?;
    let bytes = backend.size_bytes(&source)?;
    // Space is allocated first: writes that extend a file block in the submit.
    backend.allocate(&target, bytes)?;
    let mut context = Context::builder().slots(CHUNKS).build()?;
    let mut offset = 0;
    let mut operations = VecDeque::new();
    for _ in 0..CHUNKS {
        operations.extend(next_read(&source, &mut offset, bytes, Buf::zeroed(CHUNK_BYTES)));
    }
    let mut done = Vec::new();
    while !operations.is_empty() || context.in_flight() > 0 {
        context.submit(&mut operations)?;
        context.wait(1, None, &mut done)?;
        for done in done.drain(..) {
            let (at, found) = (done.operation.offset(), done.result);
            if done.operation.kind() == OperationKind::Read {
                let found = found.map_err(|errno| format!("read at {at}: {errno}"))?;
                let mut buf = done.operation.into_buf();
                // The rest of the last block holds bytes of an earlier chunk; it is truncated at the end.
                buf.set_len(found.next_multiple_of(Buf::ALIGN));
                operations.push_back(Operation::write(&target, at, buf));
            } else {
                let mut buf = done.whole()?.into_buf();
                buf.set_len(CHUNK_BYTES);
                operations.extend(next_read(&source, &mut offset, bytes, buf));
            }
        }
    }
    backend.truncate(&target, bytes)?;
    backend.sync(&target)?;
    if let Some(dir) = to.parent() {
        backend.sync_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?;
    }
    Ok(bytes)
}

/// The read of the next chunk, if there is one.
fn next_read(source: &File, offset: &mut u64, bytes: u64, buf: Buf) -> Option<Operation> {
    if *offset >= bytes {
        return None;
    }
    let operation = Operation::read(source, *offset, buf);
    *offset += CHUNK_BYTES as u64;
    Some(operation)
}
