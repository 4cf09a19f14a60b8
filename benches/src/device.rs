//! The device itself: raw loops on native AIO beside the stores, at the same depth and size, in the same run.
//!
//! No store on this device can do better: 4 KiB reads with this many in flight, and a group commit that only collects
//! records, writes them at the next place of an existing file, and makes them durable.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aio::{Backend, Buf, File, NativeBackend, OpenMode, Operation, Queue};
use hdrhistogram::Histogram;
use parking_lot::{Condvar, Mutex};

use crate::data::Random;
use crate::drive::{Outcome, new_histogram};
use crate::error::Result;
use crate::machine::{Cost, Reading, now};
use crate::workload::Workload;

/// Bytes of one read, and the unit of a write.
const PAGE_BYTES: usize = 4096;

/// Bytes of a record in the raw group commit: a key, a value, and their frame.
const RECORD_BYTES: usize = 120;

/// Bytes of the file that the group commit uses in rounds.
const LOG_BYTES: u64 = 16 << 20;

/// Whether there is a raw loop beside this workload.
pub fn has_loop_for(workload: &Workload) -> bool {
    workload.is_durable() || workload.name.contains("_cold")
}

/// Runs the raw loop beside a workload; `file_bytes` is the size of the data that reads are spread over. Returns its
/// result with its best way of syncing.
///
/// # Errors
/// The device failed.
pub fn run(workload: &Workload, dir: &Path, file_bytes: u64, time: Duration) -> Result<Ran> {
    let backend: Arc<dyn Backend> = Arc::new(NativeBackend::new());
    if !workload.is_durable() {
        let depth = workload.depth();
        let file = file_to_read(&*backend, dir, file_bytes)?;
        let how = format!("raw 4 KiB reads, {depth} in flight from one thread");
        let how = match workload.threads {
            1 => how,
            threads => {
                let rate = threads_rate(&*backend, &file, (threads, time / 2))?;
                format!("{how}; from {threads} threads, one each: {rate:.0}/s")
            }
        };
        return Ran::of(dir, how, || read_loop(&*backend, &file, (depth, time), 0));
    }
    let file = make_file(&*backend, &dir.join("log"), LOG_BYTES)?;
    let mut best: Option<Ran> = None;
    for way in [Way::DurableWrite, Way::WriteThenSync] {
        let how = format!("raw group commit, best with {}", way.name());
        let ran = Ran::of(dir, how, || match workload.threads {
            1 => lone_commits(&*backend, &file, way, time / 2),
            threads => group_commits(&*backend, &file, way, (threads, time / 2)),
        })?;
        if best.as_ref().is_none_or(|best| best.outcome.operations < ran.outcome.operations) {
            best = Some(ran);
        }
    }
    best.ok_or_else(|| crate::error::Error::Usage("no way of syncing".to_owned()))
}

/// The work of a loop and its cost.
#[derive(Debug)]
pub struct Ran {
    /// The work.
    pub outcome: Outcome,
    /// The cost of the loop alone, without the making of its file.
    pub cost: Cost,
    /// The way of syncing.
    pub how: String,
}

impl Ran {
    fn of(dir: &Path, how: String, run: impl FnOnce() -> Result<Outcome>) -> Result<Ran> {
        let before = Reading::take(dir);
        let outcome = run()?;
        Ok(Ran { outcome, cost: Reading::take(dir).since(&before), how })
    }
}

/// How a group becomes durable.
#[derive(Clone, Copy)]
enum Way {
    DurableWrite,
    WriteThenSync,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::DurableWrite => "one AIO write with RWF_DSYNC",
            Way::WriteThenSync => "AIO write, then fdatasync",
        }
    }
}

/// A file of random bytes, written and durable.
fn make_file(backend: &dyn Backend, path: &Path, len_bytes: u64) -> Result<File> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let file = backend.open(path, OpenMode::Create)?;
    backend.allocate(&file, len_bytes)?;
    let mut queue = backend.queue(2)?;
    let mut random = Random::new(9);
    let mut buf = Buf::zeroed(usize::try_from(CHUNK_BYTES).unwrap_or(PAGE_BYTES));
    for word in buf.chunks_exact_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes());
    }
    for offset in (0..len_bytes).step_by(1 << 20) {
        buf = aio::file::write_all(&mut *queue, &file, offset, buf)?;
    }
    backend.sync(&file)?;
    Ok(file)
}

