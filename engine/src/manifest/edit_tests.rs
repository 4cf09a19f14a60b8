//! Edits as bytes: round trips, and bytes that are no edits.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::read::cursor_contract::runner;

fn any_segment() -> impl Strategy<Value = SegmentMeta> {
    let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
    let seqs = (any::<u64>(), any::<u64>(), any::<u64>());
    let keys = (vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..20));
    (numbers, seqs, keys).prop_map(|(numbers, seqs, keys)| SegmentMeta {
        id: numbers.0,
        keyspace: numbers.1,
        size_bytes: numbers.2,
        entries: numbers.3,
        tombstones: numbers.4,
        footer_crc: numbers.5,
        min_seq: Seq::new(seqs.0),
        max_seq: Seq::new(seqs.1),
        raw_bytes: seqs.2,
        smallest: keys.0.into(),
        largest: keys.1.into(),
    })
}

fn any_bounds() -> impl Strategy<Value = KeyBounds> {
    let key = || vec(any::<u8>(), 0..20);
    (key(), proptest::option::of(key()))
        .prop_map(|(from, upto)| KeyBounds { from: from.into(), upto: upto.map(Into::into) })
}

fn any_pieces() -> impl Strategy<Value = Vec<PieceMeta>> {
    let piece = (any_segment(), any_bounds()).prop_map(|(segment, bounds)| PieceMeta { segment, bounds });
    vec(piece, 0..3)
}

fn any_merged() -> impl Strategy<Value = Merged> {
    (any_bounds(), any::<[u64; 3]>(), any_pieces()).prop_map(|(stretch, stamps, out)| {
        let [newest, oldest, into] = stamps.map(Seq::new);
        Merged { stretch, newest, oldest, into, out }
    })
}

fn any_incarnation() -> impl Strategy<Value = Edit> {
    (any::<[u64; 5]>(), any::<u32>()).prop_map(
        |([store_id, start, ring, ring_bytes, log_file_bytes], number)| {
            Edit::Incarnation(Incarnation {
                store_id,
                number,
                start: Seq::new(start),
                ring,
                ring_bytes,
                log_file_bytes,
            })
        },
    )
}

fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(version, features, manifest_bytes)| {
            Edit::Format(Format { version, features, manifest_bytes })
        }),
        any_incarnation(),
        (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(next_file, next_epoch, next_keyspace)| {
            Edit::Counters { next_file, next_epoch, next_keyspace }
        }),
        (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(id, epoch, start)| Edit::FileActivated(
            ActiveFile { id, epoch, start: Seq::new(start) }
        )),
        (any::<u64>(), vec(any::<u64>(), 0..4))
            .prop_map(|(at, retired)| Edit::Horizon { at: Seq::new(at), retired }),
        (any::<u32>(), ".{0,20}").prop_map(|(keyspace, name)| Edit::KeyspaceCreated { keyspace, name }),
        any::<u32>().prop_map(|keyspace| Edit::KeyspaceDropped { keyspace }),
        any::<u64>().prop_map(|file_bytes| Edit::RingGrown { file_bytes }),
        vec((any::<u64>(), any::<u64>()), 0..4).prop_map(|origins| Edit::Origins(
            origins.into_iter().map(|(below, store_id)| Origin { below, store_id }).collect()
        )),
        (any::<u32>(), any::<u64>(), any_pieces()).prop_map(|(keyspace, to, pieces)| Edit::Flushed {
            keyspace,
            to: Seq::new(to),
            pieces
        }),
        (any::<u32>(), any_merged()).prop_map(|(keyspace, merged)| Edit::Merged { keyspace, merged }),
    ]
}

/// All lists, as the manifest reads them; `None` at the first bytes that are no edit.
fn decode(bytes: &[u8]) -> Option<Vec<Vec<Edit>>> {
    let mut reader = Reader::new(bytes);
    let mut lists = Vec::new();
    while !reader.is_empty() {
        let count = decode_count(&mut reader)?;
        lists.push((0..count).map(|_| decode_edit(&mut reader)).collect::<Option<_>>()?);
    }
    Some(lists)
}

#[test]
fn encoded_edits_are_decoded_to_the_same() {
    let mut runner = runner(256);
    runner
        .run(&vec(vec(any_edit(), 0..4), 0..4), |lists| {
            let mut bytes = Vec::new();
            for edits in &lists {
                encode(edits, &mut bytes);
            }
            prop_assert_eq!(decode(&bytes), Some(lists));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_list_that_is_cut_anywhere_is_none() {
    let mut runner = runner(64);
    runner
        .run(&vec(any_edit(), 1..4), |edits| {
            let mut bytes = Vec::new();
            encode(&edits, &mut bytes);
            for len in 1..bytes.len() {
                prop_assert_eq!(decode(&bytes[..len]), None, "cut at {}", len);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_flipped_bit_makes_decoding_panic_or_gives_the_same_edits() {
    let mut runner = runner(32);
    runner
        .run(&vec(any_edit(), 1..3), |edits| {
            let mut bytes = Vec::new();
            encode(&edits, &mut bytes);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                prop_assert_ne!(decode(&bytes), Some(vec![edits.clone()]), "bit {}", bit);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn arbitrary_bytes_do_not_make_decoding_panic() {
    let mut runner = runner(512);
    runner
        .run(&vec(prop_oneof![0..12_u8, any::<u8>()], 0..200), |bytes| {
            let _ = decode(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn an_unknown_tag_and_a_name_that_is_no_text_are_refused() {
    assert_eq!(decode(&[1, 0, 0, 0, 200]), None);
    let mut bytes = Vec::new();
    encode(&[Edit::KeyspaceCreated { keyspace: 1, name: "ab".to_owned() }], &mut bytes);
    assert!(decode(&bytes).is_some());
    let last = bytes.len() - 1;
    bytes[last] = 0xFF;
    assert_eq!(decode(&bytes), None);
}
