//! A cursor over everything in a superversion: its tables, and the slices of the zone in which it walks.
//!
//! ```text
//!   inputs of the merge:  active table | layers, newest first | slices of the zone, newest first | the bottom's slice
//! ```
//!
//! Where the bottom's slice ends, the cursor goes on to the next zone: slices whose run goes on there stay where they are
//! and get the pieces of the next zone to go on with, runs that have nothing there are dropped once they have ended, and
//! runs that had nothing here seek to where the zone begins. The slice of the bottom itself goes on to its next piece. So a
//! scan opens no piece of a zone that it does not reach, and a step inside a zone asks nothing about zones.
//!
//! Invariant: while an entry of the bottom run is still to come in the zone, every entry of the next zone lies behind it. So
//! it is early enough to open the next zone when the bottom's slice has ended, and every piece that reaches into the zones
//! between the seek and the present one was opened.

use std::sync::Arc;

use crate::base::error::Result;
use crate::base::key::Entry;
use crate::manifest::levels::BOTTOM;
use crate::memtable::MemtableCursor;
use crate::read::cursor::{Cursor, Direction, Target};
use crate::read::merge::Merge;
use crate::read::staged_seek;
use crate::tree::piece::slices;
use crate::tree::run::RunCursor;
use crate::tree::zones::Zones;

/// Walks every version of every key, tombstones included.
#[derive(Debug)]
pub(crate) struct Scan {
    zones: Arc<Zones>,
    /// The zone in which it walks.
    zone: usize,
    /// Whether the inputs are the tables and the slices of `zone`, and no others.
    is_exact: bool,
    /// How many inputs are tables.
    tables: usize,
    merge: Merge<ScanInput>,
}

impl Scan {
    /// `tables`: newest first.
    pub(crate) fn new(tables: impl Iterator<Item = MemtableCursor>, zones: &Arc<Zones>) -> Scan {
        let merge = Merge::new(tables.map(ScanInput::Table));
        Scan { zones: Arc::clone(zones), zone: 0, is_exact: false, tables: merge.len(), merge }
    }

    /// Makes the slices of `zone` the inputs, beside the tables. Cursors of runs that it had already serve again.
    fn show(&mut self, zone: usize) {
        if self.is_exact && self.zone == zone {
            return;
        }
        (self.zone, self.is_exact) = (zone, true);
        let pieces = self.zones.zone(zone);
        let mut before = runs_of(self.merge.take_from(self.tables)).peekable();
        for slice in slices(pieces) {
            let stamp = pieces[slice.start].stamp;
            while before.next_if(|run| run.stamp() > stamp).is_some() {}
            let run = match before.next_if(|run| run.stamp() == stamp) {
                Some(mut run) => {
                    run.move_to(pieces, slice);
                    run
                }
                None => RunCursor::new(pieces, slice, true),
            };
            self.merge.push(ScanInput::Run(run));
        }
    }

    /// Whether the bottom's slice has ended.
    #[inline]
    fn has_crossed(&self) -> bool {
        match self.merge.last_input() {
            Some(ScanInput::Run(run)) => run.is_at_end() && run.stamp() == BOTTOM,
            _ => false,
        }
    }

    /// Goes on to the next zone, or to several, if the bottom's slice has ended.
    #[inline]
    fn cross(&mut self, direction: Direction) -> Result<()> {
        if self.has_crossed() { self.cross_zones(direction) } else { Ok(()) }
    }

    #[cold]
    fn cross_zones(&mut self, direction: Direction) -> Result<()> {
        while self.has_crossed() {
            let next = match direction {
                Direction::Forward => Some(self.zone + 1).filter(|&next| next < self.zones.len()),
                Direction::Backward => self.zone.checked_sub(1),
            };
            let Some(next) = next else { return Ok(()) };
            self.zone = next;
            self.is_exact = false;
            self.join(direction)?;
        }
        Ok(())
    }