fn file_to_read(backend: &dyn Backend, dir: &Path, file_bytes: u64) -> Result<File> {
    let path = dir.join("reads");
    if backend.stat(&path)?.is_some() {
        return Ok(backend.open(&path, OpenMode::Read)?);
    }
    make_file(backend, &path, file_bytes.next_multiple_of(1 << 20))
}

/// Reads in a second of threads that each wait for one read at a time: the limit of a store whose gets are calls.
fn threads_rate(backend: &dyn Backend, file: &File, (threads, time): (u16, Duration)) -> Result<f64> {
    let begin = now();
    let operations: u64 = std::thread::scope(|scope| {
        let reader = move |seed| read_loop(backend, file, (1, time), seed).map(|outcome| outcome.operations);
        let readers: Vec<_> = (0..threads).map(|seed| scope.spawn(move || reader(seed))).collect();
        let done = readers.into_iter().map(|reader| reader.join().expect("a raw loop does not panic"));
        done.sum::<Result<u64>>()
    })?;
    Ok(f64::from(u32::try_from(operations).unwrap_or(u32::MAX)) / begin.elapsed().as_secs_f64())
}

/// Keeps `depth` random reads in flight from one thread.
fn read_loop(
    backend: &dyn Backend,
    file: &File,
    (depth, time): (usize, Duration),
    seed: u16,
) -> Result<Outcome> {
    let pages = backend.size_bytes(file)? / PAGE_BYTES as u64;
    let mut queue = backend.queue(depth)?;
    let mut random = Random::new((depth as u64) << 32 | u64::from(seed));
    let mut waiting: VecDeque<Operation> = VecDeque::new();
    let mut next = |token, buf| {
        let offset = random.below(pages) * PAGE_BYTES as u64;
        Operation::read(file, offset, buf).with_token(token)
    };
    for token in 0..depth as u64 {
        waiting.push_back(next(token, Buf::zeroed(PAGE_BYTES)));
    }
    let mut tally = Tally::new();
    let mut submitted = vec![tally.begin; depth];
    let mut done = Vec::with_capacity(depth);
    while tally.begin.elapsed() < time {
        let at = now();
        for operation in &waiting {
            if let Some(slot) =
                usize::try_from(operation.token()).ok().and_then(|slot| submitted.get_mut(slot))
            {
                *slot = at;
            }
        }
        queue.submit(&mut waiting)?;
        queue.wait(1, None, &mut done)?;
        let end = now();
        for completion in done.drain(..) {
            let operation = completion.whole()?;
            let slot = usize::try_from(operation.token()).ok().and_then(|slot| submitted.get(slot));
            tally.note(slot.map_or(Duration::ZERO, |begin| end - *begin), 0);
            let token = operation.token();
            waiting.push_back(next(token, operation.into_buf()));
        }
    }
    Ok(tally.outcome())
}

/// The counts of a loop.
struct Tally {
    begin: Instant,
    operations: u64,
    user_bytes: u64,
    latency: Histogram<u64>,
}

impl Tally {
    fn new() -> Tally {
        Tally { begin: now(), operations: 0, user_bytes: 0, latency: new_histogram() }
    }

    fn note(&mut self, took: Duration, user_bytes: usize) {
        self.operations += 1;
        self.user_bytes += user_bytes as u64;
        self.latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    fn outcome(self) -> Outcome {
        Outcome {
            operations: self.operations,
            user_bytes: self.user_bytes,
            new_records: 0,
            all_new_below: 0,
            elapsed: self.begin.elapsed(),
            final_sync: Duration::ZERO,
            latency: self.latency,
            pauses: Vec::new(),
        }
    }
}

/// Writes pages one after the other and makes each durable.
struct RawLog<'a> {
    backend: &'a dyn Backend,
    queue: Box<dyn Queue>,
    file: &'a File,
    way: Way,
    offset: u64,
    buf: Option<Buf>,
}

