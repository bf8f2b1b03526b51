//! How a reader makes one value of several heads.

/// Heads of a key, and the ways of choosing among them. There is always at least one.
pub trait Merge {
    /// One of the heads.
    type Head;

    /// The last write: the highest stamp, then author, then entry, then place in the entry.
    fn lww(&self) -> &Self::Head;

    /// The first write: the other end of the same order.
    fn fww(&self) -> &Self::Head;

    /// All of them, the last write first.
    fn all(&self) -> &[Self::Head];
}
