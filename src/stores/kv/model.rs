//! What a reader gets and a writer gives.

use std::cmp::Ordering;

use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::stores::merge::Merge;

/// Names a write to a key. Several operations of one entry on one path are several writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadId {
    /// The entry that holds the write.
    pub entry: Hash,
    /// The operation's place in the entry, from 0.
    pub op: u16,
}

/// What a write makes of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A file with content.
    File,
    /// A directory of its own, kept even when empty.
    Directory,
    /// A symbolic link; its content is the target.
    Symlink,
    /// Nothing: the key was deleted.
    Deleted,
}

/// Where a write's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// No bytes.
    Empty,
    /// In operation `op` of entry `seq` of `author`.
    Inline {
        /// Whose entry.
        author: NodeId,
        /// Its number.
        seq: u64,
        /// The operation in it that holds the bytes.
        op: u16,
        /// How many bytes.
        size: u64,
        /// Their BLAKE3 hash.
        hash: Hash,
    },
    /// In a blob.
    Blob {
        /// The blob.
        hash: Hash,
        /// Its size in bytes.
        size: u64,
    },
}

impl Content {
    /// How many bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Inline { size, .. } | Self::Blob { size, .. } => *size,
        }
    }

    /// The BLAKE3 hash of the bytes, wherever they are.
    #[must_use]
    pub fn hash(&self) -> Hash {
        match self {
            Self::Empty => blake3::hash(b"").into(),
            Self::Inline { hash, .. } | Self::Blob { hash, .. } => *hash,
        }
    }

    /// Whether both are the same bytes.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self == other || (self.size() == other.size() && self.hash() == other.hash())
    }
}

/// A write to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its name.
    pub id: HeadId,
    /// Who made it.
    pub author: NodeId,
    /// The number of its entry in the author's chain.
    pub seq: u64,
    /// When, by the author's hybrid clock.
    pub hlc: Hlc,
    /// What it made of the key.
    pub kind: Kind,
    /// Permission bits, at most `0o7777`; 0 for a deletion.
    pub mode: u32,
    /// Modification time in nanoseconds since the Unix epoch.
    pub mtime: i64,
    /// The bytes of a file, the target of a symbolic link.
    pub content: Content,
}

impl Head {
    /// Whether both are one value: equal in kind, mode and content. The modification time does not count; nor does the
    /// mode of directories: nobody needs to settle which of two machines that made one set its bits.
    #[must_use]
    pub fn same_value(&self, other: &Self) -> bool {
        let kind = self.kind == other.kind;
        kind && (self.kind == Kind::Directory || (self.mode == other.mode && self.content.same(&other.content)))
    }

    /// Whether this is a value: not a deletion.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.kind != Kind::Deleted
    }

    /// The operation that makes `path` again what this write made of its key.
    #[must_use]
    pub fn again(&self, path: Vec<u8>, supersedes: Vec<HeadId>) -> Op {
        let Self { kind, mode, mtime, content, .. } = *self;
        match kind {
            Kind::Deleted => Op::Delete { path, supersedes },
            Kind::File | Kind::Directory | Kind::Symlink => {
                Op::Put { path, supersedes, kind, mode, mtime, value: Value::Same(content) }
            }
        }
    }

    /// The order of writes, the first the lowest: by stamp, author, entry, place in the entry.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let key = |head: &Self| (head.hlc, head.author, head.id);
        key(self).cmp(&key(other))
    }
}

/// A write to a key, and the writes that it superseded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The write.
    pub head: Head,
    /// The heads of the key that its author had seen, each with its stamp.
    pub supersedes: Vec<(Hlc, HeadId)>,
}

/// The heads of a key, the last write first. At least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads {
    heads: Vec<Head>,
    shadowed: bool,
}

impl Heads {
    /// From heads in any order; `None` of none.
    pub(super) fn new(mut heads: Vec<Head>, shadowed: bool) -> Option<Self> {
        heads.sort_unstable_by(|a, b| b.order(a));
        if heads.is_empty() { None } else { Some(Self { heads, shadowed }) }
    }

    /// Whether a person should look: the heads are not one value, or keys lie below a path that is a file.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.shadowed || self.heads[1..].iter().any(|head| !head.same_value(&self.heads[0]))
    }

    /// Whether keys lie below this one although it is a file or a symbolic link: a mount shows the directory.
    #[must_use]
    pub const fn is_shadowed(&self) -> bool {
        self.shadowed
    }

    /// The last write, unless it is a deletion.
    #[must_use]
    pub fn visible(&self) -> Option<&Head> {
        Some(self.lww()).filter(|head| head.is_live())
    }

    /// What a mount shows; `None` if the last write is a deletion.
    #[must_use]
    pub fn node(&self) -> Option<Node> {
        let head = *self.visible()?;
        Some(match head.kind {
            Kind::Directory => Node::Directory(Some(head)),
            Kind::File | Kind::Symlink if self.shadowed => {
                Node::Directory(self.heads.iter().find(|head| head.kind == Kind::Directory).copied())
            }
            Kind::File => Node::File(head),
            Kind::Symlink => Node::Symlink(head),
            Kind::Deleted => return None,
        })
    }
}

impl Merge for Heads {
    type Head = Head;

    fn lww(&self) -> &Head {
        &self.heads[0]
    }

    fn fww(&self) -> &Head {
        &self.heads[self.heads.len() - 1]
    }

    fn all(&self) -> &[Head] {
        &self.heads
    }
}

/// What a mount shows at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A file.
    File(Head),
    /// A symbolic link.
    Symlink(Head),
    /// A directory; without a head if only keys below it imply it.
    Directory(Option<Head>),
}

/// The content that a write gives its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// None: a directory, or an empty file.
    Empty,
    /// These bytes, at most `limits::INLINE_VALUE` of them, inside the entry.
    Bytes(Vec<u8>),
    /// The content of another head, by reference: for renaming and for changing attributes.
    Same(Content),
    /// A blob.
    Blob {
        /// Its BLAKE3 hash.
        hash: Hash,
        /// Its size in bytes.
        size: u64,
    },
}

/// An operation on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        path: Vec<u8>,
        /// The heads of this key that the writer had seen.
        supersedes: Vec<HeadId>,
        /// What the key becomes; not [`Kind::Deleted`].
        kind: Kind,
        /// Permission bits, at most `0o7777`.
        mode: u32,
        /// Modification time in nanoseconds since the Unix epoch.
        mtime: i64,
        /// The content.
        value: Value,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        path: Vec<u8>,
        /// The heads of this key that the writer had seen.
        supersedes: Vec<HeadId>,
    },
    /// Gives a head other attributes and the same content.
    SetAttr {
        /// The key.
        path: Vec<u8>,
        /// The head that changes, and those of equal value: at least one.
        supersedes: Vec<HeadId>,
        /// As the head has it.
        kind: Kind,
        /// Permission bits, at most `0o7777`.
        mode: u32,
        /// Modification time in nanoseconds since the Unix epoch.
        mtime: i64,
        /// As the head has it: [`Value::Same`], [`Value::Blob`] or [`Value::Empty`].
        value: Value,
    },
}

impl Op {
    /// The key.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match self {
            Self::Put { path, .. } | Self::Delete { path, .. } | Self::SetAttr { path, .. } => path,
        }
    }

    /// The heads that it supersedes.
    #[must_use]
    pub fn supersedes(&self) -> &[HeadId] {
        match self {
            Self::Put { supersedes, .. } | Self::Delete { supersedes, .. } | Self::SetAttr { supersedes, .. } => {
                supersedes
            }
        }
    }
}
