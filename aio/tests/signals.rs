//! Signals and wake-ups: none is lost in any order of arrival.
//!
//! Each test uses a signal of its own, since handlers belong to the process and tests run side by side.
#![expect(unsafe_code, reason = "signal handlers")]
#![expect(clippy::unwrap_used, reason = "test helpers")]
#![expect(clippy::disallowed_methods, reason = "the test is about the machine's own clock")]

#[path = "it/support.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use aio::{Cancel, Context, Errno, Error, EventFd, Operation, Readiness, Reaping, SignalSet, Wake, Waking};
use support::{FOREVER, NativeFixture, assert_block, read, start};

/// How often each handler ran, by signal.
static HANDLED: [AtomicU32; 65] = [const { AtomicU32::new(0) }; 65];

extern "C" fn count(signal: libc::c_int) {
    HANDLED[usize::try_from(signal).unwrap_or(0)].fetch_add(1, Ordering::Relaxed);
}

fn handled(signal: i32) -> u32 {
    HANDLED[usize::try_from(signal).unwrap()].load(Ordering::Relaxed)
}

/// Installs the counting handler.
fn handle(signal: i32, flags: libc::c_int) {
    set_action(signal, count as extern "C" fn(libc::c_int) as usize, flags);
}

fn set_action(signal: i32, handler: usize, flags: libc::c_int) {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handler lives as long as the program and only adds to an atomic, or is a constant of the system.
    let answer = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(answer, 0);
}

fn action_of(signal: i32) -> usize {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks.
    let answer = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    assert_eq!(answer, 0);
    action.sa_sigaction
}

fn send(thread: libc::pthread_t, signal: i32) {
    // SAFETY: every caller keeps the thread alive meanwhile, and the signal has a handler.
    let answer = unsafe { libc::pthread_kill(thread, signal) };
    assert_eq!(answer, 0);
}

fn this_thread() -> libc::pthread_t {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::pthread_self() }
}

fn context(reaping: Reaping, waking: Waking) -> Context {
    Context::builder().slots(8).reaping(reaping).waking(waking).build().unwrap()
}

/// An application notifies its loop by a signal. The signal arrives after the loop's check and before its sleep, here
/// in every round. `io_getevents` sleeps to its deadline; `io_pgetevents`, with the signal blocked outside the wait,
/// returns at once.
#[test]
fn io_getevents_loses_a_wake_up_that_io_pgetevents_does_not() {
    const ROUNDS: u32 = 50;
    let signal = libc::SIGUSR1;
    handle(signal, 0);
    let nap = Duration::from_millis(4);
    let mut done = Vec::new();

    let mut old = context(Reaping::OldSystemCall, Waking::Poll);
    for round in 0..ROUNDS {
        let begin = Instant::now();
        assert_eq!(handled(signal), round, "the loop looks: nothing yet");
        send(this_thread(), signal);
        assert_eq!(old.wait_for(1, nap, &mut done).unwrap(), Wake::TimedOut, "slept although a signal came");
        assert!(begin.elapsed() >= nap);
        assert_eq!(handled(signal), round + 1);
    }

    SignalSet::none().with(signal).block();
    let mask = SignalSet::blocked().without(signal);
    let mut new = Context::builder().slots(8).mask(mask).build().unwrap();
    for round in ROUNDS..2 * ROUNDS {
        assert_eq!(handled(signal), round, "the loop looks: nothing yet");
        send(this_thread(), signal);
        assert_eq!(handled(signal), round, "blocked outside the wait");
        assert_eq!(new.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Interrupted);
        assert_eq!(handled(signal), round + 1);
    }
}

