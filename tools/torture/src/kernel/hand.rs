//! The hand: the child that mounts the disk, runs the store on it, and compares the remains of a crash with the model.
//!
//! Invariants: it has its own mount namespace, so all its mounts go when it ends. The loop device goes with its last user.
//! It sees the disk only through the kernel.

use std::any::Any;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use bytes::Bytes;
use esker::Error;
use esker::testing::Background;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use super::protocol::{Allow, Answer, Fs, Link, Look, Order, Play};
use crate::check::compare;
use crate::config::CONFIGS;
use crate::model::{Acks, Bounds, Model, Prefix};
use crate::report::{Check, Failure, complain};
use crate::runner::message;
use crate::workload::{Generator, Level, Mix, Op};
use crate::world::{Outcome, World};

/// How long an unmount waits for descriptors that are being closed.
const BUSY_TRIES: u32 = 400;
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Mounted file systems may only hold files.
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Writes that a store must refuse on a file system that was shut down.
const REFUSALS: usize = 3;

/// The state of the hand.
struct Hand {
    link: Link,
    fs: Fs,
    /// Where things are mounted: memory of the namespace.
    place: PathBuf,
    /// The block device, and the handle that keeps it.
    device: Option<(PathBuf, File)>,
    world: Option<World>,
    clock: NativeBackend,
}

/// Runs as a child of the head. Standard input is the connection to `/dev/fuse`, standard output the conversation.
pub(crate) fn run(fs: Fs) -> ExitCode {
    match Hand::begin(fs).and_then(Hand::obey) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(failure.at("kvtorture kernel-hand"));
            ExitCode::FAILURE
        }
    }
}

