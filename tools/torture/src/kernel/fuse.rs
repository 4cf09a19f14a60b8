//! The messages of `/dev/fuse`, as far as one file needs them.
//!
//! The file is the root of its file system, so no name is ever looked up. Reads and writes bypass the page cache
//! (`FOPEN_DIRECT_IO`) and are asynchronous (`FUSE_ASYNC_DIO`), so the daemon sees the requests that a disk would see.
//!
//! Integers are those of the machine, which is little-endian wherever the store runs.

/// The head of every request.
const HEAD_BYTES: usize = 40;

/// The largest read or write, and room for a request around it.
pub(super) const MAX_WRITE_BYTES: usize = 1 << 20;
pub(super) const BUFFER_BYTES: usize = MAX_WRITE_BYTES + (64 << 10);

const VERSION: (u32, u32) = (7, 36);

const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;

const OPEN_DIRECT_IO: u32 = 1;
const OPEN_PARALLEL_WRITES: u32 = 1 << 6;

const REGULAR_FILE: u32 = 0o100_600;
const VALID_SECONDS: u64 = 3600;

/// A request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    Init,
    Attributes,
    Open,
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: &'a [u8],
    },
    /// Punch a hole, or zero a range.
    Zero {
        offset: u64,
        len: usize,
    },
    Sync,
    /// Succeeds, and does nothing.
    Nothing,
    /// Gets no answer.
    Silent,
    /// Is refused permanently.
    Unknown,
}

/// Parses a request; `None` if it is shorter than it says. Returns its number, too, which the answer repeats.
pub(super) fn parse(message: &[u8]) -> Option<(u64, Request<'_>)> {
    let body = message.get(HEAD_BYTES..)?;
    let request = match u32_at(message, 4)? {
        26 => Request::Init,
        3 | 4 => Request::Attributes,
        14 => Request::Open,
        15 => Request::Read { offset: u64_at(body, 8)?, len: usize::try_from(u32_at(body, 16)?).ok()? },
        16 => {
            let len = usize::try_from(u32_at(body, 16)?).ok()?;
            Request::Write { offset: u64_at(body, 8)?, data: body.get(40..)?.get(..len)? }
        }
        43 => Request::Zero { offset: u64_at(body, 8)?, len: usize::try_from(u64_at(body, 16)?).ok()? },
        20 => Request::Sync,
        // Release, flush (of a descriptor), access, destroy.
        18 | 25 | 34 | 38 => Request::Nothing,
        // Forget, interrupt, forget many.
        2 | 36 | 42 => Request::Silent,
        _ => Request::Unknown,
    };
    Some((u64_at(message, 8)?, request))
}

/// The head of an answer with this many bytes behind it.
pub(super) fn head(request: u64, error: i32, len: usize) -> Vec<u8> {
    let total = u32::try_from(len + 16).unwrap_or(u32::MAX);
    [&total.to_le_bytes()[..], &(-error).to_le_bytes(), &request.to_le_bytes()].concat()
}

/// The abilities of the daemon.
pub(super) fn init() -> Vec<u8> {
    let max_write = u32::try_from(MAX_WRITE_BYTES).unwrap_or(u32::MAX);
    let max_pages = u16::try_from(MAX_WRITE_BYTES / 4096).unwrap_or(u16::MAX);
    let flags = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;
    let mut answer = Vec::with_capacity(64);
    for word in [VERSION.0, VERSION.1, max_write, flags] {
        answer.extend(word.to_le_bytes());
    }
    // Background requests, and the number that counts as congestion.
    answer.extend(256_u16.to_le_bytes());
    answer.extend(200_u16.to_le_bytes());
    answer.extend(max_write.to_le_bytes());
    // The granularity of times in nanoseconds.
    answer.extend(1_u32.to_le_bytes());
    answer.extend(max_pages.to_le_bytes());
    answer.resize(64, 0);
    answer
}

/// The attributes of the file.
pub(super) fn attributes(bytes: u64) -> Vec<u8> {
    let mut answer = Vec::with_capacity(104);
    answer.extend(VALID_SECONDS.to_le_bytes());
    answer.extend([0; 8]);
    for word in [1, bytes, bytes / 512, 0, 0, 0] {
        answer.extend(word.to_le_bytes());
    }
    // Nanoseconds of three times, mode, links, owner, group, device, block size, flags.
    for word in [0, 0, 0, REGULAR_FILE, 1, 0, 0, 0, 4096, 0_u32] {
        answer.extend(word.to_le_bytes());
    }
    answer
}

/// An open of the file.
pub(super) fn opened() -> Vec<u8> {
    let mut answer = vec![0; 8];
    answer.extend((OPEN_DIRECT_IO | OPEN_PARALLEL_WRITES).to_le_bytes());
    answer.resize(16, 0);
    answer
}

/// A write of this many bytes.
pub(super) fn written(len: usize) -> Vec<u8> {
    let mut answer = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    answer.resize(8, 0);
    answer
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(77_u64.to_le_bytes());
        bytes.resize(HEAD_BYTES, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_write_that_is_cut_off_is_no_request() {
        let mut body = vec![0; 8];
        body.extend(8192_u64.to_le_bytes());
        body.extend(5_u32.to_le_bytes());
        body.resize(40, 0);
        body.extend(b"hello");
        let whole = message(16, &body);
        assert_eq!(parse(&whole), Some((77, Request::Write { offset: 8192, data: b"hello" })));
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len}");
        }
    }

    #[test]
    fn answers_have_the_sizes_that_the_kernel_wants() {
        assert_eq!(init().len(), 64);
        assert_eq!(attributes(1 << 20).len(), 104);
        assert_eq!(opened().len(), 16);
        assert_eq!(written(512).len(), 8);
        assert_eq!(
            head(1, 5, 0),
            [&16_u32.to_le_bytes()[..], &(-5_i32).to_le_bytes(), &1_u64.to_le_bytes()].concat()
        );
        assert_eq!(parse(&message(99, &[])), Some((77, Request::Unknown)));
    }
}
