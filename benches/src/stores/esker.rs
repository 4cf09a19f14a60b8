//! Esker: a budget for all its memory, because it bypasses the page cache.

use crate::data::Key;
use crate::error::{Error, Result};
use crate::store::{Config, GetUnderWay, Kind, SeeMany, SeeRecord, SeeValue, Store};

use esker::{Db, Durability, Keyspace};

const NAME: &str = "esker";

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "esker",
    setting: "memory budget of the limit less 16 MiB (direct I/O, so no page cache); LZ4; synced: `Durability::Power`; \
              unsynced: `Durability::Process`, which survives the death of the process, and loss of power after 10 ms. \
              Values are seen in place (`get_with`, `multi_get_with`, `next_ref`), those of `get_async` are copies.",
    open,
};

/// The memory of the program itself: code, stacks, histograms.
const PROGRAM_BYTES: u64 = 16 << 20;

struct Esker {
    keyspace: Keyspace,
    db: Db,
    durability: Durability,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let durability = if config.is_durable { Durability::Power } else { Durability::Process };
    let budget = config.memory_bytes.saturating_sub(PROGRAM_BYTES);
    let db = Db::builder().memory_budget_bytes(budget).durability(durability).open(&config.dir);
    let db = db.map_err(Error::store(NAME, "open"))?;
    let keyspace = db.keyspace("bench").map_err(Error::store(NAME, "keyspace"))?;
    Ok(Box::new(Esker { keyspace, db, durability }))
}

impl Store for Esker {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.keyspace.put(key, value).map_err(Error::store(NAME, "put"))
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let mut batch = self.db.batch();
        batch.durability(self.durability);
        for (key, value) in records {
            batch.put(&self.keyspace, key, value);
        }
        batch.commit().map(|_| ()).map_err(Error::store(NAME, "batch"))
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let found = self.keyspace.get_with(key, see).map_err(Error::store(NAME, "get"))?;
        Ok(found.is_some())
    }

    fn multi_get(&self, keys: &[Key], see: &mut SeeMany<'_>) -> Result<()> {
        self.keyspace.multi_get_with(keys, see).map_err(Error::store(NAME, "multi_get"))
    }

    fn begin_get(&self, key: &Key) -> GetUnderWay<'_> {
        let get = self.keyspace.get_async(key);
        Box::pin(async {
            let found = get.await.map_err(Error::store(NAME, "get_async"))?;
            Ok(found.map(Vec::from))
        })
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let mut records = self.keyspace.range(from..);
        let mut count = 0;
        for _ in 0..limit {
            let Some((key, value)) = records.next_ref().map_err(Error::store(NAME, "scan"))? else { break };
            see(key, value);
            count += 1;
        }
        Ok(count)
    }

    fn sync(&self) -> Result<()> {
        self.db.sync().map_err(Error::store(NAME, "sync"))
    }

    fn settle(&self) -> Result<()> {
        self.db.compact().map_err(Error::store(NAME, "compact"))
    }
}
