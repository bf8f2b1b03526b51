//! An index of blobs that is gone: the files that it named are taken in again.

use std::io;
use std::path::{Path, PathBuf};

use iroh_blobs::BlobFormat;
use iroh_blobs::api::blobs::{AddPathOptions, ImportMode};

use super::BlobError;
use super::store::{Disk, failed};
use crate::ids::Hash;

/// Where files wait that the index does not name.
const LOST: &str = "lost";

fn at(path: &Path) -> impl Fn(io::Error) -> BlobError {
    move |source| BlobError::Io { path: path.to_owned(), source }
}

/// If the index `database` is gone and files are there that it named, puts these aside: the library would not know of them. Gives
/// where they are, also those of a rescue that was broken off.
pub(super) fn put_aside(dir: &Path, database: &Path, data: &Path) -> Result<Option<PathBuf>, BlobError> {
    let lost = dir.join(LOST);
    if lost.exists() {
        return Ok(Some(lost));
    }
    match std::fs::metadata(database) {
        Ok(index) if index.len() > 0 => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(database)(error)),
    }
    match std::fs::rename(data, &lost) {
        Ok(()) => Ok(Some(lost)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(data)(error)),
    }
}

/// Takes in what is whole of the files in `lost`. What is not stays there: it may be all that there is of it.
pub(super) async fn take_in(disk: &Disk, lost: &Path) -> Result<(), BlobError> {
    for found in std::fs::read_dir(lost).map_err(at(lost))? {
        let path = found.map_err(at(lost))?.path();
        if path.extension().is_none_or(|kind| kind != "data") {
            // What is beside a blob is made anew with it.
            std::fs::remove_file(&path).map_err(at(&path))?;
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let options = AddPathOptions { path: path.clone(), format: BlobFormat::Raw, mode: ImportMode::Copy };
        let added = disk.store().blobs().add_path_with_opts(options).temp_tag().await.map_err(failed)?;
        let hash = Hash(*added.hash().as_bytes());
        if hash.to_string() == name {
            disk.keep(&hash).await?;
            std::fs::remove_file(&path).map_err(at(&path))?;
        } else {
            tracing::warn!(target: "blobs", path = %path.display(), "not whole: it is fetched again, this stays for a person");
        }
    }
    match std::fs::remove_dir(lost) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(at(lost)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
