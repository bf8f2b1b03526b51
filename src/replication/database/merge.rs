//! Merging runs into the tables, a slice at a time, each in a transaction of its own: what is staged meanwhile waits for
//! one slice at most. A crash between two leaves the runs there, over what is merged already.

use std::sync::Arc;
use std::time::Duration;

use redb::TableDefinition;

use super::commit::{Committing, Progress, RUNS, Shared, Staged, begin};
use super::failure::guarded;
use super::rows::{Sorted, each};
use super::run::Runs;
use super::view::Snapshot;
use super::{DatabaseError, Flow, Result, Table, locked};
use crate::clock;

/// Bytes in runs above which they are merged into the tables.
const RUNS_BYTES: usize = 24 * 1024 * 1024;
/// How long a slice takes, with its commit, about.
const SLICE: Duration = Duration::from_millis(30);
/// The part of that which it takes if somebody waits for durability.
const HASTE: u32 = 4;
/// Rows that are merged between looks at the clock.
const ROWS: u32 = 32;
/// The part of the limit that new runs may take up when a merge begins. The rest is theirs as the merge comes on, so that
/// it ends before as much has come as one merge takes, and nobody has to wait for its end.
const AT_FIRST: usize = 4;

/// The merge: what is to be done, and how far it has come.
pub(super) struct Merge {
    /// Bytes in runs above which one begins.
    pub(super) limit: usize,
    /// How long a slice takes.
    pub(super) slice: Duration,
    /// The number behind that of the last run that takes part.
    upto: u64,
    /// The last row that is merged.
    cursor: Option<Cursor>,
    /// Bytes that are merged.
    done: usize,
    /// How long slices took of late, with their commits, as a multiple of the time until the commit.
    cost: f64,
}

type Cursor = (Table, Vec<u8>);

impl Default for Merge {
    fn default() -> Self {
        Self { limit: RUNS_BYTES, slice: SLICE, upto: 0, cursor: None, done: 0, cost: 3.0 }
    }
}

impl Committing {
    /// Before the first commit; `next` is the number of the next run.
    pub(super) fn new(next: u64) -> Self {
        Self { next, merge: Merge::default() }
    }

    pub(super) fn begin_merge(&mut self, staged: &mut Staged) {
        staged.merging = std::mem::take(&mut staged.runs);
        (self.merge.upto, self.merge.cursor, self.merge.done) = (self.next, None, 0);
    }
}

impl Merge {
    /// Notes how much is not merged, and how much that may be.
    pub(super) fn allow(&self, staged: &Staged, progress: &mut Progress) {
        progress.unmerged = staged.frozen.bytes() + staged.runs.bytes();
        let all = staged.merging.bytes();
        progress.allowed = if all == 0 {
            usize::MAX
        } else {
            let first = self.limit / AT_FIRST;
            let more = (self.limit - first) as u128 * self.done.min(all) as u128 / all as u128;
            first.saturating_add(usize::try_from(more).unwrap_or(usize::MAX))
        };
    }

    /// Learns from a slice that took this long, and so long before its commit.
    fn learn(&mut self, merging: Duration, all: Duration) {
        let cost = all.as_secs_f64() / merging.as_secs_f64().max(1e-6);
        self.cost = (self.cost * 3.0 + cost.clamp(1.0, 10.0)) / 4.0;
    }
}

impl Shared {
    /// Merges a slice; `idle`: of whatever runs there are.
    pub(super) fn merge(&self, idle: bool) -> Result<()> {
        let mut committing = locked(&self.committing);
        self.check_disk(&locked(&self.progress))?;
        let (redb, merging) = {
            let mut staged = self.staged_mut();
            if idle && staged.merging.is_empty() {
                committing.begin_merge(&mut staged);
            }
            (staged.redb.clone(), staged.merging.clone())
        };
        if merging.is_empty() {
            return Ok(());
        }
        let merge = &mut committing.merge;
        let began = clock::monotonic();
        let result = match &redb {
            Some(redb) => guarded(&self.path, || {
                let enough = || {
                    let hurried = locked(&self.progress).hurried > 0;
                    let slice = if hurried { merge.slice / HASTE } else { merge.slice };
                    began.elapsed().mul_f64(merge.cost) >= slice
                };
                let merged = write(redb, &merging, merge, &enough)?;
                Ok((merged, Arc::new(Snapshot::of(redb)?)))
            }),
            None => Err(DatabaseError::Full { path: self.path.clone() }),
        };
        drop((redb, merging));
        let result = result.map(|(merged, snapshot)| {
            merge.learn(merged.took, began.elapsed());
            merge.done += merged.bytes;
            let mut staged = self.staged_mut();
            staged.snapshot = Some(snapshot);
            merge.cursor = merged.cursor;
            let wholly = if merge.cursor.is_none() { std::mem::take(&mut staged.merging) } else { Runs::default() };
            let mut progress = locked(&self.progress);
            progress.failed = None;
            merge.allow(&staged, &mut progress);
            drop((progress, staged));
            drop(wholly);
        });
        if let Err(error) = &result {
            self.failed(error);
        }
        self.changed.notify_all();
        result
    }
}

