//! What the native backend does where the kernel, a sandbox or a file system refuses a call.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use aio::{Alignment, Backend, Errno, Error, FallBack, NativeBackend, OpenMode, Stat};
use libc::c_long;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::sandbox::{Call, OPENS, sandboxed};
use crate::support::{NativeFixture, block};

const LINKS: &[c_long] =
    &[if cfg!(target_arch = "x86_64") { 86 } else { libc::SYS_linkat }, libc::SYS_linkat];
const MAKE_DIRS: &[c_long] =
    &[if cfg!(target_arch = "x86_64") { 83 } else { libc::SYS_mkdirat }, libc::SYS_mkdirat];
const REMOVES: &[c_long] =
    &[if cfg!(target_arch = "x86_64") { 87 } else { libc::SYS_unlinkat }, libc::SYS_unlinkat];

/// Whether it is one of the calls that the allocator and the threads make as well.
fn is_of_others(call: Call) -> bool {
    match call.number {
        libc::SYS_mmap => call.arguments[3] & 3 != u64::from(libc::MAP_SHARED.cast_unsigned()),
        libc::SYS_madvise => call.arguments[2] != u64::from(libc::MADV_DONTFORK.cast_unsigned()),
        _ => false,
    }
}

#[test]
fn a_shortage_is_waited_out_by_every_call_on_names_and_sizes() {
    let fixture = NativeFixture::new();
    let file = fixture.file("old", 2);
    let mut numbers = [OPENS, LINKS, MAKE_DIRS, REMOVES].concat();
    numbers.extend([libc::SYS_fstat, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_getdents64]);
    numbers.extend([libc::SYS_newfstatat, libc::SYS_fstatfs, libc::SYS_flock, libc::SYS_mmap]);
    numbers.push(libc::SYS_madvise);
    let mut seen: BTreeMap<c_long, usize> = BTreeMap::new();
    let refuse = |call: Call| {
        if is_of_others(call) {
            return 0;
        }
        let count = seen.entry(call.number).or_default();
        *count += 1;
        [libc::EINTR, libc::ENOLCK, libc::EINTR, libc::ENOMEM].get(*count - 1).copied().unwrap_or(0)
    };
    let done = sandboxed(&numbers, refuse, || {
        let (backend, dir) = (&fixture.backend, fixture.dir.path());
        let new = backend.open(&fixture.path("new"), OpenMode::Create).unwrap();
        backend.allocate(&new, 8192).unwrap();
        backend.truncate(&new, 4096).unwrap();
        assert_eq!(backend.size_bytes(&new), Ok(4096));
        backend.link(&fixture.path("new"), &fixture.path("newer")).unwrap();
        backend.remove(&fixture.path("new")).unwrap();
        backend.make_dir(&fixture.path("within")).unwrap();
        assert_eq!(backend.list(dir).unwrap(), ["newer", "old", "within"]);
        assert!(backend.stat(&fixture.path("within")).unwrap().unwrap().is_dir);
        backend.sync_dir(dir).unwrap();
        let _map = backend.map_shared(&file, 4096).unwrap();
        drop(backend.lock(&fixture.path("LOCK")).unwrap());
    });
    if done.is_some() {
        // One of each pair is the name of the call in this library.
        let kinds = [OPENS, LINKS, MAKE_DIRS, REMOVES, &[libc::SYS_fstat], &[libc::SYS_ftruncate]];
        let more = [libc::SYS_fallocate, libc::SYS_getdents64, libc::SYS_newfstatat, libc::SYS_fstatfs];
        let last = [libc::SYS_flock, libc::SYS_mmap, libc::SYS_madvise];
        let singles = more.iter().chain(&last).map(std::slice::from_ref);
        for numbers in kinds.into_iter().chain(singles) {
            let tries = numbers.iter().filter_map(|number| seen.get(number)).max();
            assert!(tries.is_some_and(|tries| *tries > 4), "{numbers:?} in {seen:?}");
        }
    }
}

