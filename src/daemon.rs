//! The daemon: builds every layer and owns the order of shutdown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::{About, Failure, Host, InMesh, Kind, Leftover, Progress, Rekeyed};
use crate::blobs::Blobs;
use crate::clock::{self, Millis};
use crate::config::{self, Directory, Settings};
use crate::fs::{self, Mounted, Sources};
use crate::ids::{MeshId, NodeId, StoreId};
use crate::mesh::{self, Context, Founded, Mesh, MeshError, There};
use crate::net::iroh::{NetError, Node, Options, Relays};
use crate::net::join::{JoinError, Refusal};
use crate::net::ticket::{Ticket, TicketError};
use crate::peers::{Peer, Peers, Proof, Standing};
use crate::replication::database::DatabaseError;
use crate::replication::membership::Role;
use crate::replication::replica::Snapshot;
use crate::stores::root::RootError;
use crate::stores::{Registry, RegistryError, Repaired};

/// How long a store may take to open after it was declared.
const OPENING: Duration = Duration::from_secs(10);

/// A running node.
pub struct Daemon {
    directory: Directory,
    context: Context,
    mesh: Arc<ArcSwapOption<Mesh>>,
    registry: Arc<ArcSwapOption<Registry>>,
    /// By mount point; with the number of its drafts.
    mounts: Mutex<BTreeMap<PathBuf, (u32, Mounted)>>,
    /// Held while a mount is made: one at a time.
    mounting: tokio::sync::Mutex<()>,
    /// Held while the mesh is founded, joined or left: one at a time.
    changing: tokio::sync::Mutex<()>,
    started: Millis,
    listen: SocketAddr,
    stop: CancellationToken,
    /// Whether watchers of the mounts are told of changes from elsewhere.
    inotify: bool,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("data", &self.directory.path()).finish_non_exhaustive()
    }
}

/// The members, for the mount: nobody before there is a mesh.
struct Members(Arc<ArcSwapOption<Mesh>>);

impl Peers for Members {
    fn peers(&self) -> Vec<Peer> {
        self.0.load().as_ref().map(|mesh| mesh.peers()).unwrap_or_default()
    }

    fn standings(&self, store: &StoreId) -> BTreeMap<NodeId, Standing> {
        self.0.load().as_ref().map(|mesh| mesh.standings(store)).unwrap_or_default()
    }

    fn proof(&self, node: &NodeId) -> Option<Proof> {
        self.0.load().as_ref()?.proof(node)
    }
}

