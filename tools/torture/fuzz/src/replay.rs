//! The replay of an incarnation of the log: files and ring that a log has written on the simulated disk, changed by the
//! input.
//!
//! ```text
//!   input   | way | file u8, offset u16, kind u8 | fields of the kind  | file, offset, kind | ...
//!           way bit 0: make the checksums of changed sectors right again
//! ```
//!
//! Invariant: a replay after changes that a checksum must notice visits a prefix of the appended records, or returns
//! `Corrupt`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use aio::sim::DiskImage;
use aio::{Backend, SECTOR_BYTES, SimBackend};
use wal::{
    ActiveFile, Background, Host, Log, LogOptions, Place, RecordBuf, ReplayInput, Seq, log_file_path,
    replay as replay_log, replay_to_damage, seal_sector,
};

use crate::input::{Input, overwrite};

const STORE: u64 = 7;
const RING_BYTES: usize = 16 << 10;
const FILE_BYTES: u64 = 16 << 10;

/// A manifest in memory.
#[derive(Debug, Default)]
struct Manifest {
    next_file: AtomicU64,
    files: Mutex<Vec<ActiveFile>>,
}

impl Host for Manifest {
    fn new_file_id(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn activate(&self, id: u64, start: Seq) -> wal::Result<u32> {
        let mut files = self.files.lock().expect("no other thread");
        let epoch = u32::try_from(files.len()).expect("a few") + 1;
        files.push(ActiveFile { id, epoch, start });
        Ok(epoch)
    }

    fn ring_grown(&self, _: u64) -> wal::Result<()> {
        Ok(())
    }
}

/// A log that was written whole.
struct Sample {
    disk: DiskImage,
    input: ReplayInput,
    records: Vec<(Seq, Vec<u8>)>,
}

fn sample() -> wal::Result<Sample> {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal"))?;
    let manifest = Arc::new(Manifest::default());
    let host: Arc<Manifest> = Arc::clone(&manifest);
    let options = LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_BYTES,
        file_bytes: FILE_BYTES,
        background: Background::Manual,
        ..LogOptions::new("/wal", STORE, 1, Seq::ZERO)
    };
    let ring_path = options.ring_path.clone();
    let log = Log::open(Arc::new(sim.clone()), options, host)?;
    let mut records = Vec::new();
    for nth in 0..24_u8 {
        let mut record = RecordBuf::new();
        record.push(&vec![nth; 40 + 97 * usize::from(nth)]);
        if nth % 5 == 4 {
            // A void, in the log files and in the ring.
            drop(log.reserve(&mut record)?);
            continue;
        }
        let appended = log.append(&mut record)?;
        records.push((appended.seq, record.payload().to_vec()));
        // Some groups hold two records; the last ones stand in the ring only.
        if nth % 3 != 0 && nth < 22 {
            log.wait_durable(appended.end)?;
        }
    }
    let disk = sim.snapshot().process_crash(1).power_cut_all();
    let files = manifest.files.lock().expect("no other thread").clone();
    let input = ReplayInput {
        directory: PathBuf::from("/wal"),
        store_id: STORE,
        incarnation: 1,
        incarnation_start: Seq::ZERO,
        from: Seq::ZERO,
        files,
        file_bytes: FILE_BYTES,
        ring_path,
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_BYTES,
    };
    sim.crash();
    Ok(Sample { disk, input, records })
}

