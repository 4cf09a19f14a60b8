//! Many gets at once, stage by stage for all keys, so that waits overlap: those for the device, and those for memory.
//!
//! ```text
//!   key -> memtables -> asking: filter, index of the next run -> looking: cache, search -> shown
//!                         ^                                        |   ^      | not here: next run
//!                         +----------------------------------------|---|------+
//!                                                           not in |   | next block of the same key, or from filter block
//!                                                        the cache v   | to index block to data block, where these are paged
//!                                       parked -> reading, each block once: checked, decoded, searched
//! ```
//!
//! A [`SearchState`] does no I/O and waits for nothing. [`Search::drive`] takes the steps: it submits the reads that the
//! search needs and searches each block when it is there. The reads go to a [`Reads`]: a context of the calling thread for
//! [`multi_get_with`], the reactor of the store for futures.
//!
//! Cost: a key costs as much as a get, and the call a few small allocations. Blocks are read only when memory decides nothing
//! more, so that as many as possible are in flight together. Blocks that came are checked and decoded while the others are
//! under way, and the window is filled again before that.
//!
//! Invariants: every key is in one of the lists or was shown, once; all see the same position; the reads in flight are
//! bounded by [`MOST_READS`] and [`MOST_READ_BYTES`] for any number of keys.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use aio::{Buf, Completion, File, Operation};

use crate::base::error::Result;
use crate::base::key::{Kind, Seq, key_hash};
use crate::io::contexts::{Lent, Size};
use crate::io::files::Files;
use crate::segment::{Aim, Block, Segment, Step};
use crate::tree::superversion::Superversion;
use crate::tree::zones::PieceAt;

/// Reads in flight of one call: as many as a context takes.
const MOST_READS: usize = Size::WIDE_SLOTS;

/// Bytes in flight of one call, unless one block alone is larger: a quarter of the budget's share for I/O buffers.
const MOST_READ_BYTES: usize = 2 << 20;

/// A wait ends when this part of the reads in flight has completed: a smaller part costs more sleeps, a larger one lets the
/// device run empty before its blocks are decoded.
const PART_WAITED_FOR: usize = 4;

/// Blocks that are held at once while they are searched: as many as hazard slots are cheap for, see `cache`.
const LOOKED_AT: usize = 6;

/// Shows every key's value as of `snapshot` to `found`, in any order; reads in this thread.
///
/// # Errors
/// A read failed, or a block is damaged; the values that were shown are right.
pub(crate) fn multi_get_with<K: AsRef<[u8]>>(
    superversion: &Superversion,
    keys: &[K],
    snapshot: Seq,
    found: impl FnMut(usize, Option<&[u8]>),
) -> Result<()> {
    let mut state = SearchState::new(keys.len(), snapshot);
    let mut search = Search { state: &mut state, superversion, keys, found };
    search.begin();
    search.finish()
}

/// No file has this number.
const NO_FILE: u64 = 0;

/// A key that is not decided.
#[derive(Clone, Copy, Debug)]
struct PendingKey {
    /// Its index among the keys.
    at: usize,
    hash: u64,
    /// The newest piece that may hold an entry of the key.
    piece: PieceAt,
    /// The file of its segment, once the bounds of the piece are known to hold the key; [`NO_FILE`] if there is no such piece.
    file: u64,
}

impl PendingKey {
    /// Goes on to a piece whose bounds hold `key`, and returns its segment; `None` if there is no further piece.
    #[inline]
    fn next_segment<'a>(&mut self, superversion: &'a Superversion, key: &[u8]) -> Option<&'a Segment> {
        let Some((at, piece)) = superversion.zones.find(self.piece, key) else {
            self.file = NO_FILE;
            return None;
        };
        self.piece = at;
        self.file = piece.segment.meta().id;
        Some(&piece.segment)
    }

    /// The segment that was found last.
    #[inline]
    fn segment<'a>(&self, superversion: &'a Superversion) -> Option<&'a Segment> {
        (self.file != NO_FILE).then(|| &*superversion.zones.piece(self.piece).segment)
    }
}

/// Names a block on the device. One segment may belong to several zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct BlockId {
    file: u64,
    number: usize,
}

/// A key, and the block that decides next.
#[derive(Clone, Copy, Debug)]
struct BlockVisit {
    pending: PendingKey,
    aim: Aim,
}

