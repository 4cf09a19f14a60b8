//! A disk with a volatile cache below the real kernel: one file of a FUSE file system, whose writes and flushes are logged
//! in order.
//!
//! A loop device over the file makes it a block device; the kernel's writes and flushes arrive here. A few threads answer.
//! Some writes are delayed for a moment, so that other requests overtake them as on a real disk.
//!
//! Invariants: content and log change together, under one lock. A write is answered after it is in the log, and a flush
//! covers exactly the writes that stand before it there. The log of a lying disk holds the requested writes.
//! This process touches nothing on the disk: it would wait for itself, and could not even be killed.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use fastrand::Rng;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::fault::{Content, Effect, FaultTarget, Kind, RequestFault, flip};
use super::fuse::{self, Request};
use super::image::{Event, Image};
use crate::report::complain;

/// The number of requests that are answered at once.
const THREADS: usize = 6;

/// One write in this many is delayed, ...
const LATE: u32 = 24;
/// ... for this long.
const DELAY: Duration = Duration::from_micros(300);

/// The content of the disk, and its history.
#[derive(Debug)]
struct DiskState {
    content: Content,
    /// Nothing is logged between incarnations.
    log: Option<Vec<Event>>,
    /// The content after certain numbers of events, at regular intervals.
    copies: Vec<(usize, Image)>,
    copy_every: usize,
    fault: Option<RequestFault>,
    /// Requests that met the fault since it was set.
    struck: u64,
    /// The kind of file that was written since the last flush.
    written: Option<FaultTarget>,
    /// Requests are held until then.
    silent_until: Duration,
    /// No request is answered.
    is_dead: bool,
    /// For the kernel a write here equals the death of this process.
    abort: Option<PathBuf>,
    rng: Rng,
}

/// How a request ends that does not succeed.
#[derive(Clone, Copy, Debug)]
enum RequestError {
    Fail(Errno),
    /// Without an answer.
    Silence,
}

impl DiskState {
    /// The treatment of a request.
    fn meet(&mut self, kind: Kind, (offset, len): (u64, usize), data: Option<&[u8]>) -> Option<Effect> {
        let fault = self.fault.as_mut()?;
        if fault.effect == Effect::Full && self.content.image.holds(offset, len) {
            return None;
        }
        let target = match kind {
            Kind::Flush => self.written.take(),
            _ => self.content.target(offset, len, data),
        };
        if kind == Kind::Write && target.is_some() {
            self.written = target;
        }
        let effect = fault.meet(kind, target)?;
        self.struck += 1;
        Some(effect)
    }

    fn note(&mut self, event: Event) {
        let Some(log) = &mut self.log else { return };
        log.push(event);
        if self.copy_every > 0 && log.len().is_multiple_of(self.copy_every) {
            self.copies.push((log.len(), self.content.image.clone()));
        }
    }
}

/// The disk. The threads end when the kernel releases the file system.
#[derive(Clone, Debug)]
pub(super) struct Device {
    kernel: Arc<OwnedFd>,
    disk: Arc<Mutex<DiskState>>,
}

