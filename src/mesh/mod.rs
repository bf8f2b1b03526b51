//! The mesh that this node is in: opened, kept in step with the others, shown, left.

mod addresses;
mod admin;
mod desk;
mod error;
mod follow;
mod forks;
mod founding;
mod leaving;
mod members;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::addresses::Addresses;
pub use self::error::MeshError;
use self::follow::{follow, tell_unconfirmed};
pub use self::founding::{Founded, join, new};
use crate::blobs::Blobs;
use crate::clock::Clock;
use crate::ids::{MeshId, StoreId};
use crate::net::iroh::{Node, Refused};
use crate::net::link::Command;
use crate::replication::driver::{Driver, Host};
use crate::replication::limits;
use crate::replication::log::{Durable, Log};
use crate::replication::membership::{Membership, Role};
use crate::replication::replica::{Identity, Snapshot};
use crate::replication::shelf::Logs;
use crate::stores::{Registry, Repaired};

/// How long replication may take to let go of a store.
const FORGOTTEN: Duration = Duration::from_secs(10);
const TOPIC: &str = "lattice 2026 gossip topic of a store";

/// What a mesh is opened with.
#[derive(Clone)]
pub struct Context {
    /// This node's key.
    pub key: Arc<SigningKey>,
    /// The clock that stamps entries.
    pub clock: Arc<dyn Clock>,
    /// This node on the network.
    pub node: Arc<Node>,
    /// Where large values are.
    pub blobs: Arc<Blobs>,
    /// The directory of meshes: one directory a mesh, named by its id.
    pub meshes: PathBuf,
    /// The name that this node proposes.
    pub name: String,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("meshes", &self.meshes).finish_non_exhaustive()
    }
}

/// The stores, as the driver asks for them.
struct Stores(Arc<Registry>);

impl Logs for Stores {
    fn logs(&self) -> Vec<Arc<Log>> {
        self.0.logs()
    }

    fn log(&self, store: &StoreId) -> Option<Arc<Log>> {
        self.0.log(store)
    }
}

impl Host for Stores {
    fn topic(&self, store: &StoreId) -> Option<[u8; 32]> {
        let root = self.0.root();
        root.is_founded().then(|| {
            let salt = root.salt();
            blake3::Hasher::new_derive_key(TOPIC).update(&salt).update(&store.0).finalize().into()
        })
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed()
    }

    fn outbox(&self, outbox: Arc<dyn Fn(Durable) + Send + Sync>) {
        self.0.outbox(outbox);
    }
}

/// An open mesh.
pub struct Mesh {
    id: MeshId,
    dir: PathBuf,
    node: Arc<Node>,
    clock: Arc<dyn Clock>,
    registry: Arc<Registry>,
    driver: Mutex<Option<Driver>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    commands: mpsc::Sender<Command>,
    blobs: Arc<Blobs>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("id", &self.id).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mesh that is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    /// To be opened.
    Whole(Founded),
    /// Its root store's file is gone: it can't be opened before the node has joined it again.
    Rootless(MeshId),
}

/// The mesh whose directory is in `meshes`, if there is one. A directory that is being made or was left has no id as its name.
///
/// # Errors
/// If the directory can't be read.
pub fn find(meshes: &Path) -> Result<Option<There>, MeshError> {
    let io = |source| MeshError::Io { path: meshes.to_owned(), source };
    for found in std::fs::read_dir(meshes).map_err(io)? {
        let found = found.map_err(io)?;
        if let Some(Ok(id)) = found.file_name().to_str().map(str::parse::<MeshId>) {
            let whole = Registry::root_file(&found.path(), id).exists();
            return Ok(Some(if whole { There::Whole(Founded(id)) } else { There::Rootless(id) }));
        }
    }
    Ok(None)
}

/// What the names of left meshes' directories begin with.
const LEFT: &str = "left-";

/// The directories of meshes that were left.
///
/// # Errors
/// If the directory can't be read.
pub fn left(meshes: &Path) -> Result<Vec<PathBuf>, MeshError> {
    let io = |source| MeshError::Io { path: meshes.to_owned(), source };
    let found: Result<Vec<_>, _> = std::fs::read_dir(meshes).map_err(io)?.collect();
    let found = found.map_err(io)?.into_iter();
    let left = found.filter(|found| found.file_name().to_string_lossy().starts_with(LEFT));
    Ok(left.map(|found| found.path()).collect())
}

