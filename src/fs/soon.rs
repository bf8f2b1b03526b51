//! Directories and symbolic links that were made a moment ago: they are shown at once, and become entries when what usually
//! follows has come: `chmod` and `utimens`, a file in the directory, a renaming of the link.

use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use super::draft::{Content, Draft, Shape};
use super::errno::{self, Answer};
use super::keys;
use super::place::{Attr, Place, Type};
use super::setattr::Wanted;
use super::tree::Tree;
use super::waiting::{Due, RENAME};
use super::write::directory;
use crate::ids::{Hash, StoreId};
use crate::replication::log::Receipt;
use crate::stores::Merge;
use crate::stores::kv::{self, HeadId, Kind, Kv, KvError, Node, Op, Value};

/// How many bytes the paths of the directories may have that become entries together with what was made in them.
const PATHS: usize = 8 * 1024;

/// A directory that becomes an entry together with what was made in it.
struct Above {
    ino: u64,
    draft: Arc<Draft>,
    changes: u64,
}

/// The directories that become entries together with what was made in them: the first operations of that entry.
#[derive(Default)]
pub(crate) struct Aboves(Vec<Above>);

impl Aboves {
    /// The head that the first operation after theirs makes.
    pub(crate) fn next(&self, entry: Hash) -> HeadId {
        HeadId { entry, op: u16::try_from(self.0.len()).unwrap_or(u16::MAX) }
    }
}

impl Tree {
    /// Makes a directory.
    pub(crate) fn make_directory(&self, parent: u64, name: &[u8], mode: u32) -> Answer<Attr> {
        let place = self.table().place(parent);
        if let Some(Place::Txs(_) | Place::Staged(_)) = place {
            return self.make_staged_directory(parent, name, mode);
        }
        self.make_soon(parent, name, Shape::new(Type::Directory, mode & 0o7777))
    }

    /// Makes a symbolic link.
    pub(crate) fn make_link(&self, parent: u64, name: &[u8], to: &[u8]) -> Answer<Attr> {
        if to.len() > crate::replication::limits::KEY_PATH {
            return Err(errno::NAME_TOO_LONG);
        }
        let place = self.table().place(parent);
        if let Some(Place::Staged(_)) = place {
            return self.make_staged_link(parent, name, to);
        }
        let mut shape = Shape::new(Type::Symlink, 0o777);
        shape.content = Content::Memory(to.to_vec());
        shape.size = to.len() as u64;
        // A lock, as emacs makes them, stays here.
        shape.local = kv::stays(name);
        self.make_soon(parent, name, shape)
    }

    fn make_soon(&self, parent: u64, name: &[u8], mut shape: Shape) -> Answer<Attr> {
        let (directory, store, kv) = self.place_for(parent, name)?;
        self.space.check(0)?;
        let steady = self.steady(false);
        let target = self.target(&kv, &directory, name)?;
        if target.kind.is_some() {
            return Err(errno::EXISTS);
        }
        let (kind, local) = (shape.kind, shape.local);
        shape.base = target.known();
        shape.new = true;
        shape.touched();
        if kind == Type::Symlink && !local {
            let view = kv.log().database().view().map_err(KvError::from)?;
            shape.tips = Some(kv.log().tips(&view).map_err(KvError::from)?);
        }
        let mut table = self.table();
        let ino = table.enter(parent, name, Place::Key(store), kind);
        let attr = Self::draft_attr(ino, &shape);
        let draft = Draft::new(shape);
        table.bump(ino, None);
        table.set_draft(ino, Arc::clone(&draft), true);
        table.given(ino);
        drop(table);
        drop(steady);
        self.bump(parent);
        if local {
            self.keep(ino, &draft, false)?;
        } else {
            self.waiting.add_draft(ino, &draft);
        }
        Ok(attr)
    }

    /// Sets a directory's attributes, which become an entry a moment later, all by one.
    pub(crate) fn set_directory(&self, ino: u64, store: StoreId, wanted: Wanted) -> Answer<Attr> {
        let kv = self.kv(&store)?;
        Self::writable(&kv)?;
        // Nothing of it is published between looking at the store and at the draft.
        let steady = self.steady(false);
        let path = self.table().see(ino)?.path;
        let node = kv.node(&path)?;
        let mut table = self.table();
        let draft = if let Some(draft) = table.draft(ino) {
            draft
        } else {
            let Some(Node::Directory(head)) = node else { return Err(errno::MISSING) };
            let mut shape = Shape::new(Type::Directory, head.map_or(keys::IMPLIED, |head| head.mode));
            shape.mtime = head.map_or(shape.mtime, |head| head.mtime);
            let draft = Draft::new(shape);
            table.set_draft(ino, Arc::clone(&draft), false);
            draft
        };
        {
            let mut shape = draft.shape();
            if !shape.shown() {
                shape.waits += 1;
                self.waiting.add(RENAME, Due::Draft(ino));
            }
            shape.mode = wanted.mode.unwrap_or(shape.mode);
            shape.mtime = wanted.mtime.unwrap_or(shape.mtime);
            shape.touched();
        }
        if wanted.mtime.is_some() {
            table.bump(ino, None);
        }
        drop(table);
        drop(steady);
        self.attr(ino)
    }

