//! Links, gossip, blobs and joining between real endpoints on loopback; and what a stranger gets: nothing.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, and says what it measured")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr};
use lattice::blobs::{Blobs, Payloads};
use lattice::ids::{Hash, MeshId, NodeId, StoreId};
use lattice::net::iroh::{NetError, Node, Options, Refused, Relays, close};
use lattice::net::join::{self, JoinDesk, JoinError, Refusal, Request, Welcome};
use lattice::net::link::{Command, Event, Network};
use lattice::net::ticket::{Contact, Secret, Ticket};
use lattice::replication::limits;
use lattice::replication::membership::{Member, Membership, Role, SharedMembership};
use tokio::runtime::Runtime;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
const STORE: StoreId = StoreId([5; 32]);
const TOPIC: [u8; 32] = [6; 32];

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn id(seed: u8) -> NodeId {
    NodeId(key(seed).verifying_key().to_bytes())
}

fn members(seeds: &[u8]) -> Membership {
    let member = |seed: &u8| (id(*seed), Member::new(format!("n{seed}"), Role::Writer));
    Membership { members: seeds.iter().map(member).collect::<BTreeMap<_, _>>() }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn options(port: u16) -> Options {
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    Options { listen, relays: Relays::None, dns: false, mdns: false, port_mapping: false }
}

/// A node with its network, and what it has heard.
struct Station {
    node: Arc<Node>,
    network: Network,
    membership: SharedMembership,
}

impl Station {
    async fn with(seed: u8, mesh: &[u8], port: u16, blobs: Option<&Blobs>) -> Self {
        let protocols = blobs.map(Blobs::protocol).into_iter().collect();
        let node = Node::bind(&key(seed), &options(port), protocols).await.unwrap();
        let membership = SharedMembership::new(ArcSwap::from_pointee(members(mesh)));
        node.admit(Some(membership.clone()));
        if let Some(blobs) = blobs {
            blobs.attach(&node);
        }
        Self { network: node.network(), node, membership }
    }

    async fn new(seed: u8, mesh: &[u8]) -> Self {
        Self::with(seed, mesh, 0, None).await
    }

    async fn ask(&self, command: Command) {
        self.network.commands.send(command).await.unwrap();
    }

    async fn want(&self, peers: &[(NodeId, Vec<SocketAddr>)]) {
        self.ask(Command::Peers(peers.to_vec())).await;
    }

    async fn send(&self, peer: NodeId, frame: &[u8]) {
        self.ask(Command::Send { peer, frame: Bytes::copy_from_slice(frame) }).await;
    }

    /// The next event that `pick` takes; others are passed over.
    async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut passed = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match timeout(left, self.network.events.recv()).await {
                Ok(Some(event)) => {
                    passed.push(format!("{event:.200?}"));
                    if let Some(picked) = pick(event) {
                        return picked;
                    }
                }
                Ok(None) => panic!("the network ended while waiting for {what}, after {passed:?}"),
                Err(_) => panic!("not within {PATIENCE:?}: {what}, after {passed:?}"),
            }
        }
    }

    async fn connected(&mut self, to: NodeId) {
        self.until("a link", |event| matches!(event, Event::Connected { peer, .. } if peer == to).then_some(())).await;
    }

    async fn lost(&mut self, whom: NodeId) -> String {
        self.until("a link's end", |event| match event {
            Event::Lost { peer, reason } if peer == whom => Some(reason),
            _ => None,
        })
        .await
    }

    async fn frame(&mut self) -> Bytes {
        self.until("a frame", |event| if let Event::Received { frame, .. } = event { Some(frame) } else { None }).await
    }

    fn at(&self) -> (NodeId, Vec<SocketAddr>) {
        (self.node.id(), self.node.addresses())
    }
}

async fn pair() -> (Station, Station) {
    let (mut a, mut b) = (Station::new(1, &[1, 2]).await, Station::new(2, &[1, 2]).await);
    a.want(&[b.at()]).await;
    b.want(&[(a.node.id(), vec![])]).await;
    a.connected(b.node.id()).await;
    b.connected(a.node.id()).await;
    (a, b)
}

