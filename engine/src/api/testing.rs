//! Hooks of tests and tools: another machine, small files, background work by hand. No part of the library's promises, and
//! hidden from its documentation.
//!
//! The hooks are traits, so that a test imports them and a program does not meet them by accident.

use std::sync::Arc;

use aio::Backend;

use crate::api::builder::Builder;
use crate::api::db::Db;
use crate::base::error::Result;
use crate::compaction::scheduler;

pub use crate::base::options::{Background, Sizes};
pub use crate::base::planted;

/// Settings of a [`Builder`] that only tests need.
pub trait BuilderExt {
    /// The threads that do the background work; default [`Background::Threads`].
    #[must_use]
    fn background(self, background: Background) -> Self;

    /// The machine to run on; default this one. For a simulated disk.
    #[must_use]
    fn backend(self, backend: Arc<dyn Backend>) -> Self;

    /// Overrides sizes that otherwise follow from the memory budget: small files reach the interesting states sooner.
    #[must_use]
    fn sizes(self, sizes: Sizes) -> Self;
}

impl BuilderExt for Builder {
    fn background(mut self, background: Background) -> Builder {
        self.options.background = background;
        self
    }

    fn backend(mut self, backend: Arc<dyn Backend>) -> Builder {
        self.options.backend = Some(backend);
        self
    }

    fn sizes(mut self, sizes: Sizes) -> Builder {
        self.options.sizes = sizes;
        self
    }
}

/// Background work by hand.
pub trait DbExt {
    /// With [`Background::Manual`]: holds background work back, or lets it go and does the work that was asked for
    /// meanwhile, so that the states in between are reached without threads. Work that a caller must wait for is done all
    /// the same.
    fn hold_jobs(&self, held: bool);

    /// Freezes every memtable and asks for their flush, as writers do when memory or log are full.
    ///
    /// # Errors
    /// The store is closed or has halted.
    fn freeze(&self) -> Result<()>;

    /// Size of a log file in bytes.
    fn log_file_bytes(&self) -> u64;

    /// The limit on the bytes of all log files.
    fn log_limit_bytes(&self) -> u64;
}

impl DbExt for Db {
    fn hold_jobs(&self, held: bool) {
        if let Ok(store) = self.handle().writing() {
            scheduler::hold(store, held);
        }
    }

    fn freeze(&self) -> Result<()> {
        let store = self.handle().writing()?;
        store.check_writable()?;
        store.freeze(|_| true);
        scheduler::request_flush(store);
        Ok(())
    }

    fn log_file_bytes(&self) -> u64 {
        self.handle().store().options.log_file_bytes()
    }

    fn log_limit_bytes(&self) -> u64 {
        self.handle().store().options.log_limit_bytes()
    }
}
