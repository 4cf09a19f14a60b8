//! A B+tree for many threads at once: writers lock the nodes they change, readers lock nothing.
//!
//! # The protocol
//! Every node has a [latch](super::latch): a version word. Whoever goes down reads a node *between two looks at its
//! word*, and takes what it read for true only if the word has not changed. On the way from a node to one below it the
//! order is: find the link; look at the word of the node below; look again at the word of this node. If that has not
//! changed, then the node below was the right one at the moment at which its word was read, and whatever happens to it
//! from then on shows in that word. If it has changed, the way begins anew at the root.
//!
//! A writer goes down like a reader and takes the latch of the leaf only, by an exchange that succeeds if the leaf's word
//! is still what it was. Full nodes are split on the way down: node and parent are latched (the parent has room, for it
//! would have been split itself), the upper part moves to a new node at the right, and the way begins anew. The pointer
//! to the root has a latch of its own, as if it were a node with one link, so that a root is split like any other node.
//! Latches are taken from top to bottom and by an attempt that never waits, so nobody waits for one while he holds one.
//!
//! Keys that come in order go straight to the rightmost leaf, which is noted. The note is a hint: the leaf counts as the
//! rightmost if it has no neighbour at its right between two looks at its word, the second of which takes its latch.
//!
//! Nothing is ever removed and no memory is used again while the tree lives. So a reader that follows a link which has
//! just become stale finds an old node or entry, never garbage, and learns at the next look that it must begin anew.
//!
//! # Entries
//! A leaf leads to the newest version of each key, and each version to the next older one, in the order of `Seq`. A
//! version is complete before it is linked, and is linked under the latch of its leaf; it is found from that moment on.
//! Versions arrive in about the order of `Seq`; one that comes late is put into its place in the chain. Whoever has found
//! a version may go on along the chain without looking at any word.
//!
//! # What was left out
//! Nodes hold no keys but references: then splits move 12 bytes a key, and a node needs no memory of varying size. A
//! skip list needs no splits at all, but takes 25 cache misses where this takes 5.

use std::sync::Arc;

use super::arena::{Arena, Link, Ref, Version};
use super::latch::{Changed, Latch, Stamp};
use super::node::{FANOUT, Node, Rank};
use super::pool::ArenaPool;
use crate::base::key::{Entry, Seq};
use crate::base::prefetch::prefetch;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tree {
    arena: Arena,
    /// Guards `root`.
    latch: Latch,
    root: Link<Node>,
    /// The rightmost leaf, or one that was.
    last: Link<Node>,
}

/// Which leaf is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// The one in which this key is, or would be.
    At(&'a [u8]),
    /// The one in which the last key below this one is; the leftmost if there is none.
    Before(&'a [u8]),
    Rightmost,
}

/// What a leaf held at one moment: the newest version of each key, and where its neighbours are.
#[derive(Debug)]
pub(super) struct Leaf {
    /// How many keys are below the target's.
    rank: usize,
    versions: [Option<Ref<Version>>; FANOUT],
    low: Option<Ref<Version>>,
    next: Option<Ref<Node>>,
}

/// A node on the way down, and its word when it was the right one.
#[derive(Clone, Copy, Debug)]
struct Spot<'a> {
    at: Ref<Node>,
    node: &'a Node,
    stamp: Stamp,
}

/// What leads to a node: the root's pointer, or a node above.
#[derive(Clone, Copy, Debug)]
struct Above<'a> {
    latch: &'a Latch,
    stamp: Stamp,
    node: Option<&'a Node>,
}

impl Tree {
    pub(super) fn new(pool: &Arc<ArenaPool>) -> Tree {
        Tree { arena: Arena::new(pool), latch: Latch::new(), root: Link::new(None), last: Link::new(None) }
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.load().is_none()
    }

    /// Makes a version, which nobody finds yet; adds what the arena grows by to `grown_bytes`.
    pub(super) fn place(&self, entry: Entry<'_>, grown_bytes: &mut usize) -> Ref<Version> {
        self.arena.version(entry, grown_bytes)
    }

    /// Adds a version that was placed, and whose key this is. The same key and `seq` twice is a bug.
    pub(super) fn link(&self, key: &[u8], version: Ref<Version>, grown_bytes: &mut usize) {
        if !matches!(self.try_append(key, version), Ok(true)) {
            while self.try_insert(key, version, grown_bytes).is_err() {}
        }
    }

