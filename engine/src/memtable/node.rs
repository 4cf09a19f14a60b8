//! A node of the tree: up to [`FANOUT`] keys in order. Each key is a link, and a number that is compared first.
//!
//! That number is the *head* of the key: the eight bytes behind the prefix that all keys of the node share, with the order of
//! the bytes. A search compares heads, which are adjacent in memory, and reads a key only where heads are equal.
//! In a leaf the link leads to the newest version of the key, in an inner node to the node below whose keys begin there.
//!
//! Keys of a node are at or above its `low` and below the `low` of its right neighbour, `next`. The bytes that these two
//! share are the prefix. The `low` of a node never changes: a split moves the upper part to a new node at the right.
//!
//! Invariant: fields are changed only while the node's latch is held. Functions that only read may be called without it;
//! their result is valid if a [check](super::latch::Latch::check) succeeds afterwards.

use std::cmp::Ordering::{Equal, Greater, Less};

use super::arena::{Arena, KeyVersion, Link, Ref};
use super::latch::{Changed, Latch};
use crate::base::sync::{AtomicU32, AtomicU64, Ordering};

/// The most keys in a node. Few in the models, so that splits come soon.
pub(super) const FANOUT: usize = if cfg!(loom) { 3 } else { 64 };

/// Bytes of a head.
const HEAD_BYTES: usize = 8;

/// See the [module](self).
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Node {
    pub(super) latch: Latch,
    count: AtomicU32,
    /// Bytes that all its keys share.
    prefix: AtomicU32,
    /// A version of the key at which it begins; the leftmost nodes begin before every key.
    low: Option<Ref<KeyVersion>>,
    /// The node at its right on the same level.
    pub(super) next: Link<Node>,
    heads: [AtomicU64; FANOUT],
    links: Links,
}

/// The links of a node's keys.
#[derive(Debug)]
pub(super) enum Links {
    Versions([Link<KeyVersion>; FANOUT]),
    Kids([Link<Node>; FANOUT]),
}

/// The position of a key in a node, present or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rank {
    /// Number of keys below it.
    pub(super) index: usize,
    /// Whether the key at `index` is this one.
    pub(super) found: bool,
}

impl Node {
    /// A leaf with one key, which is the whole tree.
    pub(super) fn first_leaf(arena: &Arena, version: Ref<KeyVersion>) -> Node {
        let leaf = Node::empty(None, None, Links::Versions(no_links()));
        leaf.put_version(arena, 0, version);
        leaf.count.store(1, Ordering::Relaxed);
        leaf
    }

    /// A root above two nodes.
    pub(super) fn root(arena: &Arena, left: Ref<Node>, right: Ref<Node>) -> Node {
        let root = Node::empty(None, None, Links::Kids(no_links()));
        root.insert_kid(arena, 0, left);
        root.insert_kid(arena, 1, right);
        root
    }

    fn empty(low: Option<Ref<KeyVersion>>, next: Option<Ref<Node>>, links: Links) -> Node {
        Node {
            latch: Latch::new(),
            count: AtomicU32::new(0),
            prefix: AtomicU32::new(0),
            low,
            next: Link::new(next),
            heads: std::array::from_fn(|_| AtomicU64::new(0)),
            links,
        }
    }

    pub(super) fn len(&self) -> usize {
        (self.count.load(Ordering::Relaxed) as usize).min(FANOUT)
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == FANOUT
    }

    pub(super) fn is_leaf(&self) -> bool {
        matches!(self.links, Links::Versions(_))
    }

    pub(super) fn low(&self) -> Option<Ref<KeyVersion>> {
        self.low
    }

    /// The newest version of the key at `index`, in a leaf.
    pub(super) fn version(&self, index: usize) -> Result<Ref<KeyVersion>, Changed> {
        match &self.links {
            Links::Versions(versions) => versions.get(index).and_then(Link::load).ok_or(Changed),
            Links::Kids(_) => Err(Changed),
        }
    }

