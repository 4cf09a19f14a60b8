//! Bugs planted on purpose, to prove that the torture finds them.
//!
//! A build with `--cfg planted` carries all of them, asleep; the environment variable `ESKER_PLANTED` wakes one by its
//! name when the process starts. In every other build [`planted`] is a constant `false` and the compiler removes what
//! stands behind it.
//!
//! The lists are [`Bug::ALL`]; of mistakes that only other threads can notice, [`Bug::IN_SCHEDULES`]; of mistakes that only
//! a panic reveals, [`Bug::IN_LOG`]. Each is one that some store has really made, placed where it would be made.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each name says what is done wrong; the text beside it in ALL is its documentation"
)]
pub enum Bug {
    NewFileContentNotSynced,
    NewFileNameNotSynced,
    ShortTransferTakenAsWhole,
    FailedOperationTakenAsDone,
    LogNotSynced,
    LogSyncedBeforeTheWrite,
    LogAcknowledgedBeforeTheSync,
    LogErrorNotSticky,
    FailedSyncRetried,
    SectorChecksumIgnored,
    SectorChecksumWithoutPlace,
    DamageTakenAsTornTail,
    ClaimsIgnored,
    RecordChecksumWithoutSeq,
    RecordChecksumIgnored,
    RingReusedTooEarly,
    ReservationNotVoided,
    VoidReplayed,
    RingNotReplayed,
    RingUsedBeforeTheManifest,
    LogFileRetiredTooEarly,
    LogFileUsedBeforeTheManifest,
    ManifestNotSynced,
    ManifestErrorNotSticky,
    ManifestWithoutNewestEdit,
    OldManifestCounts,
    SegmentNotSynced,
    SegmentNameNotSynced,
    ChunkReusedBeforeItsWrite,
    FileSyncedBeforeItsWrites,
    FlushBeforeDurable,
    FlushedTooFar,
    FlushForgetsOldestTable,
    InputsRemovedBeforeTheEdit,
    MergedIntoOldestStamp,
    ClipIgnoredByGet,
    ClipIgnoredByScan,
    ClipIgnoredBackwards,
    FileRemovedUnderPiece,
    SnapshotsIgnoredByMerge,
    TombstonesDroppedTooEarly,
    NewestVersionDropped,
    BatchHalfReplayed,
    SnapshotSeesLater,
    FrozenTablesNotRead,
    BlockChecksumIgnored,
    ReadErrorTakenAsMissing,
    FilterForgetsKeys,
    IndexOffByOne,
    LifeReused,
    KeyspaceIdReused,
    DroppedKeyspaceStays,
    OrphansAreKept,
    CloseForgetsUnflushed,
    VisibleBeforeTheMemtable,
    AnnouncementMissed,
    TokenNotHandedOver,
    HaltWakesNobody,
    DroppedReadNumberReused,
    FailedQueueEndsNoRead,
    CompletionWakesNoTask,
    CloseForgetsWaitingReads,
}

