//! The parts of the log: sectors, groups, records, and the chain of groups in a file.

use aio::{Buf, SECTOR_BYTES};
use wal::{
    ChainRules, Decoded, GRANULE, GROUP_HEADER_BYTES, Group, MAX_EPOCH, Place, RECORD_HEADER_BYTES,
    RecordBuf, SectorState, Seq, Stop, StreamOrigin, classify, decode, read_chain, seal, seal_sector,
    void_header,
};

use crate::input::{Input, overwrite};

/// The position of every sector here.
const PLACE: Place = Place { store_id: 77, file_id: 5, epoch: 9 };

/// Any sector, plain or sealed. A sealed one opens as the sector that was sealed, and at no other position.
pub(crate) fn sector(data: &[u8]) {
    let mut input = Input(data);
    let (way, index) = (input.u8(), u64::from(input.u16()));
    let place = Place { epoch: input.u32() % MAX_EPOCH + 1, ..PLACE };
    let mut sector = [0; SECTOR_BYTES];
    overwrite(&mut sector, 0, input.bytes(SECTOR_BYTES));
    if way & 1 == 0 {
        let state = classify(&place, index, &sector);
        if state == SectorState::Older {
            assert!(sector == [0; SECTOR_BYTES] || sector[4..8] != [0; 4]);
        }
        if let SectorState::Current { first } = state {
            let before = sector;
            seal_sector(&place, index, first, &mut sector);
            assert!(before == sector, "sealing makes the same sector again");
        }
        return;
    }
    let first = way & 2 != 0;
    seal_sector(&place, index, first, &mut sector);
    assert_eq!(classify(&place, index, &sector), SectorState::Current { first });
    assert_eq!(classify(&place, index + 1, &sector), SectorState::Damaged);
    assert_eq!(classify(&Place { file_id: 6, ..place }, index, &sector), SectorState::Damaged);
    if place.epoch < MAX_EPOCH {
        let later = Place { epoch: place.epoch + 1, ..place };
        assert_eq!(classify(&later, index, &sector), SectorState::Older);
        assert_eq!(classify(&place, index, &{ sealed(&later, index, sector) }), SectorState::Damaged);
    }
    let bit = usize::from(input.u16()) % (SECTOR_BYTES * 8);
    sector[bit / 8] ^= 1 << (bit % 8);
    assert_eq!(classify(&place, index, &sector), SectorState::Damaged, "bit {bit}");
}

fn sealed(place: &Place, index: u64, mut sector: [u8; SECTOR_BYTES]) -> [u8; SECTOR_BYTES] {
    seal_sector(place, index, false, &mut sector);
    sector
}

/// Any group header, plain or with a corrected checksum.
pub(crate) fn group(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if way & 1 == 1 {
        bytes.resize(GROUP_HEADER_BYTES, 0);
        right_header(&mut bytes);
    }
    let Some(group) = Group::decode(&bytes) else { return };
    assert_eq!(group.encode(), bytes[..GROUP_HEADER_BYTES], "a group header has one form");
    assert!(group.start <= group.end);
    if let Some(sealed_bytes) = group.sealed_bytes() {
        assert!(sealed_bytes as u64 > group.end.since(group.start));
        assert!(sealed_bytes.is_multiple_of(usize::try_from(group.step_bytes).expect("64 bits")));
    }
}

