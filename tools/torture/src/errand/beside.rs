//! Threads that work beside an errand on the same store: a second writer, and readers.
//!
//! Invariants: the second writer has its own keys and its own place on the board, and one write in flight. Readers see
//! only whole values of the keys that they read. They are used where nothing may fail, so the first failure of a thread
//! ends the process.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aio::{Backend as _, NativeBackend, block_on};
use esker::Keyspace;
use fastrand::Rng;

use super::store::OpenStore;
use super::terms::{BESIDE, WRITER};
use crate::report::{Check, Failure, complain};
use crate::soak::board::Board;
use crate::soak::plan::{key, number_of, slot_of};

const READERS: u64 = 2;
/// Keys of one call that reads many keys.
const MANY: usize = 16;
/// Pairs of one scan.
const SCANNED: usize = 64;
/// Readers look for the keys of the first writes, of which most are there.
const WRITES_READ: u64 = 300;
/// A steady stream of calls, which leaves the processor to the others.
const PAUSE: Duration = Duration::from_micros(500);

/// Does the work while the threads run. The second writer continues after `written` writes. Returns the number of its
/// last write beside the result.
pub(crate) fn during<T>(store: &OpenStore, board: &Path, written: u64, work: impl FnOnce() -> T) -> (T, u64) {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || or_end(write(store, board, written, stop)));
        for seed in 0..READERS {
            scope.spawn(move || or_end(read(store, seed, stop)));
        }
        let done = work();
        stop.store(true, Ordering::Relaxed);
        (done, writer.join().expect("a panic ends the process"))
    })
}

fn or_end<T>(result: Check<T>) -> T {
    result.unwrap_or_else(|failure| {
        complain(format!("errand: a thread beside it: {failure}"));
        std::process::exit(1)
    })
}

fn write(store: &OpenStore, board: &Path, mut written: u64, stop: &AtomicBool) -> Check<u64> {
    let on_board = |error: std::io::Error| Failure::new(format!("the board: {error}"));
    let clock = NativeBackend::new();
    let board = Board::open(board).map_err(on_board)?;
    while !stop.load(Ordering::Relaxed) {
        store.commit(BESIDE, written + 1)?;
        written += 1;
        board.acknowledge(BESIDE, written).map_err(on_board)?;
        clock.park(PAUSE);
    }
    Ok(written)
}

fn read(store: &OpenStore, seed: u64, stop: &AtomicBool) -> Check {
    let clock = NativeBackend::new();
    let mut rng = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let keyspace = &store.keyspaces[rng.usize(..2)];
        let any = |_| {
            let writer = [WRITER, BESIDE][rng.usize(..2)];
            key(writer, slot_of(writer, rng.u64(1..WRITES_READ)).0)
        };
        let keys: Vec<Vec<u8>> = (0..MANY).map(any).collect();
        let found = match rng.u8(..4) {
            0 => keys.iter().map(|key| keyspace.get(key)).collect(),
            1 => keyspace.multi_get(&keys),
            2 => block_on(keyspace.multi_get_async(&keys)),
            _ => {
                scan(keyspace)?;
                continue;
            }
        };
        for (key, value) in keys.iter().zip(found?) {
            if let Some(value) = value {
                number_of(key, &value).map_err(Failure::new)?;
            }
        }
        clock.park(PAUSE);
    }
    Ok(())
}

fn scan(keyspace: &Keyspace) -> Check {
    let mut iter = keyspace.iter();
    for _ in 0..SCANNED {
        let Some((key, value)) = iter.next_ref()? else { break };
        number_of(key, value).map_err(Failure::new)?;
    }
    Ok(())
}
