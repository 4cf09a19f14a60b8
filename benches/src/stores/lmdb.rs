//! LMDB through heed: a copy-on-write B-tree in C, mapped into memory.
#![expect(unsafe_code, reason = "heed opens a mapped file, which is undefined if another process changes it")]

use std::ops::Bound;
use std::time::Duration;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, WithoutTls};

use crate::data::Key;
use crate::error::{Error, Result};
use crate::store::{Config, Kind, SeeMany, SeeRecord, SeeValue, Store};

const NAME: &str = "lmdb";

/// Address space for the map; the file is only as long as its content.
const MAP_BYTES: usize = 32 << 30;

/// More than the threads of any workload.
const READERS: u32 = 128;

/// The store.
pub(crate) const KIND: Kind = Kind {
    name: NAME,
    package: "lmdb-master-sys",
    setting: "through heed; all memory is page cache; a transaction for each put and each get; `MDB_NORDAHEAD` where the \
              data do not fit into memory, as its documentation advises; synced: its default; unsynced: `MDB_NOSYNC` \
              and a sync each second, which survives the death of the process, but **may leave a broken file after a \
              loss of power**. It does not compress. The version is that of the binding to LMDB 0.9.",
    open,
};

struct Lmdb {
    env: Env<WithoutTls>,
    records: heed::Database<'static, Bytes, Bytes>,
}

fn open(config: &Config) -> Result<Box<dyn Store>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_BYTES).max_readers(READERS);
    let mut flags = EnvFlags::empty();
    if !config.is_durable {
        flags |= EnvFlags::NO_SYNC;
    }
    if crate::machine::space_bytes(&config.dir) > config.memory_bytes {
        flags |= EnvFlags::NO_READ_AHEAD;
    }
    // SAFETY: NO_SYNC only weakens the state after a power cut, and no run goes through one.
    unsafe { options.flags(flags) };
    // SAFETY: the directory belongs to this run, which opens it once; no other process writes to the file.
    let env = unsafe { options.open(&config.dir) }.map_err(Error::store(NAME, "open"))?;
    let txn = env.write_txn().map_err(Error::store(NAME, "begin"))?;
    let made = env.create_databases_and_commit(txn, |opener, txn| {
        opener.create_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    });
    match made.map_err(|error: heed::Error| Error::store(NAME, "database")(error))? {
        CommitOrAbort::Commit(records) => Ok(Box::new(Lmdb { env, records })),
        CommitOrAbort::Abort(()) => Err(Error::store(NAME, "database")("aborted")),
    }
}

impl Store for Lmdb {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn().map_err(Error::store(NAME, "begin"))?;
        self.records.put(&mut txn, key, value).map_err(Error::store(NAME, "put"))?;
        txn.commit().map_err(Error::store(NAME, "commit"))
    }

    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let mut txn = self.env.write_txn().map_err(Error::store(NAME, "begin"))?;
        for (key, value) in records {
            self.records.put(&mut txn, key, value).map_err(Error::store(NAME, "put"))?;
        }
        txn.commit().map_err(Error::store(NAME, "commit"))
    }

    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
        let txn = self.env.read_txn().map_err(Error::store(NAME, "begin"))?;
        let found = self.records.get(&txn, key).map_err(Error::store(NAME, "get"))?;
        found.map(see);
        Ok(found.is_some())
    }

    fn multi_get(&self, keys: &[Key], see: &mut SeeMany<'_>) -> Result<()> {
        // One transaction for all keys: the closest call that it has.
        let txn = self.env.read_txn().map_err(Error::store(NAME, "begin"))?;
        for (at, key) in keys.iter().enumerate() {
            see(at, self.records.get(&txn, key).map_err(Error::store(NAME, "get"))?);
        }
        Ok(())
    }

    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
        let txn = self.env.read_txn().map_err(Error::store(NAME, "begin"))?;
        let bounds = (Bound::Included(from.as_slice()), Bound::Unbounded);
        let records = self.records.range(&txn, &bounds).map_err(Error::store(NAME, "range"))?;
        let mut count = 0;
        for record in records.take(limit) {
            let (key, value) = record.map_err(Error::store(NAME, "scan"))?;
            see(key, value);
            count += 1;
        }
        Ok(count)
    }

    fn sync(&self) -> Result<()> {
        self.env.force_sync().map_err(Error::store(NAME, "sync"))
    }

    fn sync_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}
