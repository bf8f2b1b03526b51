//! Keys as files: writing, and when what was written becomes a version.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::draft::{Content, Draft, IN_MEMORY, Shape};
use super::errno::{self, Answer};
use super::keys::FileHandle;
use super::place::Type;
use super::shelf::{Kept, Spill};
use super::tree::Tree;
use super::waiting::Due;
use crate::ids::StoreId;
use crate::replication::log::Receipt;
use crate::stores::kv::{HeadId, Kind, Kv, Op, Opened, PATIENCE, Value};

/// A version of a draft, ready to be put into an entry.
pub(crate) struct Version {
    pub(crate) changes: u64,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) value: Value,
}

impl Version {
    /// The operation that gives a key this version.
    pub(crate) fn put(&self, path: Vec<u8>, supersedes: Vec<HeadId>) -> Op {
        let value = self.value.clone();
        Op::Put { path, supersedes, kind: self.kind, mode: self.mode, mtime: self.mtime, value }
    }
}

/// A content by reference.
pub(crate) const fn same(content: crate::stores::kv::Content) -> Value {
    match content {
        crate::stores::kv::Content::Empty => Value::Empty,
        content @ (crate::stores::kv::Content::Inline { .. } | crate::stores::kv::Content::Blob { .. }) => {
            Value::Same(content)
        }
    }
}

impl Tree {
    /// Prepares the first change since the draft was last published: from here on it stands for what its opener saw.
    pub(crate) fn begin(&self, draft: &Arc<Draft>, file: &FileHandle) {
        let mut guard = draft.shape();
        let shape = &mut *guard;
        if shape.dirty() || shape.new {
            return;
        }
        self.keeper.add(file.ino, draft);
        let sight = super::tree::locked(&file.sight).clone();
        let goes_on = shape.goes_on(&sight);
        if !goes_on {
            shape.content = Content::Base(sight.winner.map(Box::new));
            shape.size = sight.winner.map_or(0, |head| head.content.size());
        }
        // What was published from here since the opening builds on other heads than those that the opener saw.
        let since = shape.own.filter(|_| shape.own != sight.own);
        shape.base = if goes_on && since.is_some() { Vec::new() } else { sight.base };
        shape.base.extend(since);
        if let (None, Some(head)) = (since, sight.winner) {
            shape.mode = head.mode;
        }
    }

    /// Whether writing needs bytes that take long to get: those of a large value.
    pub(crate) fn write_takes_long(draft: &Draft, file: &FileHandle) -> bool {
        let shape = draft.shape();
        let fresh = !shape.goes_on(&super::tree::locked(&file.sight));
        let size = if fresh { file.winner().map_or(0, |head| head.content.size()) } else { shape.size };
        (fresh || matches!(shape.content, Content::Base(Some(_)))) && size > IN_MEMORY
    }

