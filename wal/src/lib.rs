//! Under construction.
/// Position in the record stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);
impl Seq {
    /// From a plain number.
    pub const fn new(value: u64) -> Seq {
        Seq(value)
    }
    /// As a plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}