impl Mesh {
    /// Opens the mesh in `context.meshes` and starts to keep it in step.
    ///
    /// # Errors
    /// If its root store can't be opened. Another store that can't is shown as damaged.
    pub async fn open(context: Context, id: MeshId) -> Result<Arc<Self>, MeshError> {
        let dir = context.meshes.join(id.to_string());
        let registry = {
            let (dir, context) = (dir.clone(), context.clone());
            blocking(move || Registry::open(&dir, id, None, context.key, context.clock, context.blobs)).await??
        };
        let Context { node, blobs, clock, .. } = context;
        let me = node.id();
        if registry.membership().load().members.iter().any(|(id, member)| *id != me && !member.left) {
            registry.logs().iter().for_each(|log| log.hold(limits::OWN_TOLD));
        }
        node.admit(Some(registry.root().membership().clone()));
        let network = node.network();
        let commands = network.commands.clone();
        let seed = u64::from_be_bytes(*me.0.first_chunk().unwrap_or(&[0; 8]));
        let identity = Identity { me, mesh: id, build: env!("CARGO_PKG_VERSION").to_owned(), seed };
        let stores = Arc::new(Stores(registry.clone()));
        let driver = Driver::start(identity, clock.clone(), network, stores)
            .map_err(|source| MeshError::Io { path: dir.clone(), source })?;
        let mesh = Arc::new(Self {
            id,
            node,
            clock,
            snapshot: driver.watch(),
            driver: Mutex::new(Some(driver)),
            registry,
            commands,
            blobs,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            dir,
        });
        mesh.node.open_desk(Some(mesh.clone()));
        mesh.tasks.spawn(mesh.stop.clone().run_until_cancelled_owned(tell_unconfirmed(mesh.clone())));
        mesh.tasks.spawn(mesh.stop.clone().run_until_cancelled_owned(follow(mesh.clone(), mesh.registry.events())));
        Ok(mesh)
    }

    /// The mesh's id.
    #[must_use]
    pub const fn id(&self) -> MeshId {
        self.id
    }

    /// The mesh's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.registry.root().name()
    }

    /// The stores.
    #[must_use]
    pub const fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// This node's role.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.membership().role(&self.node.id())
    }

    /// How replication stands.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// The same, for waiting until it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    fn membership(&self) -> Arc<Membership> {
        self.registry.root().membership().load_full()
    }

    /// Says so if this node is a member no more.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        let membership = self.membership();
        let me = membership.members.get(&self.node.id());
        let refusing = self.node.refusing();
        let refusing = refusing.borrow();
        let saying = |what: Refused| {
            let members =
                membership.members.iter().filter(|found| refusing.get(found.0) == Some(&what) && !found.1.left);
            members.map(|(_, member)| member.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let forked = saying(Refused::Forked);
        if !forked.is_empty() || me.is_some_and(|member| member.forked) {
            return Some(self.told_of_fork(&forked, me.is_some_and(|member| member.forked)));
        }
        if me.is_some_and(|member| member.removed) {
            return Some(format!(
                "this node was removed from the mesh: nothing comes or goes, and it only reads what is here. An admin can let it in again, \
                 on the admin's node, with 'lattice mesh role {} writer'",
                membership.name(&self.node.id())
            ));
        }
        let names = saying(Refused::NotAMember);
        (!names.is_empty()).then(|| {
            format!(
                "according to {names} this node is no member: nothing comes from there or goes there. It was removed, and an admin can let it \
                 in again, on the admin's node, with 'lattice mesh role {} writer'; or that it joined has not been heard there yet",
                membership.name(&self.node.id())
            )
        })
    }

    /// Makes a store's file here anew: from what is sound in it, and from what the other members have, which is asked for at once.
    /// `None` if there is no such store.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn repair_store(self: &Arc<Self>, id: StoreId) -> Result<Option<Repaired>, MeshError> {
        let (registry, mut snapshot) = (self.registry.clone(), self.watch());
        let Some(withdrawn) = blocking(move || registry.withdraw(&id)).await? else { return Ok(None) };
        // What replication knows of the old file must not be taken for the new one's.
        let forgotten = snapshot.wait_for(|now| !now.stores.contains_key(&id));
        if tokio::time::timeout(FORGOTTEN, forgotten).await.is_err() {
            tracing::warn!(target: "mesh", "replication is slow to let go of a store that is repaired");
        }
        let mesh = self.clone();
        blocking(move || {
            let repaired = mesh.registry.repair(withdrawn)?;
            mesh.release();
            mesh.registry.log(&id).iter().for_each(|log| mesh.fetch_wanted(log));
            Ok(Some(repaired))
        })
        .await?
    }

    /// Closes the mesh: ends its links and makes all of its stores durable. Nothing of it is served any more.
    pub async fn close(&self) {
        self.node.open_desk(None);
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let driver = locked(&self.driver).take();
        let registry = self.registry.clone();
        let closed = blocking(move || {
            if let Some(driver) = driver {
                driver.stop();
            }
            registry.close()
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(target: "mesh", %error, "closing the stores"),
            Err(error) => tracing::error!(target: "mesh", %error, "closing the stores"),
        }
        self.node.admit(None);
    }

    /// Lets this node write again when there is no other member that could have more of its own chain.
    fn release(&self) {
        if !self.is_alone() {
            return;
        }
        for log in self.registry.logs() {
            if let Err(error) = log.abreast() {
                tracing::error!(target: "mesh", %error, "that a lost store is begun anew can't be noted");
            }
        }
    }

    fn is_alone(&self) -> bool {
        let me = self.node.id();
        self.membership().members.iter().all(|(id, member)| *id == me || member.left)
    }

    /// Whether this node began to write without another member having told how far its own chain goes there.
    #[must_use]
    pub fn is_unconfirmed(&self) -> bool {
        self.registry.logs().iter().any(|log| log.is_unconfirmed())
    }
}

/// Runs what blocks off the network's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MeshError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| MeshError::Io { path: PathBuf::new(), source: std::io::Error::other(error) })
}
