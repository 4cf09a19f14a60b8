//! Whole files, or a whole store, under libFuzzer: `FUZZ_TARGET=NAME stores CORPUS -max_total_time=60`; `FUZZ_TARGET=list` names them.

#![no_main]

use std::sync::OnceLock;

use esker_fuzz::{Limited, STORES, Target, chosen};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        TARGET.get_or_init(|| chosen(&STORES));
    },
    |data: &[u8]| TARGET.get_or_init(|| chosen(&STORES)).fuzz(data)
);
