//! Crashes of the simulated machine that once broke a store. Each test is named after the rule that must hold.

use std::sync::Arc;

use aio::SimBackend;
use aio::sim::DiskImage;
use esker::Db;
use esker::testing::{Background, BuilderExt, Sizes};
use parking_lot::Mutex;

const ROOT: &str = "/store";

fn open(sim: &SimBackend) -> esker::Result<Db> {
    let sizes = Sizes {
        ring_bytes: Some(8 << 10),
        log_file_bytes: Some(4 << 10),
        memtable_bytes: Some(4 << 10),
        segment_bytes: Some(8 << 10),
        manifest_bytes: Some(8 << 10),
        block_bytes: Some(512),
    };
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).sizes(sizes).open(ROOT)
}

/// Found by `kvtorture sim --case 0 --seed 1`: the directories of a new store could reach the disk without its lock
/// file, and the next open refused them as foreign.
#[test]
fn a_creation_that_a_power_cut_interrupted_goes_on() {
    for (event, image) in images_of_open(&SimBackend::new(1)).iter().enumerate() {
        for seed in 0..64 {
            must_open(image.power_cut_random(seed), &format!("event {event}, SEED={seed}"));
        }
    }
}

/// Found by `kvtorture sim --case 59 --seed 1`: the first manifest was written but not synced when the process died; the
/// next open continued from it, and a power cut then removed it while the second manifest depended on it.
#[test]
fn a_creation_that_two_crashes_interrupted_goes_on() {
    for (event, image) in images_of_open(&SimBackend::new(1)).iter().enumerate() {
        let sim = SimBackend::from_image(image.process_crash(1), 2);
        for (later, image) in images_of_open(&sim).iter().enumerate() {
            for seed in 0..8 {
                must_open(image.power_cut_random(seed), &format!("event {event}, then {later}, SEED={seed}"));
            }
        }
    }
}

/// The disk before each event of an open.
fn images_of_open(sim: &SimBackend) -> Vec<DiskImage> {
    let images: Arc<Mutex<Vec<DiskImage>>> = Arc::default();
    sim.on_event({
        let images = Arc::clone(&images);
        move |_, image| images.lock().push(image.clone())
    });
    let db = open(sim).expect("the store opens");
    sim.stop_observing();
    sim.crash();
    drop(db);
    std::mem::take(&mut *images.lock())
}

fn must_open(image: DiskImage, place: &str) {
    let sim = SimBackend::from_image(image, 3);
    let opened = open(&sim);
    assert!(opened.is_ok(), "{place}: {opened:?}");
    sim.crash();
}