#[test]
fn frames_of_any_allowed_size_arrive_whole_and_in_order_in_both_directions() {
    runtime().block_on(async {
        let (mut a, mut b) = pair().await;
        let sizes = [0, 1, 100, 70_000, limits::FRAME, 3, limits::FRAME, 0];
        for (n, size) in sizes.iter().enumerate() {
            let frame = vec![u8::try_from(n).unwrap(); *size];
            a.send(b.node.id(), &frame).await;
            b.send(a.node.id(), &frame).await;
        }
        for (n, size) in sizes.iter().enumerate() {
            let want = vec![u8::try_from(n).unwrap(); *size];
            assert!(b.frame().await == want, "frame {n} at b");
            assert!(a.frame().await == want, "frame {n} at a");
        }
        let reached = a.node.reached(&b.node.id()).unwrap();
        assert_eq!(reached.address, Some(b.at().1[0].to_string()));
        assert!(reached.rtt.unwrap() < Duration::from_secs(1));
        assert_eq!(b.node.known_addresses(), [a.at()], "b learned a's address from the link");
    });
}

#[test]
fn a_frame_above_the_limit_is_not_sent_and_the_link_lives_on() {
    runtime().block_on(async {
        let (a, mut b) = pair().await;
        a.send(b.node.id(), &vec![0; limits::FRAME + 1]).await;
        a.send(b.node.id(), b"after").await;
        assert_eq!(b.frame().await, "after");
    });
}

#[test]
fn thousands_of_small_frames_reach_a_reader_that_was_asleep() {
    runtime().block_on(async {
        let (a, mut b) = pair().await;
        for n in 0..20_000u32 {
            a.send(b.node.id(), &n.to_be_bytes()).await;
        }
        // It sleeps until no more events fit, so that the writers have to wait.
        let end = Instant::now() + PATIENCE;
        while b.network.events.len() < b.network.events.max_capacity() {
            assert!(Instant::now() < end, "{} of {}", b.network.events.len(), b.network.events.max_capacity());
            tokio::task::yield_now().await;
        }
        for n in 0..20_000u32 {
            assert_eq!(b.frame().await, n.to_be_bytes()[..]);
        }
    });
}

#[test]
fn nodes_that_dial_each_other_at_once_end_with_one_link_that_both_use() {
    runtime().block_on(async {
        for round in 0..25 {
            let (mut a, mut b) = (Station::new(1, &[1, 2]).await, Station::new(2, &[1, 2]).await);
            let (to_a, to_b) = (a.at(), b.at());
            tokio::join!(a.want(std::slice::from_ref(&to_b)), b.want(std::slice::from_ref(&to_a)));
            tokio::join!(a.connected(to_b.0), b.connected(to_a.0));
            a.send(to_b.0, b"from a").await;
            b.send(to_a.0, b"from b").await;
            let (at_b, at_a) = tokio::join!(b.frame(), a.frame());
            assert_eq!((at_a, at_b), ("from b".into(), "from a".into()), "round {round}");
            tokio::join!(a.node.shutdown(), b.node.shutdown());
        }
    });
}

#[test]
fn a_peer_that_was_killed_is_noticed_and_its_restart_at_another_port_is_linked() {
    let here = runtime();
    let mut a = here.block_on(Station::new(1, &[1, 2]));
    let doomed = runtime();
    let to_a = a.at();
    let b = doomed.block_on(async {
        let b = Station::new(2, &[1, 2]).await;
        b.want(&[to_a]).await;
        b
    });
    let known = b.at();
    here.block_on(async {
        a.want(&[known]).await;
        a.connected(id(2)).await;
    });
    // All its tasks stop between two instructions: nothing is sent, as by kill -9.
    doomed.shutdown_background();
    let reason = here.block_on(a.lost(id(2)));
    assert!(reason.starts_with("no answer"), "{reason}");
    here.block_on(async {
        let reborn = Station::new(2, &[1, 2]).await;
        reborn.want(&[a.at()]).await;
        a.connected(id(2)).await;
        reborn.node.shutdown().await;
    });
    drop(b);
}

#[test]
fn a_peer_that_restarts_before_it_was_missed_takes_its_links_place() {
    let here = runtime();
    let mut a = here.block_on(Station::new(1, &[1, 2]));
    let to_a = a.at();
    let doomed = runtime();
    let b = doomed.block_on(async {
        let b = Station::new(2, &[1, 2]).await;
        b.want(std::slice::from_ref(&to_a)).await;
        b
    });
    here.block_on(async {
        a.connected(id(2)).await;
        doomed.shutdown_background();
        let reborn = Station::new(2, &[1, 2]).await;
        reborn.want(std::slice::from_ref(&to_a)).await;
        let reason = a.lost(id(2)).await;
        assert_eq!(reason, "closed here", "the dead link was not waited for");
        a.connected(id(2)).await;
    });
    drop(b);
}

