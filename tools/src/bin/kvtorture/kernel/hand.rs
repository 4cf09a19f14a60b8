//! The hand: the child that mounts the disk, runs the store on it, and compares what a crash left with the model.
//!
//! Invariants: it has a mount namespace of its own, so everything it mounts goes when it ends, however it ends; the loop
//! device goes with its last user; the only thing it knows of the disk is what the kernel shows.

use std::any::Any;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use esker::{Background, Error};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::protocol::{Answer, Fs, Link, Look, Order, Play};
use crate::check::compare;
use crate::config::CONFIGS;
use crate::model::{Acks, Bounds, Model, Prefix};
use crate::report::{Check, Failure, complain};
use crate::runner::message;
use crate::workload::{Generator, Mix, Op};
use crate::world::{Outcome, World};

/// How long an unmount waits for descriptors that are just being closed.
const BUSY_TRIES: u32 = 400;
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// See the module.
struct Hand {
    link: Link,
    fs: Fs,
    /// Where things are mounted: memory of the namespace.
    place: PathBuf,
    /// The block device, and what keeps it.
    device: Option<(PathBuf, File)>,
    world: Option<World>,
    clock: NativeBackend,
}

/// Runs as a child of the head: standard input is the connection to `/dev/fuse`, standard output the conversation.
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
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("none", &place, "tmpfs", flags, None)
            .map_err(|errno| os("mounting memory", errno))?;
        let (disk, mountpoint) = (place.join("disk"), place.join("mnt"));
        std::fs::write(&disk, "").map_err(|error| io("making a mount point", &error))?;
        std::fs::create_dir(&mountpoint).map_err(|error| io("making a mount point", &error))?;
        let data = c"fd=0,rootmode=100600,user_id=0,group_id=0,allow_other";
        rustix::mount::mount("kvtorture", &disk, "fuse", flags, data)
            .map_err(|errno| os("mounting the disk", errno))?;
        // The head alone keeps the connection, so that the disk goes with it.
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
            Order::Attach => self.attach()?,
            Order::Format => self.format()?,
            Order::Play(play) => self.play(&play)?,
            Order::Rest => {
                if let Some(world) = &mut self.world {
                    world.let_go();
                }
                self.unmount()?;
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

    fn attach(&mut self) -> Check {
        let disk = self.place.join("disk");
        // The kernel believes the size that it has asked for last.
        std::fs::metadata(&disk).map_err(|error| io("the disk", &error))?;
        let disk = disk.to_string_lossy();
        let name = program(&["losetup", "--find", "--show", "--direct-io=on", &disk])?;
        let device = PathBuf::from(name.trim());
        let held = std::fs::OpenOptions::new().read(true).open(&device);
        // It is in use, so this takes effect when the last user is gone.
        program(&["losetup", "--detach", name.trim()])?;
        self.device = Some((device, held.map_err(|error| io(name.trim(), &error))?));
        Ok(())
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

    fn unmount(&self) -> Check {
        for _ in 0..BUSY_TRIES {
            match rustix::mount::unmount(self.mountpoint(), UnmountFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::BUSY) => self.clock.park(BUSY_PAUSE),
                Err(errno) => return Err(os("unmounting", errno)),
            }
        }
        Err(os("unmounting", Errno::BUSY))
    }

    /// Leaves the store open: a crash takes no leave.
    fn play(&mut self, play: &Play) -> Check {
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

    fn live(&mut self, play: &Play, world: &mut World) -> Check {
        let new = Bounds::exactly(Prefix::default());
        let found = world.open(play.bounds.as_ref().unwrap_or(&new))?;
        world.settle(found)?;
        self.did(world.acks())?;
        let mut generator = Generator::new(play.seed, mix(play.seed));
        for op in generator.sequence(play.ops) {
            if play.breaks && (!may_break(&op) || self.lists_nothing(&op)) {
                continue;
            }
            judge(world.run(&op), play.breaks).map_err(|failure| failure.at(format!("{op:?}")))?;
            self.did(world.acks())?;
        }
        if play.breaks {
            world.end_doubt();
            self.did(world.acks())?;
        }
        Ok(())
    }

    /// When btrfs gives up it forgets the names that it has not committed: a directory is empty whose files are open and
    /// right. A verify, which lists the manifests, then misses them.
    fn lists_nothing(&self, op: &Op) -> bool {
        self.fs == Fs::Btrfs && matches!(op, Op::Verify)
    }

    /// Tells what is done, and waits until the head has noted at which position of the disk's log.
    fn did(&mut self, acks: Acks) -> Check {
        self.answer(&Answer::Did(acks))?;
        match self.order()? {
            Some(Order::Go) => Ok(()),
            other => Err(Failure::new(format!("told {other:?} in the middle of a life"))),
        }
    }

    fn look(&self, look: &Look) -> Check<Answer> {
        if let Err(failure) = self.mount() {
            return if look.breaks { Ok(Answer::Refused(failure.to_string())) } else { Err(failure) };
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.inspect(look)))
            .unwrap_or_else(|panic| Err(Failure::new(panicked(&*panic))));
        let unmounted = self.unmount();
        match result {
            Ok(found) => unmounted.map(|()| Answer::Found(found)),
            Err(failure) => match failure.refused() {
                Some(error) if look.breaks => {
                    must_be_of_the_disk(error)?;
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

/// Like those of `sim`: mostly writes, with flushes, compactions, closes and opens between.
fn mix(seed: u64) -> Mix {
    Mix {
        writes: 60 + seed % 20,
        reads: 4,
        upkeep: 10,
        crashes: false,
        keys: [3, 12, 40][usize::try_from(seed / 32 % 3).unwrap_or(0)],
        value_bytes: [20, 120, 400][usize::try_from(seed / 128 % 3).unwrap_or(0)],
        configs: CONFIGS.len(),
    }
}

/// What a store that stays open can be asked while its disk breaks: a dropped keyspace has other errors to give.
fn may_break(op: &Op) -> bool {
    !matches!(op, Op::Reopen { .. } | Op::DropAll { .. } | Op::UseDropped { .. })
}

/// An operation must not go wrong; where the disk breaks the store may refuse it.
fn judge(result: Check<Outcome>, breaks: bool) -> Check {
    match result {
        Ok(Outcome::Refused(error)) if breaks => must_be_of_the_disk(&error),
        Ok(Outcome::Refused(error)) => Err(Failure::from(error)),
        Ok(_) => Ok(()),
        Err(failure) => match failure.refused() {
            Some(error) if breaks => must_be_of_the_disk(error),
            _ => Err(failure),
        },
    }
}

/// A disk that says what it cannot do is not a damaged store.
fn must_be_of_the_disk(error: &Error) -> Check {
    match error {
        Error::Io { .. } | Error::NoSpace { .. } | Error::Halted { .. } => Ok(()),
        other => Err(Failure::new(format!("the disk broke, and the store says: {other}"))),
    }
}

/// What is mounted here must not be seen by anybody else.
fn must_be_alone() -> Check {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
    match (namespace("self"), namespace(&parent.to_string())) {
        (Some(mine), Some(other)) if mine != other => Ok(()),
        _ => Err(Failure::new("is started by `kvtorture kernel` only, in a mount namespace of its own")),
    }
}

/// Runs a program of the system to its end, and gives what it printed.
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