    /// Adds the slices of `zone` to the inputs.
    fn join(&mut self, direction: Direction) -> Result<()> {
        let zones = Arc::clone(&self.zones);
        let pieces = zones.zone(self.zone);
        let mut before = runs_of(self.merge.take_from(self.tables)).peekable();
        for slice in slices(pieces) {
            let stamp = pieces[slice.start].stamp;
            // Runs that have nothing in this zone stay until they have ended.
            while let Some(run) = before.next_if(|run| run.stamp() > stamp) {
                if !run.is_at_end() {
                    self.merge.push(ScanInput::Run(run));
                }
            }
            let goes_on = before.next_if(|run| run.stamp() == stamp);
            let is_new = goes_on.is_none();
            let mut run = goes_on.unwrap_or_else(|| RunCursor::new(pieces, slice.clone(), true));
            match (direction, is_new) {
                (Direction::Forward, true) => run.seek(zones.begin(self.zone))?,
                (Direction::Backward, true) => run.seek_before(Some(zones.begin(self.zone + 1)))?,
                (Direction::Forward, false) => run.extend(pieces, slice)?,
                (Direction::Backward, false) => run.extend_back(pieces, slice)?,
            }
            self.merge.push(ScanInput::Run(run));
        }
        self.merge.settle();
        Ok(())
    }
}

fn runs_of(inputs: Vec<ScanInput>) -> impl Iterator<Item = RunCursor> {
    inputs.into_iter().filter_map(|place| match place {
        ScanInput::Run(run) => Some(run),
        ScanInput::Table(_) => None,
    })
}

impl Cursor for Scan {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.show(self.zones.zone_of(key));
        self.merge.seek(key)?;
        self.cross(Direction::Forward)
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.show(self.zones.zone_before(key));
        self.merge.seek_before(key)?;
        self.cross(Direction::Backward)
    }

    fn next(&mut self) -> Result<()> {
        self.merge.next()?;
        self.cross(Direction::Forward)
    }

    fn prev(&mut self) -> Result<()> {
        self.merge.prev()?;
        self.cross(Direction::Backward)
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        self.merge.entry()
    }

    #[inline]
    fn ends_key(&self) -> bool {
        self.merge.ends_key()
    }

    /// Within a block, so it never crosses to another zone.
    #[inline]
    fn quick_next(&mut self) -> bool {
        self.merge.quick_next()
    }

    #[inline]
    fn quick_prev(&mut self) -> bool {
        self.merge.quick_prev()
    }
}

/// A cursor over one place of a superversion.
#[derive(Debug)]
enum ScanInput {
    Table(MemtableCursor),
    Run(RunCursor),
}

impl Cursor for ScanInput {
    fn prepare<'a>(cursors: impl Iterator<Item = &'a mut ScanInput>, target: Target<'_>)
    where
        ScanInput: 'a,
    {
        let mut runs = cursors.filter_map(|place| match place {
            ScanInput::Table(_) => None,
            ScanInput::Run(run) => Some(run),
        });
        // A single run, as most keyspaces have, gains nothing from stages.
        if let (Some(first), Some(second)) = (runs.next(), runs.next()) {
            staged_seek::prepare([first, second].into_iter().chain(runs).collect(), target);
        }
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        match self {
            ScanInput::Table(table) => table.seek(key),
            ScanInput::Run(run) => run.seek(key),
        }
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        match self {
            ScanInput::Table(table) => table.seek_before(key),
            ScanInput::Run(run) => run.seek_before(key),
        }
    }

    fn next(&mut self) -> Result<()> {
        match self {
            ScanInput::Table(table) => table.next(),
            ScanInput::Run(run) => run.next(),
        }
    }

    fn prev(&mut self) -> Result<()> {
        match self {
            ScanInput::Table(table) => table.prev(),
            ScanInput::Run(run) => run.prev(),
        }
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        match self {
            ScanInput::Table(table) => table.entry(),
            ScanInput::Run(run) => run.entry(),
        }
    }

    #[inline]
    fn ends_key(&self) -> bool {
        match self {
            ScanInput::Table(table) => table.ends_key(),
            ScanInput::Run(run) => run.ends_key(),
        }
    }

    #[inline]
    fn quick_next(&mut self) -> bool {
        match self {
            ScanInput::Table(table) => table.quick_next(),
            ScanInput::Run(run) => run.quick_next(),
        }
    }

    #[inline]
    fn quick_prev(&mut self) -> bool {
        match self {
            ScanInput::Table(table) => table.quick_prev(),
            ScanInput::Run(run) => run.quick_prev(),
        }
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
