//! Opening: the name of the directory must survive a power cut as its content does, and no option may do harm.

use std::path::Path;
use std::sync::Arc;

use aio::{Backend, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db};

fn small() -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 << 10),
        log_file_bytes: Some(64 << 10),
        memtable_bytes: Some(64 << 10),
        manifest_bytes: Some(16 << 10),
        ..Sizes::default()
    };
    Db::builder().background(Background::Manual).sizes(sizes)
}

/// Writes to a new store on `machine`, cuts the power so that all unsynced changes are lost, and searches for the writes.
fn write_and_cut(machine: &SimBackend, path: &Path) {
    let db = small().backend(Arc::new(machine.clone())).open(path).unwrap();
    db.keyspace("default").unwrap().put("key", "value").unwrap();
    let left = SimBackend::from_image(machine.snapshot().power_cut_none(), 2);
    let db = small().create(false).backend(Arc::new(left)).open(path).unwrap();
    assert_eq!(db.keyspace("default").unwrap().get("key").unwrap().as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_new_directory_survives_a_power_cut() {
    write_and_cut(&SimBackend::new(1), Path::new("/store"));
}

#[test]
fn a_new_directory_given_by_a_bare_name_survives_a_power_cut() {
    write_and_cut(&SimBackend::new(1), Path::new("store"));
}

#[test]
fn a_directory_left_by_an_interrupted_open_survives_a_power_cut() {
    let machine = SimBackend::new(1);
    machine.make_dir(Path::new("/store")).unwrap();
    write_and_cut(&machine, Path::new("/store"));
}

#[test]
fn a_file_with_the_highest_number_is_none_of_ours() {
    let machine = SimBackend::new(1);
    for _ in 0..2 {
        let db = small().backend(Arc::new(machine.clone())).open("/store").unwrap();
        db.keyspace("default").unwrap().put("key", "value").unwrap();
        db.close().unwrap();
        let mut image = machine.snapshot();
        image.write_file(Path::new(&format!("/store/segments/{}.seg", u64::MAX)), b"not ours");
        let again = SimBackend::from_image(image, 2);
        let db = small().backend(Arc::new(again)).open("/store").unwrap();
        db.keyspace("default").unwrap().put("key", "again").unwrap();
        db.close().unwrap();
    }
}

#[test]
fn sizes_out_of_range_are_brought_into_it() {
    for (bytes, block_bytes) in [(0, 0), (1, 1), (5_000, 1 << 30)] {
        let sizes = Sizes {
            ring_bytes: Some(bytes),
            log_file_bytes: Some(bytes),
            memtable_bytes: Some(bytes),
            segment_bytes: Some(bytes),
            manifest_bytes: Some(bytes),
            block_bytes: Some(block_bytes),
        };
        let machine = Arc::new(SimBackend::new(1));
        let db = small().sizes(sizes).backend(machine).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        for i in 0..100_u32 {
            ks.put(format!("{i}"), [7; 100]).unwrap();
        }
        assert_eq!(ks.iter().count(), 100);
        db.compact().unwrap();
        db.verify().unwrap();
        db.close().unwrap();
    }
}
