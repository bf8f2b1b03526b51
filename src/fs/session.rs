//! Mounting and unmounting.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};

use super::adapter::Adapter;
use super::announce::{self, Notice};
use super::tree::Tree;
use super::{Sources, keeper, mounts, replayer, waiting};
use crate::clock;
use crate::ids::StoreId;

/// How long unmounting waits for calls that are being answered before it ends them.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits at least, and how long calls that wait for a thread must not be seen.
const GRACE: Duration = Duration::from_millis(100);

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is not there.
    #[error("{} does not exist; make it with: mkdir -p {}", .0.display(), .0.display())]
    Missing(PathBuf),
    /// The mount point is something else.
    #[error("{} is not a directory; choose an empty directory to mount on", .0.display())]
    NotDirectory(PathBuf),
    /// Mounting would hide what is in it.
    #[error("{} is not empty; choose an empty directory to mount on", .0.display())]
    NotEmpty(PathBuf),
    /// Another node's mesh is mounted there and answers.
    #[error("another node is mounted on {}; choose another directory, or end that with its own: lattice down", .0.display())]
    AlreadyMounted(PathBuf),
    /// The mount point is another user's.
    #[error("{} is not yours to mount on; choose a directory that you may write", .0.display())]
    NotYours(PathBuf),
    /// The kernel offers no FUSE.
    #[error("/dev/fuse is missing; load the module with: modprobe fuse (in a container: --device /dev/fuse)")]
    NoDevice,
    /// The helper is not installed.
    #[error("fusermount3 is not installed, and only root mounts without it; install the package fuse3")]
    NoHelper,
    /// The system refused.
    #[error("mounting is not allowed here: {0}")]
    NotAllowed(String),
    /// A dead mount is in the way and could not be cleared.
    #[error("{} is a dead mount; clear it with: fusermount3 -uz {}", path.display(), path.display())]
    Dead {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The disk or the system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The mount point or the drafts' directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl MountError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// How to mount.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Let other users of this machine in, as the files' permissions say.
    pub everyone: bool,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// Whether inotify's watchers are told of changes from elsewhere.
    pub inotify: bool,
}

impl Default for Options {
    fn default() -> Self {
        // More threads than cores only add wake-ups, which are what a call on the mount costs.
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { everyone: false, threads: cores.clamp(2, 4), inotify: true }
    }
}

/// A mount. Dropping it unmounts as well, and waits less.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    minor: u64,
    tree: Arc<Tree>,
    notices: Sender<Notice>,
    ended: Receiver<()>,
    herald: Option<JoinHandle<()>>,
    waiter: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
    /// The thread that replays, and what tells that it ended.
    replayer: Option<Receiver<()>>,
}

/// Mounts the mesh on the empty directory `at`. What a dead daemon left mounted there is cleared first.
///
/// # Errors
/// Each with a sentence that says what to do.
pub fn mount(at: &Path, sources: Sources, options: Options) -> Result<Mounted, MountError> {
    let at = mount_point(at)?;
    let drafts = sources.drafts.clone();
    std::fs::create_dir_all(&drafts).map_err(|error| MountError::io(&drafts, error))?;
    let owner = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let (notices, queue) = channel();
    let tree = Arc::new(Tree::new(sources, owner, notices.clone()));
    tree.take_up();
    let adapter = Adapter::new(Arc::clone(&tree)).map_err(|error| MountError::io(&at, error))?;
    let device = mounts::make(&at, options.everyone)?;
    let minor = mounts::uppermost(&at).map_err(|error| MountError::io(&at, error))?.map_or(0, |entry| entry.minor);
    serve(&at, minor, tree, adapter, device, options, (notices, queue)).inspect_err(|_| {
        if let Err(error) = mounts::detach(&at, minor) {
            tracing::error!(target: "fs", at = %at.display(), %error, "a mount that nobody answers stays behind");
        }
    })
}

