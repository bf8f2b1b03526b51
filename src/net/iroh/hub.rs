//! Keeps this node linked with its peers: dials, redials, and decides which of two connections with a peer is the link.
//!
//! A node dials only a peer that it has no link with, and a greeting says so. Hence a connection that greets is taken for
//! newer than the link that stands (the peer was restarted or has moved) and takes its place. If two nodes dial each other at
//! once, the dial of the one with the smaller id wins: the other gives up its own, and the first holds the other's back.
//! The other's greeting may come only when the first one's link stands; greetings are counted, so it is known for the older.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::iroh::Endpoint;
use ::iroh::endpoint::Connection;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::session::{self, Ended, Greeting, Outgoing, Session};
use super::{Refused, Shared, close, topics::Topics};
use crate::clock::monotonic;
use crate::ids::NodeId;
use crate::net::link::{Command, Event};
use crate::replication::limits;

/// The protocol's name and version.
pub(super) const ALPN: &[u8] = b"lattice/sync/1";
/// How long a dial may take: the library itself would wait 30 s for an address where nobody is.
const DIAL: Duration = Duration::from_secs(4);
const FIRST_RETRY: Duration = Duration::from_millis(150);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// A dial younger than this is not begun anew.
const FRESH: Duration = Duration::from_millis(300);
/// How often the membership is looked at, in case nobody said that it has changed.
const LOOK: Duration = Duration::from_millis(500);

/// What happens to the hub from inside the node.
#[derive(Debug)]
pub(super) enum Internal {
    /// A peer has dialled and greeted.
    Inbound(Box<Session>),
    /// A dial came to an end.
    Dialled { peer: NodeId, attempt: u64, result: Result<Connection, String> },
    /// The greeting over a dialled connection came to an end.
    Greeted { peer: NodeId, attempt: u64, result: Result<Box<Session>, String> },
    /// A session ended.
    Ended { peer: NodeId, link: u64, end: Ended },
    /// A peer was seen on the local network.
    Found(NodeId),
    /// This machine's addresses have changed.
    Moved,
    /// The membership may have changed.
    Recheck,
}

#[derive(Debug)]
struct Link {
    number: u64,
    connection: Connection,
    /// What the peer said first on it.
    greeting: Greeting,
    outgoing: Outgoing,
}

#[derive(Debug)]
enum Dial {
    Idle,
    Connecting {
        attempt: u64,
        task: AbortHandle,
        since: Instant,
    },
    /// Our greeting is on its way. `held`: the peer's own dial, which came meanwhile.
    Greeting {
        attempt: u64,
        task: AbortHandle,
        held: Option<Box<Session>>,
    },
}

#[derive(Debug)]
struct Peer {
    wanted: bool,
    link: Option<Link>,
    /// The task of the last session: the next one waits for it.
    last: Option<JoinHandle<()>>,
    dial: Dial,
    failures: u32,
    next: Instant,
}

impl Peer {
    fn new() -> Self {
        Self { wanted: false, link: None, last: None, dial: Dial::Idle, failures: 0, next: monotonic() }
    }

    fn stop_dial(&mut self) {
        match std::mem::replace(&mut self.dial, Dial::Idle) {
            Dial::Idle => {}
            Dial::Connecting { task, .. } => task.abort(),
            Dial::Greeting { task, held, .. } => {
                task.abort();
                if let Some(held) = held {
                    held.connection.close(close::DUPLICATE.into(), b"another connection is in use");
                }
            }
        }
    }
}

pub(super) struct Hub {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    me: NodeId,
    peers: BTreeMap<NodeId, Peer>,
    topics: Topics,
    events: mpsc::Sender<Event>,
    inbox: mpsc::UnboundedReceiver<Internal>,
    self_send: mpsc::UnboundedSender<Internal>,
    moved: watch::Sender<u64>,
    counter: u64,
    seen_membership: usize,
}

