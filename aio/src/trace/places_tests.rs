//! Calls with the same arguments against the truth: exact for few places, bounded and honest for many.

use std::collections::HashMap;
use std::path::Path;

use super::*;

/// The most frequent places that a profile names.
const TOP: usize = 20;

/// A small generator; the seed is printed, and `SEED` in the environment replaces it.
struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    fn new(seed: u64) -> Random {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
        println!("SEED={seed}");
        Random { seed, drawn: 0 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        mix(self.seed, self.drawn) % bound
    }
}

/// Places beside the truth: the calls of each offset.
struct Bed {
    places: Places,
    file: Arc<Identity>,
    truth: HashMap<u64, u64>,
    calls: u64,
    found: u64,
    mistaken: u64,
}

impl Bed {
    fn new() -> Bed {
        let file = Arc::new(Identity::new(1, 2, Path::new("file")));
        Bed { places: Places::default(), file, truth: HashMap::new(), calls: 0, found: 0, mistaken: 0 }
    }

    fn call(&mut self, place: u64) {
        let arguments = read(&self.file, place * 4096);
        match self.places.count(&arguments, 10) {
            Seen::Before => self.found += 1,
            Seen::Never { mistaken } => self.mistaken += mistaken,
        }
        *self.truth.entry(place * 4096).or_default() += 1;
        self.calls += 1;
    }

    /// The number of repeats that a profile tells, and the true one.
    fn repeats(&self) -> (u64, u64) {
        (self.found - (self.mistaken >> 16), self.calls - self.truth.len() as u64)
    }

    fn check_total(&self, per_mille: u64) {
        let (found, truth) = self.repeats();
        assert!(found.abs_diff(truth) * 1000 <= truth * per_mille, "{found} repeats, in truth {truth}");
    }

    /// Each named place was called, and its bounds hold and are narrow. Returns the named places, and which are the true ones.
    fn check_top(&self) -> (Vec<Place>, Vec<(u64, u64)>) {
        let mut top = Vec::new();
        (0..BUCKETS).step_by(64).for_each(|first| self.places.add_top(first..first + 64, &mut top, TOP));
        let top: Vec<Place> = top.iter().map(Entry::place).collect();
        assert!(top.is_sorted_by(|a, b| a.calls >= b.calls));
        for place in &top {
            let truth = self.truth.get(&place.offset).copied().unwrap_or(0);
            assert!(
                (place.calls..=place.calls + place.missed_calls_at_most).contains(&truth),
                "{place:?}: {truth}"
            );
            assert!((truth - place.calls) * 1000 <= self.calls, "{place:?}: {truth} of {} calls", self.calls);
            assert_eq!(place.time, Duration::from_nanos(10 * place.calls));
        }
        let mut hottest: Vec<_> = self.truth.iter().map(|(&place, &calls)| (calls, place)).collect();
        hottest.sort_unstable_by(|a, b| b.cmp(a));
        hottest.truncate(TOP);
        (top, hottest)
    }
}

fn read(file: &Arc<Identity>, offset: u64) -> Arguments<'_> {
    let (kind, flags) = (OperationKind::Read, Flags::NONE);
    Arguments { file: Some(file), kind, flags, offset, len_bytes: 4096 }
}

#[test]
fn up_to_two_thousand_places_are_counted_exactly() {
    for places in [1, 64, 256, 2000] {
        let mut bed = Bed::new();
        // The calls of a place lie far apart, and each place has another number of them.
        for round in 0..40 {
            (0..places).filter(|place| place % 40 >= round).for_each(|place| bed.call(place));
        }
        let (found, truth) = bed.repeats();
        assert_eq!(found, truth, "{places} places");
        let (top, hottest) = bed.check_top();
        assert!(top.iter().all(|place| place.missed_calls_at_most == 0), "{places} places: {top:?}");
        let calls: Vec<u64> = top.iter().map(|place| place.calls).collect();
        let expected: Vec<u64> = hottest.iter().map(|(calls, _)| *calls).filter(|calls| *calls > 1).collect();
        assert_eq!(calls, expected, "{places} places");
    }
}

#[test]
fn a_million_places_with_some_hot_ones_are_told_within_bounds() {
    let mut random = Random::new(1);
    let mut bed = Bed::new();
    for _ in 0..3_000_000 {
        // A tenth of the calls goes to thirty places, each more often than the next.
        let place = if random.below(10) == 0 {
            let most = random.below(30) + 1;
            random.below(most)
        } else {
            random.below(1_000_000)
        };
        bed.call(place);
    }
    bed.check_total(20);
    let (top, hottest) = bed.check_top();
    assert_eq!(top.len(), TOP);
    let named = |place: u64| top.iter().any(|named| named.offset == place);
    // The calls of the last ones of thirty are too close to each other to say which are in the top.
    assert!(hottest[..15].iter().all(|(_, place)| named(*place)), "{hottest:?} {top:?}");
}

#[test]
fn a_million_places_called_equally_often_are_told_within_bounds() {
    for rounds in [2, 5] {
        let mut random = Random::new(rounds);
        let mut bed = Bed::new();
        for _ in 0..rounds {
            // Each round in another order: that of the multiples of an odd number.
            let step = random.below(500_000) * 2 + 1;
            (0..1 << 20).for_each(|nth| bed.call(nth * step % (1 << 20)));
        }
        bed.check_total(20);
        bed.check_top();
    }
}

#[test]
fn few_repeats_among_a_million_places_are_told_within_two_percent() {
    let mut bed = Bed::new();
    (0..1_000_000).for_each(|place| bed.call(place));
    // Between the repeats come new places.
    (0..50_000).for_each(|place| bed.call(place * 17));
    bed.check_total(20);
}

#[test]
fn more_places_than_can_be_remembered_do_not_make_repeats() {
    let mut places = Places::default();
    let file = Arc::new(Identity::new(1, 2, Path::new("file")));
    let (calls, mut found, mut mistaken) = (10_000_000_u64, 0_u64, 0);
    for place in 0..calls {
        match places.count(&read(&file, place), 10) {
            Seen::Before => found += 1,
            Seen::Never { mistaken: more } => mistaken += more,
        }
    }
    let repeats = found.abs_diff(mistaken >> 16);
    assert!(repeats * 100 < calls, "{repeats} repeats of {calls} different calls");
    // A place of the first million is remembered no more, although its bit may be set.
    let again = (0..1000).filter(|place| places.count(&read(&file, 500_000 + place), 10) == Seen::Before);
    assert!(again.count() < 500);
}

#[test]
fn each_argument_makes_another_place() {
    let (file, other) = (Identity::new(1, 2, Path::new("a")), Identity::new(1, 2, Path::new("b")));
    let (file, other) = (Arc::new(file), Arc::new(other));
    let mut places = Places::default();
    let first = read(&file, 4096);
    let calls = [
        first,
        Arguments { file: Some(&other), ..first },
        Arguments { kind: OperationKind::ReadVectored, ..first },
        Arguments { flags: Flags::NO_WAIT, ..first },
        Arguments { offset: 8192, ..first },
        Arguments { len_bytes: 8192, ..first },
        Arguments::of_sync(&file),
    ];
    for call in &calls {
        assert_eq!(places.count(call, 1), Seen::Never { mistaken: 0 }, "{call:?}");
    }
    for call in &calls {
        assert_eq!(places.count(call, 1), Seen::Before, "{call:?}");
    }
    let nowhere = Arguments { file: None, ..first };
    assert_eq!(places.count(&nowhere, 1), Seen::Never { mistaken: 0 });
    assert_eq!(places.count(&nowhere, 1), Seen::Never { mistaken: 0 });
}
