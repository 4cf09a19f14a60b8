//! System calls on names, sizes and mappings: a refusal that did nothing is waited out, and the caller never sees it.
//!
//! Never for a sync: after one that failed, for any reason, the next one may report success for lost data.

use std::path::Path;

use crate::clock::Clock;
use crate::error::{Errno, Error, Result};
use crate::patience::Patience;

/// Makes the call until it is not refused any more: at once after a signal, with pauses while memory or locks are short.
///
/// A call that makes or removes a name is repeated like any other, as the kernel itself does after a signal whose handler
/// asks for it: no local file system does the work and then answers `EINTR`.
///
/// # Errors
/// The refusal, after the time of [`Patience`]. Any other error at once.
pub(crate) fn insist<T, E: Into<Errno>>(
    mut call: impl FnMut() -> std::result::Result<T, E>,
) -> std::result::Result<T, Errno> {
    let mut waiting = None;
    loop {
        let errno = match call() {
            Ok(done) => return Ok(done),
            Err(errno) => errno.into(),
        };
        if errno == Errno::INTERRUPTED {
            continue;
        }
        if !errno.is_not_now() {
            return Err(errno);
        }
        let (clock, patience) = waiting.get_or_insert_with(|| (Clock::start(), Patience::default()));
        let Some(pause) = patience.pause(clock.now()) else { return Err(errno) };
        #[expect(
            clippy::disallowed_methods,
            reason = "parking could take an unpark that is meant for a future"
        )]
        std::thread::sleep(pause);
    }
}

/// [`insist`], with call and path in the error. A caller does not wait for it again.
pub(crate) fn named<T, E: Into<Errno>>(
    name: &'static str,
    path: &Path,
    call: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    insist(call).map_err(|errno| Error::failed(name, path, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_that_did_nothing_is_seen() {
        for errno in [libc::EINTR, libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ENOLCK] {
            let mut tries = 0;
            let answer = insist(|| {
                tries += 1;
                if tries < 4 { Err(Errno(errno)) } else { Ok(7) }
            });
            assert_eq!((answer, tries), (Ok(7), 4), "{errno}");
        }
    }

    #[test]
    fn a_failure_is_seen_at_once() {
        let mut tries = 0;
        let answer: std::result::Result<(), Errno> = insist(|| {
            tries += 1;
            Err(Errno::IO)
        });
        assert_eq!((answer, tries), (Err(Errno::IO), 1));
    }
}
