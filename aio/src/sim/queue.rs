//! The simulated context of asynchronous I/O: operations complete in seeded random order, when they are waited for.
//!
//! Invariant: an operation has its effect when its completion is produced; until then the disk lists a write in flight
//! as one that a crash may complete in part.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::faults::{EventKind, Fault};
use super::inode::Sectors;
use super::machine::{Call, Machine, SharedMachine};
use super::pages::to_usize;
use crate::buf::Buf;
use crate::clock::whole_nanos;
use crate::error::{Errno, Error, Result};
use crate::flags::Flags;
use crate::kind::OperationKind;
use crate::open_file::{FileBody, SECTOR_BYTES, SimHandle};
use crate::operation::{AnyFile, Completion, Operation};
use crate::queue::{Cancel, Queue, Wake, WakeUp};
use crate::trace::{Ended, Submitted};

/// The percentage of submits that take fewer operations than there are free slots, as kernels do under memory pressure.
const PARTIAL_SUBMIT_PERCENT: u64 = 12;

#[derive(Debug)]
struct SimOperation {
    id: u64,
    operation: Operation,
    begun_at: Duration,
    ready_at: Duration,
    last: bool,
    misaligned: bool,
    /// For a sync: the last change that it covers.
    covers: u64,
}

/// A queue of the simulated machine.
pub(crate) struct SimQueue {
    machine: SharedMachine,
    slots: usize,
    in_flight: Vec<SimOperation>,
    waker: Arc<SimWaker>,
}

/// Remembers a wake-up until a wait of the queue's owner consumes it.
#[derive(Debug, Default)]
struct SimWaker(AtomicBool);

impl WakeUp for SimWaker {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for SimQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimQueue({} of {} in flight)", self.in_flight.len(), self.slots)
    }
}

impl SimQueue {
    pub(crate) fn new(machine: SharedMachine, slots: usize) -> SimQueue {
        assert!(slots > 0, "a queue needs a slot");
        SimQueue { machine, slots, in_flight: Vec::new(), waker: Arc::default() }
    }

    /// The index of an operation that can complete now, chosen by seed. One with [`Fault::Last`] waits for all others.
    fn pick_ready(&self, machine: &mut Machine) -> Option<usize> {
        let others = self.in_flight.iter().any(|flight| !flight.last);
        let can_complete = |flight: &SimOperation| flight.ready_at <= machine.now && !(flight.last && others);
        let flights = self.in_flight.iter().enumerate();
        let ready: Vec<usize> =
            flights.filter(|(_, flight)| can_complete(flight)).map(|(at, _)| at).collect();
        if ready.is_empty() { None } else { Some(ready[machine.rng.index(ready.len())]) }
    }

    /// The time when the next operation can complete. Called when no operation is ready; considers only delayed ones.
    fn next_ready_at(&self) -> Option<Duration> {
        let others = self.in_flight.iter().any(|flight| !flight.last);
        let candidates = self.in_flight.iter().filter(|flight| !(flight.last && others));
        candidates.map(|flight| flight.ready_at).min()
    }

    /// Completes one operation; after a crash it stays in flight.
    fn complete(&mut self, machine: &mut Machine, at: usize) -> Result<Completion> {
        let result = execute(machine, &mut self.in_flight[at])?;
        let flight = self.in_flight.swap_remove(at);
        machine.trace.ended([Ended {
            arguments: flight.operation.arguments(None),
            moved_bytes: result.ok(),
            nanos: whole_nanos(machine.now.saturating_sub(flight.begun_at)),
            submitted: None,
        }]);
        Ok(Completion { operation: flight.operation, result })
    }

    /// Completes a random number of ready operations, as a real device may do between two calls.
    fn complete_some(&mut self, machine: &mut Machine, completions: &mut Vec<Completion>) -> Result<()> {
        while machine.rng.chance(50) {
            let Some(at) = self.pick_ready(machine) else { break };
            completions.push(self.complete(machine, at)?);
        }
        Ok(())
    }
}