impl BlockVisit {
    #[inline]
    fn block_id(&self) -> BlockId {
        BlockId { file: self.pending.file, number: self.aim.number }
    }

    fn segment<'a>(&self, superversion: &'a Superversion) -> &'a Arc<Segment> {
        &superversion.zones.piece(self.pending.piece).segment
    }
}

/// A block that was asked for.
#[derive(Debug)]
struct Read {
    block: BlockId,
    aim: Aim,
    bytes: usize,
    /// The keys that wait for it.
    visits: Vec<BlockVisit>,
}

/// The state of a search between two steps: it borrows nothing, so a future can keep it.
#[derive(Debug)]
pub(crate) struct SearchState {
    snapshot: Seq,
    /// Keys for which the next piece is asked.
    asking: Vec<PendingKey>,
    /// Keys for which a block is looked up in the cache.
    looking: Vec<BlockVisit>,
    /// Keys whose block is not in the cache and was not asked for.
    parked: Vec<BlockVisit>,
    /// Whether `parked` is in falling order of blocks.
    is_sorted: bool,
    /// Blocks whose reads are under way, by the number of the read.
    reading: Vec<Option<Read>>,
    /// The number of reads under way.
    reads: usize,
    /// And their bytes.
    read_bytes: usize,
}

impl SearchState {
    /// For `keys` keys, as of `snapshot`.
    pub(crate) fn new(keys: usize, snapshot: Seq) -> SearchState {
        SearchState {
            snapshot,
            asking: Vec::with_capacity(keys),
            looking: Vec::with_capacity(keys),
            parked: Vec::new(),
            is_sorted: true,
            reading: Vec::new(),
            reads: 0,
            read_bytes: 0,
        }
    }

    /// Whether every key was shown; between two steps.
    pub(crate) fn is_done(&self) -> bool {
        self.parked.is_empty() && self.reads == 0
    }

    /// The read with this number has completed or failed, so there is room for another one.
    fn ended(&mut self, number: usize) -> Read {
        let read = self.reading[number].take().expect("a read ends once");
        self.reads -= 1;
        self.read_bytes -= read.bytes;
        read
    }

    /// Waits for a block, together with the keys that wait for it already.
    fn park(&mut self, visit: BlockVisit) {
        let same = |read: &&mut Read| read.block == visit.block_id();
        if self.reads > 0
            && let Some(read) = self.reading.iter_mut().flatten().find(same)
        {
            read.visits.push(visit);
        } else {
            self.parked.push(visit);
            self.is_sorted = false;
        }
    }
}

/// Where the reads of a search are submitted, and where their completions come from.
pub(crate) trait Reads {
    /// Takes a read, and submits it with the next [`Reads::submit`] at the latest.
    fn add(&mut self, request: ReadRequest);

    /// Submits the reads that were added.
    ///
    /// # Errors
    /// The context is dead, or a read was refused.
    fn submit(&mut self) -> Result<()>;

    /// Adds completions to `ended_reads`. No completion: the caller comes again when there is one.
    ///
    /// # Errors
    /// The context is dead.
    fn completed(&mut self, ended_reads: &mut Vec<EndedRead>) -> Result<()>;
}

/// A read that a search needs.
#[derive(Debug)]
pub(crate) struct ReadRequest {
    /// Names the read.
    pub(crate) number: usize,
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) len_bytes: usize,
}

/// A read that has ended.
#[derive(Debug)]
pub(crate) struct EndedRead {
    pub(crate) number: usize,
    pub(crate) result: Result<Completion>,
}

/// Reads in the calling thread, which sleeps until some have completed.
struct ThreadReads<'a> {
    files: &'a Files,
    /// Held while the caller is shown values, and its code may wait for other threads. `None`: there is none for that, so
    /// blocks are read one by one.
    queue: Option<Lent>,
    /// Not submitted.
    waiting: VecDeque<Operation>,
    done: Vec<Completion>,
}

