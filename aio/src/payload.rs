//! What a context must know about the things that it keeps in flight.
//!
//! Two kinds of operations go through the same code: those of the engine's narrow trait, and [`Op`](crate::Op) with
//! everything that the kernel can do.
#![expect(unsafe_code, reason = "an unsafe trait")]

use crate::error::{Errno, Error};
use crate::sys::Iocb;
use crate::trace::Kind;

/// An operation that owns everything the kernel may touch.
///
/// # Safety
/// The memory that [`Payload::iocb`] names is exclusively the payload's own, allocated, and at the same address as
/// long as the payload lives, wherever it is moved. Arrays that only the submit reads may be behind the payload, too.
pub(crate) unsafe trait Payload: Sized {
    /// What the owner gets back.
    type Completion;

    /// The kernel's form; `data` is filled in by the context.
    fn iocb(&self) -> Iocb;

    /// What it is counted as.
    fn kind(&self) -> Kind;

    /// The error of an operation that was not even started.
    fn refused(&self, errno: Errno) -> Error;

    /// Ends it.
    fn complete(self, result: Result<usize, Errno>) -> Self::Completion;
}
