//! Contexts on kernels that lack what younger ones have.

use super::*;
use crate::op::Op;

/// A queue on a kernel that lacks what younger kernels have.
fn old_kernel(has_pgetevents: bool, poll: Poll) -> InFlight<Op> {
    let (reaping, waking) = (Reaping::SystemCall, Waking::Poll);
    let mut queue =
        InFlight::new(&Settings { slots: 1, mask: None, reaping, waking }, Shared::new()).unwrap();
    queue.has_pgetevents = has_pgetevents;
    queue.poll = poll;
    queue
}

#[test]
fn old_kernels_time_out() {
    for (has_pgetevents, poll) in [(false, Poll::Idle), (true, Poll::Refused), (false, Poll::Refused)] {
        let mut queue = old_kernel(has_pgetevents, poll);
        let _waker = queue.waker();
        let deadline = queue.shared.clock.now() + Duration::from_millis(5);
        assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
        assert!(queue.shared.clock.now() >= deadline);
    }
}

#[test]
fn old_kernels_are_woken() {
    for (has_pgetevents, poll) in [(false, Poll::Idle), (true, Poll::Refused), (false, Poll::Refused)] {
        let mut queue = old_kernel(has_pgetevents, poll);
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
fn a_queue_that_nobody_can_wake_needs_no_poll() {
    let mut queue = old_kernel(true, Poll::Idle);
    let deadline = queue.shared.clock.now() + Duration::from_millis(1);
    assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
    assert_eq!(queue.poll, Poll::Idle);
    let waker = queue.waker();
    assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
    assert_eq!(queue.poll, Poll::Armed);
    waker.wake();
    drop(waker);
    assert_eq!(queue.wait(1, None, &mut Vec::new()), Ok(Wake::Woken), "the waker is gone, its wake is not");
}
