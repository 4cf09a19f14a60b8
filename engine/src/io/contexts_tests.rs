//! Many callers, few slots: no one is refused a context while another one comes back, and no more are made than allowed.

use std::sync::atomic::{AtomicUsize, Ordering};

use aio::{AioSlots, BackendLayer, QueueLayer, SimBackend};

use super::*;

/// A machine with a limit, which counts contexts.
#[derive(Clone, Debug)]
struct Machine {
    sim: SimBackend,
    slots: Option<u64>,
    /// The clock stands still, so no wait is given up.
    is_timeless: bool,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// Contexts that there may be; more are refused.
    allowed: AtomicUsize,
    live: AtomicUsize,
    most_live: AtomicUsize,
}

impl Machine {
    fn new(slots: Option<u64>, allowed: usize) -> Machine {
        let counts = Counts { allowed: allowed.into(), live: 0.into(), most_live: 0.into() };
        Machine { sim: SimBackend::new(1), slots, is_timeless: false, counts: Arc::new(counts) }
    }

    fn contexts(&self) -> Arc<Contexts> {
        Contexts::new(Arc::new(self.clone()))
    }

    fn live(&self) -> usize {
        self.counts.live.load(Ordering::SeqCst)
    }

    fn most_live(&self) -> usize {
        self.counts.most_live.load(Ordering::SeqCst)
    }
}

impl BackendLayer for Machine {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn aio_slots(&self) -> Option<AioSlots> {
        self.slots.map(|limit| AioSlots { limit, in_use: 7 })
    }

    fn park(&self, duration: Duration) {
        if self.is_timeless {
            std::thread::yield_now();
        } else {
            self.sim.park(duration);
        }
    }

    fn queue(&self, slots: usize) -> aio::Result<Box<dyn Queue>> {
        let live = self.counts.live.fetch_add(1, Ordering::SeqCst) + 1;
        if live > self.counts.allowed.load(Ordering::SeqCst) {
            self.counts.live.fetch_sub(1, Ordering::SeqCst);
            return Err(aio::Error::Slots { slots });
        }
        self.counts.most_live.fetch_max(live, Ordering::SeqCst);
        Ok(Box::new(Counted { queue: self.sim.queue(slots)?, counts: Arc::clone(&self.counts) }))
    }
}

#[derive(Debug)]
struct Counted {
    queue: Box<dyn Queue>,
    counts: Arc<Counts>,
}

impl QueueLayer for Counted {
    fn below(&self) -> &dyn Queue {
        &*self.queue
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.queue
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// So many threads lend at once, each several times.
fn crowd(contexts: &Arc<Contexts>, threads: usize) {
    let start = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn_scoped(scope, || {
                    start.wait();
                    for _ in 0..3 {
                        let lent = contexts.lend().unwrap();
                        std::thread::yield_now();
                        drop(lent);
                    }
                })
                .unwrap();
        }
    });
}

#[test]
fn a_crowd_of_readers_shares_the_contexts_of_the_bound() {
    // On a machine with few slots a sixteenth of them is for 20 contexts.
    for (limit, most) in [(None, 128), (Some(65_536), 128), (Some(640), 20), (Some(1), 1)] {
        let machine = Machine::new(limit, usize::MAX);
        let contexts = machine.contexts();
        crowd(&contexts, 1400);
        assert!(machine.most_live() <= most, "{} of {most} with {limit:?}", machine.most_live());
        let Usage { contexts: all, slots } = contexts.usage();
        assert_eq!((all, slots), (machine.live(), 2 * machine.live()));
    }
}

#[test]
fn a_machine_that_refuses_more_contexts_fails_no_reader() {
    let machine = Machine { is_timeless: true, ..Machine::new(Some(65_536), 3) };
    crowd(&machine.contexts(), 200);
    assert_eq!(machine.most_live(), 3);
}

#[test]
fn a_limit_lowered_under_an_open_store_leaves_the_idle_contexts_in_use() {
    let machine = Machine::new(Some(65_536), usize::MAX);
    let contexts = machine.contexts();
    drop((contexts.lend().unwrap(), contexts.lend().unwrap()));
    machine.counts.allowed.store(0, Ordering::SeqCst);
    crowd(&contexts, 100);
    assert_eq!(contexts.try_lend(Size::Wide).unwrap().capacity(), 1, "any idle one serves");
}

#[test]
fn without_any_context_the_shortage_is_named_with_its_numbers() {
    let machine = Machine::new(Some(65_536), 0);
    let contexts = machine.contexts();
    for lent in [contexts.lend(), contexts.lend_to_job(Size::Wide)] {
        let error = lent.unwrap_err();
        let said = error.to_string();
        assert!(error.is_shortage(), "{error:?}");
        assert!(said.contains("fs.aio-max-nr") && said.contains("7 of 65536"), "{said}");
    }
    assert_eq!(contexts.usage(), Usage::default());
}

#[test]
fn a_shortage_that_ends_in_time_is_only_a_delay() {
    let machine = Machine { is_timeless: true, ..Machine::new(None, 0) };
    let contexts = machine.contexts();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..20).map(|_| scope.spawn(|| contexts.lend().map(drop))).collect();
        machine.counts.allowed.store(1, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap().unwrap();
        }
    });
    assert_eq!(machine.live(), 1);
}

