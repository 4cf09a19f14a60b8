//! Tests of backends, contexts and the simulated disk, in one program.
//!
//! Two programs stand beside this folder: `signals`, because signal handlers belong to the process, and `mounts`, which
//! runs in a mount namespace.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]
#![expect(clippy::print_stdout, reason = "seeds are for the reader of a failed run")]

mod context;
mod contract;
mod native;
mod profile;
mod promises;
mod reactor;
mod refusals;
mod sandbox;
mod seeds;
mod sim;
mod sim_faults;
mod sim_model;
mod support;
