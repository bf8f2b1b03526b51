//! One redb file and, before it, what is staged: visible at once, durable within milliseconds.
//!
//! A write is put on the *active* layers in memory, where every reader sees it. The flusher thread takes them
//! whole, writes them as one durable redb transaction, in key order, and starts again as soon as there is more:
//! group commit. A [`View`] reads the layers of its moment over a redb snapshot, so it is consistent and nobody waits
//! for it; [`Database::durable`] reads the snapshot alone, which is all that may leave the node.
//!
//! Invariants: staged sets enter redb in the order in which they were staged, each whole or not at all; one commit at a
//! time; of the locks, `committing` is taken before `staged`, and that before `progress`, none of them while `redb`
//! works on the disk but `committing` and, when the file is reopened, `staged`. Layers stay in `frozen` until they are
//! durable. After a failed commit nothing more is staged; if the disk was full, until a later try succeeds.

mod layer;
mod view;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, TableDefinition};

use super::limits;
use crate::clock::monotonic;
pub use layer::Layer;
use layer::Stack;
pub use view::{Flow, Read, Txn, View, prefix};

/// The name of a table: bytes to bytes, in the order of the bytes.
pub type Table = &'static str;

/// The version of the store file's form that this build writes.
pub const FORMAT: u32 = 1;

const FORMAT_TABLE: TableDefinition<'_, &str, u32> = TableDefinition::new("format");

/// A set that is staged so soon after a commit is one of a stream.
const BUSY: Duration = Duration::from_millis(5);
/// How long sets of a stream gather before they are committed together.
const GATHER: Duration = Duration::from_millis(15);
/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What must be free on a disk that was full before it is tried again: this, and a multiple of what is staged.
const ROOM: u64 = 4 * 1024 * 1024;

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
                "stop the node, move that file away, and start it again: what other members have of it is fetched again"
            }
            Self::Newer { .. } => "install the newer lattice again",
            Self::InUse { .. } => "stop the program that has it open",
            Self::Stopped { .. } => "see to the disk, then stop the node and start it again",
            Self::Io { .. } => "see to the disk; the node's log may tell more",
        }
    }
}

/// The result of a use of the database.
pub type Result<T> = std::result::Result<T, DatabaseError>;

#[derive(Default)]
struct Staged {
    /// `None` only while the file is reopened, or if that failed.
    redb: Option<Arc<redb::Database>>,
    active: Stack,
    frozen: Stack,
}

/// How far staging and durability have come, in staged sets.
#[derive(Default)]
struct Progress {
    staged: u64,
    durable: u64,
    /// Bytes in the active layers.
    waiting: usize,
    /// Callers that wait for durability.
    hurried: u32,
    stop: bool,
    failed: Option<DatabaseError>,
}

type OnDurable = Box<dyn Fn(u64) + Send + Sync>;
type Open = Box<dyn Fn() -> Result<redb::Database> + Send + Sync>;

struct Shared {
    path: PathBuf,
    /// Opens the file anew; `None` if that can't be done.
    open: Option<Open>,
    staged: RwLock<Staged>,
    progress: Mutex<Progress>,
    changed: Condvar,
    /// Told when the flusher is not to gather any longer.
    hurry: Condvar,
    committing: Mutex<()>,
    on_durable: Mutex<Option<OnDurable>>,
}

/// A store's file. Dropping it commits what is staged.
pub struct Database {
    shared: Arc<Shared>,
    /// Whether what is staged is committed without being asked.
    automatic: bool,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(path: &Path, error: impl Into<redb::Error>) -> DatabaseError {
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
fn guarded<T>(path: &Path, work: impl FnOnce() -> std::result::Result<T, redb::Error>) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| failure(path, error)),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            let what = format!("the file is damaged ({})", said.unwrap_or("no reason given"));
            Err(DatabaseError::Corrupt { path: path.to_owned(), what })
        }
    }
}

impl Database {
    /// Opens or makes the file at `path`, with `cache` bytes of page cache, and starts its flusher.
    ///
    /// # Errors
    /// If the file can't be made or read, is damaged, newer, or in use.
    pub fn open(path: &Path, cache: usize) -> Result<Self> {
        if !path.exists() {
            create(path)?;
        }
        let file = path.to_owned();
        let open = move || guarded(&file, || Ok(redb::Builder::new().set_cache_size(cache).open(&file)?));
        Self::with(open()?, path, Some(Box::new(open)), true)
    }

