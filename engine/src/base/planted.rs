//! The planted bugs of this crate; see `aio::planted`.

aio::planted_bugs! {
    ALL {
        LogFileUsedBeforeTheManifest: "a log file is written before the manifest names it",
        ManifestNotSynced: "a manifest edit is not synced",
        ManifestErrorNotSticky: "edits go on after a failed manifest write",
        ManifestWithoutNewestEdit: "a new manifest lacks the edit that made it necessary",
        OldManifestCounts: "recovery takes the manifest before the newest",
        SegmentNotSynced: "a segment goes live before its content is on stable media",
        SegmentNameNotSynced: "a segment goes live before its name is on stable media",
        SegmentFolderErrorNotSticky: "jobs go on after a failed sync of the folder of segments",
        ChunkReusedBeforeItsWrite: "a chunk is filled again while the write of it is in flight",
        FileSyncedBeforeItsWrites: "a segment is synced while writes of it are in flight",
        FlushBeforeDurable: "a segment goes live with records that the log may still lose",
        FlushedTooFar: "a flush claims records that arrived after its cut",
        FlushForgetsOldestTable: "a flush of several memtables leaves out the oldest",
        InputsRemovedBeforeTheEdit: "a merge removes its inputs before the manifest forgets them",
        SnapshotsIgnoredByMerge: "a merge drops entries that a snapshot still sees",
        TombstonesDroppedTooEarly: "a merge drops a tombstone above an older value",
        NewestVersionDropped: "a merge keeps the older of two versions",
        BatchHalfReplayed: "recovery applies a batch without its last operation",
        SnapshotSeesLater: "a snapshot sees writes that came after it",
        FrozenTablesNotRead: "a read skips memtables that wait for their flush",
        BlockChecksumIgnored: "a block's checksum is not compared",
        ReadErrorTakenAsMissing: "a failed read of a block says that the key does not exist",
        FilterForgetsKeys: "a filter denies some keys that are there",
        IndexOffByOne: "a key at the edge of a block is looked for in the wrong block",
        IncarnationReused: "a reopen continues under the old incarnation",
        KeyspaceIdReused: "a new keyspace gets the id of a dropped one",
        DroppedKeyspaceStays: "dropping a keyspace does not reach the manifest",
        OrphansAreKept: "files that no manifest names are never removed",
        CloseForgetsUnflushed: "a close forgets the log without flushing",
    }
    IN_SCHEDULES {
        MergePlannedDuringInstall: "a merge is planned between the two steps of a flush's install, and drops the new run",
        VisibleBeforeTheMemtable: "a write is announced to readers before it is in the memtable",
    }
    IN_UNITS {
        MergedIntoOldestStamp: "the output of a merge gets the stamp of its oldest input",
        ClipIgnoredByGet: "a point read finds entries outside the bounds of a piece",
        ClipIgnoredByScan: "a scan goes on behind the bounds of a piece",
        ClipIgnoredBackwards: "a scan goes on before the bounds of a piece",
        FileRemovedUnderPiece: "a merge removes a file of which a piece is left",
    }
}
