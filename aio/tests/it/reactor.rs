//! Futures of the reactor, under several executors and none.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{
    Backend, Buf, Context, Errno, Error, EventFd, NativeBackend, OpenMode, Operation, Reactor, Readiness,
    SimBackend, Submission, Waking,
};

use crate::seeds::seeds;
use crate::support::{self, BLOCK, NativeFixture, assert_block, read};

fn reactor(slots: usize) -> Reactor {
    Reactor::new(Context::builder().slots(slots)).unwrap()
}

/// Reads all blocks of a file at once, many times more than there are slots.
async fn read_all(reactor: &Reactor, file: &aio::File, blocks: u64) {
    let reads: Vec<_> = (0..blocks).map(|block| reactor.submit(read(file, block))).collect();
    for read in reads {
        assert_block(read.await.unwrap());
    }
}

#[test]
fn blocks_are_read_without_an_executor() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    let reactor = reactor(4);
    let reads: Vec<_> = (0..64).map(|block| reactor.submit(read(&file, block))).collect();
    for read in reads {
        assert_block(read.wait().unwrap());
    }
}

#[test]
fn blocks_are_read_under_tokio() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    let reactor = reactor(4);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        read_all(&reactor, &file, 64).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (reactor, file) = (reactor.clone(), file.clone());
            tasks.spawn(async move { read_all(&reactor, &file, 64).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    });
}

#[test]
fn blocks_are_read_under_smol() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    let reactor = reactor(4);
    smol::block_on(read_all(&reactor, &file, 64));
    let executor = smol::LocalExecutor::new();
    let tasks: Vec<_> = (0..10).map(|_| executor.spawn(read_all(&reactor, &file, 64))).collect();
    smol::block_on(executor.run(async {
        for task in tasks {
            task.await;
        }
    }));
}

#[test]
fn one_reactor_serves_many_threads() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    for waking in [Waking::Poll, Waking::Signal(libc::SIGRTMIN() + 1)] {
        let reactor = Reactor::new(Context::builder().slots(8).waking(waking)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|_| smol::block_on(read_all(&reactor, &file, 64))));
            }
        });
        reactor.shutdown();
    }
}

/// Threads of this process whose name is the reactor's.
fn reactor_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).filter(|name| name.trim() == "aio-reactor").count()
}

