//! Gossip: one topic a store, on iroh-gossip, with its sharp edges kept inside.
//!
//! It drops a whole topic when given a message above its limit, and never rejoins a neighbour by itself: so sizes are
//! checked here, and every topic joins a peer when a link with it is made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::iroh::EndpointId;
use bytes::Bytes;
use iroh_gossip::api::{Event as GossipEvent, GossipReceiver, GossipSender};
use iroh_gossip::net::Gossip;
use iroh_gossip::proto::TopicId;
use n0_future::StreamExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::ids::{NodeId, StoreId};
use crate::net::link::Event;
use crate::replication::limits;

/// Messages that may wait to be sent in one topic. More are dropped: gossip is a hint.
const QUEUE: usize = 1_024;
/// How long gossip may take one message before the topic is taken for stuck and joined anew.
const STUCK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// With fewer neighbours than this, one that goes is asked to come back.
const FEW: usize = 3;

#[derive(Debug)]
enum Ask {
    Broadcast(Bytes),
    Join(NodeId),
}

#[derive(Debug)]
struct Topic {
    asks: mpsc::Sender<Ask>,
    task: AbortHandle,
}

/// The topics that this node takes part in.
#[derive(Debug)]
pub(super) struct Topics {
    gossip: Gossip,
    events: mpsc::Sender<Event>,
    open: BTreeMap<StoreId, Topic>,
}

impl Topics {
    pub(super) const fn new(gossip: Gossip, events: mpsc::Sender<Event>) -> Self {
        Self { gossip, events, open: BTreeMap::new() }
    }

    pub(super) fn subscribe(&mut self, store: StoreId, topic: [u8; 32], linked: Vec<NodeId>) {
        if self.open.contains_key(&store) {
            return;
        }
        let (asks, inbox) = mpsc::channel(QUEUE);
        let run = Run {
            gossip: self.gossip.clone(),
            store,
            topic: TopicId::from_bytes(topic),
            events: self.events.clone(),
            linked: linked.into_iter().collect(),
        };
        let task = tokio::spawn(run.run(inbox)).abort_handle();
        self.open.insert(store, Topic { asks, task });
    }

    pub(super) fn unsubscribe(&mut self, store: &StoreId) {
        if let Some(topic) = self.open.remove(store) {
            topic.task.abort();
        }
    }

    pub(super) fn broadcast(&self, store: &StoreId, message: Bytes) {
        if message.len() > limits::GOSSIP_MESSAGE {
            tracing::error!(store = %store.short(), size = message.len(), "a gossip message above the limit was not sent");
            return;
        }
        if let Some(topic) = self.open.get(store)
            && topic.asks.try_send(Ask::Broadcast(message)).is_err()
        {
            tracing::debug!(store = %store.short(), "gossip is slow: a message was dropped");
        }
    }

    /// A link with `peer` is up: it is to be a neighbour in every topic.
    pub(super) fn join(&self, peer: NodeId) {
        for (store, topic) in &self.open {
            if topic.asks.try_send(Ask::Join(peer)).is_err() {
                tracing::debug!(store = %store.short(), "gossip is slow: a peer was not joined");
            }
        }
    }

    pub(super) fn close(&mut self) {
        for topic in std::mem::take(&mut self.open).into_values() {
            topic.task.abort();
        }
    }
}

/// Why a topic's round ended.
enum Over {
    /// Nobody wants the topic any more.
    Closed,
    /// Gossip failed or is stuck.
    Broken(String),
}

struct Run {
    gossip: Gossip,
    store: StoreId,
    topic: TopicId,
    events: mpsc::Sender<Event>,
    /// Peers that a link was made with: where to begin.
    linked: BTreeSet<NodeId>,
}

impl Run {
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        loop {
            match self.round(&mut inbox).await {
                Over::Closed => return,
                Over::Broken(reason) => {
                    tracing::warn!(store = %self.store.short(), reason, "gossip failed: joining again");
                    if self.events.send(Event::Lagged { store: self.store }).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn round(&mut self, inbox: &mut mpsc::Receiver<Ask>) -> Over {
        let subscribed = timeout(STUCK, self.gossip.subscribe(self.topic, ids(&self.linked))).await;
        let (sender, receiver) = match subscribed {
            Ok(Ok(topic)) => topic.split(),
            Ok(Err(error)) => return Over::Broken(error.to_string()),
            Err(_elapsed) => return Over::Broken("it does not answer".to_owned()),
        };
        let (back, returning) = mpsc::channel(16);
        tokio::select! {
            over = send(&sender, inbox, returning, &mut self.linked) => over,
            over = receive(receiver, self.store, &self.events, back) => over,
        }
    }
}

fn ids<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Vec<EndpointId> {
    nodes.into_iter().filter_map(|node| EndpointId::from_bytes(node.as_bytes()).ok()).collect()
}

async fn send(
    sender: &GossipSender,
    inbox: &mut mpsc::Receiver<Ask>,
    mut returning: mpsc::Receiver<NodeId>,
    linked: &mut BTreeSet<NodeId>,
) -> Over {
    loop {
        let ask = tokio::select! {
            ask = inbox.recv() => match ask {
                Some(ask) => ask,
                None => return Over::Closed,
            },
            Some(peer) = returning.recv() => Ask::Join(peer),
        };
        let done = match ask {
            Ask::Broadcast(message) => timeout(STUCK, sender.broadcast(message)).await,
            Ask::Join(peer) => {
                linked.insert(peer);
                timeout(STUCK, sender.join_peers(ids([&peer]))).await
            }
        };
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Over::Broken(error.to_string()),
            Err(_elapsed) => return Over::Broken("it takes no messages".to_owned()),
        }
    }
}

async fn receive(
    mut receiver: GossipReceiver,
    store: StoreId,
    events: &mpsc::Sender<Event>,
    back: mpsc::Sender<NodeId>,
) -> Over {
    let mut neighbours = BTreeSet::new();
    loop {
        let event = match receiver.next().await {
            Some(Ok(GossipEvent::Received(message))) => {
                let from = NodeId(*message.delivered_from.as_bytes());
                Event::Gossip { store, from, message: message.content }
            }
            Some(Ok(GossipEvent::NeighborUp(id))) => {
                let peer = NodeId(*id.as_bytes());
                neighbours.insert(peer);
                Event::Neighbour { store, peer }
            }
            Some(Ok(GossipEvent::NeighborDown(id))) => {
                let peer = NodeId(*id.as_bytes());
                neighbours.remove(&peer);
                if neighbours.len() < FEW {
                    let back = back.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(RETRY).await;
                        if back.send(peer).await.is_err() {
                            tracing::trace!("the topic was closed meanwhile");
                        }
                    });
                }
                continue;
            }
            Some(Ok(GossipEvent::Lagged)) => Event::Lagged { store },
            Some(Err(error)) => return Over::Broken(error.to_string()),
            None => return Over::Broken("its stream ended".to_owned()),
        };
        if events.send(event).await.is_err() {
            return Over::Closed;
        }
    }
}