#[test]
fn a_closed_link_is_made_again_and_its_reason_is_told() {
    runtime().block_on(async {
        // Only one of them dials: else the new link may stand before the end of the old one is heard of.
        let (mut a, mut b) = (Station::new(1, &[1, 2]).await, Station::new(2, &[1, 2]).await);
        b.want(&[a.at()]).await;
        a.connected(b.node.id()).await;
        b.connected(a.node.id()).await;
        a.ask(Command::Close { peer: b.node.id(), code: 7, reason: "too many bad entries".to_owned() }).await;
        let reason = b.lost(a.node.id()).await;
        assert!(reason.contains("too many bad entries"), "{reason}");
        b.connected(a.node.id()).await;
        a.connected(b.node.id()).await;
    });
}

#[test]
fn a_peer_that_is_wanted_no_more_is_let_go() {
    runtime().block_on(async {
        let (mut a, b) = pair().await;
        b.want(&[]).await;
        a.want(&[]).await;
        a.lost(b.node.id()).await;
        assert_eq!(a.node.reached(&b.node.id()), None);
    });
}

async fn neighbours(a: &mut Station, b: &mut Station) {
    let up = |event| if let Event::Neighbour { peer, .. } = event { Some(peer) } else { None };
    let (of_a, of_b) = tokio::join!(a.until("a neighbour", up), b.until("a neighbour", up));
    assert_eq!((of_a, of_b), (b.node.id(), a.node.id()));
}

async fn gossip(station: &mut Station) -> Bytes {
    station.until("gossip", |event| if let Event::Gossip { message, .. } = event { Some(message) } else { None }).await
}

#[test]
fn gossip_reaches_the_peer_also_after_a_message_that_is_too_large() {
    runtime().block_on(async {
        let (mut a, mut b) = pair().await;
        a.ask(Command::Subscribe { store: STORE, topic: TOPIC }).await;
        b.ask(Command::Subscribe { store: STORE, topic: TOPIC }).await;
        neighbours(&mut a, &mut b).await;
        let largest = Bytes::from(vec![1; limits::GOSSIP_MESSAGE]);
        a.ask(Command::Broadcast { store: STORE, message: Bytes::from(vec![2; 10_000]) }).await;
        a.ask(Command::Broadcast { store: STORE, message: largest.clone() }).await;
        assert_eq!(gossip(&mut b).await, largest);
        b.ask(Command::Broadcast { store: STORE, message: "back".into() }).await;
        assert_eq!(gossip(&mut a).await, "back");
    });
}

#[test]
fn gossip_is_joined_again_when_a_link_is_made_again() {
    runtime().block_on(async {
        let (mut a, mut b) = pair().await;
        a.ask(Command::Subscribe { store: STORE, topic: TOPIC }).await;
        b.ask(Command::Subscribe { store: STORE, topic: TOPIC }).await;
        neighbours(&mut a, &mut b).await;
        b.node.shutdown().await;
        a.lost(id(2)).await;
        let mut b = Station::new(2, &[1, 2]).await;
        b.ask(Command::Subscribe { store: STORE, topic: TOPIC }).await;
        b.want(&[a.at()]).await;
        neighbours(&mut a, &mut b).await;
        a.ask(Command::Broadcast { store: STORE, message: "again".into() }).await;
        assert_eq!(gossip(&mut b).await, "again");
    });
}

#[test]
fn a_wanted_blob_is_fetched_from_the_member_that_has_it_when_a_link_comes_up() {
    let runtime = runtime();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (of_a, of_b, a, b) = runtime.block_on(async {
        let of_a = Blobs::open(dirs[0].path()).await.unwrap();
        let of_b = Blobs::open(dirs[1].path()).await.unwrap();
        let a = Station::with(1, &[1, 2], 0, Some(&of_a)).await;
        let b = Station::with(2, &[1, 2], 0, Some(&of_b)).await;
        (of_a, of_b, a, b)
    });
    let value: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (hash, size) = of_a.add_bytes(&value).unwrap();
    let (done, here) = std::sync::mpsc::channel();
    of_b.want(hash, size, move || done.send(()).unwrap());
    assert_eq!(of_b.wanted().blobs, 1);
    runtime.block_on(b.want(&[a.at()]));
    here.recv_timeout(PATIENCE).unwrap();
    assert_eq!(of_b.wanted().blobs, 0);
    let mut file = of_b.fetch(&hash, size, Duration::ZERO).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    assert!(bytes == value);
    let (second, size) = of_a.add_bytes(&[9; 40_000]).unwrap();
    assert_eq!(of_b.fetch(&second, size, PATIENCE).unwrap().metadata().unwrap().len(), size);
    runtime.block_on(async {
        of_a.shutdown().await.unwrap();
        of_b.shutdown().await.unwrap();
    });
}

