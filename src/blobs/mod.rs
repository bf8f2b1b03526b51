//! Large values, on iroh-blobs: import, fetch, open.

mod fetch;
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
    /// The blob store is closed or broken.
    #[error("the blob store failed: {0}")]
    Store(String),
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

    /// The blob, fetched first from a connected member if it is not here, for at most `patience`.
    ///
    /// # Errors
    /// [`BlobError::Absent`] after `patience`, or if the disk fails.
    fn fetch(&self, hash: &Hash, size: u64, patience: Duration) -> Result<File, BlobError>;
}
