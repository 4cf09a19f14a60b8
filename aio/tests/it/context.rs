//! Contexts on a real file system: every operation, flag and answer of the kernel.
#![expect(clippy::disallowed_methods, reason = "the test is about the machine's own clock and files")]

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aio::{
    Buf, Cancel, Completion, Context, Errno, Error, EventFd, Flags, Operation, OperationKind, Priority,
    Readiness, Reaping, Wake, Waking,
};

use crate::support::{BLOCK, FOREVER, NativeFixture, assert_block, at, block, read, start};

/// One context for each way to fetch completions and to be woken.
fn contexts(slots: usize) -> Vec<Context> {
    let of = |reaping, waking| {
        Context::builder().slots(slots).reaping(reaping).waking(waking).build().expect("slots are free")
    };
    vec![
        of(Reaping::Ring, Waking::Poll),
        of(Reaping::SystemCall, Waking::Poll),
        of(Reaping::OldSystemCall, Waking::Poll),
        of(Reaping::Ring, Waking::Signal(libc::SIGUSR2)),
        of(Reaping::SystemCall, Waking::Signal(libc::SIGUSR2)),
    ]
}

fn context() -> Context {
    Context::builder().slots(8).build().unwrap()
}

/// Runs one operation to its end.
fn run(context: &mut Context, operation: Operation) -> Completion {
    let mut done = context.run([operation]).unwrap();
    assert_eq!(done.len(), 1);
    done.remove(0)
}

/// The error with which the kernel refuses an operation.
fn refusal(context: &mut Context, operation: Operation) -> Error {
    let mut operations = VecDeque::from([operation]);
    let error = context.submit(&mut operations).expect_err("the operation is refused");
    assert_eq!((operations.len(), context.in_flight()), (1, 0), "it stays");
    error
}

#[test]
fn blocks_are_read_back_however_completions_are_fetched() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 32);
    for mut context in contexts(8) {
        for _ in 0..20 {
            let done = context.run((0..32).map(|block| read(&file, block))).unwrap();
            assert!(done.iter().map(|done| done.operation.token()).eq(0..32), "in the order of submission");
            done.into_iter().for_each(assert_block);
        }
        assert_eq!(context.profile().read().count, 20 * 32);
    }
}

#[test]
fn the_ring_is_read_unless_it_is_forbidden() {
    let reads_ring: Vec<bool> = contexts(1).iter().map(Context::reads_ring).collect();
    assert_eq!(reads_ring, [true, false, false, true, false]);
    let masked = Context::builder().slots(1).mask(aio::SignalSet::blocked()).build().unwrap();
    assert!(!masked.reads_ring(), "signals come in only in the kernel");
}

#[test]
fn polling_for_completions_needs_no_wait() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    for mut context in contexts(4) {
        for _ in 0..200 {
            start(&mut context, read(&file, 0));
            let mut done = Vec::new();
            while context.in_flight() > 0 {
                assert_eq!(context.wait(0, None, &mut done).unwrap(), Wake::Completed);
            }
            done.into_iter().for_each(assert_block);
        }
    }
}

#[test]
fn several_buffers_are_one_operation() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let mut context = context();
    let bufs = vec![block(7), block(8), Buf::from(&[9; 2 * BLOCK][..])];
    let done = run(&mut context, Operation::write_vectored(&file, at(1), bufs));
    assert_eq!((done.result, done.operation.kind()), (Ok(4 * BLOCK), OperationKind::WriteVectored));
    assert_eq!(done.operation.into_bufs().len(), 3, "they come back");
    let bufs = vec![Buf::zeroed(2 * BLOCK), Buf::zeroed(3 * BLOCK)];
    let bufs = run(&mut context, Operation::read_vectored(&file, 0, bufs)).whole().unwrap().into_bufs();
    let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.chunks(BLOCK).map(|block| block[0])).collect();
    assert_eq!(bytes, [0, 7, 8, 9, 9]);
    assert_eq!((context.profile().write().bytes, context.profile().read().bytes), (4 * 4096, 5 * 4096));
}

