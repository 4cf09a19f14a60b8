//! Contexts on kernels without `io_pgetevents` or poll operations; and times and depths in their profiles.

use super::*;
use crate::backend::{Backend, OpenMode};
use crate::buf::Buf;
use crate::file;
use crate::flags::{Priority, Readiness};
use crate::native::NativeBackend;
use crate::open_file::File;

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

/// A file of one block of sevens, through a backend.
fn file_of_sevens(dir: &tempfile::TempDir) -> File {
    let backend = NativeBackend::new();
    let file = backend.open(&dir.path().join("file"), OpenMode::Create).unwrap();
    let mut block = Buf::zeroed(4096);
    block.fill(7);
    file::write_all(&mut *backend.queue(1).unwrap(), &file, 0, block).unwrap();
    file
}

#[test]
fn a_context_whose_calls_are_refused_later_goes_on_by_system_calls() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = file_of_sevens(&dir);
    for refusal in [Errno::NOT_IMPLEMENTED, Errno::NOT_PERMITTED, Errno::ACCESS, Errno::INVALID] {
        let mut queue = old_kernel(true, true);
        let waker = queue.waker();
        let mut waiting: VecDeque<Operation> =
            (0..4).map(|_| Operation::read(&file, 0, Buf::zeroed(4096))).collect();
        // The first read is in flight when the sandbox closes.
        assert_eq!(queue.submit(&mut waiting), Ok(1));
        queue.context.refusal.store(refusal.0, std::sync::atomic::Ordering::Relaxed);
        let mut done = Vec::new();
        while done.len() < 4 {
            assert_eq!(queue.wait(1, None, &mut done), Ok(Wake::Completed), "after {}", done.len());
            queue.submit(&mut waiting).unwrap();
        }
        assert!(done.iter().all(|done| done.result == Ok(4096) && done.operation.bufs()[0][0] == 7));
        let told = queue.shared.fall_backs.list();
        assert_eq!(told, [FallBack::SystemCalls { call: "io_submit", errno: refusal }]);
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            assert_eq!(queue.wait(1, None, &mut Vec::new()), Ok(Wake::Woken), "without an event");
        });
        let poll = Operation::poll(&file, Readiness::READABLE);
        assert!(queue.submit(&mut VecDeque::from([poll])).is_err(), "system calls have no polls");
    }
}

#[test]
fn a_shortage_at_submit_is_waited_out() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = file_of_sevens(&dir);
    let mut queue = old_kernel(true, true);
    let context = Arc::clone(&queue.context);
    let refuse = |errno: i32| context.refusal.store(errno, std::sync::atomic::Ordering::Relaxed);
    refuse(libc::EAGAIN);
    let submitted = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::park_timeout(Duration::from_millis(20));
            refuse(0);
        });
        queue.submit(&mut VecDeque::from([Operation::read(&file, 0, Buf::zeroed(4096))]))
    });
    assert_eq!(submitted, Ok(1));
    assert_eq!(queue.wait(1, None, &mut Vec::new()), Ok(Wake::Completed));
}

#[test]
fn a_shortage_at_submit_that_stays_is_named_and_the_operation_comes_back() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = file_of_sevens(&dir);
    let mut queue = old_kernel(true, true);
    queue.context.refusal.store(libc::EAGAIN, std::sync::atomic::Ordering::Relaxed);
    let mut waiting = VecDeque::from([Operation::read(&file, 0, Buf::zeroed(4096))]);
    let error = queue.submit(&mut waiting).unwrap_err();
    assert!(error.is_not_now() && error.errno() == Some(Errno::AGAIN), "{error}");
    assert_eq!((waiting.len(), queue.len()), (1, 0));
}

/// The kernel works this long inside each call that submits.
const WORK: Duration = Duration::from_millis(20);

/// A file that is read through the page cache: the kernel does such reads inside the submit.
fn buffered_file(dir: &tempfile::TempDir) -> Arc<std::fs::File> {
    let path = dir.path().join("buffered");
    std::fs::write(&path, vec![7; 1 << 15]).unwrap();
    Arc::new(std::fs::OpenOptions::new().read(true).open(path).unwrap())
}

/// Submits reads of one block each, which must all be taken; returns how long it took.
#[expect(clippy::disallowed_methods, reason = "the truth that the profile is compared with")]
fn submit_reads(queue: &mut InFlight, file: &Arc<std::fs::File>, count: u64) -> Duration {
    let read = |nth| Operation::read(Arc::clone(file), nth * 4096, Buf::zeroed(4096));
    let mut waiting: VecDeque<Operation> = (0..count).map(read).collect();
    let begin = std::time::Instant::now();
    assert_eq!(queue.submit(&mut waiting), Ok(usize::try_from(count).unwrap()));
    begin.elapsed()
}

