//! Tests of the log through its public interface, in one program so that they share their helpers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]
#![expect(clippy::print_stdout, reason = "seeds and counts are for the reader of a failed run")]

mod chain;
mod closing;
mod codec;
mod crash;
mod damage;
mod faults;
mod kept;
mod native;
mod shortage;
mod space;
mod support;
mod voids;
mod watermark;
