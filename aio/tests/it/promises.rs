//! The promises of every backend, as functions over a fixture: one suite for simulated, real and newly made disks.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use aio::{
    Backend, Buf, Completion, Errno, Error, File, Holder, OpenMode, Operation, Queue, Stat, Wake, file,
};

/// Aligned on every device: the tests count in these.
const BLOCK: usize = 4096;

/// `EBADF`: a write to a file that was opened for reading.
const NOT_OPEN_FOR_THAT: Errno = Errno(9);

/// A backend, and a directory of its own to work in.
pub(crate) struct BackendFixture<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) dir: PathBuf,
}

impl BackendFixture<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn create(&self, name: &str) -> File {
        self.backend.open(&self.path(name), OpenMode::Create).unwrap()
    }

    /// A file whose blocks are filled with 1, 2, 3, ...
    fn numbered(&self, name: &str, blocks: u8) -> File {
        let f = self.create(name);
        let mut queue = self.queue(1);
        for number in 0..blocks {
            file::write_all(&mut *queue, &f, at(number.into()), block(number + 1)).unwrap();
        }
        f
    }

    fn queue(&self, slots: usize) -> Box<dyn Queue> {
        self.backend.queue(slots).unwrap()
    }

    fn first_bytes(&self, name: &str) -> Vec<u8> {
        let f = self.backend.open(&self.path(name), OpenMode::Read).unwrap();
        let len = usize::try_from(self.backend.size_bytes(&f).unwrap()).unwrap();
        let buf = file::read_exact(&mut *self.queue(1), &f, 0, len).unwrap();
        buf.chunks(BLOCK).map(|block| block[0]).collect()
    }
}

thread_local! {
    /// Set while this thread runs a call that must panic.
    static PANIC_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a call panics. The message of an expected panic is not printed, all others are: the mounts run without the
/// harness that captures the output of tests that pass.
fn panics(call: impl FnOnce()) -> bool {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !PANIC_EXPECTED.get() {
                print(info);
            }
        }));
    });
    PANIC_EXPECTED.set(true);
    let panicked = panic::catch_unwind(AssertUnwindSafe(call)).is_err();
    PANIC_EXPECTED.set(false);
    panicked
}

/// Offset of a block.
fn at(block: u64) -> u64 {
    block * BLOCK as u64
}

fn block(byte: u8) -> Buf {
    Buf::from(&[byte; BLOCK][..])
}

fn read(f: &File, block: u64) -> Operation {
    Operation::read(f, at(block), Buf::zeroed(BLOCK))
}

fn numbered(operations: impl IntoIterator<Item = Operation>) -> VecDeque<Operation> {
    operations.into_iter().zip(0..).map(|(operation, token)| operation.with_token(token)).collect()
}

fn run(queue: &mut dyn Queue, operation: Operation) -> Completion {
    file::run(queue, [operation]).unwrap().pop().unwrap()
}

fn errno<T>(result: aio::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.errno())
}

pub(crate) fn opening_needs_the_name_to_be_there_or_not(fixture: &BackendFixture<'_>) {
    let (backend, path) = (fixture.backend, fixture.path("f"));
    for mode in [OpenMode::Read, OpenMode::Write] {
        assert_eq!(errno(backend.open(&path, mode)), Some(Errno::NOT_FOUND));
    }
    let f = backend.open(&path, OpenMode::Create).unwrap();
    assert_eq!(errno(backend.open(&path, OpenMode::Create)), Some(Errno::EXISTS));
    assert_eq!(errno(backend.open(&fixture.path("no/f"), OpenMode::Create)), Some(Errno::NOT_FOUND));
    assert_eq!((f.path(), backend.size_bytes(&f).unwrap()), (&*path, 0));
    let alignment = f.alignment();
    assert!(alignment.offset_bytes.is_power_of_two() && alignment.memory_bytes.is_power_of_two());
    assert!(alignment.memory_bytes <= Buf::ALIGN && alignment.offset_bytes <= BLOCK);
    let mut queue = fixture.queue(1);
    let readable = backend.open(&path, OpenMode::Read).unwrap();
    let mut writer = numbered([Operation::write(&readable, 0, block(1))]);
    assert_eq!(errno(queue.submit(&mut writer)), Some(NOT_OPEN_FOR_THAT));
    assert_eq!((writer.len(), queue.in_flight()), (1, 0), "the refused operation stays");
}

