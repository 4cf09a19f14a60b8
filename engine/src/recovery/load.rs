//! Opens the segments that the manifest names: the keyspaces without the replayed records.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::error::Result;
use crate::base::options::Options;
use crate::compaction::output::Site;
use crate::io::files::Files;
use crate::manifest::levels::Levels;
use crate::manifest::version::Version;
use crate::memtable::ArenaPool;
use crate::segment::{BlockCache, Opening, Segment, SegmentMeta};
use crate::tree::store::Trees;
use crate::tree::superversion::Tree;

/// The memory that all keyspaces share.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) pool: Arc<ArenaPool>,
}

impl SharedMemory {
    pub(crate) fn new(options: &Options) -> SharedMemory {
        SharedMemory {
            cache: Arc::new(BlockCache::new(options.cache_bytes())),
            pool: Arc::new(ArenaPool::new(options.freeze_bytes(), options.memtables_bytes())),
        }
    }
}

/// The parts of a store that exist before its manifest does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading<'a> {
    pub(crate) files: &'a Arc<Files>,
    pub(crate) memory: &'a SharedMemory,
    pub(crate) options: &'a Options,
}

impl<'a> Loading<'a> {
    /// The destination of new segments of the store.
    pub(crate) fn site(self, store_id: u64) -> Site<'a> {
        Site { files: self.files, cache: &self.memory.cache, options: self.options, store_id }
    }
}

/// Opens all keyspaces of a version.
pub(crate) fn open_trees(loading: &Loading<'_>, version: &Version) -> Result<Trees> {
    let mut trees = BTreeMap::new();
    for (&keyspace, state) in &version.keyspaces {
        let tree = Tree::new(keyspace, &state.name, &loading.memory.pool);
        tree.install(&state.levels, open_segments(loading, version, &state.levels)?, None);
        trees.insert(keyspace, Arc::new(tree));
    }
    Ok(trees)
}

fn open_segments(loading: &Loading<'_>, version: &Version, levels: &Levels) -> Result<Vec<Arc<Segment>>> {
    let (files, cache) = (loading.files, &loading.memory.cache);
    let open = |meta: &SegmentMeta| {
        let origin = version.origin_of(meta.id);
        Segment::open(&Opening { files, cache, origin, leaving_bytes: 0 }, meta)
    };
    levels.segments().map(open).collect()
}
