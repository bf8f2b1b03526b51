//! The protocol, as a pure core: what happened and what time it is go in, what is to be done comes out.
//!
//! It keeps no entries and touches no disk, socket or clock. It reads the logs through a [`Shelf`], which shows what
//! is durable, so nothing else can leave the node. How it goes:
//!
//! - On connecting, both ends send [`Message::Hello`] and their fingerprints ([`Message::Status`]). Equal ones end it.
//!   For each store that differs, each end tells its authors' tips; who lacks something pulls it. The same is begun
//!   again every half a minute or so, and soon after there was something new.
//! - Durable local entries are given to gossip whole, or as tips if they are many or large. Pulled ones are announced
//!   as tips, so that nodes which can't reach the author learn of them: each node does so after a random time, unless
//!   enough others did before.
//! - What a peer claims to have beyond what is included here is a *claim*. A store has at most one pull under way,
//!   from the peer with the most to give; a claim that was pulled is dropped, whatever came of it, until it is made
//!   again. So a peer that claims what it can't give costs one pull each time it says so.
//!
//! [`crate::replication::driver`] runs it on real links, the simulation on simulated ones.

mod pull;
mod push;
mod snapshot;
#[cfg(test)]
mod tests;
mod time;

use std::collections::{BTreeMap, btree_map};
use std::time::Duration;

use bytes::Bytes;

pub use self::snapshot::{PeerStatus, Snapshot, StoreStatus};

use super::ingest::{Batch, Report};
use super::limits;
use super::log::{Durable, Fingerprint, Tip};
use super::message::{Message, PROTOCOL};
use super::reconcile::{Comparison, Serving, Shelf};
use crate::clock::Millis;
use crate::ids::{Hash, MeshId, NodeId, StoreId};

/// Why a connection is ended, as the peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It speaks another version of the protocol.
    Protocol,
    /// It belongs to another mesh.
    OtherMesh,
    /// It keeps sending what fails validation.
    Faults,
    /// It did not answer.
    Silent,
}

impl Closing {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::OtherMesh => 2,
            Self::Faults => 3,
            Self::Silent => 4,
        }
    }

    /// A sentence.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Protocol => "speaks another version of the sync protocol",
            Self::OtherMesh => "belongs to another mesh",
            Self::Faults => "keeps sending what fails validation",
            Self::Silent => "did not answer a probe",
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A link is up.
    Connected {
        /// With whom.
        peer: NodeId,
        /// Where it is.
        address: Option<String>,
    },
    /// A link is down.
    Lost {
        /// Whose.
        peer: NodeId,
    },
    /// A frame came.
    Received {
        /// From whom.
        peer: NodeId,
        /// The frame.
        frame: Bytes,
    },
    /// A gossip message came.
    Gossip {
        /// In which store's gossip.
        store: StoreId,
        /// Who handed it over.
        from: NodeId,
        /// The message.
        message: Bytes,
    },
    /// A peer became a neighbour in a store's gossip.
    Neighbour {
        /// Who.
        peer: NodeId,
    },
    /// Gossip was lost: what was missed is to be found out.
    Missed,
    /// The machine slept: the time jumped.
    Woke,
    /// Entries became durable.
    Durable(Durable),
    /// A batch was worked off.
    Ingested(Report),
    /// Stores were opened or closed.
    Stores,
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Send {
        /// To whom.
        peer: NodeId,
        /// The frame.
        frame: Bytes,
    },
    /// End a link.
    Close {
        /// Whose.
        peer: NodeId,
        /// Why.
        why: Closing,
    },
    /// Take part in a store's gossip.
    Subscribe(StoreId),
    /// No longer take part in it.
    Unsubscribe(StoreId),
    /// Give a message to a store's gossip.
    Broadcast {
        /// The store.
        store: StoreId,
        /// The message.
        message: Bytes,
    },
    /// Give entries to the store's ingest. Each batch is answered by one [`Input::Ingested`].
    Ingest(Batch),
    /// Let the store's ingest try again what waits. Answered by one [`Input::Ingested`].
    Retry(StoreId),
    /// A peer has told how far this node's own chain goes there.
    Own {
        /// The store.
        store: StoreId,
        /// Whether that is further than here: nothing may be signed before it is here.
        behind: bool,
    },
}

/// Who a replica is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This node.
    pub me: NodeId,
    /// Its mesh.
    pub mesh: MeshId,
    /// Its build, for people.
    pub build: String,
    /// For the jitter of timers.
    pub seed: u64,
}

