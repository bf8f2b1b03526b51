//! Many authors and few nodes: who writes here has no node of its own, or one that is seldom on. Each guest comes to a node
//! once, with a few entries that follow what is there, and stays until they are durable there and given to gossip.

use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use lattice::clock::Millis;
use lattice::ids::{Hash, NodeId};
use lattice::replication::entry::{Entry, Header};
use lattice::replication::ingest::Batch;
use lattice::replication::limits;
use lattice::replication::log::Origin;
use lattice::replication::message::{Packed, Push};
use lattice::stores::kv::{Kind, Op, Value};

use crate::node::{HOME, key};
use crate::plan::Plan;
use crate::swarm::SwarmInput;
use crate::world::{Happening, PATHS, World};

/// Keys of guests are counted from here on.
const GUESTS: u64 = 1 << 32;

/// An author without a node.
pub(crate) struct Guest {
    key: Arc<SigningKey>,
    pub(crate) id: NodeId,
}

impl Guest {
    pub(crate) fn all(plan: &Plan) -> Vec<Self> {
        let keys = (0..plan.guests as u64).map(|n| key(GUESTS + n));
        keys.map(|key| Self { id: NodeId(key.verifying_key().to_bytes()), key }).collect()
    }
}

impl World {
    /// A guest comes to some node that is up.
    pub(crate) fn visit(&mut self, guest: usize) {
        let up: Vec<_> = (0..self.nodes.len()).filter(|n| self.nodes[*n].up.is_some()).collect();
        if up.is_empty() {
            return self.at(500, Happening::Visit(guest));
        }
        let n = up[self.dice.pick(up.len())];
        self.nodes[n].set_clock(self.now);
        let count = 1 + self.dice.below(2);
        let mut chain: Vec<Entry> = Vec::new();
        for _ in 0..count {
            let entry = self.sign(n, guest, chain.last());
            let up = self.nodes[n].up.as_mut().unwrap();
            let batch =
                Batch { store: HOME, peer: self.guests[guest].id, pull: None, entries: vec![entry.bytes().clone()] };
            let report = up.ingests.entry(HOME).or_default().take(up.kv.log(), batch);
            assert_eq!(report.included, 1, "it follows what is there");
            self.journeys.insert(entry.hash(), (self.now, 0));
            chain.push(entry);
        }
        self.commit(n, self.nodes[n].life);
        for entry in chain {
            let whole = Push::Entries(Packed::new(vec![entry.bytes().clone()])).encode();
            let message = if whole.len() <= limits::GOSSIP_MESSAGE {
                whole
            } else {
                let tips = vec![(entry.header().author, entry.header().seq, entry.hash())];
                Push::Tips { by: self.nodes[n].id, tips }.encode()
            };
            self.swarm(n, HOME, SwarmInput::Broadcast(message));
        }
    }

    /// A guest's next entry, on what a node has.
    fn sign(&mut self, n: usize, guest: usize, before: Option<&Entry>) -> Entry {
        let seq = before.map_or(0, |entry| entry.header().seq + 1);
        // A key that only it writes: what others wrote is superseded by the nodes often enough.
        let path = format!("guests/{guest}/{seq}").into_bytes();
        let size = usize::try_from(self.dice.below(200)).unwrap();
        let value = Value::Bytes(vec![7; size]);
        let op = Op::Put { path, supersedes: vec![], kind: Kind::File, mode: 0o644, mtime: 0, value };
        let payload = self.payload(op);
        let log = self.nodes[n].up.as_ref().unwrap().kv.log();
        let prev = before.map(Entry::hash);
        let deps: Vec<_> = log.frontier().unwrap().into_iter().filter(|hash| Some(*hash) != prev).collect();
        let tips = log.tips(&log.database().view().unwrap()).unwrap();
        let latest = tips.values().map(|tip| tip.hlc).max().unwrap_or_default();
        let header = Header {
            store: HOME,
            author: self.guests[guest].id,
            seq,
            prev,
            deps,
            hlc: latest.next(log.now()),
            payload_len: 0,
            payload_hash: Hash([0; 32]),
        };
        Entry::sign(&self.guests[guest].key, header, &payload).unwrap()
    }

    /// An operation's bytes, as the kv store writes them.
    fn payload(&self, op: Op) -> Bytes {
        let log = self.stencil.log();
        let receipt = self.stencil.submit(vec![op], Origin::Local).unwrap();
        let entry = log.get(&log.database().view().unwrap(), &receipt.hash).unwrap().unwrap();
        entry.shared_payload()
    }

    /// An entry is durable at one more node.
    pub(crate) fn arrival(&mut self, hash: &Hash) {
        let Some((since, count)) = self.journeys.get_mut(hash) else { return };
        *count += 1;
        if *count == self.nodes.len() {
            self.arrived.push(self.now.0 - since.0);
            self.journeys.remove(hash);
        }
    }

    /// Lets time go by.
    pub(crate) fn go_on(&mut self, millis: u64) {
        self.run_until(Millis(self.now.0 + millis));
    }

    /// One write after the other, each by some node. `apart` is the time between two, in milliseconds.
    pub(crate) fn write_each(&mut self, count: u64, apart: u64, size: u64) {
        for _ in 0..count {
            let n = self.dice.pick(self.nodes.len());
            let path = format!("k/{}", self.dice.below(PATHS));
            self.put(n, &path, size);
            self.go_on(apart);
        }
    }

    /// One write by each node.
    pub(crate) fn all_write(&mut self) {
        for n in 0..self.nodes.len() {
            self.put(n, &format!("k/{}", n as u64 % PATHS), 60);
        }
    }

    /// Parts the nodes into two halves, which do not hear each other.
    pub(crate) fn halve(&mut self) {
        self.sides = (0..self.nodes.len() as u64).map(|n| n % 2).collect();
    }

    /// How many authors wrote.
    pub(crate) fn authors(&self) -> usize {
        let authors: std::collections::BTreeSet<_> =
            self.signed.keys().filter(|(store, ..)| *store == HOME).map(|(_, author, _)| author).collect();
        authors.len()
    }
}