    /// A database in memory whose staged writes become durable only by [`Database::flush`]: for simulation and tests.
    ///
    /// # Errors
    /// If redb refuses.
    pub fn in_memory(backend: impl redb::StorageBackend) -> Result<Self> {
        let path = Path::new("(memory)");
        let redb = guarded(path, || Ok(redb::Builder::new().create_with_backend(backend)?))?;
        Self::with(redb, path, None, false)
    }

    /// A database with a flusher, like a file's, on storage that `backend` gives, at each opening anew.
    ///
    /// # Errors
    /// If redb refuses.
    pub fn over<B: redb::StorageBackend>(backend: impl Fn() -> B + Send + Sync + 'static) -> Result<Self> {
        let path = Path::new("(storage)");
        let open = move || guarded(path, || Ok(redb::Builder::new().create_with_backend(backend())?));
        Self::with(open()?, path, Some(Box::new(open)), true)
    }

    fn with(redb: redb::Database, path: &Path, open: Option<Open>, automatic: bool) -> Result<Self> {
        check_format(&redb, path)?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            open,
            staged: RwLock::new(Staged { redb: Some(Arc::new(redb)), ..Staged::default() }),
            progress: Mutex::default(),
            changed: Condvar::new(),
            hurry: Condvar::new(),
            committing: Mutex::default(),
            on_durable: Mutex::default(),
        });
        let handle = if automatic {
            let shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new().name("store".into()).spawn(move || shared.run());
            Some(spawned.map_err(|error| failure(path, redb::Error::Io(error)))?)
        } else {
            None
        };
        Ok(Self { shared, automatic, flusher: Mutex::new(handle) })
    }

    /// Calls `hook` with the number of the last durable set after each durable commit, from the flusher's thread, in
    /// the order of the commits. It must not wait for this database.
    pub fn on_durable(&self, hook: impl Fn(u64) + Send + Sync + 'static) {
        *locked(&self.shared.on_durable) = Some(Box::new(hook));
    }

    /// Everything written so far, durable or not.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn view(&self) -> Result<View<'_>> {
        let staged = self.shared.staged();
        let mut layers = staged.frozen.clone();
        layers.append(staged.active.clone());
        // Under the lock, lest layers become durable in between: then they would lie over newer ones.
        let txn = self.shared.snapshot(&staged)?;
        Ok(View::new(layers, txn, &self.shared.path))
    }

    /// Only what survives a crash: all that may be shown to other nodes.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn durable(&self) -> Result<View<'_>> {
        let txn = self.shared.snapshot(&self.shared.staged())?;
        Ok(View::new(Stack::default(), txn, &self.shared.path))
    }

    /// Whether so much is staged that [`Database::ready`] may soon have to wait for the disk.
    #[must_use]
    pub fn crowded(&self) -> bool {
        locked(&self.shared.progress).waiting > limits::STAGED_BYTES / 2
    }

    /// Waits while too much is staged, and says whether writes are taken: an error once a commit has failed.
    /// To be called before each write, holding no lock that an `on_durable` hook takes.
    ///
    /// # Errors
    /// [`DatabaseError::Stopped`], or that the disk is full.
    pub fn ready(&self) -> Result<()> {
        let shared = &self.shared;
        let mut progress = locked(&shared.progress);
        while self.automatic && !progress.stop && progress.failed.is_none() && progress.waiting > limits::STAGED_BYTES {
            progress = shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        shared.check(&progress)
    }

    /// Makes `writes` visible to all views and queues them for the next commit. Returns the set's number,
    /// for [`Database::wait`].
    ///
    /// # Errors
    /// If an earlier commit failed.
    pub fn stage(&self, writes: Layer) -> Result<u64> {
        let shared = &self.shared;
        let mut staged = shared.staged_mut();
        let mut progress = locked(&shared.progress);
        shared.check(&progress)?;
        staged.active.push(writes);
        progress.staged += 1;
        progress.waiting = staged.active.bytes();
        let number = progress.staged;
        let crowded = progress.waiting > limits::STAGED_BYTES / 2;
        drop(progress);
        drop(staged);
        shared.changed.notify_all();
        if crowded {
            shared.hurry.notify_all();
        }
        Ok(number)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Waits until the set of this number is durable.
    ///
    /// # Errors
    /// If its commit failed. If that was because the disk is full, it is tried again; otherwise the set is lost with
    /// the process.
    pub fn wait(&self, number: u64) -> Result<()> {
        let shared = &self.shared;
        let mut progress = locked(&shared.progress);
        let number = number.min(progress.staged);
        while progress.durable < number {
            shared.check(&progress)?;
            if !self.automatic || progress.stop {
                drop(progress);
                return shared.commit();
            }
            progress.hurried += 1;
            shared.hurry.notify_all();
            progress = shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            progress.hurried -= 1;
        }
        Ok(())
    }

    /// Why nothing more is written, if that is so.
    #[must_use]
    pub fn trouble(&self) -> Option<DatabaseError> {
        locked(&self.shared.progress).failed.clone()
    }

    /// The number of the last set staged, for waiting until all so far is durable.
    #[must_use]
    pub fn staged(&self) -> u64 {
        locked(&self.shared.progress).staged
    }

    /// Waits until all that is staged is durable; in a database in memory, commits it.
    ///
    /// # Errors
    /// If the commit fails.
    pub fn flush(&self) -> Result<()> {
        if self.automatic { self.wait(self.staged()) } else { self.shared.commit() }
    }

    /// Stops the flusher after it has committed what is staged. What is staged later is committed by
    /// [`Database::wait`] or by dropping.
    ///
    /// # Errors
    /// If a commit failed.
    pub fn close(&self) -> Result<()> {
        if !self.automatic {
            return Ok(());
        }
        locked(&self.shared.progress).stop = true;
        self.shared.changed.notify_all();
        self.shared.hurry.notify_all();
        let handle = locked(&self.flusher).take();
        if handle.is_some_and(|handle| handle.join().is_err()) {
            tracing::error!(target: "store", path = %self.shared.path.display(), "the store's thread ended early");
        }
        self.shared.commit()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(target: "store", %error, "closing");
        }
    }
}

