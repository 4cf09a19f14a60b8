//! The bytes: records, sectors, group headers. Encoded values come back; any other bytes are noticed.

use super::support::{Random, record, seed};
use aio::SECTOR_BYTES;
use proptest::prelude::*;
use wal::{
    Decoded, GRANULE, Group, MAX_EPOCH, Place, RECORD_HEADER_BYTES, RecordBuf, SectorState, Seq,
    StreamOrigin, classify, decode, seal_sector, void_header,
};

const PLACE: Place = Place { store_id: 77, file_id: 5, epoch: 9 };

/// Of an incarnation of the store with number 77.
fn of(incarnation: u32) -> StreamOrigin {
    StreamOrigin { store_id: 77, incarnation }
}

fn framed(payload: &[u8], incarnation: u32, seq: Seq) -> Vec<u8> {
    record(payload).prepare().frame(of(incarnation), seq).to_vec()
}

#[test]
fn records_come_back_at_every_length() {
    let mut random = Random::new(seed());
    for len in (0..200).chain([1000, 4095, 70_000]) {
        let payload = random.bytes(len);
        let (incarnation, seq) = (random.next().to_le_bytes()[0].into(), Seq::new(random.below(1 << 40)));
        let bytes = framed(&payload, incarnation, seq);
        assert!(bytes.len().is_multiple_of(GRANULE));
        assert_eq!(bytes.len(), record(&payload).len_bytes());
        assert_eq!(
            decode(&bytes, of(incarnation), seq),
            Decoded::Record { payload: &payload, len_bytes: bytes.len() }
        );
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed() {
    let payload = Random::new(seed()).bytes(90);
    let bytes = framed(&payload, 3, Seq::new(640));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(decode(&damaged, of(3), Seq::new(640)), Decoded::Record { .. }), "bit {bit}");
    }
}

/// A void of `len_bytes`.
fn void(len_bytes: usize, incarnation: u32, seq: Seq) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes];
    bytes[..RECORD_HEADER_BYTES].copy_from_slice(&void_header(len_bytes, of(incarnation), seq));
    bytes
}

#[test]
fn a_void_takes_the_length_of_the_record_that_it_stands_for() {
    for granules in [1, 2, 127, 128, 129, 3000] {
        let (len_bytes, seq) = (granules * GRANULE, Seq::new(640));
        let bytes = void(len_bytes, 3, seq);
        assert_eq!(decode(&bytes, of(3), seq), Decoded::Void { len_bytes });
        for len in [0, 7, 8, len_bytes - 1] {
            let decoded = decode(&bytes[..len], of(3), seq);
            assert!(matches!(decoded, Decoded::Incomplete { .. }), "{len} of {len_bytes} bytes");
        }
        assert!(matches!(decode(&bytes, of(4), seq), Decoded::Invalid(_)), "another incarnation");
        assert!(matches!(decode(&bytes, of(3), Seq::new(672)), Decoded::Invalid(_)), "another place");
    }
}

#[test]
fn every_flipped_bit_of_a_void_is_noticed() {
    let bytes = void(3 * GRANULE, 3, Seq::new(640));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let decoded = decode(&damaged, of(3), Seq::new(640));
        assert!(!matches!(decoded, Decoded::Void { .. } | Decoded::Record { .. }), "bit {bit}");
    }
}

#[test]
fn every_truncation_of_a_record_is_incomplete() {
    let bytes = framed(&Random::new(seed()).bytes(90), 3, Seq::new(640));
    for len in 0..bytes.len() {
        let Decoded::Incomplete { needed_bytes } = decode(&bytes[..len], of(3), Seq::new(640)) else {
            panic!("{len} bytes")
        };
        assert!(needed_bytes > len);
        assert!(needed_bytes <= bytes.len());
    }
}

