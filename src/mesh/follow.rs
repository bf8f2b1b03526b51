//! Follows what is included: keeps the set of stores, of links and of fetched blobs as the entries say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use super::{Addresses, Mesh, blocking};
use crate::ids::StoreId;
use crate::net::link::Command;
use crate::replication::limits;
use crate::replication::log::{Event, Log};

/// How often the addresses at which members were reached are kept.
const KEEP_ADDRESSES: Duration = Duration::from_secs(10);
/// How long after an entry that is of no concern to the mesh the next ones gather.
const PAUSE: Duration = Duration::from_millis(5);

/// Follows what is included: keeps the set of stores, of links and of fetched blobs as the entries say.
pub(super) async fn follow(mesh: Arc<Mesh>, mut events: broadcast::Receiver<Arc<Event>>) {
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
                    if events.is_empty() {
                        // A program is writing, perhaps: to be woken for each of its files would slow it down.
                        tokio::time::sleep(PAUSE).await;
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
pub(super) async fn tell_unconfirmed(mesh: Arc<Mesh>) {
    tokio::time::sleep(limits::OWN_TOLD + Duration::from_millis(100)).await;
    if mesh.is_unconfirmed() {
        tracing::info!(target: "mesh", "no member told in time how far this node's own writes go there: going on with what is here");
    }
}

async fn refresh(mesh: &Arc<Mesh>) {
    let registry = mesh.registry.clone();
    let before: BTreeSet<StoreId> = registry.logs().iter().map(|log| log.store()).collect();
    if let Err(error) = blocking(move || registry.refresh()).await {
        tracing::error!(target: "mesh", %error, "opening and closing stores");
    }
    mesh.registry.logs().iter().filter(|log| !before.contains(&log.store())).for_each(|log| mesh.fetch_wanted(log));
}

impl Mesh {
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
    pub(super) fn fetch_wanted(&self, log: &Arc<Log>) {
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
