//! Compares a reopened store with the model, in full: every keyspace, every key that was ever used, every pair in both
//! directions.
//!
//! Single keys are read first, while no block of the store is in the cache, so `get` meets a failing read as often as an
//! iterator does.
//!
//! Invariant: the store is compared with its *allowed* states. One allowed prefix must explain everything that is seen.

use std::fmt::Write as _;

use bytes::Bytes;
use esker::{Db, Keyspace};

use crate::model::{Bounds, Model, Prefix, Table};
use crate::report::{Check, Failure};

/// A keyspace of the store, and its content.
struct FoundKeyspace {
    name: String,
    handle: Keyspace,
    /// The value of each key that was ever used, in the order of the model.
    values: Vec<Option<Bytes>>,
    pairs: Vec<(Bytes, Bytes)>,
}

/// Finds the longest allowed prefix that the store equals.
pub(crate) fn compare(db: &Db, model: &Model, bounds: &Bounds) -> Check<Prefix> {
    let mut found = Vec::new();
    for name in db.keyspaces() {
        let handle = db.keyspace(&name)?;
        let mut values = Vec::with_capacity(model.used_keys().len());
        for key in model.used_keys() {
            let value = handle.get(key).map_err(|error| Failure::from(error).at(format!("get {key:?}")))?;
            // An iterator may fail below; the reads of single keys must be right without it.
            if !may_be(&name, key, value.as_ref(), model, bounds) {
                return Err(Failure::new(format!(
                    "get {key:?} of {name} gives {value:?}, as nothing allows"
                )));
            }
            values.push(value);
        }
        let pairs = handle
            .iter()
            .collect::<esker::Result<Vec<_>>>()
            .map_err(|error| Failure::from(error).at(format!("iterating {name}")))?;
        found.push(FoundKeyspace { name, handle, values, pairs });
    }
    let prefix = explain(&found, model, bounds)?;
    for keyspace in &found {
        compare_again(keyspace, model).map_err(|failure| failure.at(&keyspace.name))?;
    }
    Ok(prefix)
}

/// Whether some allowed prefix has this value.
fn may_be(name: &str, key: &Bytes, value: Option<&Bytes>, model: &Model, bounds: &Bounds) -> bool {
    bounds.edits.clone().rev().any(|edits| {
        model.names(edits).get(name).is_some_and(|keyspace| {
            let mut states = bounds.commits.clone().rev();
            states.any(|commits| model.state(commits).table(*keyspace).get(key) == value)
        })
    })
}

fn explain(found: &[FoundKeyspace], model: &Model, bounds: &Bounds) -> Check<Prefix> {
    for edits in bounds.edits.clone().rev() {
        for commits in bounds.commits.clone().rev() {
            let prefix = Prefix { commits, edits };
            if equals(found, model, prefix) {
                return Ok(prefix);
            }
        }
    }
    Err(Failure::new(describe(found, model, bounds)))
}

fn equals(found: &[FoundKeyspace], model: &Model, prefix: Prefix) -> bool {
    let names = model.names(prefix.edits);
    names.len() == found.len()
        && names.iter().zip(found).all(|((name, keyspace), found)| {
            found.name == *name && same(&found.pairs, &model.state(prefix.commits).table(*keyspace))
        })
}

fn same(pairs: &[(Bytes, Bytes)], table: &Table) -> bool {
    pairs.len() == table.len()
        && pairs.iter().zip(table).all(|(found, (key, value))| found.0 == key && found.1 == value)
}

/// The other ways to read must agree with the pairs that an iterator gave.
fn compare_again(found: &FoundKeyspace, model: &Model) -> Check {
    let pairs = &found.pairs;
    let mut backwards = found.handle.iter();
    for (key, value) in pairs.iter().rev() {
        let pair = backwards.next_back_ref()?;
        if pair != Some((&key[..], &value[..])) {
            return Err(Failure::new(format!("backwards: expected {key:?}, found {pair:?}")));
        }
    }
    if let Some((key, _)) = backwards.next_back_ref()? {
        return Err(Failure::new(format!("backwards: {key:?} before the first key")));
    }
    for (key, value) in model.used_keys().iter().zip(&found.values) {
        let expected = pairs.binary_search_by(|pair| pair.0.cmp(key)).ok().map(|at| &pairs[at].1);
        if value.as_ref() != expected {
            return Err(Failure::new(format!("get {key:?}: expected {expected:?}, found {value:?}")));
        }
    }
    Ok(())
}

/// Describes the difference for the person who looks for the bug.
fn describe(found: &[FoundKeyspace], model: &Model, bounds: &Bounds) -> String {
    let end = model.end();
    for edits in 0..=end.edits {
        for commits in 0..=end.commits {
            if equals(found, model, Prefix { commits, edits }) {
                return format!(
                    "the store holds {commits} of {} commits and {edits} of {} keyspace edits; allowed were {:?} and {:?}",
                    end.commits, end.edits, bounds.commits, bounds.edits
                );
            }
        }
    }
    let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
    let mut text = format!(
        "the store equals no prefix; allowed were {:?} of {} commits and {:?} of {} edits; keyspaces {names:?}",
        bounds.commits, end.commits, bounds.edits, end.edits
    );
    let upper = model.state(*bounds.commits.end());
    for (name, keyspace) in model.names(*bounds.edits.end()) {
        let Some(found) = found.iter().find(|found| found.name == *name) else { continue };
        let table = upper.table(*keyspace);
        let missing =
            table.iter().filter(|pair| !found.pairs.iter().any(|other| (&other.0, &other.1) == *pair));
        let extra = found.pairs.iter().filter(|pair| table.get(&pair.0) != Some(&pair.1));
        for (key, value) in missing.take(3) {
            let _ = write!(text, "; {name}: {key:?} lacks {value:?}");
        }
        for (key, value) in extra.take(3) {
            let _ = write!(text, "; {name}: {key:?} has {value:?}");
        }
    }
    text
}
