//! The seeds of the random tests.

use std::ops::Range;
use std::sync::OnceLock;

use aio::{Backend as _, NativeBackend};

/// As many seeds as asked for. The first is the number in `SEED`, or one that is drawn once per run; it is printed.
pub(crate) fn seeds(count: u64) -> Range<u64> {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    let given = || std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let first = *DRAWN.get_or_init(|| given().unwrap_or_else(|| NativeBackend::new().random() >> 32));
    println!("SEED={first}");
    first..first + count
}
