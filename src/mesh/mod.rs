//! The mesh that this node is in: opened, kept in step with the others, shown, left.

mod addresses;
mod desk;
mod founding;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::addresses::Addresses;
pub use self::founding::{Founded, join, new};
use crate::blobs::{BlobError, Blobs};
use crate::clock::Clock;
use crate::ids::{MeshId, NodeId, StoreId};
use crate::net::iroh::Node;
use crate::net::join::JoinError;
use crate::net::link::Command;
use crate::net::ticket::{Contact, Secret, Ticket, TicketError};
use crate::peers::{Peer, Peers, Proof};
use crate::replication::database::DatabaseError;
use crate::replication::driver::{Driver, Host};
use crate::replication::entry::{Fork, Header};
use crate::replication::limits;
use crate::replication::log::{Durable, Event, Log, Origin};
use crate::replication::membership::{Cut, Membership, Role};
use crate::replication::replica::{Identity, Snapshot};
use crate::replication::shelf::Logs;
use crate::stores::root::{self, GenesisError, Op, RootError};
use crate::stores::{Registry, RegistryError, Repaired};

/// How often the addresses at which members were reached are kept.
const KEEP_ADDRESSES: Duration = Duration::from_secs(10);
/// How long replication may take to let go of a store.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// How long a node that goes on under another key waits for another member to hear of it.
const HANDOVER: Duration = Duration::from_secs(15);
/// How long leaving waits for another member to hear of it.
const FAREWELL: Duration = Duration::from_secs(3);
const TOPIC: &str = "lattice 2026 gossip topic of a store";

