//! The public interface: the store, its keyspaces, batches, snapshots, iterators, futures.

pub(crate) mod batch;
pub(crate) mod builder;
pub(crate) mod db;
pub(crate) mod futures;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod handle;
pub(crate) mod iter;
pub(crate) mod keyspace;
pub(crate) mod snapshot;
pub mod testing;