/// Every message is answered before its sender continues, so the loss of a single wake-up stops the exchange.
fn ping_pong(mut context: Context, messages_each: usize) {
    const SENDERS: usize = 3;
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let (sender, messages) = mpsc::channel::<mpsc::Sender<()>>();
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            let (sender, waker) = (sender.clone(), context.waker());
            scope.spawn(move || {
                let (answer, answered) = mpsc::channel();
                for _ in 0..messages_each {
                    sender.send(answer.clone()).unwrap();
                    waker.wake();
                    answered.recv_timeout(FOREVER).expect("an answer");
                }
            });
        }
        let mut done = Vec::new();
        let mut received = 0;
        while received < SENDERS * messages_each {
            if received % 3 == 0 && context.in_flight() == 0 {
                start(&mut context, read(&file, 0));
            }
            let wake = context.wait_for(1, FOREVER, &mut done).unwrap();
            assert_ne!(wake, Wake::TimedOut, "after {received} messages");
            for answer in messages.try_iter() {
                answer.send(()).unwrap();
                received += 1;
            }
        }
        while context.in_flight() > 0 {
            context.wait_for(1, FOREVER, &mut done).unwrap();
        }
        done.into_iter().for_each(assert_block);
    });
}

#[test]
fn both_wakers_lose_nothing() {
    let signal = libc::SIGRTMIN() + 1;
    for reaping in [Reaping::Ring, Reaping::SystemCall] {
        ping_pong(context(reaping, Waking::Poll), 2000);
        std::thread::scope(|scope| {
            scope.spawn(|| ping_pong(context(reaping, Waking::Signal(signal)), 2000));
        });
    }
    ping_pong(context(Reaping::OldSystemCall, Waking::Poll), 1000);
}

#[test]
fn a_signal_that_wakes_is_seen_by_its_waiter_only() {
    let signal = libc::SIGRTMIN() + 2;
    handle(signal, 0);
    let mut context = context(Reaping::Ring, Waking::Signal(signal));
    let waker = context.waker();
    let mut done = Vec::new();
    for _ in 0..200 {
        let before = handled(signal);
        waker.wake();
        waker.wake();
        assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Woken);
        assert_eq!(handled(signal), before, "a wake before the wait needs no signal");
        assert_eq!(context.wait_for(1, Duration::ZERO, &mut done).unwrap(), Wake::TimedOut, "two are one");
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Woken);
        });
        assert!(SignalSet::blocked().contains(signal), "blocked outside the wait");
        assert_eq!(context.wait_for(1, Duration::ZERO, &mut done).unwrap(), Wake::TimedOut);
    }
}

#[test]
fn a_signal_that_cannot_wake_is_refused() {
    let ignored = libc::SIGRTMIN() + 3;
    set_action(ignored, libc::SIG_IGN, 0);
    let builder = Context::builder().slots(1);
    for signal in [ignored, libc::SIGKILL, 0, 1000, -1] {
        let error = builder.clone().waking(Waking::Signal(signal)).build().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::INVALID), "{signal}: {error}");
    }
    let signal = libc::SIGRTMIN() + 4;
    let old = builder.clone().reaping(Reaping::OldSystemCall).waking(Waking::Signal(signal));
    let error = old.build().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("io_pgetevents (Linux 4.18)"), "{error}");
}

#[test]
fn a_handler_of_the_application_stays_in_place() {
    let signal = libc::SIGRTMIN() + 5;
    handle(signal, libc::SA_RESTART);
    let before = action_of(signal);
    drop(context(Reaping::Ring, Waking::Signal(signal)));
    assert_eq!(action_of(signal), before);
    let other = libc::SIGRTMIN() + 6;
    assert_eq!(action_of(other), libc::SIG_DFL);
    drop(context(Reaping::Ring, Waking::Signal(other)));
    assert_ne!(action_of(other), libc::SIG_DFL, "it would kill the process");
}

/// The most signals of a storm that are pending at once.
const MOST_PENDING: u32 = 64;

