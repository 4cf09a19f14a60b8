//! The writes of a soak. The number of a write determines it, so only numbers have to survive a kill.
//!
//! Writer `w` writes its numbers 1, 2, 3 and so on. Each is one batch that puts or deletes one key in both keyspaces.
//!
//! Invariant: after `n` writes of a writer its keys and values are a function of `w` and `n`.

/// Threads that write in a worker.
pub(crate) const WRITERS: usize = 4;
/// Keys of each writer.
pub(crate) const SLOTS: u64 = 2000;
/// Every batch goes to both.
pub(crate) const KEYSPACES: [&str; 2] = ["default", "twin"];
/// The smallest sensible store, so that flushes and log files come round quickly.
pub(crate) const BUDGET_BYTES: u64 = 16 << 20;
/// Bytes of a value before its filler: writer and number.
const HEADER_BYTES: usize = 16;
const MOST_FILLER_BYTES: usize = 1400;

/// The key that a write touches, and whether it deletes it.
pub(crate) fn slot_of(writer: usize, number: u64) -> (u64, bool) {
    let word = mix(seed_of(writer, number));
    (word % SLOTS, (word >> 32).is_multiple_of(9))
}

/// The name of a slot. Names are spread, so that flushes overlap and compactions have something to merge.
pub(crate) fn key(writer: usize, slot: u64) -> Vec<u8> {
    format!("{:08x}/{writer}/{slot:05}", mix(slot) >> 32).into_bytes()
}

/// The slot of a key; `None` for a foreign key.
pub(crate) fn slot_of_key(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split('/').skip(1);
    let (writer, slot) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (key(writer, slot) == bytes).then_some((writer, slot))
}

/// The value of a write.
pub(crate) fn value(writer: usize, number: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed_of(writer, number));
    let len = rng.usize(..MOST_FILLER_BYTES);
    let mut value = Vec::with_capacity(HEADER_BYTES + len);
    value.extend_from_slice(&(writer as u64).to_le_bytes());
    value.extend_from_slice(&number.to_le_bytes());
    // Half of it compresses.
    value.resize(HEADER_BYTES + len / 2, 7);
    value.extend(std::iter::repeat_with(|| rng.u8(..)).take(len - len / 2));
    value
}

/// The number of the write that put this value under this key, or why no write can have.
pub(crate) fn number_of(key_bytes: &[u8], found: &[u8]) -> Result<u64, String> {
    let name = String::from_utf8_lossy(key_bytes);
    let (writer, slot) =
        slot_of_key(key_bytes).ok_or_else(|| format!("a key that was never written: {name}"))?;
    let number = found
        .get(8..HEADER_BYTES)
        .and_then(|bytes| bytes.first_chunk())
        .map(|word| u64::from_le_bytes(*word));
    let number = number.ok_or_else(|| format!("{name} has a value of {} bytes", found.len()))?;
    if slot_of(writer, number) == (slot, false) && value(writer, number) == found {
        return Ok(number);
    }
    Err(format!("{name} has a value that was never written, of {} bytes", found.len()))
}

fn seed_of(writer: usize, number: u64) -> u64 {
    number << 3 | writer as u64
}

/// Splitmix64.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_its_write_and_no_other_passes() {
        let number = (1..100).find(|number| !slot_of(2, *number).1).unwrap();
        let (key, mut value) = (key(2, slot_of(2, number).0), value(2, number));
        assert_eq!(number_of(&key, &value), Ok(number));
        assert!(number_of(&super::key(1, slot_of(2, number).0), &value).is_err());
        value.pop();
        assert!(number_of(&key, &value).is_err());
        assert!(number_of(b"other", b"").is_err());
    }
}
