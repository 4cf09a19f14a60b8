//! Several writes as one record: a crash leaves all of them or none.
//!
//! Invariants: `payload` is what the record will hold, with each key once; `trees` names every keyspace in it, so that
//! the commit finds each memtable.

use std::fmt;
use std::sync::Arc;

use wal::{RecordBuf, Seq};

use crate::api::handle::Handle;
use crate::api::keyspace::Keyspace;
use crate::base::error::{Error, Result};
use crate::base::options::Durability;
use crate::tree::superversion::Tree;
use crate::write::commit::commit;
use crate::write::ops::{Op, OpsBuilder};

/// Writes that become visible and durable together, across keyspaces. The last write of a key wins.
///
/// A wrong key or value is remembered and reported by [`Batch::commit`], so calls can be chained.
///
/// # Durability
/// None before [`Batch::commit`] returns; then that of the store, or what [`Batch::durability`] asked for.
///
/// # Concurrency
/// `Send`, for one thread at a time. It keeps the store open, holds no lock, and copies what is added.
///
/// # Examples
/// ```
/// # fn main() -> esker::Result<()> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
/// # let db = esker::Db::open(dir.path().join("store"))?;
/// let (users, emails) = (db.keyspace("users")?, db.keyspace("emails")?);
/// db.batch().put(&users, "1", "ann").put(&emails, "ann@example.org", "1").commit()?;
/// # Ok(())
/// # }
/// ```
pub struct Batch {
    handle: Handle,
    payload: Vec<u8>,
    ops: OpsBuilder,
    /// The keyspaces named so far, each once.
    trees: Vec<Arc<Tree>>,
    durability: Durability,
    /// The first thing that was wrong.
    refused: Option<Error>,
}

impl Batch {
    pub(crate) fn new(handle: Handle) -> Batch {
        let durability = handle.store().options.durability;
        let mut payload = Vec::new();
        let ops = OpsBuilder::begin(&mut payload);
        Batch { handle, payload, ops, trees: Vec::new(), durability, refused: None }
    }

    /// Adds a put; replaces an earlier put or delete of the key in this batch.
    pub fn put(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Batch {
        self.push(keyspace, Op::put(keyspace.tree().id, key.as_ref(), value.as_ref()))
    }

    /// Adds a delete; replaces an earlier put or delete of the key in this batch.
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> &mut Batch {
        self.push(keyspace, Op::delete(keyspace.tree().id, key.as_ref()))
    }

    /// Chooses what the batch survives once committed; the store's default otherwise.
    pub fn durability(&mut self, level: Durability) -> &mut Batch {
        self.durability = level;
        self
    }

    /// Its size as a record, in bytes with all overhead; at most
    /// [`Db::max_record_bytes`](crate::Db::max_record_bytes) can be committed.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        (wal::RECORD_HEADER_BYTES + self.payload.len()).next_multiple_of(wal::GRANULE)
    }

    /// How many writes it holds, each key counted once.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.ops.count()).unwrap_or(usize::MAX)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.count() == 0
    }

    /// Writes everything, and empties the batch for the next use; on an error it stays as it was. An empty batch with
    /// [`Durability::Power`] waits until everything before it survives power loss.
    ///
    /// # Durability
    /// A crash leaves all of it or nothing, and all of it once this has returned.
    ///
    /// # Concurrency
    /// As [`Keyspace::put`], whatever the number of writes in it. Readers see all of it or nothing.
    ///
    /// Returns the position of the record: later batches have a higher one.
    ///
    /// # Errors
    /// As [`Keyspace::put`]; what was wrong with the first refused key or value (the batch then never commits:
    /// [`Batch::clear`] it).
    pub fn commit(&mut self) -> Result<Seq> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let store = self.handle.writing()?;
        if self.ops.count() == 0 {
            store.check_open()?;
            let end = store.log.published();
            if self.durability == Durability::Power {
                store.latch(store.log.wait_durable(end).map_err(Error::from))?;
            }
            return Ok(end);
        }
        self.ops.finish(&mut self.payload);
        let mut record = RecordBuf::new();
        record.push(&self.payload);
        let seq = commit(store, &mut record, &self.trees, self.durability)?;
        self.clear();
        Ok(seq)
    }

    /// Forgets everything in it, also what was wrong; the durability stays.
    pub fn clear(&mut self) {
        self.payload.clear();
        self.ops = OpsBuilder::begin(&mut self.payload);
        self.trees.clear();
        self.refused = None;
    }

    fn push(&mut self, keyspace: &Keyspace, op: Op<'_>) -> &mut Batch {
        let result = keyspace
            .check_belongs_to(self.handle.store())
            .and_then(|()| self.ops.push(&mut self.payload, op));
        match result {
            Ok(()) => {
                if !self.trees.iter().any(|tree| tree.id == keyspace.tree().id) {
                    self.trees.push(Arc::clone(keyspace.tree()));
                }
            }
            Err(error) => {
                self.refused.get_or_insert(error);
            }
        }
        self
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("ops", &self.ops.count())
            .field("bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}