fn relays(setting: &config::Relays) -> Relays {
    match setting {
        config::Relays::None => Relays::None,
        config::Relays::Public => Relays::Public,
        config::Relays::Custom(urls) => Relays::Custom(urls.clone()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    /// Starts the node in `directory`: gets onto the network and opens the mesh, if it is in one.
    ///
    /// # Errors
    /// If the identity, the network, or the root store can't be opened.
    pub async fn start(directory: Directory, settings: &Settings) -> Result<Arc<Self>, Failure> {
        let disk = |error: crate::config::DirectoryError| Failure::failed(&error).hint(error.hint());
        let key = Arc::new(directory.identity().map_err(disk)?);
        let blobs = Blobs::open(&directory.blobs()).await;
        let blobs = Arc::new(blobs.map_err(|error| Failure::failed(&error).hint(error.hint()))?);
        let mut options = Options {
            listen: settings.listen,
            relays: relays(&settings.relays),
            dns: settings.dns,
            mdns: settings.mdns,
            port_mapping: false,
        };
        let kept = directory.port().filter(|_| options.listen.port() == 0);
        options.listen.set_port(kept.unwrap_or(options.listen.port()));
        let node = match Node::bind(&key, &options, vec![blobs.protocol()]).await {
            Ok(node) => node,
            Err(error) => {
                // The next start, which may come at once, finds them closed.
                if let Err(error) = blobs.shutdown().await {
                    tracing::error!(target: "daemon", %error, "closing the large values");
                }
                return Err(not_bound(&error, settings));
            }
        };
        blobs.attach(&node);
        // Written only when it is new: a start must not need room on the disk.
        if settings.listen.port() == 0 && directory.port() != Some(node.port()) {
            directory.keep_port(node.port()).map_err(disk)?;
        }
        let context = Context {
            key,
            clock: Arc::new(clock::System),
            node,
            blobs,
            meshes: directory.meshes(),
            name: settings.name.clone(),
        };
        let daemon = Arc::new(Self {
            directory,
            listen: SocketAddr::new(settings.listen.ip(), context.node.port()),
            started: context.clock.now(),
            context,
            mesh: Arc::default(),
            registry: Arc::default(),
            mounts: Mutex::default(),
            mounting: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
            inotify: settings.inotify,
        });
        let opened = match mesh::find(&daemon.context.meshes).map_err(failure)? {
            Some(There::Whole(mesh)) => daemon.open(mesh).await,
            Some(There::Rootless(_)) | None => Ok(()),
        };
        if let Err(failure) = opened {
            daemon.leave_network().await;
            return Err(failure);
        }
        Ok(daemon)
    }

    /// Cancelled when the daemon is to stop.
    #[must_use]
    pub const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Serves the control socket until the daemon is to stop, then stops it: the socket first, then the mounts, then
    /// what they stand on. All that was acknowledged is durable when this returns.
    pub async fn run(self: Arc<Self>, control: UnixListener) {
        crate::api::serve(self.clone(), control, self.stop.clone()).await;
        let mounts = std::mem::take(&mut *locked(&self.mounts));
        for (path, (_, mounted)) in mounts {
            let ended = tokio::task::spawn_blocking(move || mounted.unmount()).await;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(target: "daemon", path = %path.display(), %error, "unmounting"),
                Err(error) => tracing::error!(target: "daemon", path = %path.display(), %error, "unmounting"),
            }
        }
        self.registry.store(None);
        if let Some(mesh) = self.mesh.swap(None) {
            mesh.close().await;
        }
        self.leave_network().await;
    }

    async fn leave_network(&self) {
        self.context.node.shutdown().await;
        if let Err(error) = self.context.blobs.shutdown().await {
            tracing::error!(target: "daemon", %error, "closing the large values");
        }
    }

    async fn open(&self, Founded(id): Founded) -> Result<(), Failure> {
        let mesh = Mesh::open(self.context.clone(), id).await.map_err(failure)?;
        self.registry.store(Some(mesh.registry().clone()));
        self.mesh.store(Some(mesh));
        Ok(())
    }

    fn mesh(&self) -> Result<Arc<Mesh>, Failure> {
        self.mesh.load_full().ok_or_else(|| {
            Failure::refused("this node is in no mesh")
                .hint("`lattice mesh init` founds one, `lattice mesh join TOKEN` joins one")
        })
    }

    fn refuse_second_mesh(&self) -> Result<(), Failure> {
        match self.mesh.load_full() {
            None => Ok(()),
            Some(mesh) => Err(Failure::refused(format!("this node is in the mesh '{}' already", mesh.name()))
                .hint(
                    "use another data directory for another mesh: `lattice --data DIR …`. `lattice mesh leave` leaves this one, for \
                     good: no token lets this node's key in there again",
                )),
        }
    }

    /// A mesh whose stores are here and whose root store is gone.
    fn rootless(&self) -> Result<Option<MeshId>, Failure> {
        match mesh::find(&self.context.meshes).map_err(failure)? {
            Some(There::Rootless(id)) => Ok(Some(id)),
            Some(There::Whole(_)) | None => Ok(None),
        }
    }

    fn refuse_beside(&self, rootless: MeshId) -> Failure {
        let file = Registry::root_file(&self.context.meshes.join(rootless.to_string()), rootless);
        Failure::refused(format!("this directory holds stores of a mesh whose root store, {}, is gone", file.display()))
            .hint("put it back, or join that mesh again with a new token of it; or use another data directory")
    }

    /// Where this node is mounted. What others unmounted is not.
    fn alive(&self) -> Vec<PathBuf> {
        locked(&self.mounts).iter().filter(|(_, (_, mounted))| mounted.alive()).map(|(at, _)| at.clone()).collect()
    }

    /// Ends what others unmounted.
    async fn bury(&self) -> Result<(), Failure> {
        let gone: Vec<_> = locked(&self.mounts).extract_if(.., |_, (_, mounted)| !mounted.alive()).collect();
        tokio::task::spawn_blocking(move || drop(gone)).await.map_err(Failure::failed)
    }

    fn drafts(&self, number: u32) -> PathBuf {
        self.directory.drafts().join(number.to_string())
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(mesh) = self.mesh.load_full() {
            let stores = mesh.registry().stores();
            for store in &stores {
                if let Some(why) = &store.damaged {
                    warnings.push(format!("the store '{}' can't be used: {why}", store.name));
                }
            }
            for log in mesh.registry().logs() {
                let name = stores.iter().find(|store| store.id == log.store()).map_or("root", |store| &store.name);
                if let Some(trouble) = log.database().trouble() {
                    warnings.push(format!("the store '{name}' takes no writes: {trouble}; {}", trouble.hint()));
                }
                if log.is_regaining() {
                    warnings.push(format!(
                        "the file of the store '{name}' was lost, or is an older copy: nothing is written to it before what this \
                         node wrote has come back from another member"
                    ));
                }
            }
            if let Some(ended) = mesh.ended() {
                warnings.push(ended);
            }
            if mesh.is_unconfirmed() {
                warnings.push(
                    "no member has told since the start how far this node's own writes go there; if the data directory was \
                     put back from a backup, write nothing before one has: `lattice peers`"
                        .to_owned(),
                );
            }
        } else if let Ok(Some(rootless)) = self.rootless() {
            let Failure { message, hint, .. } = self.refuse_beside(rootless);
            warnings.push(format!("{message}: {}", hint.unwrap_or_default()));
        }
        if let Some(free) = fs::scarce(self.directory.path()) {
            warnings.push(format!(
                "the disk of {} has {} MiB left: the mount takes no more until there are {}",
                self.directory.path().display(),
                free >> 20,
                fs::SPARE >> 20
            ));
        }
        let unpublished = (0..).map(|number| self.drafts(number)).take_while(|drafts| drafts.exists());
        warnings.extend(unpublished.flat_map(|drafts| fs::recovered(&drafts)).map(|found| self.told(&found)));
        warnings
    }

    /// What a person is told of a file that was put aside.
    fn told(&self, found: &fs::Recovered) -> String {
        let stores = self.mesh.load_full().map(|mesh| mesh.registry().stores()).unwrap_or_default();
        let what = match &found.key {
            Some((id, key)) => {
                let store = stores
                    .iter()
                    .find(|store| store.id == *id)
                    .map_or_else(|| id.to_string(), |store| store.name.clone());
                format!("'{}' of the store '{store}'", String::from_utf8_lossy(key).escape_debug())
            }
            None => "a file".into(),
        };
        format!(
            "{what} was being written, or could not be published: what was written until {} is in {}; copy it to where it \
             belongs, or delete it",
            date(found.mtime),
            found.file.display(),
        )
    }
}

/// A time as people read it, from nanoseconds since the Unix epoch.
fn date(nanos: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).ok();
    moment.and_then(|moment| moment.format(&format).ok()).unwrap_or_else(|| "some time".into())
}

