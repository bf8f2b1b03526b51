//! Gossip as the real network has it: iroh-gossip's own state machine at every node, of which the simulation carries the
//! messages and keeps the time.

use std::collections::BTreeSet;

use bytes::Bytes;
use iroh_gossip::proto::topic::{InEvent, Message, OutEvent, State, Timer};
use iroh_gossip::proto::{Command, Config, Event, PeerData, Scope};
use lattice::ids::{NodeId, StoreId};
use lattice::replication::replica::Input;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::tally::Kind;
use crate::world::{Happening, START, World};

/// What a node tells of its addresses when it joins: about as much as a real one.
const ADDRESSES: [u8; 60] = [0; 60];
/// After how long a node that can't be reached is taken for gone, in milliseconds.
const UNREACHED: u64 = 3_000;
/// With fewer neighbours than this, one that goes is asked to come back after a second: as in `net/iroh/topics.rs`.
const FEW: usize = 3;
const COME_BACK: u64 = 1_000;

/// A node's part in the gossip of a store.
pub(crate) struct Swarm {
    state: State<NodeId, StdRng>,
    neighbours: BTreeSet<NodeId>,
}

/// What comes to it.
#[derive(Debug, Clone)]
pub(crate) enum SwarmInput {
    /// A link with a peer was made.
    Join(NodeId),
    Broadcast(Bytes),
    Message(NodeId, Message<NodeId>),
    Timer(Timer<NodeId>),
    /// The connection with a peer has ended.
    Gone(NodeId),
}

impl World {
    /// A node takes part in a store's gossip.
    pub(crate) fn subscribe(&mut self, n: usize, store: StoreId) {
        if !self.plan.swarm {
            return;
        }
        let rng = StdRng::seed_from_u64(self.dice.roll());
        let state = State::with_rng(self.nodes[n].id, Some(PeerData::new(ADDRESSES.to_vec())), Config::default(), rng);
        let up = self.nodes[n].up.as_mut().unwrap();
        up.swarms.insert(store, Swarm { state, neighbours: BTreeSet::new() });
        let linked: Vec<_> = up.sessions.keys().copied().collect();
        for peer in linked {
            let peer = self.nodes[peer].id;
            self.swarm(n, store, SwarmInput::Join(peer));
        }
    }

    /// The same comes to a node's part in the gossip of each store.
    pub(crate) fn swarm_all(&mut self, n: usize, input: &SwarmInput) {
        let stores: Vec<_> = self.nodes[n].up.iter().flat_map(|up| up.swarms.keys().copied()).collect();
        for store in stores {
            self.swarm(n, store, input.clone());
        }
    }

    pub(crate) fn swarm(&mut self, n: usize, store: StoreId, input: SwarmInput) {
        let Some(swarm) = self.nodes[n].up.as_mut().and_then(|up| up.swarms.get_mut(&store)) else { return };
        let event = match input {
            SwarmInput::Join(peer) => InEvent::Command(Command::Join(vec![peer])),
            SwarmInput::Broadcast(message) => InEvent::Command(Command::Broadcast(message, Scope::Swarm)),
            SwarmInput::Message(from, message) => InEvent::RecvMessage(from, message),
            SwarmInput::Timer(timer) => InEvent::TimerExpired(timer),
            SwarmInput::Gone(peer) => InEvent::PeerDisconnected(peer),
        };
        let now = (self.epoch + self.now.since(START)).into();
        let outputs: Vec<_> = swarm.state.handle(event, now).collect();
        for output in outputs {
            self.swarmed(n, store, output);
        }
    }

    fn swarmed(&mut self, n: usize, store: StoreId, output: OutEvent<NodeId>) {
        let life = self.nodes[n].life;
        match output {
            OutEvent::SendMessage(to, message) => self.pass(n, to, store, message),
            OutEvent::EmitEvent(Event::Received(event)) => {
                let input = Input::Gossip { store, from: event.delivered_from, message: event.content };
                self.handle(n, input);
            }
            OutEvent::EmitEvent(Event::NeighborUp(peer)) => {
                self.neighbours_of(n, store).insert(peer);
                self.handle(n, Input::Neighbour { peer });
            }
            OutEvent::EmitEvent(Event::NeighborDown(peer)) => {
                let neighbours = self.neighbours_of(n, store);
                neighbours.remove(&peer);
                if neighbours.len() < FEW {
                    self.at(COME_BACK, Happening::Swarm(n, life, store, SwarmInput::Join(peer)));
                }
            }
            OutEvent::ScheduleTimer(after, timer) => {
                let after = u64::try_from(after.as_millis()).unwrap();
                self.at(after, Happening::Swarm(n, life, store, SwarmInput::Timer(timer)));
            }
            // The other topics may need the connection; and everybody's address is known.
            OutEvent::DisconnectPeer(_) | OutEvent::PeerData(..) => {}
        }
    }

    fn neighbours_of(&mut self, n: usize, store: StoreId) -> &mut BTreeSet<NodeId> {
        &mut self.nodes[n].up.as_mut().unwrap().swarms.get_mut(&store).unwrap().neighbours
    }

    /// A message goes to another node. Those between two nodes keep their order.
    fn pass(&mut self, n: usize, to: NodeId, store: StoreId, message: Message<NodeId>) {
        let (me, life, peer) = (self.nodes[n].id, self.nodes[n].life, self.index[&to]);
        if self.nodes[peer].up.is_none() || !self.reachable(n, peer) {
            return self.at(UNREACHED, Happening::Swarm(n, life, store, SwarmInput::Gone(to)));
        }
        let bytes = postcard::to_stdvec(&message).unwrap();
        self.tally.add(n, Kind::of_swarm(&bytes), 4 + bytes.len());
        let soonest = self.now.0 + self.dice.below(self.plan.delay + 1);
        let arrival = self.passes.entry((n, peer)).or_default();
        *arrival = (*arrival).max(soonest);
        let delay = *arrival - self.now.0;
        let life = self.nodes[peer].life;
        self.at(delay, Happening::Swarm(peer, life, store, SwarmInput::Message(me, message)));
    }
}
