//! Crashes of the simulated machine that once went wrong. Each test is named after what must hold.

use std::sync::Arc;

use aio::SimBackend;
use aio::sim::DiskImage;
use esker::{Background, Db, Sizes};
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
/// file, and the next open took them for something foreign.
#[test]
fn a_creation_that_a_power_cut_interrupted_goes_on() {
    let sim = SimBackend::new(1);
    let images: Arc<Mutex<Vec<DiskImage>>> = Arc::default();
    sim.on_event({
        let images = Arc::clone(&images);
        move |_, image| images.lock().push(image.clone())
    });
    let db = open(&sim).expect("an empty disk takes a store");
    sim.stop_observing();
    drop(db);
    for (event, image) in images.lock().iter().enumerate() {
        for seed in 0..64 {
            let left = SimBackend::from_image(image.power_cut_random(seed), seed);
            let opened = open(&left);
            assert!(opened.is_ok(), "event {event}, SEED={seed}: {opened:?}");
            left.crash();
        }
    }
}