impl Reads for ThreadReads<'_> {
    fn add(&mut self, request: ReadRequest) {
        let read = Operation::read(&request.file, request.offset, self.files.buf(request.len_bytes));
        self.waiting.push_back(read.with_token(request.number as u64));
    }

    fn submit(&mut self) -> Result<()> {
        if let Some(queue) = self.queue.as_deref_mut().filter(|_| !self.waiting.is_empty()) {
            queue.submit(&mut self.waiting)?;
        }
        Ok(())
    }

    fn completed(&mut self, ended_reads: &mut Vec<EndedRead>) -> Result<()> {
        if let Some(queue) = &mut self.queue {
            // A signal ends a wait early.
            while self.done.is_empty() {
                let part = queue.in_flight().div_ceil(PART_WAITED_FOR);
                queue.wait(part, None, &mut self.done)?;
            }
        } else {
            let next = self.waiting.pop_front();
            self.done = self.files.with_queue(|queue| Ok(aio::file::run(queue, next)?))?;
        }
        ended_reads.extend(self.done.drain(..).map(|completion| {
            let number = usize::try_from(completion.operation.token()).expect("a number of a read");
            EndedRead { number, result: Ok(completion) }
        }));
        Ok(())
    }
}

/// Is shown the values that were found.
pub(crate) trait Show {
    /// The value of the key with this index; `None` if it has no value.
    fn show(&mut self, at: usize, value: Option<&[u8]>);
}

impl<F: FnMut(usize, Option<&[u8]>)> Show for F {
    fn show(&mut self, at: usize, value: Option<&[u8]>) {
        self(at, value);
    }
}

/// A search with the data that it reads.
#[derive(Debug)]
pub(crate) struct Search<'a, K, F> {
    pub(crate) state: &'a mut SearchState,
    pub(crate) superversion: &'a Superversion,
    pub(crate) keys: &'a [K],
    /// Sees every key's value.
    pub(crate) found: F,
}

impl<'a, K: AsRef<[u8]>, F: Show> Search<'a, K, F> {
    /// The first step: everything that memory decides.
    pub(crate) fn begin(&mut self) {
        self.look_in_tables();
        self.advance();
    }

    /// Goes on until every key was shown or waits for a block.
    fn advance(&mut self) {
        while !self.state.asking.is_empty() || !self.state.looking.is_empty() {
            self.ask_runs();
            self.look_in_cache();
        }
    }

    /// The next block to read, and the number of that read; `None` if there is none, or if enough reads are in flight.
    fn next_read(&mut self) -> Option<(usize, &'a Arc<Segment>, Aim)> {
        let state = &mut *self.state;
        if !state.is_sorted {
            state.parked.sort_unstable_by_key(|visit| Reverse(visit.block_id()));
            state.is_sorted = true;
        }
        let last = state.parked.last()?;
        let (block, aim) = (last.block_id(), last.aim);
        let segment = last.segment(self.superversion);
        let bytes = segment.stored_bytes(aim);
        if state.reads == MOST_READS || state.reads > 0 && state.read_bytes + bytes > MOST_READ_BYTES {
            return None;
        }
        let others = state.parked.iter().rposition(|visit| visit.block_id() != block);
        let visits = state.parked.split_off(others.map_or(0, |last| last + 1));
        let number = state.reading.iter().position(Option::is_none).unwrap_or_else(|| {
            state.reading.push(None);
            state.reading.len() - 1
        });
        state.reading[number] = Some(Read { block, aim, bytes, visits });
        state.reads += 1;
        state.read_bytes += bytes;
        Some((number, segment, aim))
    }

    /// Searches a block that was read: `buf` begins at `offset` of the file.
    ///
    /// # Errors
    /// It is damaged.
    fn search_block(&mut self, read: &Read, offset: u64, buf: Buf) -> Result<()> {
        let Some(first) = read.visits.first() else { return Ok(()) };
        let block = first.segment(self.superversion).take_in(read.aim, offset, buf)?;
        for visit in &read.visits {
            self.search(*visit, Block::of(&block));
        }
        Ok(())
    }