struct Peer {
    /// What it said of itself; until then nothing else is heard.
    build: Option<String>,
    address: Option<String>,
    heard: Millis,
    /// The probe that is out, and since when.
    probe: Option<(u64, Millis)>,
    next_probe: Millis,
    next_reconcile: Millis,
    rtt: Option<Duration>,
    /// Per store and author, the last number that it says it has, where that was more than is here.
    claims: BTreeMap<StoreId, BTreeMap<NodeId, u64>>,
    /// Per store, whether its fingerprint was the same at the last exchange.
    in_step: BTreeMap<StoreId, bool>,
    /// Per store, how many entries both had when their fingerprints were last the same.
    agreed: BTreeMap<StoreId, u64>,
    serving: BTreeMap<StoreId, Serving>,
    /// Comparisons of ranges that were begun here, with the time of their last use.
    comparing: BTreeMap<StoreId, (Comparison, Millis)>,
}

#[derive(Default)]
struct Store {
    pull: Option<pull::Pull>,
    /// Entries to be asked for by hash, per peer that has them.
    single: BTreeMap<NodeId, Vec<Hash>>,
    /// Gossip batches given to ingest and not worked off.
    pushed: usize,
    /// When to ask for what orphans lack, and whom first.
    ask: Option<(Millis, NodeId)>,
    asked: Millis,
    /// When the first entry held back for its stamp is due.
    early: Option<Millis>,
    /// Whether all that some peer claimed has been here.
    settled: bool,
    waiting: usize,
    /// Some of what they wait for, and what of it was asked for by tips.
    missing: Vec<Hash>,
    sought: Vec<Hash>,
    failed: bool,
    news: push::News,
    /// Whether peers have told of entries of this node that are not here; `None` before the first has told.
    own: Option<bool>,
}

/// The protocol's state. See the module.
pub struct Replica {
    identity: Identity,
    peers: BTreeMap<NodeId, Peer>,
    due: time::Due,
    stores: BTreeMap<StoreId, Store>,
    faults: BTreeMap<NodeId, (u32, Millis)>,
    past: BTreeMap<NodeId, PeerStatus>,
    random: u64,
    next_id: u64,
    out: Vec<Output>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("me", &self.identity.me).finish_non_exhaustive()
    }
}

impl Replica {
    /// A replica with no links yet. Its first input is [`Input::Stores`].
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            random: identity.seed,
            next_id: identity.seed,
            identity,
            peers: BTreeMap::new(),
            due: time::Due::default(),
            stores: BTreeMap::new(),
            faults: BTreeMap::new(),
            past: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    /// Takes in what happened at `now`, and says what is to be done, in this order.
    pub fn handle(&mut self, input: Input, now: Millis, shelf: &dyn Shelf) -> Vec<Output> {
        match input {
            Input::Connected { peer, address } => self.connected(peer, address, now, shelf),
            Input::Lost { peer } => self.lost(&peer, now, shelf),
            Input::Received { peer, frame } => {
                self.received(peer, &frame, now, shelf);
                self.schedule(&peer);
            }
            Input::Gossip { store, from, message } => self.gossip(store, from, &message, now, shelf),
            Input::Neighbour { peer } => self.reconcile_by(Some(&peer), now),
            Input::Missed => self.reconcile_by(None, now),
            Input::Woke => self.woke(now),
            Input::Durable(durable) => self.durable(&durable, now),
            Input::Ingested(report) => self.ingested(report, now, shelf),
            Input::Stores => self.stores_changed(now, shelf),
            Input::Tick => {}
        }
        self.tick(now, shelf);
        std::mem::take(&mut self.out)
    }

    fn send(&mut self, peer: NodeId, message: &Message) {
        self.out.push(Output::Send { peer, frame: message.encode() });
    }