#[test]
fn a_lack_of_descriptors_is_waited_out_where_a_caller_could_only_wait() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    let singles = [libc::SYS_mmap, libc::SYS_eventfd2, libc::SYS_io_setup];
    let mut seen: BTreeMap<c_long, usize> = BTreeMap::new();
    // Every third call is let through.
    let refuse = |call: Call| {
        if is_of_others(call) {
            return 0;
        }
        let count = seen.entry(call.number).or_default();
        *count += 1;
        [0, libc::EMFILE, libc::ENFILE][*count % 3]
    };
    let done = sandboxed(&[OPENS, &singles].concat(), refuse, || {
        let (backend, dir) = (&fixture.backend, fixture.dir.path());
        assert_eq!(backend.list(dir).unwrap(), ["file"]);
        backend.sync_dir(dir).unwrap();
        let _map = backend.map_shared(&file, 512).unwrap();
        drop(backend.lock(&fixture.path("LOCK")).unwrap());
    });
    if done.is_some() {
        let tries = |numbers: &[c_long]| numbers.iter().filter_map(|number| seen.get(number)).sum::<usize>();
        assert_eq!(tries(OPENS), 15, "of a list, a sync, a lock, and boot and start in its note: {seen:?}");
        assert!(singles.iter().all(|number| tries(&[*number]) >= 3), "{seen:?}");
    }
}

#[test]
fn a_lack_of_descriptors_for_a_file_is_told_at_once() {
    let fixture = NativeFixture::new();
    let path = fixture.path("file");
    let mut calls = 0;
    let refuse = |_| {
        calls += 1;
        libc::ENFILE
    };
    let opened = sandboxed(OPENS, refuse, || fixture.backend.open(&path, OpenMode::Create).map(drop));
    if let Some(opened) = opened {
        assert_eq!(opened, Err(Error::NotNow { call: "open", path, errno: Errno(libc::ENFILE) }));
        assert_eq!(calls, 1);
    }
}

#[test]
fn a_lack_of_descriptors_for_the_second_open_of_a_new_file_is_waited_out() {
    let fixture = NativeFixture::new();
    let path = fixture.path("file");
    let mut answers = [libc::EINVAL, libc::EMFILE, libc::ENFILE].into_iter();
    let refuse = |_| answers.next().unwrap_or(0);
    let opened = sandboxed(OPENS, refuse, || fixture.backend.open(&path, OpenMode::Create).unwrap());
    if let Some(opened) = opened {
        assert!(!opened.is_direct());
        assert_eq!(answers.next(), None, "all were met");
    }
}

#[test]
fn a_sync_is_never_repeated_and_its_error_never_called_a_shortage() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    for errno in [libc::EINTR, libc::ENOMEM] {
        let mut calls = 0;
        let refuse = |_| {
            calls += 1;
            errno
        };
        let synced = sandboxed(&[libc::SYS_fsync, libc::SYS_fdatasync], refuse, || {
            [fixture.backend.sync(&file), fixture.backend.sync_dir(fixture.dir.path())]
        });
        for synced in synced.into_iter().flatten() {
            let error = synced.unwrap_err();
            assert!(matches!(error, Error::Os { .. }), "{error:?}");
            assert_eq!(error.errno(), Some(Errno(errno)));
        }
        assert!([0, 2].contains(&calls), "{calls} calls");
    }
}

