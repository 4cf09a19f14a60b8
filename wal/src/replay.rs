//! Replaying the log of a life that has ended: log files, verdict, ring.
//!
//! ```text
//!   log files   [ file 7 ][ file 8 ][ file 9 |          accepted: contiguous groups, in file order
//!                    ^ from                  ^ log end
//!   ring                                     [ r | r | r | ?    goes on while records validate
//!                                                        ^ end
//! ```
//!
//! Why it may be trusted:
//! * a file is left only when all its groups are durable. So a chain that stops before the start of the next file has
//!   lost acknowledged data;
//! * in the last file the findings of [`read_chain`] give the verdict, as `chain` explains;
//! * bytes of the accepted log passed the checksums of their sectors, so a record in them that does not validate is
//!   damage as well, unless it merely goes on behind the accepted end;
//! * from there on, the ring has what was published. Its records carry checksums over life and position. What comes
//!   after the first one that does not validate does not count, whatever it looks like: order is a promise.
//!
//! Invariant: replaying reads and never changes anything.

use std::path::{Path, PathBuf};

use aio::{Action, Backend, Buf, Bug, Errno, File, OpenMode, Operation, Queue, planted};

use crate::chain::{Chain, ChainRules, Stop, Verdict, read_chain};
use crate::error::{Error, Result};
use crate::log_file::{ActiveFile, log_file_path};
use crate::record::{Decoded, GRANULE, Seq, decode};
use crate::sector::Place;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// What the manifest knows of the life to replay.
#[derive(Clone, Debug)]
pub struct ReplayInput {
    /// Where the log files are.
    pub directory: PathBuf,
    /// Seeds every sector's checksum.
    pub store_id: u64,
    /// The life to replay.
    pub life: u32,
    /// Where its stream began.
    pub life_start: Seq,
    /// The start of a record, or the end of the log: everything before is in segments. At or after `life_start`.
    pub from: Seq,
    /// The log files in use, in stream order, as [`Host::activate`](crate::Host::activate) was told of them.
    pub files: Vec<ActiveFile>,
    /// Size of each, in bytes.
    pub file_bytes: u64,
    /// The ring of that life.
    pub ring_path: PathBuf,
    /// Its size in bytes.
    pub ring_bytes: usize,
}

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// End of the last record: the next life begins here or later.
    pub end: Seq,
    /// Where the accepted log files end; a record that goes on behind it is completed from the ring, or dropped.
    pub log_end: Seq,
    /// What the tail of the log files looked like.
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
/// Records may have been visited when an error is found, so the caller keeps what it builds to itself until this
/// returns.
///
/// # Errors
/// [`Error::Corrupt`] with file and offset if something acknowledged is damaged or missing, [`Error::Io`] if a read
/// failed, and whatever `visit` returns.
///
/// # Panics
/// If the input contradicts itself: `from` before `life_start` or not at a granule, or a ring of size 0.
pub fn replay(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    input: &ReplayInput,
    visit: &mut dyn FnMut(Seq, &[u8]) -> Result<()>,
) -> Result<Replayed> {
    assert!(input.from >= input.life_start, "a life is replayed from its start at the earliest");
    assert!(input.from.get().is_multiple_of(GRANULE as u64), "records start at granules");
    assert!(input.ring_bytes > 0, "a ring is not empty");
    let mut records = Records { input, visit, at: input.from, pending: Vec::new(), visited: 0 };
    let mut log_end = input.files.first().map_or(input.from, |file| file.start);
    let mut verdict = Verdict::Clean;
    check_begin(input, log_end)?;
    for (nth, file) in input.files.iter().enumerate() {
        let path = log_file_path(&input.directory, file.id);
        let chain = read_log_file(backend, queue, &path, (input, file))?;
        match input.files.get(nth + 1) {
            Some(next) => check_left(&chain, &path, next.start)?,
            None => verdict = chain.check(&path)?,
        }
        records.take_chain(&chain, file.start, &path)?;
        log_end = chain.end;
    }
    if log_end < input.from {
        let file = input
            .files
            .last()
            .map_or(input.directory.clone(), |file| log_file_path(&input.directory, file.id));
        return Err(Error::corrupt(
            &file,
            0,
            "the log ends before what is in segments",
            &input.from,
            &log_end,
        ));
    }
    let ring = read_ring(backend, queue, input)?;
    if !planted(Bug::RingNotReplayed) {
        records.take_ring(&ring)?;
    }
    let end = records.at;
    Ok(Replayed {
        end,
        log_end,
        verdict,
        records: records.visited,
        log_bytes: log_end.min(end).since(input.from),
        ring_bytes: end.since(log_end),
    })
}

