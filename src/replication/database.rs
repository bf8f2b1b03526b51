//! One redb file and, before it, what is staged: visible at once, durable within milliseconds.
//!
//! A write is put into the *active* layer in memory, where every reader sees it. The flusher thread
//! takes the active layer whole, writes it as one durable redb transaction, in key order, and starts
//! again as soon as there is more: group commit. A [`View`] reads the layers over a redb snapshot, so
//! it is consistent; [`Database::durable`] reads the snapshot alone, which is all that may leave the node.
//!
//! Invariants: staged sets enter redb in the order in which they were staged, each whole or not at
//! all; of the locks, `staged` is taken before `progress`; `frozen` is `Some` only while the flusher writes it; after a failed commit nothing more is staged.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use redb::{ReadableDatabase, TableDefinition};

use super::limits;

/// The name of a table: bytes to bytes, in the order of the bytes.
pub type Table = &'static str;

/// The version of the store file's form that this build writes.
pub const FORMAT: u32 = 1;

const FORMAT_TABLE: TableDefinition<'_, &str, u32> = TableDefinition::new("format");

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
    #[error("{path}: {what}; move it away and run `lattice up`: what other machines have is fetched again")]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A newer build wrote the file.
    #[error("{path}: format {found} is newer than this build's {FORMAT}; use a newer lattice")]
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
    #[error("{path}: takes no more writes since a commit failed ({cause}); restart the daemon")]
    Stopped {
        /// The store's file.
        path: PathBuf,
        /// The first failure.
        cause: String,
    },
}

/// The result of a use of the database.
pub type Result<T> = std::result::Result<T, DatabaseError>;

type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Writes in memory: per table, key to value, `None` where the key is removed.
#[derive(Debug, Default, Clone)]
pub struct Layer {
    tables: BTreeMap<Table, Rows>,
    bytes: usize,
}

impl Layer {
    fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len) + 64;
        self.tables.entry(table).or_default().insert(key, value);
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.tables.get(table)?.get(key)
    }

    fn absorb(&mut self, other: Self) {
        self.bytes += other.bytes;
        for (table, rows) in other.tables {
            match self.tables.entry(table) {
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert(rows);
                }
                std::collections::btree_map::Entry::Occupied(mut place) => place.get_mut().extend(rows),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

#[derive(Default)]
struct Staged {
    active: Layer,
    frozen: Option<Arc<Layer>>,
}

/// How far staging and durability have come, in staged sets.
#[derive(Default)]
struct Progress {
    staged: u64,
    durable: u64,
    /// Bytes in the active layer.
    waiting: usize,
    stop: bool,
    failed: Option<DatabaseError>,
}

type OnDurable = Box<dyn Fn(u64) + Send + Sync>;

struct Shared {
    redb: redb::Database,
    path: PathBuf,
    staged: RwLock<Staged>,
    progress: Mutex<Progress>,
    changed: Condvar,
    on_durable: Mutex<Option<OnDurable>>,
}

/// A store's file. Dropping it commits what is staged.
pub struct Database {
    shared: Arc<Shared>,
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
        redb::Error::Io(error) if error.raw_os_error() == Some(libc::ENOSPC) => DatabaseError::Full { path },
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            DatabaseError::Corrupt { path, what: format!("this is no store file ({error})") }
        }
        source => DatabaseError::Io { path, source: Arc::new(source) },
    }
}

impl Database {
    /// Opens or makes the file at `path`, with `cache` bytes of page cache, and starts its flusher.
    ///
    /// # Errors
    /// If the file can't be made or read, is damaged, newer, or in use.
    pub fn open(path: &Path, cache: usize) -> Result<Self> {
        let redb = redb::Builder::new().set_cache_size(cache).create(path).map_err(|error| failure(path, error))?;
        Self::with(redb, path, true)
    }

    /// A database in memory whose staged writes become durable only by [`Database::flush`]: for simulation and tests.
    ///
    /// # Errors
    /// If redb refuses.
    pub fn in_memory(backend: impl redb::StorageBackend) -> Result<Self> {
        let path = Path::new("(memory)");
        let redb = redb::Builder::new().create_with_backend(backend).map_err(|error| failure(path, error))?;
        Self::with(redb, path, false)
    }

    fn with(redb: redb::Database, path: &Path, flusher: bool) -> Result<Self> {
        check_format(&redb, path)?;
        let shared = Arc::new(Shared {
            redb,
            path: path.to_owned(),
            staged: RwLock::default(),
            progress: Mutex::default(),
            changed: Condvar::new(),
            on_durable: Mutex::default(),
        });
        let handle = if flusher {
            let shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new().name("store".into()).spawn(move || shared.run());
            Some(spawned.map_err(|error| failure(path, redb::Error::Io(error)))?)
        } else {
            None
        };
        Ok(Self { shared, flusher: Mutex::new(handle) })
    }

