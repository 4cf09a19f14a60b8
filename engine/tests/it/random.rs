//! The random generator that the tests share.

use std::sync::OnceLock;

use aio::{Backend as _, NativeBackend};

/// The number in `SEED`, or one that is drawn once per run. Printed, so that a failing run can be repeated.
fn seed() -> u64 {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    let given = || std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seed = *DRAWN.get_or_init(|| given().unwrap_or_else(|| NativeBackend::new().random() >> 32));
    eprintln!("SEED={seed}");
    seed
}

/// A small generator.
pub(crate) struct Random(u64);

impl Random {
    /// Follows from the seed of the run and `salt`, so that each test has numbers of its own.
    pub(crate) fn new(salt: u64) -> Random {
        let mixed = (seed() ^ salt << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Random(mixed | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % limit as u64).unwrap()
    }
}
