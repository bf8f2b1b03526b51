//! Drafts across restarts: what an earlier run left is taken up, what this one can't publish is left.

use std::sync::Arc;

use super::aside;
use super::draft::{Content, Draft, Shape};
use super::errno::Answer;
use super::inodes::{ROOT, Seen};
use super::place::{Place, Type};
use super::shelf::{self, Left};
use super::tree::Tree;
use crate::ids::{Hash, StoreId};
use crate::replication::log::Origin;
use crate::stores::kv::{Kind, Kv, Node, Op};

impl Tree {
    /// Takes up what an earlier run left: files that stay here are shown again, those whose writer was done are
    /// published, the others are put aside for a person. To be called once the stores are open.
    pub(crate) fn take_up(&self) {
        let left = match shelf::left(self.drafts()) {
            Ok(left) => left,
            Err(error) => {
                tracing::error!(target: "fs", %error, "the drafts of an earlier run can't be read");
                return;
            }
        };
        for draft in left {
            let path = String::from_utf8_lossy(&draft.note.path).into_owned();
            let result = if draft.note.local {
                self.show_again(&draft)
            } else if draft.note.closed {
                self.publish_left(&draft)
            } else {
                self.recover(&draft)
            };
            if let Err(why) = result {
                tracing::error!(target: "fs", path, %why, "a draft of an earlier run is put aside");
                if let Err(error) = aside::put(self.drafts(), &draft.data, Some(&draft.note)) {
                    tracing::error!(target: "fs", path, %error, "and that failed too");
                }
            }
        }
    }

    /// What was being written is no version. It is for a person to say what becomes of it.
    fn recover(&self, left: &Left) -> Answer<()> {
        let path = String::from_utf8_lossy(&left.note.path).into_owned();
        if std::fs::metadata(&left.data)?.len() == 0 {
            // Only made, or cut to nothing: there is nothing to lose.
            return Ok(shelf::remove(left)?);
        }
        if self.kv(&left.note.store).is_ok_and(|kv| Self::published_before(&kv, left).unwrap_or(false)) {
            return Ok(shelf::remove(left)?);
        }
        tracing::warn!(target: "fs", path, "was being written when the daemon ended: see `lattice status`");
        Ok(aside::put(self.drafts(), &left.data, Some(&left.note))?)
    }

    /// Whether the store shows just this: then the daemon died between making the entry and letting go of the draft.
    fn published_before(kv: &Kv, left: &Left) -> Answer<bool> {
        let Some(Node::File(head)) = kv.node(&left.note.path)? else { return Ok(false) };
        let hash = match head.content {
            crate::stores::kv::Content::Empty => return Ok(std::fs::metadata(&left.data)?.len() == 0),
            crate::stores::kv::Content::Inline { hash, .. } | crate::stores::kv::Content::Blob { hash, .. } => hash,
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(&left.data)?)?;
        Ok(head.mode == left.note.mode && hash == Hash::from(hasher.finalize()))
    }

    fn publish_left(&self, left: &Left) -> Answer<()> {
        let kv = self.kv(&left.note.store)?;
        if Self::published_before(&kv, left)? {
            return Ok(shelf::remove(left)?);
        }
        let kind = if left.note.symlink { Kind::Symlink } else { Kind::File };
        let (mode, mtime) = (left.note.mode, left.note.mtime);
        let value = kv.value_of_file(&left.data)?;
        let (path, supersedes) = (left.note.path.clone(), left.note.supersedes());
        let receipt = kv.submit(vec![Op::Put { path, supersedes, kind, mode, mtime, value }], Origin::Local)?;
        kv.wait(receipt.staged)?;
        Ok(shelf::remove(left)?)
    }

    fn show_again(&self, left: &Left) -> Answer<()> {
        let note = &left.note;
        let store = self.stores().into_iter().find(|(_, id)| *id == note.store).ok_or(super::errno::CLOSED)?.0;
        let names: Vec<&[u8]> = note.path.split(|byte| *byte == b'/').collect();
        let Some((name, above)) = names.split_last() else { return Err(super::errno::INVALID) };
        let kv = self.kv(&note.store)?;
        if !above.is_empty() && !matches!(kv.node(&above.join(&b'/'))?, Some(Node::Directory(_))) {
            return Err(super::errno::MISSING);
        }
        let (spill, kept, mtime) = left.resume()?;
        let mut shape = Shape::new(if note.symlink { Type::Symlink } else { Type::File }, note.mode);
        shape.size = spill.file.metadata()?.len();
        shape.mtime = mtime;
        (shape.new, shape.local) = (true, true);
        shape.touched();
        shape.content = Content::Spilled(spill);
        shape.kept = Some(Arc::new(kept));
        let mut table = self.table();
        let mut at = table.enter(ROOT, b"stores", Place::Stores, Type::Directory);
        at = table.enter(at, store.as_bytes(), Place::Store(note.store), Type::Directory);
        at = table.enter(at, b"keys", Place::Keys(note.store), Type::Directory);
        let place = Place::Key(note.store);
        for directory in above {
            at = table.enter(at, directory, place, Type::Directory);
        }
        let ino = table.enter(at, name, place, shape.kind);
        table.set_draft(ino, Draft::new(shape), true);
        Ok(())
    }

    /// All keys that were taken away and may come back, by directory.
    pub(crate) fn all_whiteouts(&self) -> Vec<(u64, Box<[u8]>)> {
        self.table().all_whiteouts()
    }

    /// At the end: leaves on the disk what the stores don't have. Files that stay here are shown again by the next mount, those
    /// that could not be published are tried again, and those that are still open are put aside.
    pub(crate) fn leave(&self) {
        let drafts = self.table().drafts();
        for (ino, draft) in drafts {
            let Ok(seen) = self.table().see(ino) else { continue };
            let Place::Key(store) = seen.place else { continue };
            let (local, dirty, open, empty) = {
                let shape = draft.shape();
                // The kernel tells of a close before its last word on the descriptor, which may not come any more.
                let closed = shape.closed == shape.changes && !shape.bare;
                (shape.local, shape.dirty(), shape.writers > 0 && !closed, shape.bare)
            };
            if !seen.attached || !dirty {
                continue;
            }
            let left = if open && !local {
                if empty {
                    drop(draft.shape().kept.take());
                    Ok(())
                } else {
                    self.unclosed(store, &seen, &draft)
                }
            } else if !local && self.publish(ino, store, &draft).is_ok() {
                Ok(())
            } else {
                self.keep(ino, &draft, true).map(|()| {
                    if let Some(kept) = &draft.shape().kept {
                        kept.leave();
                    }
                })
            };
            if let Err(error) = left {
                let path = String::from_utf8_lossy(&seen.path).into_owned();
                tracing::error!(target: "fs", path, %error, "a file that was not published is lost");
            }
        }
    }

    fn unclosed(&self, store: StoreId, seen: &Seen, draft: &Draft) -> Answer<()> {
        let path = String::from_utf8_lossy(&seen.path).into_owned();
        tracing::warn!(target: "fs", path, "is open still: what was written to it is put aside, see `lattice status`");
        self.move_aside(store, seen, draft)
    }
}
