//! The functions for the fuzzers: one for each private decoder. It takes any bytes and panics where a promise is
//! broken. Compiled under `--cfg fuzzing` only, and no part of the library.
//!
//! Invariant: nothing here hands a decoder out; all comparisons are made here.

pub use crate::segment::fuzzing::{block, filter, footer, index, parts, segment, top};

use std::collections::BTreeMap;
use std::path::Path;

use crate::base::coding::Reader;
use crate::base::key::MAX_KEY_BYTES;
use crate::manifest::edit;
use crate::manifest::edit_log;
use crate::write::ops::{Op, OpsBuilder, ops};

/// A list of edits, each as it stands: an accepted edit has one form.
pub fn edits(data: &[u8]) {
    let mut reader = Reader::new(data);
    let Some(count) = edit::decode_count(&mut reader) else { return };
    for _ in 0..count {
        let before = reader.rest();
        let Some(found) = edit::decode_edit(&mut reader) else { return };
        let taken = &before[..before.len() - reader.rest().len()];
        let mut again = Vec::new();
        edit::encode(std::slice::from_ref(&found), &mut again);
        assert_eq!(&again[4..], taken, "an edit has one form");
    }
}

/// The stream of a manifest: an accepted one is a sound version, and its own list of edits builds the same.
pub fn manifest(data: &[u8]) {
    let Ok(version) = edit_log::replay(Path::new("fuzzed"), data) else { return };
    // Without a format it is refused as a file of another size.
    if version.format.manifest_bytes == 0 {
        return;
    }
    let mut bytes = Vec::new();
    edit::encode(&version.to_edits(), &mut bytes);
    let again =
        edit_log::replay(Path::new("fuzzed"), &bytes).expect("a version that was accepted is accepted");
    assert_eq!(again, version, "the edits of a version build it again");
}

/// The payload of a record: the builder writes an accepted one again, except for superseded operations.
pub fn batch(data: &[u8]) {
    let found: Result<Vec<Op<'_>>, _> = ops(data).collect();
    let Ok(found) = found else {
        let malformed = found.expect_err("it is one");
        assert!(malformed.offset <= data.len());
        return;
    };
    let mut bytes = Vec::new();
    let mut builder = OpsBuilder::begin(&mut bytes);
    for op in &found {
        assert!((1..=MAX_KEY_BYTES).contains(&op.key.len()));
        assert!(op.kind.allows_value_bytes(op.value.len()));
        builder.push(&mut bytes, *op).expect("an operation that was read can be written");
    }
    assert_eq!(&bytes[4..], &data[4..], "a batch has one form");
    let count = builder.finish(&mut bytes);
    let last: BTreeMap<_, _> = found.iter().map(|op| ((op.keyspace, op.key), (op.kind, op.value))).collect();
    let normal: Result<Vec<Op<'_>>, _> = ops(&bytes).collect();
    let normal = normal.expect("a written batch can be read");
    assert_eq!(normal.len(), usize::try_from(count).expect("the operations are in memory"));
    assert_eq!(normal.len(), last.len(), "each key once");
    for op in normal {
        assert_eq!(last.get(&(op.keyspace, op.key)), Some(&(op.kind, op.value)), "the last one counts");
    }
}
