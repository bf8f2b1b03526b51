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
use crate::stores::kv::{Head, Kind, Kv, Node, Op, Version};

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
        if Self::is_followed(&kv, left)? {
            let path = String::from_utf8_lossy(&left.note.path).into_owned();
            tracing::warn!(target: "fs", path, "was replaced by what came after it: what it held is put aside");
            return Ok(aside::put(self.drafts(), &left.data, Some(&left.note))?);
        }
        let kind = if left.note.symlink { Kind::Symlink } else { Kind::File };
        let (mode, mtime) = (left.note.mode, left.note.mtime);
        let value = kv.value_of_file(&left.data)?;
        let (path, supersedes) = (left.note.path.clone(), left.note.supersedes());
        let receipt = kv.submit(vec![Op::Put { path, supersedes, kind, mode, mtime, value }], Origin::Local)?;
        kv.wait(receipt.staged)?;
        Ok(shelf::remove(left)?)
    }

    /// Whether this node has made another version of the key upon what the draft was made upon: after the draft, since there is one
    /// at a time. It must not come back over that.
    fn is_followed(kv: &Kv, left: &Left) -> Answer<bool> {
        let (base, me) = (left.note.supersedes(), kv.log().me());
        let own = |head: &Head| head.author == me && !base.contains(&head.id);
        if base.is_empty() {
            return Ok(kv.heads(&left.note.path)?.is_some_and(|heads| heads.visible().is_some_and(own)));
        }
        let upon = |version: &Version| version.supersedes.iter().any(|(_, id)| base.contains(id));
        Ok(kv.history(&left.note.path)?.iter().any(|version| own(&version.head) && upon(version)))
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

#[cfg(test)]
mod tests {
    use super::super::draft::Shape;
    use super::super::shelf::{Kept, Note, Spill};
    use super::super::testing::tree;
    use super::*;
    use crate::stores::Merge;
    use crate::stores::kv::{HeadId, Opened, Value};

    fn put(kv: &Kv, bytes: &[u8], supersedes: Vec<HeadId>) -> HeadId {
        let (path, value) = (b"f".to_vec(), Value::Bytes(bytes.to_vec()));
        let op = Op::Put { path, supersedes, kind: Kind::File, mode: 0o644, mtime: 0, value };
        HeadId { entry: kv.submit(vec![op], Origin::Local).unwrap().hash, op: 0 }
    }

    /// As a crash leaves a draft that was closed and fsynced.
    fn leave(tree: &Tree, kv: &Kv, bytes: &[u8], base: &[HeadId]) {
        let mut shape = Shape::new(Type::File, 0o644);
        shape.base = base.to_vec();
        shape.touched();
        let spill = Arc::new(Spill::new(tree.drafts()).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&spill.file, bytes, 0).unwrap();
        Kept::new(&spill, &Note::of(&shape, kv.log().store(), b"f")).unwrap().leave();
    }

    fn shown(kv: &Kv) -> Vec<Vec<u8>> {
        let heads = kv.heads(b"f").unwrap().unwrap();
        let content = |head| match kv.read(head).unwrap() {
            Opened::Bytes(bytes) => bytes,
            Opened::File(..) => panic!("nothing here is large"),
        };
        heads.all().iter().map(content).collect()
    }

    #[test]
    fn a_draft_of_an_earlier_run_is_published_unless_something_of_this_machine_came_after_it() {
        for (followed, expected) in [(false, b"draft"), (true, b"after")] {
            let dir = tempfile::tempdir().unwrap();
            let tree = tree(dir.path());
            let kv = tree.registry().unwrap().kv("home").unwrap();
            let old = put(&kv, b"before", vec![]);
            leave(&tree, &kv, b"draft", &[old]);
            if followed {
                put(&kv, b"after", vec![old]);
            }
            tree.take_up();
            assert_eq!(shown(&kv), [expected.to_vec()]);
            assert_eq!(aside::recovered(tree.drafts()).len(), usize::from(followed), "nothing is lost");
        }
    }
}
