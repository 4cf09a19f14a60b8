//! A write-ahead log on native AIO. (Under construction.)

mod chain;
mod error;
mod flusher;
mod group_commit;
mod log;
mod log_file;
mod ordered;
mod record;
mod replay;
mod ring;
mod seal;
mod sector;
mod sync;

pub use chain::{Chain, ChainRules, Stop, Verdict, read_chain};
pub use error::{Error, Result};
pub use log::{Appended, Background, Log, LogMetrics, LogOptions};
pub use log_file::{ActiveFile, Host, log_file_path};
pub use ordered::Ordered;
pub use record::{Decoded, GRANULE, Prepared, RECORD_HEADER_BYTES, RecordBuf, Seq, decode};
pub use replay::{ReplayInput, Replayed, read_whole, replay};
pub use seal::{GROUP_HEADER_BYTES, Group, STEP, seal, stream_room_bytes};
pub use sector::{MAX_EPOCH, Place, SECTOR_PAYLOAD_BYTES, SectorState, classify, seal_sector};
