//! Tests of the record payload.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::read::cursor_contract::{any_key, runner};

type OwnedOp = (u32, Vec<u8>, Option<Vec<u8>>);

fn any_ops() -> impl Strategy<Value = Vec<OwnedOp>> {
    let value = proptest::option::of(vec(any::<u8>(), 0..6));
    vec((0..3_u32, any_key(), value), 0..40)
}

fn as_op((keyspace, key, value): &OwnedOp) -> Op<'_> {
    match value {
        Some(value) => Op::put(*keyspace, key, value),
        None => Op::delete(*keyspace, key),
    }
}

/// Behind `prefix`, as in a record whose header stands in the same buffer.
fn encoded(prefix: &[u8], ops: &[OwnedOp]) -> Vec<u8> {
    let mut buffer = prefix.to_vec();
    let mut builder = OpsBuilder::begin(&mut buffer);
    for op in ops {
        builder.push(&mut buffer, as_op(op)).unwrap();
    }
    assert!(usize::try_from(builder.finish(&mut buffer)).unwrap() <= ops.len());
    buffer
}

fn decoded(payload: &[u8]) -> Result<Vec<OwnedOp>, Malformed> {
    let owned =
        |op: Op<'_>| (op.keyspace, op.key.to_vec(), (op.kind == Kind::Put).then(|| op.value.to_vec()));
    ops(payload).map(|op| op.map(owned)).collect()
}

/// Of each key only the last op, where it stands.
fn last_of_each(ops: &[OwnedOp]) -> Vec<OwnedOp> {
    let is_last = |(index, op): &(usize, &OwnedOp)| {
        !ops[index + 1..].iter().any(|later| (later.0, &later.1) == (op.0, &op.1))
    };
    ops.iter().enumerate().filter(is_last).map(|(_, op)| op.clone()).collect()
}

#[test]
fn the_bytes_are_those_of_the_table() {
    let ops = [(7, b"k".to_vec(), Some(b"val".to_vec())), (0x0102, b"gone".to_vec(), None)];
    let put = [0, 7, 0, 0, 0, 1, 0, 3, 0, 0, 0, b'k', b'v', b'a', b'l'];
    let delete = [1, 2, 1, 0, 0, 4, 0, b'g', b'o', b'n', b'e'];
    assert_eq!(encoded(b"", &ops), [&[2, 0, 0, 0][..], &put, &delete].concat());
    assert_eq!((as_op(&ops[0]).size_bytes(), as_op(&ops[1]).size_bytes()), (put.len(), delete.len()));
}