#[test]
fn more_buffers_than_the_kernel_takes_are_refused() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let mut context = context();
    let bufs = |count| (0..count).map(|_| Buf::zeroed(512)).collect();
    assert_eq!(run(&mut context, Operation::read_vectored(&file, 0, bufs(1024))).result, Ok(BLOCK));
    let error = refusal(&mut context, Operation::read_vectored(&file, 0, bufs(1025)));
    assert_eq!(error.errno(), Some(Errno::INVALID));
}

#[test]
fn syncs_complete() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let mut context = context();
    for operation in [Operation::sync(&file), Operation::data_sync(&file)] {
        assert_eq!(run(&mut context, operation).whole().unwrap().len_bytes(), 0);
    }
    assert_eq!(context.profile().sync().count, 2);
}

#[test]
fn a_descriptor_without_sync_is_refused_with_the_needed_feature() {
    let event = EventFd::new().unwrap();
    let error = refusal(&mut context(), Operation::data_sync(&event));
    let Error::Unsupported { call, needs, errno, .. } = &error else { panic!("{error}") };
    assert_eq!((*call, *errno), ("data sync", Errno::INVALID));
    assert!(needs.contains("IOCB_CMD_FDSYNC (Linux 4.18)"), "{needs}");
}

#[test]
fn a_poll_completes_when_its_descriptor_is_ready() {
    let event = EventFd::new().unwrap();
    for mut context in contexts(2) {
        start(&mut context, Operation::poll(&event, Readiness::READABLE).with_token(3));
        let mut done = Vec::new();
        assert_eq!(context.wait_for(1, Duration::from_millis(2), &mut done).unwrap(), Wake::TimedOut);
        event.add();
        assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Completed);
        assert_eq!((done[0].operation.token(), done[0].readiness()), (3, Readiness::READABLE));
        assert_eq!((event.take(), event.take()), (1, 0));
        let both = Readiness::READABLE.with(Readiness::WRITABLE);
        assert_eq!(run(&mut context, Operation::poll(&event, both)).readiness(), Readiness::WRITABLE);
    }
}

#[test]
fn a_pipe_is_read_when_it_has_something() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = Arc::new(reader);
    let mut context = context();
    start(&mut context, Operation::poll(Arc::clone(&reader), Readiness::READABLE));
    writer.write_all(b"words").unwrap();
    let mut done = Vec::new();
    assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Completed);
    let read = run(&mut context, Operation::read(Arc::clone(&reader), 0, Buf::zeroed(16)));
    assert_eq!(read.result, Ok(5));
    assert_eq!(&read.operation.into_buf()[..5], b"words");
    drop(writer);
    let hung_up = run(&mut context, Operation::poll(reader, Readiness::READABLE)).readiness();
    assert!(hung_up.contains(Readiness::HANG_UP), "{hung_up:?}");
}

#[test]
fn polls_can_be_cancelled_and_disk_operations_cannot() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let event = EventFd::new().unwrap();
    for mut context in contexts(8) {
        assert_eq!(context.cancel(1).unwrap(), Cancel::NotInFlight);
        start(&mut context, Operation::poll(&event, Readiness::READABLE).with_token(1));
        start(&mut context, Operation::poll(&event, Readiness::READABLE).with_token(2));
        assert_eq!(context.cancel(2).unwrap(), Cancel::Cancelled);
        let mut done = Vec::new();
        assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Completed);
        let cancelled = done.pop().unwrap();
        assert_eq!((cancelled.operation.token(), cancelled.result), (2, Ok(0)));
        assert_eq!(cancelled.readiness(), Readiness::default());
        assert_eq!((context.in_flight(), context.cancel(2).unwrap()), (1, Cancel::NotInFlight));
        event.add();
        assert_eq!(context.cancel(1).unwrap(), Cancel::AlreadyDone);
        assert_eq!(event.take(), 1);
        for operation in [read(&file, 0), Operation::write(&file, 0, block(0)), Operation::data_sync(&file)] {
            start(&mut context, operation.with_token(9));
            assert_eq!(context.cancel(9).unwrap(), Cancel::NotCancelable);
        }
        while context.in_flight() > 0 {
            context.wait_for(1, FOREVER, &mut done).unwrap();
        }
        assert!(done.into_iter().all(|done| done.result.is_ok()));
    }
}

