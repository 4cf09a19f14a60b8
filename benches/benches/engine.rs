//! The store as its users drive it: durable puts, fill, load, overwrites, gets, scans, and the mixes of YCSB.
//!
//! Run with `cargo bench -p esker-benches --bench engine`. The stores stand below `target`; a durable put measures the
//! flush rate of that disk as much as the store. Every read checks its value. Steps are those of the comparison, so that
//! a finding there can be studied here.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use esker_benches::drive::{self, Plan};
use esker_benches::store::{Config, Store};
use esker_benches::stores;
use esker_benches::workload::{Family, Workload};
use tempfile::TempDir;

/// Records of the stores for reads.
const RECORDS: u64 = 100_000;

const MEMORY_BYTES: u64 = 256 << 20;

/// A store in its own directory on the disk below `target`. The directory is dropped last.
struct Bed {
    store: Box<dyn Store>,
    _dir: TempDir,
}

fn bed(workload: &Workload) -> Bed {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let config =
        Config { dir: dir.path().to_owned(), memory_bytes: MEMORY_BYTES, is_durable: workload.is_durable() };
    let store = (stores::named("esker").expect("it is there").open)(&config).expect("a store");
    if workload.family != Family::Fresh {
        drive::load(&*store, RECORDS, workload.value_bytes).expect("a load");
    }
    Bed { store, _dir: dir }
}

/// One sample is one short run of the workload; the reported figure is the time of one operation.
fn bench(criterion: &mut Criterion, name: &str) {
    let workload = Workload::named(name).expect("a workload");
    let bed = bed(&workload);
    let mut first_new = RECORDS;
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let time = Duration::from_millis(100);
            let (records, seed) = (RECORDS, first_new);
            let plan =
                Plan { workload, records, first_new, at_least: time, target_bytes: 0, at_most: time, seed };
            let outcome = drive::run("esker", &*bed.store, &plan).expect("right answers");
            first_new += 1 << 32;
            // The length of a run is a time, not a number of operations.
            outcome.elapsed.mul_f64(ratio(count, outcome.operations))
        });
    });
    group.finish();
}

#[expect(clippy::cast_precision_loss, reason = "counts of a short run")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn writes(criterion: &mut Criterion) {
    for name in ["durable_put/1", "durable_put/8", "durable_put/64", "put/1", "put/4", "load", "overwrite"] {
        bench(criterion, name);
    }
}

fn reads(criterion: &mut Criterion) {
    for name in ["get_hot/1", "get_hot/4", "get_missing", "multi_get", "scan_100", "scan_all"] {
        bench(criterion, name);
    }
}

fn mixes(criterion: &mut Criterion) {
    for name in ["ycsb_a", "ycsb_b", "ycsb_c", "ycsb_e", "ycsb_f"] {
        bench(criterion, name);
    }
}

criterion_group!(benches, writes, reads, mixes);
criterion_main!(benches);
