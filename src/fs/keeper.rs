//! Keeps what is being written on the disk, so that little is lost should the daemon die.
//!
//! Most files are closed within a moment, and must not pay for it. So what is still open a tenth of a second after its
//! first change moves to a file then, and is written through to it from there on. Files that stay on this machine do so
//! when they are closed.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::announce::Notice;
use super::draft::{Content, Draft};
use super::errno::{Answer, Failure};
use super::inodes::Seen;
use super::place::{Place, Type};
use super::shelf::{Kept, Note};
use super::tree::{Tree, locked};
use crate::clock;
use crate::ids::StoreId;

/// How long a draft is in memory alone at most, unless it is closed before.
const YOUNG: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Young {
    drafts: Vec<(u64, Weak<Draft>)>,
    stop: bool,
}

/// The drafts that were changed a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    young: Mutex<Young>,
    changed: Condvar,
}

impl Keeper {
    /// Looks after a draft that nobody looks after yet.
    pub(crate) fn add(&self, ino: u64, draft: &Arc<Draft>) {
        let mut young = locked(&self.young);
        young.drafts.push((ino, Arc::downgrade(draft)));
        if young.drafts.len() == 1 {
            self.changed.notify_one();
        }
    }

    /// Ends [`run`].
    pub(crate) fn stop(&self) {
        locked(&self.young).stop = true;
        self.changed.notify_one();
    }

    fn next(&self) -> Option<Vec<(u64, Weak<Draft>)>> {
        let mut young = locked(&self.young);
        while young.drafts.is_empty() && !young.stop {
            young = self.changed.wait(young).unwrap_or_else(PoisonError::into_inner);
        }
        let due = clock::monotonic() + YOUNG;
        while !young.stop {
            let left = due.saturating_duration_since(clock::monotonic());
            if left.is_zero() {
                return Some(std::mem::take(&mut young.drafts));
            }
            young = self.changed.wait_timeout(young, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

/// Keeps what grows older, until the keeper is stopped.
pub(crate) fn run(tree: &Tree) {
    while let Some(drafts) = tree.keeper.next() {
        for (ino, draft) in drafts {
            // Most are gone by now.
            let Some(draft) = draft.upgrade() else { continue };
            if std::panic::catch_unwind(AssertUnwindSafe(|| tree.grown(ino, &draft))).is_err() {
                tracing::error!(target: "fs", "keeping a draft failed in a way it never should");
            }
        }
    }
}

impl Tree {
    fn grown(&self, ino: u64, draft: &Arc<Draft>) {
        let wanted = {
            let shape = draft.shape();
            shape.dirty() && shape.kept.is_none() && (shape.local || shape.writers > 0)
        };
        if wanted {
            self.keep_soon(ino, draft);
        }
    }

    /// Keeps a draft now, or, should that fail, later.
    pub(crate) fn keep_soon(&self, ino: u64, draft: &Arc<Draft>) {
        if let Err(error) = self.keep(ino, draft, false) {
            tracing::debug!(target: "fs", ino, %error, "what is being written is in memory only");
            self.keeper.add(ino, draft);
        }
    }

    /// Makes a draft survive a crash of the daemon; with `sync`, of the machine.
    pub(crate) fn keep(&self, ino: u64, draft: &Draft, sync: bool) -> Answer<()> {
        loop {
            let seen = self.table().see(ino)?;
            let (Place::Key(store), true) = (seen.place, seen.attached) else { return Ok(()) };
            self.load(draft, &*self.kv(&store)?, Duration::ZERO)?;
            let kept = {
                let mut shape = draft.shape();
                if !shape.shown() {
                    return Ok(());
                }
                let data = shape.spill(self.drafts())?;
                let note = Note::of(&shape, store, &seen.path);
                let kept = match &shape.kept {
                    Some(kept) => {
                        kept.update(&note)?;
                        Arc::clone(kept)
                    }
                    None => Arc::new(Kept::new(&data, &note)?),
                };
                if shape.local {
                    kept.set_mtime(shape.mtime)?;
                }
                shape.kept = Some(Arc::clone(&kept));
                kept
            };
            if sync {
                kept.sync()?;
            }
            let now = self.table().see(ino)?;
            if !now.attached {
                // Removed meanwhile: a crash must not bring it back.
                drop(draft.shape().kept.take());
                return Ok(());
            }
            if now.path == seen.path {
                return Ok(());
            }
        }
    }

    /// A draft that others may have let go of is written again.
    pub(crate) fn opened_again(&self, ino: u64, draft: &Arc<Draft>) {
        let (dirty, kept) = {
            let shape = draft.shape();
            (shape.dirty() && !shape.local, shape.kept.is_some())
        };
        if dirty && kept {
            self.note_again(ino, draft);
        } else if dirty {
            self.keeper.add(ino, draft);
        }
    }

    /// Brings what is noted of a draft up to date: its path, its attributes, and whether its writer is done with it.
    pub(crate) fn note_again(&self, ino: u64, draft: &Draft) {
        let kept = draft.shape().kept.is_some();
        if kept && let Err(error) = self.keep(ino, draft, false) {
            tracing::warn!(target: "fs", ino, %error, "a draft's note can't be brought up to date");
        }
    }

    /// Notes where what is being written is after a directory above it was renamed.
    pub(crate) fn keep_below(&self, directory: u64) {
        let (above, all) = {
            let table = self.table();
            (table.see(directory), table.drafts())
        };
        let Ok(above) = above else { return };
        for (ino, draft) in all {
            if self.table().see(ino).is_ok_and(|seen| seen.path.starts_with(&above.path)) {
                self.note_again(ino, &draft);
            }
        }
    }

    /// What could not be published goes to where a person finds it.
    pub(crate) fn put_aside(&self, store: StoreId, seen: &Seen, draft: &Draft, why: &Failure) {
        let path = String::from_utf8_lossy(&seen.path).into_owned();
        self.note(
            "publish",
            seen.ino,
            None,
            why.number(),
            &format!("{why}; what was written is kept: see `lattice status`"),
        );
        match self.move_aside(store, seen, draft) {
            Ok(()) => tracing::error!(target: "fs", path, %why, "not published; it is kept: see `lattice status`"),
            Err(error) => tracing::error!(target: "fs", path, %why, %error, "not published, and not kept either"),
        }
        self.notify(Notice::Content(seen.ino));
        self.notify(Notice::Name(seen.parent, seen.name.to_vec()));
    }

    /// Moves a draft's file aside. The draft goes.
    pub(crate) fn move_aside(&self, store: StoreId, seen: &Seen, draft: &Draft) -> Answer<()> {
        let mut shape = draft.shape();
        if matches!(shape.content, Content::Base(Some(_))) || seen.kind == Type::Directory {
            // No byte of it was written here: the store has them all.
            return Ok(());
        }
        let data = shape.spill(self.drafts())?;
        data.file.sync_data()?;
        let note = Note::of(&shape, store, &seen.path);
        let kept = match shape.kept.take() {
            Some(kept) => kept,
            None => Arc::new(Kept::new(&data, &note)?),
        };
        kept.set_mtime(shape.mtime)?;
        Ok(kept.aside(self.drafts(), &note)?)
    }
}
