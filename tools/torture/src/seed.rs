//! The seed of a run: that of `--seed`, that of `SEED` in the environment, or a new one. It is printed before anything else.

use aio::{Backend as _, NativeBackend};
use clap::Args;

use crate::report::{Check, Failure, complain};

/// Drawn seeds are short enough to be copied by hand.
const DRAWN_BITS: u32 = 32;

/// The option of every command that draws random numbers.
#[derive(Debug, Args)]
pub(crate) struct SeedArg {
    /// The same seed and limits (other than time) give the same run. By default the number in `SEED`, or a new one.
    #[arg(long)]
    seed: Option<u64>,
}

impl SeedArg {
    /// Chooses the seed, and prints it to standard error.
    ///
    /// # Errors
    /// `SEED` is not a number.
    pub(crate) fn choose(&self) -> Check<u64> {
        let seed = match (self.seed, std::env::var("SEED")) {
            (Some(seed), _) => seed,
            (None, Ok(text)) if !text.is_empty() => {
                text.parse().map_err(|_| Failure::new(format!("SEED={text} is not a number")))?
            }
            (None, _) => NativeBackend::new().random() >> (u64::BITS - DRAWN_BITS),
        };
        complain(format!("SEED={seed}"));
        Ok(seed)
    }
}
