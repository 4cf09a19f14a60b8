//! The completion ring: reaps completions without a system call.
//!
//! The kernel maps a ring of events into the process and uses its address as the number of the context:
//!
//! ```text
//!   +----+----+------+------+-------+--------+----------+------------+---------+---------+-----+
//!   | id | nr | head | tail | magic | compat | incompat | header len | event 0 | event 1 | ... |
//!   +----+----+------+------+-------+--------+----------+------------+---------+---------+-----+
//!
//!   OFFSET  SIZE  FIELD
//!        0     4  number within the process
//!        4     4  slots in the ring
//!        8     4  head: the next event to reap, moved by the consumer
//!       12     4  tail: the index of the next new event, moved by the kernel
//!       16     4  magic, 0xa10a10a1
//!       20     4  compatible features
//!       24     4  incompatible features: must be 0
//!       28     4  length of this header: 32
//!       32   32n  events
//! ```
//!
//! Invariants
//! - The ring is used only if magic, header length and features are as above; where they are not (a sandbox, a future
//!   kernel) the system call does the work.
//! - One consumer: the owner of the context reaps here or by system call, never from two threads. The kernel takes a
//!   lock when it reaps, this code does not.
//! - Tail is loaded with acquire, then the events are read, then head is stored with release: the kernel reuses a slot
//!   only after it has seen the head beyond it.
//! - A forked child does not inherit the pages: with them it would reap the parent's events.
//! - The mapping ends with the context, so the owner of both stops using the ring first.
#![expect(unsafe_code, reason = "words of the kernel's ring")]

use std::ops::Range;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::{self, IoEvent, KernelContext};

const MAGIC: u32 = 0xa10a_10a1;
const HEADER_BYTES: usize = 32;
const EVENT_WORDS: usize = size_of::<IoEvent>() / size_of::<u64>();

const SLOTS: usize = 1;
const HEAD: usize = 2;
const TAIL: usize = 3;
const MAGIC_AT: usize = 4;
const INCOMPATIBLE: usize = 6;
const HEADER_LEN: usize = 7;
const HEADER_WORDS: usize = 8;

/// The consumer's side of a context's ring.
#[derive(Debug)]
pub(crate) struct CompletionRing {
    /// The address of the header.
    address: usize,
    slots: u32,
}

impl CompletionRing {
    /// The ring of a context, if there is one that can be read. It is hidden from forked children.
    pub(crate) fn of(context: &KernelContext) -> Option<CompletionRing> {
        let address = context.address();
        if !sys::is_mapped(address, HEADER_BYTES) {
            return None;
        }
        let mut ring = CompletionRing { address, slots: 0 };
        let word = |at: usize| ring.header()[at].load(Ordering::Acquire);
        let slots = word(SLOTS);
        if !is_understood(word(MAGIC_AT), word(INCOMPATIBLE), word(HEADER_LEN)) || slots == 0 {
            return None;
        }
        let len_bytes = HEADER_BYTES + usize::try_from(slots).ok()? * size_of::<IoEvent>();
        if !sys::is_mapped(address, len_bytes) || !sys::hide_from_children(address, len_bytes) {
            return None;
        }
        ring.slots = slots;
        Some(ring)
    }

    /// Whether the ring is still there.
    pub(crate) fn is_mapped(&self) -> bool {
        let events_bytes = usize::try_from(self.slots).unwrap_or(0) * size_of::<IoEvent>();
        sys::is_mapped(self.address, HEADER_BYTES + events_bytes)
    }

    /// Whether the ring has no events. Takes half a nanosecond.
    pub(crate) fn is_empty(&self) -> bool {
        let header = self.header();
        header[HEAD].load(Ordering::Relaxed) == header[TAIL].load(Ordering::Acquire)
    }

    /// How many events the ring holds.
    pub(crate) fn len(&self) -> usize {
        let header = self.header();
        let (head, tail) = (header[HEAD].load(Ordering::Relaxed), header[TAIL].load(Ordering::Acquire));
        // If the header was overwritten, the system call reaps.
        let is_sound = head < self.slots && tail < self.slots;
        let ahead = if head <= tail { tail - head } else { self.slots - head + tail };
        if is_sound { usize::try_from(ahead).unwrap_or(0) } else { 0 }
    }

