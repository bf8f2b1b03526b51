//! Which stores are open: those that the root store declares, opened and closed as it says.

mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use tokio::sync::{broadcast, watch};

pub use self::repair::{Repaired, Withdrawn};
use super::chat::{self, Chat};
use super::kv::{self, Kv, Txs};
use super::root::{Declared, Root, nobody};
use crate::blobs::Payloads;
use crate::clock::Clock;
use crate::ids::{MeshId, StoreId};
use crate::replication::database::DatabaseError;
use crate::replication::entry::Entry;
use crate::replication::log::{Durable, Event, Log, Parts, SubmitError, events};
use crate::replication::machine::StateMachine;
use crate::replication::membership::SharedMembership;
use crate::replication::verify::verify;

/// The page cache of the root store, in bytes.
const ROOT_CACHE: usize = 4 << 20;
/// The page cache of every other store, in bytes.
const CACHE: usize = 32 << 20;

/// Why the stores of a mesh can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The directory can't be made.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The entry that was given as the mesh's first does not found it.
    #[error("this is not the first entry of mesh {0}")]
    Genesis(MeshId),
    /// The root store.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The root store refused its first entry.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// A store of the mesh, as this node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInfo {
    /// Its id.
    pub id: StoreId,
    /// Its name, unique in the mesh.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Why it is not open here, if it is not.
    pub damaged: Option<String>,
}

/// Takes every entry that became durable, in any store of the mesh. It must not block.
pub type SharedOutbox = Arc<dyn Fn(Durable) + Send + Sync>;

#[derive(Clone)]
enum Handle {
    Kv(Arc<Kv>),
    Chat(Arc<Chat>),
}

impl Handle {
    fn log(&self) -> &Arc<Log> {
        match self {
            Self::Kv(kv) => kv.log(),
            Self::Chat(chat) => chat.log(),
        }
    }
}

#[derive(Clone)]
struct Open {
    declared: Declared,
    handle: Result<Handle, String>,
}

#[derive(Default)]
struct Opening {
    /// Stores that are being repaired: not to be opened.
    withdrawn: BTreeSet<StoreId>,
    outbox: Option<SharedOutbox>,
    closed: bool,
}

/// The stores of a mesh on this node.
pub struct Registry {
    dir: PathBuf,
    root: Arc<Root>,
    key: Arc<SigningKey>,
    clock: Arc<dyn Clock>,
    payloads: Arc<dyn Payloads>,
    events: broadcast::Sender<Arc<Event>>,
    /// Readers take it whole; it is replaced under `opening`'s lock.
    open: ArcSwap<BTreeMap<StoreId, Open>>,
    opening: Mutex<Opening>,
    changed: watch::Sender<u64>,
    txs: Txs,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn check_genesis(mesh: MeshId, genesis: &Entry) -> Result<(), RegistryError> {
    let founds = genesis.hash().0 == mesh.0 && genesis.header().store == StoreId::UNBORN;
    let signed = verify(std::slice::from_ref(genesis)).first() == Some(&true);
    if founds && signed { Ok(()) } else { Err(RegistryError::Genesis(mesh)) }
}

impl Registry {
    /// Opens the root store in `dir` (made if missing) and every store that it declares, each in its own file under
    /// `dir/stores/`; open transactions are in `dir/tx/`. A store whose file is damaged is listed so; it does not stop the others.
    ///
    /// # Errors
    /// If the root store can't be opened, or `genesis` does not found the mesh.
    pub fn open(
        dir: &Path,
        mesh: MeshId,
        genesis: Option<&Entry>,
        key: Arc<SigningKey>,
        clock: Arc<dyn Clock>,
        payloads: Arc<dyn Payloads>,
    ) -> Result<Arc<Self>, RegistryError> {
        if let Some(genesis) = genesis {
            check_genesis(mesh, genesis)?;
        }
        let (txs, dir) = (Txs::open(dir.join("tx")), dir.join("stores"));
        std::fs::create_dir_all(&dir).map_err(|source| RegistryError::Io { path: dir.clone(), source })?;
        let events = events();
        let membership = nobody();
        let parts = Parts {
            store: mesh.root(),
            key: Arc::clone(&key),
            clock: Arc::clone(&clock),
            machine: Arc::new(super::root::Machine::new(Arc::clone(&membership))),
            membership,
            events: events.clone(),
        };
        let root = Arc::new(Root::open(&file(&dir, &mesh.root()), ROOT_CACHE, parts)?);
        if let Some(genesis) = genesis {
            root.log().found(genesis)?;
        }
        let registry = Arc::new(Self {
            dir,
            root,
            key,
            clock,
            payloads,
            events,
            open: ArcSwap::default(),
            opening: Mutex::default(),
            changed: watch::Sender::new(0),
            txs,
        });
        let lost = if genesis.is_none() { registry.lost() } else { Vec::new() };
        registry.refresh();
        for log in lost.iter().filter_map(|id| registry.log(id)) {
            // Of a member that has just joined, too. Where a file was lost, status warns.
            tracing::info!(target: "registry", store = %log.store(), "has no file yet: it comes from a member before anything is written");
            log.regain()?;
        }
        Ok(registry)
    }