    /// Brings in the bytes that a change builds upon.
    pub(crate) fn load(&self, draft: &Draft, kv: &Kv, patience: Duration) -> Answer<()> {
        let head = match &draft.shape().content {
            Content::Base(Some(head)) => **head,
            Content::Base(None) | Content::Memory(_) | Content::Spilled(_) => return Ok(()),
        };
        let content = match kv.read_within(&head, patience)? {
            Opened::Bytes(bytes) => Content::Memory(bytes),
            Opened::File(mut from, size) if size > IN_MEMORY => {
                self.space.check(size)?;
                let spill = Spill::new(self.drafts())?;
                std::io::copy(&mut from, &mut &spill.file)?;
                Content::Spilled(Arc::new(spill))
            }
            Opened::File(from, size) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                Content::Memory(super::draft::read_at(&from, 0, size)?)
            }
        };
        let mut shape = draft.shape();
        if matches!(&shape.content, Content::Base(Some(base)) if base.id == head.id) {
            shape.content = content;
        }
        Ok(())
    }

    /// Writes; with `append` at the end as it is here and now, whatever the kernel believes.
    pub(crate) fn write(&self, file: &FileHandle, offset: u64, data: &[u8], append: bool) -> Answer<()> {
        let draft = file.draft.as_ref().ok_or(errno::INVALID)?;
        self.space.check(data.len() as u64)?;
        self.begin(draft, file);
        let mut shape = self.loaded(draft, file)?;
        let offset = if append || file.append { shape.size } else { offset };
        Ok(shape.write(offset, data, self.drafts())?)
    }

    /// Cuts or extends through an open descriptor.
    pub(crate) fn resize(&self, file: &FileHandle, draft: &Arc<Draft>, size: u64) -> Answer<()> {
        self.space.check(size.saturating_sub(draft.shape().size))?;
        self.begin(draft, file);
        let mut shape = if size > 0 { self.loaded(draft, file)? } else { draft.shape() };
        Ok(shape.resize(size, self.drafts())?)
    }

    /// The draft with the bytes that a change builds upon.
    pub(crate) fn loaded<'a>(&self, draft: &'a Draft, file: &FileHandle) -> Answer<MutexGuard<'a, Shape>> {
        let kv = self.kv(&file.store)?;
        loop {
            self.load(draft, &kv, PATIENCE)?;
            let shape = draft.shape();
            // Unless another writer's first change begins at the same time: it begins anew.
            if !matches!(shape.content, Content::Base(Some(_))) {
                return Ok(shape);
            }
        }
    }

    /// `close`, of one of possibly several descriptors.
    pub(crate) fn flush(&self, file: &FileHandle) -> Answer<()> {
        let Some(draft) = &file.draft else { return Ok(()) };
        let (later, local) = {
            let mut shape = draft.shape();
            shape.closed = shape.changes;
            (!shape.dirty() || shape.bare || (shape.exclusive && shape.new), shape.local)
        };
        if local {
            return self.keep(file.ino, draft, false);
        }
        if later { Ok(()) } else { self.publish_unless(file.ino, file.store, draft, |shape| shape.bare).map(drop) }
    }

    /// Whether publishing it copies a large file.
    pub(crate) fn publishing_takes_long(draft: &Draft) -> bool {
        let shape = draft.shape();
        shape.dirty() && shape.size > IN_MEMORY
    }

    /// The last descriptor of an opening is gone.
    pub(crate) fn release(&self, file: &FileHandle) -> Answer<()> {
        let result = file.draft.as_ref().map_or(Ok(()), |draft| self.release_draft(file.ino, file.store, draft));
        self.table().unpin(file.ino);
        result
    }

    pub(crate) fn release_draft(&self, ino: u64, store: StoreId, draft: &Arc<Draft>) -> Answer<()> {
        let (waits, local) = {
            let mut shape = draft.shape();
            shape.writers = shape.writers.saturating_sub(1);
            if shape.writers > 0 {
                return Ok(());
            }
            (shape.exclusive && shape.new && !shape.local, shape.local)
        };
        if local {
            return self.keep(ino, draft, false);
        }
        if waits && self.table().see(ino)?.attached {
            self.note_again(ino, draft);
            self.waiting.add_draft(ino, draft);
            return Ok(());
        }
        self.settle(ino, store, draft)
    }

    /// Publishes a draft that nobody writes any more, and lets go of it, unless it is opened again meanwhile. One that can't be published is put aside.
    pub(crate) fn settle(&self, ino: u64, store: StoreId, draft: &Arc<Draft>) -> Answer<()> {
        loop {
            let result = self.publish_unless(ino, store, draft, |shape| shape.writers > 0).map(drop);
            let mut table = self.table();
            let seen = table.see(ino)?;
            let (used, more) = {
                let shape = draft.shape();
                (shape.writers > 0 || shape.local, seen.attached && shape.shown())
            };
            if used {
                return result;
            }
            if result.is_ok() && more {
                // Its attributes were set while it was published.
                continue;
            }
            table.clear_draft(ino);
            if result.is_err() {
                // What it was to take the place of shows again.
                drop(table.take_whiteout(seen.parent, &seen.name));
            }
            drop(table);
            if let Err(error) = &result {
                self.put_aside(store, &seen, draft, error);
            }
            return result;
        }
    }

    /// Makes a version of what was written, if anything was. Idempotent.
    pub(crate) fn publish(&self, ino: u64, store: StoreId, draft: &Draft) -> Answer<Option<Receipt>> {
        self.publish_unless(ino, store, draft, |_| false)
    }

    /// Publishes, unless the draft, when it is looked at last, is in a state in which it waits for its writer.
    fn publish_unless(
        &self,
        ino: u64,
        store: StoreId,
        draft: &Draft,
        waits: impl Fn(&Shape) -> bool,
    ) -> Answer<Option<Receipt>> {
        let _one = super::tree::locked(&draft.publishing);
        {
            let shape = draft.shape();
            if !shape.dirty() && !shape.new {
                return Ok(None);
            }
        }
        let kv = self.kv(&store)?;
        if draft.shape().kind == Type::Directory {
            return self.publish_directory(ino, &kv, draft);
        }
        let Some(version) = Self::version_unless(&kv, draft, waits)? else { return Ok(None) };
        let parent = self.table().see(ino)?.parent;
        let _names = self.steady(self.waits_above(parent));
        let seen = self.table().see(ino)?;
        if !seen.attached {
            return Ok(None);
        }
        let base = {
            let shape = draft.shape();
            if !shape.new && shape.published >= version.changes {
                // A renaming published it while this waited for its turn.
                return Ok(None);
            }
            shape.base.clone()
        };
        let mut ops = vec![version.put(seen.path.clone(), base)];
        let above = self.with_above(&kv, seen.parent, &mut ops)?;
        let receipt = self.commit(&kv, ops)?;
        // Before its draft is let go of: a name that is taken away and not written shows nothing.
        drop(self.table().take_whiteout(seen.parent, &seen.name));
        self.is_published(ino, &kv, draft, version.changes, above.next(receipt.hash), receipt);
        self.are_published(above, &kv, receipt)?;
        self.resurface(ino, store, &seen.path);
        Ok(Some(receipt))
    }

    /// What the draft is now, as an entry can hold it; `None` if the store has it already.
    pub(crate) fn version(kv: &Kv, draft: &Draft) -> Answer<Option<Version>> {
        Self::version_unless(kv, draft, |_| false)
    }

    fn version_unless(kv: &Kv, draft: &Draft, waits: impl Fn(&Shape) -> bool) -> Answer<Option<Version>> {
        let (changes, kind, mode, mtime, content) = {
            let shape = draft.shape();
            if (!shape.dirty() && !shape.new) || waits(&shape) {
                return Ok(None);
            }
            let kind = match shape.kind {
                Type::File => Kind::File,
                Type::Symlink => Kind::Symlink,
                Type::Directory => Kind::Directory,
            };
            (shape.changes, kind, shape.mode, shape.mtime, shape.content.clone())
        };
        let value = match &content {
            Content::Base(None) => Value::Empty,
            Content::Base(Some(head)) => same(head.content),
            Content::Memory(bytes) => kv.value(bytes)?,
            Content::Spilled(spill) => kv.value_of_file(&spill.path)?,
        };
        Ok(Some(Version { changes, kind, mode, mtime, value }))
    }

    /// Notes that the store has a draft's version.
    pub(crate) fn is_published(
        &self,
        ino: u64,
        kv: &Arc<Kv>,
        draft: &Draft,
        changes: u64,
        own: HeadId,
        receipt: Receipt,
    ) {
        let kept = {
            let mut shape = draft.shape();
            shape.published = changes;
            shape.new = false;
            shape.exclusive = false;
            shape.local = false;
            shape.own = Some(own);
            shape.base = vec![own];
            shape.kept.take()
        };
        self.table().published(ino);
        self.keep_until(kept, kv, receipt);
    }

    /// Leaves what is kept of a draft on the disk until the entry that makes it needless is there.
    pub(crate) fn keep_until(&self, kept: Option<Arc<Kept>>, kv: &Arc<Kv>, receipt: Receipt) {
        if let Some(kept) = kept {
            self.waiting.add(Duration::ZERO, Due::Durable(kept, Arc::clone(kv), receipt.staged));
        }
    }

    /// `fsync`: what was written survives a crash of this machine, as an entry or as a draft.
    pub(crate) fn sync(&self, file: &FileHandle) -> Answer<()> {
        let kv = self.kv(&file.store)?;
        if let Some(draft) = &file.draft {
            let as_draft = {
                let shape = draft.shape();
                shape.local || (shape.exclusive && shape.new)
            };
            if as_draft {
                self.keep(file.ino, draft, true)?;
                if draft.shape().shown() {
                    return Ok(());
                }
                // A renaming published it meanwhile.
            }
            if let Some(receipt) = self.publish(file.ino, file.store, draft)? {
                return Ok(kv.wait(receipt.staged)?);
            }
        }
        self.sync_store(file.store)
    }

    /// Waits until all that was made in the store so far is durable.
    pub(crate) fn sync_store(&self, store: StoreId) -> Answer<()> {
        let latest = self.table().latest.get(&store).copied();
        match latest {
            Some(receipt) => Ok(self.kv(&store)?.wait(receipt.staged)?),
            None => Ok(()),
        }
    }
}

