//! Events that an application may want to log or count.
//!
//! Invariant: a listener is called without any lock of the store that a read or a write waits for.

use std::time::Duration;

use aio::FallBack;

use crate::base::error::Error;

/// An event in a store. More kinds may come.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The store is open.
    #[non_exhaustive]
    Opened {
        /// Records that were replayed from the log.
        replayed_records: u64,
        /// Whether a write that was never acknowledged was found cut off at the end of the log.
        torn_tail: bool,
    },
    /// The machine refuses something, and the store works around it: it keeps every promise, and may be slower. Sent once
    /// for each kind: at the end of the open, or with the next flush, merge or close if it comes later.
    /// [`Metrics::fall_backs`](crate::Metrics::fall_backs) has it at once.
    #[non_exhaustive]
    FellBack {
        /// The refused call, its answer, and what the store does instead. Prints as a sentence.
        fall_back: FallBack,
    },
    /// A memtable was written to segments.
    #[non_exhaustive]
    Flushed {
        /// Name of the keyspace.
        keyspace: String,
        /// Bytes of the new segments.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// A merge of runs begins. [`Event::Compacted`] follows, unless the merge fails or a close ends it.
    #[non_exhaustive]
    Compacting {
        /// Name of the keyspace.
        keyspace: String,
        /// Bytes of the runs.
        bytes: u64,
    },
    /// Runs were merged.
    #[non_exhaustive]
    Compacted {
        /// Name of the keyspace.
        keyspace: String,
        /// Bytes read.
        bytes_in: u64,
        /// Bytes written.
        bytes_out: u64,
        /// How long it took.
        took: Duration,
    },
    /// The pressure of a keyspace's runs on its writers has changed.
    #[non_exhaustive]
    Pressure {
        /// Name of the keyspace.
        keyspace: String,
        /// The pressure from now on.
        pressure: Pressure,
    },
    /// A write had to wait for a flush.
    #[non_exhaustive]
    Stalled {
        /// How long it waited.
        took: Duration,
    },
    /// A flush or a compaction failed, and will be retried; or a file that no manifest names could not be removed by an open,
    /// and stays until the next one.
    #[non_exhaustive]
    BackgroundError {
        /// Its cause.
        error: Error,
    },
    /// A log or manifest write failed: the store takes no more writes until it is reopened.
    #[non_exhaustive]
    Halted {
        /// The first cause.
        cause: Error,
    },
}

/// Whether merges keep up with the writes to a keyspace. Writes to other keyspaces are not slowed by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pressure {
    /// They do: writes go on at any rate.
    #[default]
    None,
    /// They have work to do: writes go on at about the rate that merges sustain.
    Slowed,
    /// They are far behind: writes go on at a fifth of that rate.
    Most,
}

/// Receives events. Called on threads of the store, and inside the call of the application that caused the event: it
/// must not block and must not call the store (a write from it may panic).
pub trait Listener: Send + Sync + std::fmt::Debug + 'static {
    /// Takes one event.
    fn event(&self, event: &Event);
}
