//! Blocks: round trips against the entries themselves, and hostile bytes.

use proptest::prelude::*;

use super::block::{Block, Frame};
use super::block_builder::{BlockBuilder, Encoded};
use crate::base::key::{Entry, Kind, Seq, key_hash};
use crate::read::cursor_contract::runner;

#[derive(Clone, Debug, PartialEq)]
struct Owned {
    key: Vec<u8>,
    seq: u64,
    kind: Kind,
    value: Vec<u8>,
}

impl Owned {
    fn new(key: impl AsRef<[u8]>, seq: u64, value: Option<&[u8]>) -> Owned {
        let kind = if value.is_some() { Kind::Put } else { Kind::Delete };
        Owned { key: key.as_ref().to_vec(), seq, kind, value: value.unwrap_or_default().to_vec() }
    }

    fn entry(&self) -> Entry<'_> {
        Entry { key: &self.key, seq: Seq::new(self.seq), kind: self.kind, value: &self.value }
    }
}

fn encode(entries: &[Owned], compress: bool) -> Encoded {
    let mut builder = BlockBuilder::default();
    for entry in entries {
        builder.add(&entry.entry(), key_hash(&entry.key));
    }
    let encoded = builder.finish(compress);
    assert!(builder.is_empty());
    assert!(encoded.bytes.len().is_multiple_of(512));
    encoded
}

fn decode(encoded: &Encoded) -> Frame {
    Block::decode(&encoded.bytes, encoded.len_bytes).unwrap()
}

fn key_at(block: Block<'_>, i: usize) -> Vec<u8> {
    [block.prefix(), block.suffix(i)].concat()
}

/// Compares every accessor and search with the entries.
fn compare(block: Block<'_>, entries: &[Owned], probes: &[Vec<u8>]) {
    assert_eq!(block.len(), entries.len());
    block.check(|_, _| {}).unwrap();
    for (i, entry) in entries.iter().enumerate() {
        let found = Owned {
            key: key_at(block, i),
            seq: block.seq(i).get(),
            kind: block.kind(i),
            value: block.value(i).to_vec(),
        };
        assert_eq!(&found, entry);
        assert!(block.is_key(i, &entry.key));
    }
    let keys = entries.iter().map(|entry| &entry.key).chain(probes);
    for key in keys {
        let bound = entries.iter().position(|entry| entry.key >= *key).unwrap_or(entries.len());
        assert_eq!(block.lower_bound(key), bound);
        let seqs = entries.iter().filter(|entry| entry.key == *key).map(|entry| entry.seq);
        for snapshot in seqs.flat_map(|seq| [seq, seq.saturating_add(1)]).chain([0, u64::MAX]) {
            let newest = entries.iter().position(|entry| entry.key == *key && entry.seq < snapshot);
            assert_eq!(block.find(key, key_hash(key), Seq::new(snapshot)), newest.map(|i| block.entry_at(i)));
        }
    }
}

/// Uses every accessor of a decoded block, none of which may panic.
fn use_all(block: Block<'_>) {
    let _ = block.check(|_, _| {});
    for i in 0..block.len() {
        let key = key_at(block, i);
        let _ = (block.seq(i), block.kind(i), block.value(i), block.is_key(i, &key));
        let _ = block.find(&key, key_hash(&key), Seq::new(u64::MAX));
        let _ = block.lower_bound(&key);
    }
    let _ = block.lower_bound(b"");
    let _ = block.lower_bound(&[0xff; 9]);
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(vec![0_u8, 1, b'a', b'b', 0xff]);
    prop_oneof![
        prop::collection::vec(byte, 1..9),
        prop::collection::vec(any::<u8>(), 1..40),
        (0_u32..500).prop_map(|i| format!("user/{i:08}").into_bytes()),
        prop::collection::vec(any::<u8>(), 255..600),
    ]
}

fn any_seq() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..50, any::<u32>().prop_map(u64::from), 0..u64::MAX]
}

fn any_value() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        2 => Just(Some(Vec::new())),
        6 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Some),
        1 => (0_usize..70_000, any::<u8>()).prop_map(|(len, byte)| Some(vec![byte; len])),
    ]
}

fn any_entries() -> impl Strategy<Value = Vec<Owned>> {
    let group = (any_key(), prop::collection::vec((any_seq(), any_value()), 1..4));
    (prop::collection::vec(group, 1..40), any::<bool>(), any::<bool>()).prop_map(
        |(groups, prefixed, puts)| {
            let mut entries = Vec::new();
            for (key, versions) in groups {
                let key = if prefixed { [b"common-prefix", key.as_slice()].concat() } else { key };
                for (seq, value) in versions {
                    let value = if puts { Some(value.unwrap_or_default()) } else { value };
                    entries.push(Owned::new(&key, seq, value.as_deref()));
                }
            }
            entries.sort_by(|a, b| a.entry().order(&b.entry()));
            entries.dedup_by(|a, b| a.key == b.key && a.seq == b.seq);
            entries
        },
    )
}