#[test]
fn only_a_regular_file_is_opened_and_anything_else_is_named() {
    let fixture = NativeFixture::new();
    let backend = &fixture.backend;
    drop(fixture.file("file", 1));
    mknodat(CWD, fixture.path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    symlink("file", fixture.path("link")).unwrap();
    symlink("nothing", fixture.path("dangling")).unwrap();
    backend.make_dir(&fixture.path("dir")).unwrap();
    let _socket = UnixListener::bind(fixture.path("socket")).unwrap();
    let others = [
        (fixture.path("fifo"), "a FIFO"),
        (fixture.path("link"), "a symbolic link"),
        (fixture.path("dangling"), "a symbolic link"),
        (fixture.path("dir"), "a directory"),
        (fixture.path("socket"), "a socket"),
        (Path::new("/dev/null").to_owned(), "a device"),
    ];
    for (path, found) in others {
        let expected = Error::NotAFile { path: path.clone(), found };
        assert_eq!(
            expected.to_string(),
            format!("open {}: is {found}, a regular file is expected", path.display())
        );
        for mode in [OpenMode::Read, OpenMode::Write] {
            assert_eq!(backend.open(&path, mode).unwrap_err(), expected, "{mode:?}");
        }
        assert_eq!(backend.lock(&path).unwrap_err(), expected, "as a lock file");
        assert_eq!(
            backend.open(&path, OpenMode::Create).unwrap_err().errno(),
            Some(Errno::EXISTS),
            "{found}"
        );
        assert!(!backend.stat(&path).unwrap().unwrap().is_file, "{found}");
    }
    let through = backend.stat(&fixture.path("link")).unwrap();
    assert_eq!(through, Some(Stat { size_bytes: 4096, is_dir: false, is_file: false }));
    symlink("dir", fixture.path("way")).unwrap();
    assert!(backend.stat(&fixture.path("way")).unwrap().unwrap().is_dir, "a directory may stand elsewhere");
    drop(backend.open(&fixture.path("way/file"), OpenMode::Create).unwrap());
    backend.sync_dir(&fixture.path("way")).unwrap();
}

/// Opens a file of two blocks while `judge` refuses calls: whether it is direct, its alignment, and the ways around that were
/// taken.
fn opened(numbers: &[c_long], judge: impl FnMut(Call) -> i32) -> Option<(bool, Alignment, Vec<FallBack>)> {
    let fixture = NativeFixture::new();
    let made = fixture.file("file", 2);
    assert!(made.is_direct(), "the target directory must be on a file system with direct I/O");
    let backend = NativeBackend::new();
    sandboxed(numbers, judge, || {
        let file = backend.open(made.path(), OpenMode::Write).unwrap();
        (file.is_direct(), file.alignment(), backend.fall_backs())
    })
}

#[test]
fn where_the_kernel_reports_no_alignment_reads_find_it() {
    let fixture = NativeFixture::new();
    let reported = fixture.file("file", 1).alignment().offset_bytes;
    for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::EINVAL] {
        let Some((is_direct, alignment, fall_backs)) = opened(&[libc::SYS_statx], |_| errno) else { return };
        assert_eq!((is_direct, alignment.offset_bytes, fall_backs), (true, reported, vec![]));
    }
}

/// The only way around is the page cache, because of this call and answer.
fn tells_of_page_cache(fall_backs: &[FallBack], (call, errno): (&'static str, i32)) {
    let [FallBack::PageCache { path, refused }] = fall_backs else { panic!("{fall_backs:?}") };
    assert!(path.ends_with("file"));
    assert_eq!(*refused, Some((call, Errno(errno))));
    let told = fall_backs[0].to_string();
    assert!(told.starts_with(&format!("{call} with O_DIRECT is refused on ")), "{told}");
}

#[test]
fn a_file_whose_direct_reads_are_refused_goes_through_the_page_cache() {
    for errno in [libc::EINVAL, libc::EPERM] {
        for numbers in [&[libc::SYS_pread64][..], &[libc::SYS_pread64, libc::SYS_statx]] {
            let Some((is_direct, _, fall_backs)) = opened(numbers, |_| errno) else { return };
            assert!(!is_direct);
            tells_of_page_cache(&fall_backs, ("pread", errno));
        }
    }
    // A failing device is no such refusal: its error belongs to the read of a store.
    let Some((is_direct, _, fall_backs)) = opened(&[libc::SYS_pread64], |_| libc::EIO) else { return };
    assert_eq!((is_direct, fall_backs), (true, vec![]));
}

/// Whether it opens a file for direct I/O.
fn is_direct_open(call: Call) -> bool {
    let flags = if call.number == libc::SYS_openat { call.arguments[2] } else { call.arguments[1] };
    OPENS.contains(&call.number) && flags & u64::from(libc::O_DIRECT.cast_unsigned()) != 0
}

#[test]
fn a_file_that_cannot_be_opened_for_direct_io_is_buffered() {
    for errno in [libc::EINVAL, libc::EOPNOTSUPP] {
        let refuse = |call| if is_direct_open(call) { errno } else { 0 };
        let Some((is_direct, _, fall_backs)) = opened(OPENS, refuse) else { return };
        assert!(!is_direct);
        tells_of_page_cache(&fall_backs, ("open", errno));
    }
}

#[test]
fn a_file_is_direct_although_its_flags_cannot_be_changed() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let Some((is_direct, _, fall_backs)) = opened(&[libc::SYS_fcntl], |_| errno) else { return };
        assert_eq!((is_direct, fall_backs), (true, vec![]));
    }
}

