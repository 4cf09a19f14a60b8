//! One flush round, cut into its steps: plan and seal a group, write it, sync it.
//!
//! Invariants:
//! * A round begins only when every earlier group is durable: one group is in flight. So groups are contiguous on
//!   stable media, and the log leaves a file only when everything in it is durable.
//! * `durable` passes a group only after a sync that began when the write of the group had been reaped whole, or after
//!   a durable write that was reaped whole. The completion of another write proves nothing about this one, nor does a
//!   successful sync alone.
//! * After an error no further step is taken: no write and no sync is retried. A shortage at the opening of the next file,
//!   or a refusal of the write before the kernel took it, is no such error. Nothing was written yet, and a later round
//!   begins again. Nor is a sync that a signal interrupted, see
//!   [`aio::file::sync_written`].

use aio::{Backend, Buf, Queue};

use crate::error::{Error, Result};
use crate::log_file::{LogFiles, OpenLogFile};
use crate::planted::{Bug, planted};
use crate::record::{GRANULE, Seq, StreamOrigin};
use crate::ring::Ring;
use crate::seal::{Group, seal, step_of, stream_room_bytes};
use crate::sync::{Arc, AtomicU64, Ordering, Statistic};

/// The most stream bytes in one group. Large enough for the full bandwidth of a device, and small enough that the
/// writers of the next group wait about a millisecond.
const MAX_GROUP_BYTES: usize = 1 << 20;

/// Slots of the log's context. One group is in flight at a time, and the zeros of a new file take a slot as well.
pub(crate) const QUEUE_SLOTS: usize = 4;

/// How a sealed group gets to stable media. Both are equally safe; which is faster depends on the device (bench
/// `wal/durable_commit`).
///
/// Rejected: an asynchronous write, then `IOCB_CMD_FDSYNC` through the context. A worker thread of the kernel runs that
/// sync. On no device was it faster than the better of these two (bench `aio/durable_write`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncMethod {
    /// An asynchronous write, then `fdatasync(2)` in the thread that runs the round. In all measurements within a few
    /// percent of the best, and the least disturbed by busy processors.
    #[default]
    Fdatasync,
    /// One write with `RWF_DSYNC`. A device that writes through its cache (FUA) gets one command instead of two. To
    /// other devices the kernel sends the second command from a worker thread.
    DurableWrite,
}

/// The state that all threads of the log share without a lock.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) ring: Ring,
    pub(crate) files: LogFiles,
    pub(crate) origin: StreamOrigin,
    pub(crate) sync_method: SyncMethod,
    /// End of the last group whose write was reaped. Everything below survives the process.
    pub(crate) written: AtomicU64,
    /// End of the last group on stable media. The flusher stores it with release after it has read the ring. Writers
    /// load it with acquire before they overwrite the ring.
    pub(crate) durable: AtomicU64,
    pub(crate) counters: LogCounters,
}

impl Core {
    pub(crate) fn written(&self) -> Seq {
        Seq::new(self.written.load(Ordering::SeqCst))
    }

    pub(crate) fn durable(&self) -> Seq {
        Seq::new(self.durable.load(Ordering::SeqCst))
    }

    /// Where the records have to end that the files take which may exist.
    pub(crate) fn end_in_files(&self) -> Seq {
        self.files.end_in_files(|| self.written())
    }

    /// Whether there is no place for `len_bytes` more until files are retired.
    pub(crate) fn is_at_limit(&self, len_bytes: usize) -> bool {
        self.ring.reserved().plus(len_bytes) > self.end_in_files()
    }
}

/// Counts since the log was opened.
#[derive(Debug, Default)]
pub(crate) struct LogCounters {
    pub(crate) records: Statistic,
    pub(crate) groups: Statistic,
    pub(crate) claim_groups: Statistic,
    pub(crate) syncs: Statistic,
    pub(crate) written_bytes: Statistic,
    pub(crate) activations: Statistic,
    pub(crate) recycled: Statistic,
    pub(crate) space_waits: Statistic,
    pub(crate) waits: Statistic,
}

/// Adds to a counter.
pub(crate) fn count(counter: &Statistic, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The result of [`Flusher::plan`].
#[derive(Debug)]
pub(crate) enum Plan {
    /// There is nothing to write.
    Nothing,
    /// A sealed group waits in the buffer.
    Group(Group),
    /// A shortage leaves no file to write to. Nothing was written; a full file is left already. A later
    /// round may succeed.
    Refused(Error),
}

/// The purpose of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Write the published records, if there are any.
    Data,
    /// Write a claim group, if no group claims the newest one yet and the file has room.
    Claim,
}

/// The state that only the holder of the flush token has.
#[derive(Debug)]
pub(crate) struct Flusher {
    queue: Box<dyn Queue>,
    buf: Option<Buf>,
    current: Option<Current>,
    /// The largest claim written so far.
    claimed: Seq,
}

#[derive(Debug)]
struct Current {
    opened: OpenLogFile,
    /// Where the next group goes, in bytes.
    offset: u64,
    step_bytes: u32,
    groups: u64,
}

impl Flusher {
    pub(crate) fn new(queue: Box<dyn Queue>, start: Seq) -> Flusher {
        Flusher { queue, buf: None, current: None, claimed: start }
    }

    /// Whether no group claims the newest one yet, and the file has room for one that does. At the limit of the log the room
    /// is for records.
    pub(crate) fn needs_claim(&self, core: &Core) -> bool {
        let room_bytes = self.current.as_ref().map_or(0, |current| current.room_bytes(core));
        core.durable() > self.claimed && room_bytes > 0 && !core.is_at_limit(0)
    }

