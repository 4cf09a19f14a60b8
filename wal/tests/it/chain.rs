//! Reads groups back: torn tails open, damage is named, no acknowledged group is dropped silently.

use std::path::Path;

use super::support::{Random, seed};
use aio::{Buf, SECTOR_BYTES};
use wal::{Chain, ChainRules, Error, Group, Place, STEP, Seq, Stop, Verdict, read_chain, seal};

const PLACE: Place = Place { store_id: 7, file_id: 3, epoch: 5 };
const RULES: ChainRules = ChainRules { place: PLACE, incarnation: 2, start: Seq::new(320) };

/// A file and its groups.
struct Log {
    file: Vec<u8>,
    stream: Vec<u8>,
    /// Offset in the file, and the stream bytes before the group.
    groups: Vec<(usize, usize)>,
}

impl Log {
    /// Seals one group for each length, one behind the other, over the bytes of `old`.
    fn new(place: &Place, old: Vec<u8>, lens: &[usize]) -> Log {
        Log::with_step(STEP, place, old, lens)
    }

    fn with_step(step_bytes: usize, place: &Place, old: Vec<u8>, lens: &[usize]) -> Log {
        let mut log = Log { file: old, stream: Vec::new(), groups: Vec::new() };
        let (mut offset, mut start) = (0, RULES.start);
        for (number, &len) in lens.iter().enumerate() {
            let bytes = Random::new(number as u64 + u64::from(place.epoch)).bytes(len);
            let group = Group {
                incarnation: RULES.incarnation,
                number: number as u64,
                start,
                end: start.plus(len),
                durable: start,
                step_bytes: u32::try_from(step_bytes).unwrap(),
            };
            let mut buf = Buf::zeroed(group.sealed_bytes().unwrap());
            seal(place, offset as u64, &group, &mut buf, &mut |at, into| {
                into.copy_from_slice(&bytes[at..at + into.len()]);
            });
            log.file[offset..offset + buf.len()].copy_from_slice(&buf);
            log.groups.push((offset, log.stream.len()));
            log.stream.extend_from_slice(&bytes);
            (offset, start) = (offset + buf.len(), group.end);
        }
        log
    }

    fn check(&self, file: &[u8]) -> Result<(Chain, Verdict), Error> {
        let chain = read_chain(file, &RULES);
        assert!(self.stream.starts_with(&chain.stream), "the accepted stream has wrong bytes");
        assert_eq!(chain.end, RULES.start.plus(chain.stream.len()));
        let verdict = chain.check(Path::new("f"))?;
        Ok((chain, verdict))
    }
}

fn sample() -> Log {
    // A recycled file with other groups of its earlier use. Some sectors of the last step were never written.
    let old = Log::new(&Place { epoch: 4, ..PLACE }, vec![0; 8 * STEP], &[100, 9000, 4000, 4000]).file;
    Log::new(&PLACE, old, &[96, 7200, 0, 3000])
}

#[test]
fn a_whole_log_comes_back() {
    let log = sample();
    let (chain, verdict) = log.check(&log.file).unwrap();
    assert_eq!((chain.stream.len(), chain.groups.len()), (log.stream.len(), 4));
    assert_eq!((chain.stop, verdict), (Stop::Older, Verdict::Clean));
    assert_eq!(chain.claim, RULES.start.plus(7296));
    let full = Log::new(&PLACE, vec![0; 2 * STEP], &[96, 3968]);
    assert_eq!(full.check(&full.file).unwrap().0.stop, Stop::EndOfFile);
}

/// Over an earlier use with another step: a lost sector of the newest group is a torn tail, and of any other one damage.
#[test]
fn groups_of_every_step_keep_the_promises() {
    for step in [512, 1024, 2048, 4096] {
        let earlier = Place { epoch: 4, ..PLACE };
        let old =
            Log::with_step(if step == 512 { 1024 } else { 512 }, &earlier, vec![0; 8 * STEP], &[300; 6]);
        let log = Log::with_step(step, &PLACE, old.file.clone(), &[96, 900, 0, 424, 1400]);
        let (chain, verdict) = log.check(&log.file).unwrap();
        assert_eq!((chain.stream.len(), chain.groups.len(), verdict), (log.stream.len(), 5, Verdict::Clean));
        assert!(chain.groups.iter().all(|(_, offset)| offset.is_multiple_of(step as u64)));
        let (begin, acknowledged) = log.groups[4];
        let end = usize::try_from(chain.stop_offset).unwrap();
        for at in (0..end).step_by(SECTOR_BYTES) {
            for lost in [&vec![0; old.file.len()], &old.file] {
                let mut file = log.file.clone();
                file[at..at + SECTOR_BYTES].copy_from_slice(&lost[at..at + SECTOR_BYTES]);
                match log.check(&file) {
                    Ok((chain, _)) => {
                        assert!(at >= begin && chain.stream.len() == acknowledged, "{step}: {at}");
                    }
                    Err(error) => assert!(at < begin, "{step}: {at}: {error}"),
                }
            }
        }
        for bit in 0..end * 8 {
            let mut file = log.file.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(log.check(&file), Err(Error::Corrupt { .. })),
                "{step}: bit {bit} was not noticed"
            );
        }
    }
}

#[test]
fn offsets_of_positions_are_those_of_their_groups() {
    let log = sample();
    let (chain, _) = log.check(&log.file).unwrap();
    assert_eq!(chain.offset_of(RULES.start), 0);
    assert_eq!(chain.offset_of(RULES.start.plus(96)), STEP as u64);
    assert_eq!(chain.offset_of(RULES.start.plus(7296)), log.groups[3].0 as u64);
}