#[test]
fn a_blob_larger_than_was_stated_is_not_taken() {
    let runtime = runtime();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (of_a, of_b, _a, b) = runtime.block_on(async {
        let of_a = Blobs::open(dirs[0].path()).await.unwrap();
        let of_b = Blobs::open(dirs[1].path()).await.unwrap();
        let a = Station::with(1, &[1, 2], 0, Some(&of_a)).await;
        let mut b = Station::with(2, &[1, 2], 0, Some(&of_b)).await;
        b.want(&[a.at()]).await;
        b.connected(id(1)).await;
        (of_a, of_b, a, b)
    });
    let (hash, _) = of_a.add_bytes(&vec![3; 5_000_000]).unwrap();
    assert!(of_b.fetch(&hash, 20_000, Duration::from_secs(1)).is_err());
    assert_eq!(of_b.wanted().blobs, 1);
    drop(b);
}

/// A client that follows no rule of ours: iroh itself, with a key of its own.
async fn stranger(seed: u8) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .secret_key(SecretKey::from_bytes(&[seed; 32]))
        .bind()
        .await
        .unwrap()
}

async fn dial(stranger: &Endpoint, (node, at): (NodeId, Vec<SocketAddr>), alpn: &[u8]) -> Option<Connection> {
    let id = EndpointId::from_bytes(node.as_bytes()).unwrap();
    let address = EndpointAddr::from_parts(id, at.into_iter().map(TransportAddr::Ip));
    timeout(PATIENCE, stranger.connect(address, alpn)).await.unwrap().ok()
}

/// What the far end lets come through a connection before it closes it: bytes on any stream, datagrams, and the close code.
async fn obtained(connection: &Connection) -> (Vec<u8>, Option<u64>) {
    let mut bytes = Vec::new();
    if let Ok((mut send, mut receive)) = connection.open_bi().await {
        drop(send.write_all(b"\0\0\0\x01\0").await);
        drop(send.finish());
        if let Ok(Ok(got)) = timeout(PATIENCE, receive.read_to_end(1_000_000)).await {
            bytes = got;
        }
    }
    (bytes, closed(connection).await)
}

/// Waits until the far end closes a connection, for the code that it gives.
async fn closed(connection: &Connection) -> Option<u64> {
    match timeout(PATIENCE, connection.closed()).await.expect("the far end closes the connection") {
        iroh::endpoint::ConnectionError::ApplicationClosed(closed) => Some(closed.error_code.into_inner()),
        _ => None,
    }
}

const GUARDED: [&[u8]; 3] = [b"lattice/sync/1", iroh_gossip::ALPN, iroh_blobs::ALPN];

#[test]
fn a_stranger_gets_no_byte_by_sync_gossip_or_blobs() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let blobs = runtime.block_on(Blobs::open(dir.path())).unwrap();
    let (hash, _) = blobs.add_bytes(&[7; 50_000]).unwrap();
    runtime.block_on(async {
        let mut a = Station::with(1, &[1, 2], 0, Some(&blobs)).await;
        a.ask(Command::Subscribe { store: STORE, topic: TOPIC }).await;
        let raw = stranger(66).await;
        for alpn in GUARDED {
            let connection = dial(&raw, a.at(), alpn).await.unwrap();
            let (bytes, code) = obtained(&connection).await;
            assert_eq!(bytes, b"", "{}", String::from_utf8_lossy(alpn));
            assert_eq!(code, Some(u64::from(close::NOT_A_MEMBER)), "{}", String::from_utf8_lossy(alpn));
        }
        let connection = dial(&raw, a.at(), iroh_blobs::ALPN).await.unwrap();
        let theirs = iroh_blobs::store::mem::MemStore::new();
        let wanted = iroh_blobs::HashAndFormat::raw(iroh_blobs::Hash::from_bytes(*hash.as_bytes()));
        assert!(theirs.remote().fetch(connection, wanted).complete().await.is_err());
        assert!(a.network.events.try_recv().is_err(), "nothing of it comes through to the driver");
        assert!(dial(&raw, a.at(), b"some/other/1").await.is_none(), "a protocol that is not served");
        blobs.shutdown().await.unwrap();
    });
}

