//! Keys as files: looking, opening, reading.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::draft::{Content, Draft, Shape, part, read_at};
use super::errno::{self, Answer};
use super::inodes::{Seen, join};
use super::missed::Missed;
use super::place::{Attr, Place, Type};
use super::soon::bumped;
use super::tree::{Found, Handle, LONG, NONE, Tree, locked};
use crate::clock;
use crate::ids::StoreId;
use crate::stores::Merge;
use crate::stores::kv::{Head, HeadId, Kv, Node, Opened};

/// The mode of a directory that only the keys below it imply.
pub(crate) const IMPLIED: u32 = 0o755;

/// A key, open.
#[derive(Debug)]
pub(crate) struct FileHandle {
    pub(crate) ino: u64,
    pub(crate) store: StoreId,
    pub(crate) append: bool,
    /// What it writes to; `None` if it was opened for reading.
    pub(crate) draft: Option<Arc<Draft>>,
    pub(crate) sight: Mutex<Sight>,
    /// The content that was read last.
    opened: Mutex<Option<(HeadId, Arc<Opened>)>>,
    missed: Missed,
}

/// What was there when a file was opened, by the names that the heads have now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sight {
    /// All heads.
    pub(crate) base: Vec<HeadId>,
    /// The one that was shown.
    pub(crate) winner: Option<Head>,
    /// What had been published last from the draft.
    pub(crate) own: Option<HeadId>,
}

impl FileHandle {
    pub(crate) fn new(seen: &Seen, store: StoreId, append: bool, draft: Option<Arc<Draft>>) -> Self {
        let (sight, opened, missed) = (Mutex::default(), Mutex::default(), Missed::default());
        Self { ino: seen.ino, store, append, draft, sight, opened, missed }
    }

    /// The head that was shown when it was opened.
    pub(crate) fn winner(&self) -> Option<Head> {
        locked(&self.sight).winner
    }
}

/// The room on the disk that holds the drafts, asked for once a second at most.
#[derive(Debug)]
pub(crate) struct Space {
    directory: PathBuf,
    asked: AtomicI64,
    free: AtomicU64,
}

/// Room that drafts leave for the stores' own files, in bytes.
pub const SPARE: u64 = 16 * 1024 * 1024;

/// How much is free on the disk that holds `directory`, in bytes, if that is so little that mounts take no more.
#[must_use]
pub fn scarce(directory: &Path) -> Option<u64> {
    free(directory).filter(|free| *free < SPARE)
}

/// What is free, in bytes; `None` if the system does not say.
fn free(directory: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(directory).ok()?;
    Some(found.blocks_available() * found.fragment_size())
}

impl Space {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), asked: AtomicI64::new(0), free: AtomicU64::new(u64::MAX) }
    }

    /// Refuses `more` bytes that won't fit.
    pub(crate) fn check(&self, more: u64) -> Answer<()> {
        let now = clock::nanos();
        let stale = now.saturating_sub(self.asked.load(Ordering::Relaxed)).unsigned_abs() > 1_000_000_000;
        if stale || !self.fits(more) {
            self.asked.store(now, Ordering::Relaxed);
            if let Some(free) = free(&self.directory) {
                self.free.store(free, Ordering::Relaxed);
            }
        }
        if !self.fits(more) {
            return Err(errno::NO_SPACE);
        }
        // What is let in counts as written until the system is asked again.
        let less = |free: u64| Some(free.saturating_sub(more));
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok();
        Ok(())
    }

    fn fits(&self, more: u64) -> bool {
        more.saturating_add(SPARE) <= self.free.load(Ordering::Relaxed)
    }

    /// As `statvfs` says it.
    pub(crate) fn ask(&self) -> std::io::Result<nix::sys::statvfs::Statvfs> {
        Ok(nix::sys::statvfs::statvfs(&self.directory)?)
    }
}

/// The type of a node.
pub(crate) const fn kind(node: &Node) -> Type {
    match node {
        Node::File(_) => Type::File,
        Node::Symlink(_) => Type::Symlink,
        Node::Directory(_) => Type::Directory,
    }
}

impl Tree {
    /// The attributes of what the store has.
    pub(crate) fn node_attr(&self, ino: u64, node: &Node, bump: Option<i64>) -> Attr {
        match node {
            Node::File(head) => {
                let size = head.content.size();
                Attr { ino, kind: Type::File, mode: head.mode, size, mtime: head.mtime }
            }
            Node::Symlink(head) => {
                let size = head.content.size();
                Attr { ino, kind: Type::Symlink, mode: 0o777, size, mtime: head.mtime }
            }
            Node::Directory(head) => {
                let mode = head.map_or(IMPLIED, |head| head.mode);
                let mtime = bump.or(head.map(|head| head.mtime)).unwrap_or(self.since);
                Attr { ino, kind: Type::Directory, mode, size: 0, mtime }
            }
        }
    }

    pub(crate) fn draft_attr(ino: u64, shape: &Shape) -> Attr {
        Attr { ino, kind: shape.kind, mode: shape.mode, size: shape.size, mtime: shape.mtime }
    }