impl Hub {
    pub(super) fn new(
        endpoint: Endpoint,
        shared: Arc<Shared>,
        topics: Topics,
        events: mpsc::Sender<Event>,
        internal: (mpsc::UnboundedSender<Internal>, mpsc::UnboundedReceiver<Internal>),
    ) -> Self {
        let me = NodeId(*endpoint.id().as_bytes());
        Self {
            endpoint,
            me,
            peers: BTreeMap::new(),
            topics,
            events,
            inbox: internal.1,
            self_send: internal.0,
            moved: watch::channel(0).0,
            counter: 0,
            seen_membership: shared.gate.version(),
            shared,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let next = self.next_dial();
            tokio::select! {
                () = stop.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                Some(internal) = self.inbox.recv() => self.hear(internal),
                () = sleep_until(next) => self.dial_due(),
                _ = look.tick() => self.look(),
            }
        }
        for peer in self.peers.values_mut() {
            peer.stop_dial();
            if let Some(link) = &peer.link {
                link.connection.close(close::GOODBYE.into(), b"going away");
            }
        }
        self.topics.close();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Peers(list) => self.want(list),
            Command::Send { peer, frame } => self.send(peer, frame),
            Command::Close { peer, code, reason } => {
                if let Some(link) = self.peers.get(&peer).and_then(|peer| peer.link.as_ref()) {
                    link.connection.close(code.into(), reason.as_bytes());
                }
            }
            Command::Subscribe { store, topic } => self.topics.subscribe(store, topic, self.linked()),
            Command::Unsubscribe { store } => self.topics.unsubscribe(&store),
            Command::Broadcast { store, message } => self.topics.broadcast(&store, message),
        }
    }

    fn linked(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.link.is_some()).map(|(id, _)| *id).collect()
    }

    fn send(&mut self, to: NodeId, frame: bytes::Bytes) {
        if frame.len() > limits::FRAME {
            tracing::error!(peer = %to.short(), size = frame.len(), "a frame above the limit was not sent");
            return;
        }
        let Some(link) = self.peers.get(&to).and_then(|peer| peer.link.as_ref()) else { return };
        if !link.outgoing.push(frame) {
            tracing::warn!(peer = %to.short(), "the peer takes nothing: closing its link");
            link.connection.close(close::SLOW.into(), b"too much is waiting to be sent to you");
        }
    }

    fn want(&mut self, list: Vec<(NodeId, Vec<SocketAddr>)>) {
        self.look();
        let wanted: BTreeSet<_> = list.iter().map(|(id, _)| *id).filter(|id| *id != self.me).collect();
        for (id, addresses) in list {
            if id != self.me {
                self.shared.book.suggest(id, &addresses);
                self.peers.entry(id).or_insert_with(Peer::new).wanted = true;
            }
        }
        for (id, peer) in &mut self.peers {
            if !wanted.contains(id) {
                peer.wanted = false;
                peer.stop_dial();
                if let Some(link) = &peer.link {
                    link.connection.close(close::NOT_WANTED.into(), b"no link is wanted");
                }
            }
        }
        self.dial_due();
    }

    fn look(&mut self) {
        let version = self.shared.gate.version();
        if version != self.seen_membership {
            self.seen_membership = version;
            self.shared.gate.sweep();
            self.hurry();
        }
    }

    /// Forgets all waiting: the world has changed.
    fn hurry(&mut self) {
        self.peers.values_mut().for_each(Peer::hurry);
        self.dial_due();
    }

    fn hear(&mut self, internal: Internal) {
        match internal {
            Internal::Inbound(session) => self.inbound(session),
            Internal::Dialled { peer, attempt, result } => self.dialled(peer, attempt, result),
            Internal::Greeted { peer, attempt, result } => self.greeted(peer, attempt, result),
            Internal::Ended { peer, link, end } => self.ended(peer, link, &end),
            Internal::Found(peer) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.hurry();
                    self.dial_due();
                }
            }
            Internal::Moved => {
                self.moved.send_modify(|times| *times += 1);
                self.hurry();
            }
            Internal::Recheck => self.look(),
        }
    }

    fn inbound(&mut self, session: Box<Session>) {
        let id = session.peer;
        if session.connection.close_reason().is_some() {
            return;
        }
        let smaller = self.me < id;
        let peer = self.peers.entry(id).or_insert_with(Peer::new);
        if let Dial::Greeting { held, .. } = &mut peer.dial
            && smaller
        {
            if let Some(older) = held.replace(session) {
                older.connection.close(close::DUPLICATE.into(), b"another connection is in use");
            }
            return;
        }
        if peer.link.as_ref().is_some_and(|link| session.greeting.is_before(&link.greeting)) {
            session.connection.close(close::DUPLICATE.into(), b"another connection is in use");
            return;
        }
        peer.stop_dial();
        self.establish(session);
    }

    fn dialled(&mut self, id: NodeId, attempt: u64, result: Result<Connection, String>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !matches!(&peer.dial, Dial::Connecting { attempt: current, .. } if *current == attempt) {
            return;
        }
        peer.dial = Dial::Idle;
        match result {
            Ok(connection) => {
                let (shared, inbox) = (self.shared.clone(), self.self_send.clone());
                let task = tokio::spawn(async move {
                    let result = Session::dialled(connection.clone(), &shared.greeting()).await.map(Box::new);
                    if let Some(why) = Refused::told(&connection) {
                        shared.refused_by(id, why);
                    }
                    tell(&inbox, Internal::Greeted { peer: id, attempt, result });
                });
                peer.dial = Dial::Greeting { attempt, task: task.abort_handle(), held: None };
            }
            Err(reason) => self.failed(id, &reason),
        }
    }

    fn greeted(&mut self, id: NodeId, attempt: u64, result: Result<Box<Session>, String>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !matches!(&peer.dial, Dial::Greeting { attempt: current, .. } if *current == attempt) {
            return;
        }
        let Dial::Greeting { held, .. } = std::mem::replace(&mut peer.dial, Dial::Idle) else { return };
        match (result, held) {
            (Ok(session), held) => {
                if let Some(held) = held {
                    held.connection.close(close::DUPLICATE.into(), b"another connection is in use");
                }
                self.establish(session);
            }
            (Err(_), Some(held)) => self.establish(held),
            (Err(reason), None) => self.failed(id, &reason),
        }
    }

    fn failed(&mut self, id: NodeId, reason: &str) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let wait = (FIRST_RETRY * 2u32.saturating_pow(peer.failures.min(8))).min(LAST_RETRY);
        // Spread, so that two nodes that dial each other don't go on in step.
        let wait = wait.mul_f64(0.75 + 0.5 * rand::random::<f64>());
        if peer.failures == 0 {
            tracing::debug!(peer = %id.short(), reason, "not reached");
        }
        peer.failures = peer.failures.saturating_add(1);
        peer.next = monotonic() + wait;
    }

    fn establish(&mut self, session: Box<Session>) {
        let id = session.peer;
        self.counter += 1;
        let number = self.counter;
        let (connection, greeting) = (session.connection.clone(), session.greeting.clone());
        let mut fresh: Vec<_> = session::direct_address(&connection).into_iter().collect();
        fresh.extend(session.greeting.addresses.iter().take(8));
        self.shared.book.learn(id, &fresh);
        self.shared.taken_by(&id);
        let peer = self.peers.entry(id).or_insert_with(Peer::new);
        peer.failures = 0;
        if let Some(old) = peer.link.take() {
            tracing::debug!(peer = %id.short(), "a newer connection takes the link's place");
            old.connection.close(close::SUPERSEDED.into(), b"a newer connection took its place");
        }
        let (inbox, shared, stable) = (self.self_send.clone(), self.shared.clone(), connection.stable_id());
        let on_end = move |end: Ended| {
            // Here and now: whoever hears that the link is lost may ask for it at once.
            if let Some(why) = end.refused {
                shared.refused_by(id, why);
            }
            shared.links.send_modify(|links| {
                if links.get(&id).is_some_and(|current| current.stable_id() == stable) {
                    links.remove(&id);
                }
            });
            tell(&inbox, Internal::Ended { peer: id, link: number, end });
        };
        let (outgoing, task) = session::start(
            *session,
            self.shared.greeting(),
            peer.last.take(),
            self.events.clone(),
            self.moved.subscribe(),
            on_end,
        );
        peer.last = Some(task);
        self.shared.links.send_modify(|links| {
            links.insert(id, connection.clone());
        });
        peer.link = Some(Link { number, connection, greeting, outgoing });
        self.topics.join(id);
    }

    fn ended(&mut self, id: NodeId, link: u64, end: &Ended) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.link.as_ref().is_none_or(|current| current.number != link) {
            return;
        }
        peer.link = None;
        peer.next = monotonic();
        if end.dead {
            self.shared.gate.drop_peer(&id);
        }
        self.dial_due();
    }

    fn next_dial(&self) -> Option<Instant> {
        self.peers.values().filter(|peer| peer.waits()).map(|peer| peer.next).min()
    }

    fn dial_due(&mut self) {
        let now = monotonic();
        let due: Vec<_> =
            self.peers.iter().filter(|(_, peer)| peer.waits() && peer.next <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.dial(id);
        }
    }

    fn dial(&mut self, id: NodeId) {
        let Some(address) =
            self.shared.book.address(id).filter(|address| !address.is_empty() || self.shared.can_look_up)
        else {
            return self.failed(id, "no address is known");
        };
        self.counter += 1;
        let (attempt, endpoint, inbox) = (self.counter, self.endpoint.clone(), self.self_send.clone());
        let task = tokio::spawn(async move {
            let result = match tokio::time::timeout(DIAL, endpoint.connect(address, ALPN)).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(_elapsed) => Err(format!("no answer within {DIAL:?}")),
            };
            tell(&inbox, Internal::Dialled { peer: id, attempt, result });
        });
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.dial = Dial::Connecting { attempt, task: task.abort_handle(), since: monotonic() };
        }
    }
}

impl Peer {
    /// Something has changed: a dial that has had no answer is begun anew, and the next one waits for nothing.
    fn hurry(&mut self) {
        let now = monotonic();
        self.failures = 0;
        self.next = now;
        if matches!(&self.dial, Dial::Connecting { since, .. } if now.duration_since(*since) > FRESH) {
            self.stop_dial();
        }
    }

    fn waits(&self) -> bool {
        self.wanted && self.link.is_none() && matches!(self.dial, Dial::Idle)
    }
}

fn tell(inbox: &mpsc::UnboundedSender<Internal>, what: Internal) {
    if inbox.send(what).is_err() {
        tracing::trace!("the hub has gone");
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
