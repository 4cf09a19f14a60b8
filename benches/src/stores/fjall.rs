//! fjall: a log-structured store in Rust, on the page cache.

use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::data::Key;
use crate::error::{Error, Result};
use crate::machine::{now, pause};
use crate::store::{Config, Kind, SeeRecord, SeeValue, Store};

const NAME: &str = "fjall";

/// The longest wait for background work after a load.
const SETTLE: Duration = Duration::from_mins(1);

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "fjall",
    setting: "a quarter of the memory for the block cache, an eighth for each memtable (64 MiB at most, its default), \
              the rest for the page cache; two worker threads; `expect_point_read_hits`, which its documentation advises where most \
              keys exist, is left off for the sake of get_missing; LZ4; synced: `persist(PersistMode::SyncData)` after \
              each put; unsynced: its default, which survives the death of the process (in the page cache).",
    open,
};

struct Fjall {
    keyspace: Keyspace,
    db: Database,
    is_durable: bool,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let memtable = (config.memory_bytes / 8).min(64 << 20);
    let db = Database::builder(&config.dir)
        .cache_size(config.memory_bytes / 4)
        .worker_threads(2)
        .open()
        .map_err(Error::store(NAME, "open"))?;
    let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable);
    let keyspace = db.keyspace("bench", options).map_err(Error::store(NAME, "keyspace"))?;
    Ok(Box::new(Fjall { keyspace, db, is_durable: config.is_durable }))
}

impl Fjall {
    fn make_durable(&self) -> Result<()> {
        self.db.persist(PersistMode::SyncData).map_err(Error::store(NAME, "persist"))
    }
}

impl Store for Fjall {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.keyspace.insert(key.as_slice(), value).map_err(Error::store(NAME, "insert"))?;
        if self.is_durable { self.make_durable() } else { Ok(()) }
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let mode = self.is_durable.then_some(PersistMode::SyncData);
        let mut batch = self.db.batch().durability(mode);
        for (key, value) in records {
            batch.insert(&self.keyspace, key.as_slice(), value.as_slice());
        }
        batch.commit().map_err(Error::store(NAME, "batch"))
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let found = self.keyspace.get(key).map_err(Error::store(NAME, "get"))?;
        found.as_deref().map(see);
        Ok(found.is_some())
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let mut count = 0;
        for guard in self.keyspace.range(from.as_slice()..).take(limit) {
            let (key, value) = guard.into_inner().map_err(Error::store(NAME, "scan"))?;
            see(&key, &value);
            count += 1;
        }
        Ok(count)
    }

    fn sync(&self) -> Result<()> {
        self.make_durable()
    }

    fn settle(&self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait().map_err(Error::store(NAME, "flush"))?;
        // No call waits for compactions: half a second without one counts as done.
        let (end, mut quiet) = (now() + SETTLE, 0);
        while now() < end && quiet < 10 {
            pause(Duration::from_millis(50));
            let is_quiet = self.db.outstanding_flushes() == 0 && self.db.active_compactions() == 0;
            quiet = if is_quiet { quiet + 1 } else { 0 };
        }
        Ok(())
    }
}
