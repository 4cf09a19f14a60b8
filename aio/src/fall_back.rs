//! What a backend does instead of that which the machine refuses, each kind told once.
//!
//! A machine is never asked for its version or its profile. A call is tried, and if it is refused another way is taken
//! that keeps every promise of [`Backend`](crate::Backend) and [`Queue`](crate::Queue). Only the speed is less.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Errno;

/// A way around a call that the kernel, or a sandbox, refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FallBack {
    /// Native AIO is refused: reads and writes are made by `preadv2` and `pwritev2`, in a few threads or in the caller.
    SystemCalls {
        /// The refused call.
        call: &'static str,
        /// The answer.
        errno: Errno,
    },
    /// `io_pgetevents` is refused: waits use `io_getevents`. A signal mask for the time of a wait is not used then.
    OldWait {
        /// The answer.
        errno: Errno,
    },
    /// There is no direct I/O for a file: it goes through the page cache. Some file systems accept `O_DIRECT` and then
    /// refuse the reads or writes.
    PageCache {
        /// The first file.
        path: PathBuf,
        /// The refused call and its answer. `None`: the file system accepts `O_DIRECT`, and does not promise that it has
        /// an effect.
        refused: Option<(&'static str, Errno)>,
    },
}

impl fmt::Display for FallBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FallBack::SystemCalls { call, errno } => write!(
                f,
                "{call} is refused here ({errno}), so preadv2 and pwritev2 do the reads and writes, fewer of them at the \
                 same time: for full speed let the sandbox allow io_setup, io_submit, io_getevents and io_pgetevents"
            ),
            FallBack::OldWait { errno } => write!(
                f,
                "io_pgetevents is refused here ({errno}), so waits use io_getevents: as fast, but without the signal mask \
                 of a wait, which only a program with its own contexts sets"
            ),
            FallBack::PageCache { path, refused } => {
                let path = path.display();
                match refused {
                    Some((call, errno)) => write!(f, "{call} with O_DIRECT is refused on {path} ({errno})")?,
                    None => write!(f, "the file system of {path} does not promise direct I/O")?,
                }
                f.write_str(
                    ", so such files go through the page cache, which takes memory, and calls may block: for direct I/O \
                     use another file system, such as ext4 or xfs",
                )
            }
        }
    }
}

/// The fall-backs of a backend so far, the first of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct FallBacks(Arc<Mutex<Vec<FallBack>>>);

impl FallBacks {
    /// Keeps it, unless one of its kind is known.
    pub(crate) fn note(&self, fall_back: FallBack) {
        let mut known = self.0.lock();
        let kind = std::mem::discriminant(&fall_back);
        if known.iter().all(|known| std::mem::discriminant(known) != kind) {
            known.push(fall_back);
        }
    }

    pub(crate) fn list(&self) -> Vec<FallBack> {
        self.0.lock().clone()
    }
}
