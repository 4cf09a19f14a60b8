//! The identity of a file in the profile: device, inode and name. A number of a descriptor is used again for another
//! file; this is not.
//!
//! The name is the last part of the path, so that a file is the same one under an absolute and a relative path. It tells
//! a new file from an old one whose inode it got, unless that had the same name.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

/// The kind of a file whose opener has named none.
pub(crate) static OTHER: &str = "other";

/// Descriptors that are not files of a backend and whose identity a context remembers.
const REMEMBERED: usize = 64;

/// A file, as the profile knows it. See the [module](self).
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) path: Box<Path>,
    /// Over device, inode and name.
    pub(crate) hash: u64,
    kind: OnceLock<&'static str>,
}

impl Identity {
    pub(crate) fn new(device: u64, inode: u64, path: &Path) -> Identity {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let mut hash = mix(device, inode);
        for chunk in name.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash, u64::from_le_bytes(word));
        }
        Identity { device, inode, path: path.into(), hash, kind: OnceLock::new() }
    }

    /// That of an open descriptor; `None` if the kernel does not tell.
    pub(crate) fn of_descriptor(descriptor: BorrowedFd<'_>) -> Option<Identity> {
        let stat = rustix::fs::fstat(descriptor).ok()?;
        let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let path = std::fs::read_link(link).unwrap_or_default();
        Some(Identity::new(stat.st_dev, stat.st_ino, &path))
    }

    /// The kind of the file, see [`File::set_kind`](crate::File::set_kind).
    pub(crate) fn kind(&self) -> &'static str {
        self.kind.get().copied().unwrap_or(OTHER)
    }

    /// The first name that is given stays.
    pub(crate) fn set_kind(&self, kind: &'static str) {
        let _ = self.kind.set(kind);
    }
}

/// Mixes two words: each bit of the result depends on every bit of both.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    // Any odd numbers with as many ones as zeros; they keep small words away from each other, and from 0.
    const A: u64 = 0xA076_1D64_78BD_642F;
    const B: u64 = 0xE703_7ED1_A0B4_28DB;
    let (low, high) = (a ^ A).carrying_mul(b ^ B, 0);
    low ^ high
}

/// The owner of a descriptor that no backend has opened.
pub(crate) type Owner = Arc<dyn AsFd + Send + Sync>;

/// Identities of descriptors, so that the kernel is asked once for each owner and not for each operation.
///
/// An owner is known by its address. The weak handle keeps that address from being given to another one.
#[derive(Default)]
pub(crate) struct Identities(Vec<Option<Known>>);

struct Known {
    owner: Weak<dyn AsFd + Send + Sync>,
    identity: Option<Arc<Identity>>,
}

impl Identities {
    pub(crate) fn of(&mut self, owner: &Owner) -> Option<Arc<Identity>> {
        if self.0.is_empty() {
            self.0.resize_with(REMEMBERED, || None);
        }
        let address = Arc::as_ptr(owner).addr();
        let at = usize::try_from(mix(address as u64, 0)).unwrap_or(0) % REMEMBERED;
        match &self.0[at] {
            Some(known) if known.owner.as_ptr().addr() == address => known.identity.clone(),
            _ => {
                let identity = Identity::of_descriptor(owner.as_fd()).map(Arc::new);
                self.0[at] = Some(Known { owner: Arc::downgrade(owner), identity: identity.clone() });
                identity
            }
        }
    }
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({})", self.0.iter().flatten().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_device_inode_and_name() {
        let hash = |device, inode, path: &str| Identity::new(device, inode, Path::new(path)).hash;
        let file = hash(1, 2, "/data/a");
        assert_eq!(file, hash(1, 2, "/data/a"));
        assert_eq!(file, hash(1, 2, "a"), "under a relative path");
        for other in [hash(2, 1, "/data/a"), hash(1, 3, "/data/a"), hash(1, 2, "/data/b"), hash(1, 2, "/")] {
            assert_ne!(file, other);
        }
    }

    #[test]
    fn an_owner_is_asked_once_and_a_new_one_at_its_address_again() {
        let mut identities = Identities::default();
        let dir = tempfile::tempdir().unwrap();
        for number in 0..200 {
            let path = dir.path().join(number.to_string());
            let owner: Owner = Arc::new(std::fs::File::create_new(&path).unwrap());
            let found = identities.of(&owner).unwrap();
            assert_eq!(*found.path, path.canonicalize().unwrap());
            assert!(Arc::ptr_eq(&found, &identities.of(&owner).unwrap()));
        }
    }
}
