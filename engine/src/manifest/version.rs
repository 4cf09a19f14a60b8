//! The immutable description of a store at one moment, and the edits that lead from one version to the next.
//!
//! A [`Version`] is plain data (numbers, names, segment descriptions), so picking, recovery and checks are pure
//! functions over it. The manifest is the log of its edits; a full version is itself written as the list of edits
//! that builds it from nothing.
//!
//! Invariants: file numbers, keyspace ids, epochs and incarnations are never reused. `levels` has the invariants of runs.

use std::collections::{BTreeMap, BTreeSet};

use wal::{ActiveFile, GRANULE, MAX_EPOCH, STEP};

use crate::base::key::Seq;
use crate::base::planted::{Bug, planted};
use crate::io::kinds::MAX_FILE;
use crate::manifest::levels::{Levels, Merged, PieceMeta};
use crate::segment::SegmentMeta;

/// The facts that a program needs before it reads any other byte of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) version: u32,
    /// Bits of features that the store uses beyond the version; an unknown bit is refused.
    pub(crate) features: u64,
    /// Size of the manifest file that holds this edit, so that a cut file is noticed.
    pub(crate) manifest_bytes: u64,
}

/// The facts that hold for one writable open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Incarnation {
    /// Drawn at random when the store is made, or copied; seeds the checksums of log and ring, so that no other store's
    /// bytes validate.
    pub(crate) store_id: u64,
    /// Counts writable opens, from 1.
    pub(crate) number: u32,
    /// Its first position in the stream.
    pub(crate) start: Seq,
    /// File number of its ring.
    pub(crate) ring: u64,
    /// Size of its ring.
    pub(crate) ring_bytes: u64,
    /// Size of its log files.
    pub(crate) log_file_bytes: u64,
}

/// A store from which this one was copied, with the files that it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// It wrote the files below this number, down to the bound of the previous origin.
    pub(crate) below: u64,
    pub(crate) store_id: u64,
}

/// One keyspace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KeyspaceVersion {
    pub(crate) name: String,
    /// Every entry of this keyspace below this position is in its segments.
    pub(crate) flushed: Seq,
    pub(crate) levels: Levels,
}

/// The live files of a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Version {
    pub(crate) format: Format,
    pub(crate) incarnation: Incarnation,
    /// The stores that wrote the segments of a copy, by rising file numbers. All later files are the store's own. Empty in a
    /// store that is no copy.
    pub(crate) origins: Vec<Origin>,
    /// Bytes of the ring's file that have been made so far.
    pub(crate) ring_file_bytes: u64,
    /// Every entry of every keyspace below this position is in segments: replay begins here.
    pub(crate) horizon: Seq,
    /// Log files in the order in which the log used them.
    pub(crate) logs: Vec<ActiveFile>,
    pub(crate) keyspaces: BTreeMap<u32, KeyspaceVersion>,
    /// Dropped keyspaces that records in the log may still name.
    pub(crate) dropped: Vec<u32>,
    /// The next unused file number.
    pub(crate) next_file: u64,
    pub(crate) next_epoch: u32,
    pub(crate) next_keyspace: u32,
}

/// One step from a version to the next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Edit {
    Format(Format),
    /// A new incarnation begins. The log files of the previous one are no longer live, and the ring's file has its full
    /// size.
    Incarnation(Incarnation),
    /// Lower bounds for the counters.
    Counters {
        next_file: u64,
        next_epoch: u32,
        next_keyspace: u32,
    },
    /// A log file gets a new epoch; its stream begins at `start`.
    FileActivated(ActiveFile),
    /// Every entry below `at` is in segments, and these log files are no longer needed.
    Horizon {
        at: Seq,
        retired: Vec<u64>,
    },
    KeyspaceCreated {
        keyspace: u32,
        name: String,
    },
    KeyspaceDropped {
        keyspace: u32,
    },
    /// Every entry of the keyspace below `to` is in segments. The pieces, if there are any, are a run with that stamp.
    Flushed {
        keyspace: u32,
        to: Seq,
        pieces: Vec<PieceMeta>,
    },
    /// A merge replaced pieces by others.
    Merged {
        keyspace: u32,
        merged: Merged,
    },
    /// The file of the ring has this many bytes.
    RingGrown {
        file_bytes: u64,
    },
    /// The stores that wrote the segments of a copy.
    Origins(Vec<Origin>),
}

