//! Reads the newest use of a log file that no manifest names.
//!
//! An epoch is durable in the manifest before the first sector of that use of a file is written, and no epoch is handed
//! out twice. So a valid sector with an epoch that the manifest has not handed out proves that the manifest has lost an
//! edit. No crash leaves such a sector: an unused spare is all zeros, and every earlier use or incarnation has a lower
//! epoch.
//!
//! The first sector is enough. The groups of a file follow one another from offset 0, so if the first sector does not
//! belong to a use, no group of that use was acknowledged.
//!
//! Invariant: the file is never changed.

use std::path::Path;

use aio::{Backend, Queue, SECTOR_BYTES};

use crate::ended_ring::open_existing;
use crate::error::Result;
use crate::log_file::{ActiveFile, LOG_KIND};
use crate::record::GRANULE;
use crate::replay::read_whole;
use crate::seal::Group;
use crate::sector::{Place, SECTOR_HEADER_BYTES, SectorState, classify, epoch_of};

/// A log file of a store.
#[derive(Clone, Copy, Debug)]
pub struct LogFileId {
    /// The store.
    pub store_id: u64,
    /// The number in the file's name.
    pub file_id: u64,
}

/// The newest use of a log file, from the group at offset 0; `None` if no valid group stands there.
///
/// # Errors
/// The file is missing ([`Error::Corrupt`](crate::Error::Corrupt)), or cannot be opened or read.
pub fn use_of_file(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    path: &Path,
    id: LogFileId,
) -> Result<Option<ActiveFile>> {
    let (file, there_bytes, _) = open_existing(backend, path, SECTOR_BYTES, LOG_KIND)?;
    // An interrupted open or rotation may have left a shorter file.
    if there_bytes < SECTOR_BYTES {
        return Ok(None);
    }
    let bytes = read_whole(queue, &file, SECTOR_BYTES)?;
    Ok(bytes.first_chunk().and_then(|sector| read_front(sector, id)))
}

/// The one of the files `named` whose first group stands at the front of this file, which has another name: the files were
/// exchanged, or one was copied over the other. No crash does that, since a group is sealed for its file.
///
/// # Errors
/// Those of [`use_of_file`].
pub fn stray_group(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    path: &Path,
    (store_id, named): (u64, &[ActiveFile]),
) -> Result<Option<ActiveFile>> {
    let (file, there_bytes, _) = open_existing(backend, path, SECTOR_BYTES, LOG_KIND)?;
    if there_bytes < SECTOR_BYTES {
        return Ok(None);
    }
    let bytes = read_whole(queue, &file, SECTOR_BYTES)?;
    let Some(sector) = bytes.first_chunk() else { return Ok(None) };
    let is_of = |file: &&ActiveFile| {
        let place = Place { store_id, file_id: file.id, epoch: file.epoch };
        classify(&place, 0, sector) == (SectorState::Current { first: true })
    };
    Ok(named.iter().find(is_of).copied())
}

fn read_front(sector: &[u8; SECTOR_BYTES], LogFileId { store_id, file_id }: LogFileId) -> Option<ActiveFile> {
    let epoch = epoch_of(sector);
    let place = Place { store_id, file_id, epoch };
    if classify(&place, 0, sector) != (SectorState::Current { first: true }) {
        return None;
    }
    let group = Group::decode(&sector[SECTOR_HEADER_BYTES..])?;
    let begins = group.number == 0 && group.start.get().is_multiple_of(GRANULE as u64);
    begins.then_some(ActiveFile { id: file_id, epoch, start: group.start })
}

#[cfg(test)]
mod tests {
    use aio::Buf;

    use super::*;
    use crate::record::Seq;
    use crate::seal::{STEP, seal};

    const PLACE: Place = Place { store_id: 7, file_id: 3, epoch: 5 };

    fn front(number: u64, start: u64) -> [u8; SECTOR_BYTES] {
        let start = Seq::new(start);
        let group = Group { incarnation: 1, number, start, end: start, durable: start, step_bytes: 4096 };
        let mut buf = Buf::zeroed(STEP);
        seal(&PLACE, 0, &group, &mut buf, &mut |_, _| {});
        *buf.first_chunk().unwrap()
    }

    #[test]
    fn only_the_first_group_of_this_file_names_its_use() {
        const ID: LogFileId = LogFileId { store_id: 7, file_id: 3 };
        let whole = front(0, 64);
        let expected = ActiveFile { id: 3, epoch: 5, start: Seq::new(64) };
        assert_eq!(read_front(&whole, ID), Some(expected));
        assert_eq!(read_front(&whole, LogFileId { store_id: 8, ..ID }), None, "another store");
        assert_eq!(read_front(&whole, LogFileId { file_id: 4, ..ID }), None, "another file");
        assert_eq!(read_front(&front(1, 64), ID), None, "a later group");
        assert_eq!(read_front(&front(0, 65), ID), None, "no position");
        assert_eq!(read_front(&[0; SECTOR_BYTES], ID), None, "never used");
        for bit in 0..SECTOR_BYTES * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_front(&flipped, ID), None, "bit {bit}");
        }
    }
}
