//! `RocksDB`: a log-structured store in C++, on the page cache.

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME, Options, ReadOptions,
    WaitForCompactOptions, WriteBatch, WriteOptions,
};

use crate::data::Key;
use crate::error::{Error, Result};
use crate::store::{Config, Kind, SeeMany, SeeRecord, SeeValue, Store};

const NAME: &str = "rocksdb";

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "rocksdb",
    setting: "through the crate of that name; a third of the memory for the block cache, with index and filter blocks \
              inside of it, an eighth for each write buffer (64 MiB at most, its default), the rest for the page cache; \
              the basic tuning of its wiki: Bloom filters of 10 bits, blocks of 16 KiB except 4 KiB where data exceed \
              the memory, dynamic level sizes, `bytes_per_sync` 1 MiB, parallelism 2; LZ4; `get_pinned` and batched \
              MultiGet; synced: `sync = true`; unsynced: its default, which survives the death of the process (in the \
              page cache).",
    open,
};

struct Rocks {
    db: DB,
    /// Made once: options are a pointer in C++, and would cost an allocation for each put.
    writing: WriteOptions,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let bytes = |part: u64| usize::try_from(config.memory_bytes / part).unwrap_or(usize::MAX);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(bytes(3)));
    table.set_bloom_filter(10.0, false);
    table.set_block_size(if config.memory_bytes < 256 << 20 { 4 << 10 } else { 16 << 10 });
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(bytes(8).min(64 << 20));
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_bytes_per_sync(1 << 20);
    options.increase_parallelism(2);
    // Named, because only named families have a handle, and the batched call needs one.
    let families = [(DEFAULT_COLUMN_FAMILY_NAME, options.clone())];
    let db = DB::open_cf_with_opts(&options, &config.dir, families).map_err(Error::store(NAME, "open"))?;
    let mut writing = WriteOptions::default();
    writing.set_sync(config.is_durable);
    Ok(Box::new(Rocks { db, writing }))
}

impl Store for Rocks {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.db.put_opt(key, value, &self.writing).map_err(Error::store(NAME, "put"))
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in records {
            batch.put(key, value);
        }
        self.db.write_opt(batch, &self.writing).map_err(Error::store(NAME, "batch"))
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let found = self.db.get_pinned(key).map_err(Error::store(NAME, "get"))?;
        found.as_deref().map(see);
        Ok(found.is_some())
    }

    fn multi_get(&self, keys: &[Key], see: &mut SeeMany<'_>) -> Result<()> {
        let family = self.db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME);
        let family = family.ok_or_else(|| Error::store(NAME, "family")("missing"))?;
        let found = self.db.batched_multi_get_cf(family, keys, false);
        for (at, value) in found.into_iter().enumerate() {
            let value = value.map_err(Error::store(NAME, "multi_get"))?;
            see(at, value.as_deref());
        }
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let mut options = ReadOptions::default();
        // Its documentation advises this for long scans.
        if limit > 10_000 {
            options.set_readahead_size(2 << 20);
        }
        let mut records = self.db.raw_iterator_opt(options);
        records.seek(from);
        let mut count = 0;
        for _ in 0..limit {
            let Some((key, value)) = records.item() else { break };
            see(key, value);
            count += 1;
            records.next();
        }
        records.status().map(|()| count).map_err(Error::store(NAME, "scan"))
    }

    fn sync(&self) -> Result<()> {
        self.db.flush_wal(true).map_err(Error::store(NAME, "sync"))
    }

    fn settle(&self) -> Result<()> {
        self.db.flush().map_err(Error::store(NAME, "flush"))?;
        self.db.wait_for_compact(&WaitForCompactOptions::default()).map_err(Error::store(NAME, "compact"))
    }
}