    /// The node below at `index`, in an inner node.
    pub(super) fn kid(&self, index: usize) -> Result<Ref<Node>, Changed> {
        match &self.links {
            Links::Kids(kids) => kids.get(index).and_then(Link::load).ok_or(Changed),
            Links::Versions(_) => Err(Changed),
        }
    }

    /// The position of `key` among the keys. In an inner node `low` replaces the first key, or the empty key if there is no
    /// `low`.
    pub(super) fn rank(&self, arena: &Arena, key: &[u8]) -> Result<Rank, Changed> {
        let head = head(key, self.prefix.load(Ordering::Relaxed) as usize);
        let (mut low, mut high) = (self.heads_below(head), self.len());
        // The first key with an equal head is nearly always the only one, so it is compared first. Where heads are equal
        // up to the end (the nodes at the edges have no prefix), keys that come in order belong behind the last.
        let last = high.saturating_sub(1);
        let mut probe = if self.heads[last].load(Ordering::Relaxed) == head { last.max(low) } else { low };
        while low < high {
            let order = match self.heads[probe].load(Ordering::Relaxed).cmp(&head) {
                Equal => self.key(arena, probe)?.cmp(key),
                order => order,
            };
            match order {
                Equal => return Ok(Rank { index: probe, found: true }),
                Less => low = probe + 1,
                Greater => high = probe,
            }
            probe = low.midpoint(high);
        }
        Ok(Rank { index: low, found: false })
    }

    /// Whether `key` is above all its keys, in the rightmost leaf: this one has no prefix, so only the last key has to be
    /// compared.
    #[inline]
    pub(super) fn ends_before(&self, arena: &Arena, key: &[u8]) -> Result<bool, Changed> {
        let Some(last) = self.len().checked_sub(1) else { return Ok(false) };
        match self.heads[last].load(Ordering::Relaxed).cmp(&head(key, 0)) {
            Equal => Ok(self.key(arena, last)? < key),
            order => Ok(order == Less),
        }
    }

    /// Number of heads below this one. The search has no branch that can be mispredicted.
    fn heads_below(&self, head: u64) -> usize {
        let below = |index: usize| self.heads[index % FANOUT].load(Ordering::Relaxed) < head;
        let (mut base, mut len) = (0, self.len());
        while len > 1 {
            let half = len / 2;
            base += if below(base + half - 1) { half } else { 0 };
            len -= half;
        }
        base + usize::from(len == 1 && below(base))
    }

