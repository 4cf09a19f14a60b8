//! Every decoder of Esker, and the store as a whole, under a fuzzer.
//!
//! [`DECODERS`] and [`STORES`] are the tables of fuzz targets. The programs of those names pass one target to libFuzzer;
//! `corpus` replays inputs and writes them anew from real stores.
//!
//! Invariants of every target: no panic, no endless run, no allocation larger than the input justifies. Encoded data decode
//! to the same data, and a wrong answer is never accepted.

mod input;
mod limit;
mod log;
mod model;
mod replay;
mod specimen;
mod store;

pub use limit::{Limited, with_limit};
pub use specimen::corpus;

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// The longest input that makes sense, in bytes.
    pub most_bytes: usize,
    /// Whether the length of the input limits allocations; otherwise the limit is that of a whole store.
    pub decodes: bool,
    /// Accepts any bytes; panics where a promise is broken.
    pub run: fn(&[u8]),
}

const fn decoder(name: &'static str, most_bytes: usize, run: fn(&[u8])) -> Target {
    Target { name, most_bytes, decodes: true, run }
}

const fn whole(name: &'static str, most_bytes: usize, run: fn(&[u8])) -> Target {
    Target { name, most_bytes, decodes: false, run }
}

/// The decoders, in a program apart from the stores: after every input a fuzzer scans all counters of the program, and a
/// decoder reaches few of those of a store.
pub const DECODERS: [Target; 12] = [
    decoder("sector", 600, log::sector),
    decoder("group", 600, log::group),
    decoder("record", 1024, log::record),
    decoder("chain", 12 << 10, log::chain),
    decoder("batch", 1024, esker::fuzzing::batch),
    decoder("edits", 1024, esker::fuzzing::edits),
    decoder("manifest", 4096, esker::fuzzing::manifest),
    decoder("block", 2048, esker::fuzzing::block),
    decoder("index", 1024, esker::fuzzing::index),
    decoder("filter", 2048, esker::fuzzing::filter),
    decoder("top", 2048, esker::fuzzing::top),
    decoder("footer", 256, esker::fuzzing::footer),
];

/// The targets that need a machine: whole files, and the store as a whole.
pub const STORES: [Target; 4] = [
    whole("segment", 512, esker::fuzzing::segment),
    whole("replay", 512, replay::replay),
    whole("store", 512, store::store),
    whole("model", 256, model::model),
];

/// The largest single allocation of a decoder for an input of this length.
const fn justified(input_bytes: usize) -> usize {
    4 * input_bytes + (1 << 20)
}

/// The largest single allocation of a store of these sizes, for any content of its files.
const STORE_BYTES: usize = 32 << 20;

impl Target {
    /// Runs one input under its limits.
    pub fn fuzz(&self, data: &[u8]) {
        let limit_bytes = if self.decodes { justified(data.len()) } else { STORE_BYTES };
        with_limit(limit_bytes, || (self.run)(data));
    }
}

/// The target that `FUZZ_TARGET` names; `list` prints them all, each with the longest sensible input in bytes.
pub fn chosen(targets: &[Target]) -> Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    if let Some(target) = targets.iter().find(|target| target.name == name) {
        return *target;
    }
    for target in targets {
        println!("{} {}", target.name, target.most_bytes);
    }
    std::process::exit(if name == "list" { 0 } else { 2 })
}