    /// Calls `hook` with the number of the last durable set after each durable commit, from the flusher's thread.
    pub fn on_durable(&self, hook: impl Fn(u64) + Send + Sync + 'static) {
        *locked(&self.shared.on_durable) = Some(Box::new(hook));
    }

    /// Everything written so far, durable or not.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn view(&self) -> Result<View<'_>> {
        let staged = self.shared.staged.read().unwrap_or_else(PoisonError::into_inner);
        let txn = self.shared.redb.begin_read().map_err(|error| failure(&self.shared.path, error))?;
        Ok(View { staged: Some(staged), txn, path: &self.shared.path })
    }

    /// Only what survives a crash: all that may be shown to other nodes.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn durable(&self) -> Result<View<'_>> {
        let txn = self.shared.redb.begin_read().map_err(|error| failure(&self.shared.path, error))?;
        Ok(View { staged: None, txn, path: &self.shared.path })
    }

    /// Waits while too much is staged, and says whether writes are taken: an error once a commit has failed.
    /// To be called before each write, holding no lock that an `on_durable` hook takes.
    ///
    /// # Errors
    /// [`DatabaseError::Stopped`], or that the disk is full.
    pub fn ready(&self) -> Result<()> {
        let shared = &self.shared;
        let flushing = locked(&self.flusher).is_some();
        let mut progress = locked(&shared.progress);
        while flushing && progress.failed.is_none() && progress.waiting > limits::STAGED_BYTES {
            progress = shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        match &progress.failed {
            None => Ok(()),
            Some(cause) => Err(self.stopped(cause)),
        }
    }

    fn stopped(&self, cause: &DatabaseError) -> DatabaseError {
        match cause {
            DatabaseError::Full { .. } => cause.clone(),
            DatabaseError::Io { .. }
            | DatabaseError::Corrupt { .. }
            | DatabaseError::Newer { .. }
            | DatabaseError::InUse { .. }
            | DatabaseError::Stopped { .. } => {
                DatabaseError::Stopped { path: self.shared.path.clone(), cause: cause.to_string() }
            }
        }
    }

    /// Makes `writes` visible to all views and queues them for the next commit. Returns the set's number,
    /// for [`Database::wait`].
    ///
    /// # Errors
    /// If an earlier commit failed.
    pub fn stage(&self, writes: Layer) -> Result<u64> {
        let shared = &self.shared;
        let mut staged = shared.staged.write().unwrap_or_else(PoisonError::into_inner);
        let mut progress = locked(&shared.progress);
        if let Some(cause) = &progress.failed {
            return Err(self.stopped(cause));
        }
        staged.active.absorb(writes);
        progress.staged += 1;
        progress.waiting = staged.active.bytes;
        let number = progress.staged;
        drop(progress);
        drop(staged);
        shared.changed.notify_all();
        Ok(number)
    }

    /// Waits until the set of this number is durable.
    ///
    /// # Errors
    /// If its commit failed: it is then lost with the process.
    pub fn wait(&self, number: u64) -> Result<()> {
        if locked(&self.flusher).is_none() {
            return self.flush();
        }
        let mut progress = locked(&self.shared.progress);
        while progress.durable < number {
            if let Some(cause) = &progress.failed {
                return Err(self.stopped(cause));
            }
            progress = self.shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// The number of the last set staged, for waiting until all so far is durable.
    #[must_use]
    pub fn staged(&self) -> u64 {
        locked(&self.shared.progress).staged
    }

    /// Commits what is staged, on this thread.
    ///
    /// # Errors
    /// If the commit fails.
    pub fn flush(&self) -> Result<()> {
        if locked(&self.flusher).is_some() {
            return self.wait(self.staged());
        }
        self.shared.commit()
    }

    /// Stops the flusher after it has committed what is staged.
    ///
    /// # Errors
    /// If a commit failed.
    pub fn close(&self) -> Result<()> {
        locked(&self.shared.progress).stop = true;
        self.shared.changed.notify_all();
        let handle = locked(&self.flusher).take();
        if let Some(handle) = handle {
            if handle.join().is_err() {
                let cause = "its writer thread ended early".to_owned();
                return Err(DatabaseError::Stopped { path: self.shared.path.clone(), cause });
            }
            return self.ready();
        }
        Ok(())
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
    fn run(&self) {
        loop {
            let mut progress = locked(&self.progress);
            while progress.staged == progress.durable && !progress.stop {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
            let done = progress.stop && progress.staged == progress.durable;
            drop(progress);
            if done {
                return;
            }
            if let Err(error) = self.commit() {
                tracing::error!(target: "store", %error, "commit failed: the store takes no more writes");
                return;
            }
        }
    }

    /// Moves the active layer into redb, durably.
    fn commit(&self) -> Result<()> {
        let (layer, number) = {
            let mut staged = self.staged.write().unwrap_or_else(PoisonError::into_inner);
            let mut progress = locked(&self.progress);
            let number = progress.staged;
            progress.waiting = 0;
            drop(progress);
            let layer = Arc::new(std::mem::take(&mut staged.active));
            staged.frozen = Some(Arc::clone(&layer));
            (layer, number)
        };
        let result = if layer.is_empty() { Ok(()) } else { self.write(&layer) };
        let mut staged = self.staged.write().unwrap_or_else(PoisonError::into_inner);
        let mut progress = locked(&self.progress);
        match &result {
            Ok(()) => {
                staged.frozen = None;
                progress.durable = number;
            }
            // The layer stays readable: what was acknowledged as visible remains so until the process ends.
            Err(error) => progress.failed = Some(error.clone()),
        }
        drop(progress);
        drop(staged);
        self.changed.notify_all();
        if result.is_ok()
            && let Some(hook) = &*locked(&self.on_durable)
        {
            hook(number);
        }
        result
    }

    fn write(&self, layer: &Layer) -> Result<()> {
        let fail = |error: redb::Error| failure(&self.path, error);
        let mut txn = self.redb.begin_write().map_err(|error| fail(error.into()))?;
        txn.set_durability(redb::Durability::Immediate).map_err(|error| fail(error.into()))?;
        txn.set_quick_repair(true);
        for (table, rows) in &layer.tables {
            let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(table);
            let mut table = txn.open_table(definition).map_err(|error| fail(error.into()))?;
            for (key, value) in rows {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice()).map(drop),
                    None => table.remove(key.as_slice()).map(drop),
                }
                .map_err(|error| fail(error.into()))?;
            }
        }
        txn.commit().map_err(|error| fail(error.into()))
    }
}

fn check_format(redb: &redb::Database, path: &Path) -> Result<()> {
    let txn = redb.begin_read().map_err(|error| failure(path, error))?;
    let found = match txn.open_table(FORMAT_TABLE) {
        Ok(table) => table.get("format").map_err(|error| failure(path, error))?.map(|found| found.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(failure(path, error)),
    };
    drop(txn);
    match found {
        Some(FORMAT) => Ok(()),
        Some(found) => Err(DatabaseError::Newer { path: path.to_owned(), found }),
        None => {
            let txn = redb.begin_write().map_err(|error| failure(path, error))?;
            {
                let mut table = txn.open_table(FORMAT_TABLE).map_err(|error| failure(path, error))?;
                table.insert("format", FORMAT).map_err(|error| failure(path, error))?;
            }
            txn.commit().map_err(|error| failure(path, error))
        }
    }
}

/// What a scan's callback answers: go on, or stop.
pub type Flow = ControlFlow<()>;

/// Reading of rows, with what is written on top of them.
pub trait Read {
    /// The value at `key`.
    ///
    /// # Errors
    /// If the file can't be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` for the rows of `table` whose keys lie in `range`, in the keys' order, or against it if `reverse`.
    /// `visit` must not use this store.
    ///
    /// # Errors
    /// If the file can't be read.
    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()>;
}

/// The range of all keys that begin with `prefix`; `end` is scratch space that outlives it.
#[must_use]
pub fn prefix<'a>(prefix: &'a [u8], end: &'a mut Vec<u8>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    *end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    match end.last_mut() {
        None => (Bound::Included(prefix), Bound::Unbounded),
        Some(last) => {
            *last += 1;
            (Bound::Included(prefix), Bound::Excluded(end))
        }
    }
}

/// A consistent reading of the database. Hold it briefly: while it lives nothing can be staged.
pub struct View<'a> {
    staged: Option<RwLockReadGuard<'a, Staged>>,
    txn: redb::ReadTransaction,
    path: &'a Path,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("path", &self.path).finish_non_exhaustive()
    }
}

