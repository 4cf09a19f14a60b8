//! Which reads a program makes again and again, and how long they take: `profile FILE`. Reads a file with a taste for its
//! beginning, then prints the places that were read most often and a picture of the latencies.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::path::Path;

use aio::{Backend, Buf, Context, IoProfile, LatencyHistogram, NativeBackend, OpenMode, Operation};

const READS: u64 = 20_000;
const READ_BYTES: u64 = 4096;
const BATCH: u64 = 8;

/// Columns of the longest bar.
const BAR: u64 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: profile FILE")?;
    let backend = NativeBackend::new();
    let file = backend.open(Path::new(&path), OpenMode::Read)?;
    file.set_kind("data");
    let places = (backend.size_bytes(&file)? / READ_BYTES).max(1);
    let mut context = Context::builder().slots(32).build()?;
    for _ in 0..READS / BATCH {
        // The product of two numbers that are even over the file is more often near its beginning.
        let place = || (u128::from(backend.random()) * u128::from(backend.random() % places)) >> 64;
        let reads = (0..BATCH).map(|_| u64::try_from(place()).unwrap_or(0));
        let read = |place| Operation::read(&file, place * READ_BYTES, Buf::zeroed(4096));
        for done in context.run(reads.map(read))? {
            done.result.map_err(|errno| errno.to_string())?;
        }
    }
    show(&context.profile());
    Ok(())
}

fn show(profile: &IoProfile) {
    for part in &profile.operations {
        let (class, kind) = (part.class.name(), &part.file_kind);
        println!(
            "{class} of {kind}: {} operations, {} bytes, {} errors",
            part.count, part.bytes, part.errors
        );
        println!("  {:?} on average, {:?} in all, {} repeated", part.mean(), part.time, part.repeated);
        picture(&part.latency);
    }
    println!("submits: {}, operations in them: {}", profile.submit_calls, profile.submitted);
    println!("   calls      mean  place");
    for place in &profile.places {
        let (kind, file) = (place.kind.name(), place.file.display());
        let (mean, end) = (format!("{:?}", place.mean()), place.offset + place.len_bytes);
        println!("{:8} {mean:>9}  {kind} of {file}, bytes {} to {end}", place.calls, place.offset);
    }
}

/// A bar for each power of two.
fn picture(latency: &LatencyHistogram) {
    let power = |nanos: u64| nanos.checked_ilog2().unwrap_or(0);
    let powers: Vec<(u32, u64)> = latency
        .buckets
        .chunk_by(|a, b| power(a.from_nanos) == power(b.from_nanos))
        .map(|row| (power(row[0].from_nanos), row.iter().map(|bucket| bucket.count).sum()))
        .collect();
    let most = powers.iter().map(|(_, count)| *count).max().unwrap_or(1);
    for (power, count) in powers {
        let bar = "#".repeat(usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0));
        println!("{:>12} ns and more: {bar} {count}", 1_u64 << power);
    }
}
