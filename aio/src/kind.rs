//! The kinds of operations, and the classes in which they are counted.

use crate::flags::Flags;

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OperationKind {
    /// Fills one buffer (`IOCB_CMD_PREAD`, Linux 2.6).
    Read,
    /// Writes one buffer (`IOCB_CMD_PWRITE`, Linux 2.6).
    Write,
    /// Fills several buffers from one offset (`IOCB_CMD_PREADV`, Linux 2.6.19).
    ReadVectored,
    /// Writes several buffers to one offset (`IOCB_CMD_PWRITEV`, Linux 2.6.19).
    WriteVectored,
    /// `fsync` (`IOCB_CMD_FSYNC`, Linux 4.18). Runs in a thread of the kernel.
    Sync,
    /// `fdatasync` (`IOCB_CMD_FDSYNC`, Linux 4.18). Runs in a thread of the kernel.
    DataSync,
    /// Waits, once, until a descriptor is ready (`IOCB_CMD_POLL`, Linux 4.18, withdrawn until 5.0). The only kind that
    /// can be cancelled.
    Poll,
}

impl OperationKind {
    /// Its name in a profile.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OperationKind::Read => "read",
            OperationKind::Write => "write",
            OperationKind::ReadVectored => "read_vectored",
            OperationKind::WriteVectored => "write_vectored",
            OperationKind::Sync => "sync",
            OperationKind::DataSync => "data_sync",
            OperationKind::Poll => "poll",
        }
    }
}

/// The classes in which operations are counted: durable writes apart from others, vectored operations with plain ones,
/// both kinds of syncs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IoClass {
    /// Reads.
    Read,
    /// Writes that are durable only after a sync.
    Write,
    /// Writes that complete on stable media.
    WriteDurable,
    /// Syncs, as operations and as calls.
    Sync,
    /// Polls of descriptors.
    Poll,
}

impl IoClass {
    /// All classes, in the order of a profile.
    pub const ALL: [IoClass; 5] =
        [IoClass::Read, IoClass::Write, IoClass::WriteDurable, IoClass::Sync, IoClass::Poll];

    /// The class of an operation.
    #[must_use]
    pub fn of(kind: OperationKind, flags: Flags) -> IoClass {
        let is_durable = flags.contains(Flags::DATA_SYNC) || flags.contains(Flags::SYNC);
        match kind {
            OperationKind::Read | OperationKind::ReadVectored => IoClass::Read,
            OperationKind::Write | OperationKind::WriteVectored if is_durable => IoClass::WriteDurable,
            OperationKind::Write | OperationKind::WriteVectored => IoClass::Write,
            OperationKind::Sync | OperationKind::DataSync => IoClass::Sync,
            OperationKind::Poll => IoClass::Poll,
        }
    }

    /// Its name in a profile.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            IoClass::Read => "read",
            IoClass::Write => "write",
            IoClass::WriteDurable => "write_durable",
            IoClass::Sync => "sync",
            IoClass::Poll => "poll",
        }
    }
}
