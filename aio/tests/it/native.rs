//! The native backend on a real file system: queues, locks and mappings.
//!
//! The promises common to both backends are tested elsewhere. These tests cover behaviour of the real machine only:
//! refusals, interruptions, forks, exhausted slots.
#![expect(unsafe_code, reason = "signal handlers and fork")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use aio::{Backend, Buf, Errno, Error, File, Holder, NativeBackend, OpenMode, Operation, SignalSet, Wake};

/// Long enough that a test that waits for it has failed.
const FOREVER: Duration = Duration::from_mins(1);

struct Fixture {
    backend: NativeBackend,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Fixture { backend: NativeBackend::new(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `blocks` blocks of 4096 bytes, each filled with its number.
    fn file(&self, blocks: u8) -> File {
        let file = self.backend.open(&self.path("file"), OpenMode::Create).unwrap();
        let mut queue = self.backend.queue(1).unwrap();
        for block in 0..blocks {
            let mut buf = Buf::zeroed(4096);
            buf.fill(block);
            aio::file::write_all(&mut *queue, &file, u64::from(block) * 4096, buf).unwrap();
        }
        file
    }

    /// A deadline that passes only if the test fails.
    fn far(&self) -> Duration {
        self.after(FOREVER)
    }

    fn after(&self, duration: Duration) -> Duration {
        self.backend.now() + duration
    }
}

/// Every block that [`Fixture::file`] made holds its number.
fn assert_block(completion: aio::Completion) {
    let number = u8::try_from(completion.operation.token()).unwrap();
    let buf = completion.whole().unwrap().into_buf();
    assert!(buf.iter().all(|&byte| byte == number), "block {number}");
}

fn read(file: &File, block: u64) -> Operation {
    Operation::read(file, block * 4096, Buf::zeroed(4096)).with_token(block)
}

fn write(file: &File, offset: u64, len_bytes: usize) -> Operation {
    Operation::write(file, offset, Buf::zeroed(len_bytes)).with_token(offset)
}

#[test]
fn reads_give_back_the_written_bytes() {
    let fixture = Fixture::new();
    let file = fixture.file(32);
    let mut queue = fixture.backend.queue(8).unwrap();
    let done = aio::file::run(&mut *queue, (0..32).map(|block| read(&file, block))).unwrap();
    assert_eq!(done.len(), 32);
    for completion in done {
        assert_block(completion);
    }
    let profile = fixture.backend.profile();
    assert_eq!((profile.write().count, profile.write().bytes), (32, 32 * 4096));
    assert_eq!((profile.read().count, profile.read().errors), (32, 0));
    assert_eq!(profile.read().latency.count(), 32);
    assert!(profile.submit_calls >= 32 + 4, "8 slots take 32 reads in 4 calls at best");
}

#[test]
fn submit_takes_as_many_as_fit_and_leaves_the_rest() {
    let fixture = Fixture::new();
    let file = fixture.file(5);
    let mut queue = fixture.backend.queue(2).unwrap();
    let mut operations: VecDeque<_> = (0..5).map(|block| read(&file, block)).collect();
    let mut done = Vec::new();
    assert_eq!(queue.submit(&mut operations).unwrap(), 2);
    assert_eq!((queue.in_flight(), queue.capacity(), operations.len()), (2, 2, 3));
    assert_eq!(queue.submit(&mut operations).unwrap(), 0, "reap first");
    assert_eq!(operations.front().unwrap().token(), 2);
    assert_eq!(queue.wait(2, None, &mut done).unwrap(), Wake::Completed);
    assert_eq!((queue.in_flight(), done.len()), (0, 2));
    assert_eq!(queue.submit(&mut operations).unwrap(), 2);
    assert_eq!(queue.wait(2, None, &mut done).unwrap(), Wake::Completed);
    assert_eq!(queue.submit(&mut operations).unwrap(), 1);
    assert_eq!(queue.wait(1, None, &mut done).unwrap(), Wake::Completed);
    done.into_iter().for_each(assert_block);
}

#[test]
fn more_operations_than_one_call_takes_are_submitted() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let mut queue = fixture.backend.queue(600).unwrap();
    let mut operations: VecDeque<_> = (0..600).map(|_| read(&file, 0)).collect();
    assert_eq!(queue.submit(&mut operations).unwrap(), 600);
    let mut done = Vec::new();
    assert_eq!(queue.wait(600, None, &mut done).unwrap(), Wake::Completed);
    done.into_iter().for_each(assert_block);
}

#[test]
fn a_refused_operation_stays_at_the_front() {
    let fixture = Fixture::new();
    let file = fixture.file(2);
    let read_only = fixture.backend.open(file.path(), OpenMode::Read).unwrap();
    let mut queue = fixture.backend.queue(8).unwrap();
    let mut operations = VecDeque::from([read(&file, 0), write(&read_only, 4096, 512), read(&file, 1)]);
    assert_eq!(queue.submit(&mut operations).unwrap(), 1, "up to the refused one");
    let error = queue.submit(&mut operations).unwrap_err();
    let Error::Os { call, path, offset, len_bytes, errno } = error else { panic!("{error}") };
    assert_eq!((call, path.as_path(), offset, len_bytes), ("io_submit", file.path(), 4096, 512));
    assert_eq!(errno, Errno(libc::EBADF));
    assert_eq!((operations.len(), queue.in_flight()), (2, 1));
    operations.pop_front();
    assert_eq!(queue.submit(&mut operations).unwrap(), 1);
    let mut done = Vec::new();
    queue.wait(2, None, &mut done).unwrap();
    done.into_iter().for_each(assert_block);
}

#[test]
fn a_misaligned_operation_completes_with_invalid() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    assert!(file.is_direct(), "the target directory must be on a file system with direct I/O");
    let mut queue = fixture.backend.queue(3).unwrap();
    let operations = [write(&file, 0, 100), write(&file, 100, 512), read(&file, 0)];
    let results: Vec<_> =
        aio::file::run(&mut *queue, operations).unwrap().into_iter().map(|done| done.result).collect();
    assert_eq!(results.iter().filter(|&&result| result == Err(Errno::INVALID)).count(), 2);
    assert_eq!(results.iter().filter(|&&result| result == Ok(4096)).count(), 1);
    assert_eq!(fixture.backend.profile().write().errors, 2);
}

