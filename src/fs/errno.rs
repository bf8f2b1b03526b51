//! Why a call on the mount failed, and the number that the caller gets.

use crate::blobs::BlobError;
use crate::replication::database::DatabaseError;
use crate::replication::log::SubmitError;
use crate::stores::chat::ChatError;
use crate::stores::kv::{KvError, TxError};

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A rule of the mount, with its number.
    #[error("{1}")]
    Refused(i32, &'static str),
    /// A kv store.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The chat store.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A transaction.
    #[error(transparent)]
    Tx(#[from] TxError),
    /// A file that a draft, or a transaction, keeps on this machine.
    #[error("a file of this node: {0}")]
    Io(#[from] std::io::Error),
}

/// The result of a call on the mount.
pub(crate) type Answer<T> = Result<T, Failure>;

pub(crate) const MISSING: Failure = Failure::Refused(libc::ENOENT, "there is no such file");
pub(crate) const STALE: Failure = Failure::Refused(libc::ESTALE, "the file is gone");
pub(crate) const EXISTS: Failure = Failure::Refused(libc::EEXIST, "the file exists");
pub(crate) const NOT_DIRECTORY: Failure = Failure::Refused(libc::ENOTDIR, "it is not a directory");
pub(crate) const IS_DIRECTORY: Failure = Failure::Refused(libc::EISDIR, "it is a directory");
pub(crate) const NOT_EMPTY: Failure = Failure::Refused(libc::ENOTEMPTY, "the directory is not empty");
pub(crate) const NAME_TOO_LONG: Failure = Failure::Refused(libc::ENAMETOOLONG, "the name or the path is too long");
pub(crate) const NOT_HERE: Failure = Failure::Refused(
    libc::EPERM,
    "only below stores/<name>/keys can names be made and removed; `lattice store` makes and deletes stores",
);
pub(crate) const ROOM: Failure = Failure::Refused(
    libc::EPERM,
    "the first line appended opens a room, and nothing removes or renames it: what was said stays. /redact ID takes back a message",
);
pub(crate) const GENERATED: Failure = Failure::Refused(libc::EACCES, "this file is generated and can only be read");
pub(crate) const APPEND_ONLY: Failure = Failure::Refused(libc::EPERM, "a room can only be appended to (>>)");
pub(crate) const READER: Failure = Failure::Refused(libc::EROFS, "this node may only read; an admin can change that");
pub(crate) const REGAINING: Failure = Failure::Refused(
    libc::EROFS,
    "the store's file was lost or made anew, and no member has brought back yet what was in it",
);
pub(crate) const PAST: Failure = Failure::Refused(libc::EROFS, "what was can only be read");
pub(crate) const NO_SPACE: Failure = Failure::Refused(libc::ENOSPC, "the disk that holds the drafts is full");
pub(crate) const CLOSED: Failure = Failure::Refused(libc::EIO, "the store is closed or damaged; see `lattice status`");
pub(crate) const OWNER: Failure =
    Failure::Refused(libc::EPERM, "files belong to whoever mounted; others can't own them");
pub(crate) const NO_LINKS: Failure =
    Failure::Refused(libc::EPERM, "there are no hard links here: copy the file, or make a symbolic link");
pub(crate) const OTHER_STORE: Failure = Failure::Refused(libc::EXDEV, "it is in another store: copy it");
pub(crate) const TREE_TOO_LARGE: Failure =
    Failure::Refused(libc::EXDEV, "too many keys for one entry: they are copied");
pub(crate) const UNSUPPORTED: Failure = Failure::Refused(libc::EOPNOTSUPP, "that can't be done to a file here");
pub(crate) const NO_ATTRIBUTE: Failure = Failure::Refused(libc::ENODATA, "there is no such attribute");
pub(crate) const NO_ATTRIBUTES: Failure =
    Failure::Refused(libc::EOPNOTSUPP, "no attributes are kept but the store's own");
pub(crate) const INTERRUPTED: Failure = Failure::Refused(libc::EINTR, "a signal came");
pub(crate) const NOTHING_YET: Failure = Failure::Refused(libc::EAGAIN, "nothing has changed yet");
pub(crate) const INVALID: Failure = Failure::Refused(libc::EINVAL, "the call makes no sense for this file");

impl Failure {
    /// The number for the caller.
    pub(crate) fn number(&self) -> i32 {
        match self {
            Self::Refused(number, _) => *number,
            Self::Kv(error) => kv(error),
            Self::Chat(error) => chat(error),
            Self::Tx(error) => tx(error),
            Self::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// Whether the daemon's log should have it: the machine's fault, not the caller's.
    pub(crate) fn grave(&self) -> bool {
        matches!(self.number(), libc::EIO | libc::ENOSPC)
    }
}

fn kv(error: &KvError) -> i32 {
    match error {
        KvError::Path(_) => libc::EINVAL,
        KvError::TooLarge { .. } => libc::EFBIG,
        KvError::UnknownHead(_) | KvError::Invalid(_) => libc::EINVAL,
        KvError::Absent(_) | KvError::Broken(_) => libc::EIO,
        KvError::Blob(error) => blob(error),
        KvError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        KvError::Submit(error) => submit(error),
        KvError::Database(error) => database(error),
    }
}

fn tx(error: &TxError) -> i32 {
    match error {
        TxError::Exists(_) => libc::EEXIST,
        TxError::Missing(_) => libc::ENOENT,
        TxError::Name(..) => libc::EPERM,
        TxError::Busy => libc::EBUSY,
        TxError::Over => libc::ESTALE,
        TxError::Moved { .. } => libc::EAGAIN,
        TxError::Staged(_) => libc::EINVAL,
        TxError::Kv(error) => kv(error),
        TxError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn chat(error: &ChatError) -> i32 {
    match error {
        ChatError::Invalid(_) | ChatError::Ambiguous(_) => libc::EINVAL,
        ChatError::TooLarge { .. } => libc::EMSGSIZE,
        ChatError::NoMessage(_) | ChatError::Redacted(_) => libc::ENOENT,
        ChatError::NotYours(..) => libc::EPERM,
        ChatError::Submit(error) => submit(error),
        ChatError::Database(error) => database(error),
    }
}

fn blob(error: &BlobError) -> i32 {
    match error {
        BlobError::Absent { .. } | BlobError::Index { .. } | BlobError::Damaged { .. } | BlobError::Store(_) => {
            libc::EIO
        }
        BlobError::Full => libc::ENOSPC,
        BlobError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
    }
}

const fn submit(error: &SubmitError) -> i32 {
    match error {
        SubmitError::NotAllowed | SubmitError::Regaining => libc::EROFS,
        SubmitError::Malformed(_) => libc::EFBIG,
        SubmitError::Database(error) => database(error),
    }
}

const fn database(error: &DatabaseError) -> i32 {
    match error {
        DatabaseError::Full { .. } => libc::ENOSPC,
        DatabaseError::Io { .. }
        | DatabaseError::Corrupt { .. }
        | DatabaseError::Newer { .. }
        | DatabaseError::InUse { .. }
        | DatabaseError::Stopped { .. } => libc::EIO,
    }
}