    /// The newest version of `key` below `snapshot`.
    pub(super) fn find(&self, key: &[u8], snapshot: Seq) -> Option<Entry<'_>> {
        let mut version = self.newest(key);
        while let Some(at) = version {
            if self.arena.seq(at) < snapshot {
                return Some(self.arena.entry(at));
            }
            version = self.arena.older(at).load();
        }
        None
    }

    /// What the leaf holds; `None` when the tree is empty.
    pub(super) fn leaf(&self, target: Target<'_>) -> Option<Leaf> {
        loop {
            let copied = self.descend(target).and_then(|spot| match spot {
                Some(spot) => self.copy(spot, target).map(Some),
                None => Ok(None),
            });
            if let Ok(leaf) = copied {
                return leaf;
            }
        }
    }

    /// What the leaf at the right holds.
    pub(super) fn next_leaf(&self, leaf: &Leaf) -> Option<Leaf> {
        let at = leaf.next?;
        loop {
            let node = self.arena.get(at);
            let spot = Spot { at, node, stamp: node.latch.begin() };
            if let Ok(leaf) = self.copy(spot, Target::At(b"")) {
                // Whoever comes here walks far.
                leaf.next.into_iter().for_each(|next| prefetch(self.arena.get(next)));
                return Some(leaf);
            }
        }
    }

    /// What the leaf at the left holds now.
    pub(super) fn leaf_before(&self, leaf: &Leaf) -> Option<Leaf> {
        self.leaf(Target::Before(self.arena.key(leaf.low?)))
    }

    fn newest(&self, key: &[u8]) -> Option<Ref<Version>> {
        loop {
            if let Ok(found) = self.try_newest(key) {
                return found;
            }
        }
    }

    fn try_newest(&self, key: &[u8]) -> Result<Option<Ref<Version>>, Changed> {
        let Some(Spot { node, stamp, .. }) = self.descend(Target::At(key))? else { return Ok(None) };
        let Rank { index, found } = node.rank(&self.arena, key)?;
        let version = if found { Some(node.version(index)?) } else { None };
        node.latch.check(stamp)?;
        Ok(version)
    }

    /// Goes down to a leaf; `None` when the tree is empty.
    fn descend(&self, target: Target<'_>) -> Result<Option<Spot<'_>>, Changed> {
        let Some((_, mut here)) = self.enter()? else { return Ok(None) };
        while !here.node.is_leaf() {
            here = self.below(here, self.kid_for(here.node, target)?)?;
        }
        Ok(Some(here))
    }

    /// The root, and what leads to it.
    fn enter(&self) -> Result<Option<(Above<'_>, Spot<'_>)>, Changed> {
        let above = Above { latch: &self.latch, stamp: self.latch.begin(), node: None };
        let Some(at) = self.root.load() else { return Ok(None) };
        let node = self.arena.get(at);
        let here = Spot { at, node, stamp: node.latch.begin() };
        above.latch.check(above.stamp)?;
        Ok(Some((above, here)))
    }

    /// One step down: the word of the node below first, then that of this one again.
    fn below(&self, here: Spot<'_>, index: usize) -> Result<Spot<'_>, Changed> {
        let at = here.node.kid(index)?;
        let node = self.arena.get(at);
        // All at once: a search would wait for one line after the other.
        prefetch(node);
        let below = Spot { at, node, stamp: node.latch.begin() };
        here.node.latch.check(here.stamp)?;
        Ok(below)
    }

    fn kid_for(&self, node: &Node, target: Target<'_>) -> Result<usize, Changed> {
        let index = match target {
            Target::At(key) => {
                let Rank { index, found } = node.rank(&self.arena, key)?;
                if found { index } else { index.saturating_sub(1) }
            }
            Target::Before(key) => node.rank(&self.arena, key)?.index.saturating_sub(1),
            Target::Rightmost => node.len().saturating_sub(1),
        };
        Ok(index)
    }

    fn copy(&self, spot: Spot<'_>, target: Target<'_>) -> Result<Leaf, Changed> {
        let Spot { node, stamp, .. } = spot;
        let len = node.len();
        let rank = match target {
            Target::At(key) | Target::Before(key) => node.rank(&self.arena, key)?.index,
            Target::Rightmost => len,
        };
        let mut versions = [None; FANOUT];
        for (index, version) in versions.iter_mut().enumerate().take(len) {
            *version = Some(node.version(index)?);
        }
        let leaf = Leaf { rank, versions, low: node.low(), next: node.next.load() };
        node.latch.check(stamp)?;
        Ok(leaf)
    }

    /// Adds a key behind all others, if it belongs there and the rightmost leaf is at hand and has room.
    fn try_append(&self, key: &[u8], version: Ref<Version>) -> Result<bool, Changed> {
        let Some(at) = self.last.load() else { return Ok(false) };
        let node = self.arena.get(at);
        let stamp = node.latch.try_begin()?;
        let is_rightmost = node.next.load().is_none();
        if !is_rightmost || node.is_full() || !node.ends_before(&self.arena, key)? {
            return Ok(false);
        }
        let _held = node.latch.hold(stamp)?;
        node.insert_version(&self.arena, node.len(), version);
        Ok(true)
    }

    fn try_insert(&self, key: &[u8], version: Ref<Version>, grown_bytes: &mut usize) -> Result<(), Changed> {
        let Some((mut above, mut here)) = self.enter()? else { return self.plant(version, grown_bytes) };
        loop {
            if here.node.is_full() {
                self.split(above, here, key, grown_bytes)?;
                return Err(Changed);
            }
            if here.node.is_leaf() {
                return self.insert_into(here, key, version);
            }
            let below = self.below(here, self.kid_for(here.node, Target::At(key))?)?;
            above = Above { latch: &here.node.latch, stamp: here.stamp, node: Some(here.node) };
            here = below;
        }
    }

    /// Makes the first node.
    fn plant(&self, version: Ref<Version>, grown_bytes: &mut usize) -> Result<(), Changed> {
        let _held = self.latch.hold(self.latch.begin())?;
        if self.root.load().is_some() {
            return Err(Changed);
        }
        let leaf = self.arena.place(Node::first_leaf(&self.arena, version), grown_bytes);
        self.root.store(Some(leaf));
        self.last.store(Some(leaf));
        Ok(())
    }

    /// Links a version into its leaf, which has room for one more key.
    fn insert_into(&self, leaf: Spot<'_>, key: &[u8], version: Ref<Version>) -> Result<(), Changed> {
        let Rank { index, found } = leaf.node.rank(&self.arena, key)?;
        let _held = leaf.node.latch.hold(leaf.stamp)?;
        if !found {
            leaf.node.insert_version(&self.arena, index, version);
            return Ok(());
        }
        let newest = leaf.node.version(index)?;
        if let Some(newer) = self.newer_neighbour(newest, version) {
            let link = self.arena.older(newer);
            self.arena.older(version).store(link.load());
            link.store(Some(version));
        } else {
            self.arena.older(version).store(Some(newest));
            leaf.node.replace_version(index, version);
        }
        Ok(())
    }

    /// The last version in the chain that is newer; `None` when none is.
    fn newer_neighbour(&self, newest: Ref<Version>, version: Ref<Version>) -> Option<Ref<Version>> {
        let seq = self.arena.seq(version);
        let (mut newer, mut next) = (None, Some(newest));
        while let Some(at) = next {
            let other = self.arena.seq(at);
            debug_assert!(other != seq, "one record holds a key once");
            if other < seq {
                break;
            }
            newer = Some(at);
            next = self.arena.older(at).load();
        }
        newer
    }

    /// Splits a full node; what is above it has room.
    fn split(
        &self,
        above: Above<'_>,
        here: Spot<'_>,
        key: &[u8],
        grown_bytes: &mut usize,
    ) -> Result<(), Changed> {
        let _above_held = above.latch.hold(above.stamp)?;
        let _held = here.node.latch.hold(here.stamp)?;
        let right = here.node.split(&self.arena, self.split_point(here.node, key)?, grown_bytes)?;
        let new = self.arena.get(right);
        if new.is_leaf() && new.next.load().is_none() {
            self.last.store(Some(right));
        }
        if let Some(parent) = above.node {
            let low = new.low().expect("what is at the right of a split has a first key");
            let index = parent.rank(&self.arena, self.arena.key(low))?.index;
            parent.insert_kid(&self.arena, index, right);
        } else {
            let root = self.arena.place(Node::root(&self.arena, here.at, right), grown_bytes);
            self.root.store(Some(root));
        }
        Ok(())
    }

    /// The middle; but at the right edge of the tree nearly all stays, since keys that come in order never come back.
    fn split_point(&self, node: &Node, key: &[u8]) -> Result<usize, Changed> {
        let len = node.len();
        let is_last = node.next.load().is_none() && node.rank(&self.arena, key)?.index == len;
        Ok(if is_last { len - len.div_ceil(10) } else { len / 2 })
    }
}

impl Leaf {
    /// How many keys are below the one that the leaf was looked up for.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// The newest version of the key at `index`; `None` behind the last.
    pub(super) fn version(&self, index: usize) -> Option<Ref<Version>> {
        self.versions.get(index).copied().flatten()
    }

    /// As [`Leaf::version`], of so many keys from `from` on, as far as there are any.
    pub(super) fn versions(&self, from: usize, count: usize) -> impl Iterator<Item = Ref<Version>> {
        self.versions.iter().skip(from).take(count).copied().flatten()
    }
}
