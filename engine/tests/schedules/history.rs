//! The operations that writers sent and their results, and the contents that a reader or a reopened store may show.
//!
//! Every writer has its own keys. The number of an operation determines which of them it writes, so a count of
//! operations describes the contents of these keys completely. The check has two parts. The count of each writer must be
//! in its range. All counts together must be a prefix of the order of writes: if an operation is visible, so is every
//! operation that had ended before it began.
//!
//! Invariant: stamps rise. No call in this file lets another task run.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Keys of a writer in each keyspace.
pub(crate) const KEYS: u64 = 3;

/// The keyspaces: `default`, and one that was made.
pub(crate) const KEYSPACES: [&str; 2] = ["default", "other"];

/// The kind of operations of one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Puts, to one key after the other.
    Puts,
    /// A batch over all keys of both keyspaces: puts, and now and then a delete.
    Batches,
    /// A put and a delete in turn.
    Deletes,
}

/// Names one key: the index of its keyspace and its number.
pub(crate) type KeyId = (usize, u64);

/// The visible values of one writer's keys: for each key the number of the operation that wrote it.
pub(crate) type Seen = BTreeMap<KeyId, u64>;

impl Shape {
    /// The keys that the operation puts (true) and deletes (false).
    pub(crate) fn effects(self, operation: u64) -> Vec<(KeyId, bool)> {
        match self {
            Shape::Puts => vec![((0, operation % KEYS), true)],
            Shape::Deletes => vec![((0, operation / 2 % KEYS), operation.is_multiple_of(2))],
            Shape::Batches => {
                let places =
                    (0..KEYSPACES.len()).flat_map(|keyspace| (0..KEYS).map(move |key| (keyspace, key)));
                places.map(|place| (place, !(operation + place.1).is_multiple_of(4))).collect()
            }
        }
    }

    /// The contents after so many operations, which start from [`first`].
    pub(crate) fn after(self, operations: u64) -> Seen {
        let mut seen = first();
        for operation in 1..=operations {
            for (place, is_put) in self.effects(operation) {
                if is_put {
                    seen.insert(place, operation);
                } else {
                    seen.remove(&place);
                }
            }
        }
        seen
    }
}

/// The contents of every writer's keys before its first operation.
pub(crate) fn first() -> Seen {
    (0..KEYS).map(|key| ((0, key), 0)).collect()
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    sent: u64,
    ended: Option<u64>,
}

#[derive(Clone, Debug)]
struct Writer {
    shape: Shape,
    operations: Vec<Operation>,
    /// The number of operations that must survive a power cut.
    durable: u64,
}

/// A number of operations for each writer: the least that must be visible, or the most that may be.
pub(crate) type Bounds = Vec<u64>;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    now: u64,
    writers: Vec<Writer>,
    /// A call has returned that the store has halted.
    pub(crate) has_halted: bool,
    /// Futures that were started. `pending` counts those that a poll found pending.
    pub(crate) futures: u64,
    pub(crate) pending: u64,
    /// Whether the temporary keyspace must exist. `None` while that is open.
    pub(crate) temporary: Option<bool>,
    /// The least number of its keys, if it exists.
    pub(crate) temporary_keys: usize,
}

impl History {
    pub(crate) fn new(shapes: &[Shape]) -> History {
        let writer = |&shape| Writer { shape, operations: Vec::new(), durable: 0 };
        History {
            now: 0,
            writers: shapes.iter().map(writer).collect(),
            has_halted: false,
            futures: 0,
            pending: 0,
            temporary: Some(false),
            temporary_keys: 0,
        }
    }

    pub(crate) fn writers(&self) -> usize {
        self.writers.len()
    }

    pub(crate) fn shape(&self, writer: usize) -> Shape {
        self.writers[writer].shape
    }