#[test]
fn the_last_op_on_a_key_wins_and_order_is_kept() {
    runner(2000)
        .run(&any_ops(), |ops| {
            let buffer = encoded(b"header", &ops);
            assert_eq!(&buffer[..6], b"header");
            assert_eq!(decoded(&buffer[6..]), Ok(last_of_each(&ops)));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_finished_payload_can_grow_and_be_finished_again() {
    runner(500)
        .run(&(any_ops(), any_ops()), |(first, second)| {
            let mut buffer = Vec::new();
            let mut builder = OpsBuilder::begin(&mut buffer);
            for half in [&first, &second] {
                for op in half {
                    builder.push(&mut buffer, as_op(op)).unwrap();
                }
                builder.finish(&mut buffer);
            }
            assert_eq!(decoded(&buffer), Ok(last_of_each(&[first, second].concat())));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_key_counts_once_at_every_moment() {
    runner(500)
        .run(&(any_ops(), 0..40_usize), |(ops, finished_at)| {
            let mut buffer = b"header".to_vec();
            let mut builder = OpsBuilder::begin(&mut buffer);
            for (at, op) in ops.iter().enumerate() {
                builder.push(&mut buffer, as_op(op)).unwrap();
                if at == finished_at {
                    // A commit that is refused leaves a finished payload, to which more is added.
                    builder.finish(&mut buffer);
                }
                let kept = last_of_each(&ops[..=at]);
                let bytes = kept.iter().map(|op| as_op(op).size_bytes()).sum::<usize>();
                assert_eq!(usize::try_from(builder.count()), Ok(kept.len()));
                assert_eq!(builder.finished_bytes(&buffer), COUNT_BYTES + bytes);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn keys_with_the_same_hash_are_told_apart() {
    let ops: Vec<OwnedOp> = (0..20_u8)
        .map(|number| (u32::from(number % 2), vec![1 + number / 2 % 5], Some(vec![number])))
        .collect();
    let mut buffer = Vec::new();
    let mut index = KeyIndex::default();
    let mut places = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        places.push(buffer.len());
        buffer.extend_from_slice(&encoded(b"", std::slice::from_ref(op))[COUNT_BYTES..]);
        let earlier = at.checked_sub(10).map(|earlier| places[earlier]);
        let key = (op.0, op.1.as_slice());
        assert_eq!(index.replace_hashed(&buffer, places[at], key, 7), earlier, "{op:?}");
    }
}

#[test]
fn a_key_that_is_written_again_and_again_takes_no_more_and_more_memory() {
    let mut buffer = Vec::new();
    let mut builder = OpsBuilder::begin(&mut buffer);
    builder.push(&mut buffer, Op::put(0, b"z", b"first")).unwrap();
    for number in 0..100_000_u64 {
        builder.push(&mut buffer, Op::put(0, b"k", &number.to_le_bytes())).unwrap();
    }
    assert_eq!(builder.count(), 2);
    assert!(buffer.capacity() < 4 * MOST_SUPERSEDED_BYTES, "{} bytes", buffer.capacity());
    assert_eq!(builder.finish(&mut buffer), 2);
    let last = (0, b"k".to_vec(), Some(99_999_u64.to_le_bytes().to_vec()));
    assert_eq!(decoded(&buffer), Ok(vec![(0, b"z".to_vec(), Some(b"first".to_vec())), last]));
}

#[test]
fn a_refused_op_leaves_the_payload_as_it_was() {
    let mut buffer = Vec::new();
    let mut builder = OpsBuilder::begin(&mut buffer);
    builder.push(&mut buffer, Op::put(1, &vec![1; MAX_KEY_BYTES], b"v")).unwrap();
    let before = buffer.clone();
    let error = builder.push(&mut buffer, Op::delete(1, b"")).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    let error = builder.push(&mut buffer, Op::delete(1, &vec![1; MAX_KEY_BYTES + 1])).unwrap_err();
    assert!(matches!(error, Error::TooLarge { found_bytes: 65_536, limit_bytes: 65_535, .. }), "{error}");
    assert_eq!(buffer, before);
    assert_eq!(builder.finish(&mut buffer), 1);
}

#[test]
fn truncation_at_every_byte_is_noticed() {
    let ops = [(1, b"abc".to_vec(), Some(b"value".to_vec())), (2, b"de".to_vec(), None)];
    let payload = encoded(b"", &ops);
    for len in 0..payload.len() {
        let malformed = decoded(&payload[..len]).expect_err("cut");
        assert!(malformed.offset <= len, "cut to {len}: {malformed:?}");
    }
    let longer = [payload.as_slice(), &[0]].concat();
    let what = "bytes after the last op";
    assert_eq!(decoded(&longer), Err(Malformed { offset: payload.len(), what }));
}

#[test]
fn the_reader_ends_after_the_first_malformed_op() {
    for payload in [&[][..], &[1, 0, 0], &[3, 0, 0, 0, 9, 9, 9], &[0, 0, 0, 0, 1]] {
        let mut read = ops(payload);
        assert!(read.next().is_some_and(|op| op.is_err()), "{payload:?}");
        assert!(read.next().is_none(), "{payload:?}");
    }
    assert_eq!(decoded(&[0, 0, 0, 0]), Ok(vec![]));
}

/// With any bit flipped, reading ends without a panic, and an accepted payload has the meaning of its bytes.
#[test]
fn any_flipped_bit_is_refused_or_has_the_meaning_of_its_bytes() {
    let ops = [(1, b"abc".to_vec(), Some(b"value".to_vec())), (2, b"de".to_vec(), None)];
    let payload = encoded(b"", &ops);
    for bit in 0..payload.len() * 8 {
        let mut flipped = payload.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(ops) = decoded(&flipped) {
            assert_eq!(encoded(b"", &ops), flipped);
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    runner(5000)
        .run(&vec(prop_oneof![0..4_u8, any::<u8>()], 0..40), |bytes| {
            let _ = decoded(&bytes);
            Ok(())
        })
        .unwrap();
}
