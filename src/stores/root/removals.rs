//! What removals make of the entries of other stores: whatever came first, all nodes come to the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{all as root_entries, root};
use super::*;
use crate::clock::{Clock, Manual, Millis};
use crate::ids::{Hash, StoreId};
use crate::replication::database::Flow;
use crate::replication::entry::Entry;
use crate::replication::log::{Fingerprint, Log, Origin, Parts, Verdict, events};
use crate::replication::machine::StateMachine;
use crate::replication::membership::{Cut, Role};
use crate::stores::kv::{self, Kind, Value};
use crate::stores::testing::{START, Shelf, clock, key, memory, node};
use crate::stores::{Kv, Merge, chat};

const NODES: u8 = 4;
const HOME: StoreId = StoreId([7; 32]);
const CHAT: StoreId = StoreId([8; 32]);

struct Peer {
    root: Root,
    kv: Kv,
    chat: Arc<Log>,
}

fn peer(n: u8, genesis: &Entry, clock: &Arc<Manual>) -> Peer {
    let root = root(n, genesis, clock);
    let log = |store, machine: Arc<dyn StateMachine>| {
        let parts = Parts {
            store,
            key: key(n),
            clock: Arc::clone(clock) as Arc<dyn Clock>,
            machine,
            membership: Arc::clone(root.membership()),
            events: events(),
        };
        Arc::new(Log::with(memory(), parts).unwrap())
    };
    let (home, chat) = (log(HOME, Arc::new(kv::Machine)), log(CHAT, Arc::new(chat::Machine)));
    Peer { kv: Kv::new(home, Arc::new(Shelf::default())), chat, root }
}

impl Peer {
    fn logs(&self) -> [&Arc<Log>; 2] {
        [self.kv.log(), &self.chat]
    }

    fn align(&self) {
        for log in self.logs() {
            log.align().unwrap();
        }
    }

    fn put(&self, path: u8) {
        let path = vec![b'a' + path];
        let heads = self.kv.heads(&path).unwrap();
        let supersedes = heads.iter().flat_map(|heads| heads.all().iter().map(|head| head.id)).collect();
        let value = Value::Bytes(vec![path[0]; 3]);
        let op = kv::Op::Put { path, supersedes, kind: Kind::File, mode: 0o644, mtime: 0, value };
        if self.kv.submit(vec![op], Origin::Local).is_ok() {
            let chat = crate::stores::Chat::new(Arc::clone(&self.chat));
            chat.post("lobby", "hello", Origin::Local).unwrap();
        }
    }

    /// What this node has of another.
    fn cut(&self, n: u8) -> Cut {
        let tip = |log: &&Arc<Log>| {
            let tip = log.tips(&log.database().view().unwrap()).unwrap().remove(&node(n))?;
            Some((log.store(), (tip.seq, tip.hash)))
        };
        self.logs().iter().filter_map(tip).collect()
    }

    fn prints(&self) -> Vec<Fingerprint> {
        self.logs().iter().map(|log| log.fingerprint(&log.database().view().unwrap()).unwrap()).collect()
    }

    fn digests(&self) -> Vec<Hash> {
        let root = self.root.log().state_digest().unwrap();
        self.logs().iter().map(|log| log.state_digest().unwrap()).chain([root]).collect()
    }
}

/// All that counts in a log, parents first.
fn entries(log: &Log) -> Vec<Entry> {
    let view = log.database().view().unwrap();
    let mut hashes = Vec::new();
    log.order(&view, (crate::clock::Hlc(0), Hash([0; 32])), false, &mut |_, hash| {
        hashes.push(hash);
        Flow::Continue(())
    })
    .unwrap();
    hashes.iter().map(|hash| log.get(&view, hash).unwrap().unwrap()).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Put { path: u8 },
    Revoke { node: u8 },
    SetRole { node: u8, role: u8 },
    Add { node: u8, role: u8 },
    PullRoot { from: u8 },
    Pull { from: u8 },
}

fn step() -> impl Strategy<Value = (u8, Step)> {
    let step = prop_oneof![
        6 => (0u8..3).prop_map(|path| Step::Put { path }),
        1 => (0..NODES).prop_map(|node| Step::Revoke { node }),
        2 => (0..NODES, 0u8..3).prop_map(|(node, role)| Step::SetRole { node, role }),
        1 => (0..NODES, 0u8..3).prop_map(|(node, role)| Step::Add { node, role }),
        2 => (0..NODES).prop_map(|from| Step::PullRoot { from }),
        4 => (0..NODES).prop_map(|from| Step::Pull { from }),
    ];
    (0..NODES, step)
}

type Signed = BTreeMap<Hash, Entry>;