impl Version {
    /// Applies an edit. `Err` names the rule that it breaks; the version must not be used after it.
    pub(crate) fn apply(&mut self, edit: &Edit) -> Result<(), &'static str> {
        match edit {
            Edit::Format(format) => self.format = *format,
            Edit::Incarnation(incarnation) => {
                self.incarnation = incarnation.clone();
                self.ring_file_bytes = incarnation.ring_bytes;
                self.logs.clear();
            }
            Edit::Counters { next_file, next_epoch, next_keyspace } => {
                self.next_file = self.next_file.max(*next_file);
                self.next_epoch = self.next_epoch.max(*next_epoch);
                self.next_keyspace = self.next_keyspace.max(*next_keyspace);
            }
            Edit::FileActivated(file) => self.activate(file)?,
            Edit::Horizon { at, retired } => {
                self.horizon = self.horizon.max(*at);
                self.logs.retain(|file| !retired.contains(&file.id));
            }
            Edit::KeyspaceCreated { keyspace, name } => {
                if planted(Bug::KeyspaceIdReused) {
                    self.dropped.retain(|dropped| dropped != keyspace);
                }
                if self.dropped.contains(keyspace) {
                    return Err("a keyspace id is used twice");
                }
                let fresh = KeyspaceVersion { name: name.clone(), ..KeyspaceVersion::default() };
                if self.keyspaces.insert(*keyspace, fresh).is_some() {
                    return Err("a keyspace id is used twice");
                }
                self.next_keyspace = self.next_keyspace.max(keyspace.saturating_add(1));
            }
            Edit::KeyspaceDropped { keyspace } => {
                self.keyspaces.remove(keyspace).ok_or("an unknown keyspace is dropped")?;
                self.dropped.push(*keyspace);
            }
            Edit::Flushed { keyspace, to, pieces } => {
                self.note_files(pieces);
                let keyspace = self.keyspaces.get_mut(keyspace).ok_or("an unknown keyspace is flushed")?;
                keyspace.flushed = keyspace.flushed.max(*to);
                keyspace.levels.add(*to, pieces)?;
            }
            Edit::Merged { keyspace, merged } => {
                self.note_files(&merged.out);
                let keyspace = self.keyspaces.get_mut(keyspace).ok_or("an unknown keyspace is merged")?;
                keyspace.levels.merge(merged)?;
            }
            Edit::RingGrown { file_bytes } => {
                if *file_bytes > self.incarnation.ring_bytes {
                    return Err("a ring has more bytes than its size");
                }
                self.ring_file_bytes = *file_bytes;
            }
            Edit::Origins(origins) => self.origins.clone_from(origins),
        }
        Ok(())
    }

    /// The edits that build this version from nothing.
    pub(crate) fn to_edits(&self) -> Vec<Edit> {
        let mut edits = vec![
            Edit::Format(self.format),
            Edit::Incarnation(self.incarnation.clone()),
            Edit::Origins(self.origins.clone()),
            Edit::RingGrown { file_bytes: self.ring_file_bytes },
            Edit::Counters {
                next_file: self.next_file,
                next_epoch: self.next_epoch,
                next_keyspace: self.next_keyspace,
            },
            Edit::Horizon { at: self.horizon, retired: Vec::new() },
        ];
        edits.extend(self.logs.iter().copied().map(Edit::FileActivated));
        for (&keyspace, state) in &self.keyspaces {
            edits.push(Edit::KeyspaceCreated { keyspace, name: state.name.clone() });
            // A flushed run must be newer than all others, so the oldest run is added first.
            edits.extend(state.levels.runs().iter().rev().map(|run| Edit::Flushed {
                keyspace,
                to: run.stamp,
                pieces: run.pieces.clone(),
            }));
            edits.push(Edit::Flushed { keyspace, to: state.flushed, pieces: Vec::new() });
        }
        for &keyspace in &self.dropped {
            edits.push(Edit::KeyspaceCreated { keyspace, name: String::new() });
            edits.push(Edit::KeyspaceDropped { keyspace });
        }
        edits
    }

    /// The runs of a keyspace.
    ///
    /// # Panics
    /// There is no such keyspace.
    pub(crate) fn levels(&self, keyspace: u32) -> &Levels {
        &self.keyspaces[&keyspace].levels
    }

    /// Every live segment, once.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &SegmentMeta> {
        self.keyspaces.values().flat_map(|keyspace| keyspace.levels.segments())
    }

    /// The id of the store that wrote the segment with this file number.
    pub(crate) fn origin_of(&self, file: u64) -> u64 {
        let before = self.origins.partition_point(|origin| origin.below <= file);
        self.origins.get(before).map_or(self.incarnation.store_id, |origin| origin.store_id)
    }

    /// Checks the rules between the parts of a version.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let names: BTreeSet<&str> = self.keyspaces.values().map(|keyspace| keyspace.name.as_str()).collect();
        if names.len() != self.keyspaces.len() {
            return Err("two keyspaces have the same name");
        }
        for (&id, keyspace) in &self.keyspaces {
            keyspace.levels.check(id, keyspace.flushed)?;
        }
        let mut ids: Vec<u64> = self.segments().map(|segment| segment.id).collect();
        ids.extend(self.logs.iter().map(|file| file.id));
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != count {
            return Err("a file number is used twice");
        }
        if ids.last().is_some_and(|&last| last >= self.next_file) {
            return Err("a file number above the counter is in use");
        }
        let bounds = || self.origins.iter().map(|origin| origin.below);
        if bounds().zip(bounds().skip(1)).any(|(below, next)| below >= next) {
            return Err("the origins of files are out of order");
        }
        if bounds().next_back().is_some_and(|below| below > self.next_file) {
            return Err("a file number that is not used yet belongs to another store");
        }
        // The next number would be in use already. The code that takes it relies on a free one.
        if self.next_file > MAX_FILE || self.next_keyspace == u32::MAX || self.next_epoch > MAX_EPOCH {
            return Err("a counter is used up");
        }
        // A replay begins at the horizon or at the start of the incarnation, and a flushed position may become the horizon.
        let flushed = self.keyspaces.values().map(|keyspace| keyspace.flushed);
        if flushed
            .chain([self.horizon, self.incarnation.start])
            .any(|at| !at.get().is_multiple_of(GRANULE as u64))
        {
            return Err("a position is not where a record can start");
        }
        Ok(())
    }

    /// Checks the rules on which a replay relies, and a log that continues in the same ring.
    pub(crate) fn check_log(&self) -> Result<(), &'static str> {
        if self.incarnation.ring_bytes == 0 {
            return Err("an incarnation has a ring of no bytes");
        }
        let there = self.ring_file_bytes;
        if there == 0 || !there.is_multiple_of(STEP as u64) {
            return Err("the file of a ring is not whole steps");
        }
        Ok(())
    }

    fn activate(&mut self, file: &ActiveFile) -> Result<(), &'static str> {
        if self.logs.iter().any(|other| other.id == file.id || other.epoch >= file.epoch) {
            return Err("a log file or epoch is used twice");
        }
        if self.logs.last().is_some_and(|last| last.start > file.start) {
            return Err("log files are not in stream order");
        }
        self.next_file = self.next_file.max(file.id.saturating_add(1));
        self.next_epoch = self.next_epoch.max(file.epoch.saturating_add(1));
        self.logs.push(*file);
        Ok(())
    }

    fn note_files(&mut self, pieces: &[PieceMeta]) {
        for piece in pieces {
            self.next_file = self.next_file.max(piece.segment.id.saturating_add(1));
        }
    }
}

#[cfg(test)]
#[path = "version_tests.rs"]
mod tests;
