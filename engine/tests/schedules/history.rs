//! What writers sent and were told, and what of it a reader or a reopened store may show.
//!
//! Every writer has keys of its own and writes them in an order that is known from the number of the operation, so what
//! is there of it is told by one number: how many of its operations. Each must be in a range, and all together a prefix of
//! the order of writes: where an operation is there, so is every one that had ended before it began.
//!
//! Invariant: stamps rise; nothing here is a place where another task goes on.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Keys of a writer in each keyspace.
pub(crate) const KEYS: u64 = 3;

/// The keyspaces: `default`, and one that was made.
pub(crate) const KEYSPACES: [&str; 2] = ["default", "other"];

/// What one writer's operations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A put, of one key after the other.
    Puts,
    /// A batch over all keys of both keyspaces: puts, and now and then a delete.
    Batches,
    /// A put and a delete in turn.
    Deletes,
}

/// A place: keyspace and number of the key.
pub(crate) type Place = (usize, u64);

/// What is seen of a writer's keys: the numbers of the operations that wrote what is there.
pub(crate) type Seen = BTreeMap<Place, u64>;

impl Shape {
    /// What the operation does: the places that it puts, and those that it deletes (false).
    pub(crate) fn effects(self, operation: u64) -> Vec<(Place, bool)> {
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

    /// What is there after so many operations, on top of what [`first`] gives.
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

/// What every writer's keys hold before its first operation.
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
    /// How many survive a power cut for certain.
    durable: u64,
}

/// How many operations of each writer there must be at least.
pub(crate) type Bounds = Vec<u64>;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    now: u64,
    writers: Vec<Writer>,
    /// Somebody was told that the store has halted.
    pub(crate) has_halted: bool,
    /// Futures that were started, and those of them that a poll found pending.
    pub(crate) futures: u64,
    pub(crate) pending: u64,
    /// Whether the keyspace that comes and goes must be there, if that is known.
    pub(crate) temporary: Option<bool>,
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

    /// Its last operation was refused before anything came of it.
    pub(crate) fn refuse(&mut self, writer: usize) {
        self.writers[writer].operations.pop();
    }

    /// How many of each writer have been acknowledged: what any read that begins now sees.
    pub(crate) fn ended(&self) -> Bounds {
        let count =
            |writer: &Writer| writer.operations.iter().filter(|one| one.ended.is_some()).count() as u64;
        self.writers.iter().map(count).collect()
    }

    /// How many of each writer have begun: no read that has ended sees more.
    pub(crate) fn sent(&self) -> Bounds {
        self.writers.iter().map(|writer| writer.operations.len() as u64).collect()
    }

    /// Those that must survive a power cut.
    pub(crate) fn durable(&self) -> Bounds {
        self.writers.iter().map(|writer| writer.durable).collect()
    }

    /// What had ended at the begin of something that synced all of it.
    pub(crate) fn synced(&mut self, ended: &Bounds) {
        for (writer, ended) in self.writers.iter_mut().zip(ended) {
            writer.durable = writer.durable.max(*ended);
        }
    }

    /// Whether one place of a writer may hold this.
    pub(crate) fn judge_place(
        &self,
        (writer, place): (usize, Place),
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

    /// Whether all keys of all writers, seen as of one moment, may hold this.
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

    /// The least and the most that may be there of each writer: is it a prefix of the order of writes?
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
