//! Tests of the store through its public interface. They are one program, since that builds fastest.
//!
//! Tests that need a process of their own (an allocator that counts, a fork, the machine's AIO slots, a scheduler) are
//! beside this folder.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]
#![expect(clippy::print_stderr, reason = "the seed of a failure is printed")]
#![expect(clippy::disallowed_methods, reason = "tests damage files without the store")]
#![expect(clippy::big_endian_bytes, reason = "keys in the order of their numbers")]

mod bad_machine;
mod basics;
mod close;
mod cold_reads;
mod descriptors;
mod failed_open;
mod fall_backs;
mod faults;
mod filters;
mod foreign_keyspace;
mod full_disk;
mod get_async;
mod golden;
mod halted;
mod log_files;
mod multi_get;
mod obsolete_files;
mod open;
mod pacing;
mod paged;
mod power_cuts;
mod random;
mod read_ahead;
mod repair;
mod repair_loss;
mod warm_cache;
mod watched;