/// The input changes the files, and chooses the start of the replay.
pub(crate) fn replay(data: &[u8]) {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    let sample = SAMPLE.get_or_init(|| sample().expect("a log can be written"));
    let mut input = Input(data);
    let way = input.u8();
    let forged = way & 1 == 1;
    let mut disk = sample.disk.clone();
    let mut wanted = sample.input.clone();
    if forged && way & 2 != 0 {
        misremember(&mut wanted, &mut input);
    }
    let files = &sample.input.files;
    let mut bursts = 0_u32;
    while !input.is_empty() {
        let nth = usize::from(input.u8()) % (files.len() + 1);
        let path =
            files.get(nth).map_or(wanted.ring_path.clone(), |file| log_file_path(Path::new("/wal"), file.id));
        let Some(mut bytes) = disk.read_file(&path).filter(|bytes| !bytes.is_empty()) else { continue };
        let offset = usize::from(input.u16()) % bytes.len();
        match input.u8() % 3 {
            0 if forged => {
                let len = usize::from(input.u8());
                overwrite(&mut bytes, offset, input.bytes(len));
                if let Some(file) = files.get(nth) {
                    let place = Place { store_id: STORE, file_id: file.id, epoch: file.epoch };
                    reseal(&place, &mut bytes, offset / SECTOR_BYTES..(offset + len).div_ceil(SECTOR_BYTES));
                }
            }
            // A checksum of 32 bits always notices one of these; two in one file could cancel.
            0 if bursts & 1 << nth == 0 => {
                bursts |= 1 << nth;
                let end = offset.next_multiple_of(SECTOR_BYTES).max(offset + 1);
                let end = (offset + 4).min(end).min(bytes.len());
                overwrite(&mut bytes[..end], offset, input.bytes(4));
            }
            1 => {
                let sector = offset / SECTOR_BYTES * SECTOR_BYTES;
                let end = bytes.len().min(sector + SECTOR_BYTES);
                bytes[sector..end].fill(0);
            }
            _ => bytes.truncate(offset),
        }
        disk.write_file(&path, &bytes);
    }
    let expected = (!forged).then_some(&sample.records[..]);
    run(&disk, &wanted, expected);
}

/// A manifest with other content.
fn misremember(wanted: &mut ReplayInput, input: &mut Input<'_>) {
    wanted.from = Seq::new(u64::from(input.u16() % 1024) * 32);
    wanted.ring_bytes = (usize::from(input.u16() % 1024) + 1) * 32;
    wanted.ring_file_bytes = wanted.ring_bytes.min(usize::from(input.u16()) * 32);
    wanted.file_bytes = input.u64();
    wanted.files.truncate(usize::from(input.u8()));
    if let Some(file) = wanted.files.last_mut() {
        file.start = Seq::new(input.u64());
    }
}

/// Corrects the checksums of these sectors.
pub(crate) fn reseal(place: &Place, bytes: &mut [u8], sectors: std::ops::Range<usize>) {
    for (index, sector) in bytes.as_chunks_mut::<SECTOR_BYTES>().0.iter_mut().enumerate() {
        if sectors.contains(&index) {
            let first = sector[7] & 0x80 != 0;
            if first {
                let crc = crc32fast::hash(&sector[8..68]);
                sector[68..72].copy_from_slice(&crc.to_le_bytes());
            }
            seal_sector(place, index as u64, first, sector);
        }
    }
}

fn run(disk: &DiskImage, wanted: &ReplayInput, expected: Option<&[(Seq, Vec<u8>)]>) {
    let sim = SimBackend::from_image(disk.clone(), 1);
    sim.stop_tracing();
    sim.crash_after_calls(100_000);
    let mut queue = sim.queue(8).expect("a queue");
    let mut visited = 0;
    let mut visit = |seq: Seq, payload: &[u8]| {
        if let Some(expected) = expected {
            let (at, bytes) = expected.get(visited).expect("a record that was never appended");
            assert_eq!((seq, payload), (*at, &bytes[..]), "record {visited}");
        }
        visited += 1;
        Ok(())
    };
    let whole = replay_log(&sim, &mut *queue, wanted, &mut visit);
    assert!(!sim.has_crashed(), "a replay without end");
    let to_damage = replay_to_damage(&sim, &mut *queue, wanted, &mut |_, _| Ok(()));
    match (&whole, &to_damage) {
        (Ok(whole), Ok((replayed, damage))) => {
            assert!(damage.is_none(), "a repair finds damage that a replay does not");
            assert_eq!((replayed.end, replayed.records), (whole.end, whole.records));
        }
        (Err(wal::Error::Corrupt { .. }), _) => {}
        (whole, _) => panic!("neither replayed nor Corrupt: {whole:?} {to_damage:?}"),
    }
    assert_eq!(sim.snapshot().fingerprint(), disk.fingerprint(), "a replay has changed something");
}
