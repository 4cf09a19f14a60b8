//! Replaying the log of an incarnation that has ended: log files, verdict, ring.
//!
//! ```text
//!   log files   [ file 7 ][ file 8 ][ file 9 |          accepted: contiguous groups, in file order
//!                    ^ from                  ^ log end
//!   ring                                     [ r | r | r | ?    goes on while records validate
//!                                                        ^ end
//! ```
//!
//! Why the result can be trusted:
//! * The log leaves a file only when all its groups are durable. So a chain that stops before the start of the next
//!   file has lost acknowledged data.
//! * In the last file [`read_chain`] gives the verdict. `chain` has the proof.
//! * The bytes of the accepted log passed the checksums of their sectors. So an invalid record in them is damage, too,
//!   unless it is only cut off by the accepted end.
//! * From the accepted end on the ring has the published records. Their checksums cover incarnation and position. After
//!   the first invalid record nothing counts, even if it validates: the promise is a prefix.
//!
//! Invariant: a replay changes nothing.

use std::path::{Path, PathBuf};

use aio::{Backend, Buf, File, Operation, Queue};

use crate::chain::{Chain, ChainRules, Stop, Verdict, read_chain};
use crate::ended_ring::{EndedRing, RingSizes, open_existing};
use crate::error::{Error, Result};
use crate::log_file::{ActiveFile, LOG_KIND, log_file_path};
use crate::planted::{Bug, planted};
use crate::record::{Decoded, GRANULE, Seq, StreamOrigin, decode};
use crate::sector::Place;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// The incarnation to replay, as the manifest has it.
#[derive(Clone, Debug)]
pub struct ReplayInput {
    /// The directory of the log files.
    pub directory: PathBuf,
    /// Seeds every sector's checksum.
    pub store_id: u64,
    /// The incarnation to replay.
    pub incarnation: u32,
    /// Start of its stream.
    pub incarnation_start: Seq,
    /// Start of the replay: the start of a record or the end of the log, at or after `incarnation_start`. Everything
    /// before is in segments.
    pub from: Seq,
    /// The log files in use, in stream order, as [`Host::activate`](crate::Host::activate) was told of them.
    pub files: Vec<ActiveFile>,
    /// Size of each, in bytes.
    pub file_bytes: u64,
    /// The ring of that incarnation.
    pub ring_path: PathBuf,
    /// Its size in bytes, a multiple of [`GRANULE`].
    pub ring_bytes: usize,
    /// Size of its file, as [`Host::ring_grown`](crate::Host::ring_grown) was told last; at most `ring_bytes`.
    pub ring_file_bytes: usize,
}

/// The result of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// End of the last record: the next incarnation begins here or later.
    pub end: Seq,
    /// End of the accepted part of the log files. A record that goes on behind it is completed from the ring or
    /// dropped.
    pub log_end: Seq,
    /// The state of the tail of the log files.
    pub verdict: Verdict,
    /// Records visited.
    pub records: u64,
    /// Bytes of records visited that came from log files.
    pub log_bytes: u64,
    /// Bytes of records visited that came from the ring.
    pub ring_bytes: u64,
}

/// Visits every record from `input.from` on, in order, with its position and payload.
///
/// An error may come after some records were visited. So the caller uses nothing of its result before this returns.
///
/// # Errors
/// [`Error::Corrupt`] with file and offset if something acknowledged is damaged or missing, [`Error::Io`] if a read
/// failed, or any error of `visit`.
///
/// # Panics
/// If the input contradicts itself: `from` before `incarnation_start` or not at a granule, or a ring of size 0.
pub fn replay(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    input: &ReplayInput,
    visit: &mut dyn FnMut(Seq, &[u8]) -> Result<()>,
) -> Result<Replayed> {
    let mut records = Records::new(input, visit);
    let verdict = records.take_all(backend, queue)?;
    Ok(records.replayed(verdict))
}

/// Replays up to the first damage in the log files, then the records of the ring that continue the stream there.
/// Returns the error of [`replay`], if there was damage. For an explicit repair, which gives up the acknowledged records behind
/// the damage. [`bounds`](crate::bounds()) tells how many they may be.
///
/// Positions never repeat, so the next incarnation begins at [`Bounds::least`](crate::Bounds::least) or later.
///
/// # Errors
/// [`Error::Io`] if a read failed, or any error of `visit` except [`Error::Corrupt`], which is damage.
///
/// # Panics
/// Those of [`replay`].
pub fn replay_to_damage(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    input: &ReplayInput,
    visit: &mut dyn FnMut(Seq, &[u8]) -> Result<()>,
) -> Result<(Replayed, Option<Error>)> {
    let mut records = Records::new(input, visit);
    match records.take_all(backend, queue) {
        Ok(verdict) => Ok((records.replayed(verdict), None)),
        Err(damage @ Error::Corrupt { .. }) => {
            // A ring that is missing, in part or whole, has no records there.
            let ring = open_ring(backend, queue, input).map(|(ring, _)| ring);
            ignore_damage(ring.and_then(|mut ring| records.take_ring(&mut ring)))?;
            Ok((records.replayed(Verdict::TornTail), Some(damage)))
        }
        Err(other) => Err(other),
    }
}

