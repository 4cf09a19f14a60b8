//! Segments on the simulated disk: against a sorted list, under damage, under failing calls, after power cuts; with index
//! and filter pinned, and paged.

mod paged;
mod read_ahead;

use std::path::Path;
use std::sync::Arc;

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Alignment, Backend, Errno, NativeBackend, SimBackend};

use super::{BlockCache, Opening, Segment, SegmentMeta, SegmentWriter, WriterOptions};
use crate::base::error::{Error, Result};
use crate::base::key::{Entry, Kind, Seq, key_hash};
use crate::compaction::retain::Kept;
use crate::io::background::JobKind;
use crate::io::files::Files;
use crate::io::lane::Lane;
use crate::io::write_stream::WriteStream;
use crate::memory::cache::Cache;
use crate::memory::reserve::ReservedBytes;
use crate::read::cursor::Cursor;
use crate::read::cursor_contract::{VecCursor, check_all, seed};

const STORE: u64 = 0x5702_e1d5;
const ID: u64 = 12;
const ROOT: &str = "/store";
const FILE: &str = "/store/segments/000012.seg";

type Owned = (Vec<u8>, u64, Kind, Vec<u8>);

/// A small generator.
struct Random(u64);

impl Random {
    /// Follows from the seed of the run and `salt`.
    fn new(salt: u64) -> Random {
        let mixed = (seed() ^ salt << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Random(mixed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn len(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }
}

fn entry(owned: &Owned) -> Entry<'_> {
    Entry { key: &owned.0, seq: Seq::new(owned.1), kind: owned.2, value: &owned.3 }
}

fn machine() -> (SimBackend, Arc<Files>) {
    let sim = SimBackend::new(1);
    for dir in [ROOT, "/store/segments"] {
        sim.make_dir(Path::new(dir)).unwrap();
    }
    sim.sync_dir(Path::new("/")).unwrap();
    sim.sync_dir(Path::new(ROOT)).unwrap();
    let files = files_on(&sim);
    (sim, files)
}

fn files_on(sim: &SimBackend) -> Arc<Files> {
    Arc::new(Files::new(Arc::new(sim.clone()), Path::new(ROOT), 1 << 20))
}

/// Whether segments that a cache serves have index and filter pinned or paged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Pinned,
    Paged,
}

const FORMS: [Form; 2] = [Form::Pinned, Form::Paged];

impl Form {
    /// A cache; of so many bytes if they are paged, else with room for the pinned parts.
    fn cache(self, budget_bytes: u64) -> Arc<BlockCache> {
        match self {
            Form::Pinned => Arc::new(Cache::new(budget_bytes.max(8 << 20))),
            Form::Paged => {
                let cache = Arc::new(Cache::new(budget_bytes * 2));
                // Never dropped, so every later request is refused.
                std::mem::forget(ReservedBytes::take(&cache, budget_bytes));
                cache
            }
        }
    }

