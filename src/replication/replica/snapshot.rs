//! What a replica knows of the peers and of how far the stores are, for people and for those who wait.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pull::size;
use super::{Peer, Replica};
use crate::clock::Millis;
use crate::ids::{NodeId, StoreId};
use crate::replication::message::Range;
use crate::replication::reconcile::Shelf;

/// A peer as it is now, or was when it was last connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether a link with it is up and it has said hello.
    pub online: bool,
    /// Where it was last reached.
    pub address: Option<String>,
    /// When it was last heard.
    pub last_seen: Option<Millis>,
    /// The round-trip time of the last probe, to the millisecond.
    pub rtt: Option<Duration>,
    /// Its build.
    pub version: Option<String>,
    /// Entries that it says it has and this node has not, per store; none where nothing is lacking.
    pub behind: BTreeMap<StoreId, u64>,
    /// Per store, whether both had the same at the last exchange of fingerprints, and nothing was written here since.
    pub in_step: BTreeMap<StoreId, bool>,
    /// Per store, how many entries both had when they were last found to have the same: what the peer has for sure.
    pub agreed: BTreeMap<StoreId, u64>,
}

impl PeerStatus {
    pub(super) fn past(peer: &Peer) -> Self {
        Self {
            online: false,
            address: peer.address.clone(),
            last_seen: Some(peer.heard),
            rtt: None,
            version: peer.build.clone(),
            behind: BTreeMap::new(),
            in_step: BTreeMap::new(),
            // What it had, it has.
            agreed: peer.agreed.clone(),
        }
    }

    /// Entries that this node has not got yet of all that the peer says it has.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.behind.values().sum()
    }
}

/// How far a store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// The entries that are here and durable.
    pub have: u64,
    /// The entries that are known to be elsewhere and not included here.
    pub missing: u64,
    /// Whether, since this node started, all that some peer said it had has come: the first sync is done.
    pub settled: bool,
    /// Entries that wait for one that is missing.
    pub waiting: usize,
    /// From whom entries are being fetched.
    pub pulling: Option<NodeId>,
    /// Whether the store takes no writes.
    pub failed: bool,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All peers that were ever connected since the start.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// The stores.
    pub stores: BTreeMap<StoreId, StoreStatus>,
}

impl Replica {
    /// How things stand.
    #[must_use]
    pub fn snapshot(&self, shelf: &dyn Shelf) -> Snapshot {
        let mut snapshot = Snapshot { peers: self.past.clone(), stores: BTreeMap::new() };
        for (id, peer) in &self.peers {
            let mut status = PeerStatus::past(peer);
            status.online = peer.build.is_some();
            status.rtt = peer.rtt;
            status.in_step.clone_from(&peer.in_step);
            status.agreed.clone_from(&peer.agreed);
            snapshot.peers.insert(*id, status);
        }
        for (store, state) in &self.stores {
            let mut status = StoreStatus {
                have: shelf.fingerprint(store).unwrap_or_default().count,
                missing: 0,
                settled: state.settled,
                waiting: state.waiting,
                pulling: state.pull.as_ref().map(|pull| pull.peer),
                failed: state.failed,
            };
            let claimed = self.peers.values().any(|peer| peer.claims.contains_key(store));
            let included = if claimed { shelf.included(store).unwrap_or_default() } else { BTreeMap::new() };
            for (id, peer) in &self.peers {
                let Some(claims) = peer.claims.get(store) else { continue };
                let behind = claims
                    .iter()
                    .map(|(author, to)| {
                        let from = included.get(author).map_or(0, |tip| tip.seq + 1);
                        if from > *to { 0 } else { size(&[Range { author: *author, from, to: *to }]) }
                    })
                    .fold(0, u64::saturating_add);
                status.missing = status.missing.max(behind);
                if behind > 0
                    && let Some(known) = snapshot.peers.get_mut(id)
                {
                    known.behind.insert(*store, behind);
                }
            }
            snapshot.stores.insert(*store, status);
        }
        snapshot
    }
}