    /// Makes an entry of a directory that was made, or whose attributes were set. The draft's `publishing` is held.
    pub(crate) fn publish_directory(&self, ino: u64, kv: &Arc<Kv>, draft: &Draft) -> Answer<Option<Receipt>> {
        let _names = self.changing();
        let seen = self.table().see(ino)?;
        let (shown, new, changes, mode, mtime, base) = {
            let shape = draft.shape();
            (shape.shown(), shape.new, shape.changes, shape.mode, shape.mtime, shape.base.clone())
        };
        if !shown || !seen.attached {
            return Ok(None);
        }
        let op = match kv.node(&seen.path)? {
            _ if new => Some(made(kv, &seen.path, (mode, mtime), base)?),
            Some(Node::Directory(Some(head))) if (head.mode, head.mtime) == (mode, mtime) => None,
            Some(Node::Directory(Some(head))) => {
                let heads = kv.heads(&seen.path)?;
                let all = heads.iter().flat_map(Merge::all).filter(|other| other.same_value(&head));
                let (supersedes, kind) = (all.map(|other| other.id).collect(), Kind::Directory);
                Some(Op::SetAttr { path: seen.path.clone(), supersedes, kind, mode, mtime, value: Value::Empty })
            }
            Some(Node::Directory(None)) => Some(directory(kv, &seen.path, mode, mtime)?),
            // Gone elsewhere meanwhile, and so are its attributes.
            Some(Node::File(_) | Node::Symlink(_)) | None => None,
        };
        let Some(op) = op else {
            draft.shape().published = changes;
            return Ok(None);
        };
        let receipt = self.commit(kv, vec![op])?;
        drop(self.table().take_whiteout(seen.parent, &seen.name));
        self.is_published(ino, kv, draft, changes, HeadId { entry: receipt.hash, op: 0 }, receipt);
        Ok(Some(receipt))
    }

    /// Whether a directory, or one above it, is no entry yet.
    pub(crate) fn waits_above(&self, directory: u64) -> bool {
        !self.new_above(directory).is_empty()
    }

    fn new_above(&self, directory: u64) -> Vec<(u64, Arc<Draft>)> {
        let (mut found, mut at) = (Vec::new(), directory);
        let table = self.table();
        while let Some((parent, draft)) = table.above(at) {
            if let Some(draft) = draft.filter(|draft| draft.shape().new) {
                found.push((at, draft));
            }
            at = parent;
        }
        found
    }

    /// Puts before `ops` the directories at and above `directory` that are no entries yet, the highest first. No name may
    /// change meanwhile.
    pub(crate) fn with_above(&self, kv: &Kv, directory: u64, ops: &mut Vec<Op>) -> Answer<Aboves> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (ino, draft) in self.new_above(directory) {
            let path = self.table().see(ino)?.path;
            bytes += path.len();
            if bytes > PATHS {
                break;
            }
            found.push((ino, draft, path));
        }
        let (mut aboves, mut made_ops) = (Aboves::default(), Vec::new());
        for (ino, draft, path) in found.into_iter().rev() {
            let (changes, mode, mtime, base) = {
                let shape = draft.shape();
                (shape.changes, shape.mode, shape.mtime, shape.base.clone())
            };
            made_ops.push(made(kv, &path, (mode, mtime), base)?);
            aboves.0.push(Above { ino, draft, changes });
        }
        ops.splice(0..0, made_ops);
        Ok(aboves)
    }

    /// Notes that they are entries now.
    pub(crate) fn are_published(&self, aboves: Aboves, kv: &Arc<Kv>, receipt: Receipt) -> Answer<()> {
        for (op, Above { ino, draft, changes }) in (0..).zip(aboves.0) {
            let seen = self.table().see(ino)?;
            drop(self.table().take_whiteout(seen.parent, &seen.name));
            self.is_published(ino, kv, &draft, changes, HeadId { entry: receipt.hash, op }, receipt);
        }
        Ok(())
    }

    /// `fsync` of a directory: it and the names in it survive a crash.
    pub(crate) fn sync_directory(&self, ino: u64) -> Answer<()> {
        let seen = self.table().see(ino)?;
        if let Place::Staged(store) = seen.place {
            return self.sync_staged_directory(&seen, store);
        }
        let (Place::Keys(store) | Place::Key(store)) = seen.place else { return Ok(()) };
        let waiting = {
            let table = self.table();
            let inside = table.locals(ino).into_iter().map(|(_, child)| child);
            let drafts = inside.chain([ino]).filter_map(|child| Some((child, table.draft(child)?)));
            drafts.collect::<Vec<_>>()
        };
        for (child, draft) in waiting {
            let made = {
                let shape = draft.shape();
                shape.kind != Type::File && !shape.local
            };
            if made {
                self.publish(child, store, &draft)?;
            }
        }
        self.settle_whiteouts(ino)?;
        self.sync_store(store)
    }

    /// Names stay as they are while it is held; with `alone` nothing else becomes a version either.
    pub(crate) fn steady(&self, alone: bool) -> Steady<'_> {
        if alone {
            (None, Some(self.changing()))
        } else {
            (Some(self.names.read().unwrap_or_else(PoisonError::into_inner)), None)
        }
    }
}

/// See [`Tree::steady`]. One of them.
type Steady<'a> = (Option<RwLockReadGuard<'a, ()>>, Option<RwLockWriteGuard<'a, ()>>);

/// The operation that makes a directory in place of what its maker took away.
fn made(kv: &Kv, path: &[u8], (mode, mtime): (u32, i64), mut base: Vec<HeadId>) -> Answer<Op> {
    let mut op = directory(kv, path, mode, mtime)?;
    if let Op::Put { supersedes, .. } = &mut op {
        base.retain(|id| !supersedes.contains(id));
        supersedes.append(&mut base);
    }
    Ok(op)
}

/// When a directory's names changed last here, if that is what it shows.
pub(crate) fn bumped(attr: Attr, bump: Option<i64>) -> Attr {
    if attr.kind == Type::Directory { Attr { mtime: bump.unwrap_or(attr.mtime), ..attr } } else { attr }
}
