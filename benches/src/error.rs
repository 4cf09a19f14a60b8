//! Why a run ends. A wrong answer of a store ends the whole comparison; every other failure is reported by name.

use std::path::Path;

/// Why a run ended without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store returned an error.
    #[error("{store}: {what}: {message}")]
    Store {
        /// Its name.
        store: &'static str,
        /// The failed operation.
        what: &'static str,
        /// The store's message.
        message: String,
    },
    /// The store returned a value that was not stored, or another one than the stored one.
    #[error("{store} answered wrong: {what}")]
    Wrong {
        /// Its name.
        store: String,
        /// The found and the expected value.
        what: String,
    },
    /// A file or process of the comparison itself.
    #[error("{what}: {source}")]
    Io {
        /// The failed operation, with the path.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A raw loop on the device.
    #[error("device: {0}")]
    Device(#[from] aio::Error),
    /// The command line or a file made by a run does not make sense.
    #[error("{0}")]
    Usage(String),
}

/// The result of anything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A function that wraps an error of the store.
    pub fn store<E: std::fmt::Display>(store: &'static str, what: &'static str) -> impl Fn(E) -> Error {
        move |error| Error::Store { store, what, message: error.to_string() }
    }

    /// A function that names the path of a failed call.
    pub fn io(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let what = format!("{what} {}", path.display());
        move |source| Error::Io { what, source }
    }
}
