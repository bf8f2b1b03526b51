//! The blobs on this machine's disk.

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use bytes::Bytes;
use iroh::endpoint::Connection;
use iroh::protocol::{AcceptError, ProtocolHandler};
use iroh_blobs::BlobsProtocol;
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::{AddPathOptions, BlobStatus, ImportMode};
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::{InlineOptions, Options, PathOptions};
use iroh_blobs::{BlobFormat, HashAndFormat};
use n0_future::StreamExt;
use tokio::runtime::Handle;

use super::fetch::Fetcher;
use super::{BlobError, Payloads, rescue};
use crate::ids::Hash;
use crate::net::iroh::{Node, Protocol};

const DATABASE: &str = "blobs.db";
/// What names a blob that stays, before its hash.
const KEEP: &str = "keep/";

/// What is wanted and not here yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// How many blobs.
    pub blobs: usize,
    /// How many bytes they have together, also those of a part that is here.
    pub bytes: u64,
}

/// The blobs of this node: kept on its disk, served to members, fetched from members. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    disk: Arc<Disk>,
    fetcher: Fetcher,
}

/// The store on disk and how to call it from threads that are not tokio's.
#[derive(Debug)]
pub(super) struct Disk {
    store: FsStore,
    paths: PathOptions,
    database: PathBuf,
    runtime: Handle,
}

impl Blobs {
    /// Opens the store in the directory `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// If the disk fails, or another process has it open.
    pub async fn open(dir: &Path) -> Result<Self, BlobError> {
        let io = |source| BlobError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let dir = std::path::absolute(dir).map_err(io)?;
        // Every blob is a file of its own, so that it can be opened and read without this store.
        let inline = InlineOptions { max_data_inlined: 0, ..InlineOptions::default() };
        let options = Options { inline, ..Options::new(&dir) };
        let paths = options.path.clone();
        let database = dir.join(DATABASE);
        let lost = rescue::put_aside(&dir, &database, &paths.data_path)?;
        let loaded = FsStore::load_with_opts(database.clone(), options).await;
        let store = loaded.map_err(|error| BlobError::Index { path: database.clone(), why: error.to_string() })?;
        let disk = Arc::new(Disk { store, paths, database, runtime: Handle::current() });
        if let Some(lost) = lost {
            rescue::take_in(&disk, &lost).await?;
        }
        let fetcher = Fetcher::start(disk.clone());
        Ok(Self { disk, fetcher })
    }

    /// What serves these blobs to members: for [`Node::bind`].
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        let serve = Serve(BlobsProtocol::new(&self.disk.store, None));
        (iroh_blobs::ALPN, Box::new(serve))
    }

    /// From now on fetches wanted blobs from the members that `node` has links with.
    pub fn attach(&self, node: &Arc<Node>) {
        self.fetcher.attach(node.clone());
    }

    /// Asks for a blob: it is fetched as soon as a member gives it, kept, and then `then` is called, on a thread that may block.
    /// Asking for one that is here calls it at once. What is asked for is forgotten with the process.
    pub fn want(&self, hash: Hash, size: u64, then: impl FnOnce() + Send + 'static) {
        self.fetcher.want(hash, size, Box::new(then));
    }

    /// What is wanted and not here yet.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.fetcher.wanted()
    }

    /// Stops fetching and closes the store. Blobs that are partly here stay so, and are completed by a later `want`.
    ///
    /// # Errors
    /// If the store can't be closed in order.
    pub async fn shutdown(&self) -> Result<(), BlobError> {
        self.fetcher.stop().await;
        self.disk.store.shutdown().await.map_err(failed)
    }
}

/// Serves blobs; unlike the library's own handler it doesn't close the store when the network goes.
#[derive(Debug)]
struct Serve(BlobsProtocol);

impl ProtocolHandler for Serve {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        self.0.accept(connection).await
    }
}

pub(super) fn failed(error: impl Error + 'static) -> BlobError {
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(here) = cause {
        if here.downcast_ref().is_some_and(|io: &io::Error| io.kind() == io::ErrorKind::StorageFull) {
            return BlobError::Full;
        }
        cause = here.source();
    }
    BlobError::Store(format!("{error:#}"))
}

pub(super) fn key(hash: &Hash) -> iroh_blobs::Hash {
    iroh_blobs::Hash::from_bytes(*hash.as_bytes())
}

impl Disk {
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) async fn size_if_complete(&self, hash: &Hash) -> Result<Option<u64>, BlobError> {
        match self.store.blobs().status(key(hash)).await.map_err(failed)? {
            BlobStatus::Complete { size } => Ok(Some(size)),
            BlobStatus::Partial { .. } | BlobStatus::NotFound => Ok(None),
        }
    }

    /// Makes a complete blob stay: on the medium with all that belongs to it, and named in the store. The name comes
    /// after the bytes are on the medium: so a blob that has its name needs nothing more.
    pub(super) async fn keep(&self, hash: &Hash) -> Result<(), BlobError> {
        let content = HashAndFormat::raw(key(hash));
        let name = format!("{KEEP}{hash}");
        if self.store.tags().get(&name).await.map_err(failed)?.is_none() {
            let files = [self.paths.data_path(&content.hash), self.paths.outboard_path(&content.hash)];
            let directory = self.paths.data_path.clone();
            let written = tokio::task::spawn_blocking(move || {
                files.into_iter().try_for_each(|file| sync(file, true))?;
                sync(directory, false)
            });
            written.await.map_err(failed)??;
            self.store.tags().set(&name, content).await.map_err(failed)?;
        }
        self.store.sync_db().await.map_err(failed)
    }

    async fn kept(&self, added: HashAndFormat) -> Result<(Hash, u64), BlobError> {
        let hash = Hash(*added.hash.as_bytes());
        self.keep(&hash).await?;
        let size = self.size_if_complete(&hash).await?;
        size.map(|size| (hash, size)).ok_or_else(|| BlobError::Store("a blob just added is not complete".to_owned()))
    }

    fn file(&self, hash: &Hash, size: u64) -> Result<File, BlobError> {
        let path = self.paths.data_path(&key(hash));
        if size == 0 {
            return tempfile::tempfile().map_err(|source| BlobError::Io { path, source });
        }
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len() == size, file)));
        match opened {
            Ok((true, file)) => Ok(file),
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BlobError::Io { path, source }),
            Ok((false, _)) | Err(_) => Err(BlobError::Damaged { path, index: self.database.clone() }),
        }
    }
}

