//! One disk and the hand that works on it.
//!
//! Invariant: dropping it removes both: the hand is killed, its mounts and its loop device go with it, and the threads of
//! the disk end when the kernel closes their file.

use std::fmt::Debug;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::device::Device;
use super::fault::Content;
use super::image::{Event, Image};
use super::protocol::{Answer, Fs, Link, Look, Order, Play};
use crate::model::{Acks, Prefix};
use crate::report::{Check, Failure};

/// A hand that is silent for this long hangs, or its kernel does. No fault takes that long.
const HANGS_AFTER: Duration = Duration::from_mins(1);

/// The log of a disk during one incarnation of a store.
#[derive(Debug)]
pub(super) struct IncarnationLog {
    /// The content of the disk before.
    pub(super) base: Image,
    pub(super) events: Vec<Event>,
    /// The acknowledged and submitted writes after this many events, rising. The first entry is that of the open.
    pub(super) stamps: Vec<(usize, Acks)>,
    /// How many operations the store refused.
    pub(super) refused: u64,
    /// Errors that the store returned where none was due.
    pub(super) wrong: Option<String>,
}

/// A disk and its hand.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) device: Device,
    hand: Child,
    link: Link,
    fs: Fs,
    seed: u64,
    /// The disk with an empty file system.
    formatted: Image,
}

impl Lane {
    /// Makes a disk with an empty file system, and a hand on it.
    pub(super) fn new(fs: Fs, seed: u64) -> Check<Lane> {
        let device = Device::open(fs.disk_bytes(), seed).map_err(|error| cannot("open /dev/fuse", error))?;
        let (hand, link) = start_hand(fs, &device).map_err(|error| cannot("start the hand", error))?;
        let formatted = device.image();
        link.give_up_after(HANGS_AFTER).map_err(|error| cannot("watch over the hand", error))?;
        let mut lane = Lane { device, hand, link, fs, seed, formatted };
        lane.expect_done()?;
        lane.attach()?;
        lane.order(&Order::Format)?;
        lane.formatted = lane.device.image();
        Ok(lane)
    }

    /// A new lane like this one.
    ///
    /// # Errors
    /// Those of [`Lane::new`].
    pub(super) fn another(&self) -> Check<Lane> {
        Lane::new(self.fs, self.seed)
    }

    /// Whether the kernel has killed the hand because of a mapped file.
    pub(super) fn is_killed_by_a_map(&mut self) -> bool {
        let status = self.hand.try_wait().ok().flatten();
        status.and_then(|status| status.signal()) == Some(Signal::BUS.as_raw())
    }

    fn attach(&mut self) -> Check {
        self.device.serve().map_err(|error| cannot("start threads", error))?;
        self.send(&Order::Attach)?;
        match self.receive()? {
            Answer::Attached(number) => {
                // Mounts of the hand are visible through its root.
                let place = std::env::temp_dir().join("connections").join(format!("{number}/abort"));
                let root = format!("/proc/{}/root", self.hand.id());
                self.device.set_abort(Path::new(&root).join(place.strip_prefix("/").unwrap_or(&place)));
                Ok(())
            }
            Answer::Wrong(what) => Err(Failure::new(what)),
            other => Err(unexpected(&other)),
        }
    }

    /// Replaces a dead disk with a new one of the same content. Nothing on it may be mounted.
    ///
    /// # Errors
    /// The hand cannot release the old disk, or cannot take the new one.
    pub(super) fn replace_disk(&mut self, content: Content) -> Check {
        self.order(&Order::Detach)?;
        self.device =
            Device::open(self.fs.disk_bytes(), self.seed).map_err(|error| cannot("open /dev/fuse", error))?;
        self.device.set_content(content);
        let connection = self.device.connection().map_err(|error| cannot("hand over the disk", error))?;
        self.order(&Order::Connect(connection.as_raw_fd()))?;
        drop(connection);
        self.attach()
    }

    /// Restores the empty file system.
    pub(super) fn clear(&mut self) {
        self.device.set_image(self.formatted.clone());
    }

