//! What is shown of the other nodes, and who can tell.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Millis;
use crate::ids::{NodeId, StoreId};
use crate::replication::membership::Role;

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// The node.
    pub id: NodeId,
    /// Its name, unique in the mesh.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whether it is this node.
    pub me: bool,
    /// Whether it is a member no more.
    pub left: bool,
    /// Whether others ended its membership.
    pub removed: bool,
    /// Whether it is proven that it signed two entries for one place.
    pub forked: bool,
    /// Whether a sync connection with it is up.
    pub online: bool,
    /// Where it was last reached.
    pub address: Option<String>,
    /// The round-trip time of its connection.
    pub rtt: Option<Duration>,
    /// When it was last heard.
    pub last_seen: Option<Millis>,
    /// Entries that this node knows it has not got yet; `None` if unknown.
    pub lag: Option<u64>,
    /// The version of lattice that it runs.
    pub version: Option<String>,
}

/// What proves that a member forked its chain: two headers that it signed for one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The store.
    pub store: StoreId,
    /// The place: the entries' number in the member's chain.
    pub number: u64,
    /// One header, and its signature after it.
    pub one: Vec<u8>,
    /// The other.
    pub other: Vec<u8>,
}

/// How far a member is with a store, as far as this node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether both had the same entries when they last compared, and nothing was written here since.
    pub in_step: bool,
    /// How many entries both had when they were last found to have the same: those that came here first.
    pub agreed: Option<u64>,
    /// Entries that it says it has and this node has not.
    pub ahead: u64,
}

/// Who can tell of the members.
pub trait Peers: Send + Sync + 'static {
    /// All members, this node too, by name.
    fn peers(&self) -> Vec<Peer>;

    /// How far the others are with a store; those of whom nothing is known are left out.
    fn standings(&self, store: &StoreId) -> BTreeMap<NodeId, Standing>;

    /// The proof that a member signed two entries for one place.
    fn proof(&self, node: &NodeId) -> Option<Proof>;
}
