//! What an inode stands for, and what it shows of itself.

use super::past::Glass;
use crate::ids::StoreId;

/// What an inode stands for. Its name, and the names above it, say which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The mount itself.
    Root,
    /// `/README`.
    Readme,
    /// `/.why`.
    Why,
    /// `/stores`.
    Stores,
    /// `/stores/<name>`.
    Store(StoreId),
    /// `/stores/<name>/.heads`.
    Link(StoreId),
    /// `/stores/<name>/keys`: the top of the store's keys.
    Keys(StoreId),
    /// Below it: a key, or a directory of keys.
    Key(StoreId),
    /// `/.heads`.
    Heads,
    /// `/.heads/<name>`: the top of the store's conflicts.
    HeadsOf(StoreId),
    /// Below it: a directory on the way to a conflict, or the conflict itself.
    HeadsPath(StoreId),
    /// One head of a key.
    Head(StoreId),
    /// `/stores/<name>/.at`.
    Moments(StoreId),
    /// `/stores/<name>/.by`.
    Authors(StoreId),
    /// A directory in one of these: the top of what it shows.
    Then(StoreId, Glass),
    /// Below it: what was a key, or a directory of keys.
    Past(StoreId, Glass),
    /// `/stores/<name>/.history`.
    History(StoreId),
    /// Below it: a directory on the way to a key that ever was, or the key itself.
    HistoryPath(StoreId),
    /// One version of a key.
    Version(StoreId),
    /// `/stores/<name>/.status`.
    Status(StoreId),
    /// `/stores/<name>/.log`.
    Entries(StoreId),
    /// `/stores/<name>/.watch`.
    Changes(StoreId),
    /// `/stores/<name>/.tx`.
    Txs(StoreId),
    /// Below it: a transaction, or what is staged in one.
    Staged(StoreId),
    /// `.why` in a transaction.
    TxWhy(StoreId),
    /// `/peers`.
    Peers,
    /// `/peers/<name>`.
    Peer,
    /// A file in it.
    PeerFile,
    /// `/chat`.
    Chat,
    /// `/chat/<room>`.
    Room,
    /// `/chat/.json`.
    Json,
    /// `/chat/.json/<room>`.
    JsonRoom,
    /// `/blobs`.
    Blobs,
    /// `/blobs/<hash>`.
    Blob,
}

impl Place {
    /// Whether it is of the past, which nobody can change.
    pub(crate) const fn is_past(self) -> bool {
        matches!(
            self,
            Self::Moments(_)
                | Self::Authors(_)
                | Self::Then(..)
                | Self::Past(..)
                | Self::History(_)
                | Self::HistoryPath(_)
                | Self::Version(_)
        )
    }

    /// Whether it is the directory of this store, or of its conflicts.
    pub(crate) fn is_of(self, store: &StoreId) -> bool {
        matches!(self, Self::Store(id) | Self::HeadsOf(id) if id == *store)
    }
}

/// The type of a file, as `ls -l` shows it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Directory,
    Symlink,
}

/// A file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) ino: u64,
    pub(crate) kind: Type,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// Nanoseconds since the Unix epoch.
    pub(crate) mtime: i64,
}

/// The times that no store keeps, in nanoseconds since the Unix epoch. While they are not known, the mtime stands for them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stamps {
    /// As it was set.
    pub(crate) atime: Option<i64>,
    /// When its attributes or its name were changed here.
    pub(crate) ctime: Option<i64>,
    /// It has lost its name.
    pub(crate) gone: bool,
}