    /// A segment in this form.
    fn open(self, files: &Arc<Files>, budget_bytes: u64, meta: &SegmentMeta) -> Result<Arc<Segment>> {
        let segment = open(files, &self.cache(budget_bytes), meta)?;
        assert_eq!(segment.is_paged(), self == Form::Paged);
        Ok(segment)
    }
}

fn open(files: &Arc<Files>, cache: &Arc<BlockCache>, meta: &SegmentMeta) -> Result<Arc<Segment>> {
    Segment::open(&Opening { files, cache, origin: STORE, leaving_bytes: 0 }, meta)
}

fn cache(budget_bytes: u64) -> Arc<BlockCache> {
    Arc::new(Cache::new(budget_bytes))
}

fn options(block_bytes: usize, compress: bool) -> WriterOptions {
    WriterOptions { id: ID, keyspace: 3, store_id: STORE, block_bytes, compress, filter_bits_per_key: 14 }
}

fn create(files: &Arc<Files>, options: WriterOptions) -> Result<SegmentWriter> {
    SegmentWriter::create(WriteStream::new(&Lane::new(files, JobKind::Flush)?, 64 << 10), options)
}

/// Adds all entries, which are in order.
fn add_all(writer: &mut SegmentWriter, entries: &[Entry<'_>]) -> Result<()> {
    let mut last_key: &[u8] = &[];
    for &entry in entries {
        let kept = if entry.key == last_key { Kept::SameKey } else { Kept::NewKey };
        writer.add(entry, kept)?;
        last_key = entry.key;
    }
    Ok(())
}

/// Ends the segment and its stream.
fn finish(writer: SegmentWriter) -> Result<SegmentMeta> {
    let (meta, stream) = writer.finish()?;
    stream.close()?;
    Ok(meta)
}

fn write(files: &Arc<Files>, options: WriterOptions, entries: &[Owned]) -> Result<SegmentMeta> {
    let mut writer = create(files, options)?;
    add_all(&mut writer, &entries.iter().map(entry).collect::<Vec<_>>())?;
    let estimate = writer.size_bytes();
    let meta = finish(writer)?;
    assert!(meta.size_bytes <= estimate + 64 * 1024 && estimate <= meta.size_bytes * 2 + 64 * 1024);
    Ok(meta)
}

/// Entries in internal order with several versions of some keys.
fn random_entries(random: &mut Random, keys: u64, value_limit: u64) -> Vec<Owned> {
    let mut entries = Vec::new();
    for i in 0..keys {
        let key = match random.below(3) {
            0 => format!("user/{:06}", random.below(keys * 10)).into_bytes(),
            1 => format!("user/{i:06}/long/suffix/{}", random.below(1000)).into_bytes(),
            _ => {
                let len = 1 + random.len(12);
                random.bytes(len)
            }
        };
        let versions = if random.below(10) == 0 { 1 + random.below(40) } else { 1 };
        for _ in 0..versions {
            let put = random.below(5) > 0;
            let len = random.len(value_limit);
            let value = if put { random.bytes(len) } else { Vec::new() };
            let kind = if put { Kind::Put } else { Kind::Delete };
            entries.push((key.clone(), random.below(1 << 34), kind, value));
        }
    }
    sort(entries)
}

fn sort(mut entries: Vec<Owned>) -> Vec<Owned> {
    entries.sort_by(|a, b| entry(a).order(&entry(b)));
    entries.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
    entries
}

fn model_get<'a>(entries: &'a [Owned], key: &[u8], snapshot: u64) -> Option<&'a Owned> {
    let start = entries.partition_point(|owned| owned.0.as_slice() < key);
    entries[start..].iter().take_while(|owned| owned.0 == key).find(|owned| owned.1 < snapshot)
}

fn check_get(segment: &Segment, entries: &[Owned], key: &[u8], snapshot: u64) -> Result<()> {
    let show = |kind, seq: Seq, value: &[u8]| (key.to_vec(), seq.get(), kind, value.to_vec());
    let found = segment.get_with((key, key_hash(key)), Seq::new(snapshot), show)?;
    assert_eq!(found.as_ref(), model_get(entries, key, snapshot), "key {key:?} below {snapshot}");
    Ok(())
}

/// All entries from the front, then all from the back.
fn check_scans(segment: &Arc<Segment>, entries: &[Owned], fill_cache: bool) -> Result<()> {
    let mut cursor = segment.cursor(fill_cache);
    cursor.seek(b"")?;
    for owned in entries {
        assert_eq!(cursor.entry(), Some(entry(owned)));
        cursor.next()?;
    }
    assert_eq!(cursor.entry(), None);
    cursor.seek_before(None)?;
    for owned in entries.iter().rev() {
        assert_eq!(cursor.entry(), Some(entry(owned)));
        cursor.prev()?;
    }
    assert_eq!(cursor.entry(), None);
    Ok(())
}

/// A seek in each direction and one step from there.
fn check_seeks(cursor: &mut dyn Cursor, entries: &[Owned], key: &[u8]) -> Result<()> {
    let start = entries.partition_point(|owned| owned.0.as_slice() < key);
    cursor.seek(key)?;
    assert_eq!(cursor.entry(), entries.get(start).map(entry), "seek to {key:?}");
    if cursor.entry().is_some() {
        cursor.next()?;
        assert_eq!(cursor.entry(), entries.get(start + 1).map(entry));
    }
    cursor.seek_before(Some(key))?;
    assert_eq!(cursor.entry(), start.checked_sub(1).map(|i| entry(&entries[i])), "seek before {key:?}");
    if cursor.entry().is_some() {
        cursor.prev()?;
        assert_eq!(cursor.entry(), start.checked_sub(2).map(|i| entry(&entries[i])));
    }
    Ok(())
}

