//! Reads of clipped pieces, of several pieces of one file and of all stamps, against the entries themselves: merges of
//! every stretch and interval, though no job of the store takes a stretch yet.

use std::cell::Cell;
use std::path::Path;

use aio::{Backend, SimBackend};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::base::key::{Kind, Seq};
use crate::base::range::KeyBounds;
use crate::compaction::job;
use crate::compaction::output::{NEVER, Output, open_segments, write_run};
use crate::compaction::retain::{Retain, Tombstones};
use crate::io::background::JobKind;
use crate::io::files::Files;
use crate::io::lane::Lane;
use crate::manifest::levels::{Levels, Merged, PieceMeta};
use crate::memtable::ArenaPool;
use crate::read::cursor_contract::{Owned, VecCursor, check, runner, sort};
use crate::read::multi_get::multi_get_with;
use crate::segment::{BlockCache, SegmentMeta};
use crate::tree::superversion::Tree;

/// One keyspace on a simulated disk, beside all that was ever written to it.
struct Model {
    sim: SimBackend,
    files: Arc<Files>,
    cache: Arc<BlockCache>,
    segment_bytes: u64,
    numbers: Cell<u64>,
    levels: Levels,
    tree: Tree,
    written: Vec<Owned>,
    end: u64,
}

/// Every position is a snapshot, so that merges keep every entry.
fn keep_all() -> Retain {
    Retain::new((0..=400).map(Seq::new).collect(), Tombstones::Keep)
}

impl Model {
    fn new(segment_bytes: u64, cache_bytes: u64) -> Model {
        let sim = SimBackend::new(1);
        for dir in ["/store", "/store/segments"] {
            sim.make_dir(Path::new(dir)).unwrap();
        }
        Model {
            files: Arc::new(Files::new(Arc::new(sim.clone()), Path::new("/store"), 1 << 20)),
            sim,
            cache: Arc::new(BlockCache::new(cache_bytes)),
            segment_bytes,
            numbers: Cell::new(1),
            levels: Levels::default(),
            tree: Tree::new(1, "k", &Arc::new(ArenaPool::new(1 << 16, 1 << 20))),
            written: Vec::new(),
            end: 0,
        }
    }

    fn write(&self, entries: Vec<Owned>) -> (Vec<PieceMeta>, Vec<Arc<crate::segment::Segment>>) {
        let output = Output {
            files: &self.files,
            cache: &self.cache,
            store_id: 1,
            keyspace: 1,
            segment_bytes: self.segment_bytes,
            block_bytes: 512,
            compress: false,
            filter_bits: 14,
            leaving_bytes: 0,
        };
        let number = || self.numbers.replace(self.numbers.get() + 1);
        let metas: Vec<SegmentMeta> = write_run(
            &output,
            &Lane::new(output.files, JobKind::Flush).unwrap(),
            &number,
            (VecCursor::new(entries), &mut keep_all()),
            NEVER,
        )
        .unwrap();
        let opened = open_segments(&output, &metas, NEVER).unwrap();
        (metas.into_iter().map(PieceMeta::whole).collect(), opened)
    }

    /// Writes these keys and flushes them; every third is a tombstone.
    fn flush(&mut self, keys: &[Vec<u8>]) {
        let entry = |(key, seq): (&Vec<u8>, u64)| {
            let kind = if seq % 3 == 2 { Kind::Delete } else { Kind::Put };
            let value = if kind == Kind::Put { vec![seq.to_le_bytes()[0]; 60] } else { Vec::new() };
            Owned { key: key.clone(), seq: Seq::new(seq), kind, value }
        };
        let mut entries: Vec<Owned> = keys.iter().zip(self.end..).map(entry).collect();
        sort(&mut entries);
        self.end += keys.len() as u64;
        self.written.extend(entries.iter().cloned());
        sort(&mut self.written);
        let (pieces, opened) = self.write(entries);
        self.levels.add(Seq::new(self.end), &pieces).unwrap();
        self.tree.install(&self.levels, opened, None);
    }