fn serve(
    at: &Path,
    minor: u64,
    tree: Arc<Tree>,
    adapter: Adapter,
    device: std::os::fd::OwnedFd,
    options: Options,
    (notices, queue): (Sender<Notice>, Receiver<Notice>),
) -> Result<Mounted, MountError> {
    let io = |error| MountError::io(at, error);
    let mut config = Config::default();
    config.acl = if options.everyone { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    let stores = tree.stores().into_iter().collect();
    let session = Session::from_fd(adapter, device, config.acl, config).map_err(io)?;
    let background = session.spawn().map_err(io)?;
    let notifier = background.notifier();
    let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let replayer = options.inotify.then(|| {
        let (at, tree, notifier) = (at.to_owned(), Arc::clone(&tree), notifier.clone());
        let (end, ended) = channel();
        let replay = move || {
            replayer::run(&tree, &at, minor, &notifier);
            // Nobody waits any more if it took too long.
            end.send(()).ok();
        };
        named("fs-replay").spawn(replay).map(|_thread| ended)
    });
    let replayer = replayer.transpose().map_err(io)?;
    let (end, ended) = channel();
    let _session = named("fs-session").spawn(move || {
        if let Err(error) = background.join() {
            tracing::warn!(target: "fs", %error, "the mount ended");
        }
        // Nobody waits any more if the process is ending.
        end.send(()).ok();
    });
    let herald = {
        let (tree, notices) = (Arc::clone(&tree), notices.clone());
        named("fs-announce").spawn(move || announce::run(&tree, &notifier, (&queue, &notices), stores)).map_err(io)?
    };
    let waiter = {
        let tree = Arc::clone(&tree);
        named("fs-waiting").spawn(move || waiting::run(&tree)).map_err(io)?
    };
    let changes = Arc::clone(&tree.changes);
    // Ends with the mount's end: nobody has to wait for that.
    drop(named("fs-changes").spawn(move || changes.run()).map_err(io)?);
    let keeper = {
        let tree = Arc::clone(&tree);
        named("fs-keeper").spawn(move || keeper::run(&tree)).map_err(io)?
    };
    tracing::info!(target: "fs", at = %at.display(), "mounted");
    let (herald, waiter, keeper) = (Some(herald), Some(waiter), Some(keeper));
    Ok(Mounted { at: at.to_owned(), minor, tree, notices, ended, herald, waiter, keeper, replayer })
}

/// The mount point, fit to be mounted on.
fn mount_point(at: &Path) -> Result<PathBuf, MountError> {
    let absolute = std::path::absolute(at).map_err(|error| MountError::io(at, error))?;
    if dead(&absolute) {
        clear(&absolute)?;
    }
    let path = absolute.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => MountError::Missing(absolute.clone()),
        _ if error.raw_os_error() == Some(libc::ENOTDIR) => MountError::NotDirectory(absolute.clone()),
        _ => MountError::io(&absolute, error),
    })?;
    if !path.is_dir() {
        return Err(MountError::NotDirectory(path));
    }
    let entry = mounts::uppermost(&path).map_err(|error| MountError::io(&path, error))?;
    if entry.is_some_and(|entry| entry.kind == mounts::TYPE) {
        return Err(MountError::AlreadyMounted(path));
    }
    let mut inside = std::fs::read_dir(&path).map_err(|error| MountError::io(&path, error))?;
    if inside.next().is_some() {
        return Err(MountError::NotEmpty(path));
    }
    Ok(path)
}

/// Whether `path` leads to the mount at `at`, which has no links in it.
#[must_use]
pub fn same_place(at: &Path, path: &Path) -> bool {
    path == at || path.canonicalize().is_ok_and(|path| path == at)
}

