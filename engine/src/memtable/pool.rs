//! Memory for all memtables of a store: chunks of dropped tables are reused, so that their pages stay mapped.
//!
//! Invariants:
//! - only chunks of the full size are kept, and only as many as fit into the budget of the memtables together with the tables;
//! - `used_bytes` is the memory of all tables together.

use parking_lot::Mutex;

use super::chunk::{Chunk, HUGE_BYTES, LINE_BYTES};

/// The smallest full chunk: a table of the least size has a few of them.
const LEAST_CHUNK_BYTES: usize = 4 << 10;

/// The least number of full chunks in a table, so that one chunk is a small part of it.
const CHUNKS_PER_TABLE: u64 = 16;

/// See the [module](self). One for each store.
#[derive(Debug)]
pub(crate) struct ArenaPool {
    chunk_bytes: usize,
    table_bytes: u64,
    limit_bytes: u64,
    state: Mutex<PoolState>,
}

#[derive(Debug, Default)]
struct PoolState {
    used_bytes: u64,
    /// Free chunks, all of `chunk_bytes`.
    idle: Vec<Chunk>,
}

impl ArenaPool {
    /// A pool for tables that are frozen at `table_bytes`. All tables together should take at most `limit_bytes`.
    pub(crate) fn new(table_bytes: u64, limit_bytes: u64) -> ArenaPool {
        let share = usize::try_from(table_bytes / CHUNKS_PER_TABLE).unwrap_or(HUGE_BYTES).min(HUGE_BYTES);
        let chunk_bytes = share.max(LEAST_CHUNK_BYTES);
        // A power of two, so that chunk number and offset are bit fields of a reference.
        let chunk_bytes = 1 << chunk_bytes.ilog2();
        ArenaPool { chunk_bytes, table_bytes, limit_bytes, state: Mutex::default() }
    }

    /// A full chunk.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// The size at which a table is frozen.
    pub(super) fn table_bytes(&self) -> u64 {
        self.table_bytes
    }

    /// A chunk of at least `bytes`: a kept one if that is the full size, else a new one.
    pub(super) fn take(&self, bytes: usize) -> Chunk {
        let bytes = bytes.next_multiple_of(LINE_BYTES);
        let (kept, _excess) = {
            let mut state = self.state.lock();
            state.used_bytes += bytes as u64;
            let kept = if bytes == self.chunk_bytes { state.idle.pop() } else { None };
            (kept, self.trim(&mut state))
        };
        kept.unwrap_or_else(|| Chunk::new(bytes))
    }

    /// Takes the chunks of a dropped table back.
    pub(super) fn give_back(&self, chunks: Vec<Chunk>) {
        let bytes: usize = chunks.iter().map(Chunk::bytes).sum();
        let (full, others): (Vec<_>, Vec<_>) =
            chunks.into_iter().partition(|chunk| chunk.bytes() == self.chunk_bytes);
        drop(others);
        let _excess = {
            let mut state = self.state.lock();
            state.used_bytes -= bytes as u64;
            state.idle.extend(full);
            self.trim(&mut state)
        };
    }

    /// Removes the kept chunks that do not fit into the budget. The caller drops them without the lock.
    fn trim(&self, state: &mut PoolState) -> Vec<Chunk> {
        let room = self.limit_bytes.saturating_sub(state.used_bytes) / self.chunk_bytes as u64;
        let keep = usize::try_from(room).unwrap_or(usize::MAX).min(state.idle.len());
        state.idle.split_off(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(pool: &ArenaPool) -> usize {
        pool.state.lock().idle.len()
    }

    #[test]
    fn chunks_suit_the_size_of_the_tables() {
        let chunk_bytes = |table: u64| ArenaPool::new(table, table).chunk_bytes();
        assert_eq!(chunk_bytes(0), 4 << 10);
        assert_eq!(chunk_bytes(64 << 10), 4 << 10);
        assert_eq!(chunk_bytes(3 << 20), 128 << 10);
        assert_eq!(chunk_bytes(32 << 20), HUGE_BYTES);
        assert_eq!(chunk_bytes(u64::MAX), HUGE_BYTES);
    }

    #[test]
    fn full_chunks_are_kept_and_used_again() {
        let pool = ArenaPool::new(64 << 10, 128 << 10);
        let mut chunks: Vec<Chunk> = (0..4).map(|_| pool.take(4 << 10)).collect();
        let mut bases: Vec<usize> = chunks.iter_mut().map(|chunk| chunk.base().addr()).collect();
        chunks.push(pool.take(100));
        pool.give_back(chunks);
        assert_eq!((idle(&pool), pool.state.lock().used_bytes), (4, 0));
        let mut again: Vec<usize> = (0..4).map(|_| pool.take(4 << 10).base().addr()).collect();
        assert_eq!(idle(&pool), 0);
        bases.sort_unstable();
        again.sort_unstable();
        assert_eq!(bases, again);
    }

    #[test]
    fn no_more_is_kept_than_fits_beside_the_tables() {
        let pool = ArenaPool::new(16 << 10, 32 << 10);
        let chunks: Vec<Chunk> = (0..10).map(|_| pool.take(4 << 10)).collect();
        pool.give_back(chunks);
        assert_eq!(idle(&pool), 8);
        let large = pool.take(20 << 10);
        assert_eq!(idle(&pool), 3);
        pool.give_back(vec![large]);
        assert_eq!(idle(&pool), 3);
    }
}
