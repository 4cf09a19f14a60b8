//! Limits that the machine and the process set: slots of native AIO, and descriptors.

use rustix::process::{Resource, getrlimit};

use crate::backend::AioSlots;

/// The machine's slots; `None` where `/proc` does not show them.
pub(super) fn aio_slots() -> Option<AioSlots> {
    let number = |name| std::fs::read_to_string(format!("/proc/sys/fs/{name}")).ok()?.trim().parse().ok();
    Some(AioSlots { limit: number("aio-max-nr")?, in_use: number("aio-nr")? })
}

/// Descriptors that the process may have open; `None`: as many as it likes.
pub(super) fn descriptors() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_this_machine_are_read() {
        let slots = aio_slots().expect("every supported kernel shows them");
        assert!(slots.limit > 0, "{slots:?}");
        assert!(descriptors().is_none_or(|most| most > 3), "this program runs");
    }
}