impl View<'_> {
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.staged.iter().flat_map(|staged| std::iter::once(&staged.active).chain(staged.frozen.as_deref()))
    }

    fn table(&self, table: Table) -> Result<Option<redb::ReadOnlyTable<&'static [u8], &'static [u8]>>> {
        match self.txn.open_table(TableDefinition::new(table)) {
            Ok(table) => Ok(Some(table)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(failure(self.path, error)),
        }
    }

    fn scan_with(
        &self,
        top: Option<&Layer>,
        name: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        if is_empty(range) {
            return Ok(());
        }
        let mut layers: Vec<_> = top
            .into_iter()
            .chain(self.layers())
            .filter_map(|layer| layer.tables.get(name))
            .map(|rows| Source::new(rows.range::<[u8], _>(range), reverse))
            .collect();
        let table = self.table(name)?;
        let mut base = match &table {
            Some(table) => Some(table.range::<&[u8]>(range).map_err(|error| failure(self.path, error))?),
            None => None,
        };
        let mut step = || -> Result<_> {
            let row = match &mut base {
                None => None,
                Some(range) if reverse => range.next_back(),
                Some(range) => range.next(),
            };
            row.transpose().map_err(|error| failure(self.path, error))
        };
        let mut below = step()?;
        loop {
            // The nearest key of any source; among equals the newest layer's value counts.
            let mut nearest: Option<&[u8]> = below.as_ref().map(|(key, _)| key.value());
            for source in &layers {
                if let Some((key, _)) = source.head
                    && nearest.is_none_or(|best| if reverse { key.as_slice() > best } else { key.as_slice() < best })
                {
                    nearest = Some(key);
                }
            }
            let Some(nearest) = nearest else { return Ok(()) };
            let newest = layers
                .iter()
                .find_map(|source| source.head.filter(|(key, _)| key.as_slice() == nearest).map(|(_, value)| value));
            let flow = match (newest, &below) {
                (Some(Some(value)), _) => visit(nearest, value),
                (Some(None), _) => Flow::Continue(()),
                (None, Some((_, value))) => visit(nearest, value.value()),
                (None, None) => Flow::Continue(()),
            };
            if flow.is_break() {
                return Ok(());
            }
            let advance_base = below.as_ref().is_some_and(|(key, _)| key.value() == nearest);
            let nearest = if layers.is_empty() { Vec::new() } else { nearest.to_vec() };
            for source in &mut layers {
                source.pass(&nearest);
            }
            if advance_base {
                below = step()?;
            }
        }
    }
}

