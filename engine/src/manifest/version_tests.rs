//! Versions: the list of edits that a version writes of itself builds the same version. Edits that break a rule are refused.

use std::ops::RangeInclusive;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::base::range::KeyBounds;
use crate::manifest::levels::RunMeta;
use crate::read::cursor_contract::runner;

fn segment(id: u64, keyspace: u32, keys: (&str, &str), max_seq: u64) -> SegmentMeta {
    SegmentMeta {
        id,
        keyspace,
        size_bytes: 4096,
        entries: 1,
        tombstones: 0,
        min_seq: Seq::ZERO,
        max_seq: Seq::new(max_seq),
        raw_bytes: 10,
        footer_crc: 7,
        smallest: keys.0.to_owned().into(),
        largest: keys.1.to_owned().into(),
    }
}

fn built(edits: &[Edit]) -> Result<Version, &'static str> {
    let mut version = Version::default();
    edits.iter().try_for_each(|edit| version.apply(edit))?;
    version.check()?;
    Ok(version)
}

/// One step of a random store. The numbers choose among the existing keyspaces, files and runs.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Drop(usize),
    Flush(usize, usize),
    Merge(usize, usize, usize, usize),
    Move(usize, usize),
    Activate,
    Horizon(usize),
    Incarnation,
    Copied(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let any = || 0..8_usize;
    prop_oneof![
        1 => Just(Step::Create),
        1 => any().prop_map(Step::Drop),
        4 => (any(), 0..3_usize).prop_map(|(keyspace, segments)| Step::Flush(keyspace, segments)),
        4 => (any(), any(), any(), 0..40_usize)
            .prop_map(|(keyspace, from, len, edges)| Step::Merge(keyspace, from, len, edges)),
        2 => (any(), 0..40_usize).prop_map(|(keyspace, edges)| Step::Move(keyspace, edges)),
        2 => Just(Step::Activate),
        1 => any().prop_map(Step::Horizon),
        1 => Just(Step::Incarnation),
        1 => (0..8_u64).prop_map(Step::Copied),
    ]
}

/// Up to three segments side by side, with fresh numbers.
fn new_pieces(version: &Version, keyspace: u32, segments: usize, position: u64) -> Vec<PieceMeta> {
    let keys = [("a", "c"), ("d", "d"), ("da", "z")];
    let numbered = keys.iter().take(segments).zip(version.next_file..);
    numbered.map(|(keys, id)| PieceMeta::whole(segment(id, keyspace, *keys, position))).collect()
}

/// The stretches that merges take: with edges at, between and beyond the keys of [`new_pieces`].
fn stretch(nth: usize) -> KeyBounds {
    let edges = ["", "a", "b", "c", "ca", "d", "da", "m", "z", "zz"];
    let from = edges[nth % edges.len()];
    let upto = edges.get(nth % edges.len() + 1 + nth / edges.len()).copied();
    KeyBounds { from: from.into(), upto: upto.map(Into::into) }
}

/// A merge of up to three neighbouring runs inside a stretch, with an output that fills it as far as segments reach.
fn merge(version: &Version, keyspace: u32, from: usize, len: usize, stretch: KeyBounds) -> Option<Edit> {
    let runs = version.keyspaces.get(&keyspace)?.levels.runs();
    let inputs = runs.get(from..from + 1 + len % 3)?;
    let is_bottom = from + inputs.len() == runs.len();
    let (newest, oldest) = (inputs.first()?.stamp, inputs.last()?.stamp);
    let (oldest, into) = if is_bottom { (Seq::ZERO, Seq::ZERO) } else { (oldest, newest) };
    let highest = inputs.iter().flat_map(RunMeta::segments).map(|segment| segment.max_seq.get()).max()?;
    let upto = stretch.upto.as_deref().unwrap_or(b"zzz");
    let lies_inside =
        |piece: &PieceMeta| piece.segment.smallest >= stretch.from && piece.segment.largest < upto;
    let mut out = new_pieces(version, keyspace, 3, highest);
    out.retain(lies_inside);
    let mut edited = version.keyspaces[&keyspace].levels.clone();
    let merged = Merged { stretch, newest, oldest, into, out };
    edited.merge(&merged).ok()?;
    Some(Edit::Merged { keyspace, merged })
}