    fn connected(&mut self, id: NodeId, address: Option<String>, now: Millis, shelf: &dyn Shelf) {
        self.lost(&id, now, shelf);
        let recent = self.faults.get(&id).is_some_and(|(_, last)| now.since(*last) < limits::FAULTS_AGE);
        if !recent {
            self.faults.remove(&id);
        }
        if self.faults.get(&id).is_some_and(|(count, _)| *count >= limits::FAULTS) {
            self.out.push(Output::Close { peer: id, why: Closing::Faults });
            return;
        }
        let peer = Peer {
            build: None,
            address,
            heard: now,
            probe: None,
            // At once: the round-trip time tells how much patience it needs.
            next_probe: now,
            next_reconcile: now.after(self.jitter(limits::RECONCILE)),
            rtt: None,
            claims: BTreeMap::new(),
            in_step: BTreeMap::new(),
            agreed: BTreeMap::new(),
            serving: BTreeMap::new(),
            comparing: BTreeMap::new(),
        };
        self.due.set(id, peer.due());
        self.peers.insert(id, peer);
        let Identity { mesh, build, .. } = self.identity.clone();
        self.send(id, &Message::Hello { protocol: PROTOCOL, mesh, build });
        self.send_status(id, false, shelf);
    }

    fn lost(&mut self, id: &NodeId, now: Millis, shelf: &dyn Shelf) {
        let Some(peer) = self.peers.remove(id) else { return };
        self.due.forget(id);
        self.past.insert(*id, PeerStatus::past(&peer));
        let stores: Vec<_> = self.stores.keys().copied().collect();
        for store in stores {
            if let Some(state) = self.stores.get_mut(&store) {
                state.single.remove(id);
            }
            self.abandon(&store, id);
            self.plan(store, now, shelf);
        }
    }

    /// Asks a peer, or all, at `at` what they have, unless that is due earlier anyway.
    fn reconcile_by(&mut self, only: Option<&NodeId>, at: Millis) {
        let Self { peers, due, .. } = self;
        let mut ask = |id: &NodeId, peer: &mut Peer| {
            peer.next_reconcile = peer.next_reconcile.min(at);
            due.set(*id, peer.due());
        };
        match only {
            Some(id) => peers.get_mut(id).into_iter().for_each(|peer| ask(id, peer)),
            None => peers.iter_mut().for_each(|(id, peer)| ask(id, peer)),
        }
    }

    fn send_status(&mut self, peer: NodeId, answer: bool, shelf: &dyn Shelf) {
        let stores = self.stores.keys().filter_map(|store| Some((*store, shelf.fingerprint(store)?))).collect();
        self.send(peer, &Message::Status { answer, stores });
    }

    fn send_tips(&mut self, peer: NodeId, store: StoreId, answer: bool, shelf: &dyn Shelf) {
        let Some((fingerprint, tips)) = shelf.tips(&store) else { return };
        let tips: Vec<_> = tips.into_iter().collect();
        let mut parts = tips.chunks(limits::TIPS);
        let first = parts.next().unwrap_or_default().to_vec();
        self.send(peer, &Message::Tips { store, answer, fingerprint, tips: first });
        for part in parts {
            self.send(peer, &Message::Tips { store, answer: false, fingerprint, tips: part.to_vec() });
        }
    }

    fn fault(&mut self, peer: NodeId, count: u32, now: Millis) {
        let faults = self.faults.entry(peer).or_insert((0, now));
        let before = faults.0;
        *faults = (before.saturating_add(count), now);
        if faults.0 >= limits::FAULTS && before < limits::FAULTS && self.peers.contains_key(&peer) {
            tracing::warn!(target: "sync", peer = %peer.short(), "a peer keeps sending what fails validation");
            self.out.push(Output::Close { peer, why: Closing::Faults });
        }
    }

