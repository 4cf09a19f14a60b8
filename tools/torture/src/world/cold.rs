//! Futures that start right after an open. The comparison that follows reads every block, and afterwards all are in memory:
//! only these wait for the disk.
//!
//! Invariant: their answers are judged once the comparison has found the state that was recovered.

use bytes::Bytes;
use esker::Db;

use super::state::World;
use crate::futures::{ColdGets, HeldGets};
use crate::report::{Check, Failure};
use crate::workload::SLOTS;

/// Keys of one group.
const KEYS: usize = 6;

impl World {
    /// Starts a group of gets for each of the first keyspaces, and polls each once.
    pub(super) fn start_cold(&mut self, db: &Db) -> Check {
        self.cold.clear();
        let used = self.model.used_keys();
        let keys: Vec<Bytes> = used.iter().step_by(used.len() / KEYS + 1).cloned().collect();
        if self.real.is_some() || keys.is_empty() {
            return Ok(());
        }
        let listed = db.keyspaces();
        for (slot, name) in SLOTS.iter().enumerate().filter(|(_, name)| listed.iter().any(|one| one == *name))
        {
            let Ok(keyspace) = db.keyspace(name) else { continue };
            let mut gets = HeldGets::together(keyspace.multi_get_async(&keys), Vec::new(), false);
            match gets.poll()? {
                None => self.held.pending += 1,
                Some(Ok(values)) => gets = HeldGets::answered(values),
                Some(Err(_)) if self.sim.faults_struck() > 0 => continue,
                Some(Err(error)) => return Err(Failure::from(error).at("a future after an open")),
            }
            self.cold.push(ColdGets { slot, keys: keys.clone(), gets });
        }
        Ok(())
    }

    /// The recovered state is known: the gets are held, with the answers that they may give.
    pub(super) fn settle_cold(&mut self) {
        for ColdGets { slot, keys, mut gets } in std::mem::take(&mut self.cold) {
            let Some(&keyspace) = self.model.newest_names().get(SLOTS[slot]) else { continue };
            let answer = |key: &Bytes| self.model.newest().table(keyspace).get(key).cloned();
            gets.views = vec![keys.iter().map(answer).collect()];
            self.held.keep_gets(gets);
        }
    }
}