impl Queue for SimQueue {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        let machine = &mut *self.machine.lock();
        machine.check()?;
        let Some(front) = operations.front() else { return Ok(0) };
        let begun_at = machine.now;
        let call = Call::new(EventKind::Submit, front.file().path());
        if let Some(Fault::Errno(errno)) = machine.begin(&call)? {
            return Err(front.refused(errno));
        }
        if let Err(errno) = check(front) {
            return Err(front.refused(errno));
        }
        let mut room = operations.len().min(self.slots - self.in_flight.len());
        if room > 1 && machine.rng.chance(PARTIAL_SUBMIT_PERCENT) {
            room = 1 + machine.rng.index(room);
        }
        let mut taken = 0;
        while taken < room && operations.front().is_some_and(|front| check(front).is_ok()) {
            let Some(operation) = operations.pop_front() else { break };
            self.in_flight.push(start(machine, operation));
            taken += 1;
        }
        // The time of the call is divided evenly among its operations.
        let share = machine.now.saturating_sub(begun_at) / u32::try_from(taken.max(1)).unwrap_or(u32::MAX);
        for (turn, flight) in (0..).zip(self.in_flight.iter_mut().rev().take(taken).rev()) {
            flight.begun_at = begun_at + share * turn;
        }
        machine.trace.submitted(Submitted { operations: taken, depth: self.in_flight.len() });
        Ok(taken)
    }

    /// Completes operations in seeded order until `at_least` are done, and sometimes a few more.
    ///
    /// # Panics
    /// "would hang": no operation in flight can end the wait, the queue was not woken, and there is no deadline. The
    /// simulation runs on one thread, so no other thread can wake it.
    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        let shared = Arc::clone(&self.machine);
        let machine = &mut *shared.lock();
        machine.check()?;
        let before = completions.len();
        match machine.begin(&Call::new(EventKind::Wait, "".as_ref()))? {
            Some(Fault::Errno(Errno::INTERRUPTED)) => {
                self.complete_some(machine, completions)?;
                return Ok(Wake::Interrupted);
            }
            Some(Fault::Errno(errno)) => return Err(Error::failed("io_getevents", "".as_ref(), errno)),
            _ => {}
        }
        if at_least > 0 && self.waker.0.load(Ordering::SeqCst) {
            self.complete_some(machine, completions)?;
            if completions.len() - before >= at_least {
                // A wake-up stays for the next wait.
                return Ok(Wake::Completed);
            }
            self.waker.0.store(false, Ordering::SeqCst);
            return Ok(Wake::Woken);
        }
        while completions.len() - before < at_least {
            if deadline.is_some_and(|deadline| deadline <= machine.now) {
                self.complete_some(machine, completions)?;
                let enough = completions.len() - before >= at_least;
                return Ok(if enough { Wake::Completed } else { Wake::TimedOut });
            }
            if let Some(at) = self.pick_ready(machine) {
                completions.push(self.complete(machine, at)?);
                continue;
            }
            match (self.next_ready_at(), deadline) {
                (Some(ready), Some(deadline)) => machine.now = ready.min(deadline),
                (Some(time), None) | (None, Some(time)) => machine.now = time,
                (None, None) => panic!(
                    "would hang: waiting for {at_least} completions, {} came, nothing is in flight, no deadline",
                    completions.len() - before
                ),
            }
        }
        self.complete_some(machine, completions)?;
        Ok(Wake::Completed)
    }

    /// Only polls can be cancelled, and the simulated disk has none.
    fn cancel(&mut self, token: u64) -> Result<Cancel> {
        let is_in_flight = self.in_flight.iter().any(|flight| flight.operation.token() == token);
        Ok(if is_in_flight { Cancel::NotCancelable } else { Cancel::NotInFlight })
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn capacity(&self) -> usize {
        self.slots
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        Arc::<SimWaker>::clone(&self.waker)
    }
}

impl Drop for SimQueue {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.machine);
        let machine = &mut *shared.lock();
        while !self.in_flight.is_empty() {
            let at = machine.rng.index(self.in_flight.len());
            // After a crash the disk still lists the rest as writes that may have happened.
            if self.complete(machine, at).is_err() {
                break;
            }
        }
    }
}

/// The handle of the operation's file and the kind of its event; an error if this disk does not support it.
///
/// Vectored operations, polls, and flags other than [`Flags::DATA_SYNC`] are not simulated.
fn check(operation: &Operation) -> std::result::Result<(&SimHandle, EventKind), Errno> {
    let AnyFile::File(file) = operation.file() else { return Err(Errno(libc::EBADF)) };
    let FileBody::Sim(handle) = file.body() else { return Err(Errno(libc::EBADF)) };
    let kind = match (operation.kind(), operation.flags()) {
        (OperationKind::Read, Flags::NONE) => EventKind::Read,
        (OperationKind::Write, Flags::NONE) => EventKind::Write,
        (OperationKind::Write, Flags::DATA_SYNC) => EventKind::WriteDurable,
        (OperationKind::Sync | OperationKind::DataSync, Flags::NONE) => EventKind::Sync,
        _ => return Err(Errno::NOT_SUPPORTED),
    };
    let writes = matches!(kind, EventKind::Write | EventKind::WriteDurable);
    if writes && !handle.writable { Err(Errno(libc::EBADF)) } else { Ok((handle, kind)) }
}

/// The inode of an operation that was taken, and the kind of its event.
fn checked(operation: &Operation) -> (u64, EventKind) {
    let (handle, kind) = check(operation).expect("it was checked before it was taken");
    (handle.inode, kind)
}

fn is_misaligned(operation: &Operation) -> bool {
    let AnyFile::File(file) = operation.file() else { return false };
    let bytes = file.alignment().offset_bytes;
    !operation.offset().is_multiple_of(bytes as u64) || !operation.len_bytes().is_multiple_of(bytes)
}

