//! Making and removing names in a store.

use std::sync::{Arc, PoisonError, RwLockWriteGuard};

use super::draft::{Content, Draft, Shape};
use super::errno::{self, Answer, Failure};
use super::inodes::{Seen, join};
use super::keys::{self, FileHandle};
use super::place::{Attr, Place, Type};
use super::tree::{Caching, Handle, Open, Tree};
use super::write::directory;
use super::{chat, heads};
use crate::clock;
use crate::ids::StoreId;
use crate::replication::limits;
use crate::stores::Merge;
use crate::stores::kv::{self, Head, HeadId, Heads, Kv, KvError, Node, Op};

/// All heads of a key, for superseding them.
pub(crate) fn ids(heads: Option<&Heads>) -> Vec<HeadId> {
    heads.into_iter().flat_map(Merge::all).map(|head| head.id).collect()
}

/// What a name in a store leads to, drafts and whiteouts considered.
pub(crate) struct Target {
    pub(crate) ino: Option<u64>,
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Option<Type>,
    pub(crate) draft: Option<Arc<Draft>>,
    pub(crate) heads: Option<Heads>,
    /// What of the heads was seen, if something else is shown in their place.
    seen: Option<Vec<HeadId>>,
}

impl Target {
    /// Whether a head was seen by who looks here: not what came from elsewhere while something else was shown.
    pub(crate) fn has_seen(&self, head: &HeadId) -> bool {
        self.seen.as_ref().is_none_or(|seen| seen.contains(head))
    }

    /// The heads that a change supersedes.
    pub(crate) fn known(&self) -> Vec<HeadId> {
        let mut known = ids(self.heads.as_ref());
        known.retain(|head| self.has_seen(head));
        known
    }
}