    /// The data of these events, which stay in the ring; the oldest one is number 0. Those that are not there are left out.
    pub(crate) fn data(&self, events: Range<usize>) -> impl Iterator<Item = u64> {
        let head = self.header()[HEAD].load(Ordering::Relaxed);
        let number = |nth: usize| u32::try_from(nth).unwrap_or(u32::MAX);
        (number(events.start)..number(events.end.min(self.len()))).map(move |nth| {
            let to_end = self.slots - head;
            self.event(if nth < to_end { head + nth } else { nth - to_end }).data
        })
    }

    /// Moves events out of the ring, as many as there are and `events` has room for; returns how many.
    pub(crate) fn drain(&mut self, events: &mut [IoEvent]) -> usize {
        let header = self.header();
        let mut head = header[HEAD].load(Ordering::Relaxed);
        let tail = header[TAIL].load(Ordering::Acquire);
        // If the header was overwritten, an index beyond the ring is not followed; the caller reaps by system call.
        if head >= self.slots || tail >= self.slots {
            return 0;
        }
        let mut count = 0;
        while head != tail && count < events.len() {
            events[count] = self.event(head);
            count += 1;
            head = if head + 1 == self.slots { 0 } else { head + 1 };
        }
        if count > 0 {
            header[HEAD].store(head, Ordering::Release);
        }
        count
    }

    fn event(&self, index: u32) -> IoEvent {
        let first = usize::try_from(index).unwrap_or(usize::MAX) * EVENT_WORDS;
        let words = &self.events()[first..first + EVENT_WORDS];
        let word = |at: usize| words[at].load(Ordering::Relaxed);
        IoEvent {
            data: word(0),
            iocb: word(1),
            result: word(2).cast_signed(),
            result2: word(3).cast_signed(),
        }
    }

    fn header(&self) -> &[AtomicU32] {
        let first = ptr::with_exposed_provenance::<AtomicU32>(self.address);
        // SAFETY: the first page of the ring is mapped (checked in `of`) and stays so as long as the context, which
        // outlives `self`; page-aligned; shared with the kernel, so accessed by atomics only.
        unsafe { slice::from_raw_parts(first, HEADER_WORDS) }
    }

    fn events(&self) -> &[AtomicU64] {
        let first = ptr::with_exposed_provenance::<AtomicU64>(self.address + HEADER_BYTES);
        let words = usize::try_from(self.slots).unwrap_or(0) * EVENT_WORDS;
        // SAFETY: the same as for the header, up to the number of slots that was checked in `of`.
        unsafe { slice::from_raw_parts(first, words) }
    }
}

fn is_understood(magic: u32, incompatible: u32, header_len: u32) -> bool {
    magic == MAGIC && incompatible == 0 && usize::try_from(header_len) == Ok(HEADER_BYTES)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_known_layout_is_used() {
        assert!(is_understood(MAGIC, 0, 32));
        assert!(!is_understood(MAGIC + 1, 0, 32));
        assert!(!is_understood(MAGIC, 1, 32));
        assert!(!is_understood(MAGIC, 0, 40));
    }

    /// Polls that are done at once, reaped in turn by ring and by system call, several times around the ring.
    #[test]
    fn ring_and_system_call_reap_the_same_events_in_turn() {
        let context = sys::setup(4).unwrap();
        let Some(mut ring) = CompletionRing::of(&context) else {
            panic!("this kernel has no completion ring");
        };
        assert!(ring.is_empty());
        let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::empty()).unwrap();
        let mut iocb = sys::Iocb {
            opcode: sys::COMMAND_POLL,
            descriptor: std::os::fd::AsRawFd::as_raw_fd(&event).cast_unsigned(),
            buf: 1,
            ..sys::Iocb::default()
        };
        let mut events = [IoEvent::default(); 4];
        let rounds = u64::from(ring.slots) * 3;
        for round in 0..rounds {
            iocb.data = round;
            // SAFETY: a poll has no buffer.
            assert_eq!(unsafe { sys::submit(&context, slice::from_mut(&mut iocb), &[0]) }, Ok(1));
            assert!(!ring.is_empty());
            let count = if round % 3 == 0 {
                let wait = sys::Wait { at_least: 1, timeout: Some(Duration::ZERO), mask: None };
                sys::reap(&context, &mut events, wait).unwrap()
            } else {
                ring.drain(&mut events)
            };
            assert_eq!((count, events[0].data, events[0].result), (1, round, 1));
            assert!(ring.is_empty());
            assert_eq!(ring.drain(&mut events), 0);
        }
    }
}