#[test]
fn a_refused_operation_stays_at_the_front_and_the_others_go_on() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 4);
    let read_only = Arc::new(std::fs::File::options().read(true).open(file.path()).unwrap());
    for mut context in contexts(8) {
        let bad = Operation::write(Arc::clone(&read_only), at(3), block(9)).with_token(77);
        let mut operations =
            VecDeque::from([read(&file, 0), read(&file, 1), bad, read(&file, 2), read(&file, 3)]);
        assert_eq!(context.submit(&mut operations), Ok(2), "those before it");
        let error = context.submit(&mut operations).expect_err("not open for writing");
        assert_eq!((error.errno(), operations.len()), (Some(Errno(libc::EBADF)), 3));
        let refused = operations.pop_front().unwrap();
        assert_eq!(refused.token(), 77);
        assert!(refused.into_buf()[..] == [9; BLOCK], "with its buffer");
        assert_eq!(context.submit(&mut operations), Ok(2));
        let mut done = Vec::new();
        context.wait_for(4, FOREVER, &mut done).unwrap();
        done.into_iter().for_each(assert_block);
    }
}

#[test]
fn a_run_ends_at_the_first_refusal() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 2);
    let event = EventFd::new().unwrap();
    let mut context = context();
    let error = context
        .run([read(&file, 0), Operation::sync(&event), Operation::write(&file, at(1), block(9))])
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { call: "sync", .. }), "{error}");
    assert_eq!(context.in_flight(), 0);
    assert_eq!(
        run(&mut context, read(&file, 1)).operation.into_buf()[0],
        1,
        "the operation after it was not done"
    );
}

#[test]
fn flags_that_the_kernel_knows_are_obeyed() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 2);
    let mut context = context();
    for flags in [Flags::DATA_SYNC, Flags::SYNC, Flags::HIGH_PRIORITY, Flags::DATA_SYNC.with(Flags::SYNC)] {
        let done = run(&mut context, Operation::write(&file, at(1), block(1)).with_flags(flags));
        assert_eq!(done.result, Ok(BLOCK), "{flags:?}");
    }
    let durable = context.profile().write_durable().count;
    assert_eq!((durable, context.profile().write().count), (3, 1));
    let appended = Operation::write(&file, 0, block(7)).with_flags(Flags::APPEND);
    run(&mut context, appended).whole().unwrap();
    let found = context.run([read(&file, 0), read(&file, 2)]).unwrap();
    let found: Vec<u8> = found.into_iter().map(|done| done.operation.into_buf()[0]).collect();
    assert_eq!(found, [0, 7], "it went to the end and not to its offset");
}

#[test]
fn unknown_flags_are_refused_by_name() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let mut context = context();
    let flags = Flags::DATA_SYNC.with(Flags::from_bits(0x4000_0000));
    let error = refusal(&mut context, Operation::write(&file, 0, block(1)).with_flags(flags));
    assert_eq!(error.errno(), Some(Errno::NOT_SUPPORTED));
    let text = error.to_string();
    assert!(text.contains("RWF_DSYNC (Linux 4.13)") && text.contains("0x40000000"), "{text}");
    let error = refusal(&mut context, Operation::data_sync(&file).with_flags(Flags::DATA_SYNC));
    assert!(error.to_string().contains("without flags"), "{error}");
    let error = refusal(&mut context, Operation::poll(&file, Readiness::READABLE).with_flags(Flags::SYNC));
    assert!(error.to_string().contains("IOCB_CMD_POLL (Linux 5.0), without flags"), "{error}");
}