fn check_meta(meta: &SegmentMeta, entries: &[Owned]) {
    assert_eq!(meta.entries, entries.len() as u64);
    assert_eq!(meta.tombstones, entries.iter().filter(|owned| owned.2 == Kind::Delete).count() as u64);
    assert_eq!(
        meta.raw_bytes,
        entries.iter().map(|owned| owned.0.len() + owned.3.len()).sum::<usize>() as u64
    );
    assert_eq!(meta.smallest, entries[0].0);
    assert_eq!(meta.largest, entries[entries.len() - 1].0);
    assert_eq!(Some(meta.min_seq.get()), entries.iter().map(|owned| owned.1).min());
    assert_eq!(Some(meta.max_seq.get()), entries.iter().map(|owned| owned.1).max());
}

#[test]
fn a_segment_answers_like_the_sorted_list_it_was_made_from() {
    let mut random = Random::new(1);
    for round in 0..40_u32 {
        let (sim, files) = machine();
        let offset_bytes = if round % 2 == 0 { 512 } else { 4096 };
        sim.set_alignment(Alignment { memory_bytes: 512, offset_bytes });
        let (keys, value_limit) = [(1, 50), (40, 3), (300, 60), (150, 3000), (12, 90_000)][random.len(5)];
        let entries = random_entries(&mut random, keys, value_limit);
        let block_bytes = [512, 1024, 8192, 32_768][random.len(4)];
        let meta = write(&files, options(block_bytes, random.below(2) == 0), &entries).unwrap();
        check_meta(&meta, &entries);

        let form = FORMS[usize::try_from(round / 2 % 2).unwrap()];
        let segment = form.open(&files, random.below(1 << 20), &meta).unwrap();
        assert_eq!(segment.meta(), &meta);
        assert_eq!(segment.verify().unwrap(), meta.size_bytes);
        for fill_cache in [false, true] {
            check_scans(&segment, &entries, fill_cache).unwrap();
        }
        let mut cursor = segment.cursor(random.below(2) == 0);
        for _ in 0..400 {
            let mut key = entries[random.len(entries.len() as u64)].0.clone();
            match random.below(4) {
                0 => key.push(0),
                1 => *key.last_mut().unwrap() ^= 1,
                _ => {}
            }
            check_seeks(&mut cursor, &entries, &key).unwrap();
            let snapshot = if random.below(2) == 0 { u64::MAX } else { random.below(1 << 34) };
            check_get(&segment, &entries, &key, snapshot).unwrap();
        }
    }
}

#[test]
fn cursors_keep_the_contract_whether_blocks_are_cached_or_not() {
    for (fill_cache, form) in [false, true].into_iter().zip(FORMS).chain([true, false].into_iter().zip(FORMS))
    {
        check_all(|model| {
            if model.is_empty() {
                return Box::new(VecCursor::new(Vec::new()));
            }
            let (_, files) = machine();
            let mut writer = create(&files, options(512, true)).unwrap();
            add_all(&mut writer, &model.iter().map(|owned| owned.as_entry()).collect::<Vec<_>>()).unwrap();
            let meta = finish(writer).unwrap();
            Box::new(form.open(&files, 1 << 20, &meta).unwrap().cursor(fill_cache))
        });
    }
}

#[test]
fn a_real_file_works_like_the_simulated_one() {
    // Unit tests are not told `CARGO_TARGET_TMPDIR`; the test binary stands in the same file system.
    let beside = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
    let files = Arc::new(Files::new(Arc::new(NativeBackend::new()), dir.path(), 1 << 20));
    files.backend().make_dir(&files.segments_dir()).unwrap();
    let mut random = Random::new(6);
    let entries = random_entries(&mut random, 4000, 2000);
    let meta = write(&files, options(8192, true), &entries).unwrap();
    assert_eq!(files.backend().stat(&files.segment_path(ID)).unwrap().unwrap().size_bytes, meta.size_bytes);
    for form in FORMS {
        let segment = form.open(&files, 1 << 20, &meta).unwrap();
        check_scans(&segment, &entries, false).unwrap();
        for owned in entries.iter().step_by(37) {
            check_get(&segment, &entries, &owned.0, u64::MAX).unwrap();
        }
        segment.verify().unwrap();
    }
}

