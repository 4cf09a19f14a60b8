//! Ranges of keys, as callers write them and as the engine uses them.
//!
//! Invariant: [`KeyBounds`] is half open for every form of range. The smallest key above `k` is `k` with a zero byte appended,
//! so no other code has a special case for an excluded start or an included end.

use std::ops::{Bound, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use bytes::Bytes;

/// A range of keys: `..`, `a..b`, `a..=b`, `a..`, `..b`, `..=b` or `(Bound, Bound)` of anything that is
/// bytes.
///
/// Order is bytewise. A range whose start is above its end is empty; that is no error and no panic.
/// The trait is sealed.
pub trait KeyRange: sealed::IntoBounds {}

impl<R: sealed::IntoBounds> KeyRange for R {}

/// The keys `from <= key < upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBounds {
    /// The first key of the range. Empty: from the first key of all.
    pub(crate) from: Bytes,
    /// The range ends before this key. `None`: it includes the last key.
    pub(crate) upto: Option<Bytes>,
}

impl KeyBounds {
    /// Every key.
    pub(crate) fn all() -> KeyBounds {
        KeyBounds { from: Bytes::new(), upto: None }
    }

    /// The keys that begin with `prefix`. No key is above all of them if `prefix` is empty or all `0xFF`.
    pub(crate) fn prefix(prefix: &[u8]) -> KeyBounds {
        let kept = prefix.iter().rposition(|byte| *byte != u8::MAX);
        let upto = kept.map(|last| {
            let mut upto = prefix[..=last].to_vec();
            upto[last] += 1;
            Bytes::from(upto)
        });
        KeyBounds { from: Bytes::copy_from_slice(prefix), upto }
    }

    /// Whether `key` lies in it.
    #[inline]
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.from.as_ref() <= key && self.upto.as_ref().is_none_or(|upto| key < upto.as_ref())
    }

    /// Whether no key can lie in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.upto.as_ref().is_some_and(|upto| *upto <= self.from)
    }

    fn new(start: Bound<&[u8]>, end: Bound<&[u8]>) -> KeyBounds {
        let from = match start {
            Bound::Included(key) => Bytes::copy_from_slice(key),
            Bound::Excluded(key) => successor(key),
            Bound::Unbounded => Bytes::new(),
        };
        let upto = match end {
            Bound::Included(key) => Some(successor(key)),
            Bound::Excluded(key) => Some(Bytes::copy_from_slice(key)),
            Bound::Unbounded => None,
        };
        KeyBounds { from, upto }
    }
}

/// The smallest byte string above `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

mod sealed {
    use super::{Bound, KeyBounds, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

    /// The method of [`super::KeyRange`]. Other crates cannot name this trait.
    pub trait IntoBounds {
        /// The same range, half open.
        fn into_bounds(self) -> KeyBounds;
    }

    impl IntoBounds for RangeFull {
        fn into_bounds(self) -> KeyBounds {
            KeyBounds::all()
        }
    }

    macro_rules! to_bounds {
        ($($range:ty),*) => {$(
            impl<K: AsRef<[u8]>> IntoBounds for $range {
                fn into_bounds(self) -> KeyBounds {
                    let start = std::ops::RangeBounds::<K>::start_bound(&self).map(AsRef::as_ref);
                    let end = std::ops::RangeBounds::<K>::end_bound(&self).map(AsRef::as_ref);
                    KeyBounds::new(start, end)
                }
            }
        )*};
    }

    to_bounds!(Range<K>, RangeInclusive<K>, RangeFrom<K>, RangeTo<K>, RangeToInclusive<K>);
    to_bounds!((Bound<K>, Bound<K>));
}

#[cfg(test)]
mod tests {
    use super::sealed::IntoBounds;
    use super::*;

    fn shown(bounds: &KeyBounds) -> String {
        let upto = bounds.upto.as_ref().map_or("end".to_owned(), |upto| format!("{upto:?}"));
        format!("{:?} {upto}", bounds.from)
    }

    #[test]
    fn every_way_to_write_a_range_becomes_half_open() {
        let cases = [
            ((..).into_bounds(), r#"b"" end"#),
            (("a".."c").into_bounds(), r#"b"a" b"c""#),
            ((b"a".to_vec()..=b"c".to_vec()).into_bounds(), r#"b"a" b"c\0""#),
            (([7_u8]..).into_bounds(), r#"b"\x07" end"#),
            ((..String::from("c")).into_bounds(), r#"b"" b"c""#),
            ((..=b"c").into_bounds(), r#"b"" b"c\0""#),
            ((Bound::Excluded("a"), Bound::Included("c")).into_bounds(), r#"b"a\0" b"c\0""#),
            ((Bound::Unbounded::<&str>, Bound::Unbounded).into_bounds(), r#"b"" end"#),
        ];
        for (bounds, expected) in cases {
            assert_eq!(shown(&bounds), expected);
        }
    }

    #[test]
    fn a_range_without_room_for_a_key_is_empty() {
        assert!(("b".."a").into_bounds().is_empty());
        assert!(("a".."a").into_bounds().is_empty());
        assert!(("b"..="a").into_bounds().is_empty());
        assert!((Bound::Excluded("a"), Bound::Included("a")).into_bounds().is_empty());
        assert!(!("a"..="a").into_bounds().is_empty());
        assert!(!(..).into_bounds().is_empty());
    }

    #[test]
    fn a_prefix_ends_before_its_increment() {
        for (prefix, expected) in [
            (&b"ab"[..], r#"b"ab" b"ac""#),
            (b"a\xff\xff", r#"b"a\xff\xff" b"b""#),
            (b"\xff\xff", r#"b"\xff\xff" end"#),
            (b"", r#"b"" end"#),
        ] {
            assert_eq!(shown(&KeyBounds::prefix(prefix)), expected);
        }
    }
}