/// The operation that makes a directory of its own.
pub(crate) fn directory(kv: &Kv, path: &[u8], mode: u32, mtime: i64) -> Answer<Op> {
    // A file that the directory hides keeps its heads: it stays a conflict for a person.
    let heads = kv.heads(path)?.filter(|heads| heads.visible().is_none_or(|head| head.kind == Kind::Directory));
    let supersedes = heads.iter().flat_map(crate::stores::Merge::all).map(|head| head.id).collect();
    let (path, kind) = (path.to_vec(), Kind::Directory);
    Ok(Op::Put { path, supersedes, kind, mode, mtime, value: Value::Empty })
}

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer {
    /// The thread.
    pub(crate) thread: u32,
    /// Whether what lets a program run as another user is to be taken away.
    pub(crate) tame: bool,
}

/// A mode without what lets a program run as another user. Of a file that no group runs, that bit of the group's says something else.
pub(crate) const fn tame(mode: u32) -> u32 {
    let mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP == 0 { mode } else { mode & !libc::S_ISGID }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{find, tree};
    use super::super::tree::{Found, Handle};
    use super::*;

    /// The kernel hands over what a mapping changed in several calls at once.
    #[test]
    fn of_two_first_changes_at_once_neither_is_written_to_a_content_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(dir.path());
        let keys = find(&tree, &["stores", "home", "keys"]);
        let (_, made) = tree.create(keys, b"f", 0o644, libc::O_WRONLY).unwrap();
        tree.write_handle(Writer { thread: 1, tame: false }, made.handle, 0, b"content", false).unwrap();
        tree.flush_handle(1, made.handle).unwrap();
        tree.close(made.handle).unwrap();
        let ino = find(&tree, &["stores", "home", "keys", "f"]);
        let open = || tree.handle(tree.open(ino, libc::O_WRONLY).unwrap().handle).unwrap();
        let (one, other) = (open(), open());
        let (Handle::File(one), Handle::File(other)) = (&*one, &*other) else { panic!("no file") };
        let draft = one.draft.clone().unwrap();
        tree.begin(&draft, one);
        tree.load(&draft, &tree.kv(&one.store).unwrap(), PATIENCE).unwrap();
        // Here the other's begins, and is written behind this one.
        tree.begin(&draft, other);
        tree.loaded(&draft, one).unwrap().write(0, b"C", tree.drafts()).unwrap();
        tree.write(other, 6, b"T", false).unwrap();
        match &draft.shape().content {
            Content::Memory(bytes) => assert_eq!(bytes, b"ContenT"),
            content => panic!("{content:?}"),
        }
    }

    #[test]
    fn a_removed_file_that_can_not_be_deleted_shows_again_and_why_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(dir.path());
        let keys = find(&tree, &["stores", "home", "keys"]);
        let (_, made) = tree.create(keys, b"f", 0o644, libc::O_WRONLY).unwrap();
        tree.write_handle(Writer { thread: 1, tame: false }, made.handle, 0, b"content", false).unwrap();
        tree.close(made.handle).unwrap();
        tree.remove(1, keys, b"f").unwrap();
        assert!(matches!(tree.lookup(keys, b"f").unwrap(), Found::Nothing(_)));
        tree.registry().unwrap().kv("home").unwrap().log().retire("the disk is gone");
        assert!(tree.sync_directory(keys).is_err(), "nothing says that it is deleted");
        find(&tree, &["stores", "home", "keys", "f"]);
        let said = String::from_utf8(tree.why.open().read(0, 1 << 10)).unwrap();
        assert!(said.contains("unlink stores/home/keys/f") && said.contains("shows again"), "{said}");
    }
}
