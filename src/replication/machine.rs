//! The contract between the log and what a store means.
//!
//! It stands here and not with the machines, since the log calls it within its transaction and imports run down only.

use super::database::{Result, Table, Txn};
use super::entry::Entry;
use crate::ids::Hash;

/// What a store means: derives state from entries.
///
/// `apply` is called once for each included entry, parents first. The state that results must be a
/// function of the *set* of included entries alone, byte for byte: nodes include concurrent entries in
/// different orders. So it must not read clocks, local numbers, or anything outside `txn` and `entry`.
pub trait StateMachine: Send + Sync + 'static {
    /// The type's name, as the root store declares it: `kv`, `chat`, `root`.
    fn kind(&self) -> &'static str;

    /// The tables that hold the state. They can be dropped and rebuilt from the log.
    fn tables(&self) -> &'static [Table];

    /// Applies an included entry. A payload that is malformed or not allowed changes nothing and gives its
    /// reason in [`Effects::noop`]; it is no error.
    ///
    /// # Errors
    /// Only if the state can't be read.
    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects>;

    /// Takes back what an entry did, which counts no more: the state is then what it would be had the entry never come.
    /// `None` if that can't be done for one entry: the log derives the state anew.
    ///
    /// # Errors
    /// Only if the state can't be read.
    fn exclude(&self, _txn: &mut Txn<'_>, _entry: &Entry) -> Result<Option<Effects>> {
        Ok(None)
    }
}

/// What an entry did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// The keys that changed, in the order of the change.
    pub changes: Vec<Change>,
    /// Blobs that the entry names, to be fetched: hash and size in bytes.
    pub blobs: Vec<(Hash, u64)>,
    /// Why the entry, or part of it, did nothing.
    pub noop: Option<String>,
}

/// One changed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key: a path in a kv store, a room in a chat store, a section of the root store.
    pub key: Vec<u8>,
    /// What became of it.
    pub what: What,
}

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It was not there before.
    Created,
    /// Its content changed.
    Modified,
    /// Only its attributes changed.
    Attributes,
    /// It is gone.
    Deleted,
    /// What a reader gets is as before; the key's other heads changed.
    Heads,
}

impl What {
    /// As users are told of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Modified => "modified",
            Self::Attributes => "attributes",
            Self::Deleted => "deleted",
            Self::Heads => "heads",
        }
    }
}
