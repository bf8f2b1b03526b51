//! The flusher: makes what is staged durable and merges runs into the tables.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, TableDefinition};

use super::failure::guarded;
use super::layer::Stack;
use super::rows::{Sorted, each};
use super::run::{Run, Runs};
use super::view::Snapshot;
use super::{DatabaseError, Flow, Result, Table, locked};
use crate::clock;
use crate::replication::limits;

/// Runs: number to rows.
const RUNS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");

/// Bytes in runs above which they are merged into the tables.
const RUNS_BYTES: usize = 24 * 1024 * 1024;
/// How long a commit spends on merging, if nothing waits for the next one.
const SLICE: Duration = Duration::from_millis(20);
/// The part of that which it spends if something does.
const HASTE: u32 = 6;
/// Rows that are merged between looks at the clock.
const ROWS: u32 = 64;
/// After how much idleness runs are merged however small they are.
const IDLE: Duration = Duration::from_millis(500);
/// A set that is staged so soon after a commit is one of a stream.
const BUSY: Duration = Duration::from_millis(5);
/// How long sets of a stream gather before they are committed together.
const GATHER: Duration = Duration::from_millis(15);
/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What must be free on a disk that was full before it is tried again: this, and a multiple of what is staged.
const ROOM: u64 = 4 * 1024 * 1024;

#[derive(Default)]
pub(super) struct Staged {
    /// `None` only while the file is reopened, or if that failed.
    pub(super) redb: Option<Arc<redb::Database>>,
    /// What redb holds, without what a commit at work adds to it.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) active: Stack,
    pub(super) frozen: Stack,
    pub(super) runs: Runs,
    pub(super) merging: Runs,
}

/// How far staging and durability have come, in staged sets.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) staged: u64,
    pub(super) durable: u64,
    /// Bytes in the active layers.
    pub(super) waiting: usize,
    /// Whether a merge is behind: so much has come since it began that it must end first.
    pub(super) behind: bool,
    /// Callers that wait for durability.
    pub(super) hurried: u32,
    pub(super) stop: bool,
    pub(super) failed: Option<DatabaseError>,
}

/// What only he who commits needs.
pub(super) struct Committing {
    /// The number of the next run.
    pub(super) next: u64,
    /// The merge: the run behind the last that takes part, and the last row that is merged.
    pub(super) upto: u64,
    pub(super) cursor: Option<(Table, Vec<u8>)>,
    /// Bytes in runs above which a merge begins.
    pub(super) limit: usize,
    /// How long a commit merges.
    pub(super) slice: Duration,
}

pub(super) type OnDurable = Box<dyn Fn(u64) + Send + Sync>;
pub(super) type Open = Box<dyn Fn() -> Result<redb::Database> + Send + Sync>;

pub(super) struct Shared {
    pub(super) path: PathBuf,
    /// Opens the file anew; `None` if that can't be done.
    pub(super) open: Option<Open>,
    pub(super) staged: RwLock<Staged>,
    pub(super) progress: Mutex<Progress>,
    pub(super) changed: Condvar,
    /// Told when the flusher is not to gather any longer.
    pub(super) hurry: Condvar,
    pub(super) committing: Mutex<Committing>,
    pub(super) on_durable: Mutex<Option<OnDurable>>,
}

impl Staged {
    /// All runs.
    pub(super) fn durable(&self) -> Runs {
        let mut runs = self.merging.clone();
        runs.append(self.runs.clone());
        runs
    }
}

impl Progress {
    /// Whether it is time to commit, before writers have to wait.
    pub(super) const fn is_crowded(&self) -> bool {
        self.waiting > limits::STAGED_BYTES / 2
    }
}

impl Committing {
    /// Before the first commit; `next` is the number of the next run.
    pub(super) const fn new(next: u64) -> Self {
        Self { next, upto: 0, cursor: None, limit: RUNS_BYTES, slice: SLICE }
    }
}

