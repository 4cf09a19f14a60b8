//! A sector: 512 bytes with a checksum, the unit that a device writes whole or not at all. All integers are little-endian.
//!
//! ```text
//!   +-------+-------+---------------------------------+
//!   | crc32 | epoch | payload                         |
//!   +-------+-------+---------------------------------+
//!
//!   OFFSET  SIZE  FIELD
//!        0     4  crc32 over store id (u64), file id (u64), sector index in the file (u64), epoch field, payload
//!        4     4  epoch: one use of a recycled file, 1..2^31; the top bit is set in the first sector of a group
//!        8   504  payload
//! ```
//!
//! The checksum of each sector tells a torn tail from damage. A power cut leaves each sector old or new, so every sector
//! is then *current* or *older*; a sector that is neither was damaged. Rejected: one checksum for a larger unit. A log
//! that stops at the first bad one cannot tell the two apart, and silently drops all records behind a flipped bit.
//!
//! Invariant: epochs rise with every use of a file and are never reused. A valid sector of a larger epoch than the file's
//! own is therefore damage too (a misdirected write or a wrong manifest).
//! Written by `seal`, read by `chain`.

use aio::SECTOR_BYTES;
use crc32fast::Hasher;

use crate::planted::{Bug, planted};

/// Payload bytes of a sector.
pub const SECTOR_PAYLOAD_BYTES: usize = SECTOR_BYTES - SECTOR_HEADER_BYTES;

/// The largest epoch.
pub const MAX_EPOCH: u32 = FIRST - 1;

pub(crate) const SECTOR_HEADER_BYTES: usize = 8;

const FIRST: u32 = 1 << 31;

/// The file that a sector belongs to, and the use of that file. Part of every sector checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The store: a sector of another store never validates.
    pub store_id: u64,
    /// The file. An id is never given to a second file.
    pub file_id: u64,
    /// The use of the file, 1 to [`MAX_EPOCH`].
    pub epoch: u32,
}

/// The outcome of [`classify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorState {
    /// Written in this use of the file.
    Current {
        /// Whether it is the first sector of a group.
        first: bool,
    },
    /// Never persisted in this use of the file: all zero, or valid with an earlier epoch.
    Older,
    /// Neither: changed by the device or by another program.
    Damaged,
}

/// Writes the header of a sector whose payload is in place. `index` counts the sectors of the file from 0.
///
/// # Panics
/// If the epoch is 0 or above [`MAX_EPOCH`].
pub fn seal_sector(place: &Place, index: u64, first: bool, sector: &mut [u8; SECTOR_BYTES]) {
    assert!(place.epoch != 0, "epoch 0 is reserved for zeroed space");
    assert!(place.epoch <= MAX_EPOCH, "epochs are used up");
    let epoch = if first { place.epoch | FIRST } else { place.epoch };
    sector[4..SECTOR_HEADER_BYTES].copy_from_slice(&epoch.to_le_bytes());
    let crc = checksum(place, index, sector);
    sector[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Classifies the sector with this index in the file, counted from 0. Never panics, for any bytes.
#[must_use]
pub fn classify(place: &Place, index: u64, sector: &[u8; SECTOR_BYTES]) -> SectorState {
    let [c0, c1, c2, c3, e0, e1, e2, e3, ..] = *sector;
    let (crc, field) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([e0, e1, e2, e3]));
    if field == 0 && sector.iter().all(|&byte| byte == 0) {
        return SectorState::Older;
    }
    let epoch = field & !FIRST;
    let valid = checksum(place, index, sector) == crc || planted(Bug::SectorChecksumIgnored);
    if epoch == 0 || !valid {
        return SectorState::Damaged;
    }
    match epoch.cmp(&place.epoch) {
        std::cmp::Ordering::Equal => SectorState::Current { first: field & FIRST != 0 },
        std::cmp::Ordering::Less => SectorState::Older,
        std::cmp::Ordering::Greater => SectorState::Damaged,
    }
}

/// Whether it is the first sector of a group in this use of the file. Most sectors of another use cost one comparison.
pub(crate) fn is_first(place: &Place, index: u64, sector: &[u8; SECTOR_BYTES]) -> bool {
    epoch_of(sector) == place.epoch
        && classify(place, index, sector) == (SectorState::Current { first: true })
}

/// The epoch field of a sector, unchecked: trust it only after [`classify`] with it. 0 if the field is empty.
pub(crate) fn epoch_of(sector: &[u8; SECTOR_BYTES]) -> u32 {
    let [_, _, _, _, e0, e1, e2, e3, ..] = *sector;
    u32::from_le_bytes([e0, e1, e2, e3]) & !FIRST
}

fn checksum(place: &Place, index: u64, sector: &[u8; SECTOR_BYTES]) -> u32 {
    let mut seed = [0; 24];
    seed[..8].copy_from_slice(&place.store_id.to_le_bytes());
    seed[8..16].copy_from_slice(&place.file_id.to_le_bytes());
    seed[16..].copy_from_slice(&index.to_le_bytes());
    if planted(Bug::SectorChecksumWithoutPlace) {
        seed = [0; 24];
    }
    let mut hasher = Hasher::new();
    hasher.update(&seed);
    hasher.update(&sector[4..]);
    hasher.finalize()
}