    pub(crate) fn lookup_key(&self, directory: &Seen, store: StoreId, name: &[u8]) -> Answer<Found> {
        if !directory.attached {
            return Err(errno::MISSING);
        }
        let found = self.look_up_key(directory, store, name);
        if !matches!(found, Ok(Found::Nothing(_))) {
            return found;
        }
        // Before it is looked at once more: what comes from here on has the kernel told.
        if !self.missing.add(directory.ino, name) {
            self.notify(super::announce::Notice::Missing);
            return Ok(Found::Nothing(NONE));
        }
        self.look_up_key(directory, store, name)
    }

    fn look_up_key(&self, directory: &Seen, store: StoreId, name: &[u8]) -> Answer<Found> {
        {
            let mut table = self.table();
            if let Some(ino) = table.child(directory.ino, name)
                && let Some(draft) = Self::shown_draft(table.see(ino)?.draft.as_ref())
            {
                table.given(ino);
                let attr = bumped(Self::draft_attr(ino, &draft.shape()), table.see_bump(ino));
                return Ok(Found::This(attr, LONG));
            }
            if table.whiteout(directory.ino, name).is_some() {
                return Ok(Found::Nothing(LONG));
            }
        }
        let path = join(&directory.path, name);
        if path.len() > crate::replication::limits::KEY_PATH {
            return Err(errno::NAME_TOO_LONG);
        }
        let Some(node) = self.kv(&store)?.node(&path)? else { return Ok(Found::Nothing(LONG)) };
        let mut table = self.table();
        let ino = table.enter(directory.ino, name, Place::Key(store), kind(&node));
        table.given(ino);
        let bump = table.see(ino)?.bump;
        Ok(Found::This(self.node_attr(ino, &node, bump), LONG))
    }

    pub(crate) fn key_attr(&self, seen: &Seen, store: StoreId) -> Answer<Attr> {
        if let Some(draft) = &seen.draft {
            let shape = draft.shape();
            if shape.shown() || !seen.attached {
                return Ok(bumped(Self::draft_attr(seen.ino, &shape), seen.bump));
            }
        }
        if !seen.attached {
            return seen.last.map(|last| Attr { ino: seen.ino, ..last }).ok_or(errno::STALE);
        }
        // Just removed elsewhere, and the kernel not told yet: whoever has it open goes on as if it had been removed here.
        let before = seen.last.filter(|_| seen.open).map(|last| Attr { ino: seen.ino, ..last });
        match self.kv(&store)?.node(&seen.path)? {
            Some(node) if kind(&node) == seen.kind => Ok(self.node_attr(seen.ino, &node, seen.bump)),
            Some(_) => before.ok_or(errno::STALE),
            None => before.ok_or(errno::MISSING),
        }
    }

    /// Where a key that is a symbolic link points.
    pub(crate) fn key_target(&self, seen: &Seen, store: StoreId) -> Answer<Vec<u8>> {
        let mut head = None;
        if let Some(draft) = Self::shown_draft(seen.draft.as_ref()) {
            let shape = draft.shape();
            match &shape.content {
                Content::Memory(bytes) => return Ok(bytes.clone()),
                Content::Spilled(spill) => {
                    return Ok(read_at(&spill.file, 0, usize::try_from(shape.size).unwrap_or(usize::MAX))?);
                }
                Content::Base(base) => head = base.as_deref().copied(),
            }
        }
        let kv = self.kv(&store)?;
        match head.map(|head| Ok(Some(Node::Symlink(head)))).unwrap_or_else(|| kv.node(&seen.path))? {
            Some(Node::Symlink(head)) => match kv.read_within(&head, Duration::ZERO)? {
                Opened::Bytes(bytes) => Ok(bytes),
                Opened::File(..) => Err(errno::INVALID),
            },
            Some(Node::File(_) | Node::Directory(_)) => Err(errno::INVALID),
            None => Err(errno::MISSING),
        }
    }

    /// Refuses early what could not be published later.
    pub(crate) fn writable(kv: &Kv) -> Answer<()> {
        let log = kv.log();
        if !log.may_sign() {
            return Err(errno::REGAINING);
        }
        if log.membership().load().may_write(&log.me()) { Ok(()) } else { Err(errno::READER) }
    }

