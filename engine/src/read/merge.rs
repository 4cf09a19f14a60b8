//! Many cursors as one, in internal order or exactly backwards.
//!
//! Several entries in a row usually come from one input. So a step first compares the input that moved with the runner-up:
//! one comparison, usually of two numbers. Only if the runner-up comes first, a binary search finds the new rank of the
//! input among those that wait. That is never more comparisons than a heap makes; a single input makes none.
//!
//! Invariants:
//! - `waiting` holds every input that has an entry, except the one at the top. The runner-up stands last;
//! - while an input waits, `head` of each input that has an entry is that of its key, and `next_head` is that of the
//!   runner-up.
//!
//! Two inputs never hold the same key and `Seq`. If they did, both entries would come out side by side: forward the one of
//! the earlier input first, backward last. Readers and compaction would ignore the copy.

use std::cmp::Ordering;

use crate::base::error::Result;
use crate::base::key::{Entry, key_head};
use crate::read::cursor::{Cursor, Direction, Target};

/// The merge of its inputs; itself a [`Cursor`]. After an error it stands past the end until the next seek.
#[derive(Debug)]
pub(crate) struct Merge<C> {
    inputs: Vec<MergeInput<C>>,
    /// The input whose entry the merge shows; past the last input if no input has one.
    top: usize,
    waiting: Vec<usize>,
    /// The head of the runner-up: most steps need nothing else of the inputs that wait.
    next_head: u64,
    direction: Direction,
}

#[derive(Debug)]
struct MergeInput<C> {
    cursor: C,
    /// [`key_head`] of its key.
    head: u64,
}

impl<C: Cursor> MergeInput<C> {
    fn key(&self) -> Option<&[u8]> {
        self.cursor.entry().map(|entry| entry.key)
    }
}

impl<C: Cursor> Merge<C> {
    /// A merge of `cursors`, in any order.
    pub(crate) fn new(cursors: impl IntoIterator<Item = C>) -> Merge<C> {
        let inputs: Vec<_> = cursors.into_iter().map(|cursor| MergeInput { cursor, head: 0 }).collect();
        Merge { top: inputs.len(), inputs, waiting: Vec::new(), next_head: 0, direction: Direction::Forward }
    }

    /// How many inputs it has.
    pub(crate) fn len(&self) -> usize {
        self.inputs.len()
    }

    #[inline]
    pub(crate) fn last_input(&self) -> Option<&C> {
        self.inputs.last().map(|input| &input.cursor)
    }

    /// Takes the inputs from this one on out. It stands past the end until the next seek or [`Merge::settle`].
    pub(crate) fn take_from(&mut self, first: usize) -> Vec<C> {
        self.end();
        self.inputs.split_off(first).into_iter().map(|input| input.cursor).collect()
    }

    /// Adds an input as the last one, after [`Merge::take_from`].
    pub(crate) fn push(&mut self, cursor: C) {
        self.inputs.push(MergeInput { cursor, head: 0 });
    }

    /// Brings the inputs into order after some were taken out or added, for a walk that goes on in the same direction. It
    /// stands past the end when this is called.
    pub(crate) fn settle(&mut self) {
        for input in 0..self.inputs.len() {
            if self.take_head(input) {
                self.enqueue(input);
            }
        }
        self.top = self.waiting.pop().unwrap_or(usize::MAX);
        self.note_next();
    }

    /// Positions all inputs and sorts them.
    fn start(&mut self, direction: Direction, target: Target<'_>) -> Result<()> {
        self.direction = direction;
        self.end();
        if self.inputs.len() > 1 {
            C::prepare(self.inputs.iter_mut().map(|input| &mut input.cursor), target);
        }
        for input in &mut self.inputs {
            match target {
                Target::From(key) => input.cursor.seek(key)?,
                Target::Before(key) => input.cursor.seek_before(key)?,
            }
        }
        self.settle();
        Ok(())
    }

    /// Moves past the end.
    fn end(&mut self) {
        self.waiting.clear();
        self.top = usize::MAX;
    }

    /// Moves the input at the top.
    fn step(&mut self, move_on: impl FnOnce(&mut C) -> Result<()>) -> Result<()> {
        let Some(top) = self.inputs.get_mut(self.top) else {
            debug_assert!(false, "a cursor past the end was moved");
            return Ok(());
        };
        if let Err(error) = move_on(&mut top.cursor) {
            self.end();
            return Err(error);
        }
        if !self.waiting.is_empty() {
            self.give_way();
        }
        Ok(())
    }

    #[inline]
    fn quick_step(&mut self, move_on: impl FnOnce(&mut C) -> bool) -> bool {
        if self.waiting.is_empty() {
            return self.inputs.get_mut(self.top).is_some_and(|top| move_on(&mut top.cursor));
        }
        let moved = !self.is_shared(&self.inputs[self.top]) && move_on(&mut self.inputs[self.top].cursor);
        if moved {
            self.give_way();
        }
        moved
    }

    /// Whether the runner-up stands on the key of the input at the top.
    #[inline]
    fn is_shared(&self, top: &MergeInput<C>) -> bool {
        self.waiting.last().is_some_and(|&next| {
            // Usually the numbers differ.
            top.head == self.next_head && top.key() == self.inputs[next].key()
        })
    }

