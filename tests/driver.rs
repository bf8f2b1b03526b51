//! The driver on real files, with links that are channels: what is written on one node is on the other soon.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use lattice::clock::System;
use lattice::ids::{MeshId, NodeId, StoreId};
use lattice::net::link::{Command, Event, Network};
use lattice::replication::driver::{Driver, Host};
use lattice::replication::log::{Durable, Log, Origin, Parts, events};
use lattice::replication::membership::{Member, Membership, Role};
use lattice::replication::replica::{Identity, Snapshot};
use lattice::replication::shelf::Logs;
use lattice::stores::kv::{Kind, Machine, Op, Value};
use lattice::stores::{Kv, Merge};
use tokio::sync::{mpsc, watch};

const MESH: MeshId = MeshId([1; 32]);
const HOME: StoreId = StoreId([1; 32]);

fn key(n: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_bytes(&[n; 32]))
}

fn id(n: u8) -> NodeId {
    NodeId(key(n).verifying_key().to_bytes())
}

struct Home {
    log: Arc<Log>,
    changed: watch::Sender<u64>,
}

impl Logs for Home {
    fn logs(&self) -> Vec<Arc<Log>> {
        vec![Arc::clone(&self.log)]
    }

    fn log(&self, store: &StoreId) -> Option<Arc<Log>> {
        (*store == HOME).then(|| Arc::clone(&self.log))
    }
}

impl Host for Home {
    fn topic(&self, store: &StoreId) -> Option<[u8; 32]> {
        Some(store.0)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn outbox(&self, outbox: Arc<dyn Fn(Durable) + Send + Sync>) {
        self.log.outbox(Box::new(move |durable| outbox(durable)));
    }
}

struct Node {
    home: Arc<Home>,
    kv: Kv,
    driver: Option<Driver>,
    _dir: tempfile::TempDir,
}

struct NoBlobs;

impl lattice::blobs::Payloads for NoBlobs {
    fn add_bytes(&self, _: &[u8]) -> Result<(lattice::ids::Hash, u64), lattice::blobs::BlobError> {
        unreachable!("values are small here")
    }
    fn add_file(&self, _: &std::path::Path) -> Result<(lattice::ids::Hash, u64), lattice::blobs::BlobError> {
        unreachable!("values are small here")
    }
    fn open(&self, _: &lattice::ids::Hash) -> Result<Option<std::fs::File>, lattice::blobs::BlobError> {
        Ok(None)
    }
    fn list(&self) -> Result<Vec<lattice::ids::Hash>, lattice::blobs::BlobError> {
        Ok(Vec::new())
    }

    fn fetch(&self, _: &lattice::ids::Hash, _: u64, _: Duration) -> Result<std::fs::File, lattice::blobs::BlobError> {
        unreachable!("values are small here")
    }
}

impl Node {
    fn new(n: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let member = |n: u8| (id(n), Member::new(format!("n{n}"), Role::Writer));
        let parts = Parts {
            store: HOME,
            key: key(n),
            clock: Arc::new(System),
            machine: Arc::new(Machine),
            membership: Arc::new(ArcSwap::from_pointee(Membership { members: (1..=3).map(member).collect() })),
            events: events(),
        };
        let log = Arc::new(Log::open(&dir.path().join("home.redb"), 16 << 20, parts).unwrap());
        let kv = Kv::new(Arc::clone(&log), Arc::new(NoBlobs));
        Self { home: Arc::new(Home { log, changed: watch::channel(0).0 }), kv, driver: None, _dir: dir }
    }

    fn start(&mut self, n: u8, network: Network) {
        let identity = Identity { me: id(n), mesh: MESH, build: "test".into(), seed: u64::from(n) };
        self.driver = Some(Driver::start(identity, Arc::new(System), network, Arc::clone(&self.home) as _).unwrap());
    }

    fn put(&self, path: &str, size: usize) {
        let value = Value::Bytes(vec![7; size]);
        let op = Op::Put {
            path: path.as_bytes().to_vec(),
            supersedes: vec![],
            kind: Kind::File,
            mode: 0o644,
            mtime: 0,
            value,
        };
        self.kv.submit(vec![op], Origin::Mount(0)).unwrap();
    }

