//! What a store means: the kinds of store, their state, and the registry that opens them.

pub mod kv;
pub mod merge;
pub mod root;
#[cfg(test)]
mod testing;

pub use kv::Kv;
pub use merge::Merge;
pub use root::Root;