/// Moves the part of the oldest run inside a stretch to the bottom, so that one file is in two runs.
fn move_down(version: &Version, keyspace: u32, stretch: KeyBounds) -> Option<Edit> {
    let levels = &version.keyspaces.get(&keyspace)?.levels;
    let oldest = levels.runs().last().filter(|run| run.stamp != Seq::ZERO)?;
    let first = oldest.pieces.first().filter(|piece| piece.bounds == KeyBounds::all())?;
    let SegmentMeta { smallest, largest, .. } = &first.segment;
    let inside = |bound: &Bytes| bound > smallest && bound <= largest;
    let upto = stretch.upto.filter(inside);
    let from = if inside(&stretch.from) { stretch.from } else { Bytes::new() };
    let bounds = KeyBounds { from, upto };
    let moved = PieceMeta { segment: first.segment.clone(), bounds: bounds.clone() };
    let upto = bounds.upto.or_else(|| Some([&largest[..], b"\0"].concat().into()));
    let stretch = KeyBounds { from: bounds.from, upto };
    let merged =
        Merged { stretch, newest: oldest.stamp, oldest: oldest.stamp, into: Seq::ZERO, out: vec![moved] };
    Some(Edit::Merged { keyspace, merged })
}

/// The edit of a step, if it is possible. `position` is a valid start of a record and rises with every step.
fn edit(version: &Version, step: Step, position: u64) -> Option<Edit> {
    let keyspace = |nth: usize| version.keyspaces.keys().nth(nth).copied();
    Some(match step {
        Step::Create => {
            Edit::KeyspaceCreated { keyspace: version.next_keyspace, name: format!("k{position}") }
        }
        Step::Drop(nth) => Edit::KeyspaceDropped { keyspace: keyspace(nth)? },
        Step::Flush(nth, segments) => {
            let pieces = new_pieces(version, keyspace(nth)?, segments, position);
            Edit::Flushed { keyspace: keyspace(nth)?, to: Seq::new(position + 32), pieces }
        }
        Step::Merge(nth, from, len, edges) => merge(version, keyspace(nth)?, from, len, stretch(edges))?,
        Step::Move(nth, edges) => move_down(version, keyspace(nth)?, stretch(edges))?,
        Step::Activate => Edit::FileActivated(ActiveFile {
            id: version.next_file,
            epoch: version.next_epoch,
            start: Seq::new(position),
        }),
        Step::Horizon(count) => Edit::Horizon {
            at: Seq::new(position),
            retired: version.logs.iter().take(count).map(|file| file.id).collect(),
        },
        Step::Incarnation => Edit::Incarnation(Incarnation {
            number: version.incarnation.number + 1,
            start: Seq::new(position),
            ..Incarnation::default()
        }),
        Step::Copied(store_id) => {
            let mut origins = version.origins.clone();
            let last = origins.last().map_or(0, |origin| origin.below);
            (last < version.next_file).then(|| origins.push(Origin { below: version.next_file, store_id }));
            Edit::Origins(origins)
        }
    })
}

#[test]
fn every_version_builds_itself_from_nothing() {
    let mut runner = runner(256);
    runner
        .run(&vec(any_step(), 0..60), |steps| {
            let mut version = Version { next_file: 1, next_epoch: 1, next_keyspace: 1, ..Version::default() };
            for (position, step) in steps.into_iter().enumerate() {
                let Some(edit) = edit(&version, step, position as u64 * 32) else { continue };
                prop_assert_eq!(version.apply(&edit), Ok(()), "{:?}", edit);
                prop_assert_eq!(version.check(), Ok(()), "after {:?}", edit);
                let rebuilt = built(&version.to_edits());
                prop_assert_eq!(rebuilt, Ok(version.clone()));
            }
            Ok(())
        })
        .unwrap();
}

fn created(keyspace: u32, name: &str) -> Edit {
    Edit::KeyspaceCreated { keyspace, name: name.to_owned() }
}

fn flushed_to(to: u64, segments: Vec<SegmentMeta>) -> Edit {
    let pieces = segments.into_iter().map(PieceMeta::whole).collect();
    Edit::Flushed { keyspace: 1, to: Seq::new(to), pieces }
}

fn flushed(segments: Vec<SegmentMeta>) -> Edit {
    flushed_to(96, segments)
}