#[test]
fn entries_come_back_and_are_found() {
    let input = (any_entries(), prop::collection::vec(any_key(), 0..20), any::<bool>());
    let result = runner(256).run(&input, |(entries, probes, compress)| {
        compare(Block::of(&decode(&encode(&entries, compress))), &entries, &probes);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn any_bytes_are_a_block_or_an_error() {
    let result = runner(2000).run(&prop::collection::vec(any::<u8>(), 0..300), |bytes| {
        if let Ok(block) = Block::decode(&bytes, bytes.len()) {
            use_all(Block::of(&block));
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn several_changed_bytes_never_panic() {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
    let result = runner(1000).run(&(any_entries(), changes), |(entries, changes)| {
        let encoded = encode(&entries, false);
        let mut bytes = encoded.bytes;
        for (at, byte) in changes {
            // Mostly in the header and the columns, on which the accessors rely.
            let at = at.index(bytes.len().min(600));
            bytes[at] = byte;
        }
        if let Ok(block) = Block::decode(&bytes, encoded.len_bytes) {
            use_all(Block::of(&block));
        }
        Ok(())
    });
    result.unwrap();
}

fn small() -> Vec<Owned> {
    let mut entries = Vec::new();
    for i in 0..20_u64 {
        let key = format!("prefix/{i:03}/{}", "x".repeat(usize::try_from(i % 3).unwrap()));
        entries.push(Owned::new(&key, 1000 + i, Some(b"some value, some value, some value")));
        if i % 4 == 0 {
            entries.push(Owned::new(&key, 500 + i, None));
        }
    }
    entries
}

#[test]
fn no_truncation_and_no_flipped_bit_of_a_block_panics() {
    for compress in [false, true] {
        let encoded = encode(&small(), compress);
        assert_eq!(encoded.compressed, compress);
        for len in 0..encoded.len_bytes {
            assert!(Block::decode(&encoded.bytes, len).is_err(), "{len} bytes");
            assert!(Block::decode(&encoded.bytes[..len], encoded.len_bytes).is_err(), "{len} bytes");
        }
        for bit in 0..encoded.len_bytes * 8 {
            let mut bytes = encoded.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(block) = Block::decode(&bytes, encoded.len_bytes) {
                use_all(Block::of(&block));
            }
        }
    }
}

#[test]
fn compression_is_kept_only_where_it_saves_an_eighth() {
    let mut noise = 1_u64;
    let random: Vec<u8> = (0..4000)
        .map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_le_bytes()[7]
        })
        .collect();
    assert!(!encode(&[Owned::new("key", 1, Some(&random))], true).compressed);
    let zeros = encode(&[Owned::new("key", 1, Some(&vec![0; 1 << 20]))], true);
    assert!(zeros.compressed && zeros.len_bytes < 8192);
    compare(Block::of(&decode(&zeros)), &[Owned::new("key", 1, Some(&vec![0; 1 << 20]))], &[]);
}

#[test]
fn a_compressed_block_cannot_ask_for_more_memory_than_it_can_fill() {
    let mut encoded = encode(&[Owned::new("key", 1, Some(&vec![0; 100_000]))], true);
    encoded.bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Block::decode(&encoded.bytes, encoded.len_bytes).unwrap_err(), "block raw length");
}

#[test]
fn order_heads_and_fingerprints_are_part_of_the_check() {
    let encoded = encode(&small(), false);
    let raw_header = 8 + 24;
    let heads = raw_header + 32;
    for (offset, what) in [(raw_header, "key fingerprint in a block"), (heads, "key head in a block")] {
        let mut bytes = encoded.bytes.clone();
        bytes[offset] ^= 1;
        let block = Block::decode(&bytes, encoded.len_bytes).unwrap();
        assert_eq!(Block::of(&block).check(|_, _| {}).unwrap_err(), what);
    }
    let mut entries = small();
    entries.swap(3, 4);
    let block = decode(&encode(&entries, false));
    assert_eq!(Block::of(&block).check(|_, _| {}).unwrap_err(), "order of entries in a block");
}

#[test]
fn a_full_block_takes_no_more_and_large_entries_stand_alone() {
    let mut builder = BlockBuilder::default();
    let small = Owned::new("a", 1, Some(b"v"));
    let large = Owned::new("b", 1, Some(&vec![7; 40_000]));
    assert!(builder.has_room(&large.entry(), 8192), "an empty block takes anything");
    builder.add(&small.entry(), 0);
    assert!(!builder.has_room(&large.entry(), 8192));
    assert!(builder.has_room(&small.entry(), 8192));
    let _ = builder.finish(false);
    builder.add(&large.entry(), 0);
    assert!(!builder.has_room(&small.entry(), 1 << 20));
}