#[test]
fn contexts_that_may_be_held_for_ever_leave_half_for_the_others() {
    for (limit, most) in [(None, 64), (Some(16 * 100), 25), (Some(1), 0)] {
        let machine = Machine::new(limit, usize::MAX);
        let contexts = machine.contexts();
        let held: Vec<_> = std::iter::from_fn(|| contexts.try_lend(Size::Single)).collect();
        assert_eq!(held.len(), most, "{limit:?}");
        drop(contexts.lend().unwrap());
    }
    // Also where the machine has no more.
    let machine = Machine::new(None, 3);
    let contexts = machine.contexts();
    drop((contexts.lend().unwrap(), contexts.lend().unwrap(), contexts.lend().unwrap()));
    let held: Vec<_> = std::iter::from_fn(|| contexts.try_lend(Size::Wide)).collect();
    assert_eq!(held.len(), 2, "never the last idle one");
    drop(contexts.lend().unwrap());
}

#[test]
fn wide_contexts_count_by_their_slots() {
    let machine = Machine::new(Some(16 * 300), usize::MAX);
    let contexts = machine.contexts();
    let held: Vec<_> = std::iter::from_fn(|| contexts.try_lend(Size::Wide)).collect();
    assert_eq!((held.len(), held[0].capacity()), (2, 64));
    assert_eq!(contexts.usage(), Usage { contexts: 2, slots: 130 });
}

#[test]
fn a_job_gets_a_context_beyond_the_bound() {
    let machine = Machine::new(Some(64), usize::MAX);
    let contexts = machine.contexts();
    let reads = [contexts.try_lend(Size::Single), Some(contexts.lend().unwrap())];
    let jobs: Vec<_> = (0..3).map(|_| contexts.lend_to_job(Size::Wide).unwrap()).collect();
    assert!(jobs.iter().all(|job| job.capacity() == 64));
    drop((reads, jobs));
}

#[test]
fn a_job_that_the_machine_refuses_comes_before_the_readers() {
    let machine = Machine { is_timeless: true, ..Machine::new(None, 1) };
    let contexts = machine.contexts();
    let first = contexts.lend().unwrap();
    let job_waits = || contexts.state.lock().jobs_waiting > 0;
    std::thread::scope(|scope| {
        let job =
            scope.spawn(|| contexts.lend_to_job(Size::Single).map(|job| (job, contexts.state.lock().lent)));
        while !job_waits() {
            std::thread::yield_now();
        }
        let reader = scope.spawn(|| contexts.lend().map(drop));
        drop(first);
        let (job, lent) = job.join().unwrap().unwrap();
        assert_eq!(lent, 0, "no reader was served before");
        drop(job);
        reader.join().unwrap().unwrap();
    });
}

#[test]
fn a_trim_destroys_only_contexts_that_were_not_needed_since_the_last_one() {
    let machine = Machine::new(None, usize::MAX);
    let contexts = machine.contexts();
    let lend = |count| (0..count).map(|_| contexts.lend().unwrap()).collect::<Vec<_>>();
    drop(lend(50));
    contexts.trim();
    assert_eq!(machine.live(), 50, "all were in use since the store was opened");
    drop(lend(30));
    contexts.trim();
    assert_eq!(machine.live(), 38, "20 were not needed, of which 8 are kept");
    contexts.trim();
    contexts.trim();
    assert_eq!(machine.live(), 8);
    assert_eq!(contexts.usage(), Usage { contexts: 8, slots: 16 });
}

#[test]
fn a_close_destroys_idle_contexts_and_each_other_one_when_it_comes_back() {
    let machine = Machine::new(Some(16 * 8), usize::MAX);
    let contexts = machine.contexts();
    let lent: Vec<_> = (0..4).map(|_| contexts.lend().unwrap()).collect();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| contexts.lend().map(drop));
        while contexts.state.lock().waiting == 0 {
            std::thread::yield_now();
        }
        contexts.end();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Closed)));
    });
    assert_eq!(machine.live(), 4, "those in use work on");
    drop(lent);
    assert_eq!(machine.live(), 0);
    assert!(matches!(contexts.lend(), Err(Error::Closed)));
    assert!(matches!(contexts.lend_to_job(Size::Wide), Err(Error::Closed)));
    assert!(contexts.try_lend(Size::Single).is_none());
    assert_eq!(contexts.usage(), Usage::default());
}

#[test]
fn a_context_that_comes_back_busy_is_not_lent_again() {
    let machine = Machine::new(Some(32), usize::MAX);
    let contexts = machine.contexts();
    let path = std::path::Path::new("/file");
    let file = machine.sim.open(path, aio::OpenMode::Create).unwrap();
    let mut lent = contexts.lend().unwrap();
    let write = aio::Operation::write(&file, 0, aio::Buf::zeroed(4096));
    assert_eq!(lent.submit(&mut [write].into()), Ok(1));
    std::thread::scope(|scope| {
        // The bound is one context: the other thread needs the slots of the busy one.
        let waiting = scope.spawn(|| contexts.lend().map(|lent| lent.in_flight()));
        while contexts.state.lock().waiting == 0 {
            std::thread::yield_now();
        }
        drop(lent);
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
    });
}