fn merged(stamps: RangeInclusive<u64>, segments: Vec<SegmentMeta>) -> Edit {
    let out = segments.into_iter().map(PieceMeta::whole).collect();
    let (oldest, newest) = (Seq::new(*stamps.start()), Seq::new(*stamps.end()));
    let into = if oldest == Seq::ZERO { oldest } else { newest };
    Edit::Merged { keyspace: 1, merged: Merged { stretch: KeyBounds::all(), newest, oldest, into, out } }
}

fn activated(id: u64, epoch: u32, start: u64) -> Edit {
    Edit::FileActivated(ActiveFile { id, epoch, start: Seq::new(start) })
}

#[test]
fn edits_that_do_not_fit_are_refused() {
    let one = |id| vec![segment(id, 1, ("a", "b"), 5)];
    let two =
        |first: (&'static str, &'static str), second| vec![segment(8, 1, first, 5), segment(9, 1, second, 5)];
    let other = PieceMeta::whole(segment(3, 2, ("a", "b"), 5));
    let on_keyspace_two = Edit::Flushed { keyspace: 2, to: Seq::new(96), pieces: vec![other] };
    let cases: Vec<(Vec<Edit>, &str)> = vec![
        (vec![created(1, "x")], "a keyspace id is used twice"),
        (vec![Edit::KeyspaceDropped { keyspace: 1 }, created(1, "x")], "a keyspace id is used twice"),
        (vec![created(2, "one")], "two keyspaces have the same name"),
        (vec![Edit::KeyspaceDropped { keyspace: 9 }], "an unknown keyspace is dropped"),
        (vec![Edit::KeyspaceDropped { keyspace: 1 }, flushed(vec![])], "an unknown keyspace is flushed"),
        (
            vec![Edit::KeyspaceDropped { keyspace: 1 }, merged(0..=96, vec![])],
            "an unknown keyspace is merged",
        ),
        (vec![flushed(one(3)), flushed_to(128, one(3))], "a file number is used twice"),
        (vec![created(2, "two"), flushed(one(3)), on_keyspace_two], "a file number is used twice"),
        (vec![activated(3, 1, 0), flushed(one(3))], "a file number is used twice"),
        (vec![flushed(vec![segment(3, 2, ("a", "b"), 5)])], "a segment belongs to another keyspace"),
        (
            vec![flushed(vec![segment(3, 1, ("a", "b"), 100)])],
            "a segment holds entries above the flushed position",
        ),
        (vec![flushed(one(3)), flushed(one(4))], "a flushed run is not newer than all others"),
        (vec![flushed(two(("b", "c"), ("a", "a")))], "pieces of one run overlap"),
        (vec![flushed(two(("a", "b"), ("b", "c")))], "pieces of one run overlap"),
        (vec![flushed(vec![segment(3, 1, ("b", "a"), 5)])], "pieces of one run overlap"),
        (vec![merged(0..=96, one(4))], "a merge has no input"),
        (vec![flushed(one(3)), merged(97..=200, one(4))], "a merge has no input"),
        (vec![activated(3, 2, 0), activated(3, 3, 1)], "a log file or epoch is used twice"),
        (vec![activated(3, 2, 0), activated(4, 2, 1)], "a log file or epoch is used twice"),
        (vec![activated(3, 2, 5), activated(4, 3, 4)], "log files are not in stream order"),
    ];
    for (edits, expected) in cases {
        let mut all = vec![created(1, "one")];
        all.extend(edits);
        assert_eq!(built(&all), Err(expected), "{all:?}");
    }
}

#[test]
fn a_number_above_the_counter_is_refused() {
    let mut version = built(&[created(1, "one"), flushed(vec![segment(3, 1, ("a", "b"), 5)])]).unwrap();
    assert_eq!(version.next_file, 4);
    version.next_file = 3;
    assert_eq!(version.check(), Err("a file number above the counter is in use"));
}

#[test]
fn a_counter_at_its_end_is_refused() {
    let most = segment(u64::MAX - 1, 1, ("a", "b"), 5);
    let cases = [
        vec![created(u32::MAX, "last")],
        vec![created(u32::MAX - 1, "last but one")],
        vec![activated(3, MAX_EPOCH, 0)],
        vec![created(1, "one"), flushed(vec![most])],
    ];
    for edits in cases {
        assert_eq!(built(&edits), Err("a counter is used up"), "{edits:?}");
    }
}