    /// Runs one incarnation on the content of the disk, and ends it with a crash.
    ///
    /// # Errors
    /// The hand is gone, or cannot unmount.
    pub(super) fn play(&mut self, play: Play) -> Check<IncarnationLog> {
        let incarnation = self.live(play, &mut |_, _| ())?;
        self.rest()?;
        Ok(incarnation)
    }

    /// Runs one incarnation. `after` gets the number of each operation (0 for the open) before the next one. The store is
    /// still open afterwards: see [`Lane::rest`].
    ///
    /// # Errors
    /// The hand is gone.
    pub(super) fn live(
        &mut self,
        play: Play,
        after: &mut dyn FnMut(usize, &Device),
    ) -> Check<IncarnationLog> {
        let base = self.device.image();
        self.device.start_log();
        self.send(&Order::Play(play))?;
        let mut stamps = Vec::new();
        let (refused, wrong) = loop {
            match self.receive()? {
                Answer::Did(acks) => {
                    stamps.push((self.device.position(), acks));
                    after(stamps.len() - 1, &self.device);
                    self.send(&Order::Go)?;
                }
                Answer::Lived(refused) => break (refused, None),
                Answer::Wrong(what) => break (0, Some(what)),
                other => return Err(unexpected(&other)),
            }
        };
        let events = self.device.take_log();
        Ok(IncarnationLog { base, events, stamps, refused, wrong })
    }

    /// Closes the store by a crash, and unmounts.
    ///
    /// # Errors
    /// The hand is gone, or cannot unmount.
    pub(super) fn rest(&mut self) -> Check {
        self.order(&Order::Rest)
    }

    /// Checks the content of the disk. `None` if the store or the file system refused, and may.
    ///
    /// # Errors
    /// The content is wrong, or the hand is gone.
    pub(super) fn look(&mut self, look: Look) -> Check<Option<Prefix>> {
        self.send(&Order::Look(look))?;
        match self.receive()? {
            Answer::Found(prefix) => Ok(Some(prefix)),
            Answer::Refused(_) => Ok(None),
            Answer::Wrong(what) => Err(Failure::new(what)),
            other => Err(unexpected(&other)),
        }
    }

    fn order(&mut self, order: &Order) -> Check {
        self.send(order)?;
        self.expect_done()
    }

    fn expect_done(&mut self) -> Check {
        match self.receive()? {
            Answer::Done => Ok(()),
            Answer::Wrong(what) => Err(Failure::new(what)),
            other => Err(unexpected(&other)),
        }
    }

    fn send(&mut self, order: &Order) -> Check {
        self.link.send(order).map_err(|error| cannot("talk to the hand", error))
    }

    fn receive(&mut self) -> Check<Answer> {
        let answer = self.link.receive().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Failure::new(format!("HANG: the store or the kernel gave no answer in {HANGS_AFTER:?}"))
            }
            _ => cannot("listen to the hand", error),
        })?;
        answer.ok_or_else(|| match self.hand.wait() {
            Ok(status) => Failure::new(format!("the hand ended: {status}")),
            Err(error) => cannot("wait for the hand", error),
        })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The hand may have ended already.
        let _ = self.hand.kill();
        let _ = self.hand.wait();
    }
}

/// Starts this program again, in its own mount namespace.
fn start_hand(fs: Fs, device: &Device) -> std::io::Result<(Child, Link)> {
    let (ours, theirs) = UnixStream::pair()?;
    // The running program itself, even if another was built in its place.
    let program = format!("/proc/{}/exe", std::process::id());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(program).args(["kernel-hand", fs.name()]);
    command.stdin(Stdio::from(device.connection()?)).stdout(Stdio::from(OwnedFd::from(theirs)));
    Ok((command.spawn()?, Link::new(ours)?))
}

fn cannot(what: &str, error: impl Into<std::io::Error>) -> Failure {
    Failure::new(format!("cannot {what}: {}", error.into()))
}

fn unexpected(answer: &impl Debug) -> Failure {
    Failure::new(format!("the hand said {answer:?}"))
}