#[test]
fn a_read_across_the_end_is_short() {
    let fixture = Fixture::new();
    let file = fixture.file(3);
    let mut queue = fixture.backend.queue(2).unwrap();
    let across = Operation::read(&file, 8192, Buf::zeroed(8192));
    let done = aio::file::run(&mut *queue, [across, read(&file, 3)]).unwrap();
    assert_eq!(done[0].result, Ok(4096));
    assert_eq!(done[1].result, Ok(0));
}

#[test]
fn a_write_beyond_the_largest_file_fails() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let mut queue = fixture.backend.queue(1).unwrap();
    let mut done = aio::file::run(&mut *queue, [write(&file, 1 << 62, 4096)]).unwrap();
    assert_eq!(done.pop().unwrap().result, Err(Errno(libc::EFBIG)));
}

#[test]
fn syncs_and_durable_writes_complete() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let mut queue = fixture.backend.queue(2).unwrap();
    let durable = Operation::write_durable(&file, 0, Buf::zeroed(4096));
    let operations = [durable, Operation::data_sync(&file).with_token(1)];
    for completion in aio::file::run(&mut *queue, operations).unwrap() {
        completion.whole().unwrap();
    }
    fixture.backend.sync(&file).unwrap();
    let profile = fixture.backend.profile();
    assert_eq!((profile.write_durable().count, profile.sync().count), (1, 2));
}

#[test]
fn a_wait_ends_at_its_deadline_and_not_before() {
    let fixture = Fixture::new();
    let mut queue = fixture.backend.queue(1).unwrap();
    let mut done = Vec::new();
    for with_waker in [false, true] {
        let _waker = with_waker.then(|| queue.waker());
        let deadline = Some(fixture.after(Duration::from_millis(20)));
        assert_eq!(queue.wait(1, deadline, &mut done).unwrap(), Wake::TimedOut);
        assert!(Some(fixture.backend.now()) >= deadline);
        assert_eq!(queue.wait(1, deadline, &mut done).unwrap(), Wake::TimedOut, "in the past: at once");
        assert_eq!(queue.wait(1, Some(Duration::ZERO), &mut done).unwrap(), Wake::TimedOut);
        assert_eq!(queue.wait(0, None, &mut done).unwrap(), Wake::Completed, "without waiting");
    }
    assert!(done.is_empty());
}

