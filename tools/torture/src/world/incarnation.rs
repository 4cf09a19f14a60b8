//! Closing, opening again, and crashing.

use esker::Durability;

use super::state::{Outcome, World};
use crate::config::CONFIGS;
use crate::held::expect_closed;
use crate::model::Bounds;
use crate::report::Check;
use crate::workload::Op;

impl World {
    pub(super) fn run_lifecycle(&mut self, op: &Op) -> Check<Outcome> {
        match op {
            Op::Reopen { config } => {
                if let Err(error) = self.close()? {
                    return Ok(Outcome::Refused(error));
                }
                self.open_again(*config)
            }
            Op::DropAll { config } => {
                self.let_go();
                self.open_again(*config)
            }
            Op::Crash { kind, seed, config } => {
                let (image, bounds) = self.crash(*kind, *seed);
                self.restart(image, *seed, *config);
                let found = self.open(&bounds)?;
                self.settle(found)?;
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Skipped),
        }
    }

    /// Closes the store. Every held object must report that. A close makes everything durable.
    ///
    /// # Errors
    /// A handle still works. The inner error is the store's own.
    pub(crate) fn close(&mut self) -> Check<esker::Result<()>> {
        let Some(db) = self.db.take() else { return Ok(Ok(())) };
        let closed = db.close();
        if closed.is_ok() {
            self.acknowledge(Durability::Power);
        }
        let any = self.handles.iter().flatten().next();
        self.held.store_closed(any, self.sim.faults_struck() > 0)?;
        if let Some(handle) = any {
            expect_closed("put to a closed store", handle.put("k", "v"))?;
            expect_closed("get from a closed store", handle.get("k"))?;
        }
        self.let_go();
        Ok(closed)
    }

    /// Opens on the same machine after the last handle is gone. Dropping the last handle flushes everything, too.
    fn open_again(&mut self, config: usize) -> Check<Outcome> {
        self.config = &CONFIGS[config];
        let bounds = Bounds::exactly(self.model.end());
        let found = self.open(&bounds)?;
        self.settle(found)?;
        Ok(Outcome::Done)
    }
}