impl Shared {
    fn staged(&self) -> RwLockReadGuard<'_, Staged> {
        self.staged.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn staged_mut(&self) -> RwLockWriteGuard<'_, Staged> {
        self.staged.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self, staged: &Staged) -> Result<redb::ReadTransaction> {
        match &staged.redb {
            Some(redb) => guarded(&self.path, || Ok(redb.begin_read()?)),
            None => Err(match &locked(&self.progress).failed {
                Some(cause) => cause.clone(),
                None => DatabaseError::Stopped { path: self.path.clone(), cause: "the file is not open".into() },
            }),
        }
    }

    /// Whether writes are taken.
    fn check(&self, progress: &Progress) -> Result<()> {
        match &progress.failed {
            None => Ok(()),
            Some(full @ DatabaseError::Full { .. }) => Err(full.clone()),
            Some(
                cause @ (DatabaseError::Io { .. }
                | DatabaseError::Corrupt { .. }
                | DatabaseError::Newer { .. }
                | DatabaseError::InUse { .. }
                | DatabaseError::Stopped { .. }),
            ) => Err(DatabaseError::Stopped { path: self.path.clone(), cause: cause.to_string() }),
        }
    }

    fn run(&self) {
        let mut full = false;
        let mut ended: Option<Instant> = None;
        loop {
            let mut progress = locked(&self.progress);
            while progress.staged == progress.durable && !progress.stop {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
            if ended.is_some_and(|ended| ended.elapsed() < BUSY) {
                progress = self.gather(progress);
            }
            let done = progress.stop;
            drop(progress);
            if done {
                // What is left is committed by whoever closes.
                return;
            }
            match self.commit() {
                Ok(()) => full = false,
                Err(error @ DatabaseError::Full { .. }) => {
                    if !std::mem::replace(&mut full, true) {
                        tracing::error!(target: "store", %error, "writes are refused until there is room");
                    }
                    self.await_room();
                }
                Err(error) => {
                    tracing::error!(target: "store", %error, "commit failed: the store takes no more writes");
                    return;
                }
            }
            ended = Some(monotonic());
        }
    }

    /// Under a stream of writes, lets some gather before the next commit: each costs about a millisecond of a core,
    /// however little it holds. Whoever waits for durability ends it.
    fn gather<'a>(&self, mut progress: MutexGuard<'a, Progress>) -> MutexGuard<'a, Progress> {
        let began = monotonic();
        while progress.hurried == 0 && !progress.stop && progress.waiting <= limits::STAGED_BYTES / 2 {
            let Some(rest) = GATHER.checked_sub(began.elapsed()) else { break };
            progress = self.hurry.wait_timeout(progress, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        progress
    }

    /// Waits until the disk may have room again, or the database is closed.
    fn await_room(&self) {
        let need = ROOM + 8 * self.staged().frozen.bytes() as u64;
        let mut progress = locked(&self.progress);
        while !progress.stop {
            progress = self.changed.wait_timeout(progress, RETRY).unwrap_or_else(PoisonError::into_inner).0;
            // If the system does not say how much is free, the commit will.
            let free = nix::sys::statvfs::statvfs(&self.path);
            if free.map_or(true, |free| free.blocks_available() * free.fragment_size() >= need) {
                return;
            }
        }
    }

    /// Moves the active layers, and those of a commit that failed before, into redb, durably.
    fn commit(&self) -> Result<()> {
        let one_at_a_time = locked(&self.committing);
        let (redb, layers, number) = {
            let mut staged = self.staged_mut();
            let mut progress = locked(&self.progress);
            match self.check(&progress) {
                Ok(()) | Err(DatabaseError::Full { .. }) => {}
                Err(stopped) => return Err(stopped),
            }
            progress.waiting = 0;
            let number = progress.staged;
            drop(progress);
            let active = std::mem::take(&mut staged.active);
            staged.frozen.append(active);
            (staged.redb.clone(), staged.frozen.clone(), number)
        };
        let result = match &redb {
            _ if layers.is_empty() => Ok(()),
            Some(redb) => guarded(&self.path, || write(redb, &layers)),
            None => Err(DatabaseError::Full { path: self.path.clone() }),
        };
        drop(redb);
        self.settle(&result, number);
        self.changed.notify_all();
        if result.is_ok() {
            self.tell(number);
        }
        drop(one_at_a_time);
        result
    }

    /// Calls the hook. A fault in it must not end the flusher.
    fn tell(&self, number: u64) {
        if let Some(hook) = &*locked(&self.on_durable)
            && std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook(number))).is_err()
        {
            tracing::error!(target: "store", "telling of durable writes failed");
        }
    }

    /// Notes what became of the commit of all sets up to `number`.
    fn settle(&self, result: &Result<()>, number: u64) {
        let mut staged = self.staged_mut();
        match result {
            Ok(()) => {
                let durable = std::mem::take(&mut staged.frozen);
                let mut progress = locked(&self.progress);
                progress.durable = number;
                progress.failed = None;
                drop(progress);
                drop(staged);
                drop(durable);
            }
            // The layers stay readable: what was acknowledged as visible remains so until the process ends.
            Err(error) => {
                locked(&self.progress).failed = Some(error.clone());
                // After a failed write redb reads no more either, until it is opened anew.
                if let (DatabaseError::Full { .. }, Some(open)) = (error, &self.open) {
                    staged.redb = None;
                    match open() {
                        Ok(redb) => staged.redb = Some(Arc::new(redb)),
                        // Tried again with the next commit.
                        Err(DatabaseError::Full { .. }) => {}
                        Err(error) => locked(&self.progress).failed = Some(error),
                    }
                }
            }
        }
    }
}