pub(crate) fn written_bytes_are_read_back(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 4);
    let mut queue = fixture.queue(4);
    let buf = block(9);
    file::write_all(&mut *queue, &f, at(2), buf).unwrap();
    let durable = Operation::write_durable(&f, at(4), block(8));
    assert_eq!(run(&mut *queue, durable).whole().unwrap().len_bytes(), BLOCK);
    let all = file::read_exact(&mut *queue, &f, 0, 5 * BLOCK).unwrap();
    assert!(all.chunks(BLOCK).zip([1, 2, 9, 4, 8]).all(|(block, byte)| *block == [byte; BLOCK]));
    assert_eq!(run(&mut *queue, Operation::data_sync(&f)).result, Ok(0));
    fixture.backend.sync(&f).unwrap();
    fixture.backend.sync_dir(&fixture.dir).unwrap();
    assert_eq!(fixture.first_bytes("f"), [1, 2, 9, 4, 8]);
}

pub(crate) fn reads_are_short_at_the_end(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 1);
    let mut queue = fixture.queue(1);
    let two = Operation::read(&f, 0, Buf::zeroed(2 * BLOCK));
    let completion = run(&mut *queue, two);
    assert_eq!(completion.result, Ok(BLOCK));
    assert!(matches!(completion.whole(), Err(Error::Short { expected: 8192, found: 4096, .. })));
    assert_eq!(run(&mut *queue, read(&f, 1)).result, Ok(0), "nothing behind the end");
    fixture.backend.truncate(&f, 100).unwrap();
    assert_eq!(run(&mut *queue, read(&f, 0)).result, Ok(100));
    fixture.backend.truncate(&f, BLOCK as u64).unwrap();
    let buf = file::read_exact(&mut *queue, &f, 0, BLOCK).unwrap();
    assert_eq!(buf[..], [[1; 100].as_slice(), &[0; BLOCK - 100]].concat(), "the cut part reads as zeros");
}

pub(crate) fn misaligned_operations_complete_as_invalid(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 2);
    if !f.is_direct() {
        return;
    }
    let mut queue = fixture.queue(4);
    let operations = [
        Operation::read(&f, 1, Buf::zeroed(BLOCK)),
        Operation::read(&f, 0, Buf::zeroed(100)),
        Operation::write(&f, 10, block(9)),
    ];
    for completion in file::run(&mut *queue, numbered(operations)).unwrap() {
        assert_eq!(completion.result, Err(Errno::INVALID), "{:?}", completion.operation);
        assert!(matches!(completion.whole(), Err(Error::Os { .. })));
    }
    assert_eq!(fixture.first_bytes("f"), [1, 2]);
}

pub(crate) fn batches_larger_than_the_queue_wait_their_turn(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 20);
    let mut queue = fixture.queue(3);
    assert_eq!((queue.capacity(), queue.in_flight()), (3, 0));
    let mut waiting = numbered((0..20).map(|block| read(&f, block)));
    let mut done = Vec::new();
    while done.len() < 20 {
        let before = waiting.len();
        let taken = queue.submit(&mut waiting).unwrap();
        assert_eq!(before - taken, waiting.len());
        assert!(queue.in_flight() <= 3);
        if queue.in_flight() == 3 {
            assert_eq!(queue.submit(&mut waiting).unwrap(), 0, "no slot is free");
        }
        assert_eq!(queue.wait(1, None, &mut done).unwrap(), Wake::Completed);
    }
    assert_eq!(queue.submit(&mut VecDeque::new()).unwrap(), 0);
    let tokens: BTreeSet<u64> = done.iter().map(|completion| completion.operation.token()).collect();
    assert_eq!(tokens, (0..20).collect());
    for completion in done {
        let number = u8::try_from(completion.operation.token()).unwrap() + 1;
        assert_eq!(completion.whole().unwrap().into_buf()[..], [number; BLOCK], "each with its own buffer");
    }
}

