//! A concurrent B+tree: writers lock the nodes that they change, readers lock nothing.
//!
//! # The protocol
//! Every node has a [latch](super::latch): a version word. A descent reads a node *between two loads of its word*, and
//! uses the values only if the word has not changed. The order of a step down is: find the link; load the word of the node
//! below; load the word of this node again. If this word has not changed, the node below was the right one when its word was
//! loaded, and every later change of it shows in that word. If this word has changed, the descent starts again at the root.
//!
//! A writer descends like a reader and latches the leaf only, by an exchange that succeeds if the leaf's word has not
//! changed. Full nodes are split on the way down: node and parent are latched (the parent has room, or it would have been
//! split itself), the upper part moves to a new node at the right, and the descent starts again. The pointer to the root has
//! a latch of its own, as if it were a node with one link, so that a root is split like any other node. Latches are taken
//! from top to bottom, by an attempt that never waits, so no thread waits for a latch while it holds one.
//!
//! The tree remembers its rightmost leaf, and keys inserted in order go straight to it. The pointer is a hint: the leaf is
//! the rightmost one if it has no right neighbour between two loads of its word, the second of which takes its latch.
//!
//! Nothing is removed and no memory is reused while the tree lives. So a reader that follows a link which has just become
//! stale finds an old node or entry, never garbage, and its next check makes it start again.
//!
//! # Entries
//! A leaf links to the newest version of each key, and each version to the next older one, in the order of `Seq`. A version
//! is complete before it is linked under the latch of its leaf; from then on it is found. Versions arrive in about the order
//! of `Seq`; a late one is inserted further down the chain. A reader that has found a version may follow the chain without a
//! check.
//!
//! # Rejected
//! - Keys inside nodes: with references a split moves 12 bytes per key, and nodes have a fixed size.
//! - A skip list: it needs no splits, but takes 25 cache misses where this tree takes 5.

use std::sync::Arc;

use super::arena::{Arena, KeyVersion, Link, Ref};
use super::latch::{Changed, Latch, Stamp};
use super::node::{FANOUT, Node, Rank};
use super::pool::ArenaPool;
use crate::base::key::{Entry, Seq};
use crate::base::prefetch::prefetch;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct KeyTree {
    arena: Arena,
    /// Guards `root`.
    latch: Latch,
    root: Link<Node>,
    /// The rightmost leaf, or an earlier rightmost leaf.
    last: Link<Node>,
}

/// The leaf that a descent searches.
#[derive(Clone, Copy, Debug)]
pub(super) enum LeafTarget<'a> {
    /// The leaf in which this key is, or would be.
    At(&'a [u8]),
    /// The leaf with the last key below this one; the leftmost leaf if there is none.
    Before(&'a [u8]),
    Rightmost,
}

/// The content of a leaf at one moment: the newest version of each key, and the neighbours.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Number of keys below the target's.
    rank: usize,
    versions: [Option<Ref<KeyVersion>>; FANOUT],
    low: Option<Ref<KeyVersion>>,
    next: Option<Ref<Node>>,
}

/// A node of a descent, and its stamp when it was the right one.
#[derive(Clone, Copy, Debug)]
struct Visit<'a> {
    at: Ref<Node>,
    node: &'a Node,
    stamp: Stamp,
}

/// The parent of a node: the root's pointer, or the node above.
#[derive(Clone, Copy, Debug)]
struct Above<'a> {
    latch: &'a Latch,
    stamp: Stamp,
    node: Option<&'a Node>,
}

impl KeyTree {
    pub(super) fn new(pool: &Arc<ArenaPool>) -> KeyTree {
        KeyTree { arena: Arena::new(pool), latch: Latch::new(), root: Link::new(None), last: Link::new(None) }
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.load().is_none()
    }

    /// Makes a version that is not linked yet; adds the growth of the arena to `grown_bytes`.
    pub(super) fn place(&self, entry: Entry<'_>, grown_bytes: &mut usize) -> Ref<KeyVersion> {
        self.arena.version(entry, grown_bytes)
    }