/// What a file, or a directory with all that is in it, takes, in bytes; what can't be looked at counts as nothing.
fn occupied(path: &Path) -> u64 {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {
            let inside = std::fs::read_dir(path).into_iter().flatten().flatten();
            inside.map(|entry| occupied(&entry.path())).sum()
        }
        Ok(found) => found.len(),
        Err(_) => 0,
    }
}

/// Why the node is not on the network, and which setting can change that, wherever it was set.
fn not_bound(error: &NetError, settings: &Settings) -> Failure {
    let failure = Failure::refused(error);
    match error {
        NetError::PortTaken(_) => failure.hint(format!("{}, or stop that program", settings.remedy("listen"))),
        NetError::NoSuchAddress(_) => failure.hint(settings.remedy("listen")),
        NetError::Relay { .. } => failure.hint(settings.remedy("relays")),
        NetError::Bind(_) => failure,
    }
}

fn failure(error: MeshError) -> Failure {
    match &error {
        MeshError::Ticket(TicketError::Version(_)) => {
            Failure::refused(&error).hint("install the newer lattice on this machine")
        }
        MeshError::Ticket(TicketError::NotATicket | TicketError::Typo) => {
            Failure::refused(&error).hint("copy the whole token, one line, as it was printed on the other machine")
        }
        MeshError::Unheard => Failure::new(Kind::Unavailable, &error).hint("`lattice peers` shows who is online; if the others removed this node: `lattice node rekey --rejoin`, and a new token"),
        MeshError::Gone(_) => Failure::refused(&error)
            .hint("it can join as a new node, from another data directory, with a token: `lattice mesh invite`"),
        MeshError::LastAdmin(_) => {
            Failure::refused(&error).hint("make another member an admin first: `lattice mesh role NAME admin`")
        }
        MeshError::Join(JoinError::Unreachable { .. }) => Failure::new(Kind::Unavailable, &error),
        MeshError::Join(JoinError::Refused(Refusal::Busy)) => Failure::new(Kind::Unavailable, &error),
        MeshError::Root(RootError::Submit(error)) => error.into(),
        MeshError::Root(RootError::Database(error)) | MeshError::Database(error) => error.into(),
        MeshError::Registry(RegistryError::Database(error @ DatabaseError::Corrupt { .. })) => {
            Failure::failed(format!("the mesh's root store can't be used: {error}")).hint(
                "put it back from a backup; or move that file away, `lattice up`, and join the mesh again with a new \
                 token of it: the other stores are kept",
            )
        }
        MeshError::Registry(RegistryError::Database(error)) => error.into(),
        MeshError::Join(JoinError::Refused(_))
        | MeshError::NotAllowed { .. }
        | MeshError::StoreExists(_)
        | MeshError::Reserved
        | MeshError::ChatExists(_)
        | MeshError::Kind(_)
        | MeshError::Genesis(_)
        | MeshError::Root(_) => Failure::refused(&error),
        MeshError::NoStore(_) => Failure::not_found(&error).hint("`lattice store list` shows the stores"),
        MeshError::Join(JoinError::Protocol(_))
        | MeshError::Welcome(_)
        | MeshError::Registry(_)
        | MeshError::Io { .. }
        | MeshError::Blob(_) => Failure::failed(&error),
    }
}

