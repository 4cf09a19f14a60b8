//! The sizes of a segment's blocks.

use super::*;

/// Values that are partly noise and otherwise zeros.
#[test]
fn blocks_that_a_little_less_makes_fit_into_a_page_fit() {
    let mut random = Random::new(11);
    // Blocks of 8 KiB would be stored in up to 5 KiB, or in more than 5.5.
    for (noise, fits) in [(40, true), (45, true), (50, true), (58, false), (80, false)] {
        let value = |random: &mut Random| [random.bytes(noise), vec![0; 100 - noise]].concat();
        let entries: Vec<Owned> = (0..4000_u32)
            .map(|i| {
                let key = [format!("{i:04}").into_bytes(), random.bytes(12)].concat();
                (key, 9, Kind::Put, value(&mut random))
            })
            .collect();
        let (_sim, files) = machine();
        let meta = write(&files, options(8 << 10, true), &entries).unwrap();
        let segment = open(&files, &cache(1 << 20), &meta).unwrap();
        // The last block holds the remaining entries, and the first was cut before the writer knew how well they compress.
        let stored: Vec<u64> = (1..segment.blocks - 1).map(|block| segment.block_bytes(block)).collect();
        let on_a_page = stored.iter().filter(|&&bytes| bytes <= 4096).count();
        assert!(stored.len() > 40 && (on_a_page * 10 >= stored.len() * 9) == fits, "{noise}: {stored:?}");
        assert!(
            stored.iter().all(|&bytes| bytes >= 3584),
            "{noise}: no smaller than they must be: {stored:?}"
        );
    }
}