    fn count(&self) -> u64 {
        let view = self.home.log.database().view().unwrap();
        self.home.log.fingerprint(&view).unwrap().count
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.driver.as_ref().unwrap().snapshot()
    }
}

fn until(what: &str, patience: Duration, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "waited {patience:?} until {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

type Wires = Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<Event>>>>;

/// Links all with all.
fn wire(runtime: &tokio::runtime::Runtime, nodes: &[u8]) -> Vec<Network> {
    let wires: Wires = Arc::default();
    let mut networks = Vec::new();
    for n in nodes {
        let (commands, asked) = mpsc::channel(256);
        let (reports, events) = mpsc::channel(256);
        wires.lock().unwrap().insert(id(*n), reports);
        runtime.spawn(carry(id(*n), asked, Arc::clone(&wires)));
        networks.push(Network { commands, events });
    }
    for (to, reports) in wires.lock().unwrap().iter() {
        for peer in nodes.iter().map(|n| id(*n)).filter(|peer| peer != to) {
            reports.try_send(Event::Connected { peer, address: None }).unwrap();
        }
    }
    networks
}

async fn carry(me: NodeId, mut asked: mpsc::Receiver<Command>, wires: Wires) {
    while let Some(command) = asked.recv().await {
        let others: Vec<_> = {
            let wires = wires.lock().unwrap();
            wires.iter().filter(|(id, _)| **id != me).map(|(id, wire)| (*id, wire.clone())).collect()
        };
        for (id, wire) in others {
            let event = match &command {
                Command::Send { peer, frame } if *peer == id => Event::Received { peer: me, frame: frame.clone() },
                Command::Broadcast { store, message } => {
                    Event::Gossip { store: *store, from: me, message: message.clone() }
                }
                Command::Close { peer, .. } if *peer == id => panic!("a link was ended: {command:?}"),
                Command::Send { .. }
                | Command::Close { .. }
                | Command::Peers(_)
                | Command::Subscribe { .. }
                | Command::Unsubscribe { .. } => continue,
            };
            drop(wire.send(event).await);
        }
    }
}

fn pair() -> (tokio::runtime::Runtime, Node, Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let mut networks = wire(&runtime, &[1, 2]).into_iter();
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    a.start(1, networks.next().unwrap());
    b.start(2, networks.next().unwrap());
    (runtime, a, b)
}

fn online(node: &Node, peer: u8) -> bool {
    node.snapshot().peers.get(&id(peer)).is_some_and(|peer| peer.online)
}

#[test]
fn a_write_is_on_the_other_node_as_it_was_made() {
    let (_runtime, a, b) = pair();
    until("both are linked", Duration::from_secs(5), || online(&a, 2) && online(&b, 1));
    for n in 0..50 {
        let path = format!("k{n}");
        a.put(&path, 64);
        until(&path, Duration::from_secs(5), || b.kv.heads(path.as_bytes()).unwrap().is_some());
    }
    assert_eq!(b.kv.heads(b"k0").unwrap().unwrap().lww().author, id(1));
}

#[test]
fn a_burst_is_on_the_other_node_after_its_end() {
    let (_runtime, a, b) = pair();
    until("both are linked", Duration::from_secs(5), || online(&a, 2) && online(&b, 1));
    let count = 1_500;
    for n in 0..count {
        a.put(&format!("d{}/k{n}", n % 20), 64);
    }
    until("the burst is there", Duration::from_secs(30), || b.count() == count);
}

#[test]
fn a_first_sync_brings_everything_and_says_how_far_it_is() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let mut networks = wire(&runtime, &[1, 2]).into_iter();
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let count = 3_000;
    for n in 0..count {
        a.put(&format!("d{}/k{n}", n % 100), 64);
    }
    a.home.log.wait(a.home.log.database().staged()).unwrap();
    a.start(1, networks.next().unwrap());
    b.start(2, networks.next().unwrap());
    let mut seen = b.driver.as_ref().unwrap().watch();
    let settled =
        |snapshot: &Arc<Snapshot>| snapshot.stores.get(&HOME).is_some_and(|home| home.settled && home.missing == 0);
    runtime.block_on(async {
        let waited = tokio::time::timeout(Duration::from_secs(60), seen.wait_for(settled)).await;
        assert!(waited.is_ok_and(|seen| seen.is_ok()), "the first sync did not end");
    });
    assert_eq!(b.count(), count);
    assert_eq!(a.home.log.state_digest().unwrap(), b.home.log.state_digest().unwrap());
}

#[test]
fn a_driver_that_stops_lets_go_of_the_stores() {
    let (_runtime, mut a, b) = pair();
    a.put("k", 10);
    until("the write is there", Duration::from_secs(5), || b.count() == 1);
    a.driver.take().unwrap().stop();
    until("nothing holds the log", Duration::from_secs(5), || Arc::strong_count(&a.home.log) == 2);
}