pub(crate) fn a_wait_for_nothing_returns_at_once(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 1);
    let mut queue = fixture.queue(2);
    let mut done = Vec::new();
    assert_eq!(queue.wait(0, None, &mut done).unwrap(), Wake::Completed);
    queue.submit(&mut numbered([read(&f, 0)])).unwrap();
    // Without waiting: the operation may have completed, and after some calls it has.
    while queue.in_flight() > 0 {
        assert_eq!(queue.wait(0, None, &mut done).unwrap(), Wake::Completed);
    }
    assert_eq!(done.len(), 1);
}

pub(crate) fn a_wake_that_comes_first_ends_the_next_wait(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 1);
    let mut queue = fixture.queue(2);
    let waker = queue.waker();
    let mut done = Vec::new();
    waker.wake();
    waker.wake();
    assert_eq!(queue.wait(1, None, &mut done).unwrap(), Wake::Woken);
    let soon = fixture.backend.now() + Duration::from_millis(5);
    assert_eq!(queue.wait(1, Some(soon), &mut done).unwrap(), Wake::TimedOut, "two wakes are one");
    queue.submit(&mut numbered([read(&f, 0)])).unwrap();
    waker.wake();
    let mut returns = Vec::new();
    while done.is_empty() || returns.len() < 2 && !returns.contains(&Wake::Woken) {
        let far = fixture.backend.now() + Duration::from_mins(1);
        returns.push(queue.wait(1, Some(far), &mut done).unwrap());
    }
    assert_eq!(returns.iter().filter(|wake| **wake == Wake::Woken).count(), 1, "neither lost nor doubled");
}

pub(crate) fn deadlines_pass(fixture: &BackendFixture<'_>) {
    let mut queue = fixture.queue(1);
    let begin = fixture.backend.now();
    let deadline = begin + Duration::from_millis(10);
    assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()).unwrap(), Wake::TimedOut);
    assert!(fixture.backend.now() >= deadline);
    assert_eq!(queue.wait(1, Some(begin), &mut Vec::new()).unwrap(), Wake::TimedOut, "long past");
    let f = fixture.numbered("f", 1);
    queue.submit(&mut numbered([read(&f, 0)])).unwrap();
    let mut done = Vec::new();
    let deadline = fixture.backend.now() + Duration::from_millis(10);
    let wake = queue.wait(2, Some(deadline), &mut done).unwrap();
    assert_eq!((wake, done.len()), (Wake::TimedOut, 1), "completed operations are reaped in any case");
}

pub(crate) fn sizes_change_as_asked(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 1);
    let backend = fixture.backend;
    backend.allocate(&f, at(3)).unwrap();
    assert_eq!(backend.size_bytes(&f).unwrap(), at(3));
    assert_eq!(fixture.first_bytes("f"), [1, 0, 0]);
    backend.allocate(&f, at(2)).unwrap();
    assert_eq!(backend.size_bytes(&f).unwrap(), at(3), "allocating never shrinks");
    backend.truncate(&f, at(1)).unwrap();
    assert_eq!(fixture.first_bytes("f"), [1]);
    backend.truncate(&f, 0).unwrap();
    backend.truncate(&f, at(2)).unwrap();
    assert_eq!(fixture.first_bytes("f"), [0, 0], "truncating grows too");
    let zeroed =
        file::create_zeroed(backend, &mut *fixture.queue(1), (&fixture.path("z"), "z"), at(3)).unwrap();
    assert_eq!(backend.size_bytes(&zeroed).unwrap(), at(3));
    assert_eq!(fixture.first_bytes("z"), [0, 0, 0]);
    let g = fixture.numbered("g", 3);
    let expected: &[u8] = if backend.zero_range(&g, at(1)..at(2)).unwrap() { &[1, 0, 3] } else { &[1, 2, 3] };
    assert_eq!(fixture.first_bytes("g"), expected, "a refusal changes nothing here");
}

