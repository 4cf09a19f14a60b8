//! The golden store: a small store of today's format, as the program that wrote it left it.
//!
//! `golden/FILES` names the files of the store with their sizes; each is beside it under the same path, without the
//! zeros at its end. One test opens the store and compares everything in it, one flips bits, one changes a version. The
//! last makes the store again from the same seed and compares the bytes. A change of bytes fails it, and needs a new
//! format version. `GOLDEN=write` (`just golden`) writes the store anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::sim::DiskImage;
use aio::{Backend, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Db, Durability, Error, Keyspace};

/// The directory of the store on the simulated disk.
const ROOT: &str = "/store";

/// Seed of the machine that wrote the store; the store's id comes from it.
const SEED: u64 = 20_260_101;

/// Name of a keyspace, key and value.
type Content = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

fn open(machine: &SimBackend) -> Db {
    try_open(machine).unwrap()
}

fn try_open(machine: &SimBackend) -> esker::Result<Db> {
    // Log and manifest fit into one file each. The moment of the change to a next file is not part of the format.
    let sizes = Sizes {
        ring_bytes: Some(32 << 10),
        log_file_bytes: Some(4 << 20),
        memtable_bytes: Some(128 << 10),
        segment_bytes: Some(8 << 10),
        manifest_bytes: Some(256 << 10),
        block_bytes: Some(2 << 10),
    };
    Db::builder().backend(Arc::new(machine.clone())).background(Background::Manual).sizes(sizes).open(ROOT)
}

/// Bytes that do not compress.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_le_bytes()[7]
    };
    (0..len).map(|_| next()).collect()
}

/// A keyspace and its expected content.
struct Both<'a> {
    keyspace: Keyspace,
    name: &'static str,
    content: &'a mut Content,
}

impl Both<'_> {
    fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.keyspace.put(&key, &value).unwrap();
        self.content.insert((self.name, key), value);
    }

    fn delete(&mut self, key: &str) {
        self.keyspace.delete(key).unwrap();
        self.content.remove(&(self.name, key.into()));
    }
}

/// Writes a store that uses every part of the format, and leaves it as a killed process does.
fn write_store() -> (DiskImage, Content) {
    let machine = SimBackend::new(SEED);
    let mut content = Content::new();
    let db = open(&machine);
    first_incarnation(&db, &mut content);
    db.close().unwrap();
    // Which file a log writes to is not part of the format: here each incarnation makes its own.
    let logs = machine.snapshot().files().into_iter().map(|(path, _)| path);
    for log in logs.filter(|path| path.to_string_lossy().contains(".log")) {
        machine.remove(&log).unwrap();
    }
    let db = open(&machine);
    second_incarnation(&db, &mut content);
    let image = machine.snapshot();
    // The image was taken before the close.
    drop(db);
    (image, content)
}

/// Several runs of several segments; compressed and raw blocks; old versions for a snapshot; tombstones; a dropped
/// keyspace; a compaction.
fn first_incarnation(db: &Db, content: &mut Content) {
    let mut places = Both { keyspace: db.keyspace("default").unwrap(), name: "default", content };
    for i in 0..300_u64 {
        places.put(format!("place/{i:04}"), format!("{{\"name\":\"place {i}\",\"people\":{}}}", i * 1000));
    }
    db.flush().unwrap();
    db.compact().unwrap();
    for i in 0..16_u64 {
        places.put(format!("noise/{i:04}"), noise(i, 900));
    }
    let before = db.snapshot();
    for i in (0..300).step_by(7) {
        places.put(format!("place/{i:04}"), format!("moved {i}"));
    }
    for i in (3..300).step_by(11) {
        places.delete(&format!("place/{i:04}"));
    }
    db.flush().unwrap();
    drop(before);
    let gone = db.keyspace("gone").unwrap();
    gone.put("a", "b").unwrap();
    db.drop_keyspace("gone").unwrap();
}

/// A batch across keyspaces, keys of all shapes; the newest records in the log, and the last ones in the ring only.
fn second_incarnation(db: &Db, content: &mut Content) {
    let (default, second) = (db.keyspace("default").unwrap(), db.keyspace("second").unwrap());
    let mut other = Both { keyspace: second.clone(), name: "second", content };
    for key in [vec![0], vec![255; 300], "ключ".into(), b"k\0".to_vec(), b"k\0\0".to_vec()] {
        other.put(key.clone(), [key.clone(), key].concat());
    }
    other.put("empty", "");
    other.put("large", noise(99, 7_000));
    db.flush().unwrap();
    db.batch()
        .put(&default, "both", "1")
        .put(&second, "both", "2")
        .delete(&default, "place/0001")
        .commit()
        .unwrap();
    content.insert(("default", b"both".to_vec()), b"1".to_vec());
    content.insert(("second", b"both".to_vec()), b"2".to_vec());
    content.remove(&("default", b"place/0001".to_vec()));
    let mut places = Both { keyspace: default, name: "default", content };
    for i in 0..8_u64 {
        places.put(format!("late/{i:02}"), format!("in the log {i}"));
    }
    places.keyspace = places.keyspace.with_durability(Durability::Process);
    for i in 8..12_u64 {
        places.put(format!("late/{i:02}"), format!("in the ring only {i}"));
    }
    places.delete("late/00");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The files of a store, by their path in it. The lock file is no data.
fn files(image: &DiskImage) -> BTreeMap<String, Vec<u8>> {
    let paths = image.files().into_iter().map(|(path, _)| path);
    let named = paths.map(|path| {
        let bytes = image.read_file(&path).unwrap();
        (path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned(), bytes)
    });
    named.filter(|(name, _)| name != "LOCK").collect()
}

fn write_golden(files: &BTreeMap<String, Vec<u8>>) {
    let folder = folder();
    let _ = std::fs::remove_dir_all(&folder);
    let mut list = String::new();
    for (name, bytes) in files {
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &bytes[..used]).unwrap();
        writeln!(list, "{} {name}", bytes.len()).unwrap();
    }
    std::fs::write(folder.join("FILES"), list).unwrap();
}

