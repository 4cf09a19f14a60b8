//! Backends and queues that wrap others, for tests: they change a few calls and forward the rest.
//!
//! A type that implements [`BackendLayer`] or [`QueueLayer`] is a [`Backend`] or [`Queue`]. It writes only the methods
//! that it changes; each other method calls the same method of the wrapped one.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{AioSlots, Backend, Lock, OpenMode, SharedMap, Stat};
use crate::error::Result;
use crate::fall_back::FallBack;
use crate::open_file::File;
use crate::operation::{Completion, Operation};
use crate::profile::IoProfile;
use crate::queue::{Cancel, Queue, Wake, WakeUp};
use crate::reactor::Reactor;

/// Declares the trait, whose methods forward their call, and makes each type that implements it a backend.
macro_rules! backend_layer {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $output:ty)?;)*) => {
        /// A [`Backend`] that wraps another one.
        pub trait BackendLayer: Any + Send + Sync + fmt::Debug {
            /// The wrapped backend.
            fn below(&self) -> &dyn Backend;

            /// See [`Backend::reactor`]. By default a reactor over a queue of this layer, with a thread.
            ///
            /// # Errors
            /// Those of [`Backend::reactor`].
            fn reactor(&self, slots: usize) -> Result<Reactor> {
                Reactor::with_thread(BackendLayer::queue(self, slots)?)
            }

            $(
                #[doc = concat!("See [`Backend::", stringify!($name), "`].")]
                ///
                /// # Errors
                /// Those of that method.
                fn $name(&self, $($argument: $kind),*) $(-> $output)? {
                    self.below().$name($($argument),*)
                }
            )*
        }

        impl<T: BackendLayer> Backend for T {
            fn reactor(&self, slots: usize) -> Result<Reactor> {
                BackendLayer::reactor(self, slots)
            }

            $(
                fn $name(&self, $($argument: $kind),*) $(-> $output)? {
                    BackendLayer::$name(self, $($argument),*)
                }
            )*
        }
    };
}

backend_layer! {
    queue(slots: usize) -> Result<Box<dyn Queue>>;
    drop_queues(queues: Vec<Box<dyn Queue>>);
    aio_slots() -> Option<AioSlots>;
    descriptor_limit() -> Option<u64>;
    open(path: &Path, mode: OpenMode) -> Result<File>;
    size_bytes(file: &File) -> Result<u64>;
    physical_block_bytes(file: &File) -> usize;
    sync(file: &File) -> Result<()>;
    allocate(file: &File, len_bytes: u64) -> Result<()>;
    zero_range(file: &File, range: Range<u64>) -> Result<bool>;
    truncate(file: &File, len_bytes: u64) -> Result<()>;
    link(from: &Path, to: &Path) -> Result<()>;
    remove(path: &Path) -> Result<()>;
    list(dir: &Path) -> Result<Vec<String>>;
    stat(path: &Path) -> Result<Option<Stat>>;
    make_dir(path: &Path) -> Result<()>;
    sync_dir(path: &Path) -> Result<()>;
    lock(path: &Path) -> Result<Box<dyn Lock>>;
    map_shared(file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>>;
    now() -> Duration;
    random() -> u64;
    park(duration: Duration);
    check_fork() -> Result<()>;
    fall_backs() -> Vec<FallBack>;
    profile() -> IoProfile;
}

/// A [`Queue`] that wraps another one.
pub trait QueueLayer: Send + fmt::Debug {
    /// The wrapped queue.
    fn below(&self) -> &dyn Queue;

    /// The wrapped queue.
    fn below_mut(&mut self) -> &mut dyn Queue;

    /// Forwards [`Queue::submit`].
    ///
    /// # Errors
    /// Those of the wrapped queue.
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.below_mut().submit(operations)
    }

    /// Forwards [`Queue::wait`].
    ///
    /// # Errors
    /// Those of the wrapped queue.
    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        self.below_mut().wait(at_least, deadline, completions)
    }

    /// Forwards [`Queue::waker`].
    fn waker(&self) -> Arc<dyn WakeUp> {
        self.below().waker()
    }
}

impl<T: QueueLayer> Queue for T {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        QueueLayer::submit(self, operations)
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        QueueLayer::wait(self, at_least, deadline, completions)
    }

    fn cancel(&mut self, token: u64) -> Result<Cancel> {
        self.below_mut().cancel(token)
    }

    fn in_flight(&self) -> usize {
        self.below().in_flight()
    }

    fn capacity(&self) -> usize {
        self.below().capacity()
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        QueueLayer::waker(self)
    }
}