#[test]
fn completions_that_are_there_are_reaped_at_the_deadline() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let mut queue = fixture.backend.queue(2).unwrap();
    let mut done = Vec::new();
    queue.submit(&mut VecDeque::from([read(&file, 0)])).unwrap();
    let deadline = Some(fixture.after(Duration::from_millis(200)));
    assert_eq!(queue.wait(2, deadline, &mut done).unwrap(), Wake::TimedOut);
    assert_eq!((done.len(), queue.in_flight()), (1, 0));
}

#[test]
fn a_wake_before_the_wait_is_not_lost() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let mut queue = fixture.backend.queue(1).unwrap();
    let mut done = Vec::new();
    queue.waker().wake();
    queue.waker().wake();
    assert_eq!(queue.wait(0, None, &mut done).unwrap(), Wake::Completed);
    aio::file::read_exact(&mut *queue, &file, 0, 4096).unwrap();
    queue.waker().wake();
    queue.submit(&mut VecDeque::from([read(&file, 0)])).unwrap();
    while queue.in_flight() > 0 {
        queue.wait(0, None, &mut done).unwrap();
    }
    assert_eq!(queue.wait(1, Some(fixture.far()), &mut done).unwrap(), Wake::Woken);
    let soon = Some(fixture.after(Duration::from_millis(5)));
    assert_eq!(queue.wait(1, soon, &mut done).unwrap(), Wake::TimedOut, "a wake ends one wait");
    assert_eq!(queue.in_flight(), 0, "the poll on the waker does not count");
}

#[test]
fn a_wake_ends_a_wait_for_many() {
    let fixture = Fixture::new();
    let file = fixture.file(2);
    let mut queue = fixture.backend.queue(8).unwrap();
    let waker = queue.waker();
    let mut done = Vec::new();
    for _ in 0..200 {
        queue.submit(&mut VecDeque::from([read(&file, 0), read(&file, 1)])).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            let deadline = fixture.far();
            assert_eq!(queue.wait(8, Some(deadline), &mut done).unwrap(), Wake::Woken);
            assert!(fixture.backend.now() < deadline, "woken, and not found awake at the deadline");
        });
        queue.wait(queue.in_flight(), None, &mut done).unwrap();
    }
    assert_eq!(done.len(), 400);
}

/// Every message is answered before its sender continues, so the loss of a single wake-up stops the exchange and shows
/// as a time-out.
#[test]
fn wakes_from_many_threads_are_never_lost() {
    const SENDERS: usize = 4;
    const MESSAGES: usize = 3000;
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let mut queue = fixture.backend.queue(4).unwrap();
    let (sender, messages) = mpsc::channel::<mpsc::Sender<()>>();
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            let (sender, waker) = (sender.clone(), queue.waker());
            scope.spawn(move || {
                let (answer, answered) = mpsc::channel();
                for _ in 0..MESSAGES {
                    sender.send(answer.clone()).unwrap();
                    waker.wake();
                    answered.recv_timeout(FOREVER).expect("an answer");
                }
            });
        }
        let mut done = Vec::new();
        let mut received = 0;
        while received < SENDERS * MESSAGES {
            if received % 3 == 0 && queue.in_flight() == 0 {
                queue.submit(&mut VecDeque::from([read(&file, 0)])).unwrap();
            }
            let wake = queue.wait(1, Some(fixture.far()), &mut done).unwrap();
            assert_ne!(wake, Wake::TimedOut, "after {received} messages");
            for answer in messages.try_iter() {
                answer.send(()).unwrap();
                received += 1;
            }
        }
    });
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// Installs a handler for `SIGUSR1` that does nothing and does not restart system calls.
fn handle_user_signal() {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler lives as long as the program and does nothing.
    let answer = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(answer, 0);
}

