//! redb: a copy-on-write B-tree in Rust, on the page cache.

use std::time::Duration;

use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition};

use crate::data::Key;
use crate::error::{Error, Result};
use crate::store::{Config, Kind, SeeRecord, SeeValue, Store};

const NAME: &str = "redb";

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench");

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "redb",
    setting: "half of the memory for its cache, the rest for the page cache; a transaction for each put and each get; \
              synced: `Durability::Immediate`; unsynced: `Durability::None` and a durable commit each second, as its \
              documentation says it must be: **younger writes are lost with the process**. It does not compress.",
    open,
};

struct Redb {
    db: Database,
    durability: Durability,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let cache = usize::try_from(config.memory_bytes / 2).unwrap_or(usize::MAX);
    let path = config.dir.join("bench.redb");
    let db = Builder::new().set_cache_size(cache).create(path).map_err(Error::store(NAME, "open"))?;
    let store =
        Redb { db, durability: if config.is_durable { Durability::Immediate } else { Durability::None } };
    // The table must be there before it is read.
    store.write(Durability::Immediate, &[])?;
    Ok(Box::new(store))
}

impl Redb {
    fn write(&self, durability: Durability, records: &[(Key, &[u8])]) -> Result<()> {
        let mut txn = self.db.begin_write().map_err(Error::store(NAME, "begin"))?;
        txn.set_durability(durability).map_err(Error::store(NAME, "durability"))?;
        {
            let mut table = txn.open_table(TABLE).map_err(Error::store(NAME, "table"))?;
            for (key, value) in records {
                table.insert(key.as_slice(), *value).map_err(Error::store(NAME, "insert"))?;
            }
        }
        txn.commit().map_err(Error::store(NAME, "commit"))
    }
}

impl Store for Redb {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(self.durability, &[(*key, value)])
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let records: Vec<(Key, &[u8])> =
            records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        self.write(self.durability, &records)
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let txn = self.db.begin_read().map_err(Error::store(NAME, "begin"))?;
        let table = txn.open_table(TABLE).map_err(Error::store(NAME, "table"))?;
        let found = table.get(key.as_slice()).map_err(Error::store(NAME, "get"))?;
        if let Some(value) = &found {
            see(value.value());
        }
        Ok(found.is_some())
    }

    fn multi_get(&self, keys: &[Key], see: &mut crate::store::SeeMany<'_>) -> Result<()> {
        // One transaction for all keys: the closest call that it has.
        let txn = self.db.begin_read().map_err(Error::store(NAME, "begin"))?;
        let table = txn.open_table(TABLE).map_err(Error::store(NAME, "table"))?;
        for (at, key) in keys.iter().enumerate() {
            let found = table.get(key.as_slice()).map_err(Error::store(NAME, "get"))?;
            see(at, found.as_ref().map(redb::AccessGuard::value));
        }
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let txn = self.db.begin_read().map_err(Error::store(NAME, "begin"))?;
        let table = txn.open_table(TABLE).map_err(Error::store(NAME, "table"))?;
        let mut count = 0;
        for record in table.range(from.as_slice()..).map_err(Error::store(NAME, "range"))?.take(limit) {
            let (key, value) = record.map_err(Error::store(NAME, "scan"))?;
            see(key.value(), value.value());
            count += 1;
        }
        Ok(count)
    }

    fn sync(&self) -> Result<()> {
        self.write(Durability::Immediate, &[])
    }

    fn sync_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}
