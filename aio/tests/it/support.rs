//! Helpers shared by the tests of contexts: a directory on a real file system, and files in it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use aio::{Backend, Buf, Completion, Context, File, NativeBackend, OpenMode, Operation};

/// Long enough that a test that waits for it has failed.
pub(crate) const FOREVER: Duration = Duration::from_mins(1);

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// A native backend and a directory, which is removed on drop.
pub(crate) struct NativeFixture {
    pub(crate) backend: NativeBackend,
    pub(crate) dir: tempfile::TempDir,
}

impl NativeFixture {
    pub(crate) fn new() -> NativeFixture {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        NativeFixture { backend: NativeBackend::new(), dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `blocks` blocks, each filled with its number.
    pub(crate) fn file(&self, name: &str, blocks: u8) -> File {
        let file = self.backend.open(&self.path(name), OpenMode::Create).unwrap();
        let mut context = Context::builder().slots(8).build().unwrap();
        let writes = (0..blocks).map(|number| Operation::write(&file, at(number.into()), block(number)));
        for done in context.run(writes).unwrap() {
            done.whole().unwrap();
        }
        file
    }
}

/// A block full of one byte.
pub(crate) fn block(byte: u8) -> Buf {
    Buf::from(&[byte; BLOCK][..])
}

/// The offset of a block in bytes.
pub(crate) fn at(block: u64) -> u64 {
    block * BLOCK as u64
}

/// A read of one block, with its number as token.
pub(crate) fn read(file: &File, block: u64) -> Operation {
    Operation::read(file, at(block), Buf::zeroed(BLOCK)).with_token(block)
}

/// Every block that [`NativeFixture::file`] made holds its number.
pub(crate) fn assert_block(done: Completion) {
    let number = u8::try_from(done.operation.token()).unwrap();
    let buf = done.whole().unwrap().into_buf();
    assert!(buf.iter().all(|&byte| byte == number), "block {number}");
}

/// Submits one operation that must be taken.
pub(crate) fn start(context: &mut Context, operation: Operation) {
    assert_eq!(context.submit(&mut VecDeque::from([operation])), Ok(1));
}