    /// Reads in this thread until every key was shown.
    ///
    /// # Errors
    /// A read failed, or a block is damaged.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let Some(first) = self.state.parked.first() else { return Ok(()) };
        let files = first.segment(self.superversion).files();
        let queue = files.contexts().try_lend(Size::of(self.state.parked.len()));
        let mut reads = ThreadReads { files, queue, waiting: VecDeque::new(), done: Vec::new() };
        let result = self.drive(&mut reads);
        // After an error reads may be in flight. Only an idle context is lent again.
        if let Some(queue) = &mut reads.queue {
            while queue.in_flight() > 0 {
                let all = queue.in_flight();
                queue.wait(all, None, &mut reads.done)?;
            }
        }
        result
    }

    /// Takes step after step until every key was shown, or until `reads` has no completion to give.
    ///
    /// # Errors
    /// A read failed, or a block is damaged.
    pub(crate) fn drive(&mut self, reads: &mut impl Reads) -> Result<()> {
        let mut ended_reads = Vec::new();
        loop {
            self.submit_reads(reads)?;
            if self.state.is_done() {
                return Ok(());
            }
            reads.completed(&mut ended_reads)?;
            if ended_reads.is_empty() {
                return Ok(());
            }
            let ended =
                ended_reads.drain(..).map(|EndedRead { number, result }| (self.state.ended(number), result));
            let ended: Vec<_> = ended.collect();
            // First the device gets new work, then this thread.
            self.submit_reads(reads)?;
            for (read, result) in ended {
                let operation = result?.whole()?;
                self.search_block(&read, operation.offset(), operation.into_buf())?;
            }
            self.advance();
        }
    }

    /// Submits as many reads as there may be.
    pub(crate) fn submit_reads(&mut self, reads: &mut impl Reads) -> Result<()> {
        while let Some((number, segment, aim)) = self.next_read() {
            let (file, offset, len_bytes) = segment.range_of(aim)?;
            reads.add(ReadRequest { number, file, offset, len_bytes });
        }
        reads.submit()
    }

    fn show(&mut self, at: usize, kind: Kind, value: &[u8]) {
        self.found.show(at, kind.value_seen(value));
    }

    fn look_in_tables(&mut self) {
        for (at, key) in self.keys.iter().enumerate() {
            let hash = key_hash(key.as_ref());
            let found = self.superversion.get_in_tables(key.as_ref(), hash, self.state.snapshot);
            if let Some((kind, value)) = found {
                self.show(at, kind, value);
            } else {
                let piece = self.superversion.zones.start(key.as_ref());
                self.state.asking.push(PendingKey { at, hash, piece, file: NO_FILE });
            }
        }
    }

    /// Finds for every key the next run that may hold it, and the block there.
    fn ask_runs(&mut self) {
        for pending in &mut self.state.asking {
            if let Some(segment) = pending.next_segment(self.superversion, self.keys[pending.at].as_ref()) {
                segment.prefetch_filter(pending.hash);
            }
        }
        while let Some(mut pending) = self.state.asking.pop() {
            let key = self.keys[pending.at].as_ref();
            let mut next = pending.segment(self.superversion);
            let aim = loop {
                let Some(segment) = next else { break None };
                let aim = segment.begin((key, pending.hash), self.state.snapshot);
                if let Some(aim) = aim {
                    segment.prefetch_slot(aim.number);
                    break Some(aim);
                }
                pending.piece = pending.piece.next();
                next = pending.next_segment(self.superversion, key);
            };
            match aim {
                Some(aim) => self.state.looking.push(BlockVisit { pending, aim }),
                None => self.found.show(pending.at, None),
            }
        }
    }

    /// Searches the blocks that are in the cache and parks the keys of the others.
    fn look_in_cache(&mut self) {
        let looking = std::mem::take(&mut self.state.looking);
        let mut held = Vec::with_capacity(LOOKED_AT.min(looking.len()));
        for visits in looking.chunks(LOOKED_AT) {
            // First all loads, which do not wait for each other, then the searches: a search behind a miss of the
            // processor's caches would hold the next load back.
            held.extend(visits.iter().map(|visit| visit.segment(self.superversion).cached(visit.aim.number)));
            for (visit, held) in visits.iter().zip(&held) {
                if let Some(frame) = held.as_ref() {
                    Block::of(frame).prefetch_entry(visit.pending.hash);
                }
            }
            for (visit, held) in visits.iter().zip(held.drain(..)) {
                match held.as_ref() {
                    Some(frame) => self.search(*visit, Block::of(frame)),
                    None => self.state.park(*visit),
                }
            }
        }
    }

    /// Searches one block and puts the key where it goes from there.
    fn search(&mut self, visit: BlockVisit, block: Block<'_>) {
        let BlockVisit { mut pending, aim } = visit;
        let key = self.keys[pending.at].as_ref();
        let open = visit.segment(self.superversion);
        match open.search(aim, block, (key, pending.hash), self.state.snapshot) {
            Step::Found(kind, _, value) => self.show(pending.at, kind, value),
            Step::Block(aim) => self.state.looking.push(BlockVisit { pending, aim }),
            Step::Absent => {
                pending.piece = pending.piece.next();
                self.state.asking.push(pending);
            }
        }
    }
}