    /// The stores that are declared and have no file, in a mesh with others: after a crash right after they were declared, or because
    /// their files were lost with entries of this node in them that the others have.
    fn lost(&self) -> Vec<StoreId> {
        let me = self.root.log().me();
        let membership = self.membership().load();
        if !membership.members.iter().any(|(id, member)| *id != me && !member.left) {
            return Vec::new();
        }
        let declared = self.root.stores().into_iter().map(|declared| declared.id);
        declared.filter(|id| !file(&self.dir, id).exists()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Opening> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the root store of a mesh in `dir` is.
    #[must_use]
    pub fn root_file(dir: &Path, mesh: MeshId) -> PathBuf {
        file(&dir.join("stores"), &mesh.root())
    }

    /// The mesh.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        self.root.mesh()
    }

    /// Where large values are.
    #[must_use]
    pub fn payloads(&self) -> &Arc<dyn Payloads> {
        &self.payloads
    }

    /// The open transactions of the stores of keys.
    #[must_use]
    pub const fn txs(&self) -> &Txs {
        &self.txs
    }

    /// The root store.
    #[must_use]
    pub const fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// Who belongs to the mesh, kept up to date.
    #[must_use]
    pub fn membership(&self) -> &SharedMembership {
        self.root.membership()
    }

    /// Opens what the root store declares and is not open, closes what it no longer declares, takes up new names. To be
    /// called when the root store changed.
    pub fn refresh(&self) {
        let opening = self.lock();
        if opening.closed {
            return;
        }
        let before = self.open.load_full();
        let mut after = BTreeMap::new();
        for declared in self.root.stores() {
            let handle = match before.get(&declared.id) {
                Some(Open { handle: Ok(handle), .. }) => Ok(handle.clone()),
                Some(Open { handle: Err(why), .. }) if opening.withdrawn.contains(&declared.id) => Err(why.clone()),
                Some(Open { handle: Err(_), .. }) | None => self.open_store(&declared, opening.outbox.as_ref()),
            };
            after.insert(declared.id, Open { declared, handle });
        }
        let same = before.len() == after.len()
            && before.values().zip(after.values()).all(|(old, new)| {
                old.declared == new.declared && old.handle.as_ref().err() == new.handle.as_ref().err()
            });
        if same {
            return;
        }
        self.open.store(Arc::new(after));
        let after = self.open.load();
        for (id, open) in before.iter().filter(|(id, _)| !after.contains_key(id)) {
            if let Ok(handle) = &open.handle
                && let Err(error) = handle.log().database().close()
            {
                tracing::error!(target: "registry", store = %id, %error, "closing a deleted store");
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn open_store(&self, declared: &Declared, outbox: Option<&SharedOutbox>) -> Result<Handle, String> {
        let machine: Arc<dyn StateMachine> = match declared.kind.as_str() {
            "kv" => Arc::new(kv::Machine),
            "chat" => Arc::new(chat::Machine),
            kind => return Err(format!("this build knows no stores of type '{kind}'; use a newer lattice")),
        };
        let parts = Parts {
            store: declared.id,
            key: Arc::clone(&self.key),
            clock: Arc::clone(&self.clock),
            machine,
            membership: Arc::clone(self.membership()),
            events: self.events.clone(),
        };
        let log = Log::open(&file(&self.dir, &declared.id), CACHE, parts).map_err(|error| {
            tracing::error!(target: "registry", store = %declared.name, %error, "can't be opened");
            format!("{error}; {}", error.hint())
        })?;
        // What was decided just before a crash.
        log.align().map_err(|error| error.to_string())?;
        let log = Arc::new(log);
        if let Some(outbox) = outbox {
            attach(&log, outbox);
        }
        Ok(match declared.kind.as_str() {
            "chat" => Handle::Chat(Arc::new(Chat::new(log))),
            _ => {
                let kv = Kv::new(log, Arc::clone(&self.payloads));
                self.txs.recover(&kv);
                Handle::Kv(Arc::new(kv))
            }
        })
    }

    /// The mesh's stores but for the root store, by name.
    #[must_use]
    pub fn stores(&self) -> Vec<StoreInfo> {
        let info = |open: &Open| StoreInfo {
            id: open.declared.id,
            name: open.declared.name.clone(),
            kind: open.declared.kind.clone(),
            damaged: open.handle.as_ref().err().cloned(),
        };
        let mut stores: Vec<_> = self.open.load().values().map(info).collect();
        stores.sort_by(|a, b| a.name.cmp(&b.name));
        stores
    }

    /// The open kv store of this name.
    #[must_use]
    pub fn kv(&self, name: &str) -> Option<Arc<Kv>> {
        let open = self.open.load();
        let named = open.values().find(|open| open.declared.name == name)?;
        kv_of(named)
    }

    /// The open kv store of this id.
    #[must_use]
    pub fn kv_by_id(&self, id: &StoreId) -> Option<Arc<Kv>> {
        self.open.load().get(id).and_then(kv_of)
    }

    /// The open chat store that was declared first.
    #[must_use]
    pub fn chat(&self) -> Option<Arc<Chat>> {
        let open = self.open.load();
        let chats = open.values().filter_map(|open| match &open.handle {
            Ok(Handle::Chat(chat)) => Some((open.declared.hlc, open.declared.id, chat)),
            Ok(Handle::Kv(_)) | Err(_) => None,
        });
        chats.min_by_key(|(hlc, id, _)| (*hlc, *id)).map(|(.., chat)| Arc::clone(chat))
    }

    /// The log of an open store, the root store too.
    #[must_use]
    pub fn log(&self, id: &StoreId) -> Option<Arc<Log>> {
        if *id == self.root.log().store() {
            return Some(Arc::clone(self.root.log()));
        }
        self.open.load().get(id).and_then(|open| open.handle.as_ref().ok()).map(|handle| Arc::clone(handle.log()))
    }

    /// The logs of all open stores, the root store's first.
    #[must_use]
    pub fn logs(&self) -> Vec<Arc<Log>> {
        let open = self.open.load();
        let others = open.values().filter_map(|open| open.handle.as_ref().ok()).map(|handle| Arc::clone(handle.log()));
        std::iter::once(Arc::clone(self.root.log())).chain(others).collect()
    }

    /// What is included from now on, in all stores.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Changes when the set of stores or their names do.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Gives every entry that becomes durable to `outbox`: of the stores that are open, and of those opened later.
    pub fn outbox(&self, outbox: SharedOutbox) {
        let mut opening = self.lock();
        for log in self.logs() {
            attach(&log, &outbox);
        }
        opening.outbox = Some(outbox);
    }

    /// Commits what is staged in all stores and stops their threads. No store opens any more.
    ///
    /// # Errors
    /// The first commit that failed; the others were still made.
    pub fn close(&self) -> Result<(), DatabaseError> {
        self.lock().closed = true;
        let mut result = Ok(());
        for log in self.logs() {
            let closed = log.database().close();
            if result.is_ok() {
                result = closed;
            }
        }
        result
    }
}

fn kv_of(open: &Open) -> Option<Arc<Kv>> {
    match &open.handle {
        Ok(Handle::Kv(kv)) => Some(Arc::clone(kv)),
        Ok(Handle::Chat(_)) | Err(_) => None,
    }
}

fn attach(log: &Log, outbox: &SharedOutbox) {
    let outbox = Arc::clone(outbox);
    log.outbox(Box::new(move |durable| outbox(durable)));
}

fn file(dir: &Path, store: &StoreId) -> PathBuf {
    dir.join(format!("{store}.redb"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::log::Origin;
    use crate::stores::kv::{Kind, Op, Value};
    use crate::stores::root::{self, genesis};
    use crate::stores::testing::{Shelf, clock, key};

    fn open(dir: &Path, mesh: MeshId, genesis: Option<&Entry>) -> Result<Arc<Registry>, RegistryError> {
        Registry::open(dir, mesh, genesis, key(0), clock(), Arc::new(Shelf::default()))
    }

    fn founded(dir: &Path) -> (MeshId, Arc<Registry>) {
        let (mesh, first) = genesis(&key(0), &*clock(), "mesh", "anna").unwrap();
        (mesh, open(dir, mesh, Some(&first)).unwrap())
    }

    fn put(kv: &Kv) {
        let value = Value::Bytes(b"x".to_vec());
        let op = Op::Put { path: b"k".to_vec(), supersedes: vec![], kind: Kind::File, mode: 0o644, mtime: 0, value };
        kv.submit(vec![op], Origin::Local).unwrap();
    }

    #[test]
    fn a_store_opens_when_it_is_declared_and_closes_when_it_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (_, registry) = founded(dir.path());
        assert!(registry.kv("home").is_some());
        assert!(registry.chat().is_some());
        let changed = registry.changed();
        let create = root::Op::CreateStore { name: "work".into(), kind: "kv".into() };
        registry.root().submit(&[create], Origin::Local).unwrap();
        registry.refresh();
        assert!(changed.has_changed().unwrap());
        let work = registry.kv("work").unwrap();
        put(&work);
        let delete = root::Op::DeleteStore { id: work.log().store() };
        registry.root().submit(&[delete], Origin::Local).unwrap();
        registry.refresh();
        assert!(registry.kv("work").is_none());
        assert_eq!(registry.logs().len(), 3);
    }

    #[test]
    fn what_is_staged_for_a_deleted_store_is_left_until_it_is_purged() {
        let dir = tempfile::tempdir().unwrap();
        let (_, registry) = founded(dir.path());
        let create = root::Op::CreateStore { name: "work".into(), kind: "kv".into() };
        registry.root().submit(&[create], Origin::Local).unwrap();
        registry.refresh();
        let work = registry.kv("work").unwrap();
        registry.txs().begin(&work, b"t").unwrap();
        let id = work.log().store();
        registry.root().submit(&[root::Op::DeleteStore { id }], Origin::Local).unwrap();
        registry.refresh();
        let staged = registry.txs().of_store(&id);
        let found = registry.leftovers(false).unwrap();
        assert!(found.contains(&(staged.clone(), "work".into())), "{found:?}");
        registry.leftovers(true).unwrap();
        assert!(!staged.exists());
        assert!(registry.leftovers(false).unwrap().is_empty());
    }

    #[test]
    fn what_was_written_is_there_after_closing_and_opening() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, registry) = founded(dir.path());
        put(&registry.kv("home").unwrap());
        let stores = registry.stores();
        registry.close().unwrap();
        drop(registry);
        let registry = open(dir.path(), mesh, None).unwrap();
        assert_eq!(registry.stores(), stores);
        assert_eq!(registry.root().name(), "mesh");
        assert!(registry.kv("home").unwrap().heads(b"k").unwrap().is_some());
    }

    #[test]
    fn a_damaged_store_is_listed_and_stops_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, registry) = founded(dir.path());
        let home = registry.kv("home").unwrap().log().store();
        registry.close().unwrap();
        drop(registry);
        std::fs::write(file(&dir.path().join("stores"), &home), vec![7; 8192]).unwrap();
        let registry = open(dir.path(), mesh, None).unwrap();
        assert!(registry.kv("home").is_none());
        assert!(registry.chat().is_some());
        let damaged: Vec<_> = registry.stores().into_iter().filter(|store| store.damaged.is_some()).collect();
        assert_eq!(damaged.len(), 1);
        assert_eq!(damaged[0].id, home);
    }

    #[test]
    fn an_entry_that_does_not_found_the_mesh_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_, first) = genesis(&key(0), &*clock(), "mesh", "anna").unwrap();
        assert!(matches!(open(dir.path(), MeshId([1; 32]), Some(&first)), Err(RegistryError::Genesis(_))));
    }

    #[test]
    fn durable_entries_of_every_store_reach_the_outbox() {
        let dir = tempfile::tempdir().unwrap();
        let (_, registry) = founded(dir.path());
        let (sender, receiver) = std::sync::mpsc::channel();
        registry.outbox(Arc::new(move |durable: Durable| sender.send(durable.store).unwrap()));
        let create = root::Op::CreateStore { name: "work".into(), kind: "kv".into() };
        registry.root().submit(&[create], Origin::Local).unwrap();
        registry.refresh();
        let work = registry.kv("work").unwrap();
        put(&work);
        registry.close().unwrap();
        let stores: std::collections::BTreeSet<_> = receiver.try_iter().collect();
        assert!(stores.contains(&registry.root().log().store()));
        assert!(stores.contains(&work.log().store()));
    }
}