/// The waiting thread gets many signals while it reads blocks and is woken by another thread.
fn storm(mut context: Context, signal: i32) {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 8);
    let is_over = AtomicBool::new(false);
    let waker = context.waker();
    let (sender, woken) = mpsc::channel::<()>();
    let (target, before) = (this_thread(), handled(signal));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = before;
            while !is_over.load(Ordering::Relaxed) {
                // Real-time signals queue up: with too many of them the thread would run only their handler.
                if sent - handled(signal) < MOST_PENDING {
                    send(target, signal);
                    sent += 1;
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            let sender = sender;
            while !is_over.load(Ordering::Relaxed) {
                waker.wake();
                if sender.send(()).is_err() {
                    break;
                }
                std::thread::yield_now();
            }
        });
        let mut done = Vec::new();
        let mut ends = [0_u32; 3];
        for _ in 0..400 {
            let mut reads: VecDeque<Operation> = (0..8).map(|block| read(&file, block)).collect();
            while !reads.is_empty() || context.in_flight() > 0 {
                context.submit(&mut reads).unwrap();
                match context.wait_for(context.in_flight().max(1), FOREVER, &mut done).unwrap() {
                    Wake::Completed => ends[0] += 1,
                    Wake::Woken => ends[1] += 1,
                    Wake::Interrupted => ends[2] += 1,
                    Wake::TimedOut => panic!("{ends:?}, {} in flight", context.in_flight()),
                }
            }
            assert_eq!(done.len(), 8, "none lost, none doubled");
            done.drain(..).for_each(assert_block);
        }
        while handled(signal) < before + 100 || ends[1] == 0 {
            match context.wait_for(1, FOREVER, &mut done).unwrap() {
                Wake::Woken => ends[1] += 1,
                wake => assert_eq!(wake, Wake::Interrupted),
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(woken.try_iter().count() > 0);
    });
}

#[test]
fn a_storm_of_signals_loses_nothing() {
    let signal = libc::SIGRTMIN() + 7;
    let waking_signal = libc::SIGRTMIN() + 8;
    for flags in [0, libc::SA_RESTART] {
        handle(signal, flags);
        for reaping in [Reaping::Ring, Reaping::SystemCall, Reaping::OldSystemCall] {
            storm(context(reaping, Waking::Poll), signal);
        }
        storm(context(Reaping::Ring, Waking::Signal(waking_signal)), signal);
        let all_in = SignalSet::blocked();
        storm(Context::builder().slots(8).mask(all_in).build().unwrap(), signal);
    }
}

#[test]
fn an_interrupt_of_the_application_runs_its_handler_and_ends_the_wait() {
    for flags in [0, libc::SA_RESTART] {
        handle(libc::SIGINT, flags);
        for reaping in [Reaping::Ring, Reaping::SystemCall, Reaping::OldSystemCall] {
            let mut context = context(reaping, Waking::Poll);
            let event = EventFd::new().unwrap();
            start(&mut context, Operation::poll(&event, Readiness::READABLE));
            let before = handled(libc::SIGINT);
            let (thread, is_over) = (this_thread(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // A signal before the wait does not end it, so signals are sent until one has interrupted the
                    // sleep.
                    while !is_over.load(Ordering::Relaxed) {
                        send(thread, libc::SIGINT);
                        std::thread::yield_now();
                    }
                });
                let mut done = Vec::new();
                assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Interrupted);
                is_over.store(true, Ordering::Relaxed);
                assert!(done.is_empty());
            });
            assert!(handled(libc::SIGINT) > before);
            assert_eq!(context.cancel(0).unwrap(), Cancel::Cancelled, "the poll is still there");
        }
    }
}

static FROM_HANDLER: std::sync::OnceLock<EventFd> = std::sync::OnceLock::new();

extern "C" fn add_to_event(_signal: libc::c_int) {
    if let Some(event) = FROM_HANDLER.get() {
        event.add();
    }
}

/// The third way, for signals that may arrive on any thread: the handler adds to an eventfd that the loop polls.
#[test]
fn a_handler_can_wake_through_an_eventfd() {
    let signal = libc::SIGRTMIN() + 9;
    let event = FROM_HANDLER.get_or_init(|| EventFd::new().unwrap());
    set_action(signal, add_to_event as extern "C" fn(libc::c_int) as usize, libc::SA_RESTART);
    let mut context = context(Reaping::Ring, Waking::Poll);
    let mut done = Vec::new();
    for _ in 0..100 {
        start(&mut context, Operation::poll(event, Readiness::READABLE));
        send(this_thread(), signal);
        assert_eq!(context.wait_for(1, FOREVER, &mut done).unwrap(), Wake::Completed);
        assert_eq!(event.take(), 1);
    }
}