fn send_user_signal(thread: libc::pthread_t) {
    // SAFETY: every caller keeps the thread alive meanwhile, and the signal has a handler.
    let answer = unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
    assert_eq!(answer, 0);
}

fn this_thread() -> libc::pthread_t {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::pthread_self() }
}

#[test]
fn a_signal_handler_ends_a_wait() {
    handle_user_signal();
    let fixture = Fixture::new();
    let mut queue = fixture.backend.queue(1).unwrap();
    let (ready, thread) = mpsc::channel();
    let (ended, wake) = mpsc::channel();
    std::thread::scope(|scope| {
        let (fixture, queue) = (&fixture, &mut queue);
        let (finish, finished) = mpsc::channel::<()>();
        scope.spawn(move || {
            ready.send(this_thread()).unwrap();
            ended.send(queue.wait(1, Some(fixture.far()), &mut Vec::new()).unwrap()).unwrap();
            finished.recv().unwrap();
        });
        let thread = thread.recv().unwrap();
        // A signal that comes before the wait is lost on it, so it is sent until one has hit.
        let wake = loop {
            send_user_signal(thread);
            if let Ok(wake) = wake.recv_timeout(Duration::from_millis(2)) {
                break wake;
            }
        };
        finish.send(()).unwrap();
        assert_eq!(wake, Wake::Interrupted);
    });
}

#[test]
fn a_signal_let_through_only_while_waiting_is_not_lost() {
    handle_user_signal();
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            aio::block_all_signals();
            let mut done = Vec::new();
            send_user_signal(this_thread());
            let mut deaf = fixture.backend.queue(1).unwrap();
            let soon = Some(fixture.after(Duration::from_millis(5)));
            assert_eq!(deaf.wait(1, soon, &mut done).unwrap(), Wake::TimedOut);
            let mask = SignalSet::blocked().without(libc::SIGUSR1);
            let mut queue = fixture.backend.queue_with_mask(1, mask).unwrap();
            let deadline = Some(fixture.far());
            assert_eq!(queue.wait(1, deadline, &mut done).unwrap(), Wake::Interrupted);
            assert!(SignalSet::blocked().contains(libc::SIGUSR1), "the mask is back after the wait");
        });
    });
}

#[test]
fn dropping_a_queue_waits_for_operations_in_flight() {
    let fixture = Fixture::new();
    let file = fixture.file(64);
    let mut queue = fixture.backend.queue(64).unwrap();
    let waker = queue.waker();
    let mut done = Vec::new();
    let soon = Some(fixture.after(Duration::from_millis(1)));
    assert_eq!(queue.wait(1, soon, &mut done).unwrap(), Wake::TimedOut, "arms the poll on the waker");
    let mut operations: VecDeque<_> = (0..64).map(|block| write(&file, block * 4096, 4096)).collect();
    assert_eq!(queue.submit(&mut operations).unwrap(), 64);
    drop(queue);
    waker.wake();
    assert_eq!(fixture.backend.profile().write().count, 64 + 64, "all were reaped");
    let mut queue = fixture.backend.queue(1).unwrap();
    let bytes = aio::file::read_exact(&mut *queue, &file, 0, 64 * 4096).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn operations_in_flight_keep_their_file_open() {
    let fixture = Fixture::new();
    let file = fixture.file(16);
    let mut queue = fixture.backend.queue(16).unwrap();
    let mut operations: VecDeque<_> = (0..16).map(|block| read(&file, block)).collect();
    drop(file);
    queue.submit(&mut operations).unwrap();
    fixture.backend.remove(&fixture.path("file")).unwrap();
    let mut done = Vec::new();
    assert_eq!(queue.wait(16, None, &mut done).unwrap(), Wake::Completed);
    done.into_iter().for_each(assert_block);
}

#[test]
fn more_slots_than_the_machine_has_are_refused() {
    let fixture = Fixture::new();
    let limit = std::fs::read_to_string("/proc/sys/fs/aio-max-nr").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    for slots in [limit, 1 << 28, usize::MAX - 1] {
        let error = fixture.backend.queue(slots).unwrap_err();
        assert_eq!(error, Error::Slots { slots });
        assert!(error.to_string().contains("fs.aio-max-nr"));
    }
}

#[test]
fn a_second_lock_names_the_holder() {
    let fixture = Fixture::new();
    let path = fixture.path("LOCK");
    let lock = fixture.backend.lock(&path).unwrap();
    let held = Err(Error::Locked { path: path.clone(), holder: Holder::ThisProcess });
    assert_eq!(fixture.backend.lock(&path).map(|_| ()), held);
    assert_eq!(NativeBackend::new().lock(&path).map(|_| ()), held, "also through another backend");
    let len_bytes = || std::fs::metadata(&path).unwrap().len();
    assert_eq!(len_bytes(), 4096);
    drop(lock);
    assert_eq!(len_bytes(), 0, "a holder takes its note with it");
    drop(fixture.backend.lock(&path).unwrap());
    assert_eq!(fixture.backend.profile().write().count, 2, "the note is written by asynchronous I/O");
}

#[test]
fn a_lock_in_an_absent_directory_fails() {
    let fixture = Fixture::new();
    let error = fixture.backend.lock(&fixture.path("absent/LOCK")).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOT_FOUND));
}

