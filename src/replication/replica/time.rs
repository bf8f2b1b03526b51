//! What time brings: probes, reconciliation, pulls that stand still, entries that are due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::pull::Pull;
use super::{Closing, Output, Peer, Replica};
use crate::clock::Millis;
use crate::ids::{NodeId, StoreId};
use crate::replication::limits;
use crate::replication::message::Message;
use crate::replication::reconcile::Shelf;

/// When each peer is due, the earliest first: so that a message from one costs no look at all the others.
#[derive(Default)]
pub(super) struct Due {
    order: BTreeSet<(Millis, NodeId)>,
    peers: BTreeMap<NodeId, Millis>,
}

impl Due {
    pub(super) fn set(&mut self, id: NodeId, at: Millis) {
        let before = self.peers.insert(id, at);
        if before != Some(at) {
            before.map(|before| self.order.remove(&(before, id)));
            self.order.insert((at, id));
        }
    }

    pub(super) fn forget(&mut self, id: &NodeId) {
        if let Some(at) = self.peers.remove(id) {
            self.order.remove(&(at, *id));
        }
    }

    fn first(&self) -> Millis {
        self.order.first().map_or(Millis(u64::MAX), |(at, _)| *at)
    }

    fn until(&self, now: Millis) -> Vec<NodeId> {
        self.order.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }
}

impl Replica {
    /// Notes when a peer is due. Whatever changes one of its timers, or its patience, ends with this.
    pub(super) fn schedule(&mut self, id: &NodeId) {
        if let Some(peer) = self.peers.get(id) {
            self.due.set(*id, peer.due());
        }
    }

    pub(super) fn jitter(&mut self, around: Duration) -> Duration {
        around * 3 / 4 + self.within(around / 2)
    }

    /// Some time up to `most`.
    pub(super) fn within(&mut self, most: Duration) -> Duration {
        // A step of the SplitMix64 generator: spread is all that is asked of it.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = u32::try_from((z ^ (z >> 31)) % 1_000).unwrap_or(0);
        most.mul_f64(f64::from(part) / 1_000.0)
    }

    /// Nobody was silent while this node slept; whether they are still there is to be probed.
    pub(super) fn woke(&mut self, now: Millis) {
        for peer in self.peers.values_mut() {
            (peer.probe, peer.next_probe, peer.next_reconcile) = (None, now, now);
        }
        for (id, peer) in &self.peers {
            self.due.set(*id, peer.due());
        }
        for store in self.stores.values_mut() {
            if let Some(pull) = &mut store.pull {
                pull.touch(now);
            }
        }
    }

    /// When [`Input::Tick`](super::Input::Tick) is due at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Millis {
        let stores = self.stores.values().flat_map(|store| {
            let stalled = store.pull.as_ref().and_then(Pull::stalls_at);
            [stalled, store.ask.map(|(at, _)| at), store.early, store.news.due].into_iter().flatten()
        });
        stores.fold(self.due.first(), Millis::min)
    }

    pub(super) fn tick(&mut self, now: Millis, shelf: &dyn Shelf) {
        if self.wake_at() > now {
            return;
        }
        for id in self.due.until(now) {
            self.tick_peer(id, now, shelf);
            self.schedule(&id);
        }
        let stores: Vec<_> = self.stores.keys().copied().collect();
        for store in stores {
            self.tick_store(store, now, shelf);
        }
    }

    fn tick_peer(&mut self, id: NodeId, now: Millis, shelf: &dyn Shelf) {
        let reconcile = self.jitter(limits::RECONCILE);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.comparing.retain(|_, (_, used)| now.since(*used) < limits::RECONCILE);
        if let Some((_, since)) = peer.probe
            && now.since(since) >= peer.patience()
        {
            // Without a hello by now it is not of our kind, whatever else it says.
            let heard = peer.heard > since && peer.build.is_some();
            peer.probe = None;
            if !heard {
                self.out.push(Output::Close { peer: id, why: Closing::Silent });
                return;
            }
        }
        let mut send = Vec::new();
        if now >= peer.next_probe {
            peer.next_probe = now.after(limits::HEARTBEAT);
            if peer.probe.is_none() {
                self.next_id += 1;
                peer.probe = Some((self.next_id, now));
                send.push(Message::Ping(self.next_id));
            }
        }
        let due = now >= peer.next_reconcile;
        if due {
            peer.next_reconcile = now.after(reconcile);
        }
        for message in send {
            self.send(id, &message);
        }
        if due {
            self.send_status(id, true, shelf);
        }
    }

    fn tick_store(&mut self, store: StoreId, now: Millis, shelf: &dyn Shelf) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        if state.early.is_some_and(|due| due <= now) {
            state.early = None;
            self.out.push(Output::Retry(store));
        }
        if let Some(peer) = state.pull.as_ref().filter(|pull| pull.stalls_at().is_some_and(|at| at <= now)) {
            let peer = peer.peer;
            tracing::debug!(target: "sync", peer = %peer.short(), store = %store.short(), "a pull stands still");
            self.abandon(&store, &peer);
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.claims.remove(&store);
            }
            self.plan(store, now, shelf);
        }
        self.announce_pulled(store, now);
        self.ask(store, now, shelf);
    }
}

impl Peer {
    /// When its next timer is due.
    pub(super) fn due(&self) -> Millis {
        let silent = self.probe.map_or(Millis(u64::MAX), |(_, since)| since.after(self.patience()));
        self.next_probe.min(self.next_reconcile).min(silent)
    }

    /// How long it may stay silent: longer over a slow link, and while a probe waits behind what it asked for.
    fn patience(&self) -> Duration {
        let busy = self.serving.values().any(|serving| !serving.done());
        match self.rtt {
            Some(rtt) if !busy => (rtt * 4).clamp(limits::SILENCE, limits::SILENCE_BUSY),
            Some(_) | None => limits::SILENCE_BUSY,
        }
    }
}
