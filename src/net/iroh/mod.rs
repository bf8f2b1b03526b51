//! The real network: one QUIC endpoint a node, on iroh. Its identity is the author's key.
//!
//! Nothing here needs the internet, a relay or a route: addresses come from the caller (tokens, the ones that worked
//! last), from the peers themselves, and from mDNS where there is a network for it.

mod book;
mod desk;
mod discovery;
mod gate;
mod hub;
mod session;
mod topics;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::iroh::endpoint::{
    BindError, BindOpts, ConnectOptions, Connection, ConnectionError, PortmapperConfig, QuicTransportConfig,
    TransportErrorCode, VarInt, presets,
};
use ::iroh::protocol::{DynProtocolHandler, IncomingFilterOutcome, ProtocolHandler, Router};
use ::iroh::{Endpoint, EndpointId, RelayMode, RelayUrl, SecretKey, Watcher};
use arc_swap::ArcSwapOption;
use ed25519_dalek::SigningKey;
use iroh_gossip::net::Gossip;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::book::Book;
use self::gate::Gate;
pub use self::gate::Refused;
use self::hub::{Hub, Internal};
use self::session::{Greeting, Session};
use super::join::JoinDesk;
use super::link::Network;
use crate::ids::NodeId;
use crate::replication::limits;
use crate::replication::membership::SharedMembership;

/// Codes that tell a peer why its connection is closed.
pub mod close {
    /// The peer is not a member of this node's mesh.
    pub const NOT_A_MEMBER: u32 = 4403;
    /// The peer was removed from this node's mesh since it signed two entries for one place in its chain.
    pub const FORKED: u32 = 4423;
    /// The peer has stopped answering.
    pub const DEAD: u32 = 4408;
    /// Another connection between the two nodes is the link.
    pub const DUPLICATE: u32 = 4409;
    /// A newer connection has become the link.
    pub const SUPERSEDED: u32 = 4410;
    /// This node wants no link with the peer now.
    pub const NOT_WANTED: u32 = 4411;
    /// The peer takes too little of what is sent to it, or asks for too much.
    pub const SLOW: u32 = 4429;
    /// Too many want to join at once, or the peer has too many connections.
    pub const BUSY: u32 = 4430;
    /// This node is going away.
    pub const GOODBYE: u32 = 4000;
}

/// Bytes that a peer may send on one stream, and on all of a connection's, before they are read. What nobody reads stays below that.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// What a round trip is taken for before one was measured. A first packet that is lost is repeated after three of it: the library's 333 ms
/// would make every dial during an outage slow to see its end.
const INITIAL_RTT: Duration = Duration::from_millis(100);
const BLOB_WINDOW: u32 = 1_250_000;
/// How long closing may take.
const SHUTDOWN: Duration = Duration::from_secs(3);
const FIRST_ADDRESSES: Duration = Duration::from_secs(1);
const EVENTS: usize = 256;
const COMMANDS: usize = 1_024;

/// Which relays are used: servers that carry packets between nodes that can't reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Relays {
    /// None: only direct addresses. Nothing is sent to the internet.
    #[default]
    None,
    /// The public ones that iroh's makers run.
    Public,
    /// These, by URL.
    Custom(Vec<String>),
}

/// How a node is on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where it listens (UDP). Port 0: any; ask [`Node::port`] and keep it. `0.0.0.0` listens on IPv6 too, where there is any.
    pub listen: SocketAddr,
    /// Which relays it uses.
    pub relays: Relays,
    /// Whether it announces itself through the public DNS of iroh's makers and finds others there.
    pub dns: bool,
    /// Whether it announces itself on the local network and finds others there.
    pub mdns: bool,
    /// Whether it asks the router at home to open its port.
    pub port_mapping: bool,
}

impl Default for Options {
    fn default() -> Self {
        let listen = SocketAddr::from(([0, 0, 0, 0], 0));
        Self { listen, relays: Relays::None, dns: false, mdns: true, port_mapping: false }
    }
}

