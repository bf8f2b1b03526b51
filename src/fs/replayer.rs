//! The thread that makes again, on its own mount, the calls that would have made what came from elsewhere; and what the mount
//! answers it. So the kernel tells inotify's watchers.
//!
//! None of its calls changes anything: the mount knows the thread, and answers only what the thread said before that it would do. It
//! goes nowhere but into its own mount, follows no link, and keeps nothing open while there is nothing to replay.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, UtimensatFlags, fstat, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, ftruncate, symlinkat, unlinkat};

use super::errno::{self, Answer};
use super::place::{Attr, Place, Type};
use super::replay::{Act, Expected, Ghost, Name};
use super::tree::{Caching, Found, Handle, NONE, Open, Tree};
use super::watches::{self, Watched};
use crate::clock;

/// Changes in a second that are replayed without a look at who watches.
const FEW: usize = 128;
/// How long changes are gathered when there were more than a few in the last second.
const GATHER: Duration = Duration::from_millis(200);
/// Numbers that the tree gives to nothing: for what is gone, and the kernel never knew.
static GHOSTS: AtomicU64 = AtomicU64::new(1 << 63);

/// Replays what is to be replayed, on the mount at `at`, until it is stopped.
pub(crate) fn run(tree: &Tree, at: &Path, minor: u64, notifier: &Notifier) {
    let greeting = format!(".{:032x}", rand::random::<u128>());
    tree.replay.start(greeting.as_bytes());
    let mut replayer = Replayer { tree, at, minor, notifier, directory: None, lately: 0, since: clock::monotonic() };
    let greeted = replayer.root().and_then(|root| fstatat(&root, greeting.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW));
    if tree.replay.is_ready() {
        replayer.serve();
    } else {
        tracing::warn!(target: "fs", ?greeted, "watchers will not hear of changes from elsewhere");
    }
    tree.replay.end();
    replayer.unpin(tree.replay.rest().1);
}

struct Replayer<'a> {
    tree: &'a Tree,
    at: &'a Path,
    minor: u64,
    notifier: &'a Notifier,
    /// The directory in which something was replayed last.
    directory: Option<(u64, OwnedFd)>,
    /// What was replayed since the start of this second.
    lately: usize,
    since: Instant,
}