#[test]
fn a_new_file_whose_direct_writes_are_refused_goes_through_the_page_cache() {
    let fixture = NativeFixture::new();
    // The kernel reports nothing about the file; its type of file system is known or not.
    for is_type_known in [true, false] {
        let path = fixture.path(if is_type_known { "known" } else { "unknown" });
        let numbers =
            [libc::SYS_statx, libc::SYS_fstatfs, libc::SYS_fcntl, libc::SYS_pwritev2, libc::SYS_pwritev];
        let mut is_left = false;
        let refuse = |call: Call| match call.number {
            libc::SYS_fstatfs if is_type_known => 0,
            libc::SYS_statx | libc::SYS_fstatfs => libc::ENOSYS,
            libc::SYS_fcntl => {
                is_left |= call.arguments[1] == u64::from(libc::F_SETFL.cast_unsigned());
                0
            }
            _ if is_left => 0,
            _ => libc::EINVAL,
        };
        let told = sandboxed(&numbers, refuse, || {
            let backend = NativeBackend::without_aio();
            let file = backend.open(&path, OpenMode::Create).unwrap();
            assert_eq!(file.is_direct(), is_type_known);
            let mut queue = backend.queue(1).unwrap();
            aio::file::write_all(&mut *queue, &file, 0, block(7)).unwrap();
            assert!(!file.is_direct());
            backend.fall_backs()
        });
        // Where the type is unknown it was told before the write.
        let refused = is_type_known.then_some(("pwritev2", Errno::INVALID));
        if let Some(told) = told {
            assert!(told.contains(&FallBack::PageCache { path, refused }), "{told:?}");
        }
    }
}

#[test]
fn a_file_becomes_longer_where_no_space_can_be_reserved() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 1);
    for (errno, len_bytes) in
        [libc::EOPNOTSUPP, libc::ENOSYS, libc::EPERM, libc::EACCES, libc::EINVAL].into_iter().zip(2..)
    {
        let len_bytes = len_bytes * 4096;
        let done = sandboxed(
            &[libc::SYS_fallocate],
            |_| errno,
            || {
                fixture.backend.allocate(&file, len_bytes).unwrap();
                fixture.backend.allocate(&file, 4096).unwrap();
            },
        );
        assert!(done.is_none() || fixture.backend.size_bytes(&file) == Ok(len_bytes));
    }
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EIO] {
        let done = sandboxed(&[libc::SYS_fallocate], |_| errno, || fixture.backend.allocate(&file, 1 << 20));
        assert!(done.is_none_or(|done| done.unwrap_err().errno() == Some(Errno(errno))));
    }
}