pub(crate) fn links_share_and_removal_spares_open_files(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 1);
    let backend = fixture.backend;
    backend.link(&fixture.path("f"), &fixture.path("g")).unwrap();
    assert_eq!(errno(backend.link(&fixture.path("f"), &fixture.path("g"))), Some(Errno::EXISTS));
    assert_eq!(errno(backend.link(&fixture.path("no"), &fixture.path("h"))), Some(Errno::NOT_FOUND));
    let mut queue = fixture.queue(1);
    file::write_all(&mut *queue, &f, 0, block(5)).unwrap();
    backend.remove(&fixture.path("f")).unwrap();
    assert_eq!(errno(backend.remove(&fixture.path("f"))), Some(Errno::NOT_FOUND));
    assert_eq!(fixture.first_bytes("g"), [5]);
    backend.remove(&fixture.path("g")).unwrap();
    backend.sync_dir(&fixture.dir).unwrap();
    assert!(backend.list(&fixture.dir).unwrap().is_empty());
    assert_eq!(file::read_exact(&mut *queue, &f, 0, BLOCK).unwrap()[..], [5; BLOCK]);
}

pub(crate) fn directories_list_their_names_sorted(fixture: &BackendFixture<'_>) {
    let backend = fixture.backend;
    for name in ["b", "a", "10", "9", "B"] {
        drop(fixture.create(name));
    }
    backend.make_dir(&fixture.path("c")).unwrap();
    assert_eq!(errno(backend.make_dir(&fixture.path("c"))), Some(Errno::EXISTS));
    assert_eq!(errno(backend.make_dir(&fixture.path("no/c"))), Some(Errno::NOT_FOUND));
    assert_eq!(backend.list(&fixture.dir).unwrap(), ["10", "9", "B", "a", "b", "c"]);
    assert_eq!(errno(backend.list(&fixture.path("no"))), Some(Errno::NOT_FOUND));
    assert_eq!(errno(backend.sync_dir(&fixture.path("no"))), Some(Errno::NOT_FOUND));
    assert!(backend.list(&fixture.path("c")).unwrap().is_empty());
}

pub(crate) fn stat_tells_the_entry_at_a_path(fixture: &BackendFixture<'_>) {
    let _f = fixture.numbered("f", 2);
    let backend = fixture.backend;
    let file = Stat { size_bytes: at(2), is_dir: false, is_file: true };
    let dir = Stat { size_bytes: 0, is_dir: true, is_file: false };
    assert_eq!(backend.stat(&fixture.path("f")).unwrap(), Some(file));
    assert_eq!(backend.stat(&fixture.dir).unwrap(), Some(dir));
    for absent in ["no", "no/no", "f/no"] {
        assert_eq!(backend.stat(&fixture.path(absent)).unwrap(), None, "{absent}");
    }
}

pub(crate) fn a_lock_has_one_holder(fixture: &BackendFixture<'_>) {
    let (backend, path) = (fixture.backend, fixture.path("LOCK"));
    let lock = backend.lock(&path).unwrap();
    let expected = Error::Locked { path: path.clone(), holder: Holder::ThisProcess };
    assert_eq!(backend.lock(&path).unwrap_err(), expected);
    let other = backend.lock(&fixture.path("OTHER")).unwrap();
    drop(lock);
    drop(backend.lock(&path).unwrap());
    drop(other);
    assert_eq!(backend.list(&fixture.dir).unwrap(), ["LOCK", "OTHER"]);
}

pub(crate) fn a_map_and_its_file_show_the_same_bytes(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 2);
    let backend = fixture.backend;
    backend.sync(&f).unwrap();
    let map = backend.map_shared(&f, 2 * BLOCK).unwrap();
    assert_eq!(map.len_bytes(), 2 * BLOCK);
    map.write(BLOCK - 8, &[7; 16]);
    let mut around = [0; 32];
    map.read(BLOCK - 16, &mut around);
    if map.is_shared() {
        assert_eq!(around, *[[1; 8], [7; 8], [7; 8], [2; 8]].as_flattened());
        let mut queue = fixture.queue(1);
        let buf = file::read_exact(&mut *queue, &f, 0, 2 * BLOCK).unwrap();
        assert_eq!(buf[BLOCK - 16..BLOCK + 16], around);
        file::write_all(&mut *queue, &f, at(1), block(9)).unwrap();
        map.read(BLOCK - 16, &mut around);
        assert_eq!(around, *[[1; 8], [7; 8], [9; 8], [9; 8]].as_flattened());
    } else {
        assert_eq!(around[8..24], [7; 16]);
    }
    backend.sync(&f).unwrap();
}

