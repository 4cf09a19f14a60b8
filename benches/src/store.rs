//! The interface of a store to be compared, and its description.
//!
//! Every store is opened with [`Config`]: the same directory, the same memory, the same meaning of "durable". The file of
//! each store documents its use of memory and the durability of its unsynced writes; [`Kind::setting`] repeats it for a
//! report.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::data::Key;
use crate::error::Result;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its directory, which exists; empty for a new store.
    pub dir: PathBuf,
    /// Memory for everything together, the page cache of the system included.
    pub memory_bytes: u64,
    /// Whether each put must survive a loss of power before it returns. Otherwise the store's usual unsynced level.
    pub is_durable: bool,
}

/// Sees the value of a get.
pub type SeeValue<'a> = dyn FnMut(&[u8]) + 'a;

/// A get under way, with a copy of the value.
pub type GetUnderWay<'a> = Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>>> + Send + 'a>>;

/// Sees the place of a key in the call, and its value.
pub type SeeMany<'a> = dyn FnMut(usize, Option<&[u8]>) + 'a;

/// Sees a record of a scan.
pub type SeeRecord<'a> = dyn FnMut(&[u8], &[u8]) + 'a;

/// An open store. Dropping it closes it.
pub trait Store: Send + Sync {
    /// Puts a record, at the level that the store was opened with.
    ///
    /// # Errors
    /// The store's own error.
    fn put(&self, key: &Key, value: &[u8]) -> Result<()>;

    /// Puts records atomically, at the same level.
    ///
    /// # Errors
    /// The store's own error.
    fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()>;

    /// Shows the value of a key in the cheapest way of the store; returns whether it is there.
    ///
    /// # Errors
    /// The store's own error.
    fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool>;

    /// Shows the values of many keys, in one call where the store has one.
    ///
    /// # Errors
    /// The store's own error.
    fn multi_get(&self, keys: &[Key], see: &mut SeeMany<'_>) -> Result<()> {
        for (at, key) in keys.iter().enumerate() {
            if !self.get(key, &mut |value| see(at, Some(value)))? {
                see(at, None);
            }
        }
        Ok(())
    }

    /// Begins a get, without waiting for the device where the store can do so.
    fn begin_get(&self, key: &Key) -> GetUnderWay<'_> {
        let mut copy = Vec::new();
        let found = self.get(key, &mut |value| copy.extend_from_slice(value));
        Box::pin(std::future::ready(found.map(|found| found.then_some(copy))))
    }

    /// Shows up to `limit` records in order from a key; returns their number.
    ///
    /// # Errors
    /// The store's own error.
    fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64>;

    /// Makes everything so far survive a loss of power.
    ///
    /// # Errors
    /// The store's own error.
    fn sync(&self) -> Result<()>;

    /// Waits for background work that is due, after a load.
    ///
    /// # Errors
    /// The store's own error.
    fn settle(&self) -> Result<()> {
        self.sync()
    }

    /// The interval between calls of [`Store::sync`] beside unsynced writes, for stores that would otherwise never write.
    fn sync_every(&self) -> Option<Duration> {
        None
    }
}

/// Opens a store, making it if the directory is empty.
type Open = fn(&Config) -> Result<Box<dyn Store>>;

/// A store that can be compared.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// The package that it comes from, for its version.
    pub package: &'static str,
    /// Its configuration, the durability of its unsynced writes, and its missing features, as a sentence of the report.
    pub setting: &'static str,
    /// Opens it.
    pub open: Open,
}
