//! A write-ahead log on native AIO. (Under construction.)

mod chain;
mod error;
mod record;
mod seal;
mod sector;
mod sync;

pub use chain::{Chain, ChainRules, Stop, Verdict, read_chain};
pub use error::{Error, Result};
pub use record::{Decoded, GRANULE, Prepared, RECORD_HEADER_BYTES, RecordBuf, Seq, decode};
pub use seal::{GROUP_HEADER_BYTES, Group, STEP, seal, sealed_bytes, stream_room_bytes};
pub use sector::{MAX_EPOCH, Place, SECTOR_PAYLOAD_BYTES, SectorState, classify, seal_sector};