/// What a slice merged.
struct Merged {
    /// Its last row; `None` if nothing is left.
    cursor: Option<Cursor>,
    bytes: usize,
    /// How long that took, without the commit.
    took: Duration,
}

fn write(
    redb: &redb::Database,
    merging: &Runs,
    merge: &Merge,
    enough: &dyn Fn() -> bool,
) -> std::result::Result<Merged, redb::Error> {
    let began = clock::monotonic();
    let txn = begin(redb)?;
    let (cursor, bytes) = slice(&txn, merging, merge.cursor.as_ref(), enough)?;
    if cursor.is_none() {
        txn.open_table(RUNS)?.retain_in(..merge.upto, |_, _| false)?;
    }
    let took = began.elapsed();
    txn.commit()?;
    Ok(Merged { cursor, bytes, took })
}

type OpenTable<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;

/// Writes rows behind `cursor` into their tables until all are there or it is `enough`. Says which was the last, if that
/// was not all, and how many bytes they were.
fn slice(
    txn: &redb::WriteTransaction,
    merging: &Runs,
    cursor: Option<&Cursor>,
    enough: &dyn Fn() -> bool,
) -> std::result::Result<(Option<Cursor>, usize), redb::Error> {
    let mut open: Option<(Table, OpenTable<'_>)> = None;
    let (mut count, mut bytes) = (0u32, 0);
    let mut end = None;
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
        // With what a run says of a row besides.
        bytes += key.len() + value.map_or(0, <[u8]>::len) + 8;
        if count.is_multiple_of(ROWS) && enough() {
            end = Some((name, key.to_vec()));
            return Ok(Flow::Break(()));
        }
        Ok(Flow::Continue(()))
    })?;
    Ok((end, bytes))
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use super::super::{Database, Read, Txn};
    use super::*;

    fn stage(db: &Database, names: std::ops::Range<u32>) {
        let view = db.view().unwrap();
        let mut txn = Txn::new(&view);
        names.for_each(|n| txn.put("t", n.to_string(), [7; 100]));
        let writes = txn.finish();
        drop(view);
        db.stage(writes).unwrap();
    }

    fn rows(db: &Database) -> usize {
        let mut count = 0;
        let mut visit = |_: &[u8], _: &[u8]| {
            count += 1;
            Flow::Continue(())
        };
        db.durable().unwrap().scan("t", (Bound::Unbounded, Bound::Unbounded), false, &mut visit).unwrap();
        count
    }

    fn state(db: &Database) -> (usize, usize) {
        (locked(&db.shared.committing).merge.done, locked(&db.shared.progress).allowed)
    }

    #[test]
    fn what_is_staged_during_a_merge_is_durable_without_more_of_it_and_more_is_allowed_as_it_comes_on() {
        let db = Database::in_memory(redb::backends::InMemoryBackend::new()).unwrap().merging(20_000, Duration::ZERO);
        stage(&db, 0..500);
        assert_eq!(state(&db), (0, usize::MAX));
        db.shared.commit().unwrap();
        assert_eq!(state(&db), (0, 5_000), "a merge has begun");
        let mut before = 5_000;
        for n in 500..505 {
            let done = state(&db).0;
            stage(&db, n..n + 1);
            db.shared.commit().unwrap();
            assert_eq!((rows(&db), state(&db).0), (n as usize + 1, done));
            db.shared.merge(false).unwrap();
            let (after, allowed) = state(&db);
            assert!(after > done && allowed > before && allowed < 20_000, "{after} {allowed}");
            before = allowed;
        }
        while state(&db).1 != usize::MAX {
            db.shared.merge(false).unwrap();
            assert_eq!(rows(&db), 505);
        }
        assert!(db.shared.staged().merging.is_empty());
        assert_eq!(db.shared.staged().runs.newest_first().count(), 1, "what came meanwhile is not merged");
    }
}
