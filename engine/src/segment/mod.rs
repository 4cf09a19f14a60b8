//! The sorted, immutable file: what a memtable becomes when it is flushed, and what compaction reads and writes.
//!
//! ```text
//!   0                                                                     size_bytes, a multiple of 4096
//!   v                                                                              v
//!   +---------+---------+-----+---------+-------------+--------------+-----+--------+
//!   | block 0 | block 1 | ... | block n | index       | filter       | 0 0 | footer |
//!   +---------+---------+-----+---------+-------------+--------------+-----+--------+
//!   each starts on 512 bytes            ^ on 512      ^ on 512             ^ 4096 bytes, on 4096
//! ```
//!
//! | part | table in | checked by | when |
//! |---|---|---|---|
//! | footer | `footer.rs` | its CRC, and the manifest's copy of it | open |
//! | index, with their padding | `index.rs` | the footer | open, then pinned |
//! | filter, with the padding up to the footer | `filter.rs` | the footer | open, then pinned |
//! | block, with its padding | `block.rs` | its index entry | each read from the device |
//!
//! So the manifest vouches for every byte. Checksums are seeded with segment id and place; a block that was written
//! to the wrong place, or that a device forgot to write, does not pass.
//!
//! Cost of a point read that is not ruled out by the filter: index search, cache look-up, at most one device read of
//! a block (one more only if the key's own versions fill the rest of that block).
//!
//! Reading order: `cursor`, `verify`, `reader` and `writer`, then `block_builder`, `block`, `lanes`, `index`, `filter`, `footer`.

mod block;
mod block_builder;
#[cfg(test)]
mod block_tests;
mod cursor;
mod filter;
mod footer;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(fuzzing)]
mod fuzzing_file;
mod index;
mod lanes;
mod reader;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub(crate) use block::Block;
pub(crate) use cursor::{Missing, SegmentCursor};
pub(crate) use footer::SegmentMeta;
pub(crate) use reader::{BlockCache, Segment, Step};
pub(crate) use writer::{SegmentWriter, WriterOptions};