fn ignore_damage(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Corrupt { .. }) => Ok(()),
        other => other,
    }
}

/// Reads the first `len_bytes` of a file in large reads.
///
/// # Errors
/// A read failed, or the file is shorter.
pub fn read_whole(queue: &mut dyn Queue, file: &File, len_bytes: usize) -> Result<Vec<u8>> {
    let align = file.alignment().offset_bytes;
    let mut bytes = Vec::with_capacity(len_bytes);
    let mut last = None;
    while bytes.len() < len_bytes {
        let wanted = (len_bytes - bytes.len()).min(READ_BYTES);
        let mut buf = last.take().unwrap_or_else(|| Buf::zeroed(wanted.next_multiple_of(align)));
        buf.set_len(wanted.next_multiple_of(align));
        let operation = Operation::read(file, bytes.len() as u64, buf);
        for completion in aio::file::run(queue, [operation])? {
            // The end of the file may lie inside the last aligned unit.
            let buf = match completion.result {
                Ok(found) if found >= wanted => completion.operation.into_buf(),
                _ => completion.whole()?.into_buf(),
            };
            bytes.extend_from_slice(&buf[..wanted]);
            last = Some(buf);
        }
    }
    Ok(bytes)
}

/// All records that were not flushed to segments must be in the files.
fn check_begin(input: &ReplayInput, begin: Seq) -> Result<()> {
    if begin > input.from {
        let what = "log files begin after the flushed position";
        return Err(Error::corrupt(&input.directory, 0, what, &input.from, &begin));
    }
    Ok(())
}

/// Everything in segments was durable in the log first.
fn check_end(input: &ReplayInput, end: Seq) -> Result<()> {
    if end >= input.from {
        return Ok(());
    }
    let last = input.files.last();
    let file = last.map_or(input.directory.clone(), |file| log_file_path(&input.directory, file.id));
    Err(Error::corrupt(&file, 0, "the log ends before the flushed position", &input.from, &end))
}

/// Every file but the last must end where the next one starts.
fn check_left(chain: &Chain, path: &Path, next_start: Seq) -> Result<()> {
    if chain.end == next_start {
        return Ok(());
    }
    if let Stop::Damaged { offset, what, expected, found } = &chain.stop {
        return Err(Error::corrupt(path, *offset, what, expected, found));
    }
    let what = "a log file does not end where the next one starts";
    Err(Error::corrupt(path, chain.stop_offset, what, &next_start, &chain.end))
}

/// The chain in the existing part of the file, and the damage if the file is shorter than it should be.
fn read_log_file(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    path: &Path,
    (input, file): (&ReplayInput, &ActiveFile),
) -> Result<(Chain, Result<()>)> {
    let len_bytes = usize::try_from(input.file_bytes).unwrap_or(usize::MAX);
    let (opened, there_bytes, size) = open_existing(backend, path, len_bytes, LOG_KIND)?;
    let bytes = read_whole(queue, &opened, there_bytes)?;
    let place = Place { store_id: input.store_id, file_id: file.id, epoch: file.epoch };
    let chain = read_chain(&bytes, &ChainRules { place, incarnation: input.incarnation, start: file.start });
    Ok((chain, size))
}

/// The ring, and the damage if the file is shorter than it should be.
fn open_ring<'a>(
    backend: &dyn Backend,
    queue: &'a mut dyn Queue,
    input: &ReplayInput,
) -> Result<(EndedRing<'a>, Result<()>)> {
    let sizes = RingSizes { bytes: input.ring_bytes, file_bytes: input.ring_file_bytes };
    EndedRing::open(backend, queue, &input.ring_path, sizes)
}

/// Cuts the stream into records.
struct Records<'a> {
    input: &'a ReplayInput,
    visit: &'a mut dyn FnMut(Seq, &[u8]) -> Result<()>,
    /// Where the next record starts.
    at: Seq,
    /// Stream bytes from `at` on that are not a whole record yet.
    pending: Vec<u8>,
    visited: u64,
    /// Where the accepted log files end.
    log_end: Seq,
}

