//! Waits for the end of a shortage: a call that was refused before anything was done is made again.
//!
//! Slots of native AIO, descriptors and memory are shared with the rest of the machine, so a refusal says only that the
//! moment was bad. `patience` has the pauses.
//!
//! Only an [`Error::is_not_now`] is waited out. A failed operation is not: it may have been done in part.

use crate::backend::Backend;
use crate::error::Result;
use crate::patience::Patience;

/// Makes the call until it is not refused any more, for at most five seconds. The caller sleeps meanwhile
/// ([`Backend::park`]).
///
/// # Errors
/// The last refusal, or any other error of the call at once.
pub fn wait_out<T>(backend: &dyn Backend, mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let mut patience = Patience::default();
    loop {
        match call() {
            Err(error) if error.is_not_now() => match patience.pause(backend.now()) {
                Some(pause) => backend.park(pause),
                None => return Err(error),
            },
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::error::{Errno, Error};
    use crate::patience::PATIENCE;
    use crate::sim::SimBackend;

    fn refusal(errno: Errno) -> Error {
        Error::call("open", Path::new("/file"), errno)
    }

    #[test]
    fn a_shortage_that_ends_is_only_a_delay() {
        let backend = SimBackend::new(1);
        let end = backend.now() + Duration::from_secs(2);
        let mut tries = 0;
        let answer = wait_out(&backend, || {
            tries += 1;
            if backend.now() < end { Err(refusal(Errno::TOO_MANY_FILES)) } else { Ok(7) }
        });
        assert_eq!(answer, Ok(7));
        assert!((20..100).contains(&tries), "{tries} tries: pauses grow, and stay short");
    }

    #[test]
    fn a_shortage_that_stays_is_named() {
        let backend = SimBackend::new(1);
        let begin = backend.now();
        let answer: Result<()> = wait_out(&backend, || Err(Error::Slots { slots: 4 }));
        assert_eq!(answer, Err(Error::Slots { slots: 4 }));
        let took = backend.now().saturating_sub(begin);
        assert!(took >= PATIENCE && took < PATIENCE * 2, "{took:?}");
    }

    #[test]
    fn a_failure_is_no_shortage() {
        let backend = SimBackend::new(1);
        let mut tries = 0;
        let answer: Result<()> = wait_out(&backend, || {
            tries += 1;
            Err(refusal(Errno::IO))
        });
        assert_eq!((answer, tries), (Err(refusal(Errno::IO)), 1));
    }
}