/// The only test that counts threads. It runs in a process of its own, without the reactors of the other tests.
#[test]
fn there_is_one_thread_for_all_operations() {
    const MARK: &str = "AIO_TEST_COUNT_THREADS";
    if std::env::var_os(MARK).is_none() {
        let test = "reactor::there_is_one_thread_for_all_operations";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", test]).env(MARK, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let event = EventFd::new().unwrap();
    let reactor = reactor(101);
    let polls: Vec<_> =
        (0..100).map(|_| reactor.submit(Operation::poll(&event, Readiness::READABLE))).collect();
    // A thread has its name once it runs.
    reactor.submit(Operation::poll(&event, Readiness::WRITABLE)).wait().unwrap();
    assert_eq!(reactor_threads(), 1);
    event.add();
    for poll in polls {
        assert_eq!(poll.wait().unwrap().readiness(), Readiness::READABLE);
    }
    reactor.shutdown();
    // The list of threads may lag behind.
    while reactor_threads() > 0 {
        std::thread::yield_now();
    }
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn futures_can_be_dropped_at_any_stage() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 32);
    let event = EventFd::new().unwrap();
    let reactor = reactor(4);
    let count = Arc::new(Count::default());
    let task = Waker::from(Arc::clone(&count));
    for round in 0..200 {
        let mut reads: Vec<_> = (0..32).map(|block| reactor.submit(read(&file, block))).collect();
        for read in reads.iter_mut().take(round % 32) {
            let _ = pin!(read).poll(&mut TaskContext::from_waker(&task));
        }
        if round % 2 == 0 {
            // Most have landed by then, and woken the task.
            assert_block(reactor.submit(read(&file, 30)).wait().unwrap());
        }
        drop(reads);
        // Never ready: an abandoned poll that was not cancelled would keep its slot for ever.
        drop(reactor.submit(Operation::poll(&event, Readiness::READABLE)));
        let others: Vec<Buf> = (0..32).map(|_| support::block(0xEE)).collect();
        assert_block(reactor.submit(read(&file, 31)).wait().unwrap());
        assert!(others.iter().all(|buf| buf[..] == [0xEE; BLOCK]), "nothing is written into freed memory");
    }
    reactor.shutdown();
    assert!(count.0.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_task_that_finds_no_room_is_woken() {
    let event = EventFd::new().unwrap();
    let reactor = reactor(1);
    let poll = || reactor.submit(Operation::poll(&event, Readiness::READABLE));
    let mut polls: Vec<_> = (0..8).map(|_| poll()).collect();
    let task = Waker::from(Arc::new(Count::default()));
    for poll in &mut polls {
        assert!(pin!(poll).poll(&mut TaskContext::from_waker(&task)).is_pending());
    }
    event.add();
    for poll in polls {
        assert_eq!(poll.wait().unwrap().readiness(), Readiness::READABLE);
    }
}

#[test]
fn thousands_of_reads_wait_for_a_few_slots() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    let backend = NativeBackend::new();
    let reactor = backend.reactor(4).unwrap();
    let block = |at: usize| (at % 64 * BLOCK) as u64;
    let reads: Vec<_> = (0..5000).map(|at| reactor.read(&file, block(at), BLOCK)).collect();
    for (at, read) in reads.into_iter().enumerate() {
        let buf = aio::block_on(read).unwrap().whole().unwrap().into_buf();
        assert!(buf.len() == BLOCK && buf.iter().all(|byte| usize::from(*byte) == at % 64), "read {at}");
    }
    reactor.shutdown();
    let profile = backend.profile();
    assert_eq!(profile.read().count, 5000, "they count as the backend's");
    assert!(profile.depths[3..].iter().all(|count| *count == 0), "{:?}", profile.depths);
}

#[test]
fn a_future_dropped_before_its_turn_is_never_started() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    let event = EventFd::new().unwrap();
    let backend = NativeBackend::new();
    let reactor = backend.reactor(1).unwrap();
    // Holds the only slot.
    let poll = reactor.submit(Operation::poll(&event, Readiness::READABLE));
    let mut reads: Vec<_> = (0..100).map(|_| reactor.read(&file, 0, BLOCK)).collect();
    let last = reads.pop().unwrap();
    drop(reads);
    event.add();
    poll.wait().unwrap();
    assert_block(last.wait().unwrap());
    reactor.shutdown();
    assert_eq!(backend.profile().read().count, 1);
}

/// Drops a reactor's last handle where the reactor wakes tasks.
struct Owns(std::sync::Mutex<Option<Reactor>>, std::sync::mpsc::Sender<()>);

impl Wake for Owns {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().take().unwrap().shutdown();
        self.1.send(()).unwrap();
    }
}

#[test]
fn a_waker_may_shut_the_reactor_down() {
    let event = EventFd::new().unwrap();
    let reactor = reactor(1);
    let mut poll = reactor.submit(Operation::poll(&event, Readiness::READABLE));
    let (told, tell) = std::sync::mpsc::channel();
    let task = Waker::from(Arc::new(Owns(std::sync::Mutex::new(Some(reactor)), told)));
    assert!(pin!(&mut poll).poll(&mut TaskContext::from_waker(&task)).is_pending());
    event.add();
    tell.recv().unwrap();
}

/// A waker whose call panics, without a message.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("a waker"));
    }
}

#[test]
fn a_waker_that_panics_leaves_the_other_reads_alone() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 2);
    let reactor = reactor(1);
    let event = EventFd::new().unwrap();
    let mut first = pin!(reactor.submit(Operation::poll(&event, Readiness::READABLE)));
    let task = Waker::from(Arc::new(Panics));
    assert!(first.as_mut().poll(&mut TaskContext::from_waker(&task)).is_pending());
    // There is one slot, so this read is done after that waker was called.
    let second = reactor.submit(read(&file, 1));
    event.add();
    assert_block(second.wait().unwrap());
    assert!(first.has_ended());
    let task = &mut TaskContext::from_waker(Waker::noop());
    assert!(matches!(first.as_mut().poll(task), Poll::Ready(Ok(_))));
    reactor.shutdown();
}