#[test]
fn a_write_that_may_not_wait_says_so() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let mut context = context();
    let mut operations =
        VecDeque::from([Operation::write(&file, at(100), block(1)).with_flags(Flags::NO_WAIT)]);
    if let Err(refused) = context.submit(&mut operations) {
        assert!(refused.to_string().contains("RWF_NOWAIT"), "{refused}");
        return;
    }
    let mut done = Vec::new();
    context.wait_for(1, FOREVER, &mut done).unwrap();
    assert_eq!(done[0].result, Err(Errno::AGAIN), "a write beyond the end needs space first");
}

#[test]
fn priorities_are_taken() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let mut context = context();
    for priority in [Priority::IDLE, Priority::best_effort(0), Priority::best_effort(7)] {
        assert_block(run(&mut context, read(&file, 0).with_priority(priority)));
    }
    let mut operations = VecDeque::from([read(&file, 0).with_priority(Priority::real_time(0))]);
    if let Err(refused) = context.submit(&mut operations) {
        assert_eq!(refused.errno(), Some(Errno(libc::EPERM)));
        assert!(refused.to_string().contains("real-time priority"), "{refused}");
    }
}

#[test]
fn completions_are_counted_by_an_eventfd() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 3);
    let event = EventFd::new().unwrap();
    let mut context = context();
    let mut operations: VecDeque<Operation> =
        (0..3).map(|block| read(&file, block).with_notification(&event)).collect();
    assert_eq!(context.submit(&mut operations), Ok(3));
    start(&mut context, read(&file, 0));
    let mut done = Vec::new();
    context.wait_for(4, FOREVER, &mut done).unwrap();
    assert_eq!(event.take(), 3, "only those that asked for it");
    done.into_iter().for_each(assert_block);
    let polled = run(&mut context, Operation::read(&file, 0, Buf::zeroed(BLOCK)).with_notification(&event));
    assert_eq!((polled.result, event.take()), (Ok(BLOCK), 1));
}

#[test]
fn slots_default_to_the_queue_of_the_device() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let dir = std::fs::File::options().read(true).open(fixture.dir.path()).unwrap();
    let context = Context::builder().device_of(&dir).build().unwrap();
    let capped = Context::builder().slots(1 << 14).device_of(&dir).build().unwrap();
    let few = Context::builder().slots(2).device_of(&dir).build().unwrap();
    let stat = rustix::fs::fstat(dir.as_fd()).unwrap();
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let device = format!("/sys/dev/block/{major}:{minor}");
    let shown = ["queue", "../queue"]
        .iter()
        .find_map(|queue| std::fs::read_to_string(format!("{device}/{queue}/nr_requests")).ok());
    match shown {
        Some(shown) => {
            let shown: usize = shown.trim().parse().unwrap();
            assert_eq!((context.capacity(), capped.capacity()), (shown, shown));
        }
        None => assert_eq!((context.capacity(), capped.capacity()), (128, 1 << 14)),
    }
    assert_eq!(few.capacity(), 2);
    drop((context, capped, few));
    assert_eq!(Context::builder().build().unwrap().capacity(), 128);
    drop(file);
}

/// The kernel rounds up, and would take more.
#[test]
fn a_context_takes_exactly_the_operations_it_was_made_for() {
    let event = EventFd::new().unwrap();
    for slots in [1, 2, 31, 32, 33, 64, 127, 128, 500] {
        let mut context = Context::builder().slots(slots).build().unwrap();
        let mut operations: VecDeque<Operation> =
            (0..slots + 3).map(|_| Operation::poll(&event, Readiness::READABLE)).collect();
        assert_eq!(context.submit(&mut operations), Ok(slots));
        assert_eq!((operations.len(), context.in_flight()), (3, slots));
        assert_eq!(context.submit(&mut operations), Ok(0), "full is not refused");
        // Dropping it cancels the polls: else this would wait for ever.
    }
}

