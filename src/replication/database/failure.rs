//! What can go wrong, and who says so: redb, the system, or a page that is not what it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FORMAT, Result};

/// What can go wrong with a store's file. Ours or the disk's fault, never a peer's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DatabaseError {
    /// The file can't be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The store's file.
        path: PathBuf,
        /// What redb or the system said.
        source: Arc<redb::Error>,
    },
    /// The disk has no room.
    #[error("{path}: no space left on the disk")]
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// The file holds what it can't hold.
    #[error("{path}: {what}")]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A newer build wrote the file.
    #[error("{path}: format {found} is newer than this build's {FORMAT}")]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process has the file open.
    #[error("{path}: another process has this store open")]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// An earlier commit failed; nothing more is taken until the store is reopened.
    #[error("{path}: takes no more writes since a commit failed ({cause})")]
    Stopped {
        /// The store's file.
        path: PathBuf,
        /// The first failure.
        cause: String,
    },
}

impl DatabaseError {
    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Full { .. } => "free some space on that disk; writing then goes on by itself",
            Self::Corrupt { .. } => {
                "`lattice store verify` says what is damaged, `lattice store repair NAME` makes a store's file anew from what is \
                 sound in it and what other members have"
            }
            Self::Newer { .. } => "install the newer lattice again",
            Self::InUse { .. } => "stop the program that has it open",
            Self::Stopped { .. } => "see to the disk, then stop the node and start it again",
            Self::Io { .. } => "see to the disk; the node's log may tell more",
        }
    }
}

pub(super) fn failure(path: &Path, error: impl Into<redb::Error>) -> DatabaseError {
    let path = path.to_owned();
    match error.into() {
        redb::Error::Corrupted(what) => DatabaseError::Corrupt { path, what },
        redb::Error::DatabaseAlreadyOpen => DatabaseError::InUse { path },
        redb::Error::Io(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            DatabaseError::Full { path }
        }
        redb::Error::Io(error)
            if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            DatabaseError::Corrupt { path, what: format!("this is no store file, or only a part of one ({error})") }
        }
        error @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::UpgradeRequired(_)) => {
            DatabaseError::Corrupt { path, what: format!("this is not a file of this program ({error})") }
        }
        source => DatabaseError::Io { path, source: Arc::new(source) },
    }
}

/// Does `work` in redb, which panics on some damaged files: here that is an error like any other.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> std::result::Result<T, redb::Error>) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| failure(path, error)),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            let what = format!("the file is damaged ({})", said.unwrap_or("no reason given"));
            Err(DatabaseError::Corrupt { path: path.to_owned(), what })
        }
    }
}