impl Hand {
    fn begin(fs: Fs) -> Check<Hand> {
        must_be_alone()?;
        let talk =
            std::io::stdout().as_fd().try_clone_to_owned().map_err(|error| io("standard output", &error))?;
        let link = Link::new(UnixStream::from(talk)).map_err(|error| io("standard output", &error))?;
        let place = std::env::temp_dir();
        rustix::mount::mount("none", &place, "tmpfs", FLAGS, None)
            .map_err(|errno| os("mounting memory", errno))?;
        std::fs::write(place.join("disk"), "").map_err(|error| io("making a mount point", &error))?;
        for name in ["mnt", "connections"] {
            std::fs::create_dir(place.join(name)).map_err(|error| io("making a mount point", &error))?;
        }
        rustix::mount::mount("none", place.join("connections"), "fusectl", FLAGS, None)
            .map_err(|errno| os("mounting the connections of FUSE", errno))?;
        mount_disk(&place, rustix::stdio::stdin())?;
        // Only the head keeps the connection, so that the disk goes with it.
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty());
        null.and_then(rustix::stdio::dup2_stdin).map_err(|errno| os("/dev/null", errno))?;
        let mut hand = Hand { link, fs, place, device: None, world: None, clock: NativeBackend::new() };
        hand.answer(&Answer::Done)?;
        Ok(hand)
    }

    fn obey(mut self) -> Check {
        while let Some(order) = self.order()? {
            let answer = match catch_unwind(AssertUnwindSafe(|| self.carry_out(order))) {
                Ok(answer) => answer.unwrap_or_else(|failure| Answer::Wrong(failure.to_string())),
                Err(panic) => Answer::Wrong(panicked(&*panic)),
            };
            self.answer(&answer)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, order: Order) -> Check<Answer> {
        match order {
            Order::Attach => return self.attach().map(Answer::Attached),
            Order::Detach => self.detach()?,
            Order::Connect(connection) => self.connect(connection)?,
            Order::Format => self.format()?,
            Order::Play(play) => return self.play(&play).map(Answer::Lived),
            Order::Rest => {
                if let Some(world) = &mut self.world {
                    world.let_go();
                }
                self.unmount(&self.mountpoint())?;
            }
            Order::Look(look) => return self.look(&look),
            Order::Go => return Err(Failure::new("nothing to go on with")),
        }
        Ok(Answer::Done)
    }

    fn order(&mut self) -> Check<Option<Order>> {
        self.link.receive().map_err(|error| io("the head", &error))
    }

    fn answer(&mut self, answer: &Answer) -> Check {
        self.link.send(answer).map_err(|error| io("the head", &error))
    }

    /// Returns the number of the connection.
    fn attach(&mut self) -> Check<u32> {
        let disk = self.place.join("disk");
        // The kernel trusts the size that it asked for last.
        let found = std::fs::metadata(&disk).map_err(|error| io("the disk", &error))?;
        let disk = disk.to_string_lossy();
        let name = program(&["losetup", "--find", "--show", "--direct-io=on", &disk])?;
        let device = PathBuf::from(name.trim());
        let held = std::fs::OpenOptions::new().read(true).open(&device);
        // The device is in use, so this takes effect when the last user is gone.
        program(&["losetup", "--detach", name.trim()])?;
        self.device = Some((device, held.map_err(|error| io(name.trim(), &error))?));
        Ok(rustix::fs::minor(found.dev()))
    }

    fn detach(&mut self) -> Check {
        self.device = None;
        self.unmount(&self.place.join("disk"))
    }

    /// Takes a descriptor of the head, and mounts the file system behind it.
    fn connect(&self, connection: i32) -> Check {
        let head = rustix::process::getppid().ok_or_else(|| Failure::new("the head is gone"))?;
        let got = rustix::process::pidfd_open(head, PidfdFlags::empty())
            .and_then(|head| rustix::process::pidfd_getfd(head, connection, PidfdGetfdFlags::empty()));
        let connection: OwnedFd = got.map_err(|errno| os("taking over a connection", errno))?;
        mount_disk(&self.place, connection.as_fd())
    }

    fn format(&self) -> Check {
        let device = self.device()?.to_string_lossy().into_owned();
        let mkfs: Vec<&str> = self.fs.mkfs().iter().copied().chain([device.as_str()]).collect();
        program(&mkfs).map(|_| ())
    }

    fn device(&self) -> Check<&Path> {
        let device = self.device.as_ref().map(|(path, _)| path.as_path());
        device.ok_or_else(|| Failure::new("the disk is not attached"))
    }

    fn mountpoint(&self) -> PathBuf {
        self.place.join("mnt")
    }

    fn store(&self) -> PathBuf {
        self.mountpoint().join("store")
    }

    fn mount(&self) -> Check {
        let (name, flags) = (self.fs.name(), MountFlags::NOATIME);
        rustix::mount::mount(self.device()?, self.mountpoint(), name, flags, None)
            .map_err(|errno| os(&format!("mounting {name}"), errno))
    }

    fn unmount(&self, place: &Path) -> Check {
        for _ in 0..BUSY_TRIES {
            match rustix::mount::unmount(place, UnmountFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::BUSY) => self.clock.park(BUSY_PAUSE),
                Err(errno) => return Err(os("unmounting", errno)),
            }
        }
        Err(os("unmounting", Errno::BUSY))
    }

    /// Leaves the store open, as a crash would.
    fn play(&mut self, play: &Play) -> Check<u64> {
        self.mount()?;
        let mut world = match self.world.take() {
            Some(mut world) if play.bounds.is_some() => {
                world.config = &CONFIGS[play.config];
                world
            }
            _ => {
                let background = if play.threads { Background::Threads } else { Background::Manual };
                World::in_directory(self.store(), background, play.config)
            }
        };
        let result = self.live(play, &mut world);
        self.world = Some(world);
        result
    }

    /// Returns how many operations the store refused, as it may.
    fn live(&mut self, play: &Play, world: &mut World) -> Check<u64> {
        let new = Bounds::exactly(Prefix::default());
        let found = world.open(play.bounds.as_ref().unwrap_or(&new))?;
        world.settle(found)?;
        self.did(world.acks())?;
        let mut generator = Generator::new(play.seed, mix(play));
        let (mut falling, mut refused) = (None, 0);
        for (nth, op) in generator.sequence(play.ops).into_iter().enumerate() {
            if play.stays && (!may_break(&op) || self.lists_nothing(&op)) {
                continue;
            }
            let is_refused = judge(world.run(&op), play.allow, &self.store())
                .map_err(|failure| failure.at(format!("{op:?}")))?;
            refused += u64::from(is_refused);
            self.did(world.acks())?;
            if play.shutdown == Some(nth) {
                falling = Some(self.shut_down()?);
            }
            if falling.as_mut().map(has_ended).transpose()?.unwrap_or(false) {
                break;
            }
        }
        if let Some(mut falling) = falling {
            let status = falling.wait().map_err(|error| io("xfs_io", &error))?;
            if !status.success() {
                return Err(Failure::new(format!("xfs_io: {status}")));
            }
            self.must_stay_down(world)?;
        }
        if play.allow != Allow::None {
            world.end_doubt();
            self.did(world.acks())?;
        }
        Ok(refused)
    }

    /// Starts the program that ends the file system without a flush of its journal.
    fn shut_down(&self) -> Check<Child> {
        let mut command = Command::new("xfs_io");
        command.args(["-x", "-c", "shutdown"]).arg(self.mountpoint());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| io("xfs_io", &error))
    }

    /// No write can reach the disk any more, and the store must never acknowledge one. It may still confirm that earlier
    /// writes are durable; a later check must bear that out.
    fn must_stay_down(&mut self, world: &mut World) -> Check {
        let (key, value) = (Bytes::from("late"), Bytes::from("write"));
        let put = Op::Put { slot: 0, key, value, level: Level::Power };
        for op in [&put, &Op::Sync, &Op::Flush].into_iter().cycle().take(3 * REFUSALS) {
            match world.run(op) {
                Ok(Outcome::Refused(error)) => must_be_of_the_disk(&error)?,
                Ok(_) if *op != put => {}
                Ok(_) => return Err(Failure::new(format!("{op:?} after a shutdown succeeded"))),
                Err(failure) => return Err(failure.at("after a shutdown")),
            }
        }
        self.did(world.acks())
    }

    /// When btrfs gives up it forgets the names that it has not committed: a directory is empty while its open files are
    /// right. A verify lists the manifests and then misses them.
    fn lists_nothing(&self, op: &Op) -> bool {
        self.fs == Fs::Btrfs && matches!(op, Op::Verify)
    }

    /// Reports the progress, and waits until the head has noted the position in the disk's log.
    fn did(&mut self, acks: Acks) -> Check {
        self.answer(&Answer::Did(acks))?;
        match self.order()? {
            Some(Order::Go) => Ok(()),
            other => Err(Failure::new(format!("unexpected order {other:?} during an incarnation"))),
        }
    }

    fn look(&self, look: &Look) -> Check<Answer> {
        if let Err(failure) = self.mount() {
            let is_allowed = look.allow != Allow::None;
            return if is_allowed { Ok(Answer::Refused(failure.to_string())) } else { Err(failure) };
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.inspect(look)))
            .unwrap_or_else(|panic| Err(Failure::new(panicked(&*panic))));
        let unmounted = self.unmount(&self.mountpoint());
        match result {
            Ok(found) => unmounted.map(|()| Answer::Found(found)),
            Err(failure) => match failure.refused() {
                Some(error) if look.allow != Allow::None => {
                    must_be_allowed(error, look.allow, &self.store()).map_err(|wrong| wrong.at(&failure))?;
                    unmounted.map(|()| Answer::Refused(failure.to_string()))
                }
                _ => Err(failure),
            },
        }
    }

    fn inspect(&self, look: &Look) -> Check<Prefix> {
        let nothing = Model::new();
        let model = self.world.as_ref().map_or(&nothing, |world| &world.model);
        let config = CONFIGS.get(look.config).ok_or_else(|| Failure::new("no such configuration"))?;
        let open = || config.open_in(&self.store(), Background::Manual);
        let db = open().map_err(|error| Failure::from(error).at(format!("open with {config:?}")))?;
        let found = compare(&db, model, &look.bounds)?;
        if look.verify {
            db.verify().map_err(|error| Failure::from(error).at("verify"))?;
        }
        drop(db);
        if look.again {
            let db = open().map_err(|error| Failure::from(error).at("second open"))?;
            compare(&db, model, &Bounds::exactly(found)).map_err(|failure| failure.at("second open"))?;
        }
        Ok(found)
    }
}