#[tonic::async_trait]
impl Host for Daemon {
    fn about(&self) -> About {
        let me: NodeId = self.context.node.id();
        let name = self
            .mesh
            .load()
            .as_ref()
            .map_or_else(|| self.context.name.clone(), |mesh| mesh.registry().root().membership().load().name(&me));
        About {
            node: me,
            name,
            data: self.directory.path().to_owned(),
            started: self.started,
            listening: self.context.node.addresses().iter().map(ToString::to_string).collect(),
            listen: self.listen,
            proposes: self.context.name.clone(),
            mounts: self.alive(),
            warnings: self.warnings(),
            forks: self.mesh.load().as_ref().map_or(0, |mesh| mesh.forks()),
            forkers: self.mesh.load().as_ref().map_or_else(Vec::new, |mesh| mesh.forkers()),
        }
    }

    fn in_mesh(&self) -> Option<InMesh> {
        let mesh = self.mesh.load_full()?;
        let (role, ended) = (mesh.role().unwrap_or(Role::Reader), mesh.ended());
        Some(InMesh { id: mesh.id(), name: mesh.name(), role, ended })
    }

    fn registry(&self) -> Option<Arc<Registry>> {
        self.registry.load_full()
    }

    fn peers(&self) -> Vec<Peer> {
        Members(self.mesh.clone()).peers()
    }

    fn replication(&self) -> Option<Arc<Snapshot>> {
        self.mesh.load().as_ref().map(|mesh| mesh.snapshot())
    }

