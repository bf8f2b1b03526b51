//! Who is linked with whom: links are made, break, and are made again.

use std::collections::BTreeSet;

use lattice::replication::replica::Input;

use crate::node::Node;
use crate::swarm::SwarmInput;
use crate::world::{Happening, World};

impl World {
    /// Notes that a node has no links: they are to be made.
    pub(crate) fn part(&mut self, n: usize) {
        let pair = |peer: usize| (n.min(peer), n.max(peer));
        if self.plan.rings == 0 {
            self.apart.extend((0..self.nodes.len()).filter(|peer| *peer != n).map(pair));
        } else {
            self.apart.extend(self.neighbours[n].iter().map(|peer| pair(*peer)));
        }
    }

    fn linked_to_be(&self, a: usize, b: usize) -> bool {
        self.plan.rings == 0 || self.neighbours[a].contains(&b)
    }

    pub(crate) fn hang_up(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            let session = self.nodes[node].up.as_ref().and_then(|up| up.sessions.get(&peer).copied());
            if let Some(session) = session {
                let after = self.dice.below(self.plan.delay + 1);
                self.at(after, Happening::Lost { node, peer, session });
            }
        }
    }

    pub(crate) fn lose(&mut self, node: usize, peer: usize, session: u64) {
        let Some(up) = &mut self.nodes[node].up else { return };
        if up.sessions.get(&peer) != Some(&session) {
            return;
        }
        up.sessions.remove(&peer);
        if self.linked_to_be(node, peer) {
            self.apart.insert((node.min(peer), node.max(peer)));
        }
        let id = self.nodes[peer].id;
        if self.nodes[peer].up.is_none() || !self.reachable(node, peer) {
            // Who does not answer on its link has its gossip's connection closed with it.
            self.swarm_all(node, &SwarmInput::Gone(id));
        }
        self.handle(node, Input::Lost { peer: id });
    }

    /// Nodes that can reach each other and are to have a link make one.
    pub(crate) fn dial(&mut self) {
        let due: Vec<_> = self.apart.iter().copied().collect();
        for (a, b) in due {
            let up = self.nodes[a].up.is_some() && self.nodes[b].up.is_some();
            if !up || !self.reachable(a, b) || self.dice.percent(30) {
                continue;
            }
            self.apart.remove(&(a, b));
            self.session += 1;
            for (node, peer) in [(a, b), (b, a)] {
                self.nodes[node].up.as_mut().unwrap().sessions.insert(peer, self.session);
                self.arrivals.insert((node, peer), self.now);
            }
            for (node, peer) in [(a, b), (b, a)] {
                let peer = self.nodes[peer].id;
                self.handle(node, Input::Connected { peer, address: None });
                if self.plan.swarm {
                    self.swarm_all(node, &SwarmInput::Join(peer));
                } else {
                    self.handle(node, Input::Neighbour { peer });
                }
            }
        }
        self.at(300, Happening::Dial);
    }
}

/// Whom each node is linked with: on each ring, an order that follows from the nodes' ids alone, the one before it and the one
/// behind it.
pub(crate) fn rings(nodes: &[Node], count: u64) -> Vec<BTreeSet<usize>> {
    let mut neighbours = vec![BTreeSet::new(); nodes.len()];
    for ring in 0..count {
        let place = |n: &usize| {
            *blake3::Hasher::new().update(&ring.to_le_bytes()).update(&nodes[*n].id.0).finalize().as_bytes()
        };
        let mut order: Vec<_> = (0..nodes.len()).collect();
        order.sort_by_cached_key(place);
        for (at, n) in order.iter().enumerate() {
            let next = order[(at + 1) % order.len()];
            if next != *n {
                neighbours[*n].insert(next);
                neighbours[next].insert(*n);
            }
        }
    }
    neighbours
}