#[test]
fn a_position_where_no_record_can_start_is_refused() {
    let horizon = |at| vec![Edit::Horizon { at: Seq::new(at), retired: Vec::new() }];
    let incarnation = |start| {
        vec![Edit::Incarnation(Incarnation { number: 1, start: Seq::new(start), ..Incarnation::default() })]
    };
    assert!(built(&horizon(64)).is_ok() && built(&incarnation(64)).is_ok());
    // The horizon becomes the least that keyspaces are flushed to.
    let flushed =
        |to| vec![created(1, "one"), Edit::Flushed { keyspace: 1, to: Seq::new(to), pieces: Vec::new() }];
    assert!(built(&flushed(64)).is_ok());
    for edits in [horizon(33), incarnation(33), flushed(33)] {
        assert_eq!(built(&edits), Err("a position is not where a record can start"), "{edits:?}");
    }
}

#[test]
fn an_incarnation_without_ring_bytes_is_refused_before_its_log_is_replayed() {
    let incarnation =
        |ring_bytes| vec![Edit::Incarnation(Incarnation { number: 1, ring_bytes, ..Incarnation::default() })];
    assert_eq!(built(&incarnation(4096)).unwrap().check_log(), Ok(()));
    assert_eq!(built(&incarnation(0)).unwrap().check_log(), Err("an incarnation has a ring of no bytes"));
    let there =
        |file_bytes| built(&[incarnation(8192), vec![Edit::RingGrown { file_bytes }]].concat()).unwrap();
    assert_eq!(there(4096).check_log(), Ok(()));
    for file_bytes in [0, 1, 4095, 4097] {
        let refused = there(file_bytes).check_log();
        assert_eq!(refused, Err("the file of a ring is not whole steps"), "{file_bytes}");
    }
}

#[test]
fn a_merge_takes_the_place_of_its_runs() {
    let run = |id| vec![segment(id, 1, ("a", "b"), 5)];
    let flushes = [
        created(1, "one"),
        flushed_to(32, run(3)),
        flushed_to(64, run(4)),
        flushed_to(96, run(5)),
        flushed_to(128, run(6)),
    ];
    let ids =
        |edits: &[Edit]| -> Vec<u64> { built(edits).unwrap().segments().map(|segment| segment.id).collect() };
    assert_eq!(ids(&flushes), [6, 5, 4, 3], "newest first");
    let with = |edit| [&flushes[..], &[edit]].concat();
    assert_eq!(ids(&with(merged(64..=96, run(7)))), [6, 7, 3]);
    assert_eq!(ids(&with(merged(0..=64, vec![]))), [6, 5], "the merge left no output");
}

#[test]
fn a_ring_file_is_never_longer_than_its_ring() {
    let mut version = Version::default();
    let incarnation = Incarnation { number: 1, ring_bytes: 4096, ..Incarnation::default() };
    version.apply(&Edit::Incarnation(incarnation)).unwrap();
    assert_eq!(version.ring_file_bytes, 4096, "a new incarnation has the full ring");
    version.apply(&Edit::RingGrown { file_bytes: 1024 }).unwrap();
    assert_eq!(version.ring_file_bytes, 1024);
    assert!(version.apply(&Edit::RingGrown { file_bytes: 4097 }).is_err());
}

#[test]
fn a_file_belongs_to_the_store_that_wrote_it() {
    let own = Incarnation { store_id: 9, ..Incarnation::default() };
    let mut version = Version { next_file: 20, incarnation: own, ..Version::default() };
    assert_eq!(version.origin_of(1), 9, "a store that is no copy wrote all of its files");
    let origins = [(5, 7), (12, 8)].map(|(below, store_id)| Origin { below, store_id });
    version.apply(&Edit::Origins(origins.to_vec())).unwrap();
    let stores = [1, 4, 5, 11, 12, 19].map(|file| version.origin_of(file));
    assert_eq!(stores, [7, 7, 8, 8, 9, 9]);
    assert_eq!(version.check(), Ok(()));
    version.origins[0].below = 12;
    assert_eq!(version.check(), Err("the origins of files are out of order"));
    version.origins = vec![Origin { below: 21, store_id: 7 }];
    assert_eq!(version.check(), Err("a file number that is not used yet belongs to another store"));
}