#[test]
fn a_record_of_another_store_incarnation_or_place_does_not_validate() {
    let bytes = framed(b"payload", 3, Seq::new(640));
    for store_id in [0, 76] {
        let origin = StreamOrigin { store_id, incarnation: 3 };
        assert!(matches!(decode(&bytes, origin, Seq::new(640)), Decoded::Invalid(_)));
        let other = record(b"payload").prepare().frame(origin, Seq::new(640)).to_vec();
        assert!(matches!(decode(&other, origin, Seq::new(640)), Decoded::Record { .. }));
        assert!(matches!(decode(&other, of(3), Seq::new(640)), Decoded::Invalid(_)));
    }
    assert!(matches!(decode(&bytes, of(4), Seq::new(640)), Decoded::Invalid(_)));
    assert!(matches!(decode(&bytes, of(3), Seq::new(672)), Decoded::Invalid(_)));
    assert!(matches!(decode(&[0; 64], of(3), Seq::new(0)), Decoded::Invalid(_)));
}

#[test]
fn a_record_buf_is_reused_and_changed_in_place() {
    let mut buf = RecordBuf::new();
    buf.push(b"abc");
    assert_eq!(buf.prepare().frame(of(1), Seq::ZERO), framed(b"abc", 1, Seq::ZERO));
    buf.push(b"def");
    buf.payload_mut()[0] = b'X';
    assert_eq!(buf.payload(), b"Xbcdef");
    assert_eq!(buf.prepare().frame(of(1), Seq::ZERO), framed(b"Xbcdef", 1, Seq::ZERO));
    buf.clear();
    assert_eq!((buf.payload().len(), buf.len_bytes()), (0, GRANULE));
    assert_eq!(buf.prepare().frame(of(1), Seq::ZERO), framed(b"", 1, Seq::ZERO));
}

fn sector(epoch: u32, index: u64, first: bool) -> [u8; SECTOR_BYTES] {
    let mut sector = [0x5a; SECTOR_BYTES];
    seal_sector(&Place { epoch, ..PLACE }, index, first, &mut sector);
    sector
}

#[test]
fn sectors_are_current_older_or_damaged() {
    assert_eq!(classify(&PLACE, 3, &sector(9, 3, true)), SectorState::Current { first: true });
    assert_eq!(classify(&PLACE, 3, &sector(9, 3, false)), SectorState::Current { first: false });
    assert_eq!(classify(&PLACE, 3, &sector(8, 3, true)), SectorState::Older);
    assert_eq!(classify(&PLACE, 3, &[0; SECTOR_BYTES]), SectorState::Older);
    assert_eq!(classify(&PLACE, 3, &sector(10, 3, true)), SectorState::Damaged);
    assert_eq!(classify(&PLACE, 3, &sector(MAX_EPOCH, 3, false)), SectorState::Damaged);
    assert_eq!(classify(&PLACE, 4, &sector(9, 3, true)), SectorState::Damaged, "misdirected");
    let (store, file) = (Place { store_id: 78, ..PLACE }, Place { file_id: 6, ..PLACE });
    assert_eq!(classify(&store, 3, &sector(9, 3, true)), SectorState::Damaged, "of another store");
    assert_eq!(classify(&file, 3, &sector(9, 3, true)), SectorState::Damaged, "of another file");
}

#[test]
fn every_flipped_bit_of_a_sector_is_damage() {
    for good in [sector(9, 3, true), sector(8, 3, false), [0; SECTOR_BYTES]] {
        for bit in 0..SECTOR_BYTES * 8 {
            let mut damaged = good;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(classify(&PLACE, 3, &damaged), SectorState::Damaged, "bit {bit}");
        }
    }
}

#[test]
fn group_headers_come_back_and_every_flipped_bit_is_noticed() {
    let group = Group {
        incarnation: 3,
        number: 17,
        start: Seq::new(64),
        end: Seq::new(640),
        durable: Seq::new(32),
        step_bytes: 8192,
    };
    let bytes = group.encode();
    assert_eq!(Group::decode(&bytes), Some(group));
    assert_eq!(Group::decode(&bytes[..63]), None);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Group::decode(&damaged), None, "bit {bit}");
    }
    assert_eq!(Group::decode(&Group { step_bytes: 256, ..group }.encode()), None);
    assert_eq!(Group::decode(&Group { end: Seq::ZERO, ..group }.encode()), None);
}

proptest! {
    #[test]
    fn decoders_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), incarnation: u32, seq: u64) {
        let _ = decode(&bytes, of(incarnation), Seq::new(seq));
        let _ = Group::decode(&bytes);
        if let Some(sector) = bytes.first_chunk() {
            let _ = classify(&PLACE, seq, sector);
        }
    }
}
