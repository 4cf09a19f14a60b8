//! A disk with a volatile cache, below the real kernel: one file of a file system of our own, whose every write and
//! flush is logged in order.
//!
//! A loop device over the file makes it a block device; what the kernel then writes and flushes arrives here. A few
//! threads answer, and some writes are held up for a moment, so that others and flushes overtake them as on a real disk.
//!
//! Invariants: content and log change together, under one lock; a write is answered after it is in the log, and a flush
//! counts for exactly the writes that stand before it there. This process touches nothing that stands on the disk: it
//! would wait for itself, and could not even be killed.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use fastrand::Rng;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::fuse::{self, Request};
use super::image::{Event, Image};

/// As many requests are answered at once.
const THREADS: usize = 6;

/// One write in so many is held up, ...
const LATE: u32 = 24;
/// ... for this long.
const DELAY: Duration = Duration::from_micros(300);

/// What the disk holds, and what happened to it.
#[derive(Debug)]
struct Disk {
    image: Image,
    /// Nothing is noted outside of a life.
    log: Option<Vec<Event>>,
    fault: Option<Fault>,
    /// Requests that failed since the fault was set.
    struck: u64,
    rng: Rng,
}

/// Which requests a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Any,
}

/// Requests that fail, as those of a broken disk do: it says so, and does nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// As many of its kind go well before it.
    pub(super) skip: u64,
    /// As many fail then.
    pub(super) times: u64,
    pub(super) errno: Errno,
}

impl Disk {
    /// Whether a request goes well.
    fn admit(&mut self, kind: Kind) -> rustix::io::Result<()> {
        let Some(fault) = self.fault.as_mut().filter(|fault| fault.kind == kind || fault.kind == Kind::Any)
        else {
            return Ok(());
        };
        if fault.skip > 0 {
            fault.skip -= 1;
            return Ok(());
        }
        if fault.times == 0 {
            return Ok(());
        }
        fault.times -= 1;
        self.struck += 1;
        Err(fault.errno)
    }
}

/// See the module. The threads end when the kernel lets go of the file system.
#[derive(Clone, Debug)]
pub(super) struct Device {
    kernel: Arc<OwnedFd>,
    disk: Arc<Mutex<Disk>>,
}

impl Device {
    /// A connection to the kernel, not yet mounted.
    pub(super) fn open(bytes: u64, seed: u64) -> rustix::io::Result<Device> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let kernel = Arc::new(rustix::fs::open("/dev/fuse", flags, Mode::empty())?);
        let disk =
            Disk { image: Image::new(bytes), log: None, fault: None, struck: 0, rng: Rng::with_seed(seed) };
        Ok(Device { kernel, disk: Arc::new(Mutex::new(disk)) })
    }

    /// The connection once more, for whoever mounts it.
    pub(super) fn connection(&self) -> std::io::Result<OwnedFd> {
        self.kernel.try_clone()
    }

    /// Starts to answer. Call it once it is mounted: before that there is nothing to read.
    pub(super) fn serve(&self) -> std::io::Result<()> {
        for number in 0..THREADS {
            let device = self.clone();
            std::thread::Builder::new().name(format!("disk-{number}")).spawn(move || device.answer_all())?;
        }
        Ok(())
    }

    /// The content.
    pub(super) fn image(&self) -> Image {
        self.disk.lock().image.clone()
    }

    /// Another content. Nothing on the disk may be mounted.
    pub(super) fn set_image(&self, image: Image) {
        self.disk.lock().image = image;
    }

    /// Logs from now on.
    pub(super) fn start_log(&self) {
        self.disk.lock().log = Some(Vec::new());
    }

    /// How many events the log has.
    pub(super) fn position(&self) -> usize {
        self.disk.lock().log.as_ref().map_or(0, Vec::len)
    }

    /// The log, which ends with this.
    pub(super) fn take_log(&self) -> Vec<Event> {
        self.disk.lock().log.take().unwrap_or_default()
    }

    /// Breaks the disk, or mends it.
    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        let mut disk = self.disk.lock();
        disk.fault = fault;
        disk.struck = 0;
    }

    /// How many requests have failed since.
    pub(super) fn struck(&self) -> u64 {
        self.disk.lock().struck
    }

    fn answer_all(&self) {
        let clock = NativeBackend::new();
        let mut buf = vec![0; fuse::BUFFER_BYTES];
        loop {
            match rustix::io::read(&*self.kernel, &mut buf[..]) {
                Ok(len) => self.answer(&buf[..len], &clock),
                // A request that was interrupted before it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                // The file system is gone.
                Err(_) => return,
            }
        }
    }

    fn answer(&self, message: &[u8], clock: &NativeBackend) {
        let Some((number, request)) = fuse::parse(message) else { return };
        let answer = match request {
            Request::Silent => return,
            Request::Init => Ok(fuse::init()),
            Request::Attributes => Ok(fuse::attributes(self.disk.lock().image.len())),
            Request::Open => Ok(fuse::opened()),
            Request::Read { offset, len } => self.read(offset, len),
            Request::Write { offset, data } => {
                self.write(offset, data, clock).map(|()| fuse::written(data.len()))
            }
            Request::Zero { offset, len } => self.write_zeros(offset, len, clock).map(|()| Vec::new()),
            Request::Sync => self.flush().map(|()| Vec::new()),
            Request::Nothing => Ok(Vec::new()),
            Request::Unknown => Err(Errno::NOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (errno.raw_os_error(), Vec::new()),
        };
        let head = fuse::head(number, error, body.len());
        // Whoever asked may be gone.
        let _ = rustix::io::writev(&*self.kernel, &[IoSlice::new(&head), IoSlice::new(&body)]);
    }

    fn read(&self, offset: u64, len: usize) -> rustix::io::Result<Vec<u8>> {
        if len > fuse::MAX_WRITE_BYTES {
            return Err(Errno::INVAL);
        }
        let mut content = vec![0; len];
        let mut disk = self.disk.lock();
        disk.admit(Kind::Read)?;
        disk.image.read(offset, &mut content);
        Ok(content)
    }

    fn write(&self, offset: u64, data: &[u8], clock: &NativeBackend) -> rustix::io::Result<()> {
        let is_late = {
            let mut disk = self.disk.lock();
            disk.log.is_some() && disk.rng.u32(..LATE) == 0
        };
        if is_late {
            clock.park(DELAY);
        }
        let kept: Arc<[u8]> = Arc::from(data);
        let mut disk = self.disk.lock();
        if !disk.image.contains(offset, data.len()) {
            return Err(Errno::IO);
        }
        disk.admit(Kind::Write)?;
        disk.image.write(offset, data);
        if let Some(log) = &mut disk.log {
            log.push(Event::Write { offset, data: kept });
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: usize, clock: &NativeBackend) -> rustix::io::Result<()> {
        if !self.disk.lock().image.contains(offset, len) {
            return Err(Errno::IO);
        }
        let zeros = vec![0; fuse::MAX_WRITE_BYTES.min(len)];
        let mut at = offset;
        let mut rest = len;
        while rest > 0 {
            let piece = &zeros[..zeros.len().min(rest)];
            self.write(at, piece, clock)?;
            at += piece.len() as u64;
            rest -= piece.len();
        }
        Ok(())
    }

    fn flush(&self) -> rustix::io::Result<()> {
        let mut disk = self.disk.lock();
        disk.admit(Kind::Flush)?;
        if let Some(log) = &mut disk.log {
            log.push(Event::Flush);
        }
        Ok(())
    }
}