/// Puts an operation in flight.
fn start(machine: &mut Machine, operation: Operation) -> SimOperation {
    let misaligned = is_misaligned(&operation);
    let (inode, kind) = checked(&operation);
    let schedule = machine.faults.schedule(kind, operation.file().path());
    let ready_at = match schedule {
        Some(Fault::Delay(delay)) => machine.now + delay,
        _ => machine.now,
    };
    let id = machine.next_flight();
    if let (OperationKind::Write, [buf], false) = (operation.kind(), operation.bufs(), misaligned) {
        machine.disk.inode_mut(inode).start_write(id, Sectors::new(operation.offset(), buf));
    }
    let last = schedule == Some(Fault::Last);
    SimOperation {
        id,
        operation,
        begun_at: machine.now,
        ready_at,
        last,
        misaligned,
        covers: machine.disk.seq(),
    }
}

/// Applies the effect of an operation. The outer error is the crash.
fn execute(machine: &mut Machine, flight: &mut SimOperation) -> Result<std::result::Result<usize, Errno>> {
    machine.check()?;
    if flight.misaligned {
        return Ok(Err(Errno::INVALID));
    }
    let operation = &flight.operation;
    let (inode, kind) = checked(operation);
    let (path, offset) = (operation.file().path(), operation.offset());
    let len = (operation.len_bytes() as u64).to_le_bytes();
    let bytes = match kind {
        EventKind::Read => &len[..],
        _ => operation.bufs().first().map_or(&[][..], |buf| buf),
    };
    let fault = machine.begin(&Call { kind, path, offset, bytes })?;
    Ok(match kind {
        EventKind::Read => {
            let buf = flight.operation.buf_mut().expect("a read has one buffer");
            read(machine, inode, offset, buf, fault)
        }
        EventKind::Sync => sync(machine, inode, flight.covers, fault).map(|()| 0),
        _ => {
            let extent = machine.disk.inode_mut(inode).end_flight(flight.id);
            write(machine, inode, &extent, kind == EventKind::WriteDurable, fault).map(to_usize)
        }
    })
}

fn read(
    machine: &Machine,
    inode: u64,
    offset: u64,
    buf: &mut Buf,
    fault: Option<Fault>,
) -> std::result::Result<usize, Errno> {
    let inode = machine.disk.inode(inode);
    let mut moved = to_usize(inode.size_bytes().saturating_sub(offset)).min(buf.len());
    match fault {
        Some(Fault::Errno(errno)) => return Err(errno),
        Some(Fault::Short(bytes)) => moved = moved.min(bytes),
        _ => {}
    }
    inode.volatile().read(offset, &mut buf[..moved]);
    if let Some(Fault::FlipBit(bit)) = fault
        && moved > 0
    {
        let bit = bit % (moved as u64 * 8);
        buf[to_usize(bit / 8)] ^= 1 << (bit % 8);
    }
    Ok(moved)
}

/// Returns the bytes written, or the error.
fn write(
    machine: &mut Machine,
    inode: u64,
    extent: &Sectors,
    durable: bool,
    fault: Option<Fault>,
) -> std::result::Result<u64, Errno> {
    if !machine.has_room(inode, extent.end()) {
        return Err(Errno::NO_SPACE);
    }
    let seq = machine.disk.next_seq();
    let block_bytes = machine.disk.physical_block_bytes() as u64;
    let mut whole = extent.clone();
    match fault {
        Some(Fault::Errno(errno)) => {
            let rng = &mut machine.rng;
            machine.disk.inode_mut(inode).write_torn(seq, whole, || rng.chance(50));
            return Err(errno);
        }
        Some(Fault::Short(bytes)) => {
            let end = extent.offset() + bytes as u64;
            // The kernel splits a write at physical blocks (`get_max_io_size` in block/blk-merge.c).
            let is_whole = extent.end().is_multiple_of(block_bytes);
            let unit = if is_whole { block_bytes } else { SECTOR_BYTES as u64 };
            whole = extent.part(extent.offset(), (end - end % unit).max(extent.offset()));
        }
        Some(Fault::Dropped) => return Ok(extent.end() - extent.offset()),
        Some(Fault::Misdirected(offset)) => whole = extent.moved_to(offset),
        _ => {}
    }
    let written = whole.end() - whole.offset();
    let inode = machine.disk.inode_mut(inode);
    match (written, durable) {
        (0, _) => {}
        (_, true) => inode.write_durable(seq, &whole),
        (_, false) => inode.write(seq, whole),
    }
    Ok(written)
}

/// Makes every change of the file up to `covers` durable, unless a fault prevents it.
pub(crate) fn sync(
    machine: &mut Machine,
    inode: u64,
    covers: u64,
    fault: Option<Fault>,
) -> std::result::Result<(), Errno> {
    let inode = machine.disk.inode_mut(inode);
    match fault {
        Some(Fault::Errno(errno)) => {
            inode.sync_failed(covers);
            Err(errno)
        }
        Some(Fault::Dropped) => Ok(()),
        _ => {
            inode.sync(covers);
            Ok(())
        }
    }
}
