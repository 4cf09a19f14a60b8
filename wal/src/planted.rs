//! The planted bugs of this crate; see `aio::planted`.

aio::planted_bugs! {
    ALL {
        LogNotSynced: "a log group is acknowledged without any sync",
        LogSyncedBeforeTheWrite: "the log is synced before the write has completed",
        LogAcknowledgedBeforeTheSync: "the durable watermark moves before the sync",
        LogErrorNotSticky: "the log goes on after a failed write or sync",
        FolderErrorNotSticky: "the log goes on after a failed sync of its folder",
        FailedSyncRetried: "a failed sync is called again and believed",
        SectorChecksumIgnored: "a sector's checksum is not compared",
        SectorChecksumWithoutPlace: "a sector's checksum does not cover file and position",
        DamageTakenAsTornTail: "replay stops at the first damaged sector without a word",
        ClaimsIgnored: "the claims of later groups do not reveal lost groups",
        RecordChecksumWithoutSeq: "a record of an earlier lap of the ring validates",
        RecordChecksumIgnored: "a record's checksum is not compared",
        RingReusedTooEarly: "ring space is reused before its bytes are durable",
        RingNotReplayed: "recovery does not look into the ring",
        RingUsedBeforeTheManifest: "records go where the manifest does not know of the ring",
        LogLimitIgnored: "log files are made without regard to their limit",
        PaddingBelowThePhysicalBlock: "a group shares a physical block of the device with an acknowledged one",
        LogFileRetiredTooEarly: "a log file is recycled while a memtable still needs it",
    }
    IN_SCHEDULES {
        AnnouncementMissed: "a waiter decides to sleep, releases the lock, and reads the announcement only then",
        TokenNotHandedOver: "a thread that ends a round does not look for waiters of the next one",
        HaltWakesNoWaiter: "a waiter that sleeps while the log halts is not woken",
    }
    IN_UNITS {
        ReservationNotVoided: "a place in the log that its writer gives up stays empty",
        RingWithoutRoom: "a record goes to a page of the ring that may need space, without a call that asks for it",
        KeptFileTrusted: "a log file of an earlier life is used as it is found",
        RoundAfterTheClose: "a close does not wait for the round that a waiter runs",
        FilesMadeAfterTheClose: "a file of the log is made or grows beside a close and after it",
        VoidReplayed: "replay takes a place that was given up for a record",
    }
}
