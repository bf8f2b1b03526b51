//! What the control service needs of the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::failure::Failure;
use crate::clock::Millis;
use crate::ids::{MeshId, NodeId, StoreId};
use crate::peers::Peer;
use crate::replication::membership::Role;
use crate::replication::replica::Snapshot;
use crate::stores::{Registry, Repaired};

/// A running node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The node's id.
    pub node: NodeId,
    /// Its name: in the mesh, or what it will propose to one.
    pub name: String,
    /// Its data directory.
    pub data: PathBuf,
    /// When it started.
    pub started: Millis,
    /// Where it listens for other nodes: `address:port`, one for each of the machine's addresses.
    pub listening: Vec<String>,
    /// The address and port that it was told to listen on.
    pub listen: SocketAddr,
    /// What it proposes to be called in a mesh.
    pub proposes: String,
    /// Where the tree is mounted.
    pub mounts: Vec<PathBuf>,
    /// What needs a person, a sentence each: a wrong clock, content that could not be published, a damaged store.
    pub warnings: Vec<String>,
    /// Forks that were seen: authors who signed two entries for one place.
    pub forks: u64,
    /// The names of those who signed them and are removed for it.
    pub forkers: Vec<String>,
}

/// The mesh that a node is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InMesh {
    /// The mesh.
    pub id: MeshId,
    /// Its name.
    pub name: String,
    /// This node's role.
    pub role: Role,
    /// If the others let this node in no more: a sentence that says why and what to do.
    pub ended: Option<String>,
}

/// A file or directory of something that this node no longer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Where it is.
    pub path: PathBuf,
    /// What it is of, for people.
    pub of: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A node's new key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rekeyed {
    /// What the node is from the next start on.
    pub node: NodeId,
    /// Whether the old key did not vouch for it: the node must join the mesh again.
    pub rejoin: bool,
    /// Where the old key is kept.
    pub kept: PathBuf,
}

/// How far a join is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// What is being done, for people: "looking for a member", "receiving the list of stores".
    pub doing: String,
    /// Entries that have come.
    pub done: u64,
    /// Entries that have come and that are known to be missing; 0 if unknown.
    pub total: u64,
}

/// The daemon, as the control service sees it. Failures carry a sentence and, where something can be done, a hint.
#[tonic::async_trait]
pub trait Host: Send + Sync + 'static {
    /// What this node is and does.
    fn about(&self) -> About;

    /// The mesh, if it is in one.
    fn in_mesh(&self) -> Option<InMesh>;

    /// The stores of the mesh; `None` without a mesh.
    fn registry(&self) -> Option<Arc<Registry>>;

    /// The members as this node sees them, by name; empty without a mesh.
    fn peers(&self) -> Vec<Peer>;

    /// How far replication is; `None` without a mesh.
    fn replication(&self) -> Option<Arc<Snapshot>>;

    /// Founds a mesh. Returns when it is durable.
    async fn init_mesh(&self, name: String) -> Result<(), Failure>;

    /// Joins the mesh that `token` names. Returns when the root store and the list of stores are here.
    /// A receiver of `progress` that is gone does not matter.
    async fn join_mesh(&self, token: String, progress: mpsc::Sender<Progress>) -> Result<(), Failure>;

    /// Leaves the mesh, closes its stores, and says where their files are kept.
    async fn leave_mesh(&self) -> Result<PathBuf, Failure>;

    /// Makes an invite for `uses` nodes and gives its token.
    async fn invite(&self, role: Role, expires: Duration, uses: u32) -> Result<String, Failure>;

    /// Ends a node's membership. Returns when that is durable here.
    async fn revoke(&self, node: NodeId) -> Result<(), Failure>;

    /// Gives a member another role. Returns when that is durable here.
    async fn set_role(&self, node: NodeId, role: Role) -> Result<(), Failure>;

    /// Declares a store; returns when it is open here.
    async fn create_store(&self, name: String, kind: String) -> Result<(), Failure>;

    /// Deletes a store on all nodes.
    async fn delete_store(&self, name: String) -> Result<(), Failure>;

    /// Goes on under a new key from the next start: with `rejoin`, or if the old one is no member, as one that has to join again. Without
    /// a mesh only with `rejoin`.
    async fn rekey(&self, rejoin: bool) -> Result<Rekeyed, Failure>;

    /// Makes a store's file here anew, from what is sound in it and what the other members have; `None` if there is no such store.
    async fn repair_store(&self, id: StoreId) -> Result<Option<Repaired>, Failure>;

    /// What is left on the disk of deleted stores and of meshes that were left; `remove`: and is no more when this returns.
    async fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>, Failure>;

    /// Mounts the tree at `path`; returns when the mount answers.
    async fn mount(&self, path: &Path) -> Result<(), Failure>;

    /// Ends the mount at `path`.
    async fn unmount(&self, path: &Path) -> Result<(), Failure>;

    /// Makes versions of all that was done to a store through the mounts and waits there for what usually follows.
    async fn settle(&self, store: StoreId) -> Result<(), Failure>;

    /// Begins to stop the daemon; returns at once.
    fn shutdown(&self);
}
