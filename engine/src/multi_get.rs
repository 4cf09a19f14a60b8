//! Many gets at once, stage by stage for all keys, so that waits overlap: those for the device, and those for memory.
//!
//! ```text
//!   key -> memtables -> asking: filter, index of the next run -> looking: cache, search -> shown
//!                         ^                                        |   ^      | not here: next run
//!                         +----------------------------------------|---|------+
//!                                                           not in |   | next block of the same key
//!                                                        the cache v   |
//!                                                                parked: all are read together, then searched
//! ```
//!
//! Cost: a key takes what a get takes, and the call a few small allocations. What no memory decides is read when there is
//! nothing else to do, so as many blocks as there can be go to the device together, each once.
//!
//! Invariants: every key is in one of the lists or was shown, once; all see the same position; what is in flight is
//! bounded by [`MOST_READS`] and [`MOST_READ_BYTES`], whatever the number of keys.

use std::sync::Arc;

use crate::error::Result;
use crate::files::QUEUE_SLOTS;
use crate::key::{Kind, Seq, key_hash};
use crate::segment::{Block, Segment, Step};
use crate::superversion::Superversion;

/// Reads in flight of one call: what a context takes before any is waited for.
const MOST_READS: usize = QUEUE_SLOTS;

/// Bytes in flight of one call, unless one block alone is larger: a quarter of what the memory budget has for buffers.
const MOST_READ_BYTES: usize = 2 << 20;

/// Blocks that are held at once while they are searched: as many guards as are cheap, see `cache`.
const LOOKED_AT: usize = 6;

/// Shows every key's value as of `snapshot` to `found`, in any order.
///
/// # Errors
/// A read failed, or a block is damaged; what was shown is right.
pub(crate) fn multi_get_with<K: AsRef<[u8]>>(
    superversion: &Superversion,
    keys: &[K],
    snapshot: Seq,
    found: impl FnMut(usize, Option<&[u8]>),
) -> Result<()> {
    let mut search = MultiGet {
        superversion,
        keys,
        snapshot,
        found,
        asking: Vec::with_capacity(keys.len()),
        looking: Vec::with_capacity(keys.len()),
        parked: Vec::new(),
    };
    search.look_in_tables();
    loop {
        while !search.asking.is_empty() || !search.looking.is_empty() {
            search.ask_runs();
            search.look_in_cache();
        }
        if search.parked.is_empty() {
            return Ok(());
        }
        search.read()?;
    }
}

/// A key that is not decided.
#[derive(Clone, Copy)]
struct Wanted {
    /// Its place among the keys.
    at: usize,
    hash: u64,
    /// The newest run that was not asked.
    run: usize,
}

/// A key and the block that decides next.
#[derive(Clone, Copy)]
struct Spot<'a> {
    wanted: Wanted,
    segment: &'a Arc<Segment>,
    number: usize,
}

impl Spot<'_> {
    /// Groups those who want the same block, in the order of files.
    fn block_id(&self) -> (u64, usize) {
        (self.segment.meta().id, self.number)
    }
}

struct MultiGet<'a, K, F> {
    superversion: &'a Superversion,
    keys: &'a [K],
    snapshot: Seq,
    found: F,
    /// Keys of which the next run is to be asked.
    asking: Vec<Wanted>,
    /// Keys of which a block is to be looked for in the cache.
    looking: Vec<Spot<'a>>,
    /// Keys whose block is not in the cache.
    parked: Vec<Spot<'a>>,
}

impl<'a, K: AsRef<[u8]>, F: FnMut(usize, Option<&[u8]>)> MultiGet<'a, K, F> {
    fn show(&mut self, at: usize, kind: Kind, value: &[u8]) {
        (self.found)(at, (kind == Kind::Put).then_some(value));
    }

    fn look_in_tables(&mut self) {
        for (at, key) in self.keys.iter().enumerate() {
            let hash = key_hash(key.as_ref());
            match self.superversion.get_in_tables(key.as_ref(), hash, self.snapshot) {
                Some((kind, value)) => self.show(at, kind, value),
                None => self.asking.push(Wanted { at, hash, run: 0 }),
            }
        }
    }

    /// Finds for every key the next run that may hold it, and the block there.
    fn ask_runs(&mut self) {
        for wanted in &self.asking {
            let run = self.superversion.runs.get(wanted.run);
            let segment = run.and_then(|run| run.segment_of(self.keys[wanted.at].as_ref()));
            if let Some(segment) = segment {
                segment.prefetch_filter(wanted.hash);
            }
        }
        while let Some(mut wanted) = self.asking.pop() {
            let key = self.keys[wanted.at].as_ref();
            let spot = loop {
                let Some(run) = self.superversion.runs.get(wanted.run) else { break None };
                wanted.run += 1;
                let segment = run.segment_of(key);
                let segment = segment.filter(|segment| segment.may_show(key, wanted.hash, self.snapshot));
                if let Some(segment) = segment
                    && let Some(number) = segment.first_block(key)
                {
                    segment.prefetch_slot(number);
                    break Some(Spot { wanted, segment, number });
                }
            };
            match spot {
                Some(spot) => self.looking.push(spot),
                None => (self.found)(wanted.at, None),
            }
        }
    }

    /// Searches the blocks that are in the cache and parks the keys of the others.
    fn look_in_cache(&mut self) {
        let looking = std::mem::take(&mut self.looking);
        let mut held = Vec::with_capacity(LOOKED_AT);
        for spots in looking.chunks(LOOKED_AT) {
            // First all loads, which do not wait for each other, then the searches: a search behind a miss of the
            // processor's caches would hold the next load back.
            held.extend(spots.iter().map(|spot| spot.segment.cached(spot.number)));
            for (spot, held) in spots.iter().zip(&held) {
                if let Some(frame) = held.as_ref() {
                    Block::of(frame).prefetch_entry(spot.wanted.hash);
                }
            }
            for (spot, held) in spots.iter().zip(held.drain(..)) {
                match held.as_ref() {
                    Some(frame) => self.search(*spot, Block::of(frame)),
                    None => self.parked.push(*spot),
                }
            }
        }
    }

    /// Searches one block and puts the key where it goes from there.
    fn search(&mut self, spot: Spot<'a>, block: Block<'_>) {
        let Spot { wanted, segment, number } = spot;
        let key = self.keys[wanted.at].as_ref();
        match segment.search(number, block, (key, wanted.hash), self.snapshot) {
            Step::Found(kind, _, value) => self.show(wanted.at, kind, value),
            Step::Block(number) => self.looking.push(Spot { number, ..spot }),
            Step::Absent => self.asking.push(wanted),
        }
    }

    /// Reads as many of the blocks that are waited for as may be in flight, and searches them.
    fn read(&mut self) -> Result<()> {
        self.parked.sort_unstable_by_key(Spot::block_id);
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        let mut count = 0;
        for spots in self.parked.chunk_by(|a, b| a.block_id() == b.block_id()) {
            let Some(first) = spots.first() else { continue };
            bytes += first.segment.stored_bytes(first.number);
            if blocks.len() == MOST_READS || bytes > MOST_READ_BYTES && !blocks.is_empty() {
                break;
            }
            blocks.push((first.segment, first.number));
            count += spots.len();
        }
        let reading: Vec<Spot<'a>> = self.parked.drain(..count).collect();
        let mut groups = reading.chunk_by(|a, b| a.block_id() == b.block_id());
        Segment::read_blocks(&blocks, |block| {
            for spot in groups.next().unwrap_or_default() {
                self.search(*spot, block);
            }
        })
    }
}
