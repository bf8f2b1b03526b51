//! Drafts across restarts: what an earlier run left is taken up, what this one can't publish is left.

use std::sync::Arc;

use super::draft::{Content, Draft, Shape, Spill};
use super::errno::Answer;
use super::inodes::{Place, ROOT, Type};
use super::shelf::{self, Left, Note};
use super::tree::Tree;
use crate::replication::log::Origin;
use crate::stores::kv::{Kind, Op};

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
                tracing::warn!(target: "fs", path, "was being written when the daemon ended: see `lattice status`");
                shelf::put_aside(self.drafts(), &draft.data, Some(&draft.note)).map_err(Into::into)
            };
            if let Err(why) = result {
                tracing::error!(target: "fs", path, %why, "a draft of an earlier run is put aside");
                if let Err(error) = shelf::put_aside(self.drafts(), &draft.data, Some(&draft.note)) {
                    tracing::error!(target: "fs", path, %error, "and that failed too");
                }
            }
        }
    }

    fn publish_left(&self, left: &Left) -> Answer<()> {
        let kv = self.kv(&left.note.store)?;
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
        let bytes = std::fs::read(&left.data)?;
        let mut shape = Shape::new(if note.symlink { Type::Symlink } else { Type::File }, note.mode);
        shape.size = bytes.len() as u64;
        shape.mtime = note.mtime;
        (shape.new, shape.local) = (true, true);
        shape.touched();
        shape.content = if shape.size > super::draft::IN_MEMORY {
            let spill = Spill::new(self.drafts())?;
            std::io::Write::write_all(&mut &spill.file, &bytes)?;
            Content::Spilled(Arc::new(spill))
        } else {
            Content::Memory(bytes)
        };
        let mut table = self.table();
        let mut at = table.enter(ROOT, b"stores", Place::Stores, Type::Directory);
        at = table.enter(at, store.as_bytes(), Place::Store(note.store), Type::Directory);
        at = table.enter(at, b"keys", Place::Keys(note.store), Type::Directory);
        let names: Vec<&[u8]> = note.path.split(|byte| *byte == b'/').collect();
        let place = Place::Key(note.store);
        if let Some((name, above)) = names.split_last() {
            for directory in above {
                at = table.enter(at, directory, place, Type::Directory);
            }
            let ino = table.enter(at, name, place, shape.kind);
            table.set_draft(ino, Draft::new(shape), true);
        }
        drop(table);
        Ok(shelf::remove(left)?)
    }

    /// All keys that were taken away and may come back, by directory.
    pub(crate) fn all_whiteouts(&self) -> Vec<(u64, Box<[u8]>)> {
        self.table().all_whiteouts()
    }

    /// At the end: leaves on the disk what the stores don't have.
    pub(crate) fn leave(&self) {
        let drafts = self.table().drafts();
        for (ino, draft) in drafts {
            let Ok(seen) = self.table().see(ino) else { continue };
            let Place::Key(store) = seen.place else { continue };
            let (local, dirty) = {
                let shape = draft.shape();
                (shape.local, shape.dirty())
            };
            if !seen.attached || !dirty {
                continue;
            }
            if !local && self.publish(ino, store, &draft).is_ok() {
                continue;
            }
            let mut shape = draft.shape();
            self.materialise(&mut shape, store);
            let note = Note::of(&shape, store, &seen.path);
            match shelf::keep(self.drafts(), &shape.content, &note, true) {
                Ok(kept) => {
                    let kept = Arc::new(kept);
                    if let Some((_, old)) = shape.kept.take() {
                        old.replaced_by(&kept);
                    }
                    kept.leave();
                }
                Err(error) => {
                    let path = String::from_utf8_lossy(&seen.path).into_owned();
                    tracing::error!(target: "fs", path, %error, "a file that was not published is lost");
                }
            }
        }
    }

    /// A backup still refers to the head that it was made of.
    fn materialise(&self, shape: &mut Shape, store: crate::ids::StoreId) {
        let Content::Base(Some(head)) = &shape.content else { return };
        let opened = self.kv(&store).and_then(|kv| Ok(kv.read_within(head, std::time::Duration::ZERO)?));
        let bytes = match opened {
            Ok(crate::stores::kv::Opened::Bytes(bytes)) => bytes,
            Ok(crate::stores::kv::Opened::File(file, size)) => {
                super::draft::read_at(&file, 0, usize::try_from(size).unwrap_or(0)).unwrap_or_default()
            }
            Err(_) => return,
        };
        shape.content = Content::Memory(bytes);
    }
}
