//! The kinds of files in a store's directory: the directory, the name and the evidence of each.
//!
//! Everything that goes through a directory (recovery, the search for a manifest, a verification) goes through this table,
//! so a new kind of file is one line in [`FileKind::ALL`] and one in [`FileKind::row`]. The one thing that the table does
//! not say is which files are live: `recovery::orphans` says it, kind by kind.
//!
//! ```text
//! DIR/LOCK                  held while the store is open; names the holder's pid
//! DIR/manifest-NNNNNN       which files are live; the highest complete one counts
//! DIR/wal/ring-NNNNNN       the mapped ring
//! DIR/wal/NNNNNN.log        log files
//! DIR/segments/NNNNNN.seg   sorted, immutable files
//! ```
//!
//! Invariant: no name is of two kinds.

use std::path::Path;

/// No store makes this many files: a higher number is none of ours, and one more than any of ours can be counted.
pub(crate) const MAX_FILE: u64 = u64::MAX / 2;

/// A directory of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folder {
    Root,
    Wal,
    Segments,
}

impl Folder {
    /// The directories below the root. An open makes those that are missing.
    pub(crate) const BELOW_ROOT: [Folder; 2] = [Folder::Wal, Folder::Segments];

    /// Its path below the root.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Folder::Root => "",
            Folder::Wal => "wal",
            Folder::Segments => "segments",
        }
    }
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Lock,
    Manifest,
    Ring,
    Log,
    Segment,
}

/// How files of a kind are named.
#[derive(Clone, Copy, Debug)]
enum Name {
    /// There is one of it; its number is 0.
    One(&'static str),
    /// Prefix, at least six digits, suffix.
    Numbered { prefix: &'static str, suffix: &'static str },
}

/// Where the numbers of a kind come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    /// The one counter in the manifest: no two files of any kinds have the same number.
    Shared,
    /// The kind counts its files by itself.
    Own,
}

/// The evidence that a file of a kind gives where there is no manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Nothing: a first open that was interrupted leaves it.
    Nothing,
    /// A manifest was there if the file is not blank. A first open that was interrupted leaves a blank one.
    Content,
    /// A manifest was there: only a complete one is followed by such a file.
    Existence,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
struct Row {
    folder: Folder,
    name: Name,
    numbers: Numbers,
    proof: Proof,
}

impl FileKind {
    pub(crate) const ALL: [FileKind; 5] =
        [FileKind::Lock, FileKind::Manifest, FileKind::Ring, FileKind::Log, FileKind::Segment];

    #[rustfmt::skip]
    fn row(self) -> Row {
        use {Name::{Numbered, One}, Numbers::{Own, Shared}, Proof::{Content, Existence, Nothing}};
        let row = |folder, name, numbers, proof| Row { folder, name, numbers, proof };
        match self {
            FileKind::Lock     => row(Folder::Root,     One("LOCK"),                                   Own,    Nothing),
            FileKind::Manifest => row(Folder::Root,     Numbered { prefix: "manifest-", suffix: "" },  Own,    Nothing),
            FileKind::Ring     => row(Folder::Wal,      Numbered { prefix: "ring-", suffix: "" },      Shared, Content),
            FileKind::Log      => row(Folder::Wal,      Numbered { prefix: "", suffix: ".log" },       Shared, Existence),
            FileKind::Segment  => row(Folder::Segments, Numbered { prefix: "", suffix: ".seg" },       Shared, Existence),
        }
    }

    /// The directory in which files of this kind stand.
    pub(crate) fn folder(self) -> Folder {
        self.row().folder
    }

    /// The evidence that a file of this kind gives where there is no manifest.
    pub(crate) fn proof(self) -> Proof {
        self.row().proof
    }

    /// Whether its numbers come from the manifest's counter.
    pub(crate) fn is_counted(self) -> bool {
        self.row().numbers == Numbers::Shared
    }

    /// The name of file `number` in its directory.
    pub(crate) fn name_of(self, number: u64) -> String {
        match self.row().name {
            Name::One(name) => name.to_owned(),
            Name::Numbered { prefix, suffix } => format!("{prefix}{number:06}{suffix}"),
        }
    }

    /// The number in a name of this kind; `None` if the store gives no file this name. So the name is found again from the
    /// number: a copy with more zeros in its name is not ours.
    pub(crate) fn number_of(self, name: &str) -> Option<u64> {
        match self.row().name {
            Name::One(ours) => (name == ours).then_some(0),
            Name::Numbered { prefix, suffix } => {
                let number: u64 = name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()?;
                (number < MAX_FILE && self.name_of(number) == name).then_some(number)
            }
        }
    }

    /// The kind of a file of a store; `None` if a store gives no file this name.
    pub(crate) fn of(path: &Path) -> Option<FileKind> {
        let name = path.file_name()?.to_str()?;
        FileKind::ALL.into_iter().find(|kind| kind.number_of(name).is_some())
    }

    /// Its name in an [`aio::IoProfile`]. The log names its two kinds itself, in the same way.
    pub(crate) fn label(self) -> &'static str {
        match self {
            FileKind::Lock => "lock",
            FileKind::Manifest => "manifest",
            FileKind::Ring => "ring",
            FileKind::Log => "log",
            FileKind::Segment => "segment",
        }
    }

    /// Whether a store makes files of this name in this directory.
    pub(crate) fn is_ours(folder: Folder, name: &str) -> bool {
        FileKind::ALL.iter().any(|kind| kind.folder() == folder && kind.number_of(name).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_numbers() {
        assert_eq!(FileKind::Manifest.number_of("manifest-000012"), Some(12));
        assert_eq!(FileKind::Segment.number_of("1234567.seg"), Some(1_234_567));
        assert_eq!(FileKind::Segment.number_of(&format!("{}.seg", u64::MAX)), None);
        assert_eq!((FileKind::Lock.number_of("LOCK"), FileKind::Lock.number_of("LOCK1")), (Some(0), None));
        let not_ours = ["manifest-12", "manifest-00001x", "manifest-000001.tmp", "manifest-0000001"];
        for name in not_ours.into_iter().chain(["+00001.seg", "0000012.seg", "000001.log"]) {
            assert_eq!(FileKind::Manifest.number_of(name), None);
            assert_eq!(FileKind::Segment.number_of(name), None);
        }
    }

    #[test]
    fn a_name_is_of_one_kind_and_gives_back_its_number() {
        for kind in FileKind::ALL {
            for number in [0, 7, 1_000_000] {
                let name = kind.name_of(number);
                let found: Vec<_> =
                    FileKind::ALL.into_iter().filter(|kind| kind.number_of(&name).is_some()).collect();
                assert_eq!(found, [kind], "{name}");
                let expected = if kind == FileKind::Lock { 0 } else { number };
                assert_eq!(kind.number_of(&name), Some(expected), "{name}");
                assert!(FileKind::is_ours(kind.folder(), &name));
            }
        }
        assert!(!FileKind::is_ours(Folder::Segments, "000001.log"));
    }
}