/// Why a node can't get onto the network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another program has the port.
    #[error("UDP port {} is in use by another program", .0.port())]
    PortTaken(SocketAddr),
    /// The address is not this machine's.
    #[error("this machine has no address {} (0.0.0.0 means all that it has)", .0.ip())]
    NoSuchAddress(SocketAddr),
    /// A relay's URL is none.
    #[error("'{url}' is not the URL of a relay: {reason}")]
    Relay {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// Something else.
    #[error("the network can't be used: {0}")]
    Bind(String),
}

/// A link as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The peer's end of the path in use: an address and port, or a relay.
    pub address: Option<String>,
    /// The round-trip time of that path.
    pub rtt: Option<Duration>,
}

/// A protocol that another part of the house serves on this node's endpoint. The gate stands before it.
pub type Protocol = (&'static [u8], Box<dyn DynProtocolHandler>);

/// What the parts of a node share.
#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    book: Book,
    /// The links that are up.
    links: watch::Sender<BTreeMap<NodeId, Connection>>,
    /// The peers that last did not let this node in, and why.
    refusing: watch::Sender<BTreeMap<NodeId, Refused>>,
    /// Where this node can be reached, as far as it knows.
    mine: Mutex<Vec<SocketAddr>>,
    /// The hub that runs now.
    hub: Arc<Switch>,
    /// Whether an id without an address may still be found.
    can_look_up: bool,
    /// Tells the greetings of this run from those of others, and counts them.
    run: u64,
    greetings: AtomicU64,
}

impl Shared {
    fn greeting(&self) -> Greeting {
        Greeting {
            addresses: self.mine.lock().unwrap_or_else(PoisonError::into_inner).iter().take(8).copied().collect(),
            run: self.run,
            number: self.greetings.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn tell(&self, what: Internal) {
        self.hub.tell(what);
    }

    fn refused_by(&self, peer: NodeId, why: Refused) {
        self.refusing.send_if_modified(|refusing| refusing.insert(peer, why) != Some(why));
    }

    fn taken_by(&self, peer: &NodeId) {
        self.refusing.send_if_modified(|refusing| refusing.remove(peer).is_some());
    }
}

/// The way to the hub that runs now, if one does.
#[derive(Debug, Default)]
struct Switch(ArcSwapOption<mpsc::UnboundedSender<Internal>>);

impl Switch {
    fn tell(&self, what: Internal) {
        if let Some(hub) = &*self.0.load()
            && hub.send(what).is_err()
        {
            tracing::trace!("the hub has gone");
        }
    }
}

/// The node on the network.
#[derive(Debug)]
pub struct Node {
    endpoint: Endpoint,
    router: Router,
    gossip: Gossip,
    shared: Arc<Shared>,
    desk: Arc<desk::Desk>,
    relays: Vec<RelayUrl>,
    running: Mutex<CancellationToken>,
    stop: CancellationToken,
}

impl Node {
    /// Gets onto the network with the identity `key`. `protocols` are served beside this module's own. Until [`Node::admit`]
    /// nobody gets in, and until [`Node::open_desk`] nobody is let join.
    ///
    /// # Errors
    /// If the address can't be listened on or a relay's URL is wrong.
    pub async fn bind(key: &SigningKey, options: &Options, protocols: Vec<Protocol>) -> Result<Arc<Self>, NetError> {
        let relays = relay_urls(&options.relays)?;
        let gate = Arc::new(Gate::default());
        let hub = Arc::new(Switch::default());
        let hooks = gate::Hooks { gate: gate.clone(), hub: hub.clone() };
        let endpoint = bind_endpoint(key, options, &relays, hooks).await?;
        let shared = Arc::new(Shared {
            gate,
            book: Book::new(relays.clone()),
            links: watch::channel(BTreeMap::new()).0,
            refusing: watch::channel(BTreeMap::new()).0,
            mine: Mutex::default(),
            hub,
            can_look_up: options.dns,
            run: rand::random(),
            greetings: AtomicU64::new(0),
        });
        match endpoint.address_lookup() {
            Ok(lookup) => lookup.add(shared.book.lookup()),
            Err(error) => return Err(NetError::Bind(error.to_string())),
        }
        let gossip = Gossip::builder().spawn(endpoint.clone());
        let desk = Arc::new(desk::Desk::default());
        let router = route(&endpoint, &shared, &gossip, &desk, protocols);
        let stop = CancellationToken::new();
        first_addresses(&endpoint).await;
        *shared.mine.lock().unwrap_or_else(PoisonError::into_inner) = direct_addresses(&endpoint);
        tokio::spawn(stop.clone().run_until_cancelled_owned(watch_addresses(endpoint.clone(), shared.clone())));
        if options.mdns {
            let watch = discovery::watch(endpoint.clone(), shared.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(watch));
        }
        let running = Mutex::new(CancellationToken::new());
        Ok(Arc::new(Self { endpoint, router, gossip, shared, desk, relays, running, stop }))
    }

    /// Who this node is.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId(*self.endpoint.id().as_bytes())
    }

    /// The UDP port that it listens on (that of IPv4, if it listens on both).
    #[must_use]
    pub fn port(&self) -> u16 {
        let sockets = self.endpoint.bound_sockets();
        sockets.iter().find(|socket| socket.is_ipv4()).or_else(|| sockets.first()).map_or(0, SocketAddr::port)
    }

    /// Where it can be reached, as far as it knows: for tokens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        direct_addresses(&self.endpoint)
    }

