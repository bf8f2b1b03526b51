//! `lattice peers`: the other nodes as this one sees them.

use std::time::Duration;

use clap::Args;

use super::output::{ago, escaped, short};
use super::{Context, Ended, json};
use crate::api::wire::{Peer, PeersRequest};
use crate::clock::{Clock, System};

const EXAMPLES: &str = "\
Examples:
  lattice peers
  lattice peers --json | jq -r '.[] | select(.online) | .name'";

/// List the members of the mesh as this node sees them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Peers {}

impl Peers {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let Self {} = self;
        let peers = context.client().await?.mesh().peers(PeersRequest {}).await?.into_inner().peers;
        if context.output.is_json() {
            return context.output.value(&peers.iter().map(json::peer).collect());
        }
        let rows: Vec<_> = peers.iter().map(row).collect();
        context.output.table(["NAME", "ID", "ROLE", "STATE", "RTT", "BEHIND", "ADDRESS", "VERSION"], &rows)
    }
}

fn row(peer: &Peer) -> [String; 8] {
    let absent = || "-".to_owned();
    let state = if peer.forked {
        "forked".into()
    } else if peer.removed {
        "removed".into()
    } else if peer.left {
        "left".into()
    } else if peer.me {
        "this node".into()
    } else if peer.online {
        "online".into()
    } else {
        peer.last_seen.map_or_else(|| "not seen yet".into(), |seen| format!("seen {}", ago(System.now().0, seen)))
    };
    [
        escaped(peer.name.as_bytes()),
        short(&peer.id),
        peer.role.clone(),
        state,
        peer.rtt.map_or_else(absent, |rtt| format!("{:.1?}", Duration::from_micros(rtt))),
        peer.lag.map_or_else(absent, |lag| if lag == 0 { "in step".into() } else { format!("{lag} entries") }),
        peer.address.clone().unwrap_or_else(absent),
        peer.version.as_deref().map_or_else(absent, |version| escaped(version.as_bytes())),
    ]
}
