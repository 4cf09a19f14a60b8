//! Shared by the tests of this crate: a host in place of the manifest, random records, seeds.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use aio::{Backend as _, NativeBackend};
use wal::{ActiveFile, Host, RecordBuf, Result, Seq};

/// A manifest in memory: every edit is durable at once.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    next_file: AtomicU64,
    epoch: AtomicU32,
    files: Mutex<Vec<ActiveFile>>,
    ring_file: AtomicUsize,
}

/// First size of a growing ring in these tests, in bytes.
pub(crate) const RING_FIRST_BYTES: usize = 4096;

impl Manifest {
    pub(crate) fn files(&self) -> Vec<ActiveFile> {
        self.files.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self, ids: &[u64]) {
        self.files.lock().unwrap().retain(|file| !ids.contains(&file.id));
    }

    /// Size of the ring file in bytes.
    pub(crate) fn ring_file_bytes(&self) -> usize {
        self.ring_file.load(Ordering::SeqCst).max(RING_FIRST_BYTES)
    }

    /// Ends an incarnation: forgets its ring and its files. Returns the ids of the files.
    pub(crate) fn forget_all(&self) -> Vec<u64> {
        self.ring_file.store(0, Ordering::SeqCst);
        self.files.lock().unwrap().drain(..).map(|file| file.id).collect()
    }
}

impl Host for Manifest {
    fn new_file_id(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn activate(&self, file_id: u64, start: Seq) -> Result<u32> {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        self.files.lock().unwrap().push(ActiveFile { id: file_id, epoch, start });
        Ok(epoch)
    }

    fn ring_grown(&self, file_bytes: u64) -> Result<()> {
        self.ring_file.store(usize::try_from(file_bytes).unwrap(), Ordering::SeqCst);
        Ok(())
    }
}

/// A small generator. The same seed gives the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// The number in `SEED`, or one that is drawn once per run. Printed, so that a failing run can be repeated.
pub(crate) fn seed() -> u64 {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    let given = || std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seed = *DRAWN.get_or_init(|| given().unwrap_or_else(|| NativeBackend::new().random() >> 32));
    println!("SEED={seed}");
    seed
}

pub(crate) fn record(payload: &[u8]) -> RecordBuf {
    let mut record = RecordBuf::new();
    record.push(payload);
    record
}