    /// URLs of the relays through which it can be reached: for tokens.
    #[must_use]
    pub fn relays(&self) -> Vec<String> {
        self.relays.iter().map(ToString::to_string).collect()
    }

    /// From now on lets in whom `membership` admits; nobody if it is `None`. Open connections of others are closed. Call it (or
    /// [`Node::membership_changed`]) when the membership changes; it is looked at twice a second anyway.
    pub fn admit(&self, membership: Option<SharedMembership>) {
        self.shared.gate.set(membership);
        self.shared.tell(Internal::Recheck);
    }

    /// The membership has changed: closes the connections of those who are members no more, and dials anew.
    pub fn membership_changed(&self) {
        self.shared.gate.sweep();
        self.shared.tell(Internal::Recheck);
    }

    /// From now on `desk` answers those who want to join; `None` turns all away.
    pub fn open_desk(&self, desk: Option<Arc<dyn JoinDesk>>) {
        self.desk.set(desk);
    }

    /// Starts to link with peers, as the returned channels tell it to. An earlier network of this node ends.
    #[must_use]
    pub fn network(&self) -> Network {
        let (commands, orders) = mpsc::channel(COMMANDS);
        let (reports, events) = mpsc::channel(EVENTS);
        let (inbox, internal) = mpsc::unbounded_channel();
        let topics = topics::Topics::new(self.gossip.clone(), reports.clone());
        let hub = Hub::new(self.endpoint.clone(), self.shared.clone(), topics, reports, (inbox.clone(), internal));
        let token = self.stop.child_token();
        let earlier =
            std::mem::replace(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner), token.clone());
        earlier.cancel();
        self.shared.hub.0.store(Some(Arc::new(inbox)));
        tokio::spawn(hub.run(orders, token));
        Network { commands, events }
    }

    /// The links that are up, and their ends now.
    #[must_use]
    pub fn linked(&self) -> Vec<(NodeId, Reached)> {
        self.shared.links.borrow().iter().map(|(id, connection)| (*id, reached(connection))).collect()
    }

    /// The link with a peer, if it is up.
    #[must_use]
    pub fn reached(&self, peer: &NodeId) -> Option<Reached> {
        self.shared.links.borrow().get(peer).map(reached)
    }

    /// The peers that don't let this node in, and why, by what they last said; as it changes.
    #[must_use]
    pub fn refusing(&self) -> watch::Receiver<BTreeMap<NodeId, Refused>> {
        self.shared.refusing.subscribe()
    }

    /// Where members were last known to be, the likeliest address first: to be kept by the caller, and given back in
    /// [`Command::Peers`](super::link::Command::Peers) after a restart.
    #[must_use]
    pub fn known_addresses(&self) -> Vec<(NodeId, Vec<SocketAddr>)> {
        let mut known = self.shared.book.all();
        known.retain(|(node, addresses)| !addresses.is_empty() && self.shared.gate.admits(node));
        known
    }

    /// Remembers where a node may be.
    pub fn suggest_addresses(&self, node: NodeId, addresses: &[SocketAddr]) {
        self.shared.book.suggest(node, addresses);
    }

    /// Leaves the network; peers are told. Takes three seconds at most.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.shared.hub.0.store(None);
        if tokio::time::timeout(SHUTDOWN, self.router.shutdown()).await.is_err() {
            tracing::debug!("the network took too long to close");
        }
    }

    /// Whether the gate admits a node.
    pub(crate) fn admits(&self, node: &NodeId) -> bool {
        self.shared.gate.admits(node)
    }

    /// The peers that a link is up with, as it changes.
    pub(crate) fn watch_links(&self) -> watch::Receiver<BTreeMap<NodeId, Connection>> {
        self.shared.links.subscribe()
    }

    /// Dials a node for a protocol of bulk data.
    pub(crate) async fn dial_bulk(&self, node: NodeId, alpn: &[u8], patience: Duration) -> Result<Connection, String> {
        let address = self.shared.book.address(node).ok_or("its id is no key")?;
        let transport = QuicTransportConfig::builder().stream_receive_window(VarInt::from_u32(BLOB_WINDOW)).build();
        let options = ConnectOptions::new().with_transport_config(transport);
        let dial = async {
            let connecting = self.endpoint.connect_with_opts(address, alpn, options).await.map_err(words)?;
            connecting.await.map_err(words)
        };
        tokio::time::timeout(patience, dial).await.map_err(|_elapsed| format!("no answer within {patience:?}"))?
    }

    /// Dials a node at addresses that a token gives.
    pub(super) async fn dial_host(
        &self,
        node: NodeId,
        addresses: &[SocketAddr],
        relays: &[String],
        alpn: &[u8],
    ) -> Result<Connection, Undialled> {
        let id = EndpointId::from_bytes(node.as_bytes()).map_err(Undialled::new)?;
        self.shared.book.suggest(node, addresses);
        let mut address = ::iroh::EndpointAddr::new(id);
        for direct in addresses.iter().copied().chain(self.shared.book.addresses(&node)) {
            address = address.with_ip_addr(direct);
        }
        for relay in relays.iter().filter_map(|url| url.parse::<RelayUrl>().ok()) {
            address = address.with_relay_url(relay);
        }
        self.endpoint.connect(address, alpn).await.map_err(Undialled::new)
    }
}