fn is_empty((start, end): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (start, end) {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
        | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

struct Source<'a> {
    rows: std::collections::btree_map::Range<'a, Vec<u8>, Option<Vec<u8>>>,
    head: Option<(&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    reverse: bool,
}

impl<'a> Source<'a> {
    fn new(rows: std::collections::btree_map::Range<'a, Vec<u8>, Option<Vec<u8>>>, reverse: bool) -> Self {
        let mut source = Self { rows, head: None, reverse };
        source.advance();
        source
    }

    fn advance(&mut self) {
        self.head = if self.reverse { self.rows.next_back() } else { self.rows.next() };
    }

    fn pass(&mut self, key: &[u8]) {
        if self.head.is_some_and(|(head, _)| head.as_slice() == key) {
            self.advance();
        }
    }
}

impl Read for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        for layer in self.layers() {
            if let Some(value) = layer.get(table, key) {
                return Ok(value.clone());
            }
        }
        let Some(table) = self.table(table)? else { return Ok(None) };
        let value = table.get(key).map_err(|error| failure(self.path, error))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        self.scan_with(None, table, range, reverse, visit)
    }
}

/// Reading with writes of one's own on top: what a state machine applies an entry in.
#[derive(Debug)]
pub struct Txn<'a> {
    view: &'a View<'a>,
    writes: Layer,
}

impl<'a> Txn<'a> {
    /// A transaction over `view`.
    #[must_use]
    pub fn new(view: &'a View<'a>) -> Self {
        Self { view, writes: Layer::default() }
    }

    /// Sets a row.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.writes.put(table, key.into(), Some(value.into()));
    }

    /// Removes a row.
    pub fn remove(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.writes.put(table, key.into(), None);
    }

    /// The writes, for [`Database::stage`].
    #[must_use]
    pub fn finish(self) -> Layer {
        self.writes
    }
}

impl Read for Txn<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.writes.get(table, key) {
            Some(value) => Ok(value.clone()),
            None => self.view.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        self.view.scan_with(Some(&self.writes), table, range, reverse, visit)
    }
}

#[cfg(test)]
mod tests {
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
        let txn = db.shared.redb.begin_write().unwrap();
        txn.open_table(FORMAT_TABLE).unwrap().insert("format", FORMAT + 1).unwrap();
        txn.commit().unwrap();
        drop(db);
        assert!(matches!(Database::open(&path, 1 << 20), Err(DatabaseError::Newer { .. })));
        std::fs::write(&path, vec![7; 8192]).unwrap();
        assert!(matches!(Database::open(&path, 1 << 20), Err(DatabaseError::Corrupt { .. })));
    }
}