#[test]
fn a_member_who_speaks_raw_iroh_does_get_the_blob() {
    // The counterpart of the test before it: the request is a good one, only the membership differs.
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let blobs = runtime.block_on(Blobs::open(dir.path())).unwrap();
    let (hash, _) = blobs.add_bytes(&[7; 50_000]).unwrap();
    runtime.block_on(async {
        let a = Station::with(1, &[1, 66], 0, Some(&blobs)).await;
        let raw = stranger(66).await;
        let connection = dial(&raw, a.at(), iroh_blobs::ALPN).await.unwrap();
        let theirs = iroh_blobs::store::mem::MemStore::new();
        let wanted = iroh_blobs::HashAndFormat::raw(iroh_blobs::Hash::from_bytes(*hash.as_bytes()));
        theirs.remote().fetch(connection, wanted).complete().await.unwrap();
        blobs.shutdown().await.unwrap();
    });
}

#[test]
fn a_node_without_a_mesh_and_without_a_desk_does_not_even_shake_hands() {
    runtime().block_on(async {
        let node = Node::bind(&key(1), &options(0), vec![]).await.unwrap();
        let raw = stranger(66).await;
        for alpn in GUARDED.into_iter().chain([join::ALPN]) {
            assert!(dial(&raw, (node.id(), node.addresses()), alpn).await.is_none());
        }
    });
}

#[test]
fn who_is_a_member_no_more_loses_every_open_connection_and_gets_no_new_one() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let blobs = runtime.block_on(Blobs::open(dir.path())).unwrap();
    runtime.block_on(async {
        let mut a = Station::with(1, &[1, 2, 66], 0, Some(&blobs)).await;
        let mut b = Station::new(2, &[1, 2]).await;
        b.want(&[a.at()]).await;
        a.connected(id(2)).await;
        b.connected(id(1)).await;
        let raw = stranger(66).await;
        let mut open = Vec::new();
        for alpn in GUARDED {
            open.push(dial(&raw, a.at(), alpn).await.unwrap());
        }
        let mut fewer = members(&[1, 2, 66]);
        fewer.members.get_mut(&id(66)).unwrap().left = true;
        fewer.members.get_mut(&id(2)).unwrap().left = true;
        // Nobody calls `membership_changed`: it is noticed all the same.
        a.membership.store(Arc::new(fewer));
        for connection in open {
            assert_eq!(closed(&connection).await, Some(u64::from(close::NOT_A_MEMBER)));
        }
        a.lost(id(2)).await;
        assert!(b.lost(id(1)).await.contains("not a member"));
        let again = dial(&raw, a.at(), GUARDED[0]).await.unwrap();
        assert_eq!(obtained(&again).await.1, Some(u64::from(close::NOT_A_MEMBER)));
        blobs.shutdown().await.unwrap();
    });
}

#[test]
fn who_is_refused_knows_by_whom_and_whether_for_a_fork_until_it_is_taken_again() {
    runtime().block_on(async {
        let said = |node: &Arc<Node>| node.refusing();
        let (mut a, mut b) = (Station::new(1, &[1, 2]).await, Station::new(2, &[1, 2]).await);
        b.want(&[a.at()]).await;
        b.connected(id(1)).await;
        a.connected(id(2)).await;
        assert!(said(&b.node).borrow().is_empty());
        a.membership.store(Arc::new(members(&[1])));
        a.node.membership_changed();
        let (stranger, forked) = (Some(&Refused::NotAMember), Some(&Refused::Forked));
        timeout(PATIENCE, said(&b.node).wait_for(|by| by.get(&id(1)) == stranger)).await.unwrap().unwrap();
        // A link is closed so, and a dial is answered so.
        a.membership.store(Arc::new(members(&[1, 2])));
        b.lost(id(1)).await;
        b.connected(id(1)).await;
        let mut proven = members(&[1, 2]);
        let member = proven.members.get_mut(&id(2)).unwrap();
        (member.left, member.removed, member.forked) = (true, true, true);
        a.membership.store(Arc::new(proven));
        a.node.membership_changed();
        timeout(PATIENCE, said(&b.node).wait_for(|by| by.get(&id(1)) == forked)).await.unwrap().unwrap();
        a.membership.store(Arc::new(members(&[1])));
        timeout(PATIENCE, said(&b.node).wait_for(|by| by.get(&id(1)) == stranger)).await.unwrap().unwrap();
        let mut proven = members(&[1, 2]);
        let member = proven.members.get_mut(&id(2)).unwrap();
        (member.left, member.forked) = (true, true);
        a.membership.store(Arc::new(proven));
        timeout(PATIENCE, said(&b.node).wait_for(|by| by.get(&id(1)) == forked)).await.unwrap().unwrap();
        a.membership.store(Arc::new(members(&[1, 2])));
        timeout(PATIENCE, said(&b.node).wait_for(BTreeMap::is_empty)).await.unwrap().unwrap();
        b.lost(id(1)).await;
        b.connected(id(1)).await;

        // Nor does it need a link first.
        let third = Station::new(3, &[1, 3]).await;
        third.want(&[a.at()]).await;
        timeout(PATIENCE, said(&third.node).wait_for(|by| by.get(&id(1)) == stranger)).await.unwrap().unwrap();
        assert!(said(&a.node).borrow().is_empty());
    });
}