fn take(peers: &[Peer], me: usize, step: &Step, signed: &mut [Signed; 2]) {
    let peer = &peers[me];
    let role = |n: u8| [Role::Reader, Role::Writer, Role::Admin][usize::from(n)];
    let op = match step {
        Step::Put { path } => {
            peer.put(*path);
            for (log, signed) in peer.logs().into_iter().zip(signed) {
                signed.extend(entries(log).into_iter().map(|entry| (entry.hash(), entry)));
            }
            return;
        }
        Step::PullRoot { from } => {
            peer.root.log().include(&root_entries(&peers[usize::from(*from)].root), Origin::Pulled).unwrap();
            return peer.align();
        }
        Step::Pull { from } => {
            for (log, theirs) in peer.logs().into_iter().zip(peers[usize::from(*from)].logs()) {
                log.include(&entries(theirs), Origin::Pulled).unwrap();
            }
            return;
        }
        Step::Revoke { node: n } => Op::Revoke { node: node(*n), cut: peer.cut(*n), salt: [1; 32] },
        Step::SetRole { node: n, role: r } => Op::SetRole { node: node(*n), role: role(*r), cut: peer.cut(*n) },
        Step::Add { node: n, role: r } => Op::AddMember { node: node(*n), name: format!("n{n}"), role: role(*r) },
    };
    if peer.root.membership().load().admits(&peer.root.log().me()) {
        peer.root.log().submit(&wire::encode(&[op]), Origin::Local).unwrap();
        peer.align();
    }
}

/// Gives the entries in a random order; what can't be taken yet comes again.
fn deliver(observer: &Peer, mut waiting: Vec<(usize, Entry)>, mut seed: u64) {
    let mut stuck = 0;
    while !waiting.is_empty() && stuck < waiting.len() * 50 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (seed >> 33) as usize % waiting.len();
        let (log, entry) = &waiting[place];
        let log = [observer.root.log(), observer.kv.log(), &observer.chat][*log];
        match log.include(std::slice::from_ref(entry), Origin::Pulled).unwrap().remove(0) {
            Verdict::Included | Verdict::Duplicate | Verdict::Excluded => {
                if waiting.swap_remove(place).0 == 0 {
                    observer.align();
                }
                stuck = 0;
            }
            Verdict::Missing(_) | Verdict::UnknownAuthor => stuck += 1,
            verdict @ (Verdict::Early(_) | Verdict::Rejected(_)) => panic!("{verdict:?}"),
        }
    }
    assert!(waiting.is_empty(), "{} entries are never taken", waiting.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn which_entries_count_is_the_same_whatever_came_first(
        steps in prop::collection::vec(step(), 1..80),
        seeds in prop::array::uniform3(any::<u64>()),
    ) {
        let clock = clock();
        let (_, first) = genesis(&key(0), &*clock, "mesh", "n0").unwrap();
        let peers: Vec<Peer> = (0..NODES).map(|n| peer(n, &first, &clock)).collect();
        let admins = (1..NODES).map(|node| (0, Step::Add { node, role: 2 }));
        let pulls = (1..NODES).map(|node| (node, Step::PullRoot { from: 0 }));
        let steps: Vec<_> = admins.chain(pulls).chain(steps).collect();
        let mut signed = [Signed::new(), Signed::new()];
        for (number, (author, step)) in steps.iter().enumerate() {
            clock.set(Millis(START.0 + number as u64 * 100));
            take(&peers, usize::from(*author), step, &mut signed);
        }
        let roots: Signed =
            peers.iter().flat_map(|peer| root_entries(&peer.root)).map(|entry| (entry.hash(), entry)).collect();
        let everything: Vec<(usize, Entry)> = [roots].into_iter().chain(signed).enumerate()
            .flat_map(|(log, entries)| entries.into_values().map(move |entry| (log, entry)))
            .filter(|(_, entry)| entry.hash() != first.hash())
            .collect();
        let (mut digests, mut prints) = (BTreeSet::new(), Vec::new());
        for seed in seeds {
            let observer = peer(7, &first, &clock);
            deliver(&observer, everything.clone(), seed);
            digests.insert(observer.digests());
            prints.push(observer.prints());
            for log in observer.logs() {
                log.rebuild().unwrap();
            }
            digests.insert(observer.digests());
        }
        // Those who took part come to the same, when they have all.
        for peer in &peers {
            deliver(peer, everything.clone(), seeds[0]);
            digests.insert(peer.digests());
            prints.push(peer.prints());
        }
        prop_assert!(prints.iter().all(|print| *print == prints[0]), "{:?}", prints);
        prop_assert_eq!(digests.len(), 1);
    }
}