impl<'a> RawLog<'a> {
    fn new(backend: &'a dyn Backend, file: &'a File, way: Way) -> Result<RawLog<'a>> {
        Ok(RawLog { backend, queue: backend.queue(1)?, file, way, offset: 0, buf: None })
    }

    /// Makes this many bytes of records durable.
    fn commit(&mut self, len_bytes: usize) -> Result<()> {
        let len_bytes = len_bytes.next_multiple_of(PAGE_BYTES);
        let mut buf = self.buf.take().filter(|buf| buf.capacity() >= len_bytes);
        let mut buf = buf.take().unwrap_or_else(|| Buf::zeroed(len_bytes.max(16 * PAGE_BYTES)));
        buf.set_len(len_bytes);
        if self.offset + len_bytes as u64 > LOG_BYTES {
            self.offset = 0;
        }
        let offset = self.offset;
        self.offset += len_bytes as u64;
        let operation = match self.way {
            Way::DurableWrite => Operation::write_durable(self.file, offset, buf),
            Way::WriteThenSync => Operation::write(self.file, offset, buf),
        };
        let done = aio::file::run(&mut *self.queue, [operation])?;
        for completion in done {
            self.buf = Some(completion.whole()?.into_buf());
        }
        if matches!(self.way, Way::WriteThenSync) {
            self.backend.sync(self.file)?;
        }
        Ok(())
    }
}

/// One thread that writes and syncs its own records, without any hand-over.
fn lone_commits(backend: &dyn Backend, file: &File, way: Way, time: Duration) -> Result<Outcome> {
    let mut log = RawLog::new(backend, file, way)?;
    let mut tally = Tally::new();
    let mut last = tally.begin;
    while tally.begin.elapsed() < time {
        log.commit(RECORD_BYTES)?;
        let end = now();
        tally.note(end - last, RECORD_BYTES);
        last = end;
    }
    Ok(tally.outcome())
}

/// The data that committers and the commit thread share.
#[derive(Default)]
struct Group {
    state: Mutex<GroupState>,
    work: Condvar,
    /// Waiters of even and of odd groups, so that a wake-up reaches only those of its group.
    done: [Condvar; 2],
}

#[derive(Default)]
struct GroupState {
    /// Records in the group that is being collected.
    waiting: usize,
    /// Its number.
    collecting: usize,
    /// Every group below this one is durable.
    durable: usize,
    stop: bool,
}

/// Several committers and one thread that commits for them, one group in flight.
fn group_commits(
    backend: &dyn Backend,
    file: &File,
    way: Way,
    (threads, time): (u16, Duration),
) -> Result<Outcome> {
    let group = Group::default();
    let mut log = RawLog::new(backend, file, way)?;
    let begin = now();
    std::thread::scope(|scope| {
        let committers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| commit_until(&group, begin + time))).collect();
        let leader = scope.spawn(|| lead(&group, &mut log));
        let mut all = Tally::new();
        all.begin = begin;
        for own in committers.into_iter().filter_map(|committer| committer.join().ok()) {
            all.operations += own.operations;
            all.user_bytes += own.user_bytes;
            // All have the same bounds, so this cannot fail.
            let _ = all.latency.add(&own.latency);
        }
        let outcome = all.outcome();
        group.state.lock().stop = true;
        group.work.notify_one();
        match leader.join() {
            Ok(result) => result.map(|()| outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn commit_until(group: &Group, end: Instant) -> Tally {
    let mut tally = Tally::new();
    loop {
        let begin = now();
        if begin >= end {
            return tally;
        }
        let mut state = group.state.lock();
        let own = state.collecting;
        state.waiting += 1;
        if state.waiting == 1 {
            group.work.notify_one();
        }
        while state.durable <= own && !state.stop {
            if let Some(done) = group.done.get(own % 2) {
                done.wait(&mut state);
            }
        }
        if state.durable <= own {
            return tally;
        }
        drop(state);
        tally.note(begin.elapsed(), RECORD_BYTES);
    }
}

fn lead(group: &Group, log: &mut RawLog<'_>) -> Result<()> {
    let mut state = group.state.lock();
    loop {
        while state.waiting == 0 && !state.stop {
            group.work.wait(&mut state);
        }
        if state.waiting == 0 {
            return Ok(());
        }
        let (records, own) = (std::mem::take(&mut state.waiting), state.collecting);
        state.collecting += 1;
        drop(state);
        let result = log.commit(records * RECORD_BYTES);
        state = group.state.lock();
        state.durable = own + 1;
        state.stop |= result.is_err();
        if let Some(done) = group.done.get(own % 2) {
            done.notify_all();
        }
        if result.is_err() {
            group.done.iter().for_each(|done| {
                done.notify_all();
            });
            return result;
        }
    }
}