    /// Merges the runs `first..=last`, as far as they exist, inside a stretch. `false`: there was nothing.
    fn merge(&mut self, stretch: &KeyBounds, (first, last): (usize, usize)) -> bool {
        let runs = self.levels.runs();
        let Some(newest) = runs.get(first).map(|run| run.stamp) else { return false };
        let oldest = runs.get(last.max(first)).filter(|run| run.stamp != runs[runs.len() - 1].stamp);
        let oldest = oldest.map_or(BOTTOM, |run| run.stamp);
        let zones = Arc::clone(&self.tree.load().zones);
        let inputs: Vec<_> =
            zones.runs().into_iter().filter(|run| (oldest..=newest).contains(&run.stamp())).collect();
        drop(zones);
        let mut cursor = Merge::new(inputs.iter().map(|run| run.cursor(false)));
        let mut entries = Vec::new();
        cursor.seek(b"").unwrap();
        while let Some(entry) = cursor.entry() {
            if stretch.holds(entry.key) {
                entries.push(Owned::from(entry));
            }
            cursor.next().unwrap();
        }
        drop(cursor);
        let into = if oldest == BOTTOM { BOTTOM } else { newest };
        let (out, opened) = self.write(entries);
        let merged = Merged { stretch: stretch.clone(), newest, oldest, into, out };
        if self.levels.merge(&merged).is_err() {
            return false;
        }
        self.tree.install(&self.levels, opened, None);
        job::retire(&inputs, &self.levels);
        true
    }

    /// Compares all reads with the written entries.
    fn check(&self) {
        assert_eq!(self.levels.check(1, Seq::new(1 << 20)), Ok(()));
        let superversion = self.tree.load();
        check(&self.written, &mut || Box::new(superversion.cursor()));
        let mut keys: Vec<Vec<u8>> = self.written.iter().map(|entry| entry.key.clone()).collect();
        keys.dedup();
        keys.extend([b"".to_vec(), b"zz".to_vec(), b"bb".to_vec()]);
        for below in [0, 1, self.end / 2, self.end] {
            let below = Seq::new(below);
            let expected: Vec<_> = keys.iter().map(|key| self.newest(key, below)).collect();
            let got: Vec<_> =
                keys.iter().map(|key| superversion.get_with(key, below, <[u8]>::to_vec).unwrap()).collect();
            assert_eq!(got, expected, "get below {below:?}");
            let mut many = vec![None; keys.len()];
            let found = |at: usize, value: Option<&[u8]>| many[at] = value.map(<[u8]>::to_vec);
            multi_get_with(&superversion, &keys, below, found).unwrap();
            assert_eq!(many, expected, "multi_get below {below:?}");
        }
    }

    fn newest(&self, key: &[u8], below: Seq) -> Option<Vec<u8>> {
        let newest = self.written.iter().find(|entry| entry.key == key && entry.seq < below)?;
        (newest.kind == Kind::Put).then(|| newest.value.clone())
    }

    /// The store ends, and every file that the levels name must be there, and no other.
    fn end(self) {
        let Model { sim, files, levels, tree, cache, .. } = self;
        drop(tree);
        drop(cache);
        let mut names = sim.list(&files.segments_dir()).unwrap();
        names.sort();
        let path = |meta: &SegmentMeta| format!("{:06}.seg", meta.id);
        let mut live: Vec<String> = levels.segments().map(path).collect();
        live.sort();
        assert_eq!(names, live, "files on the disk, and those that are named");
    }
}

/// Keys so that edges of stretches lie at them, between them and outside of all.
fn edges(keys: &[Vec<u8>]) -> Vec<KeyBounds> {
    let between = keys.iter().flat_map(|key| [key.clone(), [&key[..], b"\0"].concat()]);
    let mut all: Vec<Option<Vec<u8>>> = between.map(Some).collect();
    all.insert(0, Some(Vec::new()));
    all.push(None);
    let mut stretches = Vec::new();
    for (nth, from) in all.iter().enumerate() {
        for upto in &all[nth + 1..] {
            let Some(from) = from else { continue };
            stretches.push(KeyBounds { from: from.clone().into(), upto: upto.clone().map(Into::into) });
        }
    }
    stretches
}

fn letters(text: &str) -> Vec<Vec<u8>> {
    text.bytes().map(|letter| vec![letter]).collect()
}

