//! `SurrealKV`: a log-structured store in Rust whose commits are futures, on the page cache.

use surrealkv::{Durability, LSMIterator, Mode, Options, Transaction, Tree, TreeBuilder};
use tokio::runtime::{Builder, Runtime};

use crate::data::{KEY_BYTES, Key};
use crate::error::{Error, Result};
use crate::store::{Config, Kind, SeeMany, SeeRecord, SeeValue, Store};

const NAME: &str = "surrealkv";

/// Above every key: keys are hexadecimal digits.
const END: Key = [0xff; KEY_BYTES];

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "surrealkv",
    setting: "a quarter of the memory for the block cache, an eighth for each memtable (64 MiB at most), the rest for \
              the page cache; a runtime of two threads, on which each thread of the workload waits for its own commit; \
              Snappy below level 0, as its builder has for short; values inline; a write-only transaction for each \
              put (again if another one wrote the same key meanwhile), a read-only one for each get; synced: \
              `Durability::Immediate` with its preallocated log; unsynced: `Durability::Eventual`, which survives the \
              death of the process (in the page cache).",
    open,
};

struct Surreal {
    tree: Tree,
    runtime: Runtime,
    durability: Durability,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let bytes = |part: u64| usize::try_from(config.memory_bytes / part).unwrap_or(usize::MAX);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(Error::store(NAME, "runtime"))?;
    let inside = runtime.enter();
    let options = Options::new().with_wal_preallocation(true).with_l0_no_compression();
    let tree = TreeBuilder::with_options(options)
        .with_path(config.dir.clone())
        .with_max_memtable_size(bytes(8).min(64 << 20))
        .with_block_cache_capacity(config.memory_bytes / 4)
        .build()
        .map_err(Error::store(NAME, "open"))?;
    drop(inside);
    let durability = if config.is_durable { Durability::Immediate } else { Durability::Eventual };
    Ok(Box::new(Surreal { tree, runtime, durability }))
}

impl Surreal {
    fn begin(&self, mode: Mode) -> Result<Transaction> {
        self.tree.begin_with_mode(mode).map_err(Error::store(NAME, "begin"))
    }

    /// Writes in its own transaction, again until no other one wrote the same keys meanwhile: it is optimistic.
    fn write(&self, records: &[(Key, &[u8])]) -> Result<()> {
        loop {
            let mut txn = self.begin(Mode::WriteOnly)?;
            txn.set_durability(self.durability);
            for (key, value) in records {
                txn.set(key.as_slice(), *value).map_err(Error::store(NAME, "set"))?;
            }
            match self.runtime.block_on(txn.commit()) {
                Err(surrealkv::Error::TransactionWriteConflict) => {}
                other => return other.map_err(Error::store(NAME, "commit")),
            }
        }
    }
}

impl Store for Surreal {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(&[(*key, value)])
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let records: Vec<(Key, &[u8])> =
            records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        self.write(&records)
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let txn = self.begin(Mode::ReadOnly)?;
        let found = txn.get(key.as_slice()).map_err(Error::store(NAME, "get"))?;
        found.as_deref().map(see);
        Ok(found.is_some())
    }

    fn multi_get(&self, keys: &[Key], see: &mut SeeMany<'_>) -> Result<()> {
        // One transaction for all keys: the closest call that it has.
        let txn = self.begin(Mode::ReadOnly)?;
        for (at, key) in keys.iter().enumerate() {
            let found = txn.get(key.as_slice()).map_err(Error::store(NAME, "get"))?;
            see(at, found.as_deref());
        }
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let txn = self.begin(Mode::ReadOnly)?;
        let mut records = txn.range(from.as_slice(), END.as_slice()).map_err(Error::store(NAME, "range"))?;
        records.seek_first().map_err(Error::store(NAME, "seek"))?;
        let mut count = 0;
        for _ in 0..limit {
            if !records.valid() {
                break;
            }
            let value = records.value_ref().map_err(Error::store(NAME, "value"))?;
            see(records.key().user_key(), &value);
            count += 1;
            records.next().map_err(Error::store(NAME, "next"))?;
        }
        Ok(count)
    }

    fn sync(&self) -> Result<()> {
        self.tree.flush_wal(true).map_err(Error::store(NAME, "sync"))
    }
}

impl Drop for Surreal {
    fn drop(&mut self) {
        // The next open replays the log that a failed close leaves.
        let _ = self.runtime.block_on(self.tree.close());
    }
}
