//! How zones are found and shared; reads through them are tested with `scan`.

use super::*;

fn zones_at(keys: &[&str]) -> Zones {
    let keys: Arc<[Bytes]> = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
    let only: Zone = Arc::new([]);
    let chunk: Arc<[Zone]> = (0..=keys.len()).map(|_| Arc::clone(&only)).collect();
    Zones { heads: keys.iter().map(|key| key_head(key)).collect(), keys, chunks: Box::new([chunk]) }
}

#[test]
fn a_zone_begins_with_its_key_also_where_many_keys_share_their_first_bytes() {
    let begins = ["b", "prefix00", "prefix00a", "prefix00b", "prefix01", "x"];
    let zones = zones_at(&begins);
    let probes =
        ["", "a", "b", "ba", "prefix0", "prefix00", "prefix00\0", "prefix00aa", "prefix00c", "x", "y"];
    for probe in begins.iter().chain(&probes) {
        let expected = begins.iter().filter(|begin| *begin <= probe).count();
        assert_eq!(zones.zone_of(probe.as_bytes()), expected, "{probe}");
        let before = begins.iter().filter(|begin| *begin < probe).count();
        assert_eq!(zones.zone_before(Some(probe.as_bytes())), before, "before {probe}");
    }
    assert_eq!(zones.zone_before(None), begins.len());
}

#[test]
fn without_a_bottom_run_there_is_one_zone() {
    let zones = Zones::default();
    assert_eq!((zones.len(), zones.zone_of(b"any"), zones.begin(0)), (1, 0, &b""[..]));
    assert!(zones.find(zones.start(b"any"), b"any").is_none() && zones.runs().is_empty());
}

impl Zones {
    /// How many chunks both have in the same place of memory.
    pub(crate) fn shared_chunks(&self, other: &Zones) -> usize {
        let pairs = self.chunks.iter().zip(&other.chunks);
        pairs.filter(|(chunk, other)| Arc::ptr_eq(chunk, other)).count()
    }
}