impl<'a> Records<'a> {
    fn new(input: &'a ReplayInput, visit: &'a mut dyn FnMut(Seq, &[u8]) -> Result<()>) -> Records<'a> {
        assert!(
            input.from >= input.incarnation_start,
            "an incarnation is replayed from its start at the earliest"
        );
        assert!(input.from.get().is_multiple_of(GRANULE as u64), "records start at granules");
        assert!(input.ring_bytes > 0, "a ring is not empty");
        assert!(input.ring_file_bytes <= input.ring_bytes, "no more of a ring is there than there is");
        let log_end = input.files.first().map_or(input.from, |file| file.start);
        Records { input, visit, at: input.from, pending: Vec::new(), visited: 0, log_end }
    }

    /// Visits the records of all files and of the ring, up to the first damage.
    fn take_all(&mut self, backend: &dyn Backend, queue: &mut dyn Queue) -> Result<Verdict> {
        let input = self.input;
        let mut verdict = Verdict::Clean;
        check_begin(input, self.log_end)?;
        for (nth, file) in input.files.iter().enumerate() {
            let path = log_file_path(&input.directory, file.id);
            let (chain, size) = read_log_file(backend, queue, &path, (input, file))?;
            let checked = match input.files.get(nth + 1) {
                Some(next) => check_left(&chain, &path, next.start).map(|()| Verdict::Clean),
                None => chain.check(&path),
            };
            // The accepted part stands before any damage.
            self.take_chain(&chain, file.start, &path)?;
            self.log_end = chain.end;
            size?;
            verdict = checked?;
        }
        check_end(input, self.log_end)?;
        let (mut ring, size) = open_ring(backend, queue, input)?;
        size?;
        if !planted(Bug::RingNotReplayed) {
            self.take_ring(&mut ring)?;
        }
        Ok(verdict)
    }

    fn replayed(&self, verdict: Verdict) -> Replayed {
        Replayed {
            end: self.at,
            log_end: self.log_end,
            verdict,
            records: self.visited,
            log_bytes: self.log_end.min(self.at).since(self.input.from),
            ring_bytes: self.at.since(self.log_end),
        }
    }

    /// Visits the records that end in this file. Keeps the beginning of a record that goes on in the next one.
    fn take_chain(&mut self, chain: &Chain, start: Seq, path: &Path) -> Result<()> {
        let known = self.at.plus(self.pending.len());
        let skip = usize::try_from(known.since(start)).unwrap_or(usize::MAX);
        let mut stream = std::mem::take(&mut self.pending);
        stream.extend_from_slice(chain.stream.get(skip..).unwrap_or_default());
        let mut rest = &stream[..];
        loop {
            let what = match decode(rest, self.origin(), self.at) {
                Decoded::Record { payload, len_bytes } => {
                    self.take_record(payload, len_bytes)?;
                    rest = &rest[len_bytes..];
                    continue;
                }
                Decoded::Void { len_bytes } => {
                    self.at = self.at.plus(len_bytes);
                    rest = &rest[len_bytes..];
                    continue;
                }
                Decoded::Incomplete { needed_bytes } if needed_bytes <= self.most_bytes() => break,
                Decoded::Incomplete { .. } => "record length",
                Decoded::Invalid(what) => what,
            };
            return Err(Error::corrupt(path, chain.offset_of(self.at), what, &"a valid record", &self.at));
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// Visits the records of the ring up to the first invalid one. The first record may have begun in the log files.
    fn take_ring(&mut self, ring: &mut EndedRing<'_>) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.pending);
        loop {
            let needed_bytes = match decode(&bytes, self.origin(), self.at) {
                Decoded::Record { payload, len_bytes } => {
                    self.take_record(payload, len_bytes)?;
                    bytes.clear();
                    continue;
                }
                Decoded::Void { len_bytes } => {
                    self.at = self.at.plus(len_bytes);
                    bytes.clear();
                    continue;
                }
                Decoded::Incomplete { needed_bytes } => needed_bytes,
                Decoded::Invalid(_) => return Ok(()),
            };
            if needed_bytes > self.most_bytes() {
                return Ok(());
            }
            let from = self.ring_position(self.at.plus(bytes.len()));
            ring.copy(from, needed_bytes - bytes.len(), &mut bytes)?;
        }
    }

    fn take_record(&mut self, payload: &[u8], len_bytes: usize) -> Result<()> {
        (self.visit)(self.at, payload)?;
        self.visited += 1;
        self.at = self.at.plus(len_bytes);
        Ok(())
    }

    fn origin(&self) -> StreamOrigin {
        StreamOrigin { store_id: self.input.store_id, incarnation: self.input.incarnation }
    }

    /// Bytes from the start of the incarnation: the ring counts its laps from there.
    fn ring_position(&self, seq: Seq) -> u64 {
        seq.since(self.input.incarnation_start)
    }

    /// The most bytes of one record: the writer takes nothing larger than a quarter of its ring.
    fn most_bytes(&self) -> usize {
        (self.input.ring_bytes / 4).max(GRANULE)
    }
}