impl Replayer<'_> {
    fn serve(&mut self) {
        let mut gather = Duration::ZERO;
        let tree = self.tree;
        while let Some(waiting) = tree.replay.wait(|| {
            gather = self.pace();
            gather
        }) {
            let watched = if waiting > FEW || !gather.is_zero() { watches::of(self.minor) } else { Watched::Any };
            let root = self.root();
            for _ in 0..waiting {
                let Some((name, act)) = self.tree.replay.next() else { break };
                let Ok(root) = &root else { continue };
                if self.wanted(&watched, &name, act) {
                    self.guarded(|this| this.act(root, &name, act));
                }
            }
            let (directories, pinned) = self.tree.replay.rest();
            if let Ok(root) = &root {
                self.guarded(|this| this.directories(root, &watched, directories));
            }
            self.unpin(pinned);
            // Nobody who unmounts is to be told that it is in use.
            self.directory = None;
            self.lately += waiting;
        }
    }

    /// How long changes are gathered now.
    fn pace(&mut self) -> Duration {
        let now = clock::monotonic();
        if now.duration_since(self.since) > Duration::from_secs(1) {
            (self.since, self.lately) = (now, 0);
        }
        if self.lately > FEW { GATHER } else { Duration::ZERO }
    }

    /// The mount's root. Whatever else is at its path by now is left alone.
    fn root(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = open(self.at, flags, Mode::empty())?;
        let device = fstat(&root)?.st_dev;
        let ours = nix::sys::stat::major(device) == 0 && nix::sys::stat::minor(device) == self.minor;
        if ours { Ok(root) } else { Err(Errno::ENODEV) }
    }

    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> nix::Result<()>) {
        match std::panic::catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::trace!(target: "fs", %error, "a change from elsewhere is not replayed"),
            Err(_) => tracing::error!(target: "fs", "replaying failed in a way it never should"),
        }
    }

    fn unpin(&self, pinned: Vec<u64>) {
        let mut table = self.tree.table();
        for ino in pinned {
            table.unpin(ino);
        }
    }

    fn wanted(&self, watched: &Watched, (parent, name): &Name, act: Act) -> bool {
        let ino = match act {
            Act::Vanish(ghost) | Act::Replace(ghost) => ghost.ino,
            Act::Appear | Act::Change | Act::Attributes => self.tree.table().child(*parent, name),
        };
        watched.has(*parent) || ino.is_some_and(|ino| watched.has(ino))
    }

    /// Opens a directory of the mount; `None` if the kernel has forgotten it: then nobody watches it.
    fn open(&self, root: &OwnedFd, ino: u64) -> nix::Result<Option<OwnedFd>> {
        let trail = {
            let table = self.tree.table();
            if !table.is_given(ino) {
                return Ok(None);
            }
            table.trail(ino)
        };
        let inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(inside);
        openat2(root, OsStr::from_bytes(&trail), how).map(Some)
    }

    fn act(&mut self, root: &OwnedFd, name: &Name, act: Act) -> nix::Result<()> {
        if self.directory.as_ref().is_none_or(|(ino, _)| *ino != name.0) {
            self.directory = self.open(root, name.0)?.map(|directory| (name.0, directory));
        }
        let Some((_, directory)) = &self.directory else { return Ok(()) };
        let now = self.tree.shown(name.0, &name.1).map_err(|_reason| Errno::EIO)?;
        match (act, now) {
            (Act::Vanish(ghost) | Act::Replace(ghost), None) => {
                self.vanish(directory, name, ghost.kind, Expected::Removing(ghost))
            }
            (Act::Replace(ghost), Some(now)) => {
                // One of both may be known already.
                let ended = self.vanish(directory, name, ghost.kind, Expected::Replacing(ghost));
                self.appear(directory, name, now).and(ended)
            }
            (Act::Appear, Some(now)) => self.appear(directory, name, now),
            (Act::Change, Some(Type::File)) => self.change(directory, name),
            (Act::Change | Act::Attributes, Some(_)) => self.touch(directory, name),
            // It is another one meanwhile, of which more will be told.
            (Act::Vanish(_), Some(_)) | (Act::Appear | Act::Change | Act::Attributes, None) => Ok(()),
        }
    }

    fn appear(&self, directory: &OwnedFd, name: &Name, kind: Type) -> nix::Result<()> {
        match self.make(directory, name, kind) {
            // Someone looked it up before.
            Err(Errno::EEXIST) => {
                self.forget(name);
                match self.make(directory, name, kind) {
                    Err(Errno::EEXIST) if kind == Type::File => self.write(directory, name),
                    made => made,
                }
            }
            made => made,
        }
    }

    fn make(&self, directory: &OwnedFd, name: &Name, kind: Type) -> nix::Result<()> {
        self.tree.replay.expect(name, Expected::Making(kind));
        let path = OsStr::from_bytes(&name.1);
        match kind {
            Type::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let file = openat(directory, path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                ftruncate(file.as_fd(), self.size(name))
            }
            Type::Directory => mkdirat(directory, path, Mode::S_IRWXU),
            Type::Symlink => symlinkat(OsStr::new("elsewhere"), directory, path),
        }
    }

    fn vanish(&self, directory: &OwnedFd, name: &Name, kind: Type, expected: Expected) -> nix::Result<()> {
        self.tree.replay.expect(name, expected);
        let how = if kind == Type::Directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(directory, OsStr::from_bytes(&name.1), how)
    }

    fn change(&self, directory: &OwnedFd, name: &Name) -> nix::Result<()> {
        match self.write(directory, name) {
            // Its permissions keep even its owner from writing it: as programs do then, it is made anew.
            Err(Errno::EACCES) => {
                self.forget(name);
                self.make(directory, name, Type::File)
            }
            written => written,
        }
    }

    fn write(&self, directory: &OwnedFd, name: &Name) -> nix::Result<()> {
        self.tree.replay.expect(name, Expected::Touching);
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = openat(directory, OsStr::from_bytes(&name.1), flags, Mode::empty())?;
        ftruncate(file.as_fd(), self.size(name))
    }

    fn touch(&self, directory: &OwnedFd, name: &Name) -> nix::Result<()> {
        self.tree.replay.expect(name, Expected::Touching);
        let now = TimeSpec::new(0, 0);
        utimensat(directory, OsStr::from_bytes(&name.1), &now, &now, UtimensatFlags::NoFollowSymlink)
    }

    fn directories(&self, root: &OwnedFd, watched: &Watched, directories: BTreeSet<u64>) -> nix::Result<()> {
        for ino in directories.into_iter().filter(|ino| watched.has(*ino)) {
            if !self.tree.replay.is_on() {
                break;
            }
            if let Some(directory) = self.open(root, ino)? {
                self.touch(&directory, &(ino, Box::from(&b"."[..])))?;
            }
        }
        Ok(())
    }

    /// Has the kernel ask for a name again.
    fn forget(&self, (parent, name): &Name) {
        if let Err(error) = self.notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)) {
            tracing::trace!(target: "fs", %error, "the kernel did not take a notice");
        }
    }

    /// A file's size, so that a call that sets it changes nothing.
    fn size(&self, (parent, name): &Name) -> i64 {
        let ino = self.tree.table().child(*parent, name);
        let size = ino.and_then(|ino| self.tree.attr(ino).ok()).map_or(0, |attr| attr.size);
        i64::try_from(size).unwrap_or(0)
    }
}