#[test]
fn a_merge_of_any_stretch_and_interval_leaves_every_read_as_it_was() {
    for segment_bytes in [1, 1 << 20] {
        for stretch in edges(&letters("aceg")) {
            for interval in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)] {
                let mut model = Model::new(segment_bytes, 1 << 20);
                for keys in ["aceg", "cdea", "bgac"] {
                    model.flush(&letters(keys));
                }
                model.merge(&stretch, interval);
                model.check();
                model.end();
            }
        }
    }
}

#[test]
fn a_second_merge_beside_across_and_inside_the_first_leaves_every_read_as_it_was() {
    let stretches = edges(&letters("ceg"));
    for (nth, first) in stretches.iter().enumerate() {
        for second in stretches.iter().skip(nth % 3).step_by(3) {
            let mut model = Model::new(1 << 20, 1 << 20);
            for keys in ["acefg", "cdea", "bgac"] {
                model.flush(&letters(keys));
            }
            model.merge(first, (0, 2));
            model.flush(&letters("aeh"));
            model.merge(second, (0, 1));
            model.check();
            model.end();
        }
    }
}

#[test]
fn a_flush_shares_the_lists_of_zones_that_it_does_not_touch() {
    let mut model = Model::new(1, 1 << 20);
    let keys: Vec<Vec<u8>> = (0..200_u8).map(|key| vec![key + 1]).collect();
    model.flush(&keys);
    model.merge(&KeyBounds::all(), (0, 0));
    let before = Arc::clone(&model.tree.load().zones);
    assert_eq!(before.len(), 200, "each segment of the bottom run begins a zone");
    model.flush(&[vec![70], vec![90]]);
    let after = Arc::clone(&model.tree.load().zones);
    assert_eq!(after.shared_chunks(&before), 3, "of four, one was touched");
    model.check();
}

/// Keys of one to three letters, some of which share their first eight bytes.
fn any_keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let key = (0..24_u8, any::<bool>()).prop_map(|(nth, long)| {
        let prefix: &[u8] = if long { b"prefixes" } else { b"" };
        [prefix, &[b'a' + nth]].concat()
    });
    vec(key, 1..40)
}

fn any_stretch() -> impl Strategy<Value = KeyBounds> {
    (any_keys(), any::<bool>()).prop_map(|(mut keys, is_open)| {
        keys.sort();
        let from = if keys.len() % 4 == 0 { Vec::new() } else { keys[0].clone() };
        let upto = keys.pop().filter(|upto| !is_open && *upto > from);
        KeyBounds { from: from.into(), upto: upto.map(Into::into) }
    })
}

#[test]
fn any_sequence_of_flushes_and_merges_leaves_every_read_as_it_was() {
    let step = prop_oneof![
        any_keys().prop_map(|keys| (Some(keys), None)),
        (any_stretch(), 0..3_usize, 0..4_usize)
            .prop_map(|(stretch, first, len)| (None, Some((stretch, (first, first + len))))),
    ];
    // With little memory index and filter of the segments are paged.
    let cases = (vec(step, 1..10), prop_oneof![Just(1_u64), Just(700), Just(1 << 20)], any::<bool>());
    runner(96)
        .run(&cases, |(steps, segment_bytes, is_small)| {
            let mut model = Model::new(segment_bytes, if is_small { 1 } else { 1 << 20 });
            for (keys, merge) in steps {
                if let Some(keys) = keys.filter(|keys| model.end + (keys.len() as u64) < 300) {
                    model.flush(&keys);
                }
                if let Some((stretch, interval)) = merge {
                    model.merge(&stretch, interval);
                }
            }
            model.check();
            model.end();
            Ok(())
        })
        .unwrap();
}

/// Each bug of [`Bug::IN_UNITS`](crate::base::planted::Bug::IN_UNITS) makes one of the tests of scans or jobs fail, in a process of its own.
#[cfg(planted)]
#[test]
fn every_planted_bug_is_found() {
    let tests = ["tree::scan::tests::a_", "compaction::job::tests::a_"];
    let run = |planted: Option<&str>| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(tests).env_remove("ESKER_PLANTED");
        let output = child.envs(planted.map(|bug| ("ESKER_PLANTED", bug))).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (passes, said) = run(None);
    assert!(passes && !said.contains(" 0 passed"), "without a bug the tests run and pass: {said}");
    for (bug, damage) in crate::base::planted::Bug::IN_UNITS {
        assert!(!run(Some(bug)).0, "{bug} was not found: {damage}");
    }
}