/// What can go wrong with a mesh.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A store's file.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The stores.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An operation on the mesh.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Founding.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The token does not read.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Joining.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// What a member sent on joining is not the mesh of the token.
    #[error("what the inviting node sent is not the mesh that the token names: {0}")]
    Welcome(String),
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Large values.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// This node's role does not allow it.
    #[error("only an admin may {what}; this node is a {role}")]
    NotAllowed {
        /// What was to be done.
        what: &'static str,
        /// This node's role.
        role: &'static str,
    },
    /// The new key is known to nobody else.
    #[error(
        "another member must hear of the new key before this node goes on under it, and none has: try again when one is online"
    )]
    Unheard,
    /// No such store.
    #[error("there is no store '{0}'")]
    NoStore(String),
    /// The name is taken.
    #[error("there is a store '{0}' already")]
    StoreExists(String),
    /// Not a store's type.
    #[error("'{0}' is not a type of store: kv or chat")]
    Kind(String),
    /// The mesh has one chat store.
    #[error("the mesh has its chat store '{0}' already")]
    ChatExists(String),
}

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

    /// How many places in authors' chains were seen to be forked, in all stores.
    #[must_use]
    pub fn forks(&self) -> u64 {
        let count = |log: &Arc<Log>| match log.forks() {
            Ok(forks) => forks.len() as u64,
            Err(error) => {
                tracing::error!(target: "mesh", %error, "the proofs of forks can't be read");
                0
            }
        };
        self.registry.logs().iter().map(count).sum()
    }

    /// The names of the members, present and past, who are proven to have forked their chain.
    #[must_use]
    pub fn forkers(&self) -> Vec<String> {
        self.membership().members.values().filter(|member| member.forked).map(|member| member.name.clone()).collect()
    }

    /// The proofs that are here against others and that nobody has recorded yet.
    fn charges(&self) -> Result<BTreeMap<NodeId, Fork>, DatabaseError> {
        let membership = self.membership();
        let me = self.node.id();
        let free = |node: &NodeId| *node != me && membership.members.get(node).is_some_and(|member| !member.forked);
        let mut charges = BTreeMap::new();
        for log in self.registry.logs() {
            charges.extend(log.proofs()?.into_iter().filter(|(node, _)| free(node)));
        }
        Ok(charges)
    }

    /// Records the proofs against those who signed two entries for one place: with that their membership ends.
    async fn charge(self: &Arc<Self>) -> Result<(), MeshError> {
        if !self.membership().admits(&self.node.id()) {
            return Ok(());
        }
        let mesh = self.clone();
        for (node, fork) in blocking(move || mesh.charges()).await?? {
            tracing::warn!(target: "mesh", node = %node.short(), "signed two entries for one place: it is removed for good");
            let cut = self.cut(&node)?;
            self.submit("remove members", Op::Ban { fork, cut, salt: rand::random() }).await?;
        }
        Ok(())
    }

    fn membership(&self) -> Arc<Membership> {
        self.registry.root().membership().load_full()
    }

    /// Submits an operation on the mesh; returns when it is durable.
    async fn submit(self: &Arc<Self>, what: &'static str, op: Op) -> Result<(), MeshError> {
        if self.role() != Some(Role::Admin) && !matches!(op, Op::Leave | Op::Ban { .. } | Op::Succeed(_)) {
            let role = self.role().map_or("stranger", Role::name);
            return Err(MeshError::NotAllowed { what, role });
        }
        let mesh = self.clone();
        blocking(move || {
            let root = mesh.registry.root();
            let receipt = root.submit(&[op], Origin::Local)?;
            mesh.registry.refresh();
            Ok(root.log().wait(receipt.staged)?)
        })
        .await?
    }

    /// Makes an invite for `uses` nodes, valid for `expires`, and gives its token: one line of text.
    ///
    /// # Errors
    /// If this node is no admin, or the disk fails.
    pub async fn invite(self: &Arc<Self>, role: Role, expires: Duration, uses: u32) -> Result<String, MeshError> {
        let secret = Secret::generate();
        let expires = self.clock.now().after(expires);
        let id = root::invite_id(&secret.invite());
        self.submit("invite", Op::Invite { id, role, expires, uses }).await?;
        let hosts = self.contacts();
        Ok(Ticket { mesh: self.id, secret, hosts, relays: self.node.relays() }.to_string())
    }

    /// How far this node has another's entries, in each store.
    fn cut(&self, node: &NodeId) -> Result<Cut, DatabaseError> {
        let mut cut = Cut::new();
        for log in self.registry.logs() {
            let view = log.database().view()?;
            cut.extend(log.tip(&view, node)?.map(|tip| (log.store(), (tip.seq, tip.hash))));
        }
        Ok(cut)
    }

    /// Ends a node's membership: what this node has of its entries stays, and nothing else of it counts. Returns when that is
    /// durable here.
    ///
    /// # Errors
    /// If this node is no admin, there is no such member, or the disk fails.
    pub async fn revoke(self: &Arc<Self>, node: NodeId) -> Result<(), MeshError> {
        let cut = self.cut(&node)?;
        self.submit("remove members", Op::Revoke { node, cut, salt: rand::random() }).await
    }

    /// Gives a member another role, or lets one in again that is none any more. Returns when that is durable here.
    ///
    /// # Errors
    /// If this node is no admin, there is no such member, or the disk fails.
    pub async fn set_role(self: &Arc<Self>, node: NodeId, role: Role) -> Result<(), MeshError> {
        let op = match self.membership().members.get(&node) {
            Some(member) if member.left => Op::AddMember { node, name: member.name.clone(), role },
            Some(_) | None => Op::SetRole { node, role, cut: self.cut(&node)? },
        };
        self.submit("give roles", op).await
    }

    /// Says so if this node is a member no more.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        let membership = self.membership();
        let me = membership.members.get(&self.node.id());
        if me.is_some_and(|member| member.forked) {
            return Some(
                "this node signed two entries for one place, as a copy of its data directory does that runs beside it, and was \
                 removed from the mesh for good: it only reads what is here. `lattice node rekey` lets it join again, under a new key"
                    .to_owned(),
            );
        }
        if me.is_some_and(|member| member.removed) {
            return Some(
                "this node was removed from the mesh: nothing comes or goes, and it only reads what is here".to_owned(),
            );
        }
        None
    }

    /// This node, and the members whose addresses are known.
    fn contacts(&self) -> Vec<Contact> {
        let me = Contact { node: self.node.id(), addresses: self.node.addresses() };
        let others = self.node.known_addresses().into_iter().map(|(node, addresses)| Contact { node, addresses });
        std::iter::once(me).chain(others).collect()
    }

    /// Declares a store; returns when it is durable and open here.
    ///
    /// # Errors
    /// If this node is no admin, the name is taken or no name, or the disk fails.
    pub async fn create_store(self: &Arc<Self>, name: String, kind: String) -> Result<(), MeshError> {
        let stores = self.registry.stores();
        if stores.iter().any(|store| store.name == name) {
            return Err(MeshError::StoreExists(name));
        }
        match kind.as_str() {
            "kv" => {}
            "chat" => {
                if let Some(chat) = stores.iter().find(|store| store.kind == "chat") {
                    return Err(MeshError::ChatExists(chat.name.clone()));
                }
            }
            _ => return Err(MeshError::Kind(kind)),
        }
        self.submit("create a store", Op::CreateStore { name, kind }).await
    }

    /// Deletes a store on all nodes; returns when that is durable here.
    ///
    /// # Errors
    /// If this node is no admin, there is no such store, or the disk fails.
    pub async fn delete_store(self: &Arc<Self>, name: &str) -> Result<(), MeshError> {
        let stores = self.registry.stores();
        let store = stores.iter().find(|store| store.name == name);
        let id = store.ok_or_else(|| MeshError::NoStore(name.to_owned()))?.id;
        self.submit("delete a store", Op::DeleteStore { id }).await
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

    /// Whether a connected member has all of the root store that is here, or nobody is connected, after waiting for `patience` at most.
    async fn is_told(self: &Arc<Self>, patience: Duration) -> Result<bool, MeshError> {
        let root = self.id.root();
        // An entry more than when a peer was last found to have the same: an older agreement says nothing of this one.
        let log = self.registry.root().log().clone();
        let count = blocking(move || {
            let view = log.database().durable()?;
            log.fingerprint(&view).map(|fingerprint| fingerprint.count)
        });
        let count = count.await??;
        let mut snapshot = self.watch();
        let told = snapshot.wait_for(|now| {
            let mut online = now.peers.values().filter(|peer| peer.online).peekable();
            online.peek().is_none() || online.any(|peer| peer.agreed.get(&root).is_some_and(|agreed| *agreed >= count))
        });
        if let Some(driver) = &*locked(&self.driver) {
            driver.reconcile();
        }
        Ok(tokio::time::timeout(patience, told).await.is_ok())
    }

    /// Whether this node is a member, so that its key can vouch for another, or has done so for this one.
    #[must_use]
    pub fn can_hand_over(&self, to: &NodeId) -> bool {
        let membership = self.membership();
        membership.admits(&self.node.id()) || membership.admits(to)
    }

    /// Gives this node's place in the mesh to another key. Returns when another member has heard of it, if there is one; it may be
    /// called again.
    ///
    /// # Errors
    /// [`MeshError::Unheard`], or if the disk fails.
    pub async fn hand_over(self: &Arc<Self>, key: &SigningKey) -> Result<(), MeshError> {
        let me = self.node.id();
        let next = NodeId(key.verifying_key().to_bytes());
        let alone = self.membership().members.iter().all(|(id, member)| [me, next].contains(id) || member.left);
        let online = self.snapshot().peers.values().any(|peer| peer.online);
        if !alone && !online {
            return Err(MeshError::Unheard);
        }
        if !self.membership().admits(&next) {
            self.submit("hand over", Op::Succeed(root::succession(key, &self.id, &me))).await?;
        }
        // Who has heard of it takes this key for a stranger's, and ends the link.
        if alone || self.is_told(HANDOVER).await? { Ok(()) } else { Err(MeshError::Unheard) }
    }

    /// Closes the mesh and puts its root store's file aside, so that it can be joined again with the other stores kept.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn forget(&self) -> Result<(), MeshError> {
        self.close().await;
        let file = Registry::root_file(&self.dir, self.id);
        let mut names = (1..).map(|number: u32| file.with_extension(format!("old-{number}")));
        let aside = names.find(|name| !name.exists()).unwrap_or_else(|| file.with_extension("old"));
        std::fs::rename(&file, &aside).map_err(|source| MeshError::Io { path: file.clone(), source })
    }

    /// Leaves the mesh: says so, gives a connected member a moment to hear it, and closes. The directory stays, renamed; its path
    /// is returned.
    ///
    /// # Errors
    /// If that can't be recorded.
    pub async fn leave(self: &Arc<Self>) -> Result<PathBuf, MeshError> {
        self.submit("leave", Op::Leave).await?;
        if !self.is_told(FAREWELL).await? {
            tracing::info!(target: "mesh", "left without another member having heard of it yet");
        }
        self.close().await;
        // What was kept when it left this mesh before stays.
        let names = (1..).map(|time| match time {
            1 => format!("{LEFT}{}", self.id.root().short()),
            _ => format!("{LEFT}{}-{time}", self.id.root().short()),
        });
        let mut free = names.map(|name| self.dir.with_file_name(name)).filter(|path| !path.exists());
        let left = free.next().unwrap_or_else(|| self.dir.with_file_name(LEFT));
        let (from, to) = (self.dir.clone(), left.clone());
        blocking(move || std::fs::rename(&from, &to))
            .await?
            .map_err(|source| MeshError::Io { path: left.clone(), source })?;
        Ok(left)
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

    fn keep_addresses(&self, file: &mut Addresses) {
        let known = self.node.known_addresses().into_iter().collect();
        if let Err(error) = file.keep(known) {
            tracing::warn!(target: "mesh", %error, "the addresses of members can't be kept");
        }
    }

    /// Tells the network who is to be connected.
    async fn connect(&self, file: &Addresses) {
        let membership = self.membership();
        let others = membership.members.iter().filter(|(id, member)| !member.left && **id != self.node.id());
        let peers = others.map(|(id, _)| (*id, file.known().get(id).cloned().unwrap_or_default())).collect();
        self.node.membership_changed();
        if self.commands.send(Command::Peers(peers)).await.is_err() {
            tracing::debug!(target: "mesh", "the network has gone");
        }
    }

    /// Fetches the blobs that a store's entries name and that are not here.
    fn fetch_wanted(&self, log: &Arc<Log>) {
        match log.wanted() {
            Ok(wanted) => wanted.into_iter().for_each(|(hash, size)| self.fetch(log, hash, size)),
            Err(error) => tracing::error!(target: "mesh", %error, "the list of missing blobs can't be read"),
        }
    }

    fn fetch(&self, log: &Arc<Log>, hash: crate::ids::Hash, size: u64) {
        let log = log.clone();
        self.blobs.want(hash, size, move || {
            if let Err(error) = log.arrived(&hash) {
                tracing::error!(target: "mesh", %error, "a blob's arrival can't be noted");
            }
        });
    }
}