#[test]
fn versions_of_one_key_may_span_blocks() {
    let (_, files) = machine();
    let mut entries = vec![(b"a".to_vec(), 5, Kind::Put, vec![1])];
    entries.extend((0..500_u64).map(|seq| (b"hot".to_vec(), seq * 3, Kind::Put, seq.to_le_bytes().to_vec())));
    entries.push((b"hotter".to_vec(), 7, Kind::Delete, vec![]));
    let entries = sort(entries);
    let meta = write(&files, options(512, false), &entries).unwrap();
    for form in FORMS {
        let segment = form.open(&files, 1 << 20, &meta).unwrap();
        for snapshot in 0..1510 {
            check_get(&segment, &entries, b"hot", snapshot).unwrap();
        }
        for key in [b"a".as_slice(), b"hos", b"hot", b"hot\0", b"hotter", b"z"] {
            check_get(&segment, &entries, key, u64::MAX).unwrap();
            check_seeks(&mut segment.cursor(true), &entries, key).unwrap();
        }
        segment.verify().unwrap();
    }
}

#[test]
fn large_segments_take_several_writes_and_large_values_a_block_each() {
    let mut random = Random::new(2);
    let (_, files) = machine();
    let mut entries = Vec::new();
    for (i, len) in [40_000, 5 << 20, 0, 33_000, 1 << 20, 100, 3 << 20].into_iter().enumerate() {
        let mut value = vec![7; len];
        let noise = random.bytes(len.min(1000));
        value[..noise.len()].copy_from_slice(&noise);
        entries.push((format!("key{i}").into_bytes(), 9, Kind::Put, value));
    }
    let meta = write(&files, options(8192, false), &entries).unwrap();
    assert!(meta.size_bytes > 9 << 20);
    for cache in FORMS.map(|form| form.cache(1 << 20)) {
        let segment = open(&files, &cache, &meta).unwrap();
        check_scans(&segment, &entries, true).unwrap();
        for owned in &entries {
            check_get(&segment, &entries, &owned.0, u64::MAX).unwrap();
        }
        segment.verify().unwrap();
        let stats = cache.stats();
        assert!(stats.bytes + stats.reserved_bytes <= stats.budget_bytes, "{stats:?}");
    }
}

/// Small, with every part of the format in it.
fn small_entries() -> Vec<Owned> {
    let mut entries = Vec::new();
    for i in 0..24_u64 {
        let key = format!("key/{i:03}").into_bytes();
        entries.push((
            key.clone(),
            100 + i,
            Kind::Put,
            format!("value {i} value {i}").repeat(3).into_bytes(),
        ));
        if i % 5 == 0 {
            entries.push((key, 50 + i, Kind::Delete, vec![]));
        }
    }
    entries
}

/// Reads everything in all ways, in both forms: right answers (asserted inside) or the first error.
fn read_all(files: &Arc<Files>, meta: &SegmentMeta, entries: &[Owned]) -> Result<()> {
    let results = FORMS.map(|form| read_in(form, files, meta, entries));
    results.into_iter().collect()
}

fn read_in(form: Form, files: &Arc<Files>, meta: &SegmentMeta, entries: &[Owned]) -> Result<()> {
    let segment = form.open(files, 1 << 20, meta)?;
    let mut first = None;
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };
    // Each read by itself, so that an error of one does not hide a wrong answer of another.
    for owned in entries {
        note(check_get(&segment, entries, &owned.0, u64::MAX));
        note(check_get(&segment, entries, &owned.0, 100));
    }
    note(check_get(&segment, entries, b"key/0005", u64::MAX));
    note(check_seeks(&mut segment.cursor(false), entries, b"key/011"));
    note(check_scans(&segment, entries, false));
    note(segment.verify().map(drop));
    first.map_or(Ok(()), Err)
}