/// Mounts the disk that is served through this connection.
fn mount_disk(place: &Path, connection: BorrowedFd<'_>) -> Check {
    let options = format!("fd={},rootmode=100600,user_id=0,group_id=0,allow_other", connection.as_raw_fd());
    let options = CString::new(options).map_err(|_| Failure::new("a number has no zero byte"))?;
    rustix::mount::mount("kvtorture", place.join("disk"), "fuse", FLAGS, options.as_c_str())
        .map_err(|errno| os("mounting the disk", errno))
}

/// Operations like those of `sim`: mostly writes, with flushes, compactions, closes and opens between.
fn mix(play: &Play) -> Mix {
    let seed = play.seed;
    Mix {
        writes: 60 + seed % 20,
        reads: if play.stays { 30 } else { 4 },
        upkeep: 10,
        crashes: false,
        keys: [3, 12, 40][usize::try_from(seed / 32 % 3).unwrap_or(0)],
        value_bytes: [20, 120, 400][usize::try_from(seed / 128 % 3).unwrap_or(0)],
        configs: CONFIGS.len(),
    }
}

/// Operations for a store that stays open while its disk breaks. A dropped keyspace would return other errors.
fn may_break(op: &Op) -> bool {
    !matches!(op, Op::Reopen { .. } | Op::DropAll { .. } | Op::UseDropped { .. })
}