    fn key<'a>(&self, arena: &'a Arena, index: usize) -> Result<&'a [u8], Changed> {
        let version = match &self.links {
            Links::Versions(_) => Some(self.version(index)?),
            Links::Kids(_) => arena.get(self.kid(index)?).low,
        };
        Ok(version.map_or(&[], |version| arena.key(version)))
    }

    /// Makes `version` the newest of the key at `index`. With the latch.
    pub(super) fn replace_version(&self, index: usize, version: Ref<KeyVersion>) {
        if let Links::Versions(versions) = &self.links {
            versions[index].store(Some(version));
        }
    }

    /// Puts a new key at `index`. With the latch; the node is not full.
    pub(super) fn insert_version(&self, arena: &Arena, index: usize, version: Ref<KeyVersion>) {
        self.make_room(index);
        self.put_version(arena, index, version);
    }

    /// Puts a node at `index`. With the latch; the node is not full.
    pub(super) fn insert_kid(&self, arena: &Arena, index: usize, kid: Ref<Node>) {
        self.make_room(index);
        self.put_kid(arena, index, kid);
    }

    fn put_version(&self, arena: &Arena, index: usize, version: Ref<KeyVersion>) {
        let Links::Versions(versions) = &self.links else { return };
        versions[index].store(Some(version));
        self.put_head(index, arena.key(version));
    }

    fn put_kid(&self, arena: &Arena, index: usize, kid: Ref<Node>) {
        let Links::Kids(kids) = &self.links else { return };
        kids[index].store(Some(kid));
        self.put_head(index, arena.get(kid).low.map_or(&[], |low| arena.key(low)));
    }

    fn put_head(&self, index: usize, key: &[u8]) {
        let head = head(key, self.prefix.load(Ordering::Relaxed) as usize);
        self.heads[index].store(head, Ordering::Relaxed);
    }

    /// Moves the keys from `index` up by one.
    fn make_room(&self, index: usize) {
        let len = self.len();
        debug_assert!(index <= len);
        debug_assert!(len < FANOUT, "full nodes are split first");
        for from in (index..len).rev() {
            self.heads[from + 1].store(self.heads[from].load(Ordering::Relaxed), Ordering::Relaxed);
        }
        match &self.links {
            Links::Versions(links) => shift(links, index, len),
            Links::Kids(links) => shift(links, index, len),
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the keys from `index` on to a new node at the right. With the latch; 0 < `index` < [`Node::len`].
    pub(super) fn split(
        &self,
        arena: &Arena,
        index: usize,
        grown_bytes: &mut usize,
    ) -> Result<Ref<Node>, Changed> {
        let (links, low) = match &self.links {
            Links::Versions(links) => (Links::Versions(upper(links, index)), Some(self.version(index)?)),
            Links::Kids(links) => (Links::Kids(upper(links, index)), arena.get(self.kid(index)?).low),
        };
        let next = self.next.load();
        let right = Node::empty(low, next, links);
        for (to, from) in right.heads.iter().zip(&self.heads[index..]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        right.count.store(self.count.load(Ordering::Relaxed) - count(index), Ordering::Relaxed);
        right.prefix.store(self.prefix.load(Ordering::Relaxed), Ordering::Relaxed);
        right.set_prefix(arena, low, next.and_then(|next| arena.get(next).low));
        let right = arena.place(right, grown_bytes);
        self.count.store(count(index), Ordering::Relaxed);
        self.next.store(Some(right));
        self.set_prefix(arena, self.low, low);
        Ok(right)
    }

    /// Computes the heads anew if all keys from `low` to below `high` share more bytes than the current prefix.
    fn set_prefix(&self, arena: &Arena, low: Option<Ref<KeyVersion>>, high: Option<Ref<KeyVersion>>) {
        let (Some(low), Some(high)) = (low, high) else { return };
        let shared = count(shared_bytes(arena.key(low), arena.key(high)));
        if shared == self.prefix.load(Ordering::Relaxed) {
            return;
        }
        self.prefix.store(shared, Ordering::Relaxed);
        for index in 0..self.len() {
            let key = self.key(arena, index).expect("the holder of the latch finds every link");
            self.put_head(index, key);
        }
    }
}

fn no_links<T>() -> [Link<T>; FANOUT] {
    std::array::from_fn(|_| Link::new(None))
}

/// The links from `index` on.
fn upper<T>(links: &[Link<T>; FANOUT], index: usize) -> [Link<T>; FANOUT] {
    std::array::from_fn(|to| Link::new(links.get(index + to).and_then(Link::load)))
}

fn shift<T>(links: &[Link<T>; FANOUT], index: usize, len: usize) {
    for from in (index..len).rev() {
        links[from + 1].store(links[from].load());
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("keys have less than 65,536 bytes, nodes less keys")
}

fn shared_bytes(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Eight bytes of `key` from `prefix` on as a number, zeros behind a short key: `a <= b` gives `head(a) <= head(b)`.
fn head(key: &[u8], prefix: usize) -> u64 {
    let rest = key.get(prefix..).unwrap_or_default();
    let bytes = rest.first_chunk::<HEAD_BYTES>().copied().unwrap_or_else(|| {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..rest.len()].copy_from_slice(rest);
        bytes
    });
    u64::from_le_bytes(bytes).swap_bytes()
}