    async fn init_mesh(&self, name: String) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.refuse_second_mesh()?;
        if let Some(rootless) = self.rootless()? {
            return Err(self.refuse_beside(rootless));
        }
        let founded = mesh::new(&self.context, &name).await.map_err(failure)?;
        self.open(founded).await
    }

    async fn join_mesh(&self, token: String, progress: mpsc::Sender<Progress>) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.refuse_second_mesh()?;
        let tell = |doing: &str| {
            // Whoever asked may have gone: joining goes on.
            drop(progress.try_send(Progress { doing: doing.to_owned(), done: 0, total: 0 }));
        };
        if let Some(rootless) = self.rootless()?
            && token.parse().is_ok_and(|ticket: Ticket| ticket.mesh != rootless)
        {
            return Err(self.refuse_beside(rootless));
        }
        tell("asking a member to be let in");
        let founded = mesh::join(&self.context, &token).await.map_err(failure)?;
        tell("opening the stores");
        self.open(founded).await
    }

    async fn leave_mesh(&self) -> Result<PathBuf, Failure> {
        let _one = self.changing.lock().await;
        let mesh = self.mesh()?;
        self.registry.store(None);
        self.mesh.store(None);
        mesh.leave().await.map_err(failure)
    }

    async fn invite(&self, role: Role, expires: Duration, uses: u32) -> Result<String, Failure> {
        self.mesh()?.invite(role, expires, uses).await.map_err(failure)
    }

    async fn revoke(&self, node: NodeId) -> Result<(), Failure> {
        self.mesh()?.revoke(node).await.map_err(failure)
    }

    async fn set_role(&self, node: NodeId, role: Role) -> Result<(), Failure> {
        self.mesh()?.set_role(node, role).await.map_err(failure)
    }

    async fn create_store(&self, name: String, kind: String) -> Result<(), Failure> {
        let mesh = self.mesh()?;
        let mut changed = mesh.registry().changed();
        mesh.create_store(name.clone(), kind).await.map_err(failure)?;
        let open = changed.wait_for(|_| mesh.registry().stores().iter().any(|store| store.name == name));
        match tokio::time::timeout(OPENING, open).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(Failure::failed(format!("the store '{name}' is declared but did not open here"))
                    .hint("`lattice status` may say why"))
            }
        }
    }

    async fn delete_store(&self, name: String) -> Result<(), Failure> {
        self.mesh()?.delete_store(&name).await.map_err(failure)
    }

    async fn rekey(&self, rejoin: bool) -> Result<Rekeyed, Failure> {
        let _one = self.changing.lock().await;
        // Without a mesh nobody can be told of a new key; to join under one needs none.
        let mesh = if rejoin { self.mesh.load_full() } else { Some(self.mesh()?) };
        let key = self.directory.successor().map_err(Failure::failed)?;
        let node = NodeId(key.verifying_key().to_bytes());
        let rejoin = rejoin || !mesh.as_ref().is_some_and(|mesh| mesh.can_hand_over(&node));
        if let Some(mesh) = mesh.as_ref().filter(|_| !rejoin) {
            mesh.hand_over(&key).await.map_err(failure)?;
        }
        let kept = self.directory.succeed().map_err(Failure::failed)?;
        if let Some(mesh) = mesh.filter(|_| rejoin) {
            self.registry.store(None);
            self.mesh.store(None);
            mesh.forget().await.map_err(failure)?;
        }
        Ok(Rekeyed { node, rejoin, kept })
    }

    async fn repair_store(&self, id: StoreId) -> Result<Option<Repaired>, Failure> {
        self.mesh()?.repair_store(id).await.map_err(failure)
    }

    async fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>, Failure> {
        // No mesh is left meanwhile.
        let _one = self.changing.lock().await;
        let (registry, meshes) = (self.registry.load_full(), self.context.meshes.clone());
        let find = move || -> Result<Vec<Leftover>, MeshError> {
            let mut found = Vec::new();
            let stores = registry.as_ref().map(|registry| registry.leftovers(false)).transpose()?.unwrap_or_default();
            for (path, name) in stores {
                let bytes = occupied(&path);
                found.push(Leftover { path, of: format!("the deleted store '{name}'"), bytes });
            }
            for path in mesh::left(&meshes)? {
                let bytes = occupied(&path);
                if remove {
                    std::fs::remove_dir_all(&path).map_err(|source| MeshError::Io { path: path.clone(), source })?;
                }
                found.push(Leftover { path, of: "a mesh that this node left".into(), bytes });
            }
            if let Some(registry) = registry.filter(|_| remove) {
                registry.leftovers(true)?;
            }
            Ok(found)
        };
        tokio::task::spawn_blocking(find).await.map_err(Failure::failed)?.map_err(failure)
    }

    async fn settle(&self, store: StoreId) -> Result<(), Failure> {
        let settle: Vec<_> = locked(&self.mounts).values().map(|(_, mounted)| mounted.settler()).collect();
        let all = move || settle.iter().for_each(|settle| settle(store));
        tokio::task::spawn_blocking(all).await.map_err(Failure::failed)
    }

    async fn mount(&self, path: &Path) -> Result<(), Failure> {
        let _one = self.mounting.lock().await;
        self.bury().await?;
        if self.alive().iter().any(|mount| fs::same_place(mount, path)) {
            return Ok(());
        }
        // Each mount has drafts of its own. They go by number, so that what a mount left is found by the next, wherever it is.
        let free = {
            let mounts = locked(&self.mounts);
            (0..).find(|number| mounts.values().all(|(taken, _)| taken != number)).unwrap_or(0)
        };
        let sources = Sources {
            registry: self.registry.clone(),
            peers: Arc::new(Members(self.mesh.clone())),
            drafts: self.drafts(free),
        };
        let options = fs::Options { inotify: self.inotify, ..fs::Options::default() };
        let at = path.to_owned();
        let mounted = tokio::task::spawn_blocking(move || fs::mount(&at, sources, options)).await;
        let mounted = mounted.map_err(Failure::failed)?.map_err(Failure::refused)?;
        locked(&self.mounts).insert(mounted.at().to_owned(), (free, mounted));
        Ok(())
    }

    async fn unmount(&self, path: &Path) -> Result<(), Failure> {
        let found = self.alive().into_iter().find(|mount| fs::same_place(mount, path));
        let Some((_, mounted)) = found.and_then(|mount| locked(&self.mounts).remove(&mount)) else {
            return Err(Failure::not_found(format!("{} is not mounted by this node", path.display()))
                .hint("`lattice status` shows its mounts"));
        };
        let ended = tokio::task::spawn_blocking(move || mounted.unmount()).await;
        ended.map_err(Failure::failed)?.map_err(Failure::failed)
    }

    fn shutdown(&self) {
        self.stop.cancel();
    }
}
