//! Enters the directory of a store: checks that it is a store or may become one, and takes its lock.
//!
//! Invariant: a directory with other content is not changed.

use std::io::ErrorKind;
use std::path::Path;

use aio::Lock;

use crate::base::error::{Error, Result};
use crate::io::files::Files;
use crate::io::kinds::{FileKind, Folder};
use crate::manifest::edit_log;

/// Makes the directory if asked to, and takes its lock. Refuses a directory with other content.
pub(crate) fn enter(files: &Files, create: bool) -> Result<Box<dyn Lock>> {
    let (backend, root) = (files.backend(), files.root());
    let is_store = match backend.stat(root)? {
        Some(stat) if !stat.is_dir => return Err(refused(root, "is not a directory")),
        Some(_) => look(files, create)?,
        None if !create => return Err(no_store(root)),
        None => {
            backend.make_dir(root)?;
            sync_parent(files)?;
            false
        }
    };
    let lock = backend.lock(&files.lock_path())?;
    if !is_store {
        // The lock file is made durable first. After a power cut it shows that the other files belong to a store.
        backend.sync_dir(root)?;
    }
    Ok(lock)
}

/// Whether an existing directory is a store already. If it is none, it must be empty or left by an interrupted open.
fn look(files: &Files, create: bool) -> Result<bool> {
    let root = files.root();
    let mut names = files.backend().list(root)?;
    names.retain(|name| name != "lost+found");
    if names.iter().any(|name| FileKind::Manifest.number_of(name).is_some()) {
        return Ok(true);
    }
    // An open that was interrupted before the first manifest leaves some of a store's names, the lock file first.
    let content = content(files, &names)?;
    if content != Content::Foreign
        && let Some(lost) = edit_log::lost(files)?
    {
        // Unless another process has just made it.
        return if edit_log::numbers(files)?.is_empty() { Err(lost) } else { Ok(true) };
    }
    if content != Content::Begun {
        let what =
            "is not an Esker store, and not empty: nothing was written to it, choose another directory";
        return Err(refused(root, what));
    }
    if !create {
        return Err(no_store(root));
    }
    // An earlier open may have made the directory and ended before its name was durable.
    match sync_parent(files) {
        // Without access to its parent, this process cannot have made the directory.
        Err(Error::Io { kind: ErrorKind::PermissionDenied, .. }) => {}
        other => other?,
    }
    Ok(false)
}

/// Makes the name of the store's directory durable.
fn sync_parent(files: &Files) -> Result<()> {
    match files.root().parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(files.backend().sync_dir(Path::new("."))?),
        Some(parent) => Ok(files.backend().sync_dir(parent)?),
        None => Ok(()),
    }
}

/// The content of a directory without a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing, or what an open leaves that was interrupted before the first manifest: the lock file with the length of a lock
    /// file, and a store's directories with no other names than a store's in them.
    Begun,
    /// The same without the lock file. No open leaves that, but a store that has lost files.
    Remains,
    /// Something else.
    Foreign,
}

fn content(files: &Files, names: &[String]) -> Result<Content> {
    if names.is_empty() {
        return Ok(Content::Begun);
    }
    let lock = files.backend().stat(&files.lock_path())?;
    let mut ours = lock.is_none_or(|stat| stat.is_file && [0, 4096].contains(&stat.size_bytes));
    for name in names.iter().filter(|name| FileKind::Lock.number_of(name).is_none()) {
        ours = ours && is_our_folder(files, name)?;
    }
    Ok(match (ours, lock) {
        (false, _) => Content::Foreign,
        (true, Some(_)) => Content::Begun,
        (true, None) => Content::Remains,
    })
}

fn is_our_folder(files: &Files, name: &str) -> Result<bool> {
    let Some(folder) = Folder::BELOW_ROOT.into_iter().find(|folder| folder.name() == name) else {
        return Ok(false);
    };
    let path = files.folder(folder);
    let is_dir = files.backend().stat(&path)?.is_some_and(|stat| stat.is_dir);
    Ok(is_dir && files.backend().list(&path)?.iter().all(|name| FileKind::is_ours(folder, name)))
}

/// Refuses a store in which something else has the name of a directory or a file of ours: no open could replace or remove it.
/// Other names are of no concern.
pub(crate) fn check_entries(files: &Files) -> Result<()> {
    let stat = |path: &Path| files.backend().stat(path);
    for path in Folder::BELOW_ROOT.map(|folder| files.folder(folder)) {
        if stat(&path)?.is_some_and(|stat| !stat.is_dir) {
            return Err(refused(&path, "is no directory, and a store has one of this name: move it away"));
        }
    }
    for kind in FileKind::ALL {
        for number in files.numbers(kind)? {
            let path = files.path(kind, number);
            if stat(&path)?.is_some_and(|stat| !stat.is_file) {
                return Err(refused(&path, "is no regular file, and has the name of one: move it away"));
            }
        }
    }
    Ok(())
}

/// Makes the directories below the root that are missing.
pub(crate) fn make_folders(files: &Files) -> Result<()> {
    for path in Folder::BELOW_ROOT.map(|folder| files.folder(folder)) {
        if files.backend().stat(&path)?.is_none() {
            files.backend().make_dir(&path)?;
        }
    }
    Ok(files.backend().sync_dir(files.root())?)
}

pub(crate) fn no_store(root: &Path) -> Error {
    refused(root, "holds no Esker store: check the path, or let the open create one")
}

fn refused(root: &Path, what: &str) -> Error {
    Error::Format { path: root.to_owned(), what: what.to_owned() }
}
