//! Many cursors as one, in internal order or exactly backwards.
//!
//! The inputs stand in a binary heap by their entries. A step moves the input at the top and lets it sink: while it
//! stays ahead of the others that is two comparisons, whatever the number of inputs.
//!
//! Invariant: two inputs never hold the same key and `Seq`. Were it so all the same, both entries would come out side
//! by side, the earlier input's first going forward and last going backward, and readers and compaction would ignore the copy.

use std::cmp::Ordering;

use crate::error::Result;
use crate::iter::Cursor;
use crate::key::Entry;

/// The merge of its inputs; itself a [`Cursor`]. After an error it stands past the end until the next seek.
pub(crate) struct Merge {
    inputs: Vec<Box<dyn Cursor>>,
    /// Indices of the inputs that have an entry; the one whose turn it is comes first.
    heap: Vec<usize>,
    direction: Direction,
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

impl Merge {
    /// The order of the inputs does not matter.
    pub(crate) fn new(inputs: Vec<Box<dyn Cursor>>) -> Merge {
        Merge { heap: Vec::with_capacity(inputs.len()), inputs, direction: Direction::Forward }
    }

    /// Positions every input and builds the heap.
    fn start(
        &mut self,
        direction: Direction,
        mut seek: impl FnMut(&mut dyn Cursor) -> Result<()>,
    ) -> Result<()> {
        self.heap.clear();
        self.direction = direction;
        for input in &mut self.inputs {
            seek(input.as_mut())?;
        }
        let inputs = &self.inputs;
        self.heap.extend((0..inputs.len()).filter(|input| inputs[*input].entry().is_some()));
        for at in (0..self.heap.len() / 2).rev() {
            self.sink(at);
        }
        Ok(())
    }

    /// Moves the input whose turn it is.
    fn step(&mut self, move_on: impl FnOnce(&mut dyn Cursor) -> Result<()>) -> Result<()> {
        let Some(&top) = self.heap.first() else {
            debug_assert!(false, "a cursor past the end was moved");
            return Ok(());
        };
        if let Err(error) = move_on(self.inputs[top].as_mut()) {
            self.heap.clear();
            return Err(error);
        }
        if self.inputs[top].entry().is_none() {
            self.heap.swap_remove(0);
        }
        self.sink(0);
        Ok(())
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut first = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.precedes(self.heap[child], self.heap[first]) {
                    first = child;
                }
            }
            if first == at {
                return;
            }
            self.heap.swap(at, first);
            at = first;
        }
    }

    /// Whether the entry of `input` comes before that of `other`.
    fn precedes(&self, input: usize, other: usize) -> bool {
        let order = match (self.inputs[input].entry(), self.inputs[other].entry()) {
            (Some(entry), Some(other)) => entry.order(&other),
            // Not in the heap; an order all the same.
            (entry, other) => entry.is_none().cmp(&other.is_none()),
        };
        debug_assert!(order != Ordering::Equal, "two inputs of a merge hold the same entry");
        match self.direction {
            Direction::Forward => order.then(input.cmp(&other)) == Ordering::Less,
            Direction::Backward => order.then(input.cmp(&other)) == Ordering::Greater,
        }
    }
}

impl Cursor for Merge {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.start(Direction::Forward, |input| input.seek(key))
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.start(Direction::Backward, |input| input.seek_before(key))
    }

    fn next(&mut self) -> Result<()> {
        self.step(|input| input.next())
    }

    fn prev(&mut self) -> Result<()> {
        self.step(|input| input.prev())
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.inputs[*self.heap.first()?].entry()
    }
}
