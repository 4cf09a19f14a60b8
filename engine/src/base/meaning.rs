//! The meaning of an entry to a reader, and the values that its kind allows. Every decision by kind is made here.
//!
//! A reader searches the newest entry of a key below its position and then calls [`Kind::value_seen`] once. The result is
//! final: no older entry of the key is read. A compaction calls [`Entry::is_tombstone`] to find entries that only hide older
//! ones.
//!
//! A new kind of entry is added to [`Kind`] with its byte, and here with its meaning; no other file tests for a kind, except
//! where bytes are written or read.

use crate::base::key::{Entry, Kind};

impl Kind {
    /// The value of a key for a reader, if the newest visible entry has this kind and stores `value`. `None`: the key does not
    /// exist for this reader.
    #[inline]
    pub(crate) fn value_seen(self, value: &[u8]) -> Option<&[u8]> {
        match self {
            Kind::Put => Some(value),
            Kind::Delete => None,
        }
    }

    /// Whether entries and operations of this kind store a value, which may be empty. Without a value no length is stored.
    #[inline]
    pub(crate) fn stores_value(self) -> bool {
        match self {
            Kind::Put => true,
            Kind::Delete => false,
        }
    }

    /// Whether an entry of this kind may store a value of this length.
    #[inline]
    pub(crate) fn allows_value_bytes(self, len_bytes: usize) -> bool {
        len_bytes == 0 || self.stores_value()
    }
}

impl<'a> Entry<'a> {
    /// The value of the key for a reader, if this is the newest visible entry. `None`: the key does not exist for this reader.
    #[inline]
    pub(crate) fn value_seen(&self) -> Option<&'a [u8]> {
        self.kind.value_seen(self.value)
    }

    /// Whether the entry only hides older entries of its key. It can be dropped where none of those is left.
    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        match self.kind {
            Kind::Put => false,
            Kind::Delete => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::key::Seq;

    #[test]
    fn a_put_shows_its_value_and_a_delete_hides_the_key() {
        let entry = |kind, value| Entry { key: b"k", seq: Seq::new(1), kind, value };
        assert_eq!(entry(Kind::Put, b"v").value_seen(), Some(&b"v"[..]));
        assert_eq!(entry(Kind::Put, b"").value_seen(), Some(&b""[..]), "an empty value is a value");
        assert_eq!(entry(Kind::Delete, b"").value_seen(), None);
        assert!(entry(Kind::Delete, b"").is_tombstone() && !entry(Kind::Put, b"").is_tombstone());
    }

    #[test]
    fn only_a_put_may_store_a_value() {
        assert!(Kind::Put.allows_value_bytes(0) && Kind::Put.allows_value_bytes(1));
        assert!(Kind::Delete.allows_value_bytes(0) && !Kind::Delete.allows_value_bytes(1));
    }
}
