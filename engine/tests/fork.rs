//! A forked child of a process with an open store. Every call in the child is refused, and its drops do no harm.
#![expect(unsafe_code, reason = "fork")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use esker::{Db, Error};

/// A child that takes longer counts as hanging.
const CHILD_SECONDS: u32 = 60;

/// Runs `check` in a forked child. True if it ended there and returned true.
fn in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `check` on the only thread it has, and leaves without running anything of the parent.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // SAFETY: no pointer is passed; the signal ends the child.
        unsafe { libc::alarm(CHILD_SECONDS) };
        let passed = catch_unwind(AssertUnwindSafe(check)).unwrap_or(false);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!passed)) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call, and the child is ours.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    status == 0
}

#[test]
fn a_forked_child_is_refused_and_does_no_harm() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("store");
    let db = Db::open(&path).unwrap();
    let ks = db.keyspace("default").unwrap();
    ks.put("a", "1").unwrap();
    db.close().unwrap();
    let db = Db::open(&path).unwrap();
    let ks = db.keyspace("default").unwrap();
    // A future that waits when the process forks.
    let mut get = Some(ks.get_async("a"));

    let mut handles = Some((db.clone(), ks.clone()));
    let refused = in_child(|| {
        let (db, ks) = handles.take().unwrap();
        let refused = ks.put("a", "2").is_err()
            && ks.get("a").is_err()
            && get.take().unwrap().wait().is_err()
            && ks.get_async("a").wait().is_err()
            && db.batch().put(&ks, "a", "3").commit().is_err()
            && db.sync().is_err()
            && db.flush().is_err()
            && db.keyspace("other").is_err()
            && db.verify().is_err();
        drop(ks);
        refused && db.close().is_err()
    });
    assert!(refused);

    assert_eq!(get.unwrap().wait().unwrap().as_deref(), Some(&b"1"[..]));
    // The parent neither lost its lock nor its threads, and nothing of the child is in the store.
    assert!(matches!(Db::open(&path), Err(Error::Locked { .. })));
    ks.put("b", "4").unwrap();
    drop((handles, ks));
    db.close().unwrap();
    let db = Db::open(&path).unwrap();
    let pairs: Vec<_> = db.keyspace("default").unwrap().iter().map(Result::unwrap).collect();
    assert_eq!(pairs, [("a".into(), "1".into()), ("b".into(), "4".into())]);
}