    /// Links a placed version of `key`. The same key and `seq` twice is a bug.
    pub(super) fn link(&self, key: &[u8], version: Ref<KeyVersion>, grown_bytes: &mut usize) {
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

    /// The content of the leaf; `None` when the tree is empty.
    pub(super) fn leaf(&self, target: LeafTarget<'_>) -> Option<Leaf> {
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

    /// The content of the leaf at the right.
    pub(super) fn next_leaf(&self, leaf: &Leaf) -> Option<Leaf> {
        let at = leaf.next?;
        loop {
            let node = self.arena.get(at);
            let spot = Visit { at, node, stamp: node.latch.begin() };
            if let Ok(leaf) = self.copy(spot, LeafTarget::At(b"")) {
                // The cursor will need the next leaf, too.
                leaf.next.into_iter().for_each(|next| prefetch(self.arena.get(next)));
                return Some(leaf);
            }
        }
    }

    /// The current content of the leaf at the left.
    pub(super) fn leaf_before(&self, leaf: &Leaf) -> Option<Leaf> {
        self.leaf(LeafTarget::Before(self.arena.key(leaf.low?)))
    }

    fn newest(&self, key: &[u8]) -> Option<Ref<KeyVersion>> {
        loop {
            if let Ok(found) = self.try_newest(key) {
                return found;
            }
        }
    }

    fn try_newest(&self, key: &[u8]) -> Result<Option<Ref<KeyVersion>>, Changed> {
        let Some(Visit { node, stamp, .. }) = self.descend(LeafTarget::At(key))? else { return Ok(None) };
        let Rank { index, found } = node.rank(&self.arena, key)?;
        let version = if found { Some(node.version(index)?) } else { None };
        node.latch.check(stamp)?;
        Ok(version)
    }

    /// Descends to a leaf; `None` when the tree is empty.
    fn descend(&self, target: LeafTarget<'_>) -> Result<Option<Visit<'_>>, Changed> {
        let Some((_, mut here)) = self.enter()? else { return Ok(None) };
        while !here.node.is_leaf() {
            here = self.below(here, self.kid_for(here.node, target)?)?;
        }
        Ok(Some(here))
    }

    /// The root, and its parent.
    fn enter(&self) -> Result<Option<(Above<'_>, Visit<'_>)>, Changed> {
        let above = Above { latch: &self.latch, stamp: self.latch.begin(), node: None };
        let Some(at) = self.root.load() else { return Ok(None) };
        let node = self.arena.get(at);
        let here = Visit { at, node, stamp: node.latch.begin() };
        above.latch.check(above.stamp)?;
        Ok(Some((above, here)))
    }

    /// One step down: loads the word of the node below first, then checks that of this one.
    fn below(&self, here: Visit<'_>, index: usize) -> Result<Visit<'_>, Changed> {
        let at = here.node.kid(index)?;
        let node = self.arena.get(at);
        // Prefetches all lines at once. Otherwise the search would wait for one after the other.
        prefetch(node);
        let below = Visit { at, node, stamp: node.latch.begin() };
        here.node.latch.check(here.stamp)?;
        Ok(below)
    }

    fn kid_for(&self, node: &Node, target: LeafTarget<'_>) -> Result<usize, Changed> {
        let index = match target {
            LeafTarget::At(key) => {
                let Rank { index, found } = node.rank(&self.arena, key)?;
                if found { index } else { index.saturating_sub(1) }
            }
            LeafTarget::Before(key) => node.rank(&self.arena, key)?.index.saturating_sub(1),
            LeafTarget::Rightmost => node.len().saturating_sub(1),
        };
        Ok(index)
    }

    fn copy(&self, spot: Visit<'_>, target: LeafTarget<'_>) -> Result<Leaf, Changed> {
        let Visit { node, stamp, .. } = spot;
        let len = node.len();
        let rank = match target {
            LeafTarget::At(key) | LeafTarget::Before(key) => node.rank(&self.arena, key)?.index,
            LeafTarget::Rightmost => len,
        };
        let mut versions = [None; FANOUT];
        for (index, version) in versions.iter_mut().enumerate().take(len) {
            *version = Some(node.version(index)?);
        }
        let leaf = Leaf { rank, versions, low: node.low(), next: node.next.load() };
        node.latch.check(stamp)?;
        Ok(leaf)
    }

    /// Adds a key behind all others, if it belongs there and the remembered rightmost leaf has room.
    fn try_append(&self, key: &[u8], version: Ref<KeyVersion>) -> Result<bool, Changed> {
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

    fn try_insert(
        &self,
        key: &[u8],
        version: Ref<KeyVersion>,
        grown_bytes: &mut usize,
    ) -> Result<(), Changed> {
        let Some((mut above, mut here)) = self.enter()? else { return self.plant(version, grown_bytes) };
        loop {
            if here.node.is_full() {
                self.split(above, here, key, grown_bytes)?;
                return Err(Changed);
            }
            if here.node.is_leaf() {
                return self.insert_into(here, key, version);
            }
            let below = self.below(here, self.kid_for(here.node, LeafTarget::At(key))?)?;
            above = Above { latch: &here.node.latch, stamp: here.stamp, node: Some(here.node) };
            here = below;
        }
    }

    /// Makes the first node.
    fn plant(&self, version: Ref<KeyVersion>, grown_bytes: &mut usize) -> Result<(), Changed> {
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
    fn insert_into(&self, leaf: Visit<'_>, key: &[u8], version: Ref<KeyVersion>) -> Result<(), Changed> {
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

    /// The last version in the chain that is newer; `None` if there is none.
    fn newer_neighbour(&self, newest: Ref<KeyVersion>, version: Ref<KeyVersion>) -> Option<Ref<KeyVersion>> {
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

    /// Splits a full node; the node above it has room.
    fn split(
        &self,
        above: Above<'_>,
        here: Visit<'_>,
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
            let low = new.low().expect("the right node of a split has a first key");
            let index = parent.rank(&self.arena, self.arena.key(low))?.index;
            parent.insert_kid(&self.arena, index, right);
        } else {
            let root = self.arena.place(Node::root(&self.arena, here.at, right), grown_bytes);
            self.root.store(Some(root));
        }
        Ok(())
    }

    /// The index at which a node is split: the middle. At the right edge of the tree nearly all keys stay, since keys inserted in
    /// order never go there again.
    fn split_point(&self, node: &Node, key: &[u8]) -> Result<usize, Changed> {
        let len = node.len();
        let is_last = node.next.load().is_none() && node.rank(&self.arena, key)?.index == len;
        Ok(if is_last { len - len.div_ceil(10) } else { len / 2 })
    }
}

impl Leaf {
    /// Number of keys below the one that the leaf was looked up for.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// The newest version of the key at `index`; `None` behind the last.
    pub(super) fn version(&self, index: usize) -> Option<Ref<KeyVersion>> {
        self.versions.get(index).copied().flatten()
    }

    /// The newest versions of `count` keys from `from` on, or of as many as there are.
    pub(super) fn versions(&self, from: usize, count: usize) -> impl Iterator<Item = Ref<KeyVersion>> {
        self.versions.iter().skip(from).take(count).copied().flatten()
    }
}
