//! What the replication driver asks of a network and hears from it: plain values on two channels, so that a
//! simulated network fits as well as a real one.
//!
//! A link with a peer is one ordered, reliable session: it begins with [`Event::Connected`] and ends with
//! [`Event::Lost`]. Frames are delivered once and in order within a session; one that was sent near its end may be lost.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::ids::{NodeId, StoreId};

/// What is asked of the network. Asking for something that is already so is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Keep connected to exactly these, each with the addresses where it was last known to be. Links with others are closed.
    Peers(Vec<(NodeId, Vec<SocketAddr>)>),
    /// Send a frame of at most `limits::FRAME` bytes. Without a link to the peer it is dropped.
    Send {
        /// To whom.
        peer: NodeId,
        /// The frame.
        frame: Bytes,
    },
    /// End the link with a peer. If it is still among `Peers` it is dialled again.
    Close {
        /// Whose.
        peer: NodeId,
        /// A code that the peer is told.
        code: u32,
        /// A sentence that the peer is told.
        reason: String,
    },
    /// Join the gossip of a store.
    Subscribe {
        /// The store, as events will name it.
        store: StoreId,
        /// The topic that all members derive for it.
        topic: [u8; 32],
    },
    /// Leave the gossip of a store.
    Unsubscribe {
        /// The store.
        store: StoreId,
    },
    /// Tell all who take part in the gossip of a store. It may be lost. At most `limits::GOSSIP_MESSAGE` bytes.
    Broadcast {
        /// The store.
        store: StoreId,
        /// The message.
        message: Bytes,
    },
}

/// What the network reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is up. It is a new session: nothing of an earlier one is in flight on it.
    Connected {
        /// With whom.
        peer: NodeId,
        /// Where it is, if that is known.
        address: Option<String>,
    },
    /// A link is down.
    Lost {
        /// Whose.
        peer: NodeId,
        /// Why, in words.
        reason: String,
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
        /// Who handed it over: not necessarily who wrote it.
        from: NodeId,
        /// The message.
        message: Bytes,
    },
    /// A peer became a neighbour in the gossip of a store.
    Neighbour {
        /// The store.
        store: StoreId,
        /// Who.
        peer: NodeId,
    },
    /// Gossip messages of a store were lost here, since they came faster than they were taken.
    Lagged {
        /// The store.
        store: StoreId,
    },
}

/// A network, as its user holds it. It ends when the sender is dropped.
#[derive(Debug)]
pub struct Network {
    /// For what is asked of it.
    pub commands: mpsc::Sender<Command>,
    /// What it reports. It must be drained: while it is full no link receives.
    pub events: mpsc::Receiver<Event>,
}