fn eight_slots() -> InFlight {
    let (reaping, waking) = (Reaping::SystemCall, Waking::Poll);
    InFlight::new(&Settings { slots: 8, mask: None, reaping, waking }, BackendState::new()).unwrap()
}

/// A queue whose kernel works for [`WORK`] inside each submit.
fn busy_queue() -> InFlight {
    let queue = eight_slots();
    let work_ms = WORK.as_millis().try_into().unwrap();
    queue.context.work_ms.store(work_ms, std::sync::atomic::Ordering::Relaxed);
    queue
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the truth that the profile is compared with")]
fn the_time_of_a_submit_belongs_to_its_operations_once() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = buffered_file(&dir);
    for batch in [1, 2, 8] {
        let mut queue = busy_queue();
        let begin = std::time::Instant::now();
        submit_reads(&mut queue, &file, batch);
        assert_eq!(queue.wait(usize::try_from(batch).unwrap(), None, &mut Vec::new()), Ok(Wake::Completed));
        let took = begin.elapsed();
        let reads = queue.shared.trace.profile().read();
        assert_eq!(reads.count, batch);
        assert!((WORK..=took).contains(&reads.time), "{:?} of {took:?}, batch of {batch}", reads.time);
    }
}

#[test]
fn an_operation_that_a_submit_has_done_is_not_longer_because_it_is_reaped_late() {
    const PAUSE: Duration = Duration::from_millis(80);
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = buffered_file(&dir);
    let mut queue = busy_queue();
    let mut took = submit_reads(&mut queue, &file, 1);
    std::thread::park_timeout(PAUSE);
    took += submit_reads(&mut queue, &file, 4);
    std::thread::park_timeout(PAUSE);
    assert_eq!(queue.wait(5, None, &mut Vec::new()), Ok(Wake::Completed));
    let latency = queue.shared.trace.profile().read().latency;
    // The newest one has the second pause. The others have their parts of the submits: all of one, three quarters of the
    // other.
    let middle = |bucket: &crate::profile::LatencyBucket| bucket.from_nanos.midpoint(bucket.to_nanos);
    let each = latency.buckets.iter().flat_map(|bucket| (0..bucket.count).map(move |_| middle(bucket)));
    let mut nanos: Vec<u64> = each.collect();
    let newest = Duration::from_nanos(nanos.pop().unwrap());
    let others = Duration::from_nanos(nanos.iter().sum());
    assert!(newest >= PAUSE + WORK / 5, "{newest:?}");
    assert!(
        nanos.len() == 4 && others >= WORK * 17 / 10 && others <= took + took / 100,
        "{others:?} of {took:?}"
    );
}

/// The latency of the newest operation of a file, which was done inside the submit and reaped long after it; and the time that the
/// submit took.
#[expect(clippy::disallowed_methods, reason = "the truth that the profile is compared with")]
fn done_and_reaped_late(file: &File) -> (Duration, Duration) {
    for _ in 0..100 {
        let mut queue = busy_queue();
        let mut waiting = VecDeque::from([Operation::read(file, 0, Buf::zeroed(4096))]);
        let begin = std::time::Instant::now();
        assert_eq!(queue.submit(&mut waiting), Ok(1));
        let took = begin.elapsed();
        // A device that is busy may take longer than the submit.
        let is_done = queue.slots.iter().flatten().all(|taken| taken.is_done);
        std::thread::park_timeout(WORK);
        assert_eq!(queue.wait(1, None, &mut Vec::new()), Ok(Wake::Completed));
        if is_done {
            return (queue.shared.trace.profile().read().time, took);
        }
    }
    panic!("no read of 100 was done inside the submit");
}

#[test]
fn an_operation_on_a_direct_file_that_a_submit_has_done_ends_with_it() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = file_of_sevens(&dir);
    let (latency, took) = done_and_reaped_late(&file);
    assert_eq!(latency <= took + took / 100, file.is_direct(), "{latency:?} of {took:?}");
    file.leave_direct();
    let (latency, took) = done_and_reaped_late(&file);
    assert!(
        latency > took + took / 100,
        "{latency:?} of {took:?}: through the page cache it ends when it is reaped"
    );
}