    pub(crate) fn open_key(&self, seen: &Seen, store: StoreId, flags: i32) -> Answer<FileHandle> {
        let append = flags & libc::O_APPEND != 0;
        if seen.kind == Type::Directory {
            return Err(errno::IS_DIRECTORY);
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let kv = self.kv(&store)?;
        let mut handle = FileHandle::new(seen, store, append, None);
        if writes || flags & libc::O_TRUNC != 0 {
            Self::writable(&kv)?;
            self.space.check(0)?;
        }
        Self::look_at(&kv, seen, &handle, None)?;
        if writes {
            let draft = self.draft_for(seen, &handle)?;
            let own = draft.shape().own;
            self.opened_again(seen.ino, &draft);
            handle.draft = Some(Arc::clone(&draft));
            // Another's last version may have come between the look and the draft, which is this one's as well from now on.
            let ready = Self::look_at(&kv, seen, &handle, own);
            let cut = flags & libc::O_TRUNC != 0;
            let ready = ready.and_then(|()| if cut { self.resize(&handle, &draft, 0) } else { Ok(()) });
            if let Err(error) = ready {
                // As if it had been closed at once.
                self.release_draft(seen.ino, store, &draft)?;
                return Err(error);
            }
        }
        let mut table = self.table();
        table.pin(seen.ino);
        if let Some(head) = handle.winner() {
            table.remember(seen.ino, self.node_attr(seen.ino, &Node::File(head), None));
        }
        drop(table);
        Ok(handle)
    }

    /// Notes what the store has of a file that is being opened.
    fn look_at(kv: &Kv, seen: &Seen, handle: &FileHandle, own: Option<HeadId>) -> Answer<()> {
        if seen.attached {
            let heads = kv.heads(&seen.path)?;
            let base = heads.iter().flat_map(|heads| heads.all()).map(|head| head.id).collect();
            let winner = heads.as_ref().and_then(|heads| heads.visible().copied());
            *locked(&handle.sight) = Sight { base, winner, own };
        }
        Ok(())
    }

    /// The inode's draft, with one writer more.
    pub(crate) fn draft_for(&self, seen: &Seen, handle: &FileHandle) -> Answer<Arc<Draft>> {
        let mut table = self.table();
        let known = table.see(seen.ino)?.draft;
        let draft = if let Some(draft) = known {
            draft
        } else {
            let winner = handle.winner();
            let mut shape = Shape::new(Type::File, winner.map_or(0o644, |head| head.mode));
            shape.size = winner.map_or(0, |head| head.content.size());
            shape.mtime = winner.map_or(shape.mtime, |head| head.mtime);
            shape.content = Content::Base(winner.map(Box::new));
            let draft = Draft::new(shape);
            table.set_draft(seen.ino, Arc::clone(&draft), false);
            draft
        };
        draft.shape().writers += 1;
        Ok(draft)
    }

    /// Reads what is shown; a blob that is not here is waited for, for `patience`.
    pub(crate) fn read(&self, handle: &Handle, offset: u64, size: usize, patience: Duration) -> Answer<Vec<u8>> {
        match handle {
            Handle::File(file) => self.read_key(file, offset, size, patience),
            Handle::Text(bytes) => Ok(part(bytes, offset, size)),
            Handle::Version(version) => version.read(self, offset, size, patience),
            Handle::Room(room) => super::chat::read(self, room, offset, size),
            Handle::Blob(file) => Ok(read_at(file, offset, size)?),
            Handle::Staged(open) => open.read(offset, size),
            Handle::Why(reader) => Ok(reader.read(offset, size)),
            Handle::Entries(store) => super::entries::read(self, *store, offset, size),
            Handle::Directory(_) => Err(errno::IS_DIRECTORY),
            // Who reads changes waits for them elsewhere.
            Handle::Changes(_) | Handle::Replay => Err(errno::INVALID),
        }
    }

    fn read_key(&self, file: &FileHandle, offset: u64, size: usize, patience: Duration) -> Answer<Vec<u8>> {
        let seen = self.table().see(file.ino)?;
        let mut head = None;
        if let Some(draft) = seen.draft.as_ref().or(file.draft.as_ref()) {
            let shape = draft.shape();
            if shape.shown() || !seen.attached {
                match &shape.content {
                    Content::Memory(bytes) => return Ok(part(bytes, offset, size)),
                    Content::Spilled(spill) => {
                        let (spill, end) = (Arc::clone(spill), shape.size);
                        drop(shape);
                        let size = size.min(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
                        return Ok(read_at(&spill.file, offset, size)?);
                    }
                    Content::Base(None) if shape.shown() => return Ok(Vec::new()),
                    Content::Base(base) => head = base.as_deref().copied(),
                }
            }
        }
        let kv = self.kv(&file.store)?;
        if head.is_none() && seen.attached {
            head = match kv.node(&seen.path)? {
                Some(Node::File(head)) => Some(head),
                Some(Node::Symlink(_) | Node::Directory(_)) | None => None,
            };
        }
        let mut opened = locked(&file.opened).clone();
        // A file that is gone reads as it was when it was last looked at.
        let head = head.or(if opened.is_some() { None } else { file.winner() });
        if let Some(head) = head
            && opened.as_ref().is_none_or(|(id, _)| *id != head.id)
        {
            opened = Some((head.id, Arc::new(file.missed.read(&kv, &head, patience)?)));
            locked(&file.opened).clone_from(&opened);
        }
        let (_, opened) = opened.ok_or(errno::STALE)?;
        read_opened(&opened, offset, size)
    }
}

pub(crate) fn read_opened(opened: &Opened, offset: u64, size: usize) -> Answer<Vec<u8>> {
    match opened {
        Opened::Bytes(bytes) => Ok(part(bytes, offset, size)),
        Opened::File(file, _) => Ok(read_at(file, offset, size)?),
    }
}