impl Bug {
    /// Every bug that one thread can notice, with what it does.
    pub const ALL: &[(Bug, &str)] = &[
        (Bug::NewFileContentNotSynced, "a zero-filled file is used before its content is on stable media"),
        (Bug::NewFileNameNotSynced, "a new file is used before its name is on stable media"),
        (Bug::ShortTransferTakenAsWhole, "a short read or write counts as complete"),
        (Bug::FailedOperationTakenAsDone, "a failed write counts as done"),
        (Bug::LogNotSynced, "a log group is acknowledged without any sync"),
        (Bug::LogSyncedBeforeTheWrite, "the log is synced before the write has completed"),
        (Bug::LogAcknowledgedBeforeTheSync, "the durable watermark moves before the sync"),
        (Bug::LogErrorNotSticky, "the log goes on after a failed write or sync"),
        (Bug::FailedSyncRetried, "a failed sync is called again and believed"),
        (Bug::SectorChecksumIgnored, "a sector's checksum is not compared"),
        (Bug::SectorChecksumWithoutPlace, "a sector's checksum does not cover file and position"),
        (Bug::DamageTakenAsTornTail, "replay stops at the first damaged sector without a word"),
        (Bug::ClaimsIgnored, "lost groups are not noticed by what later groups claim"),
        (Bug::RecordChecksumWithoutSeq, "a record of an earlier lap of the ring validates"),
        (Bug::RecordChecksumIgnored, "a record's checksum is not compared"),
        (Bug::RingReusedTooEarly, "ring space is reused before its bytes are durable"),
        (Bug::RingNotReplayed, "recovery does not look into the ring"),
        (Bug::RingUsedBeforeTheManifest, "records go where the manifest does not know of the ring"),
        (Bug::LogFileRetiredTooEarly, "a log file is recycled while a memtable still needs it"),
        (Bug::LogFileUsedBeforeTheManifest, "a log file is written before the manifest names it"),
        (Bug::ManifestNotSynced, "a manifest edit is not synced"),
        (Bug::ManifestErrorNotSticky, "edits go on after a failed manifest write"),
        (Bug::ManifestWithoutNewestEdit, "a new manifest lacks the edit that made it necessary"),
        (Bug::OldManifestCounts, "recovery takes the manifest before the newest"),
        (Bug::SegmentNotSynced, "a segment goes live before its content is on stable media"),
        (Bug::SegmentNameNotSynced, "a segment goes live before its name is on stable media"),
        (Bug::ChunkReusedBeforeItsWrite, "a chunk is filled again while the write of it is in flight"),
        (Bug::FileSyncedBeforeItsWrites, "a segment is synced while writes of it are in flight"),
        (Bug::FlushBeforeDurable, "a segment goes live with records that the log may still lose"),
        (Bug::FlushedTooFar, "a flush claims records that arrived after its cut"),
        (Bug::FlushForgetsOldestTable, "a flush of several memtables leaves out the oldest"),
        (Bug::InputsRemovedBeforeTheEdit, "a merge removes its inputs before the manifest forgets them"),
        (Bug::MergedIntoOldestStamp, "what a merge writes gets the stamp of its oldest input"),
        (Bug::SnapshotsIgnoredByMerge, "a merge drops what a snapshot still sees"),
        (Bug::TombstonesDroppedTooEarly, "a merge drops a tombstone above an older value"),
        (Bug::NewestVersionDropped, "a merge keeps the older of two versions"),
        (Bug::BatchHalfReplayed, "recovery applies a batch without its last operation"),
        (Bug::SnapshotSeesLater, "a snapshot sees writes that came after it"),
        (Bug::FrozenTablesNotRead, "a read skips memtables that wait for their flush"),
        (Bug::BlockChecksumIgnored, "a block's checksum is not compared"),
        (Bug::ReadErrorTakenAsMissing, "a failed read of a block says that the key does not exist"),
        (Bug::FilterForgetsKeys, "a filter denies some keys that are there"),
        (Bug::IndexOffByOne, "a key at the edge of a block is looked for in the wrong block"),
        (Bug::LifeReused, "a reopen continues under the old life"),
        (Bug::KeyspaceIdReused, "a new keyspace gets the id of a dropped one"),
        (Bug::DroppedKeyspaceStays, "dropping a keyspace does not reach the manifest"),
        (Bug::OrphansAreKept, "files that no manifest names are never removed"),
        (Bug::CloseForgetsUnflushed, "a close forgets the log without flushing"),
        (Bug::DroppedReadNumberReused, "the number of a dropped read is given away while it is in flight"),
        (Bug::FailedQueueEndsNoRead, "the reads in flight in a queue that fails are never ended"),
        (Bug::CompletionWakesNoTask, "a read that has completed wakes no task"),
    ];

    /// As [`Bug::ALL`], those that take several threads: `just planted-schedules` looks for them.
    pub const IN_SCHEDULES: &[(Bug, &str)] = &[
        (Bug::VisibleBeforeTheMemtable, "a write is announced to readers before it is in the memtable"),
        (
            Bug::AnnouncementMissed,
            "a waiter decides to sleep, lets the lock go, and then looks what was announced",
        ),
        (Bug::TokenNotHandedOver, "who ends a round does not look for others that wait for the next one"),
        (Bug::HaltWakesNobody, "who sleeps while the log halts is not told"),
        (Bug::CloseForgetsWaitingReads, "a close forgets the reads that wait for a slot"),
    ];

    /// As [`Bug::ALL`], those that no job of the store can reach yet: tests of the engine look for them, see `just
    /// planted-units`.
    pub const IN_UNITS: &[(Bug, &str)] = &[
        (Bug::ClipIgnoredByGet, "a point read finds entries outside the bounds of a piece"),
        (Bug::ClipIgnoredByScan, "a scan goes on behind the bounds of a piece"),
        (Bug::ClipIgnoredBackwards, "a scan goes on before the bounds of a piece"),
        (Bug::FileRemovedUnderPiece, "a merge removes a file of which a piece is left"),
    ];

    /// Like [`Bug::IN_UNITS`], those that only a panic of a writer reveals: tests of the log look for them.
    pub const IN_LOG: &[(Bug, &str)] = &[
        (Bug::ReservationNotVoided, "a place in the log that its writer gives up stays empty"),
        (Bug::VoidReplayed, "replay takes a place that was given up for a record"),
    ];

    /// Its name, as `ESKER_PLANTED` takes it.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Whether this bug is awake.
#[cfg(planted)]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let find = || {
        let name = std::env::var("ESKER_PLANTED").ok()?;
        let found = Bug::ALL
            .iter()
            .chain(Bug::IN_SCHEDULES)
            .chain(Bug::IN_UNITS)
            .chain(Bug::IN_LOG)
            .find(|(bug, _)| bug.name() == name);
        Some(found.unwrap_or_else(|| panic!("ESKER_PLANTED={name} is not a planted bug")).0)
    };
    *CHOSEN.get_or_init(find) == Some(bug)
}

/// Whether this bug is awake: never, in this build.
#[cfg(not(planted))]
#[must_use]
#[inline]
pub const fn planted(_: Bug) -> bool {
    false
}