    /// Puts the runner-up at the top if its entry comes first.
    #[inline]
    fn give_way(&mut self) {
        let has_entry = self.take_head(self.top);
        let head = self.inputs[self.top].head;
        let is_ahead = match self.direction {
            Direction::Forward => head < self.next_head,
            Direction::Backward => head > self.next_head,
        };
        if !(has_entry && is_ahead) {
            self.change_places(has_entry);
        }
    }

    /// The slow part of [`Merge::give_way`]: the heads are equal, or the runner-up comes first.
    fn change_places(&mut self, has_entry: bool) {
        let Some(&next) = self.waiting.last() else { return };
        if has_entry && self.precedes(self.top, next) {
            return;
        }
        self.waiting.pop();
        let moved = std::mem::replace(&mut self.top, next);
        if has_entry {
            self.enqueue(moved);
        }
        self.note_next();
    }

    /// Notes the head of the runner-up, which may be another input now.
    fn note_next(&mut self) {
        if let Some(&next) = self.waiting.last() {
            self.next_head = self.inputs[next].head;
        }
    }

    /// Notes the head of an input's key. Returns whether the input has an entry.
    #[inline]
    fn take_head(&mut self, input: usize) -> bool {
        let input = &mut self.inputs[input];
        let Some(entry) = input.cursor.entry() else { return false };
        input.head = key_head(entry.key);
        true
    }

    fn enqueue(&mut self, input: usize) {
        let at = self.waiting.partition_point(|&other| self.precedes(input, other));
        self.waiting.insert(at, input);
    }

    /// Whether the entry of `input` comes before that of `other`; both have one.
    fn precedes(&self, input: usize, other: usize) -> bool {
        let (a, b) = (&self.inputs[input], &self.inputs[other]);
        let order = a.head.cmp(&b.head).then_with(|| match (a.cursor.entry(), b.cursor.entry()) {
            (Some(entry), Some(other)) => entry.order(&other),
            // Inputs without an entry are not compared; the order is total all the same.
            (entry, other) => entry.is_none().cmp(&other.is_none()),
        });
        debug_assert!(order != Ordering::Equal, "two inputs of a merge hold the same entry");
        match self.direction {
            Direction::Forward => order.then(input.cmp(&other)) == Ordering::Less,
            Direction::Backward => order.then(input.cmp(&other)) == Ordering::Greater,
        }
    }
}

impl<C: Cursor> Cursor for Merge<C> {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.start(Direction::Forward, Target::From(key))
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.start(Direction::Backward, Target::Before(key))
    }

    fn next(&mut self) -> Result<()> {
        self.step(C::next)
    }

    fn prev(&mut self) -> Result<()> {
        self.step(C::prev)
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        self.inputs.get(self.top)?.cursor.entry()
    }

    /// The next entry comes from the same input or from the runner-up.
    #[inline]
    fn ends_key(&self) -> bool {
        self.inputs.get(self.top).is_some_and(|top| top.cursor.ends_key() && !self.is_shared(top))
    }

    #[inline]
    fn quick_next(&mut self) -> bool {
        self.quick_step(C::quick_next)
    }

    #[inline]
    fn quick_prev(&mut self) -> bool {
        self.quick_step(C::quick_prev)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::cursor_contract::{Owned, VecCursor, check_all};

    /// Distributes the entries over `count` inputs, some of which stay empty.
    fn deal(entries: &[Owned], count: usize) -> Merge<VecCursor> {
        let mut hands = vec![Vec::new(); count];
        for entry in entries {
            let hand = (entry.seq.get() * 31 % 7) as usize % count;
            hands[hand].push(entry.clone());
        }
        Merge::new(hands.into_iter().map(VecCursor::new))
    }

    #[test]
    fn a_merge_of_any_number_of_inputs_keeps_the_contract() {
        for count in [1, 2, 3, 7, 12] {
            check_all(|entries| Box::new(deal(entries, count)));
        }
    }

    #[test]
    fn merges_of_merges_keep_the_contract() {
        check_all(|entries| {
            let (some, rest): (Vec<_>, Vec<_>) =
                entries.iter().cloned().partition(|entry| entry.key.len() == 1);
            Box::new(Merge::new([deal(&some, 2), deal(&rest, 3)]))
        });
    }

    #[test]
    fn a_merge_of_nothing_is_empty() {
        let mut merge = Merge::<VecCursor>::new([]);
        merge.seek(b"").unwrap();
        assert!(merge.entry().is_none());
        merge.seek_before(None).unwrap();
        assert!(merge.entry().is_none());
    }

    #[test]
    fn an_error_of_an_input_ends_the_merge_until_the_next_seek() {
        let entry = |key: &[u8], seq| Owned {
            key: key.to_vec(),
            seq: crate::base::key::Seq::new(seq),
            kind: crate::base::key::Kind::Put,
            value: Vec::new(),
        };
        let sound = vec![entry(b"b", 1), entry(b"d", 2)];
        let failing = vec![entry(b"a", 3), entry(b"c", 4)];
        for moves in 0..3 {
            let inputs = [VecCursor::new(sound.clone()), VecCursor::failing_after(failing.clone(), moves)];
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