#[test]
fn every_damaged_byte_is_reported_and_never_changes_an_answer() {
    for compress in [false, true] {
        let (sim, files) = machine();
        let entries = small_entries();
        let meta = write(&files, options(512, compress), &entries).unwrap();
        read_all(&files, &meta, &entries).unwrap();
        let whole = sim.snapshot().power_cut_all();
        for byte in 0..meta.size_bytes {
            let mut image = whole.clone();
            image.flip_bit(Path::new(FILE), byte * 8 + byte % 8);
            let files = files_on(&SimBackend::from_image(image, 1));
            for form in FORMS {
                match read_in(form, &files, &meta, &entries) {
                    Err(Error::Corrupt { file, offset, .. }) => {
                        assert_eq!(file, Path::new(FILE));
                        assert!(offset <= byte, "byte {byte} reported at {offset}");
                    }
                    other => panic!("byte {byte}, {form:?}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn lost_foreign_and_misplaced_bytes_are_reported() {
    let (sim, files) = machine();
    let entries = small_entries();
    let meta = write(&files, options(512, false), &entries).unwrap();
    let other = WriterOptions { id: ID + 1, ..options(512, false) };
    let other_meta = write(&files, other, &entries[1..]).unwrap();
    let whole = sim.snapshot().power_cut_all();
    let refused = |what: &str, meta: &SegmentMeta, change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = whole.clone();
        image.damage(Path::new(FILE), change);
        let files = files_on(&SimBackend::from_image(image, 1));
        let result = read_all(&files, meta, &entries);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{what}: {result:?}");
    };
    for len in (0..usize::try_from(meta.size_bytes).unwrap()).step_by(512) {
        refused("truncated", &meta, &|bytes| bytes.truncate(len));
    }
    let bytes = whole.read_file(Path::new(FILE)).unwrap();
    for sector in (0..bytes.len() / 512).filter(|sector| bytes[sector * 512..][..512] != [0; 512]) {
        refused("a sector was never written", &meta, &|bytes| bytes[sector * 512..][..512].fill(0));
    }
    refused("longer", &meta, &|bytes| bytes.resize(bytes.len() + 4096, 0));
    refused("a block in the place of another", &meta, &|bytes| bytes.copy_within(0..512, 1024));
    let foreign = whole.read_file(Path::new("/store/segments/000013.seg")).unwrap();
    refused("another segment's file", &meta, &|bytes| bytes.clone_from(&foreign));
    refused("another segment's block", &meta, &|bytes| bytes[..512].copy_from_slice(&foreign[..512]));
    refused("another segment's meta", &SegmentMeta { id: ID, ..other_meta.clone() }, &|_| {});
    for wrong in [
        SegmentMeta { keyspace: 4, ..meta.clone() },
        SegmentMeta { entries: 1, ..meta.clone() },
        SegmentMeta { smallest: "key".into(), ..meta.clone() },
        SegmentMeta { largest: "z".into(), ..meta.clone() },
        SegmentMeta { footer_crc: 0, ..meta.clone() },
        SegmentMeta { id: ID + 7, ..meta.clone() },
    ] {
        for form in FORMS {
            let result = open(&files, &form.cache(1 << 20), &wrong);
            assert!(matches!(result, Err(Error::Corrupt { .. })), "{wrong:?}");
        }
    }
    let (files, cache) = (&files, &cache(0));
    let result = Segment::open(&Opening { files, cache, origin: STORE + 1, leaving_bytes: 0 }, &meta);
    assert!(matches!(result, Err(Error::Corrupt { what: "store id", .. })), "{result:?}");
}

#[test]
fn after_finish_and_a_directory_sync_a_power_cut_loses_nothing() {
    let (sim, files) = machine();
    let entries = small_entries();
    let meta = write(&files, options(512, true), &entries).unwrap();
    sim.sync_dir(&files.segments_dir()).unwrap();
    let files = files_on(&SimBackend::from_image(sim.snapshot().power_cut_none(), 2));
    read_all(&files, &meta, &entries).unwrap();
}

#[test]
fn a_writer_that_fails_at_any_call_says_so_and_removes_its_file() {
    let mut random = Random::new(3);
    let entries: Vec<Owned> = (0..60_u32)
        .map(|i| (i.to_string().into_bytes(), 1, Kind::Put, random.bytes(100_000)))
        .map(|(key, seq, kind, value)| ([b"0".repeat(4 - key.len()), key].concat(), seq, kind, value))
        .collect();
    for errno in [Errno::IO, Errno::NO_SPACE] {
        let mut calls = 0;
        loop {
            let (sim, files) = machine();
            sim.fail(FaultPlan::new(Fault::Errno(errno)).path(".seg").skip(calls));
            let result = write(&files, options(8192, false), &entries);
            if sim.faults_struck() == 0 {
                sim.clear_faults();
                read_all(&files, &result.unwrap(), &entries).unwrap();
                break;
            }
            match result {
                Err(Error::NoSpace { .. }) => assert_eq!(errno, Errno::NO_SPACE),
                Err(Error::Io { .. }) => assert_eq!(errno, Errno::IO),
                other => panic!("call {calls}: {other:?}"),
            }
            assert_eq!(sim.list(&files.segments_dir()).unwrap(), Vec::<String>::new(), "call {calls}");
            calls += 1;
        }
        assert!(calls >= 8, "create, allocations, writes, truncation and sync each failed once: {calls}");
    }
}

#[test]
fn a_dropped_writer_leaves_no_file() {
    let (sim, files) = machine();
    let mut writer = create(&files, options(512, true)).unwrap();
    assert!(writer.is_empty());
    writer.add(entry(&small_entries()[0]), Kept::NewKey).unwrap();
    assert!(!writer.is_empty());
    assert_eq!(sim.list(&files.segments_dir()).unwrap().len(), 1);
    drop(writer);
    assert!(sim.list(&files.segments_dir()).unwrap().is_empty());
}

#[test]
fn reads_that_fail_are_errors_and_the_next_try_works() {
    let (sim, files) = machine();
    let entries = small_entries();
    let meta = write(&files, options(512, true), &entries).unwrap();
    let segment = Form::Pinned.open(&files, 1 << 20, &meta).unwrap();
    let key = &entries[9].0;
    for fault in [Fault::Errno(Errno::IO), Fault::Short(0)] {
        sim.fail(FaultPlan::new(fault));
        assert!(matches!(check_get(&segment, &entries, key, u64::MAX), Err(Error::Io { .. })));
        let mut cursor = segment.cursor(false);
        sim.fail(FaultPlan::new(fault));
        assert!(cursor.seek(key).is_err());
        assert_eq!(cursor.entry(), None);
        check_seeks(&mut cursor, &entries, key).unwrap();
    }
    // A bit that flips on the way is caught by the checksum, and is not kept in the cache.
    sim.fail(FaultPlan::new(Fault::FlipBit(77)));
    assert!(matches!(check_get(&segment, &entries, key, u64::MAX), Err(Error::Corrupt { .. })));
    check_get(&segment, &entries, key, u64::MAX).unwrap();
}

#[test]
fn a_missing_file_is_damage_that_names_it() {
    let (sim, files) = machine();
    let meta = write(&files, options(512, true), &small_entries()).unwrap();
    sim.remove(Path::new(FILE)).unwrap();
    match open(&files, &cache(0), &meta) {
        Err(Error::Corrupt { file, .. }) => assert_eq!(file, Path::new(FILE)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn point_reads_cost_one_device_read_and_then_none_and_misses_none() {
    let mut random = Random::new(4);
    let (sim, files) = machine();
    let entries = random_entries(&mut random, 2000, 200);
    let meta = write(&files, options(8192, false), &entries).unwrap();
    let segment = open(&files, &cache(64 << 20), &meta).unwrap();
    let reads = || sim.profile().read().count;
    for owned in entries.iter().step_by(50) {
        let before = reads();
        check_get(&segment, &entries, &owned.0, u64::MAX).unwrap();
        assert!(reads() <= before + 1);
        check_get(&segment, &entries, &owned.0, u64::MAX).unwrap();
        assert!(reads() <= before + 1);
    }
    let before = reads();
    for i in 0..1000_u32 {
        check_get(&segment, &entries, format!("user/x{i}").as_bytes(), u64::MAX).unwrap();
    }
    assert!(reads() - before < 20, "the filter lets few through");
}
