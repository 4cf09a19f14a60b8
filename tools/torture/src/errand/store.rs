//! The open store of an errand, and the write of a number.

use std::path::Path;
use std::sync::Arc;

use aio::{Backend, FallBack, NativeBackend};
use esker::testing::BuilderExt as _;
use esker::{Db, Durability, Keyspace};

use super::terms::Mode;
use crate::report::{Check, Failure};
use crate::soak::plan::{KEYSPACES, key, slot_of, value};

/// An open store.
pub(crate) struct OpenStore {
    pub(crate) db: Db,
    pub(crate) keyspaces: [Keyspace; 2],
    backend: Arc<dyn Backend>,
}

impl OpenStore {
    pub(crate) fn open(mode: Mode, dir: &Path) -> esker::Result<OpenStore> {
        let backend: Arc<dyn Backend> = Arc::new(NativeBackend::new());
        let db = mode.builder().backend(Arc::clone(&backend)).open(dir)?;
        let [left, right] = KEYSPACES.map(|name| db.keyspace(name));
        Ok(OpenStore { keyspaces: [left?, right?], db, backend })
    }

    /// The ways around refused calls so far.
    pub(crate) fn fall_backs(&self) -> Vec<FallBack> {
        self.backend.fall_backs()
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
        let OpenStore { db, keyspaces, backend: _ } = self;
        drop(keyspaces);
        db.close().map_err(|error| Failure::from(error).at("close"))
    }
}
