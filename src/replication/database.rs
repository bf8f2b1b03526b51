//! One redb file and, before it, what is staged: visible at once, durable within milliseconds.
//!
//! A write goes through four places, the newest first, and a [`View`] reads them as one:
//!
//! 1. the *active* layers in memory, where every reader sees it at once;
//! 2. the *frozen* layers, while the flusher thread commits them: as one row of the table `runs`, so that a commit
//!    touches few pages whatever keys it holds. It starts again as soon as there is more: group commit;
//! 3. the *runs*: layers in memory whose rows are durable in `runs`. [`Database::durable`] sees from here on down, which
//!    is all that may leave the node;
//! 4. the tables themselves, into which runs are merged when there are many or nothing else is to do: in the keys'
//!    order, since one page then takes many rows, and a slice after each commit, so that none waits long for it. Writers
//!    wait for room where the merge can't keep pace: a little each, in turn.
//!
//! Opening reads the table `runs` back into memory. A crash during a merge leaves the runs there, over what was merged.
//!
//! Invariants: staged sets become durable in the order in which they were staged, each whole or not at all; one commit
//! at a time; of the locks, `committing` is taken before `staged`, and that before `progress`, none of them while `redb`
//! works on the disk but `committing` and, when the file is reopened, `staged`. Layers stay in `frozen` until they are
//! durable, and in memory until they are merged. After a failed commit nothing more is staged; if the disk was full,
//! until a later try succeeds.

mod commit;
mod failure;
mod layer;
mod merge;
mod room;
mod rows;
mod run;
mod view;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{ReadableDatabase, TableDefinition};

use commit::{Committing, Open, Progress, Shared, Staged, read_runs};
pub use failure::DatabaseError;
use failure::{failure, guarded};
use layer::Stack;
pub use layer::{Late, Layer};
use view::Snapshot;
pub use view::{Flow, Read, Txn, View, prefix};

/// The name of a table: bytes to bytes, in the order of the bytes.
pub type Table = &'static str;

/// The version of the store file's form that this build writes.
pub const FORMAT: u32 = 1;

const FORMAT_TABLE: TableDefinition<'_, &str, u32> = TableDefinition::new("format");

/// The result of a use of the database.
pub type Result<T> = std::result::Result<T, DatabaseError>;

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

    /// A database in memory of which nothing is kept: for what is derived once, looked at and dropped.
    ///
    /// # Errors
    /// If redb refuses.
    pub fn passing() -> Result<Self> {
        Self::in_memory(redb::backends::InMemoryBackend::new())
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
        let (runs, next) = read_runs(&redb, path)?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            open,
            staged: RwLock::new(Staged {
                snapshot: Some(Arc::new(guarded(path, || Snapshot::of(&redb))?)),
                redb: Some(Arc::new(redb)),
                runs,
                ..Staged::default()
            }),
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
            hurry: Condvar::new(),
            committing: Mutex::new(Committing::new(next)),
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

    /// Merges runs when they are larger than `limit` bytes, in place of the usual limit, and spends `slice` on that after
    /// each commit.
    #[must_use]
    pub fn merging(self, limit: usize, slice: Duration) -> Self {
        let mut committing = locked(&self.shared.committing);
        (committing.merge.limit, committing.merge.slice) = (limit, slice);
        drop(committing);
        self
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
        Ok(View::new(layers, staged.durable(), self.shared.snapshot(&staged)?, &self.shared.path))
    }

    /// Only what survives a crash: all that may be shown to other nodes.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn durable(&self) -> Result<View<'_>> {
        let staged = self.shared.staged();
        Ok(View::new(Stack::default(), staged.durable(), self.shared.snapshot(&staged)?, &self.shared.path))
    }

    /// Whether so much is staged that [`Database::ready`] may soon have to wait for the disk.
    #[must_use]
    pub fn crowded(&self) -> bool {
        locked(&self.shared.progress).is_close()
    }

    /// The bytes staged for the commit that comes next.
    #[must_use]
    pub fn waiting(&self) -> usize {
        locked(&self.shared.progress).waiting
    }

    /// Waits while too much is staged or the merge is behind, in turn with others, and says whether writes are taken: an
    /// error once a commit has failed. To be called before each write, holding no lock that an `on_durable` hook takes.
    ///
    /// # Errors
    /// [`DatabaseError::Stopped`], or that the disk is full.
    pub fn ready(&self) -> Result<()> {
        self.admit(false)
    }

    /// The same for many writes at once, which nobody here waits for: it leaves room for those of [`Database::ready`].
    ///
    /// # Errors
    /// As that.
    pub fn ready_for_many(&self) -> Result<()> {
        self.admit(true)
    }

    fn admit(&self, many: bool) -> Result<()> {
        if self.automatic { self.shared.admit(many) } else { self.shared.check(&locked(&self.shared.progress)) }
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
        let (resting, crowded) = (progress.resting, progress.is_crowded());
        drop(progress);
        drop(staged);
        if resting {
            shared.changed.notify_all();
        }
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
                return shared.commit_and_merge();
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
        if self.automatic { self.wait(self.staged()) } else { self.shared.commit_and_merge() }
    }

    /// Commits what is staged, and takes no writes from then on.
    pub fn retire(&self, why: &str) {
        if let Err(error) = self.close() {
            tracing::warn!(target: "store", path = %self.shared.path.display(), %error, "what was staged last is lost");
        }
        let cause = why.to_owned();
        locked(&self.shared.progress).failed = Some(DatabaseError::Stopped { path: self.shared.path.clone(), cause });
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
    fn what_begins_so_is_found_in_every_place_and_not_where_it_was_removed() {
        let db = memory();
        let begins = |start: &str| {
            let view = db.view().unwrap();
            let found = view.begins("t", start.as_bytes()).unwrap();
            let mut end = Vec::new();
            let mut scanned = false;
            let mut visit = |_: &[u8], _: &[u8]| {
                scanned = true;
                Flow::Break(())
            };
            view.scan("t", prefix(start.as_bytes(), &mut end), false, &mut visit).unwrap();
            assert_eq!(found, scanned, "{start:?}");
            assert_eq!(Txn::new(&view).begins("t", start.as_bytes()).unwrap(), found, "{start:?}");
            found
        };
        let starts = ["", "a", "a\0", "a\0b", "a\0b\0", "a\0b\0c", "a\0c\0", "b\0", "\0", "a\0\0"];
        let found = || starts.map(begins);
        stage(&db, &[("a\0b\0c", Some("1")), ("a\0b\0d", Some("1")), ("b", Some("1"))]);
        let with = found();
        assert_eq!(with, [true, true, true, true, true, true, false, false, false, false]);
        db.flush().unwrap();
        assert_eq!(found(), with, "in a run");
        db.shared.merge(true).unwrap();
        assert_eq!(found(), with, "in the table");
        stage(&db, &[("a\0b\0c", None), ("b\0x", Some("1"))]);
        db.flush().unwrap();
        assert!(begins("a\0b\0") && begins("b\0"));
        stage(&db, &[("a\0b\0d", None)]);
        assert!(!begins("a\0"));
        db.flush().unwrap();
        assert!(!begins("a\0") && begins("b\0"));
        let view = db.view().unwrap();
        let mut txn = Txn::new(&view);
        txn.put("t", "a\0z", "1");
        txn.remove("t", "b\0x");
        assert!(txn.begins("t", b"a\0").unwrap() && !txn.begins("t", b"b\0").unwrap());
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
