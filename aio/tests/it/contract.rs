//! The promises of every backend, tested on the simulated disk, and on the real one with and without native AIO.

use std::path::Path;

use aio::{Backend, NativeBackend, SimBackend};

use crate::promises::{self, BackendFixture};

/// One test per promise and backend.
macro_rules! contract {
    ($($promise:ident)*) => {
        mod sim {
            $(#[test]
            fn $promise() {
                for seed in crate::seeds::seeds(20) {
                    super::on_sim(seed, super::promises::$promise);
                }
            })*
        }
        mod native {
            use aio::NativeBackend;

            $(#[test]
            fn $promise() {
                super::on_native(&NativeBackend::new(), super::promises::$promise);
            })*
        }
        mod without_aio {
            use aio::NativeBackend;

            $(#[test]
            fn $promise() {
                super::on_native(&NativeBackend::without_aio(), super::promises::$promise);
            })*
        }
    };
}

promises::with_promises!(contract);

fn on_sim(seed: u64, promise: fn(&BackendFixture<'_>)) {
    let backend = SimBackend::new(seed);
    let dir = Path::new("/store").to_owned();
    backend.make_dir(&dir).unwrap();
    promise(&BackendFixture { backend: &backend, dir });
}

fn on_native(backend: &NativeBackend, promise: fn(&BackendFixture<'_>)) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    promise(&BackendFixture { backend, dir: dir.path().to_owned() });
}
