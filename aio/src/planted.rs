//! Bugs planted on purpose, to prove that the torture finds them.
//!
//! A build with `--cfg planted` carries all of them, disabled. The environment variable `ESKER_PLANTED` enables one by its
//! name when the process starts. In every other build `planted` is a constant `false`, and the compiler removes the branch
//! behind it.
//!
//! Each crate has a list of its own, made by [`planted_bugs`](crate::planted_bugs). Names are unique over all lists. Each bug
//! has happened in a real store. It is planted at the place where it would be made.

/// Declares the planted bugs of a crate: the enum `Bug`, and `planted`, which says whether one of them is enabled.
///
/// `ALL` lists the bugs that one thread can notice, `IN_SCHEDULES` those that need several (`just planted-schedules`), and
/// `IN_UNITS` those that only tests of their crate reveal: no job of the store can reach them, or they take a panic.
#[doc(hidden)]
#[macro_export]
macro_rules! planted_bugs {
    (
        ALL { $($alone:ident: $alone_text:literal,)* }
        IN_SCHEDULES { $($threads:ident: $threads_text:literal,)* }
        IN_UNITS { $($unit:ident: $unit_text:literal,)* }
    ) => {
        /// A planted bug of this crate.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $alone_text] $alone,)*
            $(#[doc = $threads_text] $threads,)*
            $(#[doc = $unit_text] $unit,)*
        }

        impl Bug {
            /// Name and effect of those that one thread can notice.
            pub const ALL: &[(&str, &str)] = &[$((stringify!($alone), $alone_text)),*];

            /// Name and effect of those that need several threads.
            pub const IN_SCHEDULES: &[(&str, &str)] = &[$((stringify!($threads), $threads_text)),*];

            /// Name and effect of those that only tests of their crate can reach.
            pub const IN_UNITS: &[(&str, &str)] = &[$((stringify!($unit), $unit_text)),*];

            /// Its name, as `ESKER_PLANTED` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Bug::$alone => stringify!($alone),)*
                    $(Bug::$threads => stringify!($threads),)*
                    $(Bug::$unit => stringify!($unit),)*
                }
            }
        }

        /// Whether this bug is enabled.
        #[cfg(planted)]
        #[must_use]
        pub fn planted(bug: Bug) -> bool {
            $crate::planted::is_enabled(bug.name())
        }

        /// Whether this bug is enabled: never, in this build.
        #[cfg(not(planted))]
        #[must_use]
        #[inline]
        pub const fn planted(_: Bug) -> bool {
            false
        }
    };
}

/// Whether the process was started with the bug of this name enabled.
#[cfg(planted)]
#[must_use]
pub fn is_enabled(name: &str) -> bool {
    static ENABLED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ENABLED.get_or_init(|| std::env::var("ESKER_PLANTED").ok()).as_deref() == Some(name)
}

planted_bugs! {
    ALL {
        NewFileContentNotSynced: "a zero-filled file is used before its content is on stable media",
        RefusedZerosTakenAsWritten: "a new file counts as filled with zeros, although the machine has refused to zero it",
        NewFileNameNotSynced: "a new file is used before its name is on stable media",
        ShortTransferTakenAsWhole: "a short read or write counts as complete",
        FailedOperationTakenAsDone: "a failed write counts as done",
        DroppedReadNumberReused: "the number of a dropped read is given away while it is in flight",
        FailedQueueEndsNoRead: "the reads in flight in a queue that fails are never ended",
        CompletionWakesNoTask: "a read that has completed wakes no task",
    }
    IN_SCHEDULES {
        CloseForgetsWaitingReads: "a close forgets the reads that wait for a slot",
    }
    IN_UNITS {}
}
