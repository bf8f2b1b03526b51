//! What a store means: the kinds of store, their state, and the registry that opens them.

pub mod chat;
mod describe;
pub mod kv;
pub mod merge;
pub mod proof;
pub mod registry;
pub mod root;
#[cfg(test)]
pub(crate) mod testing;

pub use chat::Chat;
pub use describe::describe;
pub use kv::Kv;
pub use merge::Merge;
pub use proof::Proof;
pub use registry::{Registry, RegistryError, Repaired, SharedOutbox, StoreInfo};
pub use root::Root;
