//! The key of the entry at which a cursor is: the prefix of its block and its own suffix.

/// A shorter suffix is copied as this many bytes: a few instructions instead of a call.
const SHORT_BYTES: usize = 16;

/// A whole key, put together from the prefix of a block and a suffix.
#[derive(Debug, Default)]
pub(super) struct KeyBuf {
    /// The key, and room for a short suffix behind the prefix.
    bytes: Vec<u8>,
    prefix_len: usize,
    len: usize,
}

impl KeyBuf {
    pub(super) fn set_prefix(&mut self, prefix: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(prefix);
        self.bytes.resize(prefix.len() + SHORT_BYTES, 0);
        self.prefix_len = prefix.len();
    }

    /// The suffix is the first `len` bytes of `from`.
    #[inline]
    pub(super) fn set_suffix(&mut self, from: &[u8], len: usize) {
        self.len = self.prefix_len + len;
        let room =
            self.bytes.get_mut(self.prefix_len..).and_then(|room| room.first_chunk_mut::<SHORT_BYTES>());
        match (room, from.first_chunk::<SHORT_BYTES>()) {
            (Some(room), Some(short)) if len <= SHORT_BYTES => *room = *short,
            _ => self.set_long_suffix(from.get(..len).unwrap_or_default()),
        }
    }

    fn set_long_suffix(&mut self, suffix: &[u8]) {
        self.bytes.truncate(self.prefix_len);
        self.bytes.extend_from_slice(suffix);
        self.bytes.resize(self.prefix_len + suffix.len().max(SHORT_BYTES), 0);
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