/// Corrects magic and checksum of a group header.
fn right_header(bytes: &mut [u8]) {
    if let Some(header) = bytes.get_mut(..GROUP_HEADER_BYTES) {
        header[..8].copy_from_slice(b"ESKERGRP");
        header[48..60].fill(0);
        let crc = crc32fast::hash(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Any record or void, plain or with a corrected checksum.
pub(crate) fn record(data: &[u8]) {
    let mut input = Input(data);
    let (way, seq) = (input.u8(), Seq::new(u64::from(input.u16()) * 32));
    let origin = StreamOrigin { store_id: 3, incarnation: u32::from(way) };
    if way & 1 == 0 {
        any_record(input.0, origin, seq);
        return;
    }
    let flip = usize::from(input.u16());
    if way & 2 != 0 {
        sealed_void(&mut input, flip, origin, seq);
        return;
    }
    let mut record = RecordBuf::new();
    record.push(input.0);
    let mut bytes = record.prepare().frame(origin, seq).to_vec();
    let expected = Decoded::Record { payload: input.0, len_bytes: bytes.len() };
    assert_eq!(decode(&bytes, origin, seq), expected);
    assert!(!matches!(decode(&bytes, origin, seq.plus(32)), Decoded::Record { .. }), "another place");
    let other = StreamOrigin { incarnation: origin.incarnation + 1, ..origin };
    assert!(!matches!(decode(&bytes, other, seq), Decoded::Record { .. }), "another incarnation");
    let short = decode(&bytes[..bytes.len() - 1], origin, seq);
    assert_eq!(short, Decoded::Incomplete { needed_bytes: bytes.len() });
    let bit = flip % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert!(!matches!(decode(&bytes, origin, seq), Decoded::Record { .. }), "bit {bit}");
}

/// A void is a void in its place, and with any other bit nothing at all.
fn sealed_void(input: &mut Input<'_>, flip: usize, origin: StreamOrigin, seq: Seq) {
    // Shorter than the largest allocation that an input justifies.
    let len_bytes = (usize::from(input.u16() % 4096) + 1) * GRANULE;
    let mut bytes = vec![0; len_bytes];
    bytes[..RECORD_HEADER_BYTES].copy_from_slice(&void_header(len_bytes, origin, seq));
    assert_eq!(decode(&bytes, origin, seq), Decoded::Void { len_bytes });
    assert!(matches!(decode(&bytes, origin, seq.plus(GRANULE)), Decoded::Invalid(_)), "another place");
    let bit = flip % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert!(
        !matches!(decode(&bytes, origin, seq), Decoded::Void { .. } | Decoded::Record { .. }),
        "bit {bit}"
    );
}

fn any_record(bytes: &[u8], origin: StreamOrigin, seq: Seq) {
    match decode(bytes, origin, seq) {
        Decoded::Record { payload, len_bytes } => {
            let mut again = RecordBuf::new();
            again.push(payload);
            assert_eq!(again.prepare().frame(origin, seq), &bytes[..len_bytes], "a record has one form");
        }
        Decoded::Void { len_bytes } => {
            let mut again = vec![0; len_bytes];
            again[..RECORD_HEADER_BYTES].copy_from_slice(&void_header(len_bytes, origin, seq));
            assert_eq!(again, &bytes[..len_bytes], "a void has one form");
        }
        Decoded::Incomplete { needed_bytes } => assert!(needed_bytes > bytes.len()),
        Decoded::Invalid(_) => {}
    }
}

/// The bytes of a file of groups: the input itself, or sealed groups with some damage.
pub(crate) fn chain(data: &[u8]) {
    let mut input = Input(data);
    let way = input.u8();
    let start = Seq::new(u64::from(input.u8()) * 32);
    let rules = ChainRules { place: PLACE, incarnation: 4, start };
    if way & 1 == 1 {
        built_chain(&mut input, &rules);
        return;
    }
    let mut bytes = input.0.to_vec();
    if way & 2 != 0 {
        bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES), 0);
        right_sectors(&mut bytes, way);
    }
    must_be_sound(&bytes, &rules);
}

/// Corrects headers and checksums of all sectors that do not look like zeros.
fn right_sectors(bytes: &mut [u8], way: u8) {
    for (index, sector) in bytes.as_chunks_mut::<SECTOR_BYTES>().0.iter_mut().enumerate() {
        if sector.iter().all(|byte| *byte == 0) {
            continue;
        }
        let first = sector[7] & 0x80 != 0;
        if first && way & 4 != 0 {
            right_header(&mut sector[8..]);
        }
        seal_sector(&PLACE, index as u64, first, sector);
    }
}

/// A chain of any bytes is consistent with its own description.
fn must_be_sound(bytes: &[u8], rules: &ChainRules) {
    let chain = read_chain(bytes, rules);
    assert_eq!(chain.end, rules.start.plus(chain.stream.len()));
    assert!(chain.stop_offset <= bytes.len() as u64);
    assert!(chain.groups.is_sorted());
    for (nth, (start, offset)) in chain.groups.iter().enumerate() {
        assert!(*start >= rules.start && *start <= chain.end);
        assert!(*offset < chain.stop_offset);
        assert!(nth == 0 || chain.offset_of(*start) >= chain.groups[nth - 1].1);
    }
    let verdict = chain.check("fuzzed".as_ref());
    if matches!(chain.stop, Stop::Damaged { .. }) || chain.claim > chain.end {
        assert!(verdict.is_err(), "damage is told");
    }
}

/// Groups as a log writes them, and then one change. Everything acknowledged is there, or the damage is reported.
fn built_chain(input: &mut Input<'_>, rules: &ChainRules) {
    let (mut file, mut stream, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let shape = input.u8();
    let step_bytes = 512 << (shape / 4 % 4);
    for number in 0..u64::from(shape % 4) {
        let len = usize::from(input.u16()) % 5000;
        let part: Vec<u8> = input.bytes(len.min(64)).iter().copied().cycle().take(len).collect();
        let start = rules.start.plus(stream.len());
        let group = Group {
            incarnation: rules.incarnation,
            number,
            start,
            end: start.plus(part.len()),
            durable: start,
            step_bytes,
        };
        let mut buf = Buf::zeroed(group.sealed_bytes().expect("it is small"));
        seal(&rules.place, file.len() as u64, &group, &mut buf, &mut |at, into| {
            into.copy_from_slice(&part[at..at + into.len()]);
        });
        file.extend_from_slice(&buf);
        stream.extend_from_slice(&part);
        ends.push((file.len(), stream.len()));
    }
    let groups = ends.len();
    file.resize(file.len() + 4096, 0);
    let whole = read_chain(&file, rules);
    assert_eq!((&whole.stream, whole.groups.len(), &whole.stop), (&stream, groups, &Stop::Older));
    must_be_sound(&file, rules);
    let at = usize::from(input.u16()) % file.len();
    let before = file.clone();
    overwrite(&mut file, at, input.bytes(700));
    let damaged = read_chain(&file, rules);
    must_be_sound(&file, rules);
    // Only zeros look like a power cut, and only at the end: the first sector of a group confirms all groups before it. With
    // groups of one sector a change may take the newest one and the one that it confirms.
    if damaged.check("fuzzed".as_ref()).is_ok() && file != before {
        let begin = |nth: usize| nth.checked_sub(1).map_or((0, 0), |nth| ends[nth]);
        let is_same = |from: usize, upto: usize| file[from..upto] == before[from..upto];
        let whole = (0..groups).take_while(|&nth| is_same(begin(nth).0, ends[nth].0)).count();
        let confirms = |&nth: &usize| is_same(begin(nth).0, begin(nth).0 + SECTOR_BYTES);
        let confirmed = (0..groups).rev().find(confirms).unwrap_or(0);
        let least = begin(whole.max(confirmed)).1;
        assert!(damaged.stream.len() >= least, "a group is lost that another one confirms");
        assert!(stream.starts_with(&damaged.stream), "accepted bytes were never written");
    }
}
