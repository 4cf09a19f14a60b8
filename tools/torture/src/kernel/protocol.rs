//! The conversation of the two processes: one JSON object a line, an order and its answer in turn.
//!
//! The *head* owns the disk and decides. The *hand* is a child that does everything that touches the disk: it mounts, runs
//! the store, and compares. So the head never waits for its own disk. When the head dies, the disk is gone for the hand,
//! which then ends with errors instead of hanging.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Acks, Bounds, Prefix};

/// A file system of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

impl Fs {
    /// Its name for `mount` and `mkfs`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
        }
    }

    /// A disk of about the smallest size that it permits.
    pub(super) fn disk_bytes(self) -> u64 {
        let mib = match self {
            Fs::Ext4 => 48,
            Fs::Xfs => 304,
            Fs::Btrfs => 128,
        };
        mib << 20
    }

    /// A block that it trusts the disk to write whole, because it reads nothing before it: its superblock, whose checksum
    /// covers more than a sector. The superblock of XFS is one sector.
    pub(super) fn superblock(self) -> Range<u64> {
        match self {
            Fs::Ext4 => 0..4 << 10,
            Fs::Xfs => 0..0,
            Fs::Btrfs => 64 << 10..68 << 10,
        }
    }

    /// How it is made: without a discard of the whole disk, and for ext4 without the thread that completes it later.
    pub(super) fn mkfs(self) -> &'static [&'static str] {
        match self {
            Fs::Ext4 => {
                const LAZY: &str = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
                &["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-N", "512", "-E", LAZY]
            }
            Fs::Xfs => &["mkfs.xfs", "-q", "-K", "-f"],
            Fs::Btrfs => &["mkfs.btrfs", "-q", "-K", "-f"],
        }
    }
}

/// Which errors of the store are right answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Allow {
    None,
    /// Those of a disk that reports its failures.
    Refusals,
    /// Those of a lying disk: damage, with the affected file.
    Damage,
}

/// One incarnation of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Play {
    /// The seed of the operations.
    pub(super) seed: u64,
    pub(super) ops: usize,
    /// The configuration of the store.
    pub(super) config: usize,
    /// Whether the store has its own threads.
    pub(super) threads: bool,
    /// The remains of a crash, unless this is the first incarnation.
    pub(super) bounds: Option<Bounds>,
    /// The store stays open to the end, and more of it is read.
    pub(super) stays: bool,
    pub(super) allow: Allow,
    /// Shut the file system down, without a flush of its journal, after this operation; then run operations until that
    /// has happened.
    pub(super) shutdown: Option<usize>,
}

/// One crash state to be checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Look {
    pub(super) bounds: Bounds,
    pub(super) config: usize,
    /// Open it a second time.
    pub(super) again: bool,
    pub(super) verify: bool,
    pub(super) allow: Allow,
}

/// From the head.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Make the disk a block device.
    Attach,
    /// Undo that, and release the disk.
    Detach,
    /// Take another disk: the connection is this descriptor of the head.
    Connect(i32),
    /// Make the file system.
    Format,
    /// Mount, open, and run operations; [`Answer::Did`] after the open and after each.
    Play(Play),
    /// Continue with the next operation.
    Go,
    /// Drop the store, and unmount.
    Rest,
    /// Mount, open, compare, unmount.
    Look(Look),
}

/// From the hand.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Done.
    Done,
    /// The disk is a block device, and this is the number of the connection to the kernel.
    Attached(u32),
    /// An operation is done; these writes are acknowledged and submitted now.
    Did(Acks),
    /// An incarnation is over, and the store refused this many operations, as it may.
    Lived(u64),
    /// The store holds this.
    Found(Prefix),
    /// The store, or the file system, returned an error where the disk may have broken.
    Refused(String),
    /// A check failed.
    Wrong(String),
}

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Link {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Link> {
        Ok(Link { reader: BufReader::new(stream.try_clone()?), writer: stream })
    }

    /// Gives up on a message that takes longer.
    pub(super) fn give_up_after(&self, time: Duration) -> std::io::Result<()> {
        self.writer.set_read_timeout(Some(time))
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line)
    }

    /// The next message; `None` if the other end is gone.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }
}