#[test]
fn a_refused_operation_comes_back() {
    let event = EventFd::new().unwrap();
    let reactor = reactor(2);
    let refused = reactor.submit(Operation::sync(&event).with_token(7)).wait().unwrap_err();
    assert_eq!(refused.error.errno(), Some(Errno::INVALID));
    assert_eq!(refused.operation.as_ref().map(Operation::token), Some(7));
    assert!(refused.to_string().contains("IOCB_CMD_FSYNC"), "{refused}");
}

#[test]
fn a_reactor_that_was_shut_down_refuses() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 4);
    let event = EventFd::new().unwrap();
    let reactor = reactor(2);
    let reads: Vec<_> = (0..2).map(|block| reactor.submit(read(&file, block))).collect();
    let poll = reactor.clone().submit(Operation::poll(&event, Readiness::READABLE).with_token(5));
    reactor.shutdown();
    reactor.shutdown();
    for read in reads {
        assert_block(read.wait().unwrap());
    }
    match poll.wait() {
        Ok(done) => assert_eq!((done.operation.token(), done.result), (5, Ok(0)), "cancelled"),
        Err(refused) => assert_eq!(refused.error, Error::Closed, "the list was full"),
    }
    let refused = reactor.submit(read(&file, 3)).wait().unwrap_err();
    assert_eq!((refused.operation.map(|read| read.token()), refused.error), (Some(3), Error::Closed));
    let refused = reactor.read(&file, 0, BLOCK).wait().unwrap_err();
    assert!(refused.operation.is_none(), "no buffer is made for it");
    assert_eq!(refused.error, Error::Closed);
}

#[test]
fn operations_handed_over_are_done_without_the_reactor_handle() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 4);
    let reads: Vec<_> = {
        let reactor = reactor(4);
        (0..4).map(|block| reactor.submit(read(&file, block))).collect()
    };
    for read in reads {
        assert_block(read.wait().unwrap());
    }
}

#[test]
fn a_future_is_woken_by_the_last_task_that_polled_it() {
    let event = EventFd::new().unwrap();
    let reactor = reactor(1);
    let mut poll = reactor.submit(Operation::poll(&event, Readiness::READABLE));
    let (first, last) = (Arc::new(Count::default()), Arc::new(Count::default()));
    for count in [&first, &last] {
        let task = Waker::from(Arc::clone(count));
        assert!(pin!(&mut poll).poll(&mut TaskContext::from_waker(&task)).is_pending());
    }
    event.add();
    reactor.shutdown();
    assert_eq!(first.0.load(Ordering::Relaxed), 0);
    assert_eq!(last.0.load(Ordering::Relaxed), 1);
    let task = Waker::from(first);
    let Poll::Ready(Ok(_)) = pin!(poll).poll(&mut TaskContext::from_waker(&task)) else {
        panic!("it is done");
    };
}

/// A simulated disk with a file of one block for each number.
fn simulated(seed: u64, blocks: u8) -> (SimBackend, aio::File) {
    let sim = SimBackend::new(seed);
    let mut queue = sim.queue(1).unwrap();
    let file = sim.open(Path::new("/file"), OpenMode::Create).unwrap();
    for number in 0..blocks {
        aio::file::write_all(&mut *queue, &file, u64::from(number) * BLOCK as u64, support::block(number))
            .unwrap();
    }
    (sim, file)
}

fn poll_once(read: &mut Submission, task: &Waker) -> bool {
    pin!(read).poll(&mut TaskContext::from_waker(task)).is_ready()
}

#[test]
fn without_a_thread_waiters_drive() {
    let (sim, file) = simulated(1, 64);
    let reactor = sim.reactor(4).unwrap();
    let reads: Vec<_> = (0..64).map(|block| reactor.submit(read(&file, block))).collect();
    for read in reads.into_iter().rev() {
        assert_block(read.wait().unwrap());
    }
    assert!(reactor.turn(), "it has no thread");
}

