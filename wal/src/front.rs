//! The front of a log file shows which log file the groups in it belong to. Its name may be wrong.
//!
//! An epoch is durable in the manifest before the first sector of that use of a file is written, and no epoch is handed
//! out twice. So a valid sector with an epoch that the manifest has not handed out proves that the manifest has lost an
//! edit. No crash leaves such a sector: an unused spare is all zeros, and every earlier use or incarnation has a lower
//! epoch.
//!
//! A sector is sealed for its file. So one that is valid for another file has come here with a copy, or an exchange of names.
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

/// The first sector of a log file.
#[derive(Clone, Debug)]
pub struct Front {
    sector: [u8; SECTOR_BYTES],
}

impl Front {
    /// Reads it. Zeros stand for a file without one: an interrupted open or rotation may have left a shorter file.
    ///
    /// # Errors
    /// The file is missing ([`Error::Corrupt`](crate::Error::Corrupt)), or cannot be opened or read.
    pub fn read(backend: &dyn Backend, queue: &mut dyn Queue, path: &Path) -> Result<Front> {
        let (file, there_bytes, _) = open_existing(backend, path, SECTOR_BYTES, LOG_KIND)?;
        let bytes = read_whole(queue, &file, there_bytes)?;
        Ok(Front { sector: bytes.first_chunk().copied().unwrap_or([0; SECTOR_BYTES]) })
    }

    /// Whether the first group of this use of this file begins here.
    #[must_use]
    pub fn is_of(&self, store_id: u64, file: &ActiveFile) -> bool {
        let place = Place { store_id, file_id: file.id, epoch: file.epoch };
        classify(&place, 0, &self.sector) == (SectorState::Current { first: true })
    }

    /// Whether this is no sector of this file: neither of this use nor of an earlier one, nor unused.
    #[must_use]
    pub fn is_damaged(&self, store_id: u64, file: &ActiveFile) -> bool {
        let place = Place { store_id, file_id: file.id, epoch: file.epoch };
        classify(&place, 0, &self.sector) == SectorState::Damaged
    }

    /// The newest use of the file with this number; `None` if no valid group of it stands here.
    #[must_use]
    pub fn newest_use(&self, store_id: u64, file_id: u64) -> Option<ActiveFile> {
        let group = Group::decode(&self.sector[SECTOR_HEADER_BYTES..])?;
        let found = ActiveFile { id: file_id, epoch: epoch_of(&self.sector), start: group.start };
        let begins = group.number == 0 && group.start.get().is_multiple_of(GRANULE as u64);
        (begins && self.is_of(store_id, &found)).then_some(found)
    }
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
        let newest_use = |sector: [u8; SECTOR_BYTES]| Front { sector }.newest_use(7, 3);
        let whole = front(0, 64);
        let expected = ActiveFile { id: 3, epoch: 5, start: Seq::new(64) };
        assert_eq!(newest_use(whole), Some(expected));
        assert_eq!(Front { sector: whole }.newest_use(8, 3), None, "another store");
        assert_eq!(Front { sector: whole }.newest_use(7, 4), None, "another file");
        assert_eq!(newest_use(front(1, 64)), None, "a later group");
        assert_eq!(newest_use(front(0, 65)), None, "no position");
        assert_eq!(newest_use([0; SECTOR_BYTES]), None, "never used");
        for bit in 0..SECTOR_BYTES * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(newest_use(flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_front_is_of_one_use_of_one_file() {
        let front = Front { sector: front(0, 64) };
        let file = ActiveFile { id: 3, epoch: 5, start: Seq::new(64) };
        assert!(front.is_of(7, &file));
        assert!(!front.is_of(8, &file), "another store");
        assert!(!front.is_of(7, &ActiveFile { id: 4, ..file }), "another file");
        assert!(!front.is_of(7, &ActiveFile { epoch: 6, ..file }), "a later use");
        assert!(!front.is_of(7, &ActiveFile { epoch: 4, ..file }), "an earlier use");
    }
}