/// Why a host can't be reached.
#[derive(Debug)]
pub(super) struct Undialled {
    /// It is there and takes no connections: it is in no mesh.
    pub(super) closed: bool,
    /// In words.
    pub(super) reason: String,
}

impl Undialled {
    fn new(error: impl std::error::Error + 'static) -> Self {
        let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let closed = causes.any(|cause| match cause.downcast_ref() {
            Some(ConnectionError::ConnectionClosed(close)) => {
                close.error_code == TransportErrorCode::CONNECTION_REFUSED
            }
            _ => false,
        });
        Self { closed, reason: words(&error) }
    }
}

/// The code with which the other end closed a connection, if it did.
fn closed_with(connection: &Connection) -> Option<VarInt> {
    let Some(ConnectionError::ApplicationClosed(closed)) = connection.close_reason() else { return None };
    Some(closed.error_code)
}

/// Whether the other end closed a connection with this code.
pub(super) fn was_closed_with(connection: &Connection, code: u32) -> bool {
    closed_with(connection) == Some(code.into())
}

fn words(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

fn reached(connection: &Connection) -> Reached {
    Reached { address: session::remote_address(connection), rtt: session::round_trip(connection) }
}

fn direct_addresses(endpoint: &Endpoint) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = endpoint.addr().ip_addrs().copied().collect();
    // IPv4 first: in tokens and greetings only the first few have room, and it is the likelier to work.
    addresses.sort_by_key(|address| (address.is_ipv6(), is_link_local(address), *address));
    addresses
}