#[test]
fn more_slots_than_the_machine_has_are_refused_with_advice() {
    let error = Context::builder().slots(1 << 28).build().unwrap_err();
    assert_eq!(error, Error::Slots { slots: 1 << 28 });
    assert!(error.to_string().contains("raise fs.aio-max-nr"), "{error}");
}

#[test]
fn dropping_a_context_waits_for_writes() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    for round in 1..6 {
        for mut context in contexts(64) {
            let mut writes: VecDeque<Operation> =
                (0..64).map(|number| Operation::write(&file, at(number), block(round))).collect();
            assert_eq!(context.submit(&mut writes), Ok(64));
            drop(context);
            let bytes = std::fs::read(file.path()).unwrap();
            assert!(bytes.len() == 64 * BLOCK && bytes.iter().all(|&byte| byte == round));
        }
    }
}

#[test]
fn forgetting_a_context_leaks_its_operations_and_harms_nothing() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 32);
    for _ in 0..8 {
        let mut context = Context::builder().slots(32).build().unwrap();
        let mut reads: VecDeque<Operation> = (0..32).map(|number| read(&file, number)).collect();
        assert_eq!(context.submit(&mut reads), Ok(32));
        std::mem::forget(context);
        // If the buffers had been freed, these would occupy memory that the kernel still writes.
        let others: Vec<Buf> = (0..64).map(|_| block(0xEE)).collect();
        let mut again = Context::builder().slots(32).build().unwrap();
        again.run((0..32).map(|number| read(&file, number))).unwrap().into_iter().for_each(assert_block);
        assert!(others.iter().all(|buf| buf[..] == [0xEE; BLOCK]));
    }
}

#[test]
fn deadlines_in_the_past_are_now() {
    let begin = Instant::now();
    for mut context in contexts(1) {
        let mut done = Vec::new();
        assert_eq!(context.wait(1, Some(begin), &mut done).unwrap(), Wake::TimedOut);
        assert_eq!(context.wait_for(1, Duration::ZERO, &mut done).unwrap(), Wake::TimedOut);
        let soon = Instant::now() + Duration::from_millis(3);
        assert_eq!(context.wait(1, Some(soon), &mut done).unwrap(), Wake::TimedOut);
        assert!(Instant::now() >= soon);
    }
}

/// An owner of a descriptor that returns another file at the second call.
struct Changing(std::fs::File, std::fs::File, std::sync::atomic::AtomicU32);

impl AsFd for Changing {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self.2.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => self.0.as_fd(),
            _ => self.1.as_fd(),
        }
    }
}

/// An operation's fields are read once, at submit: no value can change between its check and its use.
#[test]
fn a_descriptor_is_asked_for_once() {
    let fixture = NativeFixture::new();
    let (file, other) = (fixture.file("file", 2), fixture.file("other", 1));
    let open = |file: &aio::File| std::fs::File::options().read(true).open(file.path()).unwrap();
    let owner = Arc::new(Changing(open(&file), open(&other), std::sync::atomic::AtomicU32::new(0)));
    let mut context = context();
    start(&mut context, Operation::read(Arc::clone(&owner), at(1), Buf::zeroed(BLOCK)).with_token(1));
    let _ = owner.as_fd();
    let mut done = Vec::new();
    context.wait_for(1, FOREVER, &mut done).unwrap();
    assert_block(done.pop().unwrap());
}

#[test]
fn a_file_removed_after_the_submit_is_still_read() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 2);
    let mut context = context();
    start(&mut context, read(&file, 1));
    drop(file);
    std::fs::remove_file(fixture.path("file")).unwrap();
    let mut done = Vec::new();
    context.wait_for(1, FOREVER, &mut done).unwrap();
    assert_block(done.pop().unwrap());
}
