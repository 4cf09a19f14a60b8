//! More files than may be open: each read gets its own, few are open, and none after the end.

use std::collections::BTreeMap;
use std::time::Duration;

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{BackendLayer, Errno, SimBackend};

use super::*;
use crate::base::error::Error;

/// A machine that counts the opens of each path.
#[derive(Clone, Debug)]
struct Machine {
    sim: SimBackend,
    descriptors: Option<u64>,
    opens: Arc<Mutex<BTreeMap<PathBuf, usize>>>,
}

impl BackendLayer for Machine {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn descriptor_limit(&self) -> Option<u64> {
        self.descriptors
    }

    fn open(&self, path: &Path, mode: OpenMode) -> aio::Result<File> {
        *self.opens.lock().entry(path.to_owned()).or_default() += 1;
        self.sim.open(path, mode)
    }
}

/// A machine with so many files, of one sector each, and their cache.
fn machine(files: usize, descriptors: Option<u64>, most: Option<usize>) -> (Machine, Arc<OpenFiles>) {
    let machine = Machine { sim: SimBackend::new(1), descriptors, opens: Arc::default() };
    for number in 0..files {
        let file = machine.sim.open(&path(number), OpenMode::Create).unwrap();
        machine.sim.allocate(&file, 512).unwrap();
    }
    let cache = OpenFiles::new(Arc::new(machine.clone()), most);
    (machine, cache)
}

fn path(number: usize) -> PathBuf {
    PathBuf::from(format!("/{number}"))
}

fn open_all(cache: &Arc<OpenFiles>, files: usize) -> Vec<CachedFile> {
    (0..files).map(|number| cache.open_cached(&path(number)).unwrap()).collect()
}

#[test]
fn the_default_leaves_half_of_the_descriptors_and_an_option_only_lowers_it() {
    for (descriptors, option, most) in [
        (None, None, MOST_OPEN),
        (Some(1 << 20), None, MOST_OPEN),
        (Some(128), None, 64),
        (Some(128), Some(16), 16),
        (Some(128), Some(1000), 64),
        (None, Some(0), 1),
        (Some(1), None, 1),
    ] {
        assert_eq!(machine(0, descriptors, option).1.most, most, "{descriptors:?}, {option:?}");
    }
}

#[test]
fn any_order_of_reads_gets_the_right_files_and_keeps_few_open() {
    for most in [1, 2, 7, 99, 100, 101] {
        let (_, cache) = machine(100, None, Some(most));
        let mut files: Vec<_> = open_all(&cache, 100).into_iter().enumerate().collect();
        assert_eq!(cache.count(), most.min(100));
        for step in 0..1000 {
            let at = step * step % files.len();
            let (number, file) = &files[at];
            assert_eq!(file.get().unwrap().path(), path(*number));
            assert!(cache.count() <= most, "{} of {most}", cache.count());
            if step % 20 == 19 {
                drop(files.swap_remove(at));
            }
        }
        for (_, file) in &files {
            drop(file.get().unwrap());
        }
        drop(files);
        assert_eq!(cache.count(), 0, "a file is closed with its handle");
    }
}

#[test]
fn a_file_that_is_used_again_and_again_stays_open() {
    let (machine, cache) = machine(100, None, Some(8));
    let files = open_all(&cache, 100);
    files[0].get().unwrap();
    machine.opens.lock().clear();
    for file in &files[1..] {
        file.get().unwrap();
        files[0].get().unwrap();
    }
    assert_eq!(machine.opens.lock().get(&path(0)), None);
}

#[test]
fn many_threads_open_each_file_once() {
    let (machine, cache) = machine(20, None, None);
    let files = open_all(&cache, 20);
    while cache.close_one() {}
    machine.opens.lock().clear();
    let start = std::sync::Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                start.wait();
                for (number, file) in files.iter().enumerate() {
                    assert_eq!(file.get().unwrap().path(), path(number));
                }
            });
        }
    });
    assert!(machine.opens.lock().values().all(|opens| *opens == 1), "{:?}", machine.opens);
}

#[test]
fn threads_that_share_few_descriptors_all_get_their_files() {
    let (_, cache) = machine(64, None, Some(4));
    let files = open_all(&cache, 64);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (files, cache) = (&files, &cache);
            scope.spawn(move || {
                for step in 0..2000 {
                    let number = (thread * 31 + step * 7) % 64;
                    assert_eq!(files[number].get().unwrap().path(), path(number));
                    assert!(cache.count() <= 4 + 8, "one more for each thread that opens one");
                }
            });
        }
    });
    files[0].get().unwrap();
    assert_eq!((cache.count(), cache.state.lock().opening), (4, 0));
}

#[test]
fn without_descriptors_kept_files_are_closed_at_once() {
    let (machine, cache) = machine(10, None, None);
    let files = open_all(&cache, 10);
    let refused =
        FaultPlan::new(Fault::Errno(Errno::TOO_MANY_FILES)).on(&[EventKind::Open, EventKind::Create]);
    machine.sim.fail(refused.clone().times(3));
    let begun = machine.sim.now();
    let other = cache.open(Path::new("/other"), OpenMode::Create).unwrap();
    assert_eq!(cache.count(), 7);
    assert!(machine.sim.now().saturating_sub(begun) < Duration::from_millis(1), "nothing was waited for");
    // All are closed, and then it waits.
    machine.sim.fail(refused.clone().times(20));
    files[0].get().unwrap();
    drop(other);
    machine.sim.fail(refused.forever());
    let error = files.iter().find_map(|file| file.get().err()).unwrap();
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    machine.sim.clear_faults();
    assert!(files.iter().all(|file| file.get().is_ok()));
}

#[test]
fn a_file_in_use_outlives_its_closing_and_none_is_open_after_the_end() {
    let (machine, cache) = machine(10, None, Some(2));
    let files = open_all(&cache, 10);
    let in_use = files[0].get().unwrap();
    files[1..].iter().for_each(|file| drop(file.get().unwrap()));
    assert_eq!(machine.sim.size_bytes(&in_use), Ok(512));
    cache.end();
    // A file without a name takes space as long as it is open.
    (0..10).for_each(|number| machine.sim.remove(&path(number)).unwrap());
    assert_eq!(machine.sim.used_bytes(), 512, "the one in use");
    drop(in_use);
    assert_eq!(machine.sim.used_bytes(), 0);
    assert!(files.iter().all(|file| matches!(file.get(), Err(Error::Closed))));
    assert!(matches!(cache.open_cached(&path(0)), Err(aio::Error::Closed)));
}
