//! Seeded records: keys of 16 bytes, values of any length that compress to about a half and name their key.
//!
//! The same seed gives the same records everywhere, so that runs can be compared. A value carries a checksum of its key, so
//! a reader can tell that it is the right one, and no store gains speed from wrong answers.
/// Length of every key in bytes.
pub const KEY_BYTES: usize = 16;

/// Length of a small value in bytes.
pub const VALUE_BYTES: usize = 100;

/// The shortest value: two checksums.
pub const MIN_VALUE_BYTES: usize = 16;

/// A key.
pub type Key = [u8; KEY_BYTES];

/// A source of numbers that depends on nothing but its seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A source that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number, evenly spread over all of them.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, which is above 0.
    ///
    /// # Panics
    /// If `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}

/// Numbers below a limit, a few of them frequent, as in YCSB (Gray et al., "Quickly generating billion-record synthetic
/// databases", exponent 0.99). Number 0 is the most frequent; keys are hashed, so neighbours are not.
#[derive(Clone, Debug)]
pub struct Zipf {
    limit: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    const THETA: f64 = 0.99;

    /// A distribution over `0..limit`; takes time in proportion to `limit`, which is above 1.
    #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^52")]
    pub fn new(limit: u64) -> Zipf {
        let zeta = |upto: u64| (1..=upto).map(|rank| (rank as f64).powf(-Zipf::THETA)).sum::<f64>();
        let whole = zeta(limit);
        let eta = (1.0 - (2.0 / limit as f64).powf(1.0 - Zipf::THETA)) / (1.0 - zeta(2) / whole);
        Zipf { limit: limit as f64, zeta: whole, alpha: 1.0 / (1.0 - Zipf::THETA), eta }
    }

    /// The next number.
    #[expect(clippy::cast_precision_loss, reason = "53 bits of a random number are enough")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped to the limit")]
    pub fn number(&self, random: &mut Random) -> u64 {
        let even = (random.number() >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = even * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(Zipf::THETA) {
            return 1;
        }
        let rank = self.limit * (self.eta * even - self.eta + 1.0).powf(self.alpha);
        rank.clamp(0.0, self.limit - 1.0) as u64
    }
}

/// Spreads a number over all 64 bits; no two numbers give the same.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The key of record `number`: hexadecimal, in an order that does not depend on the numbers.
pub fn key(number: u64) -> Key {
    // The lowest digit first, as in all reports so far.
    let mut key = sorted_key(mix(number));
    key.reverse();
    key
}

/// The key of record `number`: hexadecimal, in the order of the numbers.
pub fn sorted_key(number: u64) -> Key {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut key = [0; KEY_BYTES];
    let mut word = number;
    for digit in key.iter_mut().rev() {
        *digit = DIGITS.get(usize::try_from(word & 15).unwrap_or(0)).copied().unwrap_or(b'0');
        word >>= 4;
    }
    key
}

/// Makes `value` a value of `len_bytes` for a key: the checksum of the key, noise that depends on `version` up to the
/// middle, bytes that compress, and the checksum again in the last 8 bytes.
///
/// # Panics
/// If a value is shorter than [`MIN_VALUE_BYTES`].
pub fn make_value(value: &mut Vec<u8>, len_bytes: usize, key: &[u8], version: u64) {
    assert!(len_bytes >= MIN_VALUE_BYTES, "a value holds two checksums");
    let sum = checksum(key);
    let mut random = Random::new(sum ^ mix(version));
    value.clear();
    value.extend_from_slice(&sum.to_le_bytes());
    while value.len() < len_bytes / 2 {
        value.extend_from_slice(&random.number().to_le_bytes());
    }
    value.resize(len_bytes - 8, b'.');
    value.extend_from_slice(&sum.to_le_bytes());
}

/// A value of [`VALUE_BYTES`] in memory of its own.
pub fn value(key: &[u8], version: u64) -> Vec<u8> {
    let mut value = Vec::with_capacity(VALUE_BYTES);
    make_value(&mut value, VALUE_BYTES, key, version);
    value
}

/// Whether a value was made for this key and has this length: both checksums are there.
pub fn is_for(key: &[u8], value: &[u8], len_bytes: usize) -> bool {
    let sum = checksum(key).to_le_bytes();
    value.len() == len_bytes && value.starts_with(&sum) && value.ends_with(&sum)
}

/// FNV-1a, which needs no table and is good enough to tell keys apart.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_values_name_them() {
        let keys: std::collections::BTreeSet<_> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
        for number in 0..100 {
            let value = value(&key(number), 7);
            assert!(is_for(&key(number), &value, VALUE_BYTES));
            assert!(!is_for(&key(number + 1), &value, VALUE_BYTES));
        }
        assert_ne!(value(b"k", 1), value(b"k", 2));
    }

    #[test]
    fn sorted_keys_are_in_the_order_of_their_numbers() {
        let keys: Vec<_> = [0, 1, 15, 16, 255, 1 << 32, u64::MAX].map(sorted_key).to_vec();
        assert!(keys.is_sorted());
        assert_eq!(&sorted_key(0x1f), b"000000000000001f");
    }

    #[test]
    fn a_damaged_cut_or_foreign_value_is_told() {
        for len_bytes in [16, 100, 400, 1024] {
            let key = key(5);
            let mut value = Vec::new();
            make_value(&mut value, len_bytes, &key, 1);
            assert_eq!(value.len(), len_bytes);
            assert!(is_for(&key, &value, len_bytes));
            assert!(!is_for(&key, &value[..len_bytes - 1], len_bytes));
            assert!(!is_for(&key, &value[1..], len_bytes));
            for at in [0, 7, len_bytes - 8, len_bytes - 1] {
                let mut damaged = value.clone();
                damaged[at] ^= 1;
                assert!(!is_for(&key, &damaged, len_bytes), "byte {at} of {len_bytes}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_records_for_ever() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..9).map(|_| random.number()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(3), numbers(3));
        assert_ne!(numbers(3), numbers(4));
        // Fixed here, so that reports of different versions mean the same data.
        assert_eq!(Random::new(0).number(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(&key(1), b"5e50b001d1612965");
        assert_eq!(checksum(&key(1)), 0xff93_ab3c_d901_a3c9);
    }

    #[test]
    fn half_of_a_value_is_noise() {
        let value = value(&key(9), 3);
        let dots: Vec<_> = value.iter().enumerate().filter(|(_, byte)| **byte == b'.').collect();
        assert!((36..=50).contains(&dots.len()), "{}", dots.len());
    }

    #[test]
    fn zipf_prefers_the_first_and_stays_below_its_limit() {
        let zipf = Zipf::new(1000);
        let mut random = Random::new(1);
        let mut counts = [0_u32; 1000];
        for _ in 0..100_000 {
            counts[usize::try_from(zipf.number(&mut random)).expect("small")] += 1;
        }
        assert!(counts[0] > 10_000, "{}", counts[0]);
        assert!(counts[0] > counts[1]);
        assert!(counts[1] > counts[100]);
        assert!(counts[500..].iter().sum::<u32>() > 5_000);
    }
}
