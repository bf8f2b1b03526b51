//! Renaming files and trees: one entry each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::draft::{Content, Draft, Shape};
use super::errno::{self, Answer, Failure};
use super::heads;
use super::inodes::{Seen, Whiteout, join};
use super::keys;
use super::names::{Target, ids};
use super::place::{Place, Type};
use super::shelf::Kept;
use super::tree::{Handle, Tree, locked};
use super::waiting::{Due, REPLACE};
use super::write::{Version, directory, same};
use crate::clock;
use crate::ids::{Hash, StoreId};
use crate::stores::Merge;
use crate::stores::kv::{self, Head, HeadId, Heads, Kv, KvError, Node, Op};

/// Keys that one entry could hold at most, with the shortest paths.
const MOST: usize = 2_048;

/// One end of a renaming.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) parent: u64,
    pub(crate) name: &'a [u8],
}

/// A key that gets another path.
struct Move {
    from: Vec<u8>,
    to: Vec<u8>,
    heads: Heads,
}

impl Tree {
    /// `rename` and `renameat2`.
    pub(crate) fn rename(&self, from: End<'_>, to: End<'_>, flags: u32) -> Answer<()> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(errno::INVALID);
        }
        if let Some(renamed) = self.rename_staged(from, to, flags) {
            return renamed;
        }
        let source = self.table().see(from.parent)?;
        match source.place {
            Place::HeadsOf(store) | Place::HeadsPath(store) => return self.settle_by_rename(&source, store, from, to),
            Place::Keys(_) | Place::Key(_) => {}
            place if place.is_past() => return Err(errno::PAST),
            Place::Chat | Place::Json => return Err(errno::ROOM),
            _ => return Err(Failure::Refused(libc::EPERM, "what is generated can't be renamed")),
        }
        let (_, store, _) = self.place_for(from.parent, from.name)?;
        if self.place_for(to.parent, to.name)?.1 != store {
            return Err(errno::OTHER_STORE);
        }
        let ino = self.prepare(from)?;
        let onto = self.table().child(to.parent, to.name);
        if let Some(onto) = onto {
            // What was removed in it a moment ago is in its way no longer.
            self.settle_whiteouts(onto)?;
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            let other = self.prepare(to)?;
            return self.exchange(store, (from, ino), (to, other));
        }
        let seen = self.table().see(ino)?;
        let draft = Self::shown_draft(seen.draft.as_ref());
        let stays = seen.kind != Type::Directory && kv::stays(to.name);
        let version = match &draft {
            Some(draft) if !stays => Self::version(&*self.kv(&store)?, draft)?,
            _ => None,
        };
        let rename = Renaming { store, from, to, ino, noreplace: flags & libc::RENAME_NOREPLACE != 0 };
        match (draft, version, stays) {
            (Some(draft), _, true) => self.rename_unpublished(&rename, &draft),
            (Some(draft), Some(version), false) => self.rename_draft(&rename, &draft, &version),
            (_, _, true) => self.rename_aside(&rename),
            _ => self.rename_published(&rename),
        }
    }

    /// The inode at one end. What is written there and not only just made is published first.
    fn prepare(&self, end: End<'_>) -> Answer<u64> {
        let (dir, store, kv) = self.place_for(end.parent, end.name)?;
        let target = self.target(&kv, &dir, end.name)?;
        let kind = target.kind.ok_or(errno::MISSING)?;
        let ino = self.table().enter(end.parent, end.name, Place::Key(store), kind);
        if kind == Type::Directory {
            if let Some(draft) = target.draft {
                self.publish(ino, store, &draft)?;
            }
            let inside: Vec<_> = self
                .table()
                .all_whiteouts()
                .into_iter()
                .map(|(parent, _)| parent)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            for parent in inside {
                if self.table().see(parent)?.path.starts_with(&target.path) {
                    self.settle_whiteouts(parent)?;
                }
            }
        } else if let Some(draft) = target.draft {
            let published = {
                let shape = draft.shape();
                !shape.new && !shape.local
            };
            if published {
                self.publish(ino, store, &draft)?;
            }
        }
        Ok(ino)
    }

    /// What is at the other end, if it may be replaced.
    fn replaced(&self, kv: &Kv, rename: &Renaming<'_>, directory: bool) -> Answer<(Seen, Target)> {
        let (to, _, _) = self.place_for(rename.to.parent, rename.to.name)?;
        let target = self.target(kv, &to, rename.to.name)?;
        match target.kind {
            None => {}
            Some(_) if rename.noreplace => return Err(errno::EXISTS),
            Some(Type::Directory) if !directory => return Err(errno::IS_DIRECTORY),
            Some(Type::File | Type::Symlink) if directory => return Err(errno::NOT_DIRECTORY),
            Some(Type::File | Type::Symlink) => {}
            Some(Type::Directory) => {
                let occupied = target.ino.is_some_and(|ino| !self.table().locals(ino).is_empty());
                if occupied || kv.has_children(&target.path)? {
                    return Err(errno::NOT_EMPTY);
                }
            }
        }
        Ok((to, target))
    }

    /// The names as they are from now on. Gives what is kept on the disk of the draft that was replaced.
    #[must_use = "what is kept is removed when it is dropped"]
    fn renamed(&self, rename: &Renaming<'_>, target: &Target) -> Option<Arc<Kept>> {
        let last = target.ino.and_then(|ino| self.attr(ino).ok());
        let mut table = self.table();
        drop(table.take_whiteout(rename.to.parent, rename.to.name));
        let other = target.ino.filter(|other| *other != rename.ino);
        let kept = other.and_then(|other| {
            table.detach(other, last);
            table.take_draft(other)
        });
        table.rename(rename.ino, rename.to.parent, rename.to.name, Place::Key(rename.store), last);
        drop(table);
        self.bump(rename.from.parent);
        self.bump(rename.to.parent);
        kept
    }

    /// A file that the store does not have gets a name under which it never will.
    fn rename_unpublished(&self, rename: &Renaming<'_>, draft: &Arc<Draft>) -> Answer<()> {
        let kv = self.kv(&rename.store)?;
        let names = self.changing();
        let (_, target) = self.replaced(&kv, rename, false)?;
        draft.shape().local = true;
        drop(self.renamed(rename, &target));
        drop(names);
        // It had taken the place of a key that was removed, and takes it no longer.
        self.settle_whiteout(rename.from.parent, rename.from.name)?;
        self.keep_soon(rename.ino, draft);
        Ok(())
    }

    /// A file that the store does not have gets its final name: the atomic save. One entry for the target.
    fn rename_draft(&self, rename: &Renaming<'_>, draft: &Arc<Draft>, version: &Version) -> Answer<()> {
        let kv = self.kv(&rename.store)?;
        let _names = self.changing();
        let (_, target) = self.replaced(&kv, rename, false)?;
        if self.restored(rename, draft, version, &target)? {
            return Ok(());
        }
        // What came from another machine while this was being written was not seen by its writer.
        let supersedes = {
            let shape = draft.shape();
            let known = |head: &&Head| head.author == kv.log().me() || shape.had_seen(head);
            let seen = target.heads.iter().flat_map(Merge::all).filter(known).map(|head| head.id);
            seen.filter(|head| target.has_seen(head)).collect()
        };
        let mut ops = vec![version.put(target.path.clone(), supersedes)];
        let (from, _, _) = self.place_for(rename.from.parent, rename.from.name)?;
        let left = self.target(&kv, &from, rename.from.name)?;
        let supersedes = left.known();
        if !supersedes.is_empty() && left.heads.as_ref().is_some_and(|heads| heads.visible().is_some()) {
            ops.push(Op::Delete { path: left.path, supersedes });
        }
        let above = self.with_above(&kv, rename.to.parent, &mut ops)?;
        let receipt = self.commit(&kv, ops)?;
        let own = above.next(receipt.hash);
        self.are_published(above, &kv, receipt)?;
        drop(self.table().take_whiteout(rename.from.parent, rename.from.name));
        self.keep_until(self.renamed(rename, &target), &kv, receipt);
        self.forget_bases(rename.ino);
        self.is_published(rename.ino, &kv, draft, version.changes, own, receipt);
        let mut table = self.table();
        if draft.shape().writers == 0 {
            table.clear_draft(rename.ino);
        }
        Ok(())
    }

    /// A backup that is moved back unchanged: as if nothing had been.
    fn restored(&self, rename: &Renaming<'_>, draft: &Draft, version: &Version, target: &Target) -> Answer<bool> {
        let untouched = match &draft.shape().content {
            Content::Base(Some(base)) => {
                let shown = target.heads.as_ref().and_then(|heads| heads.visible());
                shown.is_some_and(|head| head.id == base.id && head.mode == version.mode && head.mtime == version.mtime)
            }
            Content::Base(None) | Content::Memory(_) | Content::Spilled(_) => false,
        };
        let out = self.table().whiteout(rename.to.parent, rename.to.name).is_some();
        if !untouched || !out || target.draft.is_some() {
            return Ok(false);
        }
        drop(self.renamed(rename, target));
        self.table().clear_draft(rename.ino);
        Ok(true)
    }

    /// A key gets a name under which it stays on this machine, as editors make backups. The key is gone here, and is
    /// deleted for the others unless another takes its place at once.
    fn rename_aside(&self, rename: &Renaming<'_>) -> Answer<()> {
        let kv = self.kv(&rename.store)?;
        let _names = self.changing();
        let (_, target) = self.replaced(&kv, rename, false)?;
        let (from, _, _) = self.place_for(rename.from.parent, rename.from.name)?;
        let path = join(&from.path, rename.from.name);
        let heads = kv.heads(&path)?.ok_or(errno::MISSING)?;
        let head = *heads.visible().ok_or(errno::MISSING)?;
        let known = self.table().see(rename.ino)?.draft;
        let mut shape = Shape::new(Type::File, head.mode);
        shape.kind = if matches!(kv.node(&path)?, Some(Node::Symlink(_))) { Type::Symlink } else { Type::File };
        shape.content = Content::Base(Some(Box::new(head)));
        shape.size = head.content.size();
        shape.mtime = head.mtime;
        (shape.new, shape.local) = (true, true);
        shape.touched();
        drop(self.renamed(rename, &target));
        let draft = known.unwrap_or_else(|| Draft::new(Shape::new(Type::File, head.mode)));
        {
            let mut old = draft.shape();
            shape.writers = old.writers;
            *old = shape;
        }
        self.forget_bases(rename.ino);
        let mut table = self.table();
        table.set_draft(rename.ino, Arc::clone(&draft), true);
        table.white_out(rename.from.parent, rename.from.name, Whiteout { heads: ids(Some(&heads)) });
        drop(table);
        self.keeper.add(rename.ino, &draft);
        self.waiting.add(REPLACE, Due::Whiteout(rename.from.parent, rename.from.name.into()));
        Ok(())
    }

    /// A file or a tree that the store has: its heads move along, conflicts and all.
    fn rename_published(&self, rename: &Renaming<'_>) -> Answer<()> {
        let kv = self.kv(&rename.store)?;
        let _names = self.changing();
        let seen = self.table().see(rename.ino)?;
        let (_, target) = self.replaced(&kv, rename, seen.kind == Type::Directory)?;
        if target.ino == Some(rename.ino) {
            return Ok(());
        }
        let moves = Self::moves(&kv, &seen, &target.path)?;
        let (mut ops, heads) = Self::operations(&kv, &moves, Some(&target))?;
        let (from, _, _) = self.place_for(rename.from.parent, rename.from.name)?;
        if seen.kind == Type::Directory && ops.is_empty() {
            ops.push(directory(&kv, &target.path, keys::IMPLIED, clock::nanos())?);
        }
        Self::stay(&kv, &from.path, rename.from.name, &mut ops)?;
        let receipt = self.commit(&kv, ops).map_err(too_large)?;
        self.keep_until(self.renamed(rename, &target), &kv, receipt);
        self.follow(&kv, &heads, receipt.hash, &[rename.ino])?;
        if seen.kind == Type::Directory {
            self.keep_below(rename.ino);
        }
        Ok(())
    }

    /// All keys at and below a path, and where they go.
    fn moves(kv: &Kv, seen: &Seen, to: &[u8]) -> Answer<Vec<Move>> {
        let mut moves = Vec::new();
        if let Some(heads) = kv.heads(&seen.path)?.filter(|heads| heads.visible().is_some()) {
            moves.push(Move { from: seen.path.clone(), to: to.to_vec(), heads });
        }
        if seen.kind == Type::Directory {
            let below = kv.scan(&join(&seen.path, b""), None, MOST)?;
            if below.len() == MOST {
                return Err(errno::TREE_TOO_LARGE);
            }
            moves.extend(below.into_iter().map(|(from, heads)| {
                let to = [to, from.get(seen.path.len()..).unwrap_or_default()].concat();
                Move { from, to, heads }
            }));
        }
        if moves.iter().any(|step| step.to.len() > crate::replication::limits::KEY_PATH) {
            return Err(errno::NAME_TOO_LONG);
        }
        Ok(moves)
    }

    /// What moves keys, one of them onto `target`, and for each head that moves along which of the operations makes it anew.
    fn operations(kv: &Kv, moves: &[Move], target: Option<&Target>) -> Answer<(Vec<Op>, BTreeMap<HeadId, u16>)> {
        let filled: BTreeSet<&[u8]> = moves.iter().map(|step| step.to.as_slice()).collect();
        let (mut ops, mut heads) = (Vec::new(), BTreeMap::new());
        for step in moves {
            let supersedes = match target.filter(|target| target.path == step.to) {
                Some(target) => target.known(),
                None => ids(kv.heads(&step.to)?.as_ref()),
            };
            for head in step.heads.all().iter().rev().filter(|head| head.is_live()) {
                heads.insert(head.id, u16::try_from(ops.len()).unwrap_or(u16::MAX));
                ops.push(Op::Put {
                    path: step.to.clone(),
                    supersedes: supersedes.clone(),
                    kind: head.kind,
                    mode: head.mode,
                    mtime: head.mtime,
                    value: same(head.content),
                });
            }
        }
        for step in moves.iter().filter(|step| !filled.contains(step.from.as_slice())) {
            ops.push(Op::Delete { path: step.from.clone(), supersedes: ids(Some(&step.heads)) });
        }
        Ok((ops, heads))
    }

    /// What is open and what is being written goes on from the heads as they are named since they moved along.
    fn follow(&self, kv: &Kv, heads: &BTreeMap<HeadId, u16>, entry: Hash, moved: &[u64]) -> Answer<()> {
        let now = |id: &HeadId| heads.get(id).map(|op| HeadId { entry, op: *op });
        let renew = |base: &mut Vec<HeadId>| {
            if base.iter().any(|id| heads.contains_key(id)) {
                *base = base.iter().filter_map(now).collect();
            }
        };
        for handle in self.open_files() {
            if let Handle::File(file) = &*handle {
                let mut sight = locked(&file.sight);
                renew(&mut sight.base);
                sight.own = sight.own.map(|own| now(&own).unwrap_or(own));
            }
        }
        let drafts = self.table().drafts();
        let above = moved.iter().map(|ino| self.table().see(*ino).map(|seen| join(&seen.path, b"")));
        let above = above.collect::<Answer<Vec<_>>>()?;
        for (ino, draft) in drafts {
            let path = self.table().see(ino)?.path;
            let new = {
                let mut shape = draft.shape();
                renew(&mut shape.base);
                shape.own = shape.own.and_then(|own| now(&own).or(Some(own)));
                shape.new
            };
            if new && above.iter().any(|above| path.starts_with(above)) {
                // The store has something else at its path than where it was made.
                draft.shape().base = ids(kv.heads(&path)?.as_ref());
            }
        }
        Ok(())
    }

    /// An inode that stands for another key than when it was opened: nobody has seen that one's heads.
    fn forget_bases(&self, ino: u64) {
        for handle in self.open_files() {
            if let Handle::File(file) = &*handle
                && file.ino == ino
            {
                locked(&file.sight).base.clear();
            }
        }
    }

    fn exchange(&self, store: StoreId, one: (End<'_>, u64), other: (End<'_>, u64)) -> Answer<()> {
        for (_, ino) in [one, other] {
            let seen = self.table().see(ino)?;
            if let Some(draft) = Self::shown_draft(seen.draft.as_ref()) {
                // One that stays here does so no longer: it takes the place of a key.
                draft.shape().local = false;
                self.publish(ino, store, &draft)?;
            }
        }
        let kv = self.kv(&store)?;
        let _names = self.changing();
        let first = self.table().see(one.1)?;
        let second = self.table().see(other.1)?;
        let mut moves = Self::moves(&kv, &first, &second.path)?;
        moves.extend(Self::moves(&kv, &second, &first.path)?);
        let (ops, heads) = Self::operations(&kv, &moves, None)?;
        let receipt = if ops.is_empty() { None } else { Some(self.commit(&kv, ops).map_err(too_large)?) };
        self.table().exchange(one.1, other.1);
        if let Some(receipt) = receipt {
            self.follow(&kv, &heads, receipt.hash, &[one.1, other.1])?;
        }
        self.keep_below(one.1);
        self.keep_below(other.1);
        self.bump(one.0.parent);
        self.bump(other.0.parent);
        Ok(())
    }

    /// `mv` of a head onto a key.
    fn settle_by_rename(&self, source: &Seen, store: StoreId, from: End<'_>, to: End<'_>) -> Answer<()> {
        let (directory, there, kv) = self.place_for(to.parent, to.name)?;
        if there != store {
            return Err(errno::OTHER_STORE);
        }
        let ino = self.table().child(from.parent, from.name).ok_or(errno::MISSING)?;
        let head = self.table().see(ino)?;
        if !matches!(head.place, Place::Head(_)) {
            return Err(Failure::Refused(libc::EPERM, "only a head can be moved onto a key"));
        }
        let before = self.target(&kv, &directory, to.name)?;
        if let (Some(ino), Some(draft)) = (before.ino, &before.draft) {
            self.publish(ino, store, draft)?;
        }
        let _names = self.changing();
        let rename = Renaming { store, from, to, ino, noreplace: false };
        let (_, target) = self.replaced(&kv, &rename, head.kind == Type::Directory)?;
        let other = self.key_inode(store, &source.path).filter(|_| source.path != target.path);
        heads::settle(self, &head, store, target.path.clone())?;
        let last = target.ino.and_then(|ino| self.attr(ino).ok());
        self.table().rename(ino, to.parent, to.name, Place::Key(store), last);
        self.bump(to.parent);
        if kv.node(&target.path)?.is_none() {
            // A deletion won: the name that the kernel moved there is none.
            self.table().detach(ino, None);
            self.notify(super::announce::Notice::Name(to.parent, to.name.into()));
        }
        if let Some(other) = other {
            self.notify(super::announce::Notice::Content(other));
        }
        Ok(())
    }
}

struct Renaming<'a> {
    store: StoreId,
    from: End<'a>,
    to: End<'a>,
    ino: u64,
    noreplace: bool,
}

fn too_large(error: Failure) -> Failure {
    match error {
        Failure::Kv(KvError::TooLarge { .. }) => errno::TREE_TOO_LARGE,
        other => other,
    }
}
