//! Several writes as one record: a crash leaves all of them or none.
//!
//! Invariants: `payload` is the payload of the record, and once finished it names each key once; `ops` knows its size and
//! its count from the first write on. `trees` has every keyspace in it, so that the commit finds each memtable.

use std::fmt;
use std::sync::Arc;

use wal::{RecordBuf, Seq};

use crate::api::handle::Handle;
use crate::api::keyspace::Keyspace;
use crate::base::error::{Error, Result};
use crate::base::options::Durability;
use crate::tree::superversion::Tree;
use crate::write::commit::{check_size, commit};
use crate::write::ops::{Op, OpsBuilder, framed_bytes};

/// Writes that become visible and durable together, across keyspaces. The last write of a key wins.
///
/// Calls can be chained: the first wrong key, value or keyspace is remembered, and [`Batch::commit`] reports it.
///
/// # Durability
/// None before [`Batch::commit`] returns; then the level of [`Batch::durability`], or the store's default.
///
/// # Concurrency
/// `Send`, for one thread at a time. It keeps the store open, holds no lock, and copies keys and values.
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
    /// The error of the first wrong call.
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

    /// Sets the level at which [`Batch::commit`] returns; the store's default otherwise.
    pub fn durability(&mut self, level: Durability) -> &mut Batch {
        self.durability = level;
        self
    }

    /// Its size as a record, in bytes with all overhead; at most
    /// [`Db::max_record_bytes`](crate::Db::max_record_bytes) can be committed. Of several writes of one key only the last
    /// counts.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        framed_bytes(self.ops.finished_bytes(&self.payload))
    }

    /// How many writes it holds. Several writes of one key count once.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.ops.count()).unwrap_or(usize::MAX)
    }

    /// Whether it holds no write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.count() == 0
    }

    /// Writes all of it as one record, and empties the batch for the next use. Returns the position of the record: later
    /// batches have a higher one. On an error the batch stays as it was. An empty batch with [`Durability::Power`] waits
    /// until everything before it survives power loss.
    ///
    /// # Durability
    /// A crash leaves all of it or nothing. After this has returned, a crash that the batch's level covers leaves all of it.
    ///
    /// # Concurrency
    /// That of [`Keyspace::put`], for any number of writes. Readers see all of it or nothing.
    ///
    /// # Errors
    /// Those of [`Keyspace::put`]. The error of the first wrong call, also
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a keyspace of another store: such a batch never commits
    /// until [`Batch::clear`].
    pub fn commit(&mut self) -> Result<Seq> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let store = self.handle.writing()?;
        if self.ops.count() == 0 {
            store.check_writable()?;
            let end = store.log.published();
            if self.durability == Durability::Power {
                store.latch(store.log.wait_durable(end).map_err(Error::from))?;
            }
            return Ok(end);
        }
        self.ops.finish(&mut self.payload);
        store.check_open()?;
        // Before the record takes a copy.
        check_size(store, self.size_bytes())?;
        let mut record = RecordBuf::new();
        record.push(&self.payload);
        let seq = commit(store, &mut record, &self.trees, self.durability)?;
        self.clear();
        Ok(seq)
    }

    /// Empties the batch and forgets the error of a wrong call; the durability stays.
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
