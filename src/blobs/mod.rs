//! Large values, on iroh-blobs: import, fetch, open.

mod fetch;
mod rescue;
mod store;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::store::{Blobs, Wanted};
use crate::ids::Hash;

/// What can go wrong with a large value.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It is not on this machine, and no member that is connected gave it in time.
    #[error("blob {hash} is not on this machine, and no connected member gave it in {waited:?}")]
    Absent {
        /// The blob.
        hash: Hash,
        /// How long was waited.
        waited: Duration,
    },
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The index of the blobs can't be opened.
    #[error("the index of large values, {path}, can't be used: {why}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file does not hold what it held.
    #[error("the file of a large value, {path}, is gone or cut short")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The index of the blobs.
        index: PathBuf,
    },
    /// The disk has no room.
    #[error("no space left on the disk that holds the large values")]
    Full,
    /// The blob store is closed or broken.
    #[error("the blob store failed: {0}")]
    Store(String),
}

impl BlobError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Absent { .. } => "it comes when a member that has it is online: `lattice peers`".into(),
            Self::Index { path, .. } => format!(
                "if it is damaged: stop the node, move {} away, and start it: the large values that are whole are taken in again",
                path.display()
            ),
            Self::Damaged { index, .. } => format!(
                "stop the node, move {} away, and start it: what is whole is taken in again, the rest is fetched from members",
                index.display()
            ),
            Self::Full => "free some space on that disk".into(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Self::Full.hint(),
            Self::Io { .. } | Self::Store(_) => "the node's log tells more".into(),
        }
    }
}

/// Where large values are kept. All calls block; none may be made from a tokio thread.
pub trait Payloads: Send + Sync + 'static {
    /// Keeps `bytes`; durable when this returns.
    ///
    /// # Errors
    /// If the disk fails.
    fn add_bytes(&self, bytes: &[u8]) -> Result<(Hash, u64), BlobError>;

    /// Keeps the content of the file at `path` as it is now (by reflink or copy); durable when this returns.
    ///
    /// # Errors
    /// If the file can't be read or the disk fails.
    fn add_file(&self, path: &Path) -> Result<(Hash, u64), BlobError>;

    /// The blob, opened for reading, if all of it is here.
    ///
    /// # Errors
    /// If the disk fails.
    fn open(&self, hash: &Hash) -> Result<Option<File>, BlobError>;

    /// The blobs of which all is here, in no order.
    ///
    /// # Errors
    /// If the store fails.
    fn list(&self) -> Result<Vec<Hash>, BlobError>;

    /// The blob, fetched first from a connected member if it is not here, for at most `patience`.
    ///
    /// # Errors
    /// [`BlobError::Absent`] after `patience`, or if the disk fails.
    fn fetch(&self, hash: &Hash, size: u64, patience: Duration) -> Result<File, BlobError>;
}