impl Peers for Mesh {
    fn peers(&self) -> Vec<Peer> {
        let snapshot = self.snapshot();
        let me = self.node.id();
        let mut peers: Vec<Peer> = self
            .membership()
            .members
            .iter()
            .map(|(id, member)| {
                let status = snapshot.peers.get(id).cloned().unwrap_or_default();
                let reached = self.node.reached(id);
                let own = *id == me;
                Peer {
                    id: *id,
                    name: member.name.clone(),
                    role: member.role,
                    me: own,
                    left: member.left,
                    removed: member.removed,
                    forked: member.forked,
                    online: own || (status.online && reached.is_some()),
                    address: reached.as_ref().and_then(|link| link.address.clone()).or(status.address.clone()),
                    rtt: reached.and_then(|link| link.rtt).or(status.rtt),
                    last_seen: if own { Some(self.clock.now()) } else { status.last_seen },
                    lag: if own { Some(0) } else { status.online.then(|| status.lag()) },
                    version: if own { Some(env!("CARGO_PKG_VERSION").to_owned()) } else { status.version.clone() },
                }
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    fn proof(&self, node: &NodeId) -> Option<Proof> {
        let Fork { one, other } = self.registry.root().proof(node)?;
        let header = Header::decode_signed(&one).ok()?;
        Some(Proof { store: header.store, number: header.seq, one: one.to_vec(), other: other.to_vec() })
    }
}

/// Follows what is included: keeps the set of stores, of links and of fetched blobs as the entries say.
async fn follow(mesh: Arc<Mesh>, mut events: broadcast::Receiver<Arc<Event>>) {
    let mut file = Addresses::open(&mesh.dir);
    for (node, addresses) in file.known() {
        mesh.node.suggest_addresses(*node, addresses);
    }
    mesh.connect(&file).await;
    mesh.release();
    charge(&mesh).await;
    mesh.registry.logs().iter().for_each(|log| mesh.fetch_wanted(log));
    let mut keep = tokio::time::interval(KEEP_ADDRESSES);
    let root = mesh.id.root();
    loop {
        tokio::select! {
            _ = keep.tick() => mesh.keep_addresses(&mut file),
            event = events.recv() => match event {
                Ok(event) if event.store == root => {
                    refresh(&mesh).await;
                    mesh.keep_addresses(&mut file);
                    mesh.connect(&file).await;
                    mesh.release();
                    if event.excluded {
                        charge(&mesh).await;
                    }
                }
                Ok(event) if event.excluded => charge(&mesh).await,
                Ok(event) => {
                    if let Some(log) = mesh.registry.log(&event.store) {
                        event.effects.blobs.iter().for_each(|(hash, size)| mesh.fetch(&log, *hash, *size));
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    refresh(&mesh).await;
                    mesh.connect(&file).await;
                    charge(&mesh).await;
                    mesh.registry.logs().iter().for_each(|log| mesh.fetch_wanted(log));
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
    }
}

async fn charge(mesh: &Arc<Mesh>) {
    if let Err(error) = mesh.charge().await {
        tracing::error!(target: "mesh", %error, "the proof of a fork can't be recorded");
    }
}

/// Says so when the wait for a member's word ends without one.
async fn tell_unconfirmed(mesh: Arc<Mesh>) {
    tokio::time::sleep(limits::OWN_TOLD + Duration::from_millis(100)).await;
    if mesh.is_unconfirmed() {
        tracing::info!(target: "mesh", "no member told in time how far this node's own writes go there: going on with what is here");
    }
}

async fn refresh(mesh: &Arc<Mesh>) {
    let registry = mesh.registry.clone();
    let before: BTreeMap<StoreId, ()> = registry.logs().iter().map(|log| (log.store(), ())).collect();
    if let Err(error) = blocking(move || registry.refresh()).await {
        tracing::error!(target: "mesh", %error, "opening and closing stores");
    }
    mesh.registry.logs().iter().filter(|log| !before.contains_key(&log.store())).for_each(|log| mesh.fetch_wanted(log));
}

/// Runs what blocks off the network's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MeshError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| MeshError::Io { path: PathBuf::new(), source: std::io::Error::other(error) })
}
