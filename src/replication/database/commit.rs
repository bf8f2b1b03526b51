//! The flusher: makes what is staged durable, a run at a time, and lets a slice of the merge follow each.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, TableDefinition};

use super::failure::guarded;
use super::layer::Stack;
use super::merge::Merge;
use super::rows::Sorted;
use super::run::{Run, Runs};
use super::view::Snapshot;
use super::{DatabaseError, Result, locked};
use crate::clock;

/// Runs: number to rows.
pub(super) const RUNS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");

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
pub(super) struct Progress {
    pub(super) staged: u64,
    pub(super) durable: u64,
    /// Bytes in the active layers.
    pub(super) waiting: usize,
    /// Bytes in the frozen layers, and in runs that no merge is at work on.
    pub(super) unmerged: usize,
    /// How many these and the active layers may be: more as a merge comes on.
    pub(super) allowed: usize,
    /// Writers that wait for room, in the order in which they came.
    pub(super) queue: VecDeque<u64>,
    /// The number of the next such writer.
    pub(super) number: u64,
    /// Whether the flusher waits for something to be staged.
    pub(super) resting: bool,
    /// Callers that wait for durability.
    pub(super) hurried: u32,
    pub(super) stop: bool,
    pub(super) failed: Option<DatabaseError>,
}

/// What only he who commits needs.
pub(super) struct Committing {
    /// The number of the next run.
    pub(super) next: u64,
    pub(super) merge: Merge,
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

/// What the flusher does next.
enum Next {
    Commit,
    /// Merges a slice; if nothing happened for a while, it begins a merge.
    Merge {
        idle: bool,
    },
}

impl Staged {
    /// All runs.
    pub(super) fn durable(&self) -> Runs {
        let mut runs = self.merging.clone();
        runs.append(self.runs.clone());
        runs
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            staged: 0,
            durable: 0,
            waiting: 0,
            unmerged: 0,
            allowed: usize::MAX,
            queue: VecDeque::new(),
            number: 0,
            resting: false,
            hurried: 0,
            stop: false,
            failed: None,
        }
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

    /// Whether the disk is to be tried.
    pub(super) fn check_disk(&self, progress: &Progress) -> Result<()> {
        match self.check(progress) {
            Ok(()) | Err(DatabaseError::Full { .. }) => Ok(()),
            Err(stopped) => Err(stopped),
        }
    }

    pub(super) fn run(&self) {
        let mut full = false;
        let mut merged = true;
        let mut ended = None;
        while let Some(next) = self.await_work(ended, merged) {
            merged = matches!(next, Next::Merge { .. });
            let done = match next {
                Next::Commit => self.commit(),
                Next::Merge { idle } => self.merge(idle),
            };
            match done {
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

    /// Waits until there is something to commit or to merge; of both, what was not done last. `None` when the database
    /// is closed: what is left is committed by whoever closes.
    fn await_work(&self, ended: Option<Instant>, merged: bool) -> Option<Next> {
        let (merging, runs) = {
            let staged = self.staged();
            (!staged.merging.is_empty(), !staged.runs.is_empty())
        };
        let mut progress = locked(&self.progress);
        loop {
            if progress.stop {
                return None;
            }
            let fresh = progress.staged != progress.durable;
            if merging && !(fresh && merged) {
                return Some(Next::Merge { idle: false });
            }
            if fresh {
                if !merging && ended.is_some_and(|ended| ended.elapsed() < BUSY) {
                    self.gather(progress);
                }
                return Some(Next::Commit);
            }
            progress.resting = true;
            if runs {
                let (guard, waited) = self.changed.wait_timeout(progress, IDLE).unwrap_or_else(PoisonError::into_inner);
                progress = guard;
                if waited.timed_out() && progress.staged == progress.durable {
                    progress.resting = false;
                    return Some(Next::Merge { idle: true });
                }
            } else {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
            progress.resting = false;
        }
    }

    /// Under a stream of writes, lets some gather before the next commit: each costs about as much as writing a hundred
    /// rows, however little it holds. Whoever waits for durability, or for room, ends it.
    fn gather(&self, mut progress: MutexGuard<'_, Progress>) {
        let began = clock::monotonic();
        while progress.hurried == 0 && !progress.stop && !progress.is_crowded() && progress.queue.is_empty() {
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

    /// For a database that nobody commits unasked.
    pub(super) fn commit_and_merge(&self) -> Result<()> {
        self.commit()?;
        self.merge(false)
    }

    /// Makes the active layers, and those of a commit that failed before, durable as one run.
    pub(super) fn commit(&self) -> Result<()> {
        let mut committing = locked(&self.committing);
        let Work { redb, layers, number } = self.freeze()?;
        let run = (!layers.is_empty()).then(|| {
            let sources: Vec<&dyn Sorted> = layers.newest_first().map(|layer| layer as &dyn Sorted).collect();
            Run::of(&sources)
        });
        let result = match (&redb, &run) {
            (_, None) => Ok(None),
            (Some(redb), Some(run)) => guarded(&self.path, || {
                write(redb, committing.next, run)?;
                Ok(Some(Arc::new(Snapshot::of(redb)?)))
            }),
            (None, Some(_)) => Err(DatabaseError::Full { path: self.path.clone() }),
        };
        drop((redb, layers));
        let result = result.map(|snapshot| self.committed(&mut committing, run, snapshot, number));
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
    fn freeze(&self) -> Result<Work> {
        let mut staged = self.staged_mut();
        let mut progress = locked(&self.progress);
        self.check_disk(&progress)?;
        let number = progress.staged;
        let active = std::mem::take(&mut staged.active);
        staged.frozen.append(active);
        progress.unmerged += std::mem::take(&mut progress.waiting);
        let room = !progress.queue.is_empty();
        drop(progress);
        let work = Work { redb: staged.redb.clone(), layers: staged.frozen.clone(), number };
        drop(staged);
        if room {
            self.changed.notify_all();
        }
        Ok(work)
    }

    /// Notes that all sets up to `number` are durable, in `run`; begins a merge if there are many runs and none is at work.
    fn committed(&self, committing: &mut Committing, run: Option<Run>, snapshot: Option<Arc<Snapshot>>, number: u64) {
        // Only he who commits changes the runs.
        let mut runs = self.staged().runs.clone();
        if let Some(run) = run {
            runs.push(run);
            committing.next += 1;
        }
        let mut staged = self.staged_mut();
        let done = (std::mem::take(&mut staged.frozen), std::mem::replace(&mut staged.runs, runs));
        if snapshot.is_some() {
            staged.snapshot = snapshot;
        }
        if staged.merging.is_empty() && staged.runs.bytes() > committing.merge.limit {
            committing.begin_merge(&mut staged);
        }
        let mut progress = locked(&self.progress);
        progress.durable = number;
        progress.failed = None;
        committing.merge.allow(&staged, &mut progress);
        drop(progress);
        drop(staged);
        drop(done);
    }

    /// Notes that a commit failed. The layers stay readable: what was acknowledged as visible remains so until the
    /// process ends.
    pub(super) fn failed(&self, error: &DatabaseError) {
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
    number: u64,
}

fn write(redb: &redb::Database, number: u64, run: &Run) -> std::result::Result<(), redb::Error> {
    let txn = begin(redb)?;
    txn.open_table(RUNS)?.insert(number, run.bytes())?;
    txn.commit()?;
    Ok(())
}

/// A transaction that is durable when it is committed, after which the file opens at once.
pub(super) fn begin(redb: &redb::Database) -> std::result::Result<redb::WriteTransaction, redb::Error> {
    let mut txn = redb.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    txn.set_quick_repair(true);
    Ok(txn)
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