impl Shared {
    pub(super) fn staged(&self) -> RwLockReadGuard<'_, Staged> {
        self.staged.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn staged_mut(&self) -> RwLockWriteGuard<'_, Staged> {
        self.staged.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self, staged: &Staged) -> Result<Arc<Snapshot>> {
        staged.snapshot.clone().ok_or_else(|| match &locked(&self.progress).failed {
            Some(cause) => cause.clone(),
            None => DatabaseError::Stopped { path: self.path.clone(), cause: "the file is not open".into() },
        })
    }

    /// Whether writes are taken.
    pub(super) fn check(&self, progress: &Progress) -> Result<()> {
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

    pub(super) fn run(&self) {
        let mut full = false;
        let mut ended = None;
        while let Some(idle) = self.await_work(ended) {
            match self.commit(idle) {
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
            ended = Some(clock::monotonic());
        }
    }

    /// Waits until there is something to commit or to merge; says whether nothing happened for a while. `None` when
    /// the database is closed: what is left is committed by whoever closes.
    fn await_work(&self, ended: Option<Instant>) -> Option<bool> {
        let (merging, runs) = {
            let staged = self.staged();
            (!staged.merging.is_empty(), !staged.runs.is_empty())
        };
        let mut progress = locked(&self.progress);
        loop {
            if progress.stop {
                return None;
            }
            if merging {
                return Some(false);
            }
            if progress.staged != progress.durable {
                if ended.is_some_and(|ended| ended.elapsed() < BUSY) {
                    self.gather(progress);
                }
                return Some(false);
            }
            if runs {
                let (guard, waited) = self.changed.wait_timeout(progress, IDLE).unwrap_or_else(PoisonError::into_inner);
                progress = guard;
                if waited.timed_out() && progress.staged == progress.durable {
                    return Some(true);
                }
            } else {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Under a stream of writes, lets some gather before the next commit: each costs about as much as writing a hundred
    /// rows, however little it holds. Whoever waits for durability ends it.
    fn gather(&self, mut progress: MutexGuard<'_, Progress>) {
        let began = clock::monotonic();
        while progress.hurried == 0 && !progress.stop && !progress.is_crowded() {
            let Some(rest) = GATHER.checked_sub(began.elapsed()) else { return };
            progress = self.hurry.wait_timeout(progress, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
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

    /// Makes the active layers, and those of a commit that failed before, durable, and goes on with merging; starts it
    /// if there are many runs, or any and `idle`.
    pub(super) fn commit(&self, idle: bool) -> Result<()> {
        let mut committing = locked(&self.committing);
        let Work { redb, layers, merging, number } = self.freeze(&mut committing, idle)?;
        let run = (!layers.is_empty()).then(|| {
            let sources: Vec<&dyn Sorted> = layers.newest_first().map(|layer| layer as &dyn Sorted).collect();
            Run::of(&sources)
        });
        let result = match &redb {
            _ if run.is_none() && merging.is_empty() => Ok((Merged::Wholly, None)),
            Some(redb) => guarded(&self.path, || {
                let begin = clock::monotonic();
                // The merge keeps pace with what comes, so that it ends before as much has come as one merge takes, and no
                // writer has to wait for its end.
                let due = run.as_ref().map_or(0, |run| run.bytes().len()).saturating_mul(merging.bytes())
                    / committing.limit.max(1);
                let enough = |bytes: usize| {
                    let waited_for = locked(&self.progress).staged != number;
                    bytes >= due
                        && begin.elapsed() >= if waited_for { committing.slice / HASTE } else { committing.slice }
                };
                let merged = write(redb, run.as_ref(), &merging, &committing, &enough)?;
                Ok((merged, Some(Arc::new(Snapshot::of(redb)?))))
            }),
            None => Err(DatabaseError::Full { path: self.path.clone() }),
        };
        drop((redb, layers, merging));
        let result = result.map(|(merged, snapshot)| {
            self.succeeded(&mut committing, run, merged, snapshot, number);
        });
        if let Err(error) = &result {
            self.failed(error);
        }
        self.changed.notify_all();
        if result.is_ok() {
            self.tell(number);
            // Nobody waits for this: what was committed is durable and told.
            let mut runs = self.staged().runs.clone();
            runs.fold();
            let unfolded = std::mem::replace(&mut self.staged_mut().runs, runs);
            drop(unfolded);
        }
        result
    }

    /// What the next commit writes.
    fn freeze(&self, committing: &mut Committing, idle: bool) -> Result<Work> {
        let mut staged = self.staged_mut();
        let mut progress = locked(&self.progress);
        match self.check(&progress) {
            Ok(()) | Err(DatabaseError::Full { .. }) => {}
            Err(stopped) => return Err(stopped),
        }
        progress.waiting = 0;
        let number = progress.staged;
        drop(progress);
        if staged.merging.is_empty() && (idle || staged.runs.bytes() > committing.limit) {
            staged.merging = std::mem::take(&mut staged.runs);
            (committing.upto, committing.cursor) = (committing.next, None);
        }
        let active = std::mem::take(&mut staged.active);
        staged.frozen.append(active);
        let (redb, layers, merging) = (staged.redb.clone(), staged.frozen.clone(), staged.merging.clone());
        Ok(Work { redb, layers, merging, number })
    }

    /// Notes that all sets up to `number` are durable, in `run`, and how far the merge has come.
    fn succeeded(
        &self,
        committing: &mut Committing,
        run: Option<Run>,
        merged: Merged,
        snapshot: Option<Arc<Snapshot>>,
        number: u64,
    ) {
        // Only he who commits changes the runs.
        let mut runs = self.staged().runs.clone();
        if let Some(run) = run {
            runs.push(run);
            committing.next += 1;
        }
        let mut staged = self.staged_mut();
        let behind = !staged.merging.is_empty() && runs.bytes() > committing.limit;
        let mut done = (std::mem::take(&mut staged.frozen), std::mem::replace(&mut staged.runs, runs), Runs::default());
        if snapshot.is_some() {
            staged.snapshot = snapshot;
        }
        match merged {
            Merged::Wholly => done.2 = std::mem::take(&mut staged.merging),
            Merged::To(cursor) => committing.cursor = Some(cursor),
        }
        let mut progress = locked(&self.progress);
        progress.durable = number;
        progress.failed = None;
        progress.behind = behind && !staged.merging.is_empty();
        drop(progress);
        drop(staged);
        drop(done);
    }

    /// Notes that a commit failed. The layers stay readable: what was acknowledged as visible remains so until the
    /// process ends.
    fn failed(&self, error: &DatabaseError) {
        let mut staged = self.staged_mut();
        locked(&self.progress).failed = Some(error.clone());
        // After a failed write redb reads no more either, until it is opened anew.
        if let (DatabaseError::Full { .. }, Some(open)) = (error, &self.open) {
            (staged.redb, staged.snapshot) = (None, None);
            match open().and_then(|redb| Ok((guarded(&self.path, || Snapshot::of(&redb))?, redb))) {
                Ok((snapshot, redb)) => {
                    (staged.redb, staged.snapshot) = (Some(Arc::new(redb)), Some(Arc::new(snapshot)));
                }
                // Tried again with the next commit.
                Err(DatabaseError::Full { .. }) => {}
                Err(error) => locked(&self.progress).failed = Some(error),
            }
        }
    }

    /// Calls the hook. A fault in it must not end the flusher.
    fn tell(&self, number: u64) {
        if let Some(hook) = &*locked(&self.on_durable)
            && std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook(number))).is_err()
        {
            tracing::error!(target: "store", "telling of durable writes failed");
        }
    }
}

/// What a commit writes: all sets up to `number`.
struct Work {
    redb: Option<Arc<redb::Database>>,
    layers: Stack,
    merging: Runs,
    number: u64,
}

/// How far a commit came with merging.
enum Merged {
    /// To this row.
    To((Table, Vec<u8>)),
    Wholly,
}

fn write(
    redb: &redb::Database,
    run: Option<&Run>,
    merging: &Runs,
    committing: &Committing,
    enough: &dyn Fn(usize) -> bool,
) -> std::result::Result<Merged, redb::Error> {
    let mut txn = redb.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    txn.set_quick_repair(true);
    let merged = merge(&txn, merging, committing.cursor.as_ref(), enough)?;
    {
        let mut runs = txn.open_table(RUNS)?;
        if matches!(merged, Merged::Wholly) && !merging.is_empty() {
            runs.retain_in(..committing.upto, |_, _| false)?;
        }
        if let Some(run) = run {
            runs.insert(committing.next, run.bytes())?;
        }
    }
    txn.commit()?;
    Ok(merged)
}

type OpenTable<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;

/// Writes rows behind `cursor` into their tables until all are there or their bytes are `enough`.
fn merge(
    txn: &redb::WriteTransaction,
    merging: &Runs,
    cursor: Option<&(Table, Vec<u8>)>,
    enough: &dyn Fn(usize) -> bool,
) -> std::result::Result<Merged, redb::Error> {
    let mut open: Option<(Table, OpenTable<'_>)> = None;
    let (mut count, mut bytes) = (0u32, 0);
    let mut end = Merged::Wholly;
    let sources: Vec<&dyn Sorted> = merging.newest_first().map(|run| run as &dyn Sorted).collect();
    each(&sources, cursor, |name, key, value| -> std::result::Result<Flow, redb::Error> {
        let table = match &mut open {
            Some((current, table)) if *current == name => table,
            _ => {
                // One at a time: the last is closed first.
                open = None;
                let table = txn.open_table(TableDefinition::<&[u8], &[u8]>::new(name))?;
                &mut open.insert((name, table)).1
            }
        };
        match value {
            Some(value) => drop(table.insert(key, value)?),
            None => drop(table.remove(key)?),
        }
        count += 1;
        bytes += key.len() + value.map_or(0, <[u8]>::len);
        if count.is_multiple_of(ROWS) && enough(bytes) {
            end = Merged::To((name, key.to_vec()));
            return Ok(Flow::Break(()));
        }
        Ok(Flow::Continue(()))
    })?;
    Ok(end)
}

/// The runs that are durable and not merged yet, and the number of the next.
pub(super) fn read_runs(redb: &redb::Database, path: &Path) -> Result<(Runs, u64)> {
    let (runs, next) = guarded(path, || {
        let txn = redb.begin_read()?;
        let table = match txn.open_table(RUNS) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((Some(Runs::default()), 0)),
            Err(error) => return Err(error.into()),
        };
        let mut runs = Some(Runs::default());
        let mut next = 0;
        for run in table.range::<u64>(..)? {
            let (number, run) = run?;
            next = number.value() + 1;
            runs = runs.zip(Run::parse(run.value().to_vec())).map(|(mut runs, run)| {
                runs.push(run);
                runs.fold();
                runs
            });
        }
        Ok((runs, next))
    })?;
    let damaged = || DatabaseError::Corrupt { path: path.to_owned(), what: "a run does not read back".into() };
    Ok((runs.ok_or_else(damaged)?, next))
}
