//! Setting attributes: `chmod`, `utimens`, `truncate`.

use super::errno::{self, Answer, Failure};
use super::inodes::Seen;
use super::keys::FileHandle;
use super::place::{Attr, Place, Type};
use super::tree::Tree;
use super::write::{same, tame};
use crate::ids::StoreId;
use crate::stores::kv::{Head, HeadId, Op};

/// What is to be set; `None`: as it was.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) mode: Option<u32>,
    pub(crate) atime: Option<i64>,
    pub(crate) mtime: Option<i64>,
    pub(crate) size: Option<u64>,
    /// Take away what lets a program run as another user.
    pub(crate) tame: bool,
}

impl Tree {
    /// Sets what `chmod`, `utimens` and `truncate` set.
    pub(crate) fn set(&self, ino: u64, mut wanted: Wanted, file: Option<&FileHandle>) -> Answer<Attr> {
        let seen = self.table().see(ino)?;
        if let Place::Staged(store) = seen.place {
            return self.set_staged(&seen, store, wanted);
        }
        let Place::Key(store) = seen.place else { return self.set_fixed(ino, &seen, wanted) };
        if let Some(size) = wanted.size {
            self.truncate(ino, store, size, file)?;
        }
        if wanted.tame && seen.kind == Type::File && wanted.mode.is_none() {
            let mode = self.attr(ino)?.mode;
            wanted.mode = Some(tame(mode)).filter(|tamed| *tamed != mode);
        }
        if wanted.mode.is_none() && wanted.mtime.is_none() && wanted.atime.is_none() {
            return self.attr(ino);
        }
        let before = self.attr(ino)?;
        {
            let mut table = self.table();
            // An atime that was the mtime stays what it was.
            let known = table.stamps(ino).atime.or(wanted.mtime.map(|_| before.mtime));
            table.stamp(ino, wanted.atime.or(known));
        }
        if wanted.mode.is_none() && wanted.mtime.is_none() {
            return Ok(before);
        }
        if seen.kind == Type::Directory && seen.attached {
            return self.set_directory(ino, store, wanted);
        }
        {
            // Under the table's lock, so that the draft is not let go of meanwhile.
            let table = self.table();
            let own = file.and_then(|file| file.draft.clone());
            if let Some(draft) = table.draft(ino).or(own) {
                let mut shape = draft.shape();
                if shape.shown() || !seen.attached {
                    shape.mode = wanted.mode.unwrap_or(shape.mode);
                    shape.mtime = wanted.mtime.unwrap_or(shape.mtime);
                    shape.touched();
                    let attr = Self::draft_attr(ino, &shape);
                    drop(shape);
                    drop(table);
                    self.note_again(ino, &draft);
                    return Ok(attr);
                }
            }
        }
        if seen.attached {
            self.set_attributes(ino, store, wanted)?;
        }
        self.attr(ino)
    }

    fn set_fixed(&self, ino: u64, seen: &Seen, wanted: Wanted) -> Answer<Attr> {
        match seen.place {
            // `cp -a` and `rsync -a` set them on the directory that they copy to; it has none that are kept.
            Place::Keys(_) => {
                if wanted.mtime.is_some() {
                    self.table().bump(ino, wanted.mtime);
                }
                self.attr(ino)
            }
            Place::Room if wanted.size.is_some() => Err(errno::APPEND_ONLY),
            Place::Room if wanted.mode.is_none() => self.attr(ino),
            place if place.is_past() => Err(errno::PAST),
            _ => Err(Failure::Refused(libc::EPERM, "what is generated can't be changed")),
        }
    }

    fn truncate(&self, ino: u64, store: StoreId, size: u64, file: Option<&FileHandle>) -> Answer<()> {
        if let Some(file) = file
            && let Some(draft) = &file.draft
        {
            return self.resize(file, draft, size);
        }
        let seen = self.table().see(ino)?;
        let own = self.open_key(&seen, store, libc::O_WRONLY)?;
        let result = own.draft.as_ref().ok_or(errno::INVALID).and_then(|draft| self.resize(&own, draft, size));
        let released = self.release(&own);
        result.and(released)
    }

    /// An entry that changes the attributes of what is shown.
    fn set_attributes(&self, ino: u64, store: StoreId, wanted: Wanted) -> Answer<()> {
        let kv = self.kv(&store)?;
        Self::writable(&kv)?;
        // Nothing is published meanwhile: it would be a second head beside this one.
        let _names = self.changing();
        let seen = self.table().see(ino)?;
        let node = kv.node(&seen.path)?.ok_or(errno::MISSING)?;
        use crate::stores::kv::Node;
        let head = match node {
            Node::File(head) | Node::Symlink(head) => head,
            Node::Directory(_) => return Err(errno::STALE),
        };
        let mode = wanted.mode.unwrap_or(head.mode);
        let mtime = wanted.mtime.unwrap_or(head.mtime);
        if (mode, mtime) != (head.mode, head.mtime) {
            let heads = kv.heads(&seen.path)?;
            let all = heads.iter().flat_map(crate::stores::Merge::all);
            let supersedes: Vec<_> = all.filter(|other| other.same_value(&head)).map(|other| other.id).collect();
            let value = same(head.content);
            let (path, kind, old) = (seen.path.clone(), head.kind, supersedes.clone());
            let receipt = self.commit(&kv, vec![Op::SetAttr { path, supersedes, kind, mode, mtime, value }])?;
            let id = HeadId { entry: receipt.hash, op: 0 };
            self.attributes_set(&seen, &old, Head { id, mode, mtime, ..head });
        }
        Ok(())
    }

    /// Who has the file open goes on from the head with the new attributes, as if it had seen it.
    fn attributes_set(&self, seen: &Seen, old: &[HeadId], new: Head) {
        let renew = |base: &mut Vec<HeadId>| {
            let before = base.len();
            base.retain(|id| !old.contains(id));
            let known = base.len() < before;
            base.extend(known.then_some(new.id));
            known
        };
        for handle in self.open_files() {
            if let super::tree::Handle::File(file) = &*handle
                && file.ino == seen.ino
            {
                let mut sight = super::tree::locked(&file.sight);
                renew(&mut sight.base);
                sight.winner = sight.winner.map(|head| if old.contains(&head.id) { new } else { head });
                sight.own = sight.own.map(|own| if old.contains(&own) { new.id } else { own });
            }
        }
        if let Some(draft) = &seen.draft {
            let mut shape = draft.shape();
            let own = shape.own.is_some_and(|own| old.contains(&own));
            if own {
                shape.own = Some(new.id);
            }
            if renew(&mut shape.base) || own {
                shape.mode = new.mode;
            }
        }
    }
}
