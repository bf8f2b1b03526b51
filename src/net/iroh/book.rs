//! Where each node was last known to be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use ::iroh::address_lookup::memory::MemoryLookup;
use ::iroh::{EndpointAddr, EndpointId, RelayUrl, TransportAddr};

use crate::ids::NodeId;

/// The addresses kept for one node; the ones that worked last come first.
const KEPT: usize = 8;

/// The address book. What is in it the endpoint finds by itself when any protocol dials.
#[derive(Debug, Default)]
pub(super) struct Book {
    lookup: MemoryLookup,
    known: Mutex<BTreeMap<NodeId, Vec<SocketAddr>>>,
    relays: Vec<RelayUrl>,
}

impl Book {
    pub(super) fn new(relays: Vec<RelayUrl>) -> Self {
        Self { relays, ..Self::default() }
    }

    /// What the endpoint asks.
    pub(super) fn lookup(&self) -> MemoryLookup {
        self.lookup.clone()
    }

    /// Puts addresses before the known ones: they are fresher.
    pub(super) fn learn(&self, node: NodeId, fresh: &[SocketAddr]) {
        self.change(node, |known| {
            let mut all = fresh.to_vec();
            all.append(known);
            *known = all;
        });
    }

    /// Puts addresses behind the known ones: they may be old.
    pub(super) fn suggest(&self, node: NodeId, perhaps: &[SocketAddr]) {
        self.change(node, |known| known.extend_from_slice(perhaps));
    }

    fn change(&self, node: NodeId, edit: impl FnOnce(&mut Vec<SocketAddr>)) {
        let mut book = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = book.entry(node).or_default();
        edit(known);
        let mut kept: Vec<SocketAddr> = Vec::with_capacity(KEPT);
        for address in known.drain(..) {
            if kept.len() < KEPT && !kept.contains(&address) && address.port() != 0 {
                kept.push(address);
            }
        }
        *known = kept;
        if let Some(address) = self.endpoint_address(node, known) {
            self.lookup.set_endpoint_info(address);
        }
    }

    fn endpoint_address(&self, node: NodeId, addresses: &[SocketAddr]) -> Option<EndpointAddr> {
        let id = EndpointId::from_bytes(node.as_bytes()).ok()?;
        let direct = addresses.iter().copied().map(TransportAddr::Ip);
        let relayed = self.relays.iter().cloned().map(TransportAddr::Relay);
        Some(EndpointAddr::from_parts(id, direct.chain(relayed)))
    }

    /// Where to dial a node; `None` if its id is no valid key.
    pub(super) fn address(&self, node: NodeId) -> Option<EndpointAddr> {
        let addresses = self.addresses(&node);
        self.endpoint_address(node, &addresses)
    }

    pub(super) fn addresses(&self, node: &NodeId) -> Vec<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned().unwrap_or_default()
    }

    pub(super) fn all(&self) -> Vec<(NodeId, Vec<SocketAddr>)> {
        let book = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        book.iter().map(|(node, addresses)| (*node, addresses.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_addresses_come_first_doubles_go_and_no_more_than_the_limit_is_kept() {
        let book = Book::default();
        let node = NodeId([7; 32]);
        let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        book.suggest(node, &[at(1), at(2), at(0)]);
        book.learn(node, &[at(3), at(2)]);
        assert_eq!(book.addresses(&node), [at(3), at(2), at(1)]);
        book.learn(node, &(10..30).map(at).collect::<Vec<_>>());
        assert_eq!(book.addresses(&node), (10..18).map(at).collect::<Vec<_>>());
    }
}