#[test]
fn a_turn_wakes_the_tasks_of_ended_operations_and_no_other() {
    for seed in seeds(50) {
        let (sim, file) = simulated(seed, 8);
        let reactor = sim.reactor(8).unwrap();
        let mut reads: Vec<_> =
            (0..8).map(|block| reactor.read(&file, block * BLOCK as u64, BLOCK)).collect();
        let counts: Vec<_> = (0..8).map(|_| Arc::new(Count::default())).collect();
        for (read, count) in reads.iter_mut().zip(&counts) {
            assert!(!poll_once(read, &Waker::from(Arc::clone(count))), "no turn was taken");
        }
        while !reads.iter().all(Submission::has_ended) {
            let before = reads.iter().filter(|read| read.has_ended()).count();
            reactor.turn();
            assert!(
                reads.iter().filter(|read| read.has_ended()).count() > before,
                "each turn ends something"
            );
            for (read, count) in reads.iter().zip(&counts) {
                assert_eq!(count.0.load(Ordering::Relaxed), usize::from(read.has_ended()));
            }
        }
        for (block, read) in reads.into_iter().enumerate() {
            let buf = read.wait().unwrap().whole().unwrap().into_buf();
            assert!(buf.iter().all(|byte| usize::from(*byte) == block));
        }
    }
}

#[test]
fn a_read_dropped_in_flight_leaves_its_buffer_to_the_disk() {
    for seed in seeds(50) {
        let (sim, file) = simulated(seed, 16);
        let reactor = sim.reactor(16).unwrap();
        let mut reads: Vec<_> = (0..8).map(|block| Some(reactor.submit(read(&file, block)))).collect();
        // Some are in flight, and some have ended.
        reactor.turn();
        for (at, read) in reads.iter_mut().enumerate() {
            if (seed >> (at % 6)) & 1 == 0 {
                *read = None;
            }
        }
        let others: Vec<_> = (8..16).map(|block| reactor.submit(read(&file, block))).collect();
        for read in reads.into_iter().flatten().chain(others) {
            assert_block(read.wait().unwrap());
        }
    }
}

#[test]
fn a_queue_that_fails_ends_everything_with_its_error() {
    let (sim, file) = simulated(3, 8);
    let reactor = sim.reactor(4).unwrap();
    let reads: Vec<_> = (0..8).map(|block| reactor.submit(read(&file, block))).collect();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Wait]));
    for (at, read) in reads.into_iter().enumerate() {
        let refused = read.wait().unwrap_err();
        assert_eq!(refused.error.errno(), Some(Errno::IO));
        assert_eq!(refused.operation.is_some(), at >= 4, "the queue keeps the operations in flight");
    }
    assert!(reactor.has_failed());
    assert_eq!(reactor.submit(read(&file, 0)).wait().unwrap_err().error.errno(), Some(Errno::IO));
    let other = sim.reactor(4).unwrap();
    assert_block(other.submit(read(&file, 0)).wait().unwrap());
}

#[test]
fn a_crash_ends_reads_that_wait_and_reads_in_flight() {
    let (sim, file) = simulated(4, 8);
    let reactor = sim.reactor(2).unwrap();
    let reads: Vec<_> = (0..8).map(|block| reactor.submit(read(&file, block))).collect();
    reactor.turn();
    sim.crash();
    let ends: Vec<_> = reads.into_iter().map(Submission::wait).collect();
    assert!(ends.iter().any(Result::is_err));
    assert!(ends.into_iter().all(|end| end.map_or_else(|refused| refused.error == Error::Crashed, |_| true)));
}

#[test]
fn a_shutdown_without_a_thread_finishes_the_operations_handed_over() {
    let (sim, file) = simulated(5, 8);
    let reactor = sim.reactor(2).unwrap();
    let reads: Vec<_> = (0..8).map(|block| reactor.submit(read(&file, block))).collect();
    reactor.shutdown();
    for read in reads {
        assert!(read.has_ended());
        assert_block(read.wait().unwrap());
    }
    assert_eq!(reactor.submit(read(&file, 0)).wait().unwrap_err().error, Error::Closed);
}