    fn stamp(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// The number of the next operation of this writer, which begins.
    pub(crate) fn send(&mut self, writer: usize) -> u64 {
        let sent = self.stamp();
        self.writers[writer].operations.push(Operation { sent, ended: None });
        self.writers[writer].operations.len() as u64
    }

    /// Its last operation was acknowledged.
    pub(crate) fn end(&mut self, writer: usize, survives_power: bool) {
        let ended = self.stamp();
        let writer = &mut self.writers[writer];
        writer.operations.last_mut().expect("it was sent").ended = Some(ended);
        if survives_power {
            writer.durable = writer.operations.len() as u64;
        }
    }

    /// Its last operation was refused and has no effect.
    pub(crate) fn refuse(&mut self, writer: usize) {
        self.writers[writer].operations.pop();
    }

    /// The number of acknowledged operations of each writer. Every read that begins now sees them.
    pub(crate) fn ended(&self) -> Bounds {
        let count =
            |writer: &Writer| writer.operations.iter().filter(|one| one.ended.is_some()).count() as u64;
        self.writers.iter().map(count).collect()
    }

    /// The number of operations of each writer that have begun. No read that has ended sees more.
    pub(crate) fn sent(&self) -> Bounds {
        self.writers.iter().map(|writer| writer.operations.len() as u64).collect()
    }

    /// The number of operations of each writer that must survive a power cut.
    pub(crate) fn durable(&self) -> Bounds {
        self.writers.iter().map(|writer| writer.durable).collect()
    }

    /// Marks operations as durable: `ended` had ended when a successful sync began.
    pub(crate) fn synced(&mut self, ended: &Bounds) {
        for (writer, ended) in self.writers.iter_mut().zip(ended) {
            writer.durable = writer.durable.max(*ended);
        }
    }

    /// Checks the value of one key of a writer.
    pub(crate) fn judge_place(
        &self,
        (writer, place): (usize, KeyId),
        found: Option<u64>,
        operations: RangeInclusive<u64>,
    ) -> Result<(), String> {
        let shape = self.shape(writer);
        let mut states = operations.clone();
        if states.any(|count| shape.after(count).get(&place).copied() == found) {
            return Ok(());
        }
        Err(format!(
            "writer {writer}, {place:?}: found {found:?}, which is not after {operations:?} operations"
        ))
    }

    /// Checks the values of all keys of all writers, read as of one moment.
    pub(crate) fn judge(&self, seen: &[Seen], least: &Bounds, most: &Bounds) -> Result<(), String> {
        let mut counts = Vec::new();
        for (at, writer) in self.writers.iter().enumerate() {
            let fits = |count: &u64| writer.shape.after(*count) == seen[at];
            let mut fitting = (least[at]..=most[at]).filter(fits);
            let Some(lowest) = fitting.next() else {
                let all = 0..=writer.operations.len() as u64;
                return Err(format!(
                    "writer {at} ({:?}): found {:?}, which is after {:?} operations and not after {} to {}",
                    writer.shape,
                    seen[at],
                    all.filter(fits).collect::<Vec<_>>(),
                    least[at],
                    most[at]
                ));
            };
            counts.push((lowest, fitting.next_back().unwrap_or(lowest)));
        }
        self.judge_order(&counts)
    }

    /// Checks that the visible operations are a prefix of the order of writes. `counts` has the smallest and the largest
    /// count that fits the values of each writer.
    fn judge_order(&self, counts: &[(u64, u64)]) -> Result<(), String> {
        for (at, &(lowest, _)) in counts.iter().enumerate().filter(|(_, (lowest, _))| *lowest > 0) {
            let newest = usize::try_from(lowest - 1).expect("an index");
            let sent = self.writers[at].operations[newest].sent;
            for (other, &(_, highest)) in counts.iter().enumerate() {
                let operations = self.writers[other].operations.iter();
                let before =
                    operations.filter(|one| one.ended.is_some_and(|ended| ended < sent)).count() as u64;
                if before > highest {
                    return Err(format!(
                        "operation {lowest} of writer {at} is there, and of writer {other} only {highest} of the \
                         {before} that had ended before it began"
                    ));
                }
            }
        }
        Ok(())
    }
}
