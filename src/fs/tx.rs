//! `/stores/<name>/.tx`: open transactions, each a directory. What is staged in one are plain files on this node's own disk, so programs
//! do with them what they do on any; renaming the directory to `commit` makes one entry of them.
//!
//! The kernel is asked to look each time: a command, or another mount of this node, may end a transaction.

use std::fs::{File, Metadata, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, RenameFlags};
use nix::sys::time::TimeSpec;
use tokio::sync::broadcast::error::TryRecvError;

use super::announce::Notice;
use super::errno::{self, Answer, Failure};
use super::inodes::{Seen, join};
use super::place::{Attr, Place, Type};
use super::rename::End;
use super::setattr::Wanted;
use super::staged::{Staged, link};
use super::tree::{Caching, Handle, Open, Tree};
use super::write::{Writer, tame};
use crate::ids::StoreId;
use crate::replication::limits;
use crate::stores::kv::{COMMIT, Look, Tx, TxError};

/// In a transaction: why it would not be committed.
const WHY: &[u8] = b".why";
/// How long a commit waits for the kernel to have forgotten what it knew of the keys.
const TOLD: Duration = Duration::from_secs(2);

pub(crate) const ONLY_BEGUN: Failure =
    Failure::Refused(libc::EPERM, "only transactions are here: mkdir begins one, and files go into it");
const KEEPS_NAME: Failure = Failure::Refused(
    libc::EPERM,
    "a transaction keeps its name: renamed to `commit`, in the `.tx` where it is, it is committed",
);
const NOT_WHOLE: Failure =
    Failure::Refused(libc::EPERM, "nothing but a whole transaction of the same store can be committed, or be in `.tx`");
const ELSEWHERE: Failure =
    Failure::Refused(libc::EXDEV, "what is staged is not in the store yet: it is copied, not moved");

/// A staged file, open.
#[derive(Debug)]
pub(crate) struct StagedHandle {
    ino: u64,
    tx: Arc<Tx>,
    file: File,
}

fn kind(meta: &Metadata) -> Type {
    match meta.file_type() {
        kind if kind.is_dir() => Type::Directory,
        kind if kind.is_symlink() => Type::Symlink,
        _ => Type::File,
    }
}

fn shape(ino: u64, meta: &Metadata) -> Attr {
    let kind = kind(meta);
    let (mode, size) = match kind {
        Type::File => (meta.mode() & 0o7777, meta.len()),
        Type::Directory => (meta.mode() & 0o7777, 0),
        Type::Symlink => (0o777, meta.len()),
    };
    let mtime = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    Attr { ino, kind, mode, size, mtime }
}

/// Whether a path in `.tx` is that of a transaction's `.why`.
fn is_why(path: &[u8]) -> bool {
    path.strip_suffix(WHY).and_then(|above| above.strip_suffix(b"/")).is_some_and(|tx| !tx.contains(&b'/'))
}

/// The text of a transaction's `.why`: nothing, if it would be committed.
fn why(look: &Look, store: &str) -> String {
    let Some(why) = &look.why else { return String::new() };
    let mut text = format!("{why}\n");
    if !look.moved.is_empty() {
        text = "not committed: these keys changed after the transaction began\n".into();
        for key in &look.moved {
            text.extend(
                String::from_utf8_lossy(key)
                    .chars()
                    .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }),
            );
            text.push('\n');
        }
    }
    if let Some(hint) = why.hint(store) {
        text.push_str(&hint);
        text.push('\n');
    }
    text
}

impl Tree {
    /// Where the path `path` in a store's `.tx` is on the disk. `ino` is it, or is above it.
    fn staged_at(&self, store: &StoreId, ino: Option<u64>, path: &[u8]) -> Answer<Staged> {
        let registry = self.registry().ok_or(errno::CLOSED)?;
        let (name, rest) = match path.iter().position(|byte| *byte == b'/') {
            Some(end) => (&path[..end], Some(&path[end + 1..])),
            None => (path, None),
        };
        let staged = Staged::find(registry.txs().get(store, name)?, rest);
        // After it was opened: were it over before that, another may have its path.
        let tx = registry.txs().get(store, name)?;
        let staged = staged?;
        let same = Arc::ptr_eq(&staged.tx, &tx) && ino.is_none_or(|ino| self.table().is_of(ino, &tx));
        if same { Ok(staged) } else { Err(errno::STALE) }
    }

    fn staged(&self, seen: &Seen, store: &StoreId) -> Answer<Staged> {
        self.staged_below(seen, store, None)
    }