impl Device {
    /// A connection to the kernel, not yet mounted.
    pub(super) fn open(bytes: u64, seed: u64) -> rustix::io::Result<Device> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let kernel = Arc::new(rustix::fs::open("/dev/fuse", flags, Mode::empty())?);
        let disk = DiskState {
            content: Content::new(Image::new(bytes)),
            log: None,
            copies: Vec::new(),
            copy_every: 0,
            fault: None,
            struck: 0,
            written: None,
            silent_until: Duration::ZERO,
            is_dead: false,
            abort: None,
            rng: Rng::with_seed(seed),
        };
        Ok(Device { kernel, disk: Arc::new(Mutex::new(disk)) })
    }

    /// The connection once more, for the process that mounts it.
    pub(super) fn connection(&self) -> std::io::Result<OwnedFd> {
        self.kernel.try_clone()
    }

    /// Starts to answer. Call it after the mount: before that there is nothing to read.
    pub(super) fn serve(&self) -> std::io::Result<()> {
        for number in 0..THREADS {
            let device = self.clone();
            std::thread::Builder::new().name(format!("disk-{number}")).spawn(move || device.answer_all())?;
        }
        Ok(())
    }

    /// The content.
    pub(super) fn image(&self) -> Image {
        self.disk.lock().content.image.clone()
    }

    /// Replaces the content. Nothing on the disk may be mounted.
    pub(super) fn set_image(&self, image: Image) {
        self.set_content(Content::new(image));
    }

    /// The content, and the lies in it.
    pub(super) fn content(&self) -> Content {
        self.disk.lock().content.clone()
    }

    /// Like [`Device::set_image`], with the lies.
    pub(super) fn set_content(&self, content: Content) {
        self.disk.lock().content = content;
    }

    /// The number of writes since the content was set.
    pub(super) fn writes(&self) -> u64 {
        self.disk.lock().content.writes
    }

    /// Starts the log.
    pub(super) fn start_log(&self) {
        self.disk.lock().log = Some(Vec::new());
    }

    /// Copies the content at every n-th event of a log; 0 for never.
    pub(super) fn copy_every(&self, events: usize) {
        self.disk.lock().copy_every = events;
    }

    /// The copies, each with its number of events.
    pub(super) fn take_copies(&self) -> Vec<(usize, Image)> {
        std::mem::take(&mut self.disk.lock().copies)
    }

    /// The number of events in the log.
    pub(super) fn position(&self) -> usize {
        self.disk.lock().log.as_ref().map_or(0, Vec::len)
    }

    /// Ends the log and returns it.
    pub(super) fn take_log(&self) -> Vec<Event> {
        self.disk.lock().log.take().unwrap_or_default()
    }

    /// Breaks the disk, or repairs it.
    pub(super) fn set_fault(&self, fault: Option<RequestFault>) {
        let mut disk = self.disk.lock();
        disk.fault = fault;
        disk.struck = 0;
    }

    /// How many requests have met the fault since.
    pub(super) fn struck(&self) -> u64 {
        self.disk.lock().struck
    }

    /// Where the kernel is told that no request will be answered any more.
    pub(super) fn set_abort(&self, path: PathBuf) {
        self.disk.lock().abort = Some(path);
    }

    /// Whether the disk has died. It does not come back.
    pub(super) fn is_dead(&self) -> bool {
        self.disk.lock().is_dead
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
            Request::Attributes => Ok(fuse::attributes(self.disk.lock().content.image.len())),
            Request::Open => Ok(fuse::opened()),
            Request::Read { offset, len } => self.read(offset, len, clock),
            Request::Write { offset, data } => {
                self.write(offset, data, clock).map(|()| fuse::written(data.len()))
            }
            Request::Zero { offset, len } => self.write_zeros(offset, len, clock).map(|()| Vec::new()),
            Request::Sync => self.flush(clock).map(|()| Vec::new()),
            Request::Nothing => Ok(Vec::new()),
            Request::Unknown => Err(RequestError::Fail(Errno::NOSYS)),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(RequestError::Fail(errno)) => (errno.raw_os_error(), Vec::new()),
            Err(RequestError::Silence) => return,
        };
        let head = fuse::head(number, error, body.len());
        // The process that asked may be gone.
        let _ = rustix::io::writev(&*self.kernel, &[IoSlice::new(&head), IoSlice::new(&body)]);
    }

    /// Decides the treatment of a request, and waits as long as that takes.
    fn meet(
        &self,
        kind: Kind,
        place: (u64, usize),
        data: Option<&[u8]>,
        clock: &NativeBackend,
    ) -> Result<Option<Effect>, RequestError> {
        self.wait_while_silent(clock)?;
        let effect = self.disk.lock().meet(kind, place, data);
        match effect {
            Some(Effect::Fail(errno)) => return Err(RequestError::Fail(errno)),
            Some(Effect::Full) => return Err(RequestError::Fail(Errno::NOSPC)),
            Some(Effect::Late(time)) => clock.park(time),
            Some(Effect::Hang(time)) => {
                self.disk.lock().silent_until = clock.now() + time;
                self.wait_while_silent(clock)?;
            }
            Some(Effect::Gone(time)) => {
                {
                    let mut disk = self.disk.lock();
                    disk.silent_until = clock.now() + time;
                    disk.fault = Some(RequestFault::dead());
                }
                self.wait_while_silent(clock)?;
                return Err(RequestError::Fail(Errno::IO));
            }
            Some(Effect::Die) => {
                self.die();
                return Err(RequestError::Silence);
            }
            _ => return Ok(effect),
        }
        Ok(None)
    }

    fn wait_while_silent(&self, clock: &NativeBackend) -> Result<(), RequestError> {
        loop {
            let rest = {
                let disk = self.disk.lock();
                if disk.is_dead {
                    return Err(RequestError::Silence);
                }
                disk.silent_until.saturating_sub(clock.now())
            };
            if rest.is_zero() {
                return Ok(());
            }
            clock.park(rest);
        }
    }

    /// The kernel does the same when the answering process has ended.
    fn die(&self) {
        let abort = {
            let mut disk = self.disk.lock();
            disk.is_dead = true;
            disk.abort.clone().unwrap_or_default()
        };
        if let Err(error) = std::fs::write(&abort, "1") {
            complain(format!("kernel: a disk cannot die: {}: {error}", abort.display()));
        }
    }

    fn read(&self, offset: u64, len: usize, clock: &NativeBackend) -> Result<Vec<u8>, RequestError> {
        if len > fuse::MAX_WRITE_BYTES {
            return Err(RequestError::Fail(Errno::INVAL));
        }
        let lie = self.meet(Kind::Read, (offset, len), None, clock)?;
        let mut found = vec![0; len];
        let mut disk = self.disk.lock();
        disk.content.image.read(offset, &mut found);
        if lie.is_some() {
            flip(&mut found, &mut disk.rng);
        }
        Ok(found)
    }

    fn write(&self, offset: u64, data: &[u8], clock: &NativeBackend) -> Result<(), RequestError> {
        let is_late = {
            let mut disk = self.disk.lock();
            disk.log.is_some() && disk.rng.u32(..LATE) == 0
        };
        if is_late {
            clock.park(DELAY);
        }
        let kept: Arc<[u8]> = Arc::from(data);
        if !self.disk.lock().content.image.contains(offset, data.len()) {
            return Err(RequestError::Fail(Errno::IO));
        }
        let lie = self.meet(Kind::Write, (offset, data.len()), Some(data), clock)?;
        let mut disk = self.disk.lock();
        let DiskState { content, rng, .. } = &mut *disk;
        match lie {
            Some(effect) => content.lie(effect, offset, data, rng),
            None => content.write(offset, data),
        }
        disk.note(Event::Write { offset, data: kept });
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: usize, clock: &NativeBackend) -> Result<(), RequestError> {
        if !self.disk.lock().content.image.contains(offset, len) {
            return Err(RequestError::Fail(Errno::IO));
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

    fn flush(&self, clock: &NativeBackend) -> Result<(), RequestError> {
        self.meet(Kind::Flush, (0, 0), None, clock)?;
        self.disk.lock().note(Event::Flush);
        Ok(())
    }
}