/// A member who speaks raw iroh: greets as it should, answers probes, and does what it likes with the stream.
async fn gone_bad(raw: &Endpoint, at: (NodeId, Vec<SocketAddr>)) -> (Connection, iroh::endpoint::SendStream) {
    let connection = dial(raw, at, GUARDED[0]).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    // No addresses, run 1, greeting 1.
    send.write_all(b"\0\0\0\x03\0\x01\x01").await.unwrap();
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.unwrap();
    let answering = connection.clone();
    tokio::spawn(async move {
        while let Ok(asked) = answering.read_datagram().await {
            if let [1, number] = asked[..] {
                drop(answering.send_datagram(Bytes::copy_from_slice(&[2, number])));
            }
        }
    });
    tokio::spawn(async move { drop(receive.read_to_end(usize::MAX).await) });
    (connection, send)
}

/// A node with an honest peer that is linked, and one that may do harm.
async fn beset() -> (Station, Station, Endpoint) {
    let (mut a, mut b) = (Station::new(1, &[1, 2, 66]).await, Station::new(2, &[1, 2]).await);
    b.want(&[a.at()]).await;
    a.want(&[(b.node.id(), vec![]), (id(66), vec![])]).await;
    a.connected(id(2)).await;
    b.connected(id(1)).await;
    (a, b, stranger(66).await)
}

/// Frames go both ways between the honest ones.
async fn goes_on(a: &mut Station, b: &mut Station) {
    for n in 0..50u32 {
        a.send(id(2), &n.to_be_bytes()).await;
        assert_eq!(b.frame().await, n.to_be_bytes()[..]);
        b.send(id(1), &n.to_be_bytes()).await;
        assert_eq!(a.frame().await, n.to_be_bytes()[..]);
    }
}

#[test]
fn a_frame_that_says_it_is_too_large_ends_the_link_that_it_came_on_and_no_other() {
    runtime().block_on(async {
        let (mut a, mut b, raw) = beset().await;
        for length in [u32::MAX, u32::try_from(limits::FRAME).unwrap() + 1] {
            let (connection, mut send) = gone_bad(&raw, a.at()).await;
            a.connected(id(66)).await;
            send.write_all(&length.to_be_bytes()).await.unwrap();
            closed(&connection).await;
            assert!(a.lost(id(66)).await.contains("the limit is"));
        }
        goes_on(&mut a, &mut b).await;
    });
}

