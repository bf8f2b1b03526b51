//! What is done a moment later: publishing files that a rename probably follows, deleting keys that were taken away and
//! did not come back, dropping drafts' files whose entries are on the disk.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::draft::Draft;
use super::place::{Place, Type};
use super::removals::Removal;
use super::shelf::Kept;
use super::tree::{Tree, locked};
use crate::clock;
use crate::stores::kv::Kv;

/// How long a file that was made with `O_EXCL` waits after its close for the rename that usually follows.
pub(crate) const RENAME: Duration = Duration::from_millis(50);
/// How long a key that was renamed to a backup waits for its successor.
pub(crate) const REPLACE: Duration = Duration::from_millis(300);

/// How many times [`RENAME`] a directory waits at most for what is being made in it.
const MOST: u32 = 40;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Due {
    /// Publish this inode's draft.
    Draft(u64),
    /// Delete the key that was taken away.
    Whiteout(u64, Box<[u8]>),
    /// Delete the key that a program removed.
    Removal(Removal),
    /// Drop a draft's note once the store is durable up to this set.
    Durable(Arc<Kept>, Arc<Kv>, u64),
}

#[derive(Debug, Default)]
struct Queue {
    due: BTreeMap<(Instant, u64), Due>,
    next: u64,
    stop: bool,
}

/// The queue of things to do later.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Waiting {
    pub(crate) fn add(&self, after: Duration, due: Due) {
        let mut queue = locked(&self.queue);
        queue.next += 1;
        let key = (clock::monotonic() + after, queue.next);
        let first = queue.due.first_key_value().is_none_or(|(first, _)| key < *first);
        queue.due.insert(key, due);
        drop(queue);
        if first {
            self.changed.notify_one();
        }
    }

    /// Has a draft published a moment later, by when what usually follows has come.
    pub(crate) fn add_draft(&self, ino: u64, draft: &Draft) {
        draft.shape().waits += 1;
        self.add(RENAME, Due::Draft(ino));
    }

    /// Ends [`run`] once the queue is empty; what waits is due at once.
    pub(crate) fn stop(&self) {
        locked(&self.queue).stop = true;
        self.changed.notify_one();
    }

    /// Whether it is over: nothing waits any longer.
    pub(crate) fn stops(&self) -> bool {
        locked(&self.queue).stop
    }

    fn next(&self) -> Option<Due> {
        let mut queue = locked(&self.queue);
        loop {
            let now = clock::monotonic();
            match queue.due.first_key_value().map(|((at, _), _)| *at) {
                Some(at) if at <= now || queue.stop => return queue.due.pop_first().map(|(_, due)| due),
                Some(at) => {
                    let wait = self.changed.wait_timeout(queue, at - now);
                    queue = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
                None if queue.stop => return None,
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Does what is due, until the queue is stopped.
pub(crate) fn run(tree: &Tree) {
    while let Some(due) = tree.waiting.next() {
        if std::panic::catch_unwind(AssertUnwindSafe(|| tree.due(due))).is_err() {
            tracing::error!(target: "fs", "publishing failed in a way it never should");
        }
    }
}

impl Tree {
    fn due(&self, due: Due) {
        match due {
            Due::Draft(ino) => self.due_draft(ino),
            Due::Whiteout(parent, name) => {
                // What fails is noted there.
                self.settle_whiteout(parent, &name).ok();
            }
            Due::Removal(removal) => self.due_removal(removal),
            Due::Durable(kept, kv, staged) => {
                if kv.wait(staged).is_err() {
                    kept.leave();
                }
            }
        }
    }

    /// Whether a new directory is to wait on, for what is being made in it: that will take it along.
    fn put_off(&self, ino: u64, draft: &Draft) -> bool {
        let table = self.table();
        let inside = table.locals(ino).into_iter().filter_map(|(_, child)| table.draft(child));
        let comes = inside.into_iter().any(|draft| !draft.shape().local);
        drop(table);
        let mut shape = draft.shape();
        shape.put_off += 1;
        shape.kind == Type::Directory && shape.new && comes && shape.put_off < MOST && !self.waiting.stops()
    }

    fn due_draft(&self, ino: u64) {
        let Ok(seen) = self.table().see(ino) else { return };
        let (Some(draft), Place::Key(store)) = (seen.draft, seen.place) else { return };
        let mine = {
            let mut shape = draft.shape();
            shape.waits = shape.waits.saturating_sub(1);
            // Opened again since: it waits for its next close. Changed again: it is due later.
            shape.writers == 0 && !shape.local && shape.waits == 0
        };
        if mine && self.put_off(ino, &draft) {
            return self.waiting.add_draft(ino, &draft);
        }
        if mine {
            // What fails is noted there. Removed and forgotten meanwhile, it is nothing that could be published.
            self.settle(ino, store, &draft).ok();
        }
    }
}
