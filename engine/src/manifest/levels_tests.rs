//! Merges: the remaining parts of their inputs, and refused merges. No sequence of merges changes the newest entry of a key.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::read::cursor_contract::runner;

fn segment(id: u64, keys: (&str, &str), max_seq: u64) -> SegmentMeta {
    SegmentMeta {
        id,
        keyspace: 1,
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

fn bounds(from: &str, upto: &str) -> KeyBounds {
    let upto = (!upto.is_empty()).then(|| upto.to_owned().into());
    KeyBounds { from: from.to_owned().into(), upto }
}

fn piece(id: u64, keys: (&str, &str), inside: (&str, &str)) -> PieceMeta {
    PieceMeta { segment: segment(id, keys, 5), bounds: bounds(inside.0, inside.1) }
}

/// Each run as its stamp and its pieces: `id[from,upto)`.
fn shown(levels: &Levels) -> String {
    let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    let piece = |piece: &PieceMeta| {
        let upto = piece.bounds.upto.as_ref().map_or(String::new(), |upto| text(upto));
        format!("{}[{},{})", piece.segment.id, text(&piece.bounds.from), upto)
    };
    let run = |run: &RunMeta| {
        let pieces: Vec<String> = run.pieces.iter().map(piece).collect();
        format!("{}: {}", run.stamp.get(), pieces.join(" "))
    };
    levels.runs().iter().map(run).collect::<Vec<_>>().join("; ")
}

fn three_runs() -> Levels {
    let mut levels = Levels::default();
    levels.add(BOTTOM, &[piece(1, ("a", "f"), ("", "")), piece(2, ("h", "m"), ("", ""))]).unwrap();
    levels.add(Seq::new(32), &[piece(3, ("b", "k"), ("", ""))]).unwrap();
    levels.add(Seq::new(64), &[piece(4, ("c", "d"), ("", ""))]).unwrap();
    levels
}

fn merged(stretch: (&str, &str), stamps: [u64; 3], out: Vec<PieceMeta>) -> Merged {
    let [newest, oldest, into] = stamps.map(Seq::new);
    Merged { stretch: bounds(stretch.0, stretch.1), newest, oldest, into, out }
}

#[test]
fn a_merge_leaves_the_parts_of_its_inputs_outside_its_stretch() {
    let table = [
        (("", ""), [64, 0, 0], ""),
        (("", ""), [64, 32, 64], "0: 1[,) 2[,)"),
        (("c", "i"), [64, 0, 0], "32: 3[,c) 3[i,); 0: 1[,c) 2[i,)"),
        (("c", "i"), [32, 32, 32], "64: 4[,); 32: 3[,c) 3[i,); 0: 1[,) 2[,)"),
        (("", "b"), [64, 0, 0], "64: 4[,); 32: 3[,); 0: 1[b,) 2[,)"),
        (("d", ""), [64, 0, 0], "64: 4[,d); 32: 3[,d); 0: 1[,d)"),
        (("da", "i"), [64, 0, 0], "64: 4[,); 32: 3[,da) 3[i,); 0: 1[,da) 2[i,)"),
        // The last key of a segment and the key behind it.
        (("k", "ka"), [32, 32, 32], "64: 4[,); 32: 3[,k); 0: 1[,) 2[,)"),
        (("ka", ""), [64, 0, 0], "64: 4[,); 32: 3[,); 0: 1[,) 2[,ka)"),
    ];
    for (stretch, stamps, expected) in table {
        let mut levels = three_runs();
        assert_eq!(levels.merge(&merged(stretch, stamps, vec![])), Ok(()), "{stretch:?}");
        assert_eq!(shown(&levels), expected, "{stretch:?} {stamps:?}");
        assert_eq!(levels.check(1, Seq::new(64)), Ok(()), "{stretch:?}");
    }
}

#[test]
fn an_output_stands_where_its_stamp_says() {
    let mut levels = three_runs();
    let out = vec![piece(9, ("c", "h"), ("", ""))];
    levels.merge(&merged(("c", "i"), [64, 32, 64], out)).unwrap();
    assert_eq!(shown(&levels), "64: 9[,); 32: 3[,c) 3[i,); 0: 1[,) 2[,)");
    let out = vec![piece(10, ("a", "b"), ("", ""))];
    levels.merge(&merged(("a", "c"), [64, 0, 0], out)).unwrap();
    assert_eq!(shown(&levels), "64: 9[,); 32: 3[i,); 0: 10[,) 1[c,) 2[,)");
    assert_eq!(levels.check(1, Seq::new(64)), Ok(()));
}

#[test]
fn a_part_of_a_file_moves_down_where_nothing_older_lies_below_it() {
    let mut levels = Levels::default();
    levels.add(BOTTOM, &[piece(1, ("a", "c"), ("", ""))]).unwrap();
    levels.add(Seq::new(32), &[piece(3, ("b", "k"), ("", ""))]).unwrap();
    levels.merge(&merged(("d", ""), [32, 32, 0], vec![piece(3, ("b", "k"), ("d", ""))])).unwrap();
    assert_eq!(shown(&levels), "32: 3[,d); 0: 1[,) 3[d,)");
    assert_eq!(levels.check(1, Seq::new(64)), Ok(()));
    assert_eq!(levels.segments().map(|segment| segment.id).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn merges_that_do_not_fit_are_refused() {
    let out = |from, upto| vec![piece(9, (from, upto), ("", ""))];
    let table = [
        (merged(("x", ""), [64, 0, 0], vec![]), "a merge has no input"),
        (merged(("", ""), [31, 1, 31], vec![]), "a merge has no input"),
        (merged(("c", "i"), [64, 0, 0], out("b", "d")), "the output of a merge leaves its stretch"),
        (merged(("c", "i"), [64, 0, 0], out("d", "i")), "the output of a merge leaves its stretch"),
        (merged(("c", "i"), [64, 32, 65], out("c", "d")), "a merge changes the order of entries"),
        // Below the run with stamp 32, which is older.
        (merged(("c", "i"), [64, 64, 0], out("c", "d")), "a merge changes the order of entries"),
    ];
    for (merged, expected) in table {
        assert_eq!(three_runs().merge(&merged), Err(expected), "{merged:?}");
    }
}

#[test]
fn levels_that_are_not_sound_are_refused() {
    let reach = ("b", "k");
    let one = |inside| vec![(32, vec![piece(3, reach, inside)])];
    let table = [
        (one(("c", "d")), Ok(())),
        (one(("k", "")), Ok(())),
        (one(("b", "")), Err("bounds are not inside the reach of their segment")),
        (one(("ka", "")), Err("bounds are not inside the reach of their segment")),
        (one(("", "b")), Err("bounds are not inside the reach of their segment")),
        (one(("", "l")), Err("bounds are not inside the reach of their segment")),
        (one(("d", "d")), Err("bounds are not inside the reach of their segment")),
        (
            vec![(32, vec![piece(3, reach, ("", "d")), piece(4, ("c", "z"), ("", ""))])],
            Err("pieces of one run overlap"),
        ),
        (vec![(32, vec![piece(3, reach, ("", "d")), piece(3, reach, ("d", ""))])], Ok(())),
        (
            vec![(32, vec![piece(3, reach, ("", "d"))]), (64, vec![piece(3, reach, ("c", ""))])],
            Err("a file number is used twice"),
        ),
        (vec![(0, vec![piece(3, reach, ("", "d"))]), (64, vec![piece(3, reach, ("d", ""))])], Ok(())),
        (vec![(5, one(("", ""))[0].1.clone())], Err("a segment holds entries that are not below its stamp")),
        (vec![(0, one(("", ""))[0].1.clone())], Ok(())),
        (vec![(96, one(("", ""))[0].1.clone())], Err("a stamp is above the flushed position")),
    ];
    for (runs, expected) in table {
        let mut levels = Levels::default();
        for (stamp, pieces) in &runs {
            levels.add(Seq::new(*stamp), pieces).unwrap();
        }
        assert_eq!(levels.check(1, Seq::new(64)), expected, "{runs:?}");
    }
}

/// The number of different keys, each of one letter.
const KEYS: u8 = 6;

fn key(nth: u8) -> String {
    char::from(b'a' + nth).to_string()
}

/// A model of one flush: the keys that it wrote.
type Flush = Vec<u8>;

/// A model of each file by its number: its keys, and the flush that wrote each of them.
type Contents = BTreeMap<u64, BTreeMap<u8, u64>>;

/// The flush that a read of `nth` finds first, newest run first.
fn newest(levels: &Levels, contents: &Contents, nth: u8) -> Option<u64> {
    let key = key(nth);
    let holds = |piece: &&PieceMeta| piece.lower() <= key.as_bytes() && !piece.ends_by(key.as_bytes());
    let found = |run: &RunMeta| {
        let piece = run.pieces.iter().find(holds)?;
        contents[&piece.segment.id].get(&nth).copied()
    };
    levels.runs().iter().find_map(found)
}

/// Merges the entries of the interval's pieces inside the stretch, newest first, as a job does.
fn merge(levels: &mut Levels, contents: &mut Contents, (from, upto): (u8, u8), runs: (usize, usize)) {
    let Some(inputs) = levels.runs().get(runs.0..=runs.1) else { return };
    let is_bottom = runs.1 + 1 == levels.runs().len();
    let (newest_stamp, oldest) = (inputs[0].stamp, inputs[inputs.len() - 1].stamp);
    let (oldest, into) = if is_bottom { (BOTTOM, BOTTOM) } else { (oldest, newest_stamp) };
    let id = contents.keys().max().unwrap() + 1;
    let only = Levels { runs: inputs.to_vec() };
    let kept: BTreeMap<u8, u64> =
        (from..upto).filter_map(|nth| Some((nth, newest(&only, contents, nth)?))).collect();
    let ends = kept.keys().next().zip(kept.keys().last());
    let out = ends.map(|(first, last)| piece(id, (&key(*first), &key(*last)), ("", "")));
    let out = out.map(|mut piece| {
        piece.segment.max_seq = Seq::new(newest_stamp.get() - u64::from(newest_stamp != BOTTOM));
        piece
    });
    contents.insert(id, kept.clone());
    let stretch = bounds(&key(from), &key(upto));
    let merged = Merged { stretch, newest: newest_stamp, oldest, into, out: out.into_iter().collect() };
    if levels.merge(&merged).is_err() {
        assert!(kept.is_empty(), "only a merge of nothing is refused");
    }
}

#[test]
fn no_merge_of_any_stretch_and_interval_changes_the_newest_entry() {
    let flush = vec(0..KEYS, 1..6);
    let job = (0..KEYS, 1..=KEYS, 0..4_usize, 0..4_usize);
    let step = (proptest::option::of(flush), job);
    runner(512)
        .run(&vec(step, 1..25), |steps| {
            let (mut levels, mut contents) = (Levels::default(), Contents::from([(0, BTreeMap::new())]));
            let mut written: BTreeMap<u8, u64> = BTreeMap::new();
            for (nth, (flush, (from, len, first, count))) in steps.into_iter().enumerate() {
                let stamp = 32 * (nth as u64 + 1);
                if let Some(keys) = flush {
                    let keys: BTreeMap<u8, u64> = Flush::into_iter(keys).map(|key| (key, stamp)).collect();
                    written.extend(&keys);
                    let id = contents.keys().max().unwrap() + 1;
                    let ends = (*keys.keys().next().unwrap(), *keys.keys().last().unwrap());
                    let mut flushed = piece(id, (&key(ends.0), &key(ends.1)), ("", ""));
                    flushed.segment.max_seq = Seq::new(stamp - 1);
                    contents.insert(id, keys);
                    levels.add(Seq::new(stamp), &[flushed]).unwrap();
                } else {
                    merge(&mut levels, &mut contents, (from, from + len), (first, first + count));
                }
                prop_assert_eq!(levels.check(1, Seq::new(u64::MAX)), Ok(()));
                for nth in 0..KEYS {
                    prop_assert_eq!(newest(&levels, &contents, nth), written.get(&nth).copied());
                }
            }
            Ok(())
        })
        .unwrap();
}
