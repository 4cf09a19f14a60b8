//! Calls with the same arguments: how many there were, and which ones came most often. Bounded memory for any number of
//! places; a *place* is a kind of operation, file, offset, length and flags.
//!
//! ```text
//!   hash -> bucket of 8 entries --- found --> counted: it is a repeat
//!                |--- has room -------------> new entry: no place of this bucket was ever given up, so it is new
//!                '--- full --> one bit of the filter --- clear -> set: it is new, and gets no entry
//!                                  '--- set ---------> a repeat: takes the entry with the fewest calls
//! ```
//!
//! Up to about a thousand places all of it is exact. Up to some thousand the number of repeats is. And above:
//!
//! - An entry is taken over as in the algorithm Space-Saving. The new place may have been called as often as the one that it
//!   replaces, and no more: `missed`. That is at most an eighth of the repeats in this bucket, one of 1,024.
//! - A new place may find its bit set by another one. How likely that is follows from the number of set bits, so the number of
//!   such places is known and taken off the repeats (linear counting). The error is random: with a million places about 250
//!   calls.
//! - The filter forgets all places when it becomes too full, after some two million of them. After that a repeat of a
//!   forgotten place is missed once. So the number of repeats is too low and never too high.
//!
//! Entries hold all arguments, so no place is named that was not called. Two places with the same 64 bits of hash are
//! taken for one; among a million places that happens once in some 37 million runs.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::flags::Flags;
use crate::identity::{Identity, mix};
use crate::kind::{IoClass, OperationKind};
use crate::profile::Place;

/// Buckets. The number of one is the upper bits of a hash.
pub(crate) const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 10;

/// Entries of a bucket.
const WAYS: usize = 8;

/// Bits of the filter: 1 MiB. Its memory is allocated when the first bucket is full.
const FILTER_BITS: u32 = 1 << 23;

/// So many set bits, and the filter forgets. With more of them, too many new places look like repeats and take entries, which
/// costs as much as all the rest.
const FULL_FILTER_BITS: u32 = FILTER_BITS / 4;

/// The arguments of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arguments<'a> {
    /// `None` if the kernel does not tell the file: then the call is at no place.
    pub(crate) file: Option<&'a Arc<Identity>>,
    pub(crate) kind: OperationKind,
    pub(crate) flags: Flags,
    pub(crate) offset: u64,
    pub(crate) len_bytes: u64,
}

impl<'a> Arguments<'a> {
    /// Those of `fdatasync` as a call.
    pub(crate) fn of_sync(file: &'a Arc<Identity>) -> Arguments<'a> {
        let (kind, flags) = (OperationKind::DataSync, Flags::NONE);
        Arguments { file: Some(file), kind, flags, offset: 0, len_bytes: 0 }
    }

    pub(crate) fn class(&self) -> IoClass {
        IoClass::of(self.kind, self.flags)
    }

    fn hash(&self, file: &Identity) -> u64 {
        let flags = u64::from(self.flags.bits().cast_unsigned());
        let rest = self.len_bytes ^ flags << 48 ^ (self.kind as u64) << 40;
        mix(mix(file.hash, self.offset), rest)
    }
}

/// Whether a call is a repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Yes, or a new place that looks like one.
    Before,
    /// No. For each such call this many others, in 2^-16, were new too and looked like repeats.
    Never { mistaken: u64 },
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Places {
    buckets: Vec<Option<Box<Bucket>>>,
    filter: Filter,
}

/// Tags and totals are one line of memory, which most new places read and no other; an entry is another one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// The lower bits of the hashes.
    tags: [u32; WAYS],
    /// The most calls that a place may have had, up to 2^32 of them; 0 if there is no entry.
    totals: [u32; WAYS],
    entries: [Option<Entry>; WAYS],
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    hash: u64,
    file: Arc<Identity>,
    offset: u64,
    len_bytes: u64,
    flags: Flags,
    kind: OperationKind,
    /// Since it has this entry.
    pub(crate) calls: u64,
    nanos: u64,
    /// The most calls that it may have had before.
    missed: u64,
}