fn read_golden() -> BTreeMap<String, Vec<u8>> {
    let folder = folder();
    let list = std::fs::read_to_string(folder.join("FILES")).unwrap();
    let file = |line: &str| {
        let (len, name) = line.split_once(' ').unwrap();
        let mut bytes = std::fs::read(folder.join(name)).unwrap();
        bytes.resize(len.parse().unwrap(), 0);
        (name.to_owned(), bytes)
    };
    list.lines().map(file).collect()
}

/// A machine with the golden store on its disk.
fn machine_with_golden() -> SimBackend {
    let machine = SimBackend::new(1);
    for dir in ["", "wal", "segments"] {
        machine.make_dir(&Path::new(ROOT).join(dir)).unwrap();
    }
    let mut image = machine.snapshot().power_cut_all();
    for (name, bytes) in read_golden() {
        image.write_file(&Path::new(ROOT).join(name), &bytes);
    }
    SimBackend::from_image(image, 1)
}

fn content_of(db: &Db) -> Content {
    let mut content = Content::new();
    assert_eq!(db.keyspaces(), ["default", "second"]);
    for name in ["default", "second"] {
        let keyspace = db.keyspace(name).unwrap();
        for pair in &keyspace {
            let (key, value) = pair.unwrap();
            assert_eq!(keyspace.get(&key).unwrap().as_ref(), Some(&value));
            content.insert((name, key.to_vec()), value.to_vec());
        }
    }
    content
}

#[test]
fn the_golden_store_is_read_in_full() {
    let (_, expected) = write_store();
    let machine = machine_with_golden();
    let db = open(&machine);
    assert!(content_of(&db) == expected);
    assert!(db.verify().unwrap().segments >= 4);
    // After more writes the next open sees the same content.
    db.compact().unwrap();
    db.close().unwrap();
    let db = open(&machine);
    assert!(content_of(&db) == expected, "rewritten");
}

/// A damaged part of a segment costs at most the entries in it: no answer is wrong, and a check of the store reports it.
/// (`segment/tests.rs` damages every single byte of a smaller segment.)
#[test]
fn a_flipped_bit_in_a_segment_is_reported() {
    /// Prime, so that it falls on all offsets in sectors and fields.
    const STEP: usize = 23;
    let (_, expected) = write_store();
    let whole = machine_with_golden().snapshot().power_cut_all();
    for (name, bytes) in read_golden().into_iter().filter(|(name, _)| name.starts_with("segments/")) {
        for byte in (1..bytes.len()).step_by(STEP) {
            let mut image = whole.clone();
            image.flip_bit(&Path::new(ROOT).join(&name), (byte * 8 + byte % 8) as u64);
            let found = read_damaged(&SimBackend::from_image(image, 1), &expected);
            let is_named = matches!(&found, Err(Error::Corrupt { file, .. }) if file.ends_with(&name));
            assert!(is_named, "byte {byte} of {name}: {found:?}");
        }
    }
}

/// Compares the content of the store with the expected one. Returns the first error of a call.
fn read_damaged(machine: &SimBackend, expected: &Content) -> esker::Result<()> {
    let db = try_open(machine)?;
    for ((name, key), value) in expected {
        if let Ok(found) = db.keyspace(name)?.get(key) {
            assert_eq!(found.as_deref(), Some(&value[..]));
        }
    }
    db.verify().map(drop)
}

#[test]
fn the_same_calls_write_the_same_bytes() {
    let written = files(&write_store().0);
    if std::env::var("GOLDEN").is_ok_and(|value| value == "write") {
        write_golden(&written);
    }
    let golden = read_golden();
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&written), names(&golden));
    for (name, bytes) in &written {
        let differs = bytes.iter().zip(&golden[name]).position(|(now, then)| now != then);
        assert_eq!((bytes.len(), differs), (golden[name].len(), None), "{name}: first difference");
    }
}

/// Of a segment, in a store; `manifest/edit_log_tests.rs` and `segment/footer.rs` have the manifest, and each other number.
#[test]
fn a_segment_of_another_version_is_refused_and_not_called_damage() {
    let name = "segments/000011.seg";
    let mut image = machine_with_golden().snapshot().power_cut_all();
    image.damage(&Path::new(ROOT).join(name), |bytes| {
        let at = bytes.len() - 4096;
        let footer = &mut bytes[at..];
        footer[8] += 1;
        let crc = crc32fast::hash(&footer[..4092]);
        footer[4092..].copy_from_slice(&crc.to_le_bytes());
    });
    let found = try_open(&SimBackend::from_image(image, 1)).map(drop);
    assert!(matches!(&found, Err(Error::Format { path, .. }) if path.ends_with(name)), "{found:?}");
}
