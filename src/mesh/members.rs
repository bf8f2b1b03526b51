//! The members, as this node shows them.

use std::collections::BTreeMap;

use super::Mesh;
use crate::ids::{NodeId, StoreId};
use crate::peers::{Peer, Peers, Proof, Standing};
use crate::replication::entry::{Fork, Header};
use crate::replication::replica::PeerStatus;

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

    fn standings(&self, store: &StoreId) -> BTreeMap<NodeId, Standing> {
        let standing = |status: &PeerStatus| Standing {
            in_step: status.in_step.get(store).copied().unwrap_or(false),
            agreed: status.agreed.get(store).copied(),
            ahead: status.behind.get(store).copied().unwrap_or(0),
        };
        self.snapshot().peers.iter().map(|(id, status)| (*id, standing(status))).collect()
    }

    fn proof(&self, node: &NodeId) -> Option<Proof> {
        let Fork { one, other } = self.registry.root().proof(node)?;
        let header = Header::decode_signed(&one).ok()?;
        Some(Proof { store: header.store, number: header.seq, one: one.to_vec(), other: other.to_vec() })
    }
}