/// Whether nobody answers for a mount there any more. Attributes may still come from the kernel's cache, the room on the
/// disk does not. Who answers too late is alive.
fn dead(at: &Path) -> bool {
    let (answer, answers) = channel();
    let at = at.to_owned();
    let asked = std::thread::Builder::new().name("fs-probe".into()).spawn(move || {
        let dead = nix::sys::statvfs::statvfs(&at) == Err(nix::errno::Errno::ENOTCONN);
        // Nobody waits any more if it took too long.
        answer.send(dead).ok();
    });
    asked.is_ok() && answers.recv_timeout(PATIENCE).unwrap_or(false)
}

/// Clears a mount of ours whose daemon is gone.
fn clear(at: &Path) -> Result<(), MountError> {
    let dead = |source| MountError::Dead { path: at.to_owned(), source };
    // The last part can't be resolved while it is dead; what is above it can.
    let at = match (at.parent().map(Path::canonicalize), at.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => at.to_owned(),
    };
    match mounts::uppermost(&at).map_err(dead)? {
        Some(entry) if entry.kind == mounts::TYPE => {
            tracing::info!(target: "fs", at = %at.display(), "clearing the mount of a daemon that is gone");
            mounts::detach(&at, entry.minor).map_err(dead)
        }
        _ => Err(dead(std::io::Error::from_raw_os_error(libc::ENOTCONN))),
    }
}

impl Mounted {
    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Whether it still is: someone else may have unmounted it.
    #[must_use]
    pub fn alive(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }

    /// What makes versions of all that was done to a store through this mount and waits for what usually follows.
    pub fn settler(&self) -> impl Fn(StoreId) + Send + use<> {
        let tree = Arc::clone(&self.tree);
        move |store| tree.settle_store(store)
    }

    /// Publishes what waits, takes the mount away, at once even if someone sits in it, and ends the calls that are
    /// still being answered after a moment. What is still open is put aside. To be called before the stores are closed.
    ///
    /// # Errors
    /// If the system does not let it go.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.end()
    }

    /// Waits until the kernel is done with the mount, or nothing is being answered: someone may sit in it for ever.
    fn end_session(&self) {
        let over = |patience| self.ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout);
        let began = clock::monotonic();
        while !over(GRACE) {
            let idle = self.tree.calls.none();
            if idle || clock::monotonic().duration_since(began) > PATIENCE {
                match mounts::abort(self.minor) {
                    Ok(()) if !over(PATIENCE) => tracing::warn!(target: "fs", "the mount's threads did not end"),
                    Ok(()) => {}
                    Err(error) if idle => tracing::debug!(target: "fs", %error, "someone sits in what was mounted"),
                    Err(error) => {
                        tracing::warn!(target: "fs", %error, "calls still being answered end with the daemon")
                    }
                }
                return;
            }
        }
    }

    fn end(&mut self) -> Result<(), MountError> {
        let Some(waiter) = self.waiter.take() else { return Ok(()) };
        self.tree.replay.stop();
        self.tree.changes.end();
        let detached = mounts::detach(&self.at, self.minor).map_err(|error| MountError::io(&self.at, error));
        self.end_session();
        // It was in one call at most, which has ended, or been ended, by now.
        let replayer = self.replayer.take();
        if replayer.is_some_and(|over| over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout)) {
            tracing::warn!(target: "fs", "what tells watchers of changes did not end");
        }
        self.tree.keeper.stop();
        if self.keeper.take().is_some_and(|keeper| keeper.join().is_err()) {
            tracing::error!(target: "fs", "keeping what was being written failed");
        }
        self.tree.waiting.stop();
        if waiter.join().is_err() {
            tracing::error!(target: "fs", "publishing what waited failed");
        }
        for (parent, _) in self.tree.all_whiteouts() {
            // What fails is noted there.
            self.tree.settle_whiteouts(parent).ok();
        }
        self.tree.leave();
        drop(self.notices.send(Notice::Stop));
        if self.herald.take().is_some_and(|herald| herald.join().is_err()) {
            tracing::error!(target: "fs", "announcing failed");
        }
        detached
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(target: "fs", %error, "unmounting");
        }
    }
}