fn sync(path: PathBuf, may_be_absent: bool) -> Result<(), BlobError> {
    match File::open(&path).and_then(|file| file.sync_all()) {
        Err(source) if !(may_be_absent && source.kind() == io::ErrorKind::NotFound) => {
            Err(BlobError::Io { path, source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Payloads for Blobs {
    fn add_bytes(&self, bytes: &[u8]) -> Result<(Hash, u64), BlobError> {
        let bytes = Bytes::copy_from_slice(bytes);
        self.disk.runtime.block_on(async {
            let added = self.disk.store.blobs().add_bytes(bytes).temp_tag().await.map_err(failed)?;
            self.disk.kept(added.hash_and_format()).await
        })
    }

    fn add_file(&self, path: &Path) -> Result<(Hash, u64), BlobError> {
        let io = |source| BlobError::Io { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(io)?;
        // The library's own errors don't tell a missing source from a failing store.
        drop(File::open(&absolute).map_err(io)?);
        let options = AddPathOptions { path: absolute, format: BlobFormat::Raw, mode: ImportMode::Copy };
        self.disk.runtime.block_on(async {
            let added = self.disk.store.blobs().add_path_with_opts(options).temp_tag().await.map_err(failed)?;
            self.disk.kept(added.hash_and_format()).await
        })
    }

    fn open(&self, hash: &Hash) -> Result<Option<File>, BlobError> {
        let size = self.disk.runtime.block_on(self.disk.size_if_complete(hash))?;
        size.map(|size| self.disk.file(hash, size)).transpose()
    }

    fn list(&self) -> Result<Vec<Hash>, BlobError> {
        self.disk.runtime.block_on(async {
            let mut kept = self.disk.store.tags().list_prefix(KEEP).await.map_err(failed)?;
            let mut found = Vec::new();
            while let Some(tag) = kept.next().await {
                found.push(Hash(*tag.map_err(failed)?.hash.as_bytes()));
            }
            Ok(found)
        })
    }

    fn fetch(&self, hash: &Hash, size: u64, patience: Duration) -> Result<File, BlobError> {
        if let Some(file) = self.open(hash)? {
            return Ok(file);
        }
        let (done, here) = std::sync::mpsc::channel();
        self.want(*hash, size, move || {
            if done.send(()).is_err() {
                tracing::trace!("a blob came after nobody waited for it any more");
            }
        });
        match here.recv_timeout(patience) {
            Ok(()) | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
        }
        self.open(hash)?.ok_or(BlobError::Absent { hash: *hash, waited: patience })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_added_is_there_after_the_store_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let large: Vec<u8> = (0..5_000_000u32).map(|n| n.to_be_bytes()[3] ^ n.to_be_bytes()[2]).collect();
        let samples = [Vec::new(), b"small".to_vec(), vec![7; 16 * 1024 + 1], large];
        let runtime_one = runtime();
        let blobs = runtime_one.block_on(Blobs::open(&dir.path().join("blobs"))).unwrap();
        let source = dir.path().join("source");
        for sample in &samples {
            let (hash, size) = blobs.add_bytes(sample).unwrap();
            assert_eq!((hash, size), (blake3::hash(sample).into(), sample.len() as u64));
            std::fs::write(&source, sample).unwrap();
            assert_eq!(blobs.add_file(&source).unwrap(), (hash, size));
        }
        runtime_one.block_on(blobs.shutdown()).unwrap();
        drop(runtime_one);
        let runtime_two = runtime();
        let blobs = runtime_two.block_on(Blobs::open(&dir.path().join("blobs"))).unwrap();
        for sample in &samples {
            let file = blobs.open(&blake3::hash(sample).into()).unwrap().unwrap();
            assert!(content(file) == *sample, "a sample of {} bytes", sample.len());
        }
        let hashes = |all: Vec<Hash>| all.into_iter().collect::<std::collections::BTreeSet<_>>();
        let expected = samples.iter().map(|sample| Hash::from(blake3::hash(sample))).collect();
        assert_eq!(hashes(blobs.list().unwrap()), hashes(expected));
        runtime_two.block_on(blobs.shutdown()).unwrap();
    }

    #[test]
    fn a_blob_that_nobody_has_is_absent_after_the_patience_given_and_stays_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let blobs = runtime.block_on(Blobs::open(dir.path())).unwrap();
        let hash = Hash([9; 32]);
        assert!(blobs.open(&hash).unwrap().is_none());
        let waited = Duration::from_millis(20);
        assert!(matches!(blobs.fetch(&hash, 100_000, waited), Err(BlobError::Absent { .. })));
        assert_eq!(blobs.wanted(), Wanted { blobs: 1, bytes: 100_000 });
        runtime.block_on(blobs.shutdown()).unwrap();
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let blobs = runtime.block_on(Blobs::open(dir.path())).unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(blobs.add_file(&missing), Err(BlobError::Io { path, .. }) if path == missing));
        runtime.block_on(blobs.shutdown()).unwrap();
    }
}
