//! Tests of a write that ends between its reservation and its completion. There is no store: a log and a watermark.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use aio::sim::DiskImage;
use aio::{Backend, SimBackend};
use wal::{ActiveFile, Background, Host, LogOptions, ReplayInput};

use super::*;
use crate::base::key::Seq;

const RING_BYTES: usize = 64 << 10;

/// A manifest that remembers nothing: these logs have one file at most.
#[derive(Debug)]
struct NoManifest;

impl Host for NoManifest {
    fn new_file_id(&self) -> u64 {
        1
    }

    fn activate(&self, _: u64, _: Seq) -> wal::Result<u32> {
        Ok(1)
    }

    fn ring_grown(&self, _: u64) -> wal::Result<()> {
        Ok(())
    }
}

struct Bed {
    sim: SimBackend,
    log: Log,
    visible: Watermark,
}

fn options() -> LogOptions {
    LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_BYTES,
        file_bytes: 64 << 10,
        background: Background::Manual,
        ..LogOptions::new("/wal", 7, 1, Seq::ZERO)
    }
}

fn bed() -> Bed {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let log = Log::open(Arc::new(sim.clone()), options(), Arc::new(NoManifest)).unwrap();
    Bed { sim, log, visible: Watermark::new(Seq::ZERO, RING_BYTES) }
}

fn record(payload: &[u8]) -> RecordBuf {
    let mut record = RecordBuf::new();
    record.push(payload);
    record
}

impl Bed {
    /// Writes a record to the end; `None` if the log refuses it.
    fn write(&self, payload: &[u8]) -> Option<Appended> {
        let mut record = record(payload);
        let logged = Reserved::new(&self.log, &self.visible, &mut record).ok()??.publish();
        let place = logged.place();
        assert!(self.visible.get() <= place.seq, "not visible before the memtables have it");
        logged.complete();
        assert_eq!((self.visible.get(), self.log.published()), (place.end, place.end));
        Some(place)
    }
}

/// Payloads of the records that a crash leaves.
fn left(image: DiskImage, files: Vec<ActiveFile>) -> Vec<Vec<u8>> {
    let options = options();
    let input = ReplayInput {
        directory: options.directory,
        store_id: options.store_id,
        incarnation: options.incarnation,
        incarnation_start: options.start,
        from: options.start,
        files,
        file_bytes: options.file_bytes,
        ring_path: options.ring_path,
        ring_bytes: options.ring_bytes,
        ring_file_bytes: options.ring_file_bytes,
    };
    let sim = SimBackend::from_image(image, 1);
    let mut found = Vec::new();
    let mut queue = sim.queue(1).unwrap();
    let mut visit = |_, payload: &[u8]| {
        found.push(payload.to_vec());
        Ok(())
    };
    wal::replay(&sim, &mut *queue, &input, &mut visit).unwrap();
    found
}

/// Runs `write` up to where it unwinds, as a panic does, without the message of one.
fn unwind(write: impl FnOnce()) {
    catch_unwind(AssertUnwindSafe(write)).unwrap_err();
}

#[test]
fn a_panic_before_the_log_leaves_a_void_and_later_writes_go_on() {
    let bed = bed();
    let first = bed.write(b"first").unwrap();
    let mut lost = record(&[0xee; 5000]);
    unwind(|| {
        let _reserved = Reserved::new(&bed.log, &bed.visible, &mut lost).unwrap().unwrap();
        resume_unwind(Box::new("between reserve and publish"));
    });
    assert_eq!(bed.visible.get(), bed.log.published(), "both watermarks have passed the place");
    let second = bed.write(b"second").unwrap();
    assert!(second.seq.since(first.end) >= 5000, "the place is used up");
    bed.log.wait_durable(second.end).unwrap();
    let written = vec![b"first".to_vec(), b"second".to_vec()];
    assert_eq!(left(bed.sim.snapshot().power_cut_none(), bed.log.active_files()), written, "from the file");
    assert_eq!(left(bed.sim.snapshot().process_crash(1), Vec::new()), written, "from the ring");
}

#[test]
fn a_panic_between_log_and_memtables_halts_the_log_which_keeps_the_record() {
    let bed = bed();
    let mut half = record(b"half inserted");
    unwind(|| {
        let _logged = Reserved::new(&bed.log, &bed.visible, &mut half).unwrap().unwrap().publish();
        resume_unwind(Box::new("between publish and complete"));
    });
    assert_eq!(bed.visible.get(), bed.log.published(), "no thread waits for the place");
    assert!(matches!(bed.log.health(), Err(wal::Error::Halted { .. })));
    assert_eq!(bed.write(b"refused"), None);
    assert_eq!(left(bed.sim.snapshot().process_crash(1), Vec::new()), [b"half inserted"]);
}