/// Runs `check` in a forked child; whether it returned true there.
fn in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only runs `check`, which takes no lock of another thread, and exits without unwinding.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = i32::from(!check());
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above and writes its status.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(ended, pid);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn a_forked_child_is_refused_and_does_no_harm() {
    let fixture = Fixture::new();
    let file = fixture.file(8);
    let path = fixture.path("LOCK");
    let lock = fixture.backend.lock(&path).unwrap();
    let mut queue = fixture.backend.queue(8).unwrap();
    queue.submit(&mut (0..8).map(|block| read(&file, block)).collect()).unwrap();
    let (mut lock, mut queue) = (Some(lock), Some(queue));
    let refused = in_child(|| {
        let mut queue = queue.take().unwrap();
        let checks = [
            fixture.backend.check_fork(),
            queue.submit(&mut VecDeque::from([read(&file, 0)])).map(|_| ()),
            queue.wait(1, None, &mut Vec::new()).map(|_| ()),
            fixture.backend.queue(1).map(|_| ()),
            fixture.backend.lock(&path).map(|_| ()),
        ];
        drop(queue);
        drop(lock.take());
        checks.iter().all(|check| *check == Err(Error::Forked)) && NativeBackend::new().check_fork().is_ok()
    });
    assert!(refused);
    fixture.backend.check_fork().unwrap();
    let mut done = Vec::new();
    queue.as_mut().unwrap().wait(8, None, &mut done).unwrap();
    done.into_iter().for_each(assert_block);
    let held = Err(Error::Locked { path: path.clone(), holder: Holder::ThisProcess });
    assert_eq!(fixture.backend.lock(&path).map(|_| ()), held, "and the note is there, too");
    drop(lock);
    fixture.backend.lock(&path).unwrap();
}

/// The child must answer without taking a lock: a thread of the parent may hold it.
#[test]
fn contexts_and_reactors_stay_with_the_parent() {
    let fixture = Fixture::new();
    let file = fixture.file(8);
    let mut context = aio::Context::builder().slots(8).build().unwrap();
    let reactor = aio::Reactor::new(aio::Context::builder().slots(8)).unwrap();
    let reads =
        || (0..8).map(|block| Operation::read(&file, block * 4096, Buf::zeroed(4096)).with_token(block));
    let _ = context.submit(&mut reads().collect()).unwrap();
    let submissions: Vec<_> = reads().map(|read| reactor.submit(read)).collect();
    let mut context = Some(context);
    let refused = in_child(|| {
        let mut context = context.take().unwrap();
        let checks = [
            context.submit(&mut reads().collect()).map(|_| ()),
            context.wait(1, None, &mut Vec::new()).map(|_| ()),
            context.cancel(0).map(|_| ()),
            reactor.submit(reads().next().unwrap()).wait().map(|_| ()).map_err(|refused| refused.error),
        ];
        drop(context);
        reactor.shutdown();
        checks.iter().all(|check| *check == Err(Error::Forked))
    });
    assert!(refused);
    let mut done = Vec::new();
    context.as_mut().unwrap().wait(8, None, &mut done).unwrap();
    done.extend(submissions.into_iter().map(|submission| submission.wait().unwrap()));
    assert_eq!(done.len(), 16);
    for done in done {
        let number = u8::try_from(done.operation.token()).unwrap();
        assert!(done.whole().unwrap().into_buf().iter().all(|&byte| byte == number));
    }
}