#[test]
fn a_file_system_that_cannot_sync_names_is_named_as_no_place_for_a_store() {
    let fixture = NativeFixture::new();
    let dir = fixture.dir.path();
    for errno in [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOSYS, libc::EPERM, libc::EACCES, libc::EBADF] {
        let Some(synced) = sandboxed(&[libc::SYS_fsync], |_| errno, || fixture.backend.sync_dir(dir)) else {
            return;
        };
        let error = synced.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        let text = error.to_string();
        for part in [dir.to_str().unwrap(), "a power cut can lose acknowledged data: use another file system"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
    let failed = sandboxed(&[libc::SYS_fsync], |_| libc::EIO, || fixture.backend.sync_dir(dir));
    assert!(failed.is_none_or(|failed| matches!(failed.unwrap_err(), Error::Os { errno: Errno::IO, .. })));
}

#[test]
fn making_room_changes_nothing_and_a_full_range_has_it_at_once() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 64);
    let map = fixture.backend.map_shared(&file, 64 * 4096).unwrap();
    assert!(map.is_shared(), "the target directory must be on a file system with coherent maps");
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                map.make_room(0, 64 * 4096).unwrap();
                map.make_room(4088, 16).unwrap();
                map.make_room(4096, 0).unwrap();
            }
        });
        for round in 0..200_u64 {
            for page in 0..64 {
                map.write(page * 4096, &round.to_le_bytes());
            }
            for page in 0..64 {
                let mut found = [0; 8];
                map.read(page * 4096, &mut found);
                assert_eq!(u64::from_le_bytes(found), round, "page {page}: a store was lost");
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    let mut beyond = [0; 8];
    map.read(63 * 4096 + 8, &mut beyond);
    assert_eq!(beyond, [63; 8]);
}

#[test]
fn a_map_that_forked_children_would_inherit_is_not_shared() {
    let fixture = NativeFixture::new();
    let file = fixture.file("file", 2);
    let is_dont_fork = |call: Call| call.arguments[2] == u64::from(libc::MADV_DONTFORK.cast_unsigned());
    let refuse = |call: Call| if is_dont_fork(call) { libc::EINVAL } else { 0 };
    let map = sandboxed(&[libc::SYS_madvise], refuse, || fixture.backend.map_shared(&file, 8192).unwrap());
    if let Some(map) = map {
        assert!(!map.is_shared());
        let mut bytes = [0; 8];
        map.read(4096, &mut bytes);
        assert_eq!(bytes, [1; 8]);
        map.make_room(0, 8192).unwrap();
    }
}

#[test]
fn a_probe_tells_that_native_aio_is_refused() {
    let fixture = NativeFixture::new();
    for (call, number) in [("io_setup", libc::SYS_io_setup), ("io_submit", libc::SYS_io_submit)] {
        let Some(probe) = sandboxed(&[number], |_| libc::ENOSYS, || aio::probe(fixture.dir.path()).unwrap())
        else {
            return;
        };
        assert!(probe.is_direct && !probe.is_asynchronous && !probe.has_ring, "{probe}");
        assert!(probe.operations.is_empty() && probe.flags.is_empty(), "{probe}");
        assert!(probe.reason.contains("native AIO is refused"), "{probe}");
        let errno = Errno::NOT_IMPLEMENTED;
        assert_eq!(probe.fall_backs, [FallBack::SystemCalls { call, errno }]);
        assert!(probe.to_string().contains(&format!("{call} is refused here")), "{probe}");
    }
    assert_eq!(aio::probe(fixture.dir.path()).unwrap().fall_backs, [], "with native AIO there are none");
}

#[test]
fn a_probe_tells_that_direct_io_is_refused() {
    let fixture = NativeFixture::new();
    let is_switch = |call: Call| call.arguments[1] == u64::from(libc::F_SETFL.cast_unsigned());
    let refuse = |call| if is_switch(call) { libc::EINVAL } else { 0 };
    let probed = sandboxed(&[libc::SYS_fcntl], refuse, || aio::probe(fixture.dir.path()).unwrap());
    let Some(probe) = probed else { return };
    assert!(!probe.is_direct, "{probe}");
    let path = fixture.dir.path().to_owned();
    assert_eq!(probe.fall_backs, [FallBack::PageCache { path, refused: Some(("fcntl", Errno::INVALID)) }]);
}

#[test]
fn a_file_system_in_memory_tells_the_page_cache() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let backend = NativeBackend::new();
    let file = backend.open(&dir.path().join("file"), OpenMode::Create).unwrap();
    assert!(!file.is_direct());
    for told in [aio::probe(dir.path()).unwrap().fall_backs, backend.fall_backs()] {
        assert!(
            matches!(&told[..], [FallBack::PageCache { path, .. }] if path.starts_with(&dir)),
            "{told:?}"
        );
    }
}