/// What the thread's calls are answered. Whatever it did not say before is refused.
impl Tree {
    /// What a name leads to now, whether or not the kernel knows.
    fn shown(&self, parent: u64, name: &[u8]) -> Answer<Option<Type>> {
        let Ok(directory) = self.table().see(parent) else { return Ok(None) };
        if !directory.attached {
            return Ok(None);
        }
        match directory.place {
            Place::Keys(store) | Place::Key(store) => Ok(self.target(&*self.kv(&store)?, &directory, name)?.kind),
            _ => Ok(self.fixed(&directory, name)?.map(|(_, kind, _)| kind)),
        }
    }

    /// A name that is about to appear leads to nothing yet, one that is about to vanish to what it led to.
    pub(crate) fn replayed_lookup(&self, parent: u64, name: &[u8]) -> Answer<Found> {
        let ghost = match self.replay.expected(parent, name).or_else(|| self.replay.removed(parent, name)) {
            Some(Expected::Making(_)) => return Ok(Found::Nothing(NONE)),
            Some(Expected::Removing(ghost)) if self.shown(parent, name)?.is_none() => ghost,
            Some(Expected::Replacing(ghost)) => ghost,
            Some(Expected::Removing(_) | Expected::Touching) | None => match self.lookup(parent, name) {
                Ok(Found::Nothing(_)) => {
                    // It may be gone since a moment ago, and its removal be replayed after what is below it.
                    let known = self.table().child(parent, name);
                    let Some(ino) = known else { return Ok(Found::Nothing(NONE)) };
                    Ghost { ino: Some(ino), kind: self.table().see(ino)?.kind }
                }
                found => return found,
            },
        };
        let ino = {
            // Under one lock: the kernel may be about to forget it.
            let mut table = self.table();
            let known = ghost.ino.filter(|ino| table.place(*ino).is_some());
            let ino = known.unwrap_or_else(|| GHOSTS.fetch_add(1, Ordering::Relaxed));
            table.given(ino);
            ino
        };
        let mode = if ghost.kind == Type::Directory { 0o755 } else { 0o644 };
        Ok(Found::This(Attr { ino, kind: ghost.kind, mode, size: 0, mtime: self.since }, NONE))
    }

    /// The attributes of a file. A directory that is gone stands until all that was in it is told to be gone: before each removal
    /// in it the kernel asks who may write to it.
    pub(crate) fn replayed_attr(&self, ino: u64) -> Answer<Attr> {
        let gone = match self.attr(ino) {
            Ok(attr) => return Ok(attr),
            Err(gone) => gone,
        };
        let seen = self.table().see(ino)?;
        if seen.kind != Type::Directory || !matches!(seen.place, Place::Key(_)) {
            return Err(gone);
        }
        Ok(Attr { ino, kind: Type::Directory, mode: 0o755, size: 0, mtime: self.since })
    }

    /// Makes what is there already.
    pub(crate) fn replayed_making(&self, parent: u64, name: &[u8], kind: Type) -> Answer<Attr> {
        if self.replay.expected(parent, name) != Some(Expected::Making(kind)) {
            return Err(errno::INVALID);
        }
        match self.lookup(parent, name)? {
            Found::This(attr, _) if attr.kind == kind => Ok(attr),
            Found::This(attr, _) => {
                self.table().forget(attr.ino, 1);
                Err(errno::MISSING)
            }
            Found::Nothing(_) => Err(errno::MISSING),
        }
    }

    /// Removes what is gone already; what is being written here meanwhile is not.
    pub(crate) fn replayed_removing(&self, parent: u64, name: &[u8]) -> Answer<()> {
        let gone = match self.replay.expected(parent, name) {
            Some(Expected::Removing(_)) => self.shown(parent, name)?.is_none(),
            Some(Expected::Replacing(_)) => {
                let table = self.table();
                let draft = table.child(parent, name).and_then(|ino| table.draft(ino));
                Self::shown_draft(draft.as_ref()).is_none()
            }
            Some(Expected::Making(_) | Expected::Touching) | None => return Err(errno::INVALID),
        };
        if gone { Ok(()) } else { Err(errno::MISSING) }
    }

    /// An opening through which nothing is read and written.
    pub(crate) fn replayed_opening(&self) -> Open {
        Open { handle: self.hold(Handle::Replay), caching: Caching::KeepUnflushed }
    }
}