/// Both wakers show in their debug output whether they are raised.
#[test]
fn a_forked_child_raises_no_waker_of_the_parent() {
    for waking in [aio::Waking::Poll, aio::Waking::Signal(libc::SIGUSR2)] {
        let mut context = aio::Context::builder().slots(1).waking(waking).build().unwrap();
        let waker = context.waker();
        let before = format!("{waker:?}");
        assert!(in_child(|| {
            waker.wake();
            format!("{waker:?}") == before
        }));
        waker.wake();
        assert_ne!(format!("{waker:?}"), before);
        assert_eq!(context.wait(1, None, &mut Vec::new()).unwrap(), Wake::Woken);
    }
}

#[test]
fn bytes_written_to_a_map_are_in_the_file() {
    let fixture = Fixture::new();
    let mut queue = fixture.backend.queue(1).unwrap();
    let path = fixture.path("ring");
    let file = aio::file::create_zeroed(&fixture.backend, &mut *queue, (&path, "ring"), 1 << 16).unwrap();
    let map = fixture.backend.map_shared(&file, 1 << 16).unwrap();
    assert_eq!((map.len_bytes(), map.is_shared()), (1 << 16, true));
    map.write(4096 - 8, b"sixteen bytes...");
    let mut back = [0; 24];
    map.read(4096 - 16, &mut back);
    assert_eq!(&back[..], b"\0\0\0\0\0\0\0\0sixteen bytes...");
    drop(map);
    fixture.backend.sync(&file).unwrap();
    let bytes = aio::file::read_exact(&mut *queue, &file, 0, 8192).unwrap();
    assert_eq!(&bytes[4096 - 8..4096 + 8], b"sixteen bytes...");
    let map = fixture.backend.map_shared(&file, 1 << 16).unwrap();
    map.read(4096 - 8, &mut back[..16]);
    assert_eq!(&back[..16], b"sixteen bytes...");
}

#[test]
fn a_map_not_of_words_is_refused() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    for len_bytes in [4, 0] {
        let error = fixture.backend.map_shared(&file, len_bytes).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::INVALID), "{len_bytes} bytes");
    }
}

#[test]
#[should_panic(expected = "offset of a whole word")]
fn a_map_is_accessed_by_words() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    fixture.backend.map_shared(&file, 4096).unwrap().write(4, &[0; 8]);
}

#[test]
fn a_probed_directory_tells_the_properties_of_its_files() {
    let fixture = Fixture::new();
    let file = fixture.file(1);
    let probe = aio::probe(fixture.dir.path()).unwrap();
    assert_eq!((probe.is_direct, probe.alignment), (file.is_direct(), file.alignment()));
    assert_ne!(probe.file_system, "unknown");
    assert_eq!(fixture.backend.list(fixture.dir.path()).unwrap(), ["file"], "nothing is left behind");
}

#[test]
fn a_file_system_in_memory_works_without_direct_io() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let fixture = Fixture { backend: NativeBackend::new(), dir };
    assert_eq!(aio::probe(Path::new("/dev/shm")).unwrap().file_system, "tmpfs");
    let file = fixture.file(4);
    assert!(!file.is_direct());
    let mut queue = fixture.backend.queue(4).unwrap();
    let mut operations: Vec<_> = (0..4).map(|block| read(&file, block)).collect();
    aio::file::run(&mut *queue, operations.drain(..)).unwrap().into_iter().for_each(assert_block);
    let sync = Operation::data_sync(&file);
    assert_eq!(aio::file::run(&mut *queue, [sync]).unwrap()[0].result, Ok(0));
    fixture.backend.sync(&file).unwrap();
    fixture.backend.lock(&fixture.path("LOCK")).unwrap();
}