/// Every state in which a power cut can leave a group of up to 12 sectors, over zeros and over an earlier use.
#[test]
fn every_torn_newest_group_opens_without_it() {
    let before = Log::new(&Place { epoch: 4, ..PLACE }, vec![0; 6 * STEP], &[3900, 3900, 9000, 3000]).file;
    for old in [vec![0; 6 * STEP], before] {
        // The last group is padded to 16 sectors. 12 vary independently; the last 4 are all missing or all present.
        let log = Log::new(&PLACE, old.clone(), &[500, 300, 5500]);
        let (begin, acknowledged) = log.groups[2];
        for mask in 0_u32..1 << 13 {
            let mut file = log.file.clone();
            for sector in 0..16 {
                if mask >> sector.min(12) & 1 == 0 {
                    let at = begin + sector * SECTOR_BYTES;
                    file[at..at + SECTOR_BYTES].copy_from_slice(&old[at..at + SECTOR_BYTES]);
                }
            }
            let (chain, verdict) = log.check(&file).unwrap_or_else(|error| panic!("{mask:b}: {error}"));
            let whole = mask == (1 << 13) - 1;
            let expected = if whole { log.stream.len() } else { acknowledged };
            assert_eq!(chain.stream.len(), expected, "{mask:b}");
            // Any sector of its first step shows it.
            let torn = !whole && mask & 0xff != 0;
            assert_eq!(verdict, if torn { Verdict::TornTail } else { Verdict::Clean }, "{mask:b}");
        }
    }
}

#[test]
fn every_flipped_bit_is_reported_or_harmless() {
    let log = sample();
    let used = log.groups[3].0 + STEP;
    let mut reported = 0;
    for bit in 0..log.file.len() * 8 {
        let mut file = log.file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        match log.check(&file) {
            Ok((chain, _)) => {
                assert_eq!(chain.stream, log.stream, "bit {bit} lost data silently");
                assert!(bit / 8 >= used, "bit {bit} of a group was not noticed");
            }
            Err(Error::Corrupt { offset, .. }) => {
                assert_eq!(offset, (bit / 8 / SECTOR_BYTES * SECTOR_BYTES) as u64);
                reported += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(reported >= used * 8);
}

/// A medium that loses sectors is caught by the claims of later groups, all but the newest group.
#[test]
fn lost_sectors_below_a_claim_are_corruption() {
    let log = sample();
    let old = Log::new(&Place { epoch: 4, ..PLACE }, vec![0; 8 * STEP], &[100, 9000, 4000, 4000]).file;
    for zero in [false, true] {
        for sector in 0..log.groups[2].0 / SECTOR_BYTES {
            let at = sector * SECTOR_BYTES;
            let mut file = log.file.clone();
            if zero {
                file[at..at + SECTOR_BYTES].fill(0);
            } else {
                file[at..at + SECTOR_BYTES].copy_from_slice(&old[at..at + SECTOR_BYTES]);
            }
            let result = log.check(&file);
            assert!(matches!(result, Err(Error::Corrupt { .. })), "sector {sector}: {result:?}");
        }
    }
}

#[test]
fn swapped_and_misdirected_sectors_are_corruption() {
    let log = sample();
    let sectors = (log.groups[3].0 + STEP) / SECTOR_BYTES;
    for a in 0..sectors {
        for b in a + 1..sectors {
            let mut file = log.file.clone();
            let (low, high) = file.split_at_mut(b * SECTOR_BYTES);
            let low = &mut low[a * SECTOR_BYTES..(a + 1) * SECTOR_BYTES];
            low.swap_with_slice(&mut high[..SECTOR_BYTES]);
            assert!(log.check(&file).is_err(), "{a} and {b}");
        }
    }
}

#[test]
fn groups_that_contradict_the_rules_are_corruption() {
    let log = sample();
    let with = |rules: ChainRules| match read_chain(&log.file, &rules).stop {
        Stop::Damaged { offset, what, .. } => (offset, what),
        stop => panic!("{stop:?}"),
    };
    assert_eq!(with(ChainRules { incarnation: 1, ..RULES }), (0, "incarnation of a group"));
    assert_eq!(with(ChainRules { start: Seq::ZERO, ..RULES }), (0, "start of a group"));
    assert_eq!(with(ChainRules { place: Place { epoch: 4, ..PLACE }, ..RULES }).0, 0, "from the future");
    // A copy of a group over another one fails by its sector index. The group number guards against bugs of the writer.
    let mut file = log.file.clone();
    file.copy_within(0..STEP, STEP);
    assert_eq!(log.check(&file).unwrap_err().to_string().split(':').next(), Some("f at offset 4096"));
}

#[test]
fn random_and_truncated_files_never_panic() {
    let (log, mut random) = (sample(), Random::new(seed()));
    for len in 0..log.file.len() {
        let _ = log.check(&log.file[..len]);
    }
    for _ in 0..2000 {
        let mut file = log.file.clone();
        for _ in 0..=random.below(8) {
            let at = usize::try_from(random.below(file.len() as u64)).unwrap();
            file[at] = random.next().to_le_bytes()[0];
        }
        if let Ok((chain, _)) = log.check(&file) {
            assert_eq!(chain.stream, log.stream);
        }
    }
}