impl Tree {
    pub(crate) fn changing(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory of a store in which names can be made.
    pub(crate) fn place_for(&self, parent: u64, name: &[u8]) -> Answer<(Seen, StoreId, Arc<Kv>)> {
        let seen = self.table().see(parent)?;
        let store = match seen.place {
            Place::Keys(store) | Place::Key(store) if seen.kind == Type::Directory => store,
            Place::Key(_) => return Err(errno::NOT_DIRECTORY),
            place if place.is_past() => return Err(errno::PAST),
            Place::Txs(_) => return Err(super::tx::ONLY_BEGUN),
            Place::Chat | Place::Json => return Err(errno::ROOM),
            _ => return Err(errno::NOT_HERE),
        };
        if !seen.attached {
            return Err(errno::MISSING);
        }
        if name.len() > limits::KEY_COMPONENT || seen.path.len() + name.len() + 1 > limits::KEY_PATH {
            return Err(errno::NAME_TOO_LONG);
        }
        let kv = self.kv(&store)?;
        Self::writable(&kv)?;
        Ok((seen, store, kv))
    }

    pub(crate) fn target(&self, kv: &Kv, directory: &Seen, name: &[u8]) -> Answer<Target> {
        let path = join(&directory.path, name);
        let heads = kv.heads(&path)?;
        let table = self.table();
        let ino = table.child(directory.ino, name);
        let draft = match ino {
            Some(ino) => Self::shown_draft(table.see(ino)?.draft.as_ref()),
            None => None,
        };
        let out = table.whiteout(directory.ino, name);
        drop(table);
        let written = draft.as_ref().and_then(|draft| {
            let shape = draft.shape();
            // A directory's draft stands for its attributes alone.
            (shape.kind != Type::Directory).then(|| shape.base.clone())
        });
        let kind = match &draft {
            Some(draft) => Some(draft.shape().kind),
            None if out.is_some() => None,
            None => match heads.as_ref().and_then(Heads::node) {
                Some(node) => Some(keys::kind(&node)),
                None => kv.node(&path)?.map(|node| keys::kind(&node)),
            },
        };
        let seen = written.or(out.map(|out| out.heads));
        Ok(Target { ino, path, kind, draft, heads, seen })
    }

    /// Shows that a directory's names changed.
    pub(crate) fn bump(&self, directory: u64) {
        self.table().bump(directory, Some(clock::nanos()));
    }

    /// `open` with `O_CREAT` of a name that was not there a moment ago.
    pub(crate) fn create(&self, parent: u64, name: &[u8], mode: u32, flags: i32) -> Answer<(Attr, Open)> {
        let place = self.table().place(parent);
        match place {
            Some(Place::Chat) => return self.create_room(parent, name, flags),
            Some(Place::Staged(_)) => return self.create_staged(parent, name, mode, flags),
            _ => {}
        }
        let (directory, store, kv) = self.place_for(parent, name)?;
        self.space.check(0)?;
        // A key that was removed a moment ago is not deleted between looking at it and taking its place.
        let steady = self.steady(false);
        let target = self.target(&kv, &directory, name)?;
        if let Some(kind) = target.kind {
            drop(steady);
            return self.open_instead(&directory, store, name, kind, flags);
        }
        let mut shape = Shape::new(Type::File, mode & 0o7777);
        shape.content = Content::Memory(Vec::new());
        shape.new = true;
        shape.bare = true;
        shape.exclusive = flags & libc::O_EXCL != 0;
        shape.local = kv::stays(name);
        if shape.exclusive {
            let log = kv.log();
            let view = log.database().view().map_err(KvError::from)?;
            shape.tips = Some(log.tips(&view).map_err(KvError::from)?);
        }
        shape.base = target.known();
        shape.writers = 1;
        shape.touched();
        let draft = Draft::new(shape);
        let (seen, attr) = {
            let mut table = self.table();
            let ino = table.enter(parent, name, Place::Key(store), Type::File);
            table.set_draft(ino, Arc::clone(&draft), true);
            table.given(ino);
            table.pin(ino);
            (table.see(ino)?, Self::draft_attr(ino, &draft.shape()))
        };
        drop(steady);
        self.bump(parent);
        self.keeper.add(seen.ino, &draft);
        let file = FileHandle::new(&seen, store, flags & libc::O_APPEND != 0, Some(draft));
        Ok((attr, Open { handle: self.hold(Handle::File(file)), caching: Caching::Keep }))
    }

    /// Another machine, or another mount, was faster.
    fn open_instead(&self, dir: &Seen, store: StoreId, name: &[u8], kind: Type, flags: i32) -> Answer<(Attr, Open)> {
        if flags & libc::O_EXCL != 0 {
            return Err(errno::EXISTS);
        }
        let ino = {
            let mut table = self.table();
            let ino = table.enter(dir.ino, name, Place::Key(store), kind);
            table.given(ino);
            ino
        };
        let result = self.open(ino, flags).and_then(|open| Ok((self.attr(ino)?, open)));
        if result.is_err() {
            self.table().forget(ino, 1);
        }
        result
    }

    fn create_room(&self, parent: u64, name: &[u8], flags: i32) -> Answer<(Attr, Open)> {
        chat::may_be_made(self, name)?;
        let ino = {
            let mut table = self.table();
            let ino = table.enter(parent, name, Place::Room, Type::File);
            table.given(ino);
            ino
        };
        let result = self.open(ino, flags).and_then(|open| Ok((self.attr(ino)?, open)));
        if result.is_err() {
            self.table().forget(ino, 1);
        }
        result
    }

    /// Removes a file or a symbolic link.
    /// `by`: the thread that removes it.
    pub(crate) fn remove(&self, by: u32, parent: u64, name: &[u8]) -> Answer<()> {
        let directory = self.table().see(parent)?;
        if let Place::HeadsOf(store) | Place::HeadsPath(store) = directory.place {
            return self.remove_head(&directory, store, name);
        }
        if let Place::Txs(_) | Place::Staged(_) = directory.place {
            return self.remove_staged(parent, name, false);
        }
        let (directory, _, kv) = self.place_for(parent, name)?;
        let _names = self.changing();
        let target = self.target(&kv, &directory, name)?;
        match target.kind {
            None => return Err(errno::MISSING),
            Some(Type::Directory) => return Err(errno::IS_DIRECTORY),
            Some(Type::File | Type::Symlink) => {}
        }
        let last = target.ino.and_then(|ino| self.attr(ino).ok());
        if target.draft.is_none() && target.heads.as_ref().is_some_and(|heads| heads.visible().is_some()) {
            self.remove_soon(by, parent, name, &target);
        } else {
            self.delete(&kv, &directory, name, &target)?;
        }
        if let Some(ino) = target.ino {
            let mut table = self.table();
            table.detach(ino, last);
            drop(table.take_draft(ino));
        }
        self.bump(parent);
        Ok(())
    }

    /// The entry that deletes a key, if the store has it.
    fn delete(&self, kv: &Kv, directory: &Seen, name: &[u8], target: &Target) -> Answer<()> {
        let supersedes = target.known();
        if !supersedes.is_empty() && target.heads.as_ref().is_some_and(|heads| heads.visible().is_some()) {
            let mut ops = vec![Op::Delete { path: target.path.clone(), supersedes }];
            Self::stay(kv, &directory.path, name, &mut ops)?;
            self.commit(kv, ops)?;
        }
        drop(self.table().take_whiteout(directory.ino, name));
        if kv.node(&target.path)?.is_some() {
            // What another machine wrote there meanwhile shows again.
            self.notify(super::announce::Notice::Name(directory.ino, name.into()));
        }
        Ok(())
    }

    /// A directory that only its last key implied stays when that key goes.
    pub(crate) fn stay(kv: &Kv, dir: &[u8], name: &[u8], ops: &mut Vec<Op>) -> Answer<()> {
        if dir.is_empty() || !matches!(kv.node(dir)?, Some(Node::Directory(None))) {
            return Ok(());
        }
        let children = kv.children(dir, None, 2)?;
        if children.iter().all(|(child, _)| child == name) {
            ops.push(directory(kv, dir, keys::IMPLIED, clock::nanos())?);
        }
        Ok(())
    }

    fn remove_head(&self, directory: &Seen, store: StoreId, name: &[u8]) -> Answer<()> {
        Self::writable(&*self.kv(&store)?)?;
        let ino = self.table().child(directory.ino, name).ok_or(errno::MISSING)?;
        let seen = self.table().see(ino)?;
        if !matches!(seen.place, Place::Head(_)) {
            return Err(errno::IS_DIRECTORY);
        }
        let key = self.key_inode(store, &directory.path);
        heads::remove(self, &seen, store)?;
        self.table().detach(ino, None);
        if let Some(key) = key {
            // Another head may be the one that is shown now.
            self.notify(super::announce::Notice::Content(key));
        }
        Ok(())
    }

    /// Tells the kernel of a key whose directory was removed elsewhere: it is there again, because the key was written.
    pub(crate) fn resurface(&self, ino: u64, store: StoreId, path: &[u8]) {
        if !self.table().is_adrift(ino) {
            return;
        }
        let Some(mut at) = self.keys_inode(store) else { return };
        for name in path.split(|byte| *byte == b'/') {
            self.notify(super::announce::Notice::Name(at, name.into()));
            let Some(child) = self.table().child(at, name) else { return };
            at = child;
        }
    }

    /// The inode of the top of a store's keys, if the kernel knows it.
    fn keys_inode(&self, store: StoreId) -> Option<u64> {
        let name = self.stores().into_iter().find(|(_, id)| *id == store)?.0;
        let table = self.table();
        let names = [&b"stores"[..], name.as_bytes(), b"keys"];
        names.into_iter().try_fold(super::inodes::ROOT, |at, name| table.child(at, name))
    }

    /// The inode of a key, if the kernel knows it.
    pub(crate) fn key_inode(&self, store: StoreId, path: &[u8]) -> Option<u64> {
        let at = self.keys_inode(store)?;
        let table = self.table();
        path.split(|byte| *byte == b'/').try_fold(at, |at, name| table.child(at, name))
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, parent: u64, name: &[u8]) -> Answer<()> {
        let directory = self.table().see(parent)?;
        let head = {
            let table = self.table();
            table.child(parent, name).and_then(|ino| table.place(ino))
        };
        if let (Place::HeadsPath(store), Some(Place::Head(_))) = (directory.place, head) {
            return self.remove_head(&directory, store, name);
        }
        if matches!(directory.place, Place::HeadsOf(_) | Place::HeadsPath(_) | Place::Heads) {
            return Err(Failure::Refused(libc::EPERM, "it goes by itself when its conflicts are settled"));
        }
        if let Place::Txs(_) | Place::Staged(_) = directory.place {
            return self.remove_staged(parent, name, true);
        }
        let (directory, _, kv) = self.place_for(parent, name)?;
        let known = self.table().child(parent, name);
        if let Some(ino) = known {
            self.settle_whiteouts(ino)?;
        }
        let _names = self.changing();
        let target = self.target(&kv, &directory, name)?;
        match target.kind {
            None => return Err(errno::MISSING),
            Some(Type::File | Type::Symlink) => return Err(errno::NOT_DIRECTORY),
            Some(Type::Directory) => {}
        }
        let occupied = |ino| !self.table().locals(ino).is_empty();
        if kv.has_children(&target.path)? || target.ino.is_some_and(occupied) {
            return Err(errno::NOT_EMPTY);
        }
        let last = target.ino.and_then(|ino| self.attr(ino).ok());
        self.delete(&kv, &directory, name, &target)?;
        if let Some(ino) = target.ino {
            let mut table = self.table();
            table.detach(ino, last);
            drop(table.take_draft(ino));
        }
        self.bump(parent);
        Ok(())
    }

    /// Deletes what was taken away in a directory and did not come back.
    pub(crate) fn settle_whiteouts(&self, directory: u64) -> Answer<()> {
        let names = self.table().whiteouts(directory);
        names.into_iter().map(|name| self.settle_whiteout(directory, &name)).fold(Ok(()), Result::and)
    }

    /// Deletes a key that was taken away and did not come back. One that can't be deleted shows again.
    pub(crate) fn settle_whiteout(&self, parent: u64, name: &[u8]) -> Answer<()> {
        if self.table().whiteout(parent, name).is_none() {
            return Ok(());
        }
        self.delete_whiteout(parent, name).inspect_err(|error| {
            tracing::error!(target: "fs", %error, "a removed key is still there for others, and shows again");
            self.note("unlink", parent, Some(name), error.number(), &format!("{error}; the file shows again"));
            drop(self.table().take_whiteout(parent, name));
            self.notify(super::announce::Notice::Name(parent, name.into()));
        })
    }

    fn delete_whiteout(&self, parent: u64, name: &[u8]) -> Answer<()> {
        let (directory, _, kv) = self.place_for(parent, name)?;
        let _names = self.changing();
        let Some(whiteout) = self.table().whiteout(parent, name) else { return Ok(()) };
        let target = self.target(&kv, &directory, name)?;
        if target.draft.is_some() {
            // Another file is being written in its place, and will supersede it.
            return Ok(());
        }
        let live: Vec<Head> = target.heads.iter().flat_map(Merge::all).copied().collect();
        let supersedes: Vec<_> = live.iter().map(|head| head.id).filter(|id| whiteout.heads.contains(id)).collect();
        if !supersedes.is_empty() && target.heads.as_ref().is_some_and(|heads| heads.visible().is_some()) {
            let mut ops = vec![Op::Delete { path: target.path.clone(), supersedes }];
            Self::stay(&kv, &directory.path, name, &mut ops)?;
            self.commit(&kv, ops)?;
        }
        drop(self.table().take_whiteout(parent, name));
        if kv.node(&target.path)?.is_some() {
            // What another machine wrote there meanwhile shows again.
            self.notify(super::announce::Notice::Name(parent, name.into()));
        }
        Ok(())
    }
}