fn is_link_local(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn relay_urls(relays: &Relays) -> Result<Vec<RelayUrl>, NetError> {
    let Relays::Custom(urls) = relays else { return Ok(Vec::new()) };
    let parse =
        |url: &String| url.parse().map_err(|error| NetError::Relay { url: url.clone(), reason: format!("{error}") });
    urls.iter().map(parse).collect()
}

async fn bind_endpoint(
    key: &SigningKey,
    options: &Options,
    relays: &[RelayUrl],
    hooks: gate::Hooks,
) -> Result<Endpoint, NetError> {
    let transport = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .initial_rtt(INITIAL_RTT)
        .build();
    let builder = if options.dns { Endpoint::builder(presets::N0) } else { Endpoint::builder(presets::Minimal) };
    let mode = match &options.relays {
        Relays::None => RelayMode::Disabled,
        Relays::Public => RelayMode::Default,
        Relays::Custom(_) => RelayMode::custom(relays.iter().cloned()),
    };
    let mut builder = builder
        .relay_mode(mode)
        .secret_key(SecretKey::from_bytes(&key.to_bytes()))
        .hooks(hooks)
        .transport_config(transport)
        .clear_ip_transports()
        .bind_addr(options.listen)
        .map_err(|error| NetError::Bind(words(error)))?;
    if !options.port_mapping {
        builder = builder.portmapper_config(PortmapperConfig::Disabled);
    }
    if options.listen.is_ipv4() && options.listen.ip().is_unspecified() {
        let same_port = SocketAddr::from((Ipv6Addr::UNSPECIFIED, options.listen.port()));
        builder = builder
            .bind_addr_with_opts(same_port, BindOpts::default().set_is_required(false))
            .map_err(|error| NetError::Bind(words(error)))?;
    }
    builder.bind().await.map_err(|error| bind_error(&error, options.listen))
}

fn bind_error(error: &BindError, listen: SocketAddr) -> NetError {
    if let BindError::Sockets { source, .. } = error {
        if source.kind() == io::ErrorKind::AddrInUse {
            return NetError::PortTaken(listen);
        }
        if source.kind() == io::ErrorKind::AddrNotAvailable {
            return NetError::NoSuchAddress(listen);
        }
    }
    NetError::Bind(words(error))
}

fn route(
    endpoint: &Endpoint,
    shared: &Arc<Shared>,
    gossip: &Gossip,
    desk: &Arc<desk::Desk>,
    protocols: Vec<Protocol>,
) -> Router {
    let (gate, open_desk) = (shared.gate.clone(), desk.clone());
    let mut router = Router::builder(endpoint.clone())
        .incoming_filter(Arc::new(move |_incoming| {
            if gate.has_mesh() || open_desk.is_open() {
                IncomingFilterOutcome::Accept
            } else {
                IncomingFilterOutcome::Reject
            }
        }))
        .accept(hub::ALPN, Sync(shared.clone()))
        .accept(super::join::ALPN, desk.clone())
        .accept(iroh_gossip::ALPN, gossip.clone());
    for (alpn, handler) in protocols {
        router = router.accept(alpn, handler);
    }
    router.spawn()
}

/// Takes the sync connections that peers dial.
#[derive(Debug)]
struct Sync(Arc<Shared>);

impl ProtocolHandler for Sync {
    async fn accept(&self, connection: Connection) -> Result<(), ::iroh::protocol::AcceptError> {
        match Session::accepted(connection.clone()).await {
            Ok(session) => {
                self.0.tell(Internal::Inbound(Box::new(session)));
                connection.closed().await;
            }
            Err(reason) => {
                tracing::debug!(reason, "a peer connected and did not greet");
                connection.close(close::DEAD.into(), b"no greeting");
            }
        }
        Ok(())
    }
}

/// Waits until this machine's addresses are known, but not for long: it may have none.
async fn first_addresses(endpoint: &Endpoint) {
    let mut watcher = endpoint.watch_addr();
    let known = async { while watcher.get().ip_addrs().next().is_none() && watcher.updated().await.is_ok() {} };
    if tokio::time::timeout(FIRST_ADDRESSES, known).await.is_err() {
        tracing::debug!("this machine has no address yet");
    }
}

/// Follows this machine's addresses.
async fn watch_addresses(endpoint: Endpoint, shared: Arc<Shared>) {
    let mut watcher = endpoint.watch_addr();
    loop {
        if watcher.updated().await.is_err() {
            return;
        }
        let fresh = direct_addresses(&endpoint);
        let changed = {
            let mut mine = shared.mine.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = !mine.is_empty() && *mine != fresh;
            *mine = fresh;
            changed
        };
        if changed {
            shared.tell(Internal::Moved);
        }
    }
}

const _: () = assert!(limits::GOSSIP_MESSAGE <= 4_000, "gossip loses larger ones without an error");
