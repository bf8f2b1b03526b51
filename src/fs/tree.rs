//! The mount's tree: what a name leads to, and what is open. Knows nothing of the kernel's interface.
//!
//! Locks, in the order in which they may be taken: a draft's `publishing`, `names`, `inodes`, a draft's shape.
//! `inodes` and the shapes are held for work in memory (and the page cache) only, so that looking never waits for
//! the disk; only what makes and publishes names takes the first two.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::announce::Notice;
use super::draft::Draft;
use super::errno::{self, Answer};
use super::inodes::{Inodes, ROOT, Seen};
use super::keys::FileHandle;
use super::listing::Listing;
use super::place::{Attr, Place, Type};
use super::waiting::Waiting;
use super::{Sources, chat, entries, heads, history, keys, members, past, payloads, readme, status};
use crate::clock;
use crate::ids::StoreId;
use crate::replication::log::{Origin, Receipt};
use crate::stores::Registry;
use crate::stores::chat::Form;
use crate::stores::kv::{Kv, Op};

/// How long the kernel may keep what it was told, unless it is told otherwise.
pub(crate) const LONG: Duration = Duration::from_secs(24 * 60 * 60);
/// For what changes without our saying so.
pub(crate) const NONE: Duration = Duration::ZERO;

/// What a name leads to, and how long that may be believed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    /// To this. The kernel was given it once more.
    This(Attr, Duration),
    /// To nothing.
    Nothing(Duration),
}

/// Something open.
#[derive(Debug)]
pub(crate) enum Handle {
    File(FileHandle),
    Directory(Mutex<Listing>),
    /// A generated file, as it was when it was opened.
    Text(Vec<u8>),
    /// A large value.
    Blob(std::fs::File),
    /// What failed last.
    Why(super::why::Reader),
    /// A store's log.
    Entries(StoreId),
    /// A reader of what changes.
    Changes(u64),
    /// A version of a key.
    Version(past::VersionHandle),
    Room(chat::RoomHandle),
    Staged(super::tx::StagedHandle),
    /// What is replayed for watchers.
    Replay,
}

/// The mount's tree. See the module.
pub(crate) struct Tree {
    pub(crate) sources: Sources,
    pub(crate) owner: (u32, u32),
    /// When it was mounted, in nanoseconds since the Unix epoch: the mtime of what has none of its own.
    pub(crate) since: i64,
    pub(crate) inodes: Mutex<Inodes>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    /// Held for writing while names change, for reading while a path is found and an entry made of it.
    pub(crate) names: RwLock<()>,
    pub(crate) waiting: Waiting,
    pub(crate) removals: super::removals::Removals,
    pub(crate) keeper: super::keeper::Keeper,
    pub(crate) space: keys::Space,
    pub(crate) busy: super::handles::Busy,
    pub(crate) calls: super::pool::Calls,
    pub(crate) rooms: super::rooms::Rooms,
    pub(crate) replay: super::replay::Replay,
    pub(crate) missing: super::missing::Missing,
    pub(crate) moments: past::Moments,
    pub(crate) why: super::why::Why,
    pub(crate) changes: Arc<super::changes::Changes>,
    notices: Sender<Notice>,
    /// Which of the process's mounts it is.
    number: u64,
}

