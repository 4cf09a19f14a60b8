//! The required content of an errand's store, of one of its writers.
//!
//! Invariant: after `written` writes both keyspaces hold `expected`, beside the keys of the other writer. Later writes may be there, whole and in order, until
//! [`Ledger::settle`] has checked.

use std::collections::BTreeMap;

use bytes::Bytes;
use esker::{Db, Keyspace};

use super::terms::{BESIDE, WRITER};
use crate::report::{Check, Failure};
use crate::soak::plan::{KEYSPACES, key, number_of, slot_of, slot_of_key};

/// Keys of one call that reads many keys.
const MANY: u64 = 16;

/// The expected content of the store.
#[derive(Debug)]
pub(crate) struct Ledger {
    writer: usize,
    written: u64,
    /// The number of the write that put each key.
    expected: BTreeMap<Vec<u8>, u64>,
}

impl Ledger {
    /// Before the first write.
    pub(crate) fn of(writer: usize) -> Ledger {
        Ledger { writer, written: 0, expected: BTreeMap::new() }
    }

    /// The number of writes that are there.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// All writes up to this one are there.
    pub(crate) fn take(&mut self, written: u64) {
        for number in self.written + 1..=written {
            self.apply(number);
        }
    }

    /// The next write is there.
    pub(crate) fn apply(&mut self, number: u64) {
        let (slot, deletes) = slot_of(self.writer, number);
        if deletes {
            self.expected.remove(&key(self.writer, slot));
        } else {
            self.expected.insert(key(self.writer, slot), number);
        }
        self.written = number;
    }

    /// Finds out which of the next writes up to `most` are there.
    pub(crate) fn settle(&mut self, db: &Db, most: u64) -> Check {
        let keyspace = db.keyspace(KEYSPACES[0])?;
        while self.written < most {
            let next = self.written + 1;
            let (slot, deletes) = slot_of(self.writer, next);
            let key = key(self.writer, slot);
            let there = match keyspace.get(&key)? {
                // A later write may have gone to the same key.
                Some(found) => (next..=most).contains(&number_of(&key, &found).map_err(Failure::new)?),
                // If the key was absent anyway there is no difference.
                None => deletes,
            };
            if !there {
                break;
            }
            self.apply(next);
        }
        Ok(())
    }

    /// Everything in both keyspaces is as it must be.
    pub(crate) fn compare(&self, db: &Db) -> Check {
        for name in KEYSPACES {
            self.scan(&db.keyspace(name)?).map_err(|failure| failure.at(name))?;
        }
        Ok(())
    }

    /// Walks one keyspace.
    pub(crate) fn scan(&self, keyspace: &Keyspace) -> Check {
        let name_of = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let mut iter = keyspace.iter();
        let mut expected = self.expected.iter();
        while let Some((found_key, found)) = iter.next_ref()? {
            let number = number_of(found_key, found).map_err(Failure::new)?;
            if self.is_of_the_other(found_key) {
                continue;
            }
            match expected.next() {
                Some((key, wanted)) if key == found_key && *wanted == number => {}
                other => {
                    let wanted = other.map(|(key, wanted)| (name_of(key), wanted));
                    let found = name_of(found_key);
                    return Err(Failure::new(format!(
                        "expected {wanted:?}, found {found} of write {number}"
                    )));
                }
            }
        }
        match expected.next() {
            Some((key, wanted)) => {
                Err(Failure::new(format!("{} of write {wanted} of {} is gone", name_of(key), self.written)))
            }
            None => Ok(()),
        }
    }

    fn is_of_the_other(&self, key: &[u8]) -> bool {
        let other = if self.writer == WRITER { BESIDE } else { WRITER };
        slot_of_key(key).is_some_and(|(writer, _)| writer == other)
    }

    fn check(&self, key: &[u8], found: Option<&[u8]>) -> Check {
        let number = found.map(|found| number_of(key, found)).transpose().map_err(Failure::new)?;
        let wanted = self.expected.get(key).copied();
        if number == wanted {
            return Ok(());
        }
        let key = String::from_utf8_lossy(key);
        Err(Failure::new(format!("{key} should be of write {wanted:?}, is of {number:?}")))
    }

    /// The keys of some writes up to `number`.
    fn keys_near(&self, number: u64) -> Vec<Vec<u8>> {
        // From the whole time so far, so that some are in segments.
        (0..MANY).map(|nth| key(self.writer, slot_of(self.writer, 1 + number * nth / MANY).0)).collect()
    }

    /// Reads some keys, one by one.
    pub(crate) fn get(&self, keyspace: &Keyspace, number: u64) -> Check {
        self.keys_near(number).iter().try_for_each(|key| self.check(key, keyspace.get(key)?.as_deref()))
    }

    /// Reads some keys in one call.
    pub(crate) fn multi_get(
        &self,
        number: u64,
        read: impl FnOnce(&[Vec<u8>]) -> esker::Result<Vec<Option<Bytes>>>,
    ) -> Check {
        let keys = self.keys_near(number);
        let found = read(&keys)?;
        keys.iter().zip(found).try_for_each(|(key, found)| self.check(key, found.as_deref()))
    }

    /// Reads every key except that of the write in flight, whose result is unknown.
    pub(crate) fn get_all(&self, keyspace: &Keyspace) -> Check {
        let in_flight = key(self.writer, slot_of(self.writer, self.written + 1).0);
        let known = self.expected.keys().filter(|key| **key != in_flight);
        for key in known {
            let found = keyspace.get(key).map_err(|error| Failure::from(error).at("a read"))?;
            self.check(key, found.as_deref())?;
        }
        Ok(())
    }
}