    /// What `seen` is, or a name in it.
    fn staged_below(&self, seen: &Seen, store: &StoreId, name: Option<&[u8]>) -> Answer<Staged> {
        // One that is over, even if another of its name was begun since.
        if !seen.attached || self.table().is_adrift(seen.ino) {
            return Err(errno::STALE);
        }
        match name {
            Some(name) => self.staged_at(store, Some(seen.ino), &join(&seen.path, name)),
            None => self.staged_at(store, Some(seen.ino), &seen.path),
        }
    }

    /// Where a name in a directory of a transaction is, or is to be.
    fn staged_name(&self, parent: u64, name: &[u8]) -> Answer<(Staged, StoreId)> {
        let seen = self.table().see(parent)?;
        let Place::Staged(store) = seen.place else { return Err(errno::NOT_HERE) };
        if name.len() > limits::KEY_COMPONENT || seen.path.len() + name.len() + 1 > limits::KEY_PATH {
            return Err(errno::NAME_TOO_LONG);
        }
        if is_why(&join(&seen.path, name)) {
            return Err(errno::GENERATED);
        }
        Ok((self.staged_below(&seen, &store, Some(name))?, store))
    }

    /// What a name in `.tx`, or in a transaction, leads to.
    pub(crate) fn staged_look(&self, directory: &Seen, store: StoreId, name: &[u8]) -> Answer<Option<(Place, Type)>> {
        if directory.kind != Type::Directory {
            return Err(errno::NOT_DIRECTORY);
        }
        let path = join(&directory.path, name);
        if is_why(&path) {
            return Ok(Some((Place::TxWhy(store), Type::File)));
        }
        let found = if directory.place == Place::Txs(store) {
            let known = self.table().child(directory.ino, name);
            // One that is over has then lost the name to this one.
            self.staged_at(&store, known, &path).or_else(|_over| self.staged_at(&store, None, &path))
        } else {
            self.staged_below(directory, &store, Some(name))
        };
        let meta = match found {
            Ok(staged) => staged.metadata(),
            Err(Failure::Tx(TxError::Missing(_))) => return Ok(None),
            Err(error) => return Err(error),
        };
        match meta {
            Ok(meta) => Ok(Some((Place::Staged(store), kind(&meta)))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The open transactions of a store.
    pub(crate) fn txs(&self, store: StoreId) -> Vec<(Vec<u8>, Place, Type)> {
        let open = self.registry().map(|registry| registry.txs().list(&store)).unwrap_or_default();
        open.iter().map(|tx| (tx.name().to_vec(), Place::Staged(store), Type::Directory)).collect()
    }

    /// What is staged in a directory.
    pub(crate) fn staged_children(&self, seen: &Seen, store: StoreId) -> Answer<Vec<(Vec<u8>, Place, Type)>> {
        if seen.kind != Type::Directory {
            return Err(errno::NOT_DIRECTORY);
        }
        let mut found = Vec::new();
        let directory = self.staged(seen, &store)?.hold()?;
        for entry in std::fs::read_dir(link(&directory))? {
            let entry = entry?;
            let kind = match entry.file_type()? {
                kind if kind.is_dir() => Type::Directory,
                kind if kind.is_symlink() => Type::Symlink,
                _ => Type::File,
            };
            found.push((entry.file_name().as_bytes().to_vec(), Place::Staged(store), kind));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// The openings of a staged file: for one that has lost its name.
    fn staged_openings(&self, ino: u64) -> Vec<Arc<Handle>> {
        let mut open = self.all_handles();
        open.retain(|handle| matches!(&**handle, Handle::Staged(file) if file.ino == ino));
        open
    }

    /// What is staged, held; if it has lost its name, or another has put something else there, as it is open.
    fn staged_held(&self, seen: &Seen, store: &StoreId) -> Answer<(Arc<Tx>, File)> {
        let named = self.staged(seen, store).and_then(|staged| {
            let held = staged.hold()?;
            if kind(&held.metadata()?) == seen.kind { Ok((staged.tx, held)) } else { Err(errno::STALE) }
        });
        named.or_else(|gone| match self.staged_openings(seen.ino).first().map(Arc::as_ref) {
            Some(Handle::Staged(open)) => Ok((Arc::clone(&open.tx), open.file.try_clone()?)),
            _ => Err(gone),
        })
    }

    /// The attributes of what is staged.
    pub(crate) fn staged_attr(&self, seen: &Seen, store: StoreId) -> Answer<Attr> {
        match self.staged_held(seen, &store) {
            Ok((_, held)) => Ok(shape(seen.ino, &held.metadata()?)),
            Err(gone) => seen.last.map(|last| Attr { ino: seen.ino, ..last }).ok_or(gone),
        }
    }

    /// Where a staged symbolic link points.
    pub(crate) fn staged_target(&self, seen: &Seen, store: StoreId) -> Answer<Vec<u8>> {
        Ok(self.staged(seen, &store)?.target()?)
    }

    /// The text of a transaction's `.why`.
    pub(crate) fn tx_why(&self, seen: &Seen, store: StoreId) -> Answer<Vec<u8>> {
        let parent = self.table().see(seen.parent)?;
        let tx = self.staged(&parent, &store)?.tx;
        let name = self.stores().into_iter().find(|(_, id)| *id == store).map(|(name, _)| name).unwrap_or_default();
        Ok(why(&tx.look(&*self.kv(&store)?), &name).into_bytes())
    }

    /// Opens a staged file.
    pub(crate) fn open_staged(&self, seen: &Seen, store: StoreId, flags: i32) -> Answer<Open> {
        if seen.kind != Type::File {
            return Err(errno::IS_DIRECTORY);
        }
        let staged = self.staged(seen, &store)?;
        let steady = if flags & libc::O_ACCMODE == libc::O_RDONLY { None } else { Some(staged.tx.steady()?) };
        let truncated = if steady.is_some() { libc::O_TRUNC } else { 0 };
        let file = staged.open(flags & (libc::O_ACCMODE | truncated))?;
        drop(steady);
        self.table().pin(seen.ino);
        let handle = StagedHandle { ino: seen.ino, tx: staged.tx, file };
        Ok(Open { handle: self.hold(Handle::Staged(handle)), caching: Caching::Default })
    }

    /// Lets go of an opening.
    pub(crate) fn close_staged(&self, open: &StagedHandle) {
        self.table().unpin(open.ino);
    }

    /// Makes a staged file, and opens it.
    pub(crate) fn create_staged(&self, parent: u64, name: &[u8], mode: u32, flags: i32) -> Answer<(Attr, Open)> {
        let (staged, store) = self.staged_name(parent, name)?;
        self.space.check(0)?;
        let steady = staged.tx.steady()?;
        let access = if flags & libc::O_ACCMODE == libc::O_WRONLY { libc::O_WRONLY } else { libc::O_RDWR };
        let file = staged.open(access | libc::O_CREAT | flags & libc::O_EXCL)?;
        // The caller's umask has been taken into account, this process's has nothing to say.
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        drop(steady);
        let ino = {
            let mut table = self.table();
            let ino = table.enter(parent, name, Place::Staged(store), Type::File);
            table.given(ino);
            table.pin(ino);
            ino
        };
        let attr = shape(ino, &file.metadata()?);
        let handle = self.hold(Handle::Staged(StagedHandle { ino, tx: staged.tx, file }));
        Ok((attr, Open { handle, caching: Caching::Default }))
    }

    /// `mkdir` in `.tx`, which begins a transaction, or in one.
    pub(crate) fn make_staged_directory(&self, parent: u64, name: &[u8], mode: u32) -> Answer<Attr> {
        let place = self.table().place(parent);
        let (made, store) = if let Some(Place::Txs(store)) = place {
            let kv = self.kv(&store)?;
            // What was done to the store before is in the base.
            self.settle_store(store);
            let registry = self.registry().ok_or(errno::CLOSED)?;
            let tx = registry.txs().begin(&kv, name)?;
            // What the kernel knows by this name is one that is over.
            self.staged_gone(parent, name, None);
            (Staged::find(tx, None)?, store)
        } else {
            self.staged_name(parent, name)?
        };
        let _steady = made.tx.steady()?;
        if place != Some(Place::Txs(store)) {
            made.make_directory()?;
        }
        made.set_mode(mode & 0o7777)?;
        self.staged_made(parent, name, store, &made)
    }

    /// Makes a symbolic link in a transaction.
    pub(crate) fn make_staged_link(&self, parent: u64, name: &[u8], to: &[u8]) -> Answer<Attr> {
        let (staged, store) = self.staged_name(parent, name)?;
        let _steady = staged.tx.steady()?;
        staged.make_link(to)?;
        self.staged_made(parent, name, store, &staged)
    }

    fn staged_made(&self, parent: u64, name: &[u8], store: StoreId, made: &Staged) -> Answer<Attr> {
        let meta = made.metadata()?;
        let mut table = self.table();
        let ino = table.enter(parent, name, Place::Staged(store), kind(&meta));
        table.given(ino);
        table.is_of(ino, &made.tx);
        Ok(shape(ino, &meta))
    }

    /// `unlink` or `rmdir`, which of an empty transaction forgets it.
    pub(crate) fn remove_staged(&self, parent: u64, name: &[u8], directory: bool) -> Answer<()> {
        let above = self.table().see(parent)?;
        let last = self.known_attr(parent, name);
        if let Place::Txs(store) = above.place {
            let registry = self.registry().ok_or(errno::CLOSED)?;
            registry.txs().get(&store, name)?;
            if !directory {
                return Err(errno::IS_DIRECTORY);
            }
            registry.txs().drop(&store, name, true)?;
        } else {
            let (staged, _) = self.staged_name(parent, name)?;
            let _steady = staged.tx.steady()?;
            staged.remove(directory)?;
        }
        self.staged_gone(parent, name, last);
        Ok(())
    }

    /// What a name shows that the kernel knows.
    fn known_attr(&self, parent: u64, name: &[u8]) -> Option<Attr> {
        let known = self.table().child(parent, name);
        known.and_then(|ino| self.attr(ino).ok())
    }

    fn staged_gone(&self, parent: u64, name: &[u8], last: Option<Attr>) {
        let mut table = self.table();
        if let Some(ino) = table.child(parent, name) {
            table.detach(ino, last);
        }
    }

    /// Renames within a transaction, or a transaction to `commit`; `None` if neither end is in a `.tx`.
    pub(crate) fn rename_staged(&self, from: End<'_>, to: End<'_>, flags: u32) -> Option<Answer<()>> {
        let source = self.table().place(from.parent)?;
        let target = self.table().place(to.parent)?;
        Some(match (source, target) {
            (Place::Txs(store), Place::Txs(other)) if store == other && to.name == COMMIT => {
                self.commit_staged(store, from, flags)
            }
            (Place::Txs(_), Place::Txs(_)) => Err(KEEPS_NAME),
            (Place::Txs(_), Place::Staged(_)) => Err(KEEPS_NAME),
            (_, Place::Txs(_)) => Err(NOT_WHOLE),
            (Place::Txs(_), _) => Err(ELSEWHERE),
            (Place::Staged(_), Place::Staged(_)) => self.move_staged(from, to, flags),
            (Place::Staged(_), _) | (_, Place::Staged(_)) => Err(ELSEWHERE),
            _ => return None,
        })
    }

    fn move_staged(&self, from: End<'_>, to: End<'_>, flags: u32) -> Answer<()> {
        let (source, _) = self.staged_name(from.parent, from.name)?;
        let (target, store) = self.staged_name(to.parent, to.name)?;
        let _steady = source.tx.steady()?;
        let _other = if Arc::ptr_eq(&source.tx, &target.tx) { None } else { Some(target.tx.steady()?) };
        let replaced = self.known_attr(to.parent, to.name);
        let how = RenameFlags::from_bits_truncate(flags);
        source.rename(&target, how)?;
        let mut table = self.table();
        let (one, two) = (table.child(from.parent, from.name), table.child(to.parent, to.name));
        match (one, two) {
            (Some(one), Some(two)) if flags & libc::RENAME_EXCHANGE != 0 => table.exchange(one, two),
            (Some(one), _) => table.rename(one, to.parent, to.name, Place::Staged(store), replaced),
            (None, Some(two)) => table.detach(two, replaced),
            (None, None) => {}
        }
        Ok(())
    }

    /// Commits a transaction. The kernel knows of its keys what was: it is told before this returns.
    fn commit_staged(&self, store: StoreId, from: End<'_>, flags: u32) -> Answer<()> {
        if flags & libc::RENAME_EXCHANGE != 0 {
            return Err(errno::INVALID);
        }
        let (kv, registry) = (self.kv(&store)?, self.registry().ok_or(errno::CLOSED)?);
        registry.txs().get(&store, from.name)?;
        self.settle_store(store);
        let mut events = registry.events();
        let committed = registry.txs().commit(&kv, from.name, false, self.origin()).inspect_err(|error| {
            // That a program should try again is ordinary elsewhere; here a person must know.
            if matches!(error, TxError::Moved { .. }) {
                let path = join(&self.table().trail(from.parent), from.name);
                self.why.note_also("rename", &path, libc::EAGAIN, error);
            }
        })?;
        self.staged_gone(from.parent, from.name, None);
        let Some(receipt) = committed.receipt else { return Ok(()) };
        let event = loop {
            match events.try_recv() {
                Ok(event) if event.store == store && event.entry.hash() == receipt.hash => break Some(event),
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break None,
            }
        };
        let (tell, told) = channel();
        self.notify(match event {
            Some(event) => Notice::Own(event, tell),
            None => Notice::Lagged(Some(tell)),
        });
        if told.recv_timeout(TOLD).is_err() {
            tracing::warn!(target: "fs", "the kernel may show for a moment what was before a commit");
        }
        Ok(())
    }

    /// Makes versions of all that was done to a store through this mount and waits for what usually follows.
    pub(crate) fn settle_store(&self, store: StoreId) {
        let drafts = self.table().drafts();
        for (ino, draft) in drafts {
            let seen = self.table().see(ino);
            let Ok(seen) = seen else { continue };
            let waits = {
                let shape = draft.shape();
                shape.shown() && shape.writers == 0 && !shape.local
            };
            // What fails is noted there.
            if waits && seen.attached && seen.place == Place::Key(store) {
                self.settle(ino, store, &draft).ok();
            }
        }
        for (parent, name) in self.all_whiteouts() {
            let place = self.table().place(parent);
            if matches!(place, Some(Place::Keys(of) | Place::Key(of)) if of == store) {
                self.settle_whiteout(parent, &name).ok();
            }
        }
    }

    /// Sets what `chmod`, `utimens` and `truncate` set.
    pub(crate) fn set_staged(&self, seen: &Seen, store: StoreId, mut wanted: Wanted) -> Answer<Attr> {
        let (tx, held) = self.staged_held(seen, &store)?;
        let _steady = tx.steady()?;
        let before = shape(seen.ino, &held.metadata()?);
        if let Some(size) = wanted.size {
            self.space.check(size.saturating_sub(before.size))?;
            // Who has it open for writing may do so, whatever its permissions say by now.
            let resized =
                |handle: &Arc<Handle>| matches!(&**handle, Handle::Staged(open) if open.file.set_len(size).is_ok());
            if !self.staged_openings(seen.ino).iter().any(resized) {
                File::options().write(true).open(link(&held))?.set_len(size)?;
            }
        }
        if wanted.tame && seen.kind == Type::File && wanted.mode.is_none() {
            wanted.mode = Some(tame(before.mode)).filter(|tamed| *tamed != before.mode);
        }
        if let Some(mode) = wanted.mode.filter(|_| seen.kind != Type::Symlink) {
            std::fs::set_permissions(link(&held), Permissions::from_mode(mode))?;
        }
        if wanted.mtime.is_some() || wanted.atime.is_some() {
            let time = |nanos: Option<i64>| {
                nanos.map_or(TimeSpec::UTIME_OMIT, |nanos| {
                    TimeSpec::new(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000))
                })
            };
            let (atime, mtime) = (time(wanted.atime), time(wanted.mtime));
            super::staged::set_times(&held, &atime, &mtime)?;
        }
        self.table().stamp(seen.ino, wanted.atime);
        Ok(shape(seen.ino, &held.metadata()?))
    }

    /// `fsync` of a directory of a transaction.
    pub(crate) fn sync_staged_directory(&self, seen: &Seen, store: StoreId) -> Answer<()> {
        Ok(self.staged(seen, &store)?.open(libc::O_RDONLY | libc::O_DIRECTORY)?.sync_all()?)
    }

    /// Writes; with `append` at the end.
    pub(crate) fn write_staged(
        &self,
        by: Writer,
        open: &StagedHandle,
        offset: u64,
        data: &[u8],
        append: bool,
    ) -> Answer<()> {
        self.space.check(data.len() as u64)?;
        let _steady = open.tx.steady()?;
        let meta = open.file.metadata()?;
        open.file.write_all_at(data, if append { meta.len() } else { offset })?;
        let mode = meta.mode() & 0o7777;
        if by.tame && tame(mode) != mode {
            open.file.set_permissions(Permissions::from_mode(tame(mode)))?;
        }
        Ok(())
    }

    /// `fallocate` of a staged file. Room is set aside by the disk itself, if that leaves enough.
    pub(crate) fn allocate_staged(&self, open: &StagedHandle, offset: u64, length: u64, mode: i32) -> Answer<()> {
        let flags = FallocateFlags::from_bits_truncate(mode);
        if !flags.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE) {
            self.space.check(length)?;
        }
        let _steady = open.tx.steady()?;
        let range = |number: u64| i64::try_from(number).map_err(|_large| errno::INVALID);
        let done = nix::fcntl::fallocate(&open.file, flags, range(offset)?, range(length)?);
        Ok(done.map_err(std::io::Error::from)?)
    }
}

impl StagedHandle {
    pub(crate) fn read(&self, offset: u64, size: usize) -> Answer<Vec<u8>> {
        Ok(super::draft::read_at(&self.file, offset, size)?)
    }

    pub(crate) fn sync(&self) -> Answer<()> {
        Ok(self.file.sync_all()?)
    }
}