/// An operation must not go wrong; where the disk breaks the store may refuse it. Returns whether it did.
fn judge(result: Check<Outcome>, allow: Allow, store: &Path) -> Check<bool> {
    match result {
        Ok(Outcome::Refused(error)) if allow != Allow::None => {
            must_be_allowed(&error, allow, store).map(|()| true)
        }
        Ok(Outcome::Refused(error)) => Err(Failure::from(error)),
        Ok(_) => Ok(false),
        Err(failure) => match failure.refused() {
            Some(error) if allow != Allow::None => must_be_allowed(error, allow, store).map(|()| true),
            _ => Err(failure),
        },
    }
}

fn must_be_allowed(error: &Error, allow: Allow, store: &Path) -> Check {
    match allow {
        Allow::Damage => must_be_damage(error, store),
        _ => must_be_of_the_disk(error),
    }
}

/// A disk that reports its failure does not make the store damaged.
fn must_be_of_the_disk(error: &Error) -> Check {
    match error {
        Error::Io { .. } | Error::NoSpace { .. } | Error::Halted { .. } => Ok(()),
        other => Err(Failure::new(format!("the disk broke, and the store says: {other}"))),
    }
}

/// A lying disk is found out, with the file that is affected.
fn must_be_damage(error: &Error, store: &Path) -> Check {
    let file = match error {
        Error::Corrupt { file, .. } => file,
        Error::Format { path, .. } => path,
        Error::Halted { cause, .. } => return must_be_damage(cause, store),
        other => return Err(Failure::new(format!("the disk lied, and the store says: {other}"))),
    };
    let is_named = file.starts_with(store) && file != store;
    if is_named { Ok(()) } else { Err(Failure::new(format!("names no file of the store: {error}"))) }
}

fn has_ended(program: &mut Child) -> Check<bool> {
    program.try_wait().map(|status| status.is_some()).map_err(|error| io("a program", &error))
}

/// These mounts must not be visible outside of the namespace.
fn must_be_alone() -> Check {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
    match (namespace("self"), namespace(&parent.to_string())) {
        (Some(mine), Some(other)) if mine != other => Ok(()),
        _ => Err(Failure::new("is started by `kvtorture kernel` only, in a mount namespace of its own")),
    }
}

/// Runs a program of the system to its end, and returns its output.
fn program(words: &[&str]) -> Check<String> {
    let Some((name, arguments)) = words.split_first() else { return Ok(String::new()) };
    let output = Command::new(name).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| io(name, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::new(format!("{}: {}: {}", words.join(" "), output.status, said.trim())))
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    format!("panic: {}", message(panic))
}

fn io(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("{what}: {error}"))
}

fn os(what: &str, errno: Errno) -> Failure {
    Failure::new(format!("{what}: {errno}"))
}
