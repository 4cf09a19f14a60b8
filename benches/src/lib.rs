//! Seeded workloads: keys of 16 bytes, values of 100 bytes that compress to about a half and name their key.
//!
//! The same seed gives the same records everywhere, so that runs can be compared. A value carries a checksum of its
//! key: whoever reads one can tell that it is the right one, and that no store answers faster by answering wrong.
#![forbid(unsafe_code)]

/// Length of every key in bytes.
pub const KEY_BYTES: usize = 16;

/// Length of every value in bytes.
pub const VALUE_BYTES: usize = 100;

/// Bytes of a value that do not compress: the checksum, then noise. The rest repeats.
const NOISE_BYTES: usize = VALUE_BYTES / 2;

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

/// Spreads a number over all 64 bits; no two numbers give the same.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The key of record `number`: hexadecimal, in an order that has nothing to do with the numbers.
pub fn key(number: u64) -> [u8; KEY_BYTES] {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut key = [0; KEY_BYTES];
    let mut word = mix(number);
    for digit in &mut key {
        *digit = DIGITS.get(usize::try_from(word & 15).unwrap_or(0)).copied().unwrap_or(b'0');
        word >>= 4;
    }
    key
}

/// A value for a key: the checksum of the key, noise that depends on `version`, then bytes that compress.
pub fn value(key: &[u8], version: u64) -> [u8; VALUE_BYTES] {
    let mut value = [b'.'; VALUE_BYTES];
    let sum = checksum(key);
    let mut random = Random::new(sum ^ mix(version));
    let words = std::iter::once(sum).chain(std::iter::repeat_with(|| random.number()));
    let noise = value.iter_mut().take(NOISE_BYTES);
    for (byte, from) in noise.zip(words.flat_map(u64::to_le_bytes)) {
        *byte = from;
    }
    value
}

/// Whether a value was made for this key.
pub fn is_for(key: &[u8], value: &[u8]) -> bool {
    value.len() == VALUE_BYTES && value.starts_with(&checksum(key).to_le_bytes())
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
            assert!(is_for(&key(number), &value));
            assert!(!is_for(&key(number + 1), &value));
        }
        assert_ne!(value(b"k", 1), value(b"k", 2));
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let first: Vec<u64> = std::iter::repeat_with({
            let mut random = Random::new(3);
            move || random.number()
        })
        .take(9)
        .collect();
        let again: Vec<u64> = std::iter::repeat_with({
            let mut random = Random::new(3);
            move || random.number()
        })
        .take(9)
        .collect();
        assert_eq!(first, again);
    }
}