impl Places {
    /// Counts a call.
    pub(crate) fn count(&mut self, arguments: &Arguments<'_>, nanos: u64) -> Seen {
        let Some(file) = arguments.file else { return Seen::Never { mistaken: 0 } };
        let hash = arguments.hash(file);
        if self.buckets.is_empty() {
            self.buckets.resize_with(BUCKETS, || None);
        }
        let at = usize::try_from(hash >> (u64::BITS - BUCKET_BITS)).unwrap_or(0);
        let bucket = self.buckets[at].get_or_insert_default();
        if let Some((entry, total)) = bucket.find(hash) {
            *total = total.saturating_add(1);
            entry.calls += 1;
            entry.nanos += nanos;
            return Seen::Before;
        }
        let way = bucket.least();
        let (missed, seen) = match bucket.totals[way] {
            0 => (0, Seen::Never { mistaken: 0 }),
            least => {
                let mistaken = self.filter.mistaken();
                if !self.filter.insert(hash) {
                    return Seen::Never { mistaken };
                }
                // The call that set its bit has no entry.
                (u64::from(least) + 1, Seen::Before)
            }
        };
        let Arguments { kind, flags, offset, len_bytes, .. } = *arguments;
        let file = Arc::clone(file);
        let entry = Entry { hash, file, offset, len_bytes, flags, kind, calls: 1, nanos, missed };
        bucket.tags[way] = tag(hash);
        bucket.totals[way] = u32::try_from(missed + 1).unwrap_or(u32::MAX);
        if let Some(old) = bucket.entries[way].replace(entry)
            && old.missed == 0
        {
            // It came when the bucket had room, and has no bit yet.
            self.filter.insert(old.hash);
        }
        seen
    }

    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        let entries = self.buckets.iter().flatten().count() * size_of::<Bucket>();
        entries + size_of_val(&self.buckets[..]) + size_of_val(&self.filter.words[..])
    }

    /// Adds the places of some buckets with the most calls to those of others, the most calls first.
    pub(crate) fn add_top(&self, buckets: Range<usize>, top: &mut Vec<Entry>, most: usize) {
        let buckets = self.buckets.get(buckets).unwrap_or_default();
        for entry in buckets.iter().flatten().flat_map(|bucket| bucket.entries.iter().flatten()) {
            if entry.calls < 2 || top.len() == most && top[most - 1].calls >= entry.calls {
                continue;
            }
            top.truncate(most - 1);
            let at = top.partition_point(|other| other.calls >= entry.calls);
            top.insert(at, entry.clone());
        }
    }
}

/// The part of a hash that the number of its bucket does not tell.
fn tag(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

impl Bucket {
    /// The entry of a place, and its total.
    fn find(&mut self, hash: u64) -> Option<(&mut Entry, &mut u32)> {
        let entries = self.tags.iter().zip(&mut self.entries).zip(&mut self.totals);
        let mut same_tag = entries.filter(|((found, _), _)| **found == tag(hash));
        same_tag
            .find_map(|((_, entry), total)| Some((entry.as_mut().filter(|entry| entry.hash == hash)?, total)))
    }

    /// The place with the fewest calls, or a free one.
    fn least(&self) -> usize {
        let mut least = 0;
        for way in 1..WAYS {
            least = if self.totals[way] < self.totals[least] { way } else { least };
        }
        least
    }
}

impl Entry {
    pub(crate) fn place(&self) -> Place {
        Place {
            kind: self.kind,
            flags: self.flags,
            file_kind: self.file.kind().to_owned(),
            file: self.file.path.to_path_buf(),
            device: self.file.device,
            inode: self.file.inode,
            offset: self.offset,
            len_bytes: self.len_bytes,
            calls: self.calls,
            missed_calls_at_most: self.missed,
            time: Duration::from_nanos(self.nanos),
        }
    }
}

/// One bit for each place.
#[derive(Debug, Default)]
struct Filter {
    words: Vec<u64>,
    set: u32,
}

impl Filter {
    /// Sets the bit of a place; returns whether it was set.
    fn insert(&mut self, hash: u64) -> bool {
        if self.words.is_empty() {
            self.words = vec![0; usize::try_from(FILTER_BITS / u64::BITS).unwrap_or(0)];
        } else if self.set >= FULL_FILTER_BITS {
            self.words.fill(0);
            self.set = 0;
        }
        let bit = hash % u64::from(FILTER_BITS);
        let word = &mut self.words[usize::try_from(bit / u64::from(u64::BITS)).unwrap_or(0)];
        let mask = 1 << (bit % u64::from(u64::BITS));
        let was_set = *word & mask != 0;
        *word |= mask;
        self.set += u32::from(!was_set);
        was_set
    }

    /// How many new places find their bit set, for each one that does not, in 2^-16.
    fn mistaken(&self) -> u64 {
        (u64::from(self.set) << 16) / u64::from(FILTER_BITS - self.set)
    }
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