    fn received(&mut self, id: NodeId, frame: &Bytes, now: Millis, shelf: &dyn Shelf) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.heard = now;
        let known = peer.build.is_some();
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(target: "sync", peer = %id.short(), %error, "a frame does not read");
                return self.fault(id, limits::FAULTS / 4, now);
            }
        };
        match message {
            Message::Hello { protocol, mesh, build } => self.hello(id, protocol, mesh, build),
            _ if !known => {}
            Message::Status { answer, stores } => self.status(id, answer, &stores, shelf),
            Message::Tips { store, answer, fingerprint, tips } => {
                if self.stores.contains_key(&store) {
                    self.tips(id, store, fingerprint, &tips, now, shelf);
                    if answer {
                        self.send_tips(id, store, false, shelf);
                    }
                }
            }
            Message::Pull { store, id: pull, wanted, credit } => {
                if self.stores.contains_key(&store) {
                    let serving = Serving::new(store, pull, wanted, credit.min(credit_limit()), shelf);
                    self.serve(id, store, Some(serving), shelf);
                }
            }
            Message::Credit { store, id: pull, bytes } => {
                if let Some(serving) = self.peers.get_mut(&id).and_then(|peer| peer.serving.get_mut(&store))
                    && serving.id() == pull
                {
                    serving.grant(bytes);
                    self.serve(id, store, None, shelf);
                }
            }
            Message::Entries { store, id: pull, last, packed } => {
                self.entries(id, store, pull, last, packed, now, shelf)
            }
            Message::Compare { store, round } => self.compare(id, store, &round, now, shelf),
            Message::Compared { store, round } => self.compared(id, store, &round, now, shelf),
            Message::Have { store, hashes } => self.have(id, store, hashes, now, shelf),
            Message::Ping(nonce) => self.send(id, &Message::Pong(nonce)),
            Message::Pong(nonce) => {
                if let Some(peer) = self.peers.get_mut(&id)
                    && let Some((_, since)) = peer.probe.take_if(|(sent, _)| *sent == nonce)
                {
                    peer.rtt = Some(now.since(since));
                }
            }
        }
    }

    fn hello(&mut self, id: NodeId, protocol: u16, mesh: MeshId, build: String) {
        if protocol != PROTOCOL {
            self.out.push(Output::Close { peer: id, why: Closing::Protocol });
        } else if mesh != self.identity.mesh {
            self.out.push(Output::Close { peer: id, why: Closing::OtherMesh });
        } else if let Some(peer) = self.peers.get_mut(&id) {
            peer.build = Some(build);
        }
    }

    fn status(&mut self, id: NodeId, answer: bool, theirs: &[(StoreId, Fingerprint)], shelf: &dyn Shelf) {
        if answer {
            self.send_status(id, false, shelf);
        }
        for (store, fingerprint) in theirs {
            let (Some(state), Some(mine)) = (self.stores.get_mut(store), shelf.fingerprint(store)) else { continue };
            let Some(peer) = self.peers.get_mut(&id) else { return };
            let equal = mine == *fingerprint;
            peer.in_step.insert(*store, equal);
            if equal {
                peer.agreed.insert(*store, mine.count);
                peer.claims.remove(store);
                state.settled = true;
                self.weigh_own(*store, shelf);
            } else {
                self.send_tips(id, *store, false, shelf);
            }
        }
    }

    fn tips(
        &mut self,
        id: NodeId,
        store: StoreId,
        fingerprint: Fingerprint,
        theirs: &[(NodeId, Tip)],
        now: Millis,
        shelf: &dyn Shelf,
    ) {
        let (Some((mine, durable)), Some(included)) = (shelf.tips(&store), shelf.included(&store)) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let claims = peer.claims.entry(store).or_default();
        for (author, tip) in theirs {
            if included.get(author).is_none_or(|mine| mine.seq < tip.seq) {
                let claim = claims.entry(*author).or_default();
                *claim = (*claim).max(tip.seq);
            }
        }
        if claims.is_empty() {
            peer.claims.remove(&store);
            if let Some(state) = self.stores.get_mut(&store)
                && state.pull.is_none()
            {
                state.settled = true;
            }
        }
        // The same tips over different sets: a fork, or damage. Only ranges can tell. One end begins.
        let same = durable.len() == theirs.len()
            && theirs.iter().all(|(author, tip)| durable.get(author).is_some_and(|mine| mine.seq == tip.seq));
        if same && mine != fingerprint && self.identity.me < id {
            self.begin_comparison(id, store, now, shelf);
        }
        self.weigh_own(store, shelf);
        self.plan(store, now, shelf);
    }

    fn stores_changed(&mut self, now: Millis, shelf: &dyn Shelf) {
        let open = shelf.stores();
        let gone: Vec<_> = self.stores.keys().filter(|store| !open.contains(store)).copied().collect();
        for store in gone {
            self.stores.remove(&store);
            for peer in self.peers.values_mut() {
                peer.claims.remove(&store);
                peer.in_step.remove(&store);
                peer.agreed.remove(&store);
                peer.serving.remove(&store);
                peer.comparing.remove(&store);
            }
            self.out.push(Output::Unsubscribe(store));
        }
        for store in open {
            if let btree_map::Entry::Vacant(place) = self.stores.entry(store) {
                place.insert(Store::default());
                self.out.push(Output::Subscribe(store));
                self.reconcile_by(None, now);
            }
        }
    }
}

fn credit_limit() -> u32 {
    u32::try_from(limits::CREDIT).unwrap_or(u32::MAX)
}