/// Reads the first `len_bytes` of a file, as large reads.
///
/// # Errors
/// A read failed, or the file is shorter.
pub fn read_whole(queue: &mut dyn Queue, file: &File, len_bytes: usize) -> Result<Vec<u8>> {
    let align = file.alignment().offset_bytes;
    let mut bytes = Vec::with_capacity(len_bytes);
    while bytes.len() < len_bytes {
        let wanted = (len_bytes - bytes.len()).min(READ_BYTES);
        let action =
            Action::Read { offset: bytes.len() as u64, buf: Buf::zeroed(wanted.next_multiple_of(align)) };
        let operation = Operation { token: 0, file: file.clone(), action };
        for completion in aio::file::run(queue, [operation])? {
            // The end of the file may lie inside the last aligned unit.
            let buf = match completion.result {
                Ok(found) if found >= wanted => completion.operation.into_buf(),
                _ => completion.whole()?.into_buf(),
            };
            bytes.extend_from_slice(&buf[..wanted]);
        }
    }
    Ok(bytes)
}

/// What was not flushed to segments must be in the files.
fn check_begin(input: &ReplayInput, begin: Seq) -> Result<()> {
    if begin > input.from {
        let what = "log files begin after what is in segments";
        return Err(Error::corrupt(&input.directory, 0, what, &input.from, &begin));
    }
    Ok(())
}

/// A file that was left holds everything up to the next one.
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

fn read_log_file(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    path: &Path,
    (input, file): (&ReplayInput, &ActiveFile),
) -> Result<Chain> {
    let bytes = read_existing(backend, queue, path, input.file_bytes)?;
    let place = Place { store_id: input.store_id, file_id: file.id, epoch: file.epoch };
    Ok(read_chain(&bytes, &ChainRules { place, life: input.life, start: file.start }))
}

fn read_ring(backend: &dyn Backend, queue: &mut dyn Queue, input: &ReplayInput) -> Result<Vec<u8>> {
    read_existing(backend, queue, &input.ring_path, input.ring_bytes as u64)
}

/// A file that is missing, or shorter than the manifest says, is damage.
fn read_existing(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    path: &Path,
    len_bytes: u64,
) -> Result<Vec<u8>> {
    let file = match backend.open(path, OpenMode::Read) {
        Err(error) if error.errno() == Some(Errno::NOT_FOUND) => {
            return Err(Error::corrupt(path, 0, "a file of the log is missing", &len_bytes, &"no file"));
        }
        opened => opened?,
    };
    let found = backend.size_bytes(&file)?;
    let Some(wanted) = usize::try_from(len_bytes).ok().filter(|_| found >= len_bytes) else {
        return Err(Error::corrupt(path, found, "size of a file of the log", &len_bytes, &found));
    };
    read_whole(queue, &file, wanted)
}

/// Cuts the stream into records.
struct Records<'a> {
    input: &'a ReplayInput,
    visit: &'a mut dyn FnMut(Seq, &[u8]) -> Result<()>,
    /// Where the next record starts.
    at: Seq,
    /// Stream bytes from `at` on that make no whole record yet.
    pending: Vec<u8>,
    visited: u64,
}

impl Records<'_> {
    /// Visits the records that end in this file.
    fn take_chain(&mut self, chain: &Chain, start: Seq, path: &Path) -> Result<()> {
        let known = self.at.plus(self.pending.len());
        let skip = usize::try_from(known.since(start)).unwrap_or(usize::MAX);
        let mut stream = std::mem::take(&mut self.pending);
        stream.extend_from_slice(chain.stream.get(skip..).unwrap_or_default());
        let mut rest = &stream[..];
        loop {
            let what = match decode(rest, self.input.life, self.at) {
                Decoded::Record { payload, len_bytes } => {
                    (self.visit)(self.at, payload)?;
                    self.visited += 1;
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

    /// Visits the records that the ring completes or holds, as long as they validate.
    fn take_ring(&mut self, ring: &[u8]) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.pending);
        loop {
            let needed_bytes = match decode(&bytes, self.input.life, self.at) {
                Decoded::Record { payload, len_bytes } => {
                    (self.visit)(self.at, payload)?;
                    self.visited += 1;
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
            copy_from_ring(ring, self.at.plus(bytes.len()), needed_bytes - bytes.len(), &mut bytes);
        }
    }

    /// What one record may take, in bytes: the writer takes nothing larger than a quarter of its ring.
    fn most_bytes(&self) -> usize {
        (self.input.ring_bytes / 4).max(GRANULE)
    }
}

fn copy_from_ring(ring: &[u8], seq: Seq, len_bytes: usize, into: &mut Vec<u8>) {
    let at = usize::try_from(seq.get() % ring.len() as u64).expect("a ring offset is below its size");
    let head = &ring[at..ring.len().min(at + len_bytes)];
    into.extend_from_slice(head);
    into.extend_from_slice(&ring[..len_bytes - head.len()]);
}
