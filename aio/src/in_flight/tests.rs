//! Contexts on kernels without `io_pgetevents` or poll operations.

use super::*;

/// A context that behaves as on a kernel without one or both features.
fn old_kernel(has_pgetevents: bool, has_poll: bool) -> InFlight {
    let (reaping, waking) = (Reaping::SystemCall, Waking::Poll);
    let mut queue =
        InFlight::new(&Settings { slots: 1, mask: None, reaping, waking }, BackendState::new()).unwrap();
    queue.has_pgetevents = has_pgetevents;
    queue.has_poll = has_poll;
    queue
}

#[test]
fn old_kernels_time_out() {
    for (has_pgetevents, has_poll) in [(false, true), (true, false), (false, false)] {
        let mut queue = old_kernel(has_pgetevents, has_poll);
        let _waker = queue.waker();
        let deadline = queue.shared.clock.now() + Duration::from_millis(5);
        assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
        assert!(queue.shared.clock.now() >= deadline);
    }
}

#[test]
fn old_kernels_are_woken() {
    for (has_pgetevents, has_poll) in [(false, true), (true, false), (false, false)] {
        let mut queue = old_kernel(has_pgetevents, has_poll);
        let waker = queue.waker();
        for _ in 0..20 {
            std::thread::scope(|scope| {
                scope.spawn(|| waker.wake());
                let far = queue.shared.clock.now() + Duration::from_mins(1);
                assert_eq!(queue.wait(1, Some(far), &mut Vec::new()), Ok(Wake::Woken));
            });
        }
    }
}

#[test]
fn a_wake_up_stays_when_its_waker_is_gone() {
    let mut queue = old_kernel(true, true);
    let deadline = queue.shared.clock.now() + Duration::from_millis(1);
    let waker = queue.waker();
    assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
    waker.wake();
    drop(waker);
    assert_eq!(queue.wait(1, None, &mut Vec::new()), Ok(Wake::Woken));
    assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut), "it is one");
}