    /// Seals the next group into the buffer, in a new file if this one is full.
    pub(crate) fn plan(&mut self, core: &Core, purpose: Purpose) -> Result<Plan> {
        let start = core.durable();
        assert!(start == core.written(), "every earlier group is durable");
        if purpose == Purpose::Data && core.is_at_limit(0) && !planted(Bug::LogLimitIgnored) {
            // All records that have a place go into one group: a group for each would need more padding than was foreseen.
            core.ring.published().wait_for(core.ring.reserved());
        }
        let waiting_bytes = match purpose {
            Purpose::Data => core.ring.published().get().since(start),
            Purpose::Claim => 0,
        };
        let due = match purpose {
            Purpose::Data => waiting_bytes > 0,
            Purpose::Claim => self.needs_claim(core),
        };
        if !due {
            return Ok(Plan::Nothing);
        }
        if self.current.as_ref().is_none_or(|current| current.room_bytes(core) == 0) {
            match self.rotate(core, start) {
                Ok(()) => {}
                Err(error) if error.is_shortage() => return Ok(Plan::Refused(error)),
                Err(error) => return Err(error),
            }
        }
        let current = self.current.as_ref().expect("a file is open after rotating");
        let room_bytes = stream_room_bytes(current.room_bytes(core)) / GRANULE * GRANULE;
        let most = room_bytes.min(MAX_GROUP_BYTES);
        let stream_bytes = usize::try_from(waiting_bytes).map_or(most, |waiting| waiting.min(most));
        let group = Group {
            incarnation: core.origin.incarnation,
            number: current.groups,
            start,
            end: start.plus(stream_bytes),
            durable: start,
            step_bytes: current.step_bytes,
        };
        let needed_bytes = group.sealed_bytes().expect("a group is bounded");
        let mut buf = match self.buf.take() {
            Some(buf) if buf.capacity() >= needed_bytes => buf,
            _ => Buf::zeroed(needed_bytes),
        };
        seal(&current.opened.place, current.offset, &group, &mut buf, &mut |at, bytes| {
            core.ring.read(start.plus(at), bytes);
        });
        self.buf = Some(buf);
        Ok(Plan::Group(group))
    }

    /// Writes the planned group and waits for it. After a [refusal](Error::is_refusal) nothing has changed, and the group has
    /// to be planned anew.
    pub(crate) fn write(&mut self, core: &Core, group: &Group) -> Result<()> {
        let current = self.current.as_mut().expect("a planned group has a file");
        let buf = self.buf.take().expect("a planned group is sealed");
        let len_bytes = buf.len() as u64;
        if planted(Bug::LogSyncedBeforeTheWrite) {
            core.backend.sync(&current.opened.file)?;
        }
        let write = match core.sync_method {
            SyncMethod::DurableWrite if !planted(Bug::LogNotSynced) => aio::file::write_all_durably,
            _ => aio::file::write_all,
        };
        let buf = write(&mut *self.queue, &current.opened.file, current.offset, buf)?;
        self.buf = Some(buf);
        current.offset += len_bytes;
        current.groups += 1;
        core.files.used_room(len_bytes);
        count(&core.counters.groups, 1);
        count(&core.counters.written_bytes, len_bytes);
        core.written.store(group.end.get(), Ordering::SeqCst);
        Ok(())
    }

    /// Makes the written group durable.
    pub(crate) fn sync(&mut self, core: &Core, group: &Group) -> Result<()> {
        let current = self.current.as_ref().expect("a written group has a file");
        if planted(Bug::LogAcknowledgedBeforeTheSync) {
            core.durable.store(group.end.get(), Ordering::SeqCst);
        }
        if !planted(Bug::LogNotSynced) && !planted(Bug::LogSyncedBeforeTheWrite) {
            match core.sync_method {
                SyncMethod::Fdatasync => {
                    let file = &current.opened.file;
                    let written = self.buf.as_ref().expect("a written group is in its buffer");
                    let offset = current.offset - written.len() as u64;
                    let (backend, queue) = (&*core.backend, &mut *self.queue);
                    let synced = aio::file::sync_written(backend, queue, file, offset, written);
                    if synced.is_err() && planted(Bug::FailedSyncRetried) {
                        core.backend.sync(file)?;
                    } else {
                        synced?;
                    }
                }
                // The write was the sync.
                SyncMethod::DurableWrite => {}
            }
        }
        count(&core.counters.syncs, 1);
        self.claimed = self.claimed.max(group.durable);
        core.durable.store(group.end.get(), Ordering::SeqCst);
        Ok(())
    }

    fn rotate(&mut self, core: &Core, start: Seq) -> Result<()> {
        if let Some(full) = self.current.take() {
            core.files.used_room(core.files.file_bytes() - full.offset);
        }
        let opened = core.files.next(&mut *self.queue, start)?;
        count(&core.counters.activations, 1);
        count(&core.counters.recycled, u64::from(opened.recycled));
        // Not remembered from the file before: the volume may have moved to other devices.
        let step_bytes = step_of(&*core.backend, &opened.file);
        self.current = Some(Current { opened, offset: 0, step_bytes, groups: 0 });
        Ok(())
    }
}

impl Current {
    fn room_bytes(&self, core: &Core) -> usize {
        let left = core.files.file_bytes() - self.offset;
        let room = left - left % u64::from(self.step_bytes);
        usize::try_from(room).unwrap_or(usize::MAX)
    }
}
