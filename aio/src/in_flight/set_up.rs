//! Makes the kernel's context, and the errors of a context.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use crate::error::{Errno, Error, Result};
use crate::operation::Operation;
use crate::sys;

/// A context of this many operations fits any machine's limit on one context.
const SLOTS_OF_ANY_MACHINE: usize = 1 << 14;

/// Makes a context of the kernel, and tries its calls without an operation.
pub(super) fn set_up(slots: usize) -> Result<sys::KernelContext> {
    // A number above 32 bits is reported like one above fs.aio-max-nr.
    let kernel_slots = u32::try_from(slots + 1).map_err(|_| Error::Slots { slots })?;
    let context = match sys::setup(kernel_slots) {
        Ok(context) => context,
        Err(Errno::AGAIN) => return Err(Error::Slots { slots }),
        // The kernel's answer to a number that no machine has, and a sandbox's to any.
        Err(Errno::INVALID) if slots > SLOTS_OF_ANY_MACHINE => return Err(Error::Slots { slots }),
        Err(errno) => return Err(refused("io_setup", errno)),
    };
    sys::submit_nothing(&context).map_err(|errno| refused("io_submit", errno))?;
    let at_once = sys::Wait { at_least: 0, timeout: Some(Duration::ZERO), mask: None };
    let reaped =
        sys::reap(&context, &mut [], at_once).or_else(|_| sys::reap_unmasked(&context, &mut [], at_once));
    match reaped {
        Ok(_) | Err(Errno::INTERRUPTED) => Ok(context),
        Err(errno) => Err(refused("io_getevents", errno)),
    }
}

/// The error of a call without which there is no native AIO.
fn refused(call: &'static str, errno: Errno) -> Error {
    if !errno.is_refusal() {
        return context_error(call, errno);
    }
    let needs = "asynchronous I/O, which a sandbox (seccomp profile) or the kernel refuses: let it allow io_setup, io_submit, \
                 io_getevents and io_pgetevents";
    let needs = needs.to_owned();
    Error::Unsupported { call, path: Path::new(CONTEXT).to_owned(), needs, errno }
}

/// The error of the operation at the front.
pub(super) fn front_refused(waiting: &VecDeque<Operation>, errno: Errno) -> Error {
    let front = waiting.front().expect("a refused operation stays at the front");
    if errno.is_not_now() {
        Error::call("io_submit", front.file().path(), errno)
    } else {
        front.refused(errno)
    }
}

/// Stands for the path in errors that concern a whole context.
pub(super) const CONTEXT: &str = "(asynchronous I/O context)";

pub(super) fn context_error(call: &'static str, errno: Errno) -> Error {
    Error::call(call, Path::new(CONTEXT), errno)
}
