//! mDNS: announces this node on the local network, and hears of others there.
//!
//! The library warns many times a minute where there is no route for multicast, so it runs only while there is one.
//! It is not asked to look nodes up (that takes ten seconds to fail): what it hears goes into the address book.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ::iroh::address_lookup::AddressLookup;
use ::iroh::endpoint_info::EndpointData;
use ::iroh::{Endpoint, Watcher};
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};
use n0_future::StreamExt;

use super::Shared;
use super::hub::Internal;
use crate::ids::NodeId;

const SERVICE: &str = "lattice-mesh";
/// How often the route is looked for.
const LOOK: Duration = Duration::from_secs(5);
const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 251), 5353);

/// Runs for ever.
pub(super) async fn watch(endpoint: Endpoint, shared: Arc<Shared>) {
    loop {
        if multicast_has_a_route() {
            announce(&endpoint, &shared).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the system would send a packet to the group. It asks the routing table only: nothing is sent.
fn multicast_has_a_route() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_ok_and(|socket| socket.connect(GROUP).is_ok())
}

/// Announces and listens until there is no route any more.
async fn announce(endpoint: &Endpoint, shared: &Shared) {
    let mdns = match MdnsAddressLookup::builder().service_name(SERVICE).build(endpoint.id()) {
        Ok(mdns) => mdns,
        Err(error) => {
            tracing::debug!(%error, "mDNS can't be used here");
            return;
        }
    };
    let mut heard = mdns.subscribe().await;
    let mut addresses = endpoint.watch_addr();
    let mut look = tokio::time::interval(LOOK);
    publish(&mdns, endpoint);
    loop {
        tokio::select! {
            event = heard.next() => match event {
                Some(DiscoveryEvent::Discovered { endpoint_info, .. }) => {
                    let node = NodeId(*endpoint_info.endpoint_id.as_bytes());
                    let found: Vec<_> = endpoint_info.ip_addrs().copied().collect();
                    if shared.gate.admits(&node) && !found.is_empty() {
                        shared.book.learn(node, &found);
                        shared.tell(Internal::Found(node));
                    }
                }
                Some(_) => {}
                None => return,
            },
            changed = addresses.updated() => match changed {
                Ok(_) => publish(&mdns, endpoint),
                Err(_closed) => return,
            },
            _ = look.tick() => if !multicast_has_a_route() { return },
        }
    }
}

fn publish(mdns: &MdnsAddressLookup, endpoint: &Endpoint) {
    let addresses: BTreeSet<SocketAddr> = super::direct_addresses(endpoint).into_iter().collect();
    mdns.publish(&EndpointData::from(addresses));
}