#[test]
fn a_frame_that_never_ends_holds_up_nobody_else() {
    runtime().block_on(async {
        let (mut a, mut b, raw) = beset().await;
        let (_connection, mut send) = gone_bad(&raw, a.at()).await;
        a.connected(id(66)).await;
        send.write_all(&u32::try_from(limits::FRAME).unwrap().to_be_bytes()).await.unwrap();
        let dripping = tokio::spawn(async move {
            while send.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        goes_on(&mut a, &mut b).await;
        assert!(!dripping.is_finished(), "the drip goes on");
        dripping.abort();
    });
}

#[test]
fn what_a_member_sends_on_streams_that_nobody_reads_stops_at_a_bound_and_holds_up_nobody() {
    use std::sync::atomic::{AtomicU64, Ordering};
    runtime().block_on(async {
        let (mut a, mut b, raw) = beset().await;
        let (connection, _send) = gone_bad(&raw, a.at()).await;
        a.connected(id(66)).await;
        let sent = Arc::new(AtomicU64::new(0));
        for _ in 0..1_000 {
            let (connection, sent) = (connection.clone(), sent.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = connection.open_uni().await else { return };
                while stream.write_all(&[7; 16 * 1024]).await.is_ok() {
                    sent.fetch_add(16 * 1024, Ordering::Relaxed);
                }
            });
        }
        goes_on(&mut a, &mut b).await;
        let end = Instant::now() + PATIENCE;
        let (mut before, mut still) = (0, 0);
        while still < 20 {
            assert!(Instant::now() < end, "{before} bytes and no end");
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = sent.load(Ordering::Relaxed);
            still = if now == before && now > 0 { still + 1 } else { 0 };
            before = now;
        }
        // Most of it waits at the sender, whose library takes about 10 MB.
        assert!(before < 20_000_000, "{before} bytes were taken");
        goes_on(&mut a, &mut b).await;
    });
}

#[test]
fn a_peer_has_a_bounded_number_of_connections() {
    runtime().block_on(async {
        let (mut a, mut b, raw) = beset().await;
        let mut open = Vec::new();
        for _ in 0..40 {
            open.push(dial(&raw, a.at(), iroh_gossip::ALPN).await.unwrap());
        }
        let mut ends = tokio::task::JoinSet::new();
        for connection in open.clone() {
            ends.spawn(async move { closed(&connection).await });
        }
        for _ in 0..8 {
            assert_eq!(ends.join_next().await.unwrap().unwrap(), Some(u64::from(close::BUSY)));
        }
        ends.abort_all();
        goes_on(&mut a, &mut b).await;
    });
}

/// A desk that answers as it is told and keeps what it was asked.
struct Scripted {
    answer: Result<Welcome, Refusal>,
    asked: Mutex<Vec<Request>>,
}

impl JoinDesk for Scripted {
    fn redeem(&self, request: Request) -> Result<Welcome, Refusal> {
        self.asked.lock().unwrap().push(request);
        self.answer.clone()
    }
}

fn welcome() -> Welcome {
    let contacts = vec![Contact { node: id(1), addresses: vec![] }];
    // Larger than a request may be, and than one packet.
    Welcome { mesh: MeshId([1; 32]), entries: vec![vec![1; 300]; 5_000], contacts }
}

fn ticket(host: &Node) -> Ticket {
    Ticket {
        mesh: MeshId([1; 32]),
        secret: Secret::from_bytes([8; 32]),
        hosts: vec![Contact { node: host.id(), addresses: host.addresses() }],
        relays: vec![],
    }
}

async fn nodes() -> (Arc<Node>, Arc<Node>) {
    let host = Node::bind(&key(1), &options(0), vec![]).await.unwrap();
    let joiner = Node::bind(&key(3), &options(0), vec![]).await.unwrap();
    (host, joiner)
}

#[test]
fn a_joiner_with_a_token_is_welcomed_and_the_desk_learns_who_it_is_but_not_the_secret() {
    runtime().block_on(async {
        let (host, joiner) = nodes().await;
        let desk = Arc::new(Scripted { answer: Ok(welcome()), asked: Mutex::default() });
        host.open_desk(Some(desk.clone()));
        let ticket: Ticket = ticket(&host).to_string().parse().unwrap();
        assert_eq!(join::join(&joiner, &ticket, "laptop").await.unwrap(), welcome());
        let asked = desk.asked.lock().unwrap().pop().unwrap();
        assert_eq!((asked.joiner, asked.name.as_str(), asked.mesh), (id(3), "laptop", MeshId([1; 32])));
        assert_eq!(asked.invite, ticket.secret.invite());
        assert_eq!(asked.addresses, joiner.addresses());
        assert!(asked.is_proven());
    });
}

#[test]
fn each_refusal_reaches_the_joiner_with_a_sentence_of_its_own() {
    runtime().block_on(async {
        let (host, joiner) = nodes().await;
        let refusals = [
            Refusal::Wrong,
            Refusal::Expired,
            Refusal::UsedUp,
            Refusal::OtherMesh,
            Refusal::NoMesh,
            Refusal::Gone,
            Refusal::Name { name: "x/y".to_owned(), why: "it has a slash".to_owned() },
            Refusal::Failed("disk full".to_owned()),
            Refusal::Removed { name: "laptop".to_owned() },
            Refusal::Forked,
        ];
        let mut sentences = Vec::new();
        for refusal in refusals {
            host.open_desk(Some(Arc::new(Scripted { answer: Err(refusal.clone()), asked: Mutex::default() })));
            match join::join(&joiner, &ticket(&host), "laptop").await {
                Err(JoinError::Refused(got)) => assert_eq!(got, refusal),
                other => panic!("{other:?}"),
            }
            sentences.push(refusal.to_string());
        }
        let count = sentences.len();
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), count);
    });
}