#[test]
fn the_time_of_a_submit_counts_where_the_ring_cannot_be_read() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = buffered_file(&dir);
    let mut queue = busy_queue();
    queue.ring = None;
    let took = submit_reads(&mut queue, &file, 8);
    assert_eq!(queue.wait(8, None, &mut Vec::new()), Ok(Wake::Completed));
    let profile = queue.shared.trace.profile();
    assert!(profile.read().time >= WORK * 9 / 2, "{:?}: each from its own turn to the end", profile.read());
    assert!(took >= WORK);
    assert_eq!(profile.depths[3], 1, "8 of them, as far as this queue can see");
}

#[test]
fn the_depth_is_that_of_the_device() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = buffered_file(&dir);
    let mut queue = eight_slots();
    // Polls of an event stay in flight until it is made.
    let event = crate::event_fd::EventFd::new().unwrap();
    let mut polls: VecDeque<Operation> =
        (0..4).map(|_| Operation::poll(&event, Readiness::READABLE)).collect();
    assert_eq!(queue.submit(&mut polls), Ok(4));
    submit_reads(&mut queue, &file, 1);
    submit_reads(&mut queue, &file, 2);
    // A wake-up in the ring is no operation.
    queue.waker().wake();
    submit_reads(&mut queue, &file, 1);
    event.add();
    let mut done = Vec::new();
    while done.len() < 8 {
        queue.wait(8 - done.len(), None, &mut done).unwrap();
    }
    let profile = queue.shared.trace.profile();
    assert_eq!((profile.submit_calls, profile.submitted), (4, 8));
    assert_eq!(profile.depths[..4], [0, 0, 4, 0], "the polls, and none of the reads that are done");
}

#[test]
fn the_depth_leaves_out_operations_that_system_calls_have_done() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = file_of_sevens(&dir);
    let mut queue = eight_slots();
    let refuse = |queue: &InFlight, errno: Errno| {
        queue.context.refusal.store(errno.0, std::sync::atomic::Ordering::Relaxed);
    };
    refuse(&queue, Errno::NOT_IMPLEMENTED);
    let reads = (0..3).map(|_| Operation::read(&file, 0, Buf::zeroed(4096)));
    assert_eq!(queue.submit(&mut reads.collect()), Ok(3));
    refuse(&queue, Errno(0));
    let event = crate::event_fd::EventFd::new().unwrap();
    assert_eq!(queue.submit(&mut VecDeque::from([Operation::poll(&event, Readiness::READABLE)])), Ok(1));
    event.add();
    let mut done = Vec::new();
    while done.len() < 4 {
        queue.wait(4 - done.len(), None, &mut done).unwrap();
    }
    let profile = queue.shared.trace.profile();
    assert_eq!((profile.submit_calls, &profile.depths[..3]), (1, &[1, 0, 0][..]), "the poll");
}

#[test]
fn a_submit_looks_at_each_event_once() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = buffered_file(&dir);
    let mut queue = eight_slots();
    for round in 0..3 {
        for nth in 0..8 {
            let looked = queue.looked.operations();
            submit_reads(&mut queue, &file, 1);
            assert_eq!((looked, queue.looked.operations()), (nth, nth + 1), "round {round}");
        }
        assert_eq!(queue.wait(8, None, &mut Vec::new()), Ok(Wake::Completed));
        assert_eq!(queue.looked.operations(), 0, "round {round}");
    }
}

#[test]
fn a_wait_without_completions_does_not_take_the_lock_of_the_profile() {
    let mut queue = eight_slots();
    let trace = Arc::clone(&queue.shared.trace);
    let (waits_are_over, is_over) = std::sync::mpsc::channel();
    let (lock_is_held, is_held) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let holder = scope.spawn(move || {
            let held = trace.hold();
            lock_is_held.send(()).unwrap();
            let is_over = is_over.recv_timeout(Duration::from_mins(1));
            drop(held);
            is_over
        });
        is_held.recv().unwrap();
        assert_eq!(queue.wait(0, None, &mut Vec::new()), Ok(Wake::Completed));
        queue.waker().wake();
        assert_eq!(queue.wait(1, None, &mut Vec::new()), Ok(Wake::Woken));
        waits_are_over.send(()).ok();
        assert_eq!(holder.join().unwrap(), Ok(()), "a wait has waited for the lock");
    });
}

#[test]
fn only_a_real_time_priority_is_named_as_the_cause_of_a_refusal() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = file_of_sevens(&dir);
    let mut queue = old_kernel(true, true);
    queue.context.refusal.store(libc::EPERM, std::sync::atomic::Ordering::Relaxed);
    for (priority, word) in [(Priority::real_time(7), "CAP_SYS_NICE"), (Priority::best_effort(0), "sandbox")]
    {
        let read = Operation::read(&file, 0, Buf::zeroed(4096)).with_priority(priority);
        let refused = queue.submit(&mut VecDeque::from([read])).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
}