static MOUNTS: AtomicU64 = AtomicU64::new(0);

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tree {
    pub(crate) fn new(sources: Sources, owner: (u32, u32), notices: Sender<Notice>) -> Self {
        let space = keys::Space::new(&sources.drafts);
        Self {
            sources,
            owner,
            since: clock::nanos(),
            inodes: Mutex::new(Inodes::new()),
            handles: Mutex::default(),
            next: AtomicU64::new(1),
            names: RwLock::default(),
            waiting: Waiting::default(),
            removals: super::removals::Removals::default(),
            keeper: super::keeper::Keeper::default(),
            space,
            busy: super::handles::Busy::default(),
            calls: super::pool::Calls::default(),
            rooms: super::rooms::Rooms::default(),
            replay: super::replay::Replay::default(),
            missing: super::missing::Missing::default(),
            moments: past::Moments::default(),
            why: super::why::Why::default(),
            changes: Arc::default(),
            notices,
            number: MOUNTS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Who brings what is written here: the kernel knows it in this mount, and in no other.
    pub(crate) const fn origin(&self) -> Origin {
        Origin::Mount(self.number)
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Inodes> {
        locked(&self.inodes)
    }

    pub(crate) fn drafts(&self) -> &PathBuf {
        &self.sources.drafts
    }

    pub(crate) fn registry(&self) -> Option<Arc<Registry>> {
        self.sources.registry.load_full()
    }

    pub(crate) fn kv(&self, store: &StoreId) -> Answer<Arc<Kv>> {
        let registry = self.registry().ok_or(errno::CLOSED)?;
        registry.kv_by_id(store).ok_or_else(|| {
            // Of what is stale the kernel looks up the path anew: another store may have the name now.
            let is_declared = registry.stores().iter().any(|known| known.id == *store);
            if is_declared { errno::CLOSED } else { errno::STALE }
        })
    }

    /// The kv stores, by name; a damaged one too.
    pub(crate) fn stores(&self) -> Vec<(String, StoreId)> {
        let stores = self.registry().map(|registry| registry.stores()).unwrap_or_default();
        stores.into_iter().filter(|store| store.kind == "kv").map(|store| (store.name, store.id)).collect()
    }

    /// Notes for people that a call on an inode, or on a name in it, failed.
    pub(crate) fn note(&self, call: &str, ino: u64, name: Option<&[u8]>, number: i32, why: &dyn std::fmt::Display) {
        let mut path = self.table().trail(ino);
        if let Some(name) = name {
            path = super::inodes::join(&path, name);
        }
        self.why.note(call, &path, number, why);
    }

    /// Tells the kernel, soon and from another thread.
    pub(crate) fn notify(&self, notice: Notice) {
        // Nobody listens any more while the mount goes away.
        drop(self.notices.send(notice));
    }

    /// Makes one entry of `ops`.
    pub(crate) fn commit(&self, kv: &Kv, ops: Vec<Op>) -> Answer<Receipt> {
        let receipt = kv.submit(ops, self.origin())?;
        self.table().latest.insert(kv.log().store(), receipt);
        Ok(receipt)
    }

    pub(crate) fn hold(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        locked(&self.handles).insert(number, Arc::new(handle));
        number
    }

    pub(crate) fn handle(&self, number: u64) -> Answer<Arc<Handle>> {
        locked(&self.handles).get(&number).cloned().ok_or(errno::INVALID)
    }

    /// The files that are open.
    pub(crate) fn open_files(&self) -> Vec<Arc<Handle>> {
        locked(&self.handles).values().filter(|handle| matches!(***handle, Handle::File(_))).cloned().collect()
    }

    /// All that is open.
    pub(crate) fn all_handles(&self) -> Vec<Arc<Handle>> {
        locked(&self.handles).values().cloned().collect()
    }

    pub(crate) fn let_go(&self, number: u64) -> Option<Arc<Handle>> {
        locked(&self.handles).remove(&number)
    }

    /// What `name` in a directory leads to.
    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Found> {
        let directory = self.table().see(parent)?;
        if name.len() > crate::replication::limits::KEY_COMPONENT {
            return Err(errno::NAME_TOO_LONG);
        }
        if let Place::Keys(store) | Place::Key(store) = directory.place {
            return self.lookup_key(&directory, store, name);
        }
        let Some((place, kind, ttl)) = self.fixed(&directory, name)? else {
            let steady = matches!(directory.place, Place::Root | Place::Stores | Place::Store(_) | Place::Heads);
            return Ok(Found::Nothing(if steady { LONG } else { NONE }));
        };
        let ino = {
            let mut table = self.table();
            let ino = table.enter(parent, name, place, kind);
            table.given(ino);
            ino
        };
        match self.attr(ino) {
            Ok(attr) => Ok(Found::This(attr, ttl)),
            Err(error) => {
                self.table().forget(ino, 1);
                Err(error)
            }
        }
    }

    /// A name outside the stores' keys.
    pub(crate) fn fixed(&self, directory: &Seen, name: &[u8]) -> Answer<Option<(Place, Type, Duration)>> {
        let fixed = |place, kind| Some((place, kind, LONG));
        let store = |name: &[u8]| self.stores().into_iter().find(|(known, _)| known.as_bytes() == name);
        Ok(match directory.place {
            Place::Root => match name {
                b"README" => Some((Place::Readme, Type::File, NONE)),
                b"stores" => fixed(Place::Stores, Type::Directory),
                b"peers" => fixed(Place::Peers, Type::Directory),
                b"chat" => fixed(Place::Chat, Type::Directory),
                b"blobs" => fixed(Place::Blobs, Type::Directory),
                b".heads" => fixed(Place::Heads, Type::Directory),
                b".why" => Some((Place::Why, Type::File, NONE)),
                _ => None,
            },
            Place::Stores => store(name).and_then(|(_, id)| fixed(Place::Store(id), Type::Directory)),
            Place::Store(id) => match name {
                b"keys" => fixed(Place::Keys(id), Type::Directory),
                b".heads" => fixed(Place::Link(id), Type::Symlink),
                b".at" => fixed(Place::Moments(id), Type::Directory),
                b".by" => fixed(Place::Authors(id), Type::Directory),
                b".history" => fixed(Place::History(id), Type::Directory),
                b".status" => Some((Place::Status(id), Type::File, NONE)),
                b".log" => Some((Place::Entries(id), Type::File, NONE)),
                b".watch" => Some((Place::Changes(id), Type::File, NONE)),
                b".tx" => fixed(Place::Txs(id), Type::Directory),
                _ => None,
            },
            Place::Heads => store(name).and_then(|(_, id)| fixed(Place::HeadsOf(id), Type::Directory)),
            Place::HeadsOf(id) | Place::HeadsPath(id) => {
                heads::look(self, directory, id, name)?.map(|(place, kind)| (place, kind, NONE))
            }
            Place::Moments(id) | Place::Authors(id) => {
                past::look_top(self, directory, id, name)?.map(|(place, kind)| (place, kind, NONE))
            }
            Place::Then(id, glass) | Place::Past(id, glass) => {
                past::look(self, directory, (id, glass), name)?.map(|(place, kind)| (place, kind, NONE))
            }
            Place::History(id) | Place::HistoryPath(id) => {
                history::look(self, directory, id, name)?.map(|(place, kind)| (place, kind, NONE))
            }
            Place::Txs(id) | Place::Staged(id) => {
                self.staged_look(directory, id, name)?.map(|(place, kind)| (place, kind, NONE))
            }
            Place::Peers => members::is(self, name).then_some((Place::Peer, Type::Directory, NONE)),
            Place::Peer => {
                let file = members::files(self, directory).into_iter().any(|file| file.as_bytes() == name);
                file.then_some((Place::PeerFile, Type::File, NONE))
            }
            Place::Chat if name == b".json" => fixed(Place::Json, Type::Directory),
            Place::Chat => chat::is(self, name).then_some((Place::Room, Type::File, NONE)),
            Place::Json => chat::is(self, name).then_some((Place::JsonRoom, Type::File, NONE)),
            Place::Blobs => payloads::is(self, name)?.then_some((Place::Blob, Type::File, NONE)),
            Place::Keys(_) | Place::Key(_) => None,
            // A directory that is a head or a version of a key is an empty one: what was in it are other keys.
            Place::Head(_) | Place::Version(_) if directory.kind == Type::Directory => None,
            Place::Readme
            | Place::Why
            | Place::Link(_)
            | Place::Head(_)
            | Place::Version(_)
            | Place::Status(_)
            | Place::Entries(_)
            | Place::Changes(_)
            | Place::TxWhy(_)
            | Place::PeerFile
            | Place::Room
            | Place::JsonRoom
            | Place::Blob => return Err(errno::NOT_DIRECTORY),
        })
    }

    /// The names in a directory outside the stores' keys.
    pub(crate) fn fixed_children(&self, directory: &Seen) -> Answer<Vec<(Vec<u8>, Place, Type)>> {
        let dir = |name: &str, place| (name.as_bytes().to_vec(), place, Type::Directory);
        let stores = || self.stores().into_iter().collect::<BTreeSet<_>>().into_iter();
        Ok(match directory.place {
            Place::Root => vec![
                (b"README".to_vec(), Place::Readme, Type::File),
                dir("blobs", Place::Blobs),
                dir("chat", Place::Chat),
                dir("peers", Place::Peers),
                dir("stores", Place::Stores),
            ],
            Place::Stores => stores().map(|(name, id)| dir(&name, Place::Store(id))).collect(),
            Place::Store(id) => vec![dir("keys", Place::Keys(id))],
            Place::Heads => stores().map(|(name, id)| dir(&name, Place::HeadsOf(id))).collect(),
            Place::HeadsOf(id) | Place::HeadsPath(id) => heads::list(self, directory, id)?,
            Place::Authors(id) => past::names(self, id)?,
            Place::Moments(_) => Vec::new(),
            Place::Txs(id) => self.txs(id),
            Place::Staged(id) => self.staged_children(directory, id)?,
            Place::Peers => members::names(self).iter().map(|name| dir(name, Place::Peer)).collect(),
            Place::Peer => {
                let file = |file: &str| (file.as_bytes().to_vec(), Place::PeerFile, Type::File);
                members::files(self, directory).into_iter().map(file).collect()
            }
            Place::Chat => {
                chat::names(self).into_iter().map(|name| (name.into_bytes(), Place::Room, Type::File)).collect()
            }
            Place::Json => {
                chat::names(self).into_iter().map(|name| (name.into_bytes(), Place::JsonRoom, Type::File)).collect()
            }
            Place::Blobs => payloads::list(self)?,
            Place::Keys(_)
            | Place::Key(_)
            | Place::Then(..)
            | Place::Past(..)
            | Place::History(_)
            | Place::HistoryPath(_) => Vec::new(),
            Place::Head(_) | Place::Version(_) if directory.kind == Type::Directory => Vec::new(),
            Place::Readme
            | Place::Why
            | Place::Link(_)
            | Place::Head(_)
            | Place::Version(_)
            | Place::Status(_)
            | Place::Entries(_)
            | Place::Changes(_)
            | Place::TxWhy(_)
            | Place::PeerFile
            | Place::Room
            | Place::JsonRoom
            | Place::Blob => return Err(errno::NOT_DIRECTORY),
        })
    }

    /// A file's attributes.
    pub(crate) fn attr(&self, ino: u64) -> Answer<Attr> {
        let seen = self.table().see(ino)?;
        let attr = |kind, mode, size: usize| Attr { ino, kind, mode, size: size as u64, mtime: self.since };
        let directory = |mode| Attr { mtime: seen.bump.unwrap_or(self.since), ..attr(Type::Directory, mode, 0) };
        Ok(match seen.place {
            Place::Root | Place::Stores | Place::Store(_) | Place::Heads | Place::Peers | Place::Peer | Place::Chat => {
                directory(0o755)
            }
            Place::HeadsOf(_) | Place::HeadsPath(_) | Place::Keys(_) => directory(0o755),
            Place::Moments(_) | Place::Authors(_) | Place::Then(..) | Place::History(_) | Place::HistoryPath(_) => {
                directory(0o555)
            }
            Place::Past(id, glass) => past::attr(self, &seen, id, glass)?,
            Place::Version(id) => history::attr(self, &seen, id)?,
            Place::Readme => attr(Type::File, 0o444, readme::text(self).len()),
            Place::Link(id) => attr(Type::Symlink, 0o777, self.link(&id)?.len()),
            Place::PeerFile => attr(Type::File, 0o444, members::text(self, &seen)?.len()),
            Place::Json | Place::Blobs => directory(0o555),
            Place::Room => chat::attr(self, &seen, Form::Text)?,
            Place::JsonRoom => chat::attr(self, &seen, Form::Json)?,
            Place::Blob => payloads::attr(self, &seen)?,
            Place::Status(id) => attr(Type::File, 0o444, status::text(self, id)?.len()),
            Place::Entries(id) => entries::attr(self, &seen, id)?,
            Place::Changes(_) => attr(Type::File, 0o444, 0),
            Place::Why => {
                let (size, changed) = self.why.size();
                Attr { mtime: changed.unwrap_or(self.since), ..attr(Type::File, 0o444, size) }
            }
            Place::Head(id) => heads::attr(self, &seen, id)?,
            Place::Txs(_) => directory(0o755),
            Place::Staged(id) => self.staged_attr(&seen, id)?,
            Place::TxWhy(id) => attr(Type::File, 0o444, self.tx_why(&seen, id)?.len()),
            Place::Key(id) => self.key_attr(&seen, id)?,
        })
    }

    fn link(&self, id: &StoreId) -> Answer<Vec<u8>> {
        let name = self.stores().into_iter().find(|(_, store)| store == id).ok_or(errno::MISSING)?.0;
        Ok(format!("../../.heads/{name}").into_bytes())
    }

    /// Where a symbolic link points.
    pub(crate) fn read_link(&self, ino: u64) -> Answer<Vec<u8>> {
        let seen = self.table().see(ino)?;
        match seen.place {
            Place::Link(id) => self.link(&id),
            Place::Key(id) => self.key_target(&seen, id),
            Place::Staged(id) => self.staged_target(&seen, id),
            Place::Head(id) => past::target(self, id, &heads::version(self, &seen, id)?),
            Place::Past(id, glass) => past::target(self, id, &past::version(self, &seen, id, glass)?),
            Place::Version(id) => past::target(self, id, &history::version(self, &seen, id)?),
            Place::Root
            | Place::Readme
            | Place::Why
            | Place::Stores
            | Place::Store(_)
            | Place::Keys(_)
            | Place::Heads
            | Place::HeadsOf(_)
            | Place::HeadsPath(_)
            | Place::Moments(_)
            | Place::Authors(_)
            | Place::Then(..)
            | Place::History(_)
            | Place::HistoryPath(_)
            | Place::Status(_)
            | Place::Entries(_)
            | Place::Changes(_)
            | Place::Txs(_)
            | Place::TxWhy(_)
            | Place::Peers
            | Place::Peer
            | Place::PeerFile
            | Place::Chat
            | Place::Room
            | Place::Json
            | Place::JsonRoom
            | Place::Blobs
            | Place::Blob => Err(errno::INVALID),
        }
    }

    /// Opens a file. `keep`: whether the kernel may keep what it has of its content.
    pub(crate) fn open(&self, ino: u64, flags: i32) -> Answer<Open> {
        let seen = self.table().see(ino)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        let version = |store, head| {
            let handle = Handle::Version(past::VersionHandle::new(store, head));
            Ok(Open { handle: self.hold(handle), caching: Caching::Default })
        };
        let text = |bytes| Ok(Open { handle: self.hold(Handle::Text(bytes)), caching: Caching::Direct });
        match seen.place {
            Place::Key(id) => {
                let handle = self.open_key(&seen, id, flags)?;
                let caching = if writes { Caching::Keep } else { Caching::KeepUnflushed };
                Ok(Open { handle: self.hold(Handle::File(handle)), caching })
            }
            Place::Room => {
                let handle = chat::open(self, &seen, flags, Form::Text)?;
                Ok(Open { handle: self.hold(Handle::Room(handle)), caching: Caching::Direct })
            }
            Place::Staged(id) => self.open_staged(&seen, id, flags),
            place if writes && place.is_past() => Err(errno::PAST),
            _ if writes => Err(errno::GENERATED),
            Place::JsonRoom => {
                let handle = chat::open(self, &seen, flags, Form::Json)?;
                Ok(Open { handle: self.hold(Handle::Room(handle)), caching: Caching::Direct })
            }
            Place::Blob => {
                let handle = Handle::Blob(payloads::open(self, &seen)?);
                Ok(Open { handle: self.hold(handle), caching: Caching::Default })
            }
            Place::Readme => text(readme::text(self)),
            Place::PeerFile => text(members::text(self, &seen)?),
            Place::Status(id) => text(status::text(self, id)?),
            Place::TxWhy(id) => text(self.tx_why(&seen, id)?),
            Place::Why => Ok(Open { handle: self.hold(Handle::Why(self.why.open())), caching: Caching::Direct }),
            Place::Entries(id) => {
                self.kv(&id)?;
                Ok(Open { handle: self.hold(Handle::Entries(id)), caching: Caching::Direct })
            }
            Place::Changes(id) => {
                let handle = Handle::Changes(self.changes.open(id, entries::count(self, &id)?));
                Ok(Open { handle: self.hold(handle), caching: Caching::Stream })
            }
            Place::Head(id) => version(id, heads::version(self, &seen, id)?),
            Place::Past(id, glass) => version(id, past::version(self, &seen, id, glass)?),
            Place::Version(id) => version(id, history::version(self, &seen, id)?),
            Place::Root
            | Place::Stores
            | Place::Store(_)
            | Place::Link(_)
            | Place::Keys(_)
            | Place::Heads
            | Place::HeadsOf(_)
            | Place::HeadsPath(_)
            | Place::Moments(_)
            | Place::Authors(_)
            | Place::Then(..)
            | Place::History(_)
            | Place::HistoryPath(_)
            | Place::Txs(_)
            | Place::Peers
            | Place::Peer
            | Place::Chat
            | Place::Json
            | Place::Blobs => Err(errno::IS_DIRECTORY),
        }
    }

    /// The draft of an inode, if it is to be shown instead of what the store has.
    pub(crate) fn shown_draft(draft: Option<&Arc<Draft>>) -> Option<Arc<Draft>> {
        draft.filter(|draft| draft.shape().shown()).cloned()
    }

    /// The mount's own directories, for telling the kernel of stores that came or went.
    pub(crate) fn store_directories(&self) -> Vec<u64> {
        let table = self.table();
        [&b"stores"[..], b".heads"].iter().filter_map(|name| table.child(ROOT, name)).collect()
    }
}

/// An open file as the kernel should treat it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    pub(crate) handle: u64,
    pub(crate) caching: Caching,
}

/// What the kernel may do with an open file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Keep it until told otherwise.
    Keep,
    /// The same, and closing tells us nothing that we need.
    KeepUnflushed,
    /// Keep it while it is open.
    Default,
    /// Ask each time.
    Direct,
    /// Ask each time, and in no place: what is read is gone.
    Stream,
}