#[test]
fn without_proof_of_the_secret_the_desk_is_not_even_asked() {
    runtime().block_on(async {
        let (host, joiner) = nodes().await;
        let desk = Arc::new(Scripted { answer: Ok(welcome()), asked: Mutex::default() });
        host.open_desk(Some(desk.clone()));
        let raw = stranger(66).await;
        let connection = dial(&raw, (host.id(), host.addresses()), join::ALPN).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        // A request that copies another's proof: mesh, invite, proof, name, addresses.
        let good = ticket(&host);
        let proof = good.secret.prove(&good.mesh, &joiner.id()).to_vec();
        let no_addresses: Vec<SocketAddr> = Vec::new();
        let request = postcard::to_stdvec(&(good.mesh, good.secret.invite(), proof, "thief", no_addresses)).unwrap();
        send.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).await.unwrap();
        send.write_all(&request).await.unwrap();
        let answer = receive.read_to_end(1_000_000).await.unwrap();
        let answer: Result<Welcome, Refusal> = postcard::from_bytes(&answer[4..]).unwrap();
        assert_eq!(answer, Err(Refusal::Wrong));
        assert!(desk.asked.lock().unwrap().is_empty());
    });
}

#[test]
fn rubbish_sent_to_the_desk_is_refused_or_cut_off_and_the_desk_still_serves() {
    runtime().block_on(async {
        let (host, joiner) = nodes().await;
        host.open_desk(Some(Arc::new(Scripted { answer: Ok(welcome()), asked: Mutex::default() })));
        let raw = stranger(66).await;
        for rubbish in [&b""[..], b"\xff\xff\xff\xff", b"\0\0\0\x05hello", b"\0\0\x0f\xffshort"] {
            let connection = dial(&raw, (host.id(), host.addresses()), join::ALPN).await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            send.write_all(rubbish).await.unwrap();
            send.finish().unwrap();
            let answer = timeout(PATIENCE, receive.read_to_end(1_000)).await.unwrap();
            if let Ok(answer) = answer {
                let answer: Result<Welcome, Refusal> = postcard::from_bytes(&answer[4..]).unwrap();
                assert_eq!(answer, Err(Refusal::Malformed));
            }
        }
        assert!(join::join(&joiner, &ticket(&host), "laptop").await.is_ok());
    });
}

#[test]
fn a_host_that_is_not_there_is_told_apart_from_a_refusal_and_the_next_one_is_asked() {
    runtime().block_on(async {
        let (host, joiner) = nodes().await;
        host.open_desk(Some(Arc::new(Scripted { answer: Ok(welcome()), asked: Mutex::default() })));
        let mut ticket = ticket(&host);
        let absent = Contact { node: id(9), addresses: vec!["127.0.0.1:9".parse().unwrap()] };
        ticket.hosts.insert(0, absent.clone());
        assert!(join::join(&joiner, &ticket, "laptop").await.is_ok());
        ticket.hosts = vec![absent];
        match join::join(&joiner, &ticket, "laptop").await {
            Err(JoinError::Unreachable { tried }) => assert!(tried.contains("127.0.0.1:9"), "{tried}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_taken_port_and_a_foreign_address_are_told_in_plain_words() {
    runtime().block_on(async {
        let first = Node::bind(&key(1), &options(0), vec![]).await.unwrap();
        let taken = Node::bind(&key(2), &options(first.port()), vec![]).await;
        assert!(matches!(taken, Err(NetError::PortTaken(at)) if at.port() == first.port()));
        let foreign = Options { listen: "192.0.2.1:0".parse().unwrap(), ..options(0) };
        assert!(matches!(Node::bind(&key(2), &foreign, vec![]).await, Err(NetError::NoSuchAddress(_))));
        let relays = Relays::Custom(vec!["not a url".to_owned()]);
        let wrong = Node::bind(&key(2), &Options { relays, ..options(0) }, vec![]).await;
        assert!(matches!(wrong, Err(NetError::Relay { .. })));
    });
}

#[test]
fn the_hash_of_a_blob_is_the_hash_that_an_entry_names() {
    assert_eq!(Hash::from(blake3::hash(b"x")).as_bytes(), iroh_blobs::Hash::new(b"x").as_bytes());
}
