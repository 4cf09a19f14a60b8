//! The sorted, immutable file: a flush writes a memtable as segments, a compaction reads and writes them.
//!
//! ```text
//!   0                                                                                    size_bytes, a multiple of 4096
//!   v                                                                                               v
//!   +--------+-----+--------+---------+-----+---------+----------+-----+----------+-----+-----+--------+
//!   | data 0 | ... | data n | index 0 | ... | index p | filter 0 | ... | filter q | top | 0 0 | footer |
//!   +--------+-----+--------+---------+-----+---------+----------+-----+----------+-----+-----+--------+
//!   all of these are blocks; each starts on 512 bytes                             ^ on 512    ^ 4096 bytes, on 4096
//! ```
//!
//! | part | table in | checked by | when |
//! |---|---|---|---|
//! | footer | `footer.rs` | its CRC, and the manifest's copy of it | open |
//! | top, with the padding up to the footer | `top.rs` | the footer | open |
//! | index and filter block, with its padding | `pages.rs`, `block.rs` | the top | open, if they are pinned; else each read from the device |
//! | data block, with its padding | `block.rs` | its entry in an index block | each read from the device |
//!
//! So the manifest vouches for every byte. Checksums are seeded with segment id and block number; a block that was written to
//! the wrong offset, or that a device forgot to write, does not pass.
//!
//! Cost of a point read that is not ruled out by the filter: index search, cache look-up, at most one device read of
//! a block (one more only if the key's own versions fill the rest of that block). Where index and filter are paged: at most
//! one more of a filter block and one of an index block, each only if it is not in the cache.
//!
//! Reading order: `cursor`, `verify`, `open`, `reader` and `writer`, then `top`, `pages`, `block_builder`, `block`, `lanes`,
//! `index`, `filter`, `footer`.

mod block;
mod block_builder;
mod block_source;
#[cfg(test)]
mod block_tests;
mod clip;
mod cursor;
mod filter;
mod footer;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(fuzzing)]
mod fuzzing_file;
mod heat;
mod index;
mod key_buf;
mod lanes;
mod open;
mod pages;
mod reader;
#[cfg(test)]
mod tests;
mod top;
mod verify;
mod writer;

pub(crate) use block::Block;
pub(crate) use cursor::SegmentCursor;
pub(crate) use footer::SegmentMeta;
pub(crate) use open::Opening;
pub(crate) use reader::{Aim, BlockCache, Segment, Step};
pub(crate) use writer::{SegmentWriter, WriterOptions};