pub(crate) fn a_map_grows_with_its_file(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 2);
    let backend = fixture.backend;
    let map = backend.map_shared(&f, 4 * BLOCK).unwrap();
    assert_eq!(map.len_bytes(), 2 * BLOCK, "the length of the file");
    let mut queue = fixture.queue(1);
    for (blocks, seen) in [(3, 3), (6, 4)] {
        file::write_all(&mut *queue, &f, at(blocks - 1), block(9)).unwrap();
        map.extend().unwrap();
        assert_eq!(map.len_bytes(), seen * BLOCK);
    }
    let mut end = [0; 16];
    map.read(3 * BLOCK - 8, &mut end);
    assert_eq!(end, *[[9; 8], [0; 8]].as_flattened());
    map.write(4 * BLOCK - 8, &[5; 8]);
    if map.is_shared() {
        let buf = file::read_exact(&mut *queue, &f, 3 * BLOCK as u64, BLOCK).unwrap();
        assert_eq!(buf[BLOCK - 8..], [5; 8]);
    }
    assert!(panics(|| map.write(4 * BLOCK, &[5; 8])), "a write behind its end must be refused");
    backend.sync(&f).unwrap();
}

pub(crate) fn dropping_a_queue_waits_for_operations_in_flight(fixture: &BackendFixture<'_>) {
    let f = fixture.numbered("f", 8);
    for round in 10..20 {
        let mut queue = fixture.queue(8);
        let writes = (0..8).map(|block| Operation::write(&f, at(block), Buf::from(&[round; BLOCK][..])));
        let mut waiting = numbered(writes);
        while !waiting.is_empty() {
            queue.submit(&mut waiting).unwrap();
        }
        drop(queue);
        assert_eq!(fixture.first_bytes("f"), [round; 8]);
    }
}

pub(crate) fn everything_is_counted(fixture: &BackendFixture<'_>) {
    let before = fixture.backend.profile();
    let f = fixture.numbered("f", 3);
    let mut queue = fixture.queue(4);
    file::run(&mut *queue, numbered([read(&f, 0), read(&f, 2), read(&f, 3)])).unwrap();
    fixture.backend.sync(&f).unwrap();
    let after = fixture.backend.profile();
    assert_eq!(after.write().count - before.write().count, 3);
    assert_eq!(after.write().bytes - before.write().bytes, at(3));
    assert_eq!(
        (after.read().count - before.read().count, after.read().bytes - before.read().bytes),
        (3, at(2))
    );
    assert_eq!((after.sync().count - before.sync().count, after.sync().errors), (1, 0));
    let batches = after.submit_calls - before.submit_calls;
    assert!((4..=6).contains(&batches), "{batches} submits");
}

pub(crate) fn time_passes_and_numbers_differ(fixture: &BackendFixture<'_>) {
    let backend = fixture.backend;
    let begin = backend.now();
    backend.park(Duration::from_millis(1));
    assert!(backend.now() >= begin, "parking may end early, time does not go back");
    let numbers: BTreeSet<u64> = (0..100).map(|_| backend.random()).collect();
    assert_eq!(numbers.len(), 100);
    backend.check_fork().unwrap();
}

/// Gives the names of all promises to a macro.
macro_rules! with_promises {
    ($then:ident) => {
        $then! {
            opening_needs_the_name_to_be_there_or_not
            written_bytes_are_read_back
            reads_are_short_at_the_end
            misaligned_operations_complete_as_invalid
            batches_larger_than_the_queue_wait_their_turn
            a_wait_for_nothing_returns_at_once
            a_wake_that_comes_first_ends_the_next_wait
            deadlines_pass
            sizes_change_as_asked
            links_share_and_removal_spares_open_files
            directories_list_their_names_sorted
            stat_tells_the_entry_at_a_path
            a_lock_has_one_holder
            a_map_and_its_file_show_the_same_bytes
            a_map_grows_with_its_file
            dropping_a_queue_waits_for_operations_in_flight
            everything_is_counted
            time_passes_and_numbers_differ
        }
    };
}
pub(crate) use with_promises;