fn write(redb: &redb::Database, layers: &Stack) -> std::result::Result<(), redb::Error> {
    let mut txn = redb.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    txn.set_quick_repair(true);
    for name in layers.tables() {
        let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(name);
        let mut table = txn.open_table(definition)?;
        layers.each(name, |key, value| match value {
            Some(value) => table.insert(key, value).map(drop),
            None => table.remove(key).map(drop),
        })?;
    }
    txn.commit()?;
    Ok(())
}

/// Makes the file under another name and renames it when it is whole, so that a crash leaves none or a good one.
fn create(path: &Path) -> Result<()> {
    let fail = |error| failure(path, redb::Error::Io(error));
    let part = path.with_extension("part");
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        Ok(()) | Err(_) => {}
    }
    let redb = guarded(path, || Ok(redb::Builder::new().create(&part)?))?;
    check_format(&redb, path)?;
    drop(redb);
    std::fs::rename(&part, path).map_err(fail)?;
    match path.parent() {
        Some(dir) if dir != Path::new("") => std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail),
        Some(_) | None => Ok(()),
    }
}

fn check_format(redb: &redb::Database, path: &Path) -> Result<()> {
    let (found, empty) = guarded(path, || {
        let txn = redb.begin_read()?;
        let found = match txn.open_table(FORMAT_TABLE) {
            Ok(table) => table.get("format")?.map(|found| found.value()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let empty = txn.list_tables()?.next().is_none() && txn.list_multimap_tables()?.next().is_none();
        Ok((found, empty))
    })?;
    match found {
        Some(FORMAT) => Ok(()),
        Some(found) => Err(DatabaseError::Newer { path: path.to_owned(), found }),
        None if !empty => {
            Err(DatabaseError::Corrupt { path: path.to_owned(), what: "this is not a file of this program".into() })
        }
        None => guarded(path, || {
            let txn = redb.begin_write()?;
            txn.open_table(FORMAT_TABLE)?.insert("format", FORMAT)?;
            txn.commit()?;
            Ok(())
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use super::*;

    fn memory() -> Database {
        Database::in_memory(redb::backends::InMemoryBackend::new()).unwrap()
    }

    fn stage(db: &Database, rows: &[(&str, Option<&str>)]) {
        let view = db.view().unwrap();
        let mut txn = Txn::new(&view);
        for (key, value) in rows {
            match value {
                Some(value) => txn.put("t", *key, *value),
                None => txn.remove("t", *key),
            }
        }
        let writes = txn.finish();
        drop(view);
        db.stage(writes).unwrap();
    }

    fn all(read: &dyn Read, reverse: bool) -> Vec<String> {
        let mut found = Vec::new();
        read.scan("t", (Bound::Unbounded, Bound::Unbounded), reverse, &mut |key, value| {
            found.push(format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)));
            Flow::Continue(())
        })
        .unwrap();
        found
    }

    #[test]
    fn what_is_staged_is_visible_at_once_and_durable_only_after_a_flush() {
        let db = memory();
        stage(&db, &[("a", Some("1"))]);
        assert_eq!(all(&db.view().unwrap(), false), ["a=1"]);
        assert!(all(&db.durable().unwrap(), false).is_empty());
        db.flush().unwrap();
        assert_eq!(all(&db.durable().unwrap(), false), ["a=1"]);
    }

    #[test]
    fn a_scan_merges_what_is_written_staged_and_durable_in_both_directions() {
        let db = memory();
        stage(&db, &[("a", Some("1")), ("c", Some("1")), ("e", Some("1"))]);
        db.flush().unwrap();
        stage(&db, &[("b", Some("2")), ("c", None), ("e", Some("2"))]);
        let view = db.view().unwrap();
        let mut txn = Txn::new(&view);
        txn.put("t", "d", "3");
        txn.remove("t", "b");
        assert_eq!(all(&view, false), ["a=1", "b=2", "e=2"]);
        assert_eq!(all(&view, true), ["e=2", "b=2", "a=1"]);
        assert_eq!(all(&txn, false), ["a=1", "d=3", "e=2"]);
        assert_eq!(all(&txn, true), ["e=2", "d=3", "a=1"]);
    }

    #[test]
    fn a_prefix_range_ends_where_the_prefix_does() {
        let mut end = Vec::new();
        assert_eq!(prefix(b"ab", &mut end).1, Bound::Excluded(b"ac".as_slice()));
        assert_eq!(prefix(b"a\xff", &mut end).1, Bound::Excluded(b"b".as_slice()));
        assert_eq!(prefix(b"\xff", &mut end).1, Bound::Unbounded);
    }

    #[test]
    fn a_file_is_there_again_after_closing_and_refused_when_newer_or_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.redb");
        let db = Database::open(&path, 1 << 20).unwrap();
        stage(&db, &[("a", Some("1"))]);
        assert!(matches!(Database::open(&path, 1 << 20), Err(DatabaseError::InUse { .. })));
        db.wait(db.staged()).unwrap();
        drop(db);
        let db = Database::open(&path, 1 << 20).unwrap();
        assert_eq!(all(&db.durable().unwrap(), false), ["a=1"]);
        let txn = db.shared.staged().redb.as_ref().unwrap().begin_write().unwrap();
        txn.open_table(FORMAT_TABLE).unwrap().insert("format", FORMAT + 1).unwrap();
        txn.commit().unwrap();
        drop(db);
        assert!(matches!(Database::open(&path, 1 << 20), Err(DatabaseError::Newer { .. })));
        std::fs::write(&path, vec![7; 8192]).unwrap();
        assert!(matches!(Database::open(&path, 1 << 20), Err(DatabaseError::Corrupt { .. })));
    }
}
