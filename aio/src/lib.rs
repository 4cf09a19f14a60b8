//! Linux native AIO, safe: contexts that own what is in flight, waiting that loses no wake-up, direct files, and a
//! simulated disk behind the same interface.
//!
//! # What native AIO gives
//! A *context* (`io_setup`) takes operations (`io_submit`) and gives their completions back (`io_pgetevents`), in
//! whatever order they finish. On files opened with `O_DIRECT` the kernel then moves bytes between the device and the
//! caller's memory by itself: no thread waits for a read or a write, no page cache is filled, one call submits many
//! operations and one call reaps many. It works where `io_uring` is forbidden, because container and hardening profiles
//! leave these calls alone.
//!
//! What it does not give: files that are not direct (everything works, but inside `io_submit`), order between
//! operations (a sync does not wait for a write that was submitted before it), names and sizes (those calls are
//! synchronous here, and take a sync of the directory to last).
//!
//! # When `io_submit` blocks
//! It is asynchronous only as far as the file system lets it be. It blocks
//! * on a file that is not direct: [`File::is_direct`] tells, and [`probe()`] finds out how;
//! * when a write needs new blocks or a new size. So files that must be fast are written with zeros once
//!   ([`file::create_zeroed`]) and then only overwritten;
//! * when the device's queue is full: more in flight than it has requests for makes the submitter wait;
//! * on some file systems always: where data is checksummed or copied on write, a direct write may complete inside the
//!   call.
//!
//! # How to wait safely
//! [`Queue::wait`] sleeps in the kernel until completions arrive, a deadline passes, a signal handler ran, or somebody
//! calls [`WakeUp::wake`]. A wake-up that comes before the wait ends the next wait at once, so "look for work, then
//! sleep" has no gap in it. Threads of a library call [`block_all_signals`] first, so that no handler of the application
//! ever runs on them. For a thread-directed signal as a wake-up there is [`NativeBackend::queue_with_mask`].
//!
//! A completion says what the kernel did, not that it is durable: a write is on stable media after a
//! [`Backend::sync`] that began when the write had been reaped whole ([`Completion::whole`]), and never otherwise.
//!
//! # Ownership
//! The kernel keeps the address of a buffer after the call that passed it. So an [`Operation`] owns its [`Buf`] and its
//! [`File`], the queue owns the operation until its [`Completion`] is reaped, and the completion gives both back.
//! Nothing borrowed crosses that line, a forgotten handle frees nothing, and dropping a queue waits for everything in
//! flight. In a forked child every call is refused and drops do nothing: context, lock and mapping are the parent's.
//!
//! # Two machines
//! [`Backend`] is all that a store knows of the machine: files, contexts, time, randomness. [`NativeBackend`] is this
//! machine; [`SimBackend`] a simulated one, with a disk that can be cut off at any I/O, fail, lie and replay from its
//! seed (see [`sim`]). Both pass the same tests.
//!
//! # Example
//! ```
//! use aio::{Action, Backend, Buf, NativeBackend, OpenMode, Operation};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))?;
//! # let dir = dir.path();
//! let backend = NativeBackend::new();
//! let file = backend.open(&dir.join("file"), OpenMode::Create)?;
//! let mut queue = backend.queue(8)?;
//!
//! // Two blocks in one call. Offsets and lengths are aligned as `file.alignment()` asks; 4096 suits every device.
//! let mut writes = (0..2_u8)
//!     .map(|block| {
//!         let mut buf = Buf::zeroed(4096);
//!         buf.fill(b'a' + block);
//!         let action = Action::Write { offset: u64::from(block) * 4096, buf };
//!         Operation { token: u64::from(block), file: file.clone(), action }
//!     })
//!     .collect();
//! queue.submit(&mut writes)?;
//! assert!(writes.is_empty(), "the queue owns both now");
//!
//! let mut done = Vec::new();
//! queue.wait(2, None, &mut done)?;
//! for completion in done {
//!     completion.whole()?;
//! }
//! // Reaped whole, then synced, the file's and the directory's: only now a power cut takes nothing back.
//! backend.sync(&file)?;
//! backend.sync_dir(dir)?;
//!
//! // For those who have nothing to do meanwhile.
//! let back = aio::file::read_exact(queue.as_mut(), &file, 4096, 4096)?;
//! assert!(back.iter().all(|&byte| byte == b'b'));
//! # Ok(())
//! # }
//! ```
//!
//! # Reading order
//! `backend` (the interface), `buf`, then `native` with `queue` (who owns what is in flight) and `sys` (the calls), `waker`
//! and `signal` (waiting), `probe` (what a file system can do); `sim` stands alone.

pub mod file;
pub mod sim;

mod backend;
mod buf;
mod error;
mod native;
mod planted;
mod probe;
mod signal;
mod sys;
mod trace;
mod waker;

pub use backend::{
    Action, Alignment, Backend, Completion, File, Lock, OpenMode, Operation, Queue, SECTOR_BYTES, SharedMap,
    Stat, Wake, WakeUp,
};
pub use buf::Buf;
pub use error::{Errno, Error, Result};
pub use native::NativeBackend;
pub use planted::{Bug, planted};
pub use probe::{Probe, probe};
pub use signal::{SignalSet, block_all_signals};
pub use sim::SimBackend;
pub use trace::{Counters, LatencyHistogram, OperationCounters};
