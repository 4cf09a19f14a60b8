//! Many cursors as one, in internal order or exactly backwards.
//!
//! The inputs stand in a binary heap by their entries. A step moves the input at the top and lets it sink:
//! while it stays ahead of the others that is two comparisons, whatever the number of inputs.
//!
//! Invariant: two inputs never hold the same key and `Seq`. Were it so all the same, both entries would come
//! out side by side, the earlier input's first going forward and last going backward, and readers and
//! compaction would ignore the copy.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iter_contract::{Owned, VecCursor, check_all};

    /// Deals the entries out to `count` inputs, some of which stay empty.
    fn deal(entries: &[Owned], count: usize) -> Merge {
        let mut hands = vec![Vec::new(); count];
        for entry in entries {
            let hand = (entry.seq.get() * 31 % 7) as usize % count;
            hands[hand].push(entry.clone());
        }
        Merge::new(hands.into_iter().map(|hand| Box::new(VecCursor::new(hand)) as Box<dyn Cursor>).collect())
    }

    #[test]
    fn merge_keeps_the_contract_whatever_the_number_of_inputs() {
        for count in [1, 2, 3, 7, 12] {
            check_all(|entries| Box::new(deal(entries, count)));
        }
    }

    #[test]
    fn merges_of_merges_keep_the_contract() {
        check_all(|entries| {
            let (some, rest): (Vec<_>, Vec<_>) =
                entries.iter().cloned().partition(|entry| entry.key.len() == 1);
            Box::new(Merge::new(vec![Box::new(deal(&some, 2)), Box::new(deal(&rest, 3))]))
        });
    }

    #[test]
    fn a_merge_of_nothing_is_empty() {
        let mut merge = Merge::new(Vec::new());
        merge.seek(b"").unwrap();
        assert!(merge.entry().is_none());
        merge.seek_before(None).unwrap();
        assert!(merge.entry().is_none());
    }

    #[test]
    fn an_error_of_an_input_ends_the_merge_until_the_next_seek() {
        let entry = |key: &[u8], seq| Owned {
            key: key.to_vec(),
            seq: crate::key::Seq::new(seq),
            kind: crate::key::Kind::Put,
            value: Vec::new(),
        };
        let sound = vec![entry(b"b", 1), entry(b"d", 2)];
        let failing = vec![entry(b"a", 3), entry(b"c", 4)];
        for moves in 0..3 {
            let inputs: Vec<Box<dyn Cursor>> = vec![
                Box::new(VecCursor::new(sound.clone())),
                Box::new(VecCursor::failing_after(failing.clone(), moves)),
            ];
            let mut merge = Merge::new(inputs);
            let mut steps = merge.seek(b"");
            while steps.is_ok() {
                assert!(merge.entry().is_some(), "the failure was passed over after {moves} moves");
                steps = merge.next();
            }
            assert!(merge.entry().is_none());
        }
    }
}
