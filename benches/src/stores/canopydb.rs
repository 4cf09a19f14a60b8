//! canopydb: a copy-on-write B-tree with a log in Rust, on the page cache.

use canopydb::{Database, DbOptions, EnvOptions};

use crate::data::Key;
use crate::error::{Error, Result};
use crate::store::{Config, Kind, SeeMany, SeeRecord, SeeValue, Store};

const NAME: &str = "canopydb";

const TREE: &[u8] = b"bench";

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "canopydb",
    setting: "a quarter of the memory for its page cache, an eighth for a checkpoint (64 MiB at most, its default), \
              writers held back at two of them and stopped at three, the rest for the page cache of the system; an \
              exclusive transaction for each put, a read transaction for each get; log on; synced: `commit_with(true)`; \
              unsynced: `commit_with(false)`, which survives the death of the process, with its background sync each \
              second. It does not compress small values.",
    open,
};

struct Canopy {
    db: Database,
    is_durable: bool,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let bytes = |part: u64| usize::try_from(config.memory_bytes / part).unwrap_or(usize::MAX);
    let mut env = EnvOptions::new(&config.dir);
    env.page_cache_size = bytes(4);
    let mut options = DbOptions::new();
    let checkpoint = bytes(8).min(64 << 20);
    options.checkpoint_target_size = checkpoint;
    options.throttle_memory_limit = checkpoint * 2;
    options.stall_memory_limit = checkpoint * 3;
    options.write_txn_memory_limit = checkpoint;
    let db = Database::with_options(env, options).map_err(Error::store(NAME, "open"))?;
    let store = Canopy { db, is_durable: config.is_durable };
    // The tree must be there before it is read.
    store.write(&[])?;
    Ok(Box::new(store))
}

impl Canopy {
    fn write(&self, records: &[(Key, &[u8])]) -> Result<()> {
        let txn = self.db.begin_write().map_err(Error::store(NAME, "begin"))?;
        {
            let mut tree = txn.get_or_create_tree(TREE).map_err(Error::store(NAME, "tree"))?;
            for (key, value) in records {
                tree.insert(key, value).map_err(Error::store(NAME, "insert"))?;
            }
        }
        txn.commit_with(self.is_durable).map(|_| ()).map_err(Error::store(NAME, "commit"))
    }
}

impl Store for Canopy {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(&[(*key, value)])
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let records: Vec<(Key, &[u8])> =
            records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        self.write(&records)
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let mut found = false;
        self.multi_get(&[*key], &mut |_, value| {
            found = value.is_some();
            value.map(&mut *see);
        })?;
        Ok(found)
    }

    fn multi_get(&self, keys: &[Key], see: &mut SeeMany<'_>) -> Result<()> {
        // One transaction for all keys: the closest call that it has.
        let txn = self.db.begin_read().map_err(Error::store(NAME, "begin"))?;
        let tree = txn.get_tree(TREE).map_err(Error::store(NAME, "tree"))?;
        let tree = tree.ok_or_else(|| Error::store(NAME, "tree")("missing"))?;
        for (at, key) in keys.iter().enumerate() {
            let found = tree.get(key).map_err(Error::store(NAME, "get"))?;
            see(at, found.as_deref());
        }
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let txn = self.db.begin_read().map_err(Error::store(NAME, "begin"))?;
        let tree = txn.get_tree(TREE).map_err(Error::store(NAME, "tree"))?;
        let tree = tree.ok_or_else(|| Error::store(NAME, "tree")("missing"))?;
        let mut count = 0;
        for record in tree.range(from.as_slice()..).map_err(Error::store(NAME, "range"))?.take(limit) {
            let (key, value) = record.map_err(Error::store(NAME, "scan"))?;
            see(&key, &value);
            count += 1;
        }
        Ok(count)
    }

    fn sync(&self) -> Result<()> {
        self.db.sync().map_err(Error::store(NAME, "sync"))
    }

    fn settle(&self) -> Result<()> {
        self.db.checkpoint().map_err(Error::store(NAME, "checkpoint"))
    }
}
