//! The open store of an errand, and the write of a number.

use std::collections::HashSet;
use std::mem::discriminant;
use std::path::Path;
use std::sync::Arc;

use esker::{Db, Durability, Event, FallBack, Keyspace, Listener};
use parking_lot::Mutex;

use super::terms::{FELL_BACK, Mode, way_around};
use crate::report::{Check, Failure, complain};
use crate::soak::plan::{KEYSPACES, key, slot_of, value};

/// An open store.
pub(crate) struct OpenStore {
    pub(crate) db: Db,
    pub(crate) keyspaces: [Keyspace; 2],
    told: Told,
}

/// The ways around refused calls that the store has told. Prints each.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<FallBack>>>);

impl Listener for Told {
    fn event(&self, event: &Event) {
        if let Event::FellBack { fall_back, .. } = event {
            complain(format!("errand: {FELL_BACK}{}: {fall_back}", way_around(fall_back)));
            self.0.lock().push(fall_back.clone());
        }
    }
}

impl OpenStore {
    pub(crate) fn open(mode: Mode, dir: &Path) -> esker::Result<OpenStore> {
        let told = Told::default();
        let db = mode.builder().listener(told.clone()).open(dir)?;
        let [left, right] = KEYSPACES.map(|name| db.keyspace(name));
        Ok(OpenStore { keyspaces: [left?, right?], db, told })
    }

    /// One write to both keyspaces or to none. Every other one waits for stable media.
    pub(crate) fn commit(&self, writer: usize, number: u64) -> Check {
        let (slot, deletes) = slot_of(writer, number);
        let key = key(writer, slot);
        let mut batch = self.db.batch();
        batch.durability(if number.is_multiple_of(2) { Durability::Power } else { Durability::Process });
        for keyspace in &self.keyspaces {
            if deletes {
                batch.delete(keyspace, &key);
            } else {
                batch.put(keyspace, &key, value(writer, number));
            }
        }
        batch.commit().map(drop).map_err(|error| Failure::from(error).at(format!("write {number}")))
    }

    pub(crate) fn close(self) -> Check {
        let OpenStore { db, keyspaces, told } = self;
        drop(keyspaces);
        db.clone().close().map_err(|error| Failure::from(error).at("close"))?;
        told.all_once(&db.metrics().fall_backs)
    }
}

impl Told {
    /// The store has told each way around that it has taken, and each kind once.
    fn all_once(&self, taken: &[FallBack]) -> Check {
        let told = self.0.lock();
        let kinds: HashSet<_> = told.iter().map(discriminant).collect();
        if kinds.len() == told.len()
            && told.iter().all(|way| taken.contains(way))
            && taken.len() == told.len()
        {
            return Ok(());
        }
        Err(Failure::new(format!("it told that it fell back to {told:?}, and its metrics say {taken:?}")))
    }
}
