//! What must hold in every history: on the way, and when all are in step.

use std::sync::Arc;

use bytes::Bytes;
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::replication::entry::Entry;
use lattice::replication::limits;
use lattice::replication::log::Fingerprint;
use lattice::replication::message::{Message, Push};
use lattice::replication::reconcile::Shelf;
use lattice::replication::shelf::{LogShelf, Logs};
use lattice::stores::Merge;

use crate::node::{HOME, MESH};
use crate::world::{PATHS, World};

impl World {
    pub(crate) fn prints(&self, n: usize) -> Vec<Fingerprint> {
        let open = &self.nodes[n].up.as_ref().unwrap().open;
        let shelf = LogShelf(&**open);
        shelf.stores().iter().map(|store| shelf.fingerprint(store).unwrap()).collect()
    }

    pub(crate) fn in_step(&self) -> bool {
        let first = self.prints(0);
        let all = first.iter().map(|print| print.count).sum::<u64>();
        all == self.signed.len() as u64 && (1..self.nodes.len()).all(|n| self.prints(n) == first)
    }

    pub(crate) fn differences(&self) -> String {
        let mut lines = vec![format!("{} entries were signed", self.signed.len())];
        for (n, node) in self.nodes.iter().enumerate() {
            let up = node.up.as_ref().unwrap();
            let counts: Vec<_> = self.prints(n).iter().map(|print| print.count).collect();
            lines.push(format!(
                "node {n} ({}): {counts:?}, {:?}",
                node.id.short(),
                up.replica.snapshot(&LogShelf(&*up.open))
            ));
        }
        lines.join("\n")
    }

    /// All nodes have the same heads and, byte for byte, the same state; and so they do after a rebuild.
    pub(crate) fn check(&mut self) {
        let heads = |world: &Self, n: usize| {
            let kv = &world.nodes[n].up.as_ref().unwrap().kv;
            let heads = |i| kv.heads(format!("k/{i}").as_bytes()).unwrap().map(|heads| heads.all().to_vec());
            (0..PATHS).map(heads).collect::<Vec<_>>()
        };
        let digests = |world: &Self, n: usize| {
            let open = &world.nodes[n].up.as_ref().unwrap().open;
            open.logs().iter().map(|log| log.state_digest().unwrap()).collect::<Vec<_>>()
        };
        let (first, state) = (heads(self, 0), digests(self, 0));
        for n in 1..self.nodes.len() {
            assert_eq!(heads(self, n), first, "heads of node {n}");
            assert_eq!(digests(self, n), state, "state of node {n}");
        }
        let open = Arc::clone(&self.nodes[0].up.as_ref().unwrap().open);
        open.log(&HOME).unwrap().rebuild().unwrap();
        assert_eq!(digests(self, 0), state, "state after a rebuild");
    }

    /// No two entries have one author and number: checked over all that ever became durable or left a node.
    pub(crate) fn witness(&mut self, store: StoreId, entry: &Entry) {
        let place = (store, entry.header().author, entry.header().seq);
        let known = *self.signed.entry(place).or_insert(entry.hash());
        assert_eq!(known, entry.hash(), "a fork at {place:?}");
    }

    /// Nothing that is not durable leaves a node, and no more than a peer gave credit for.
    pub(crate) fn inspect(&mut self, n: usize, to: usize, frame: &Bytes) {
        assert!(frame.len() <= limits::FRAME);
        match Message::decode(frame).unwrap() {
            Message::Entries { store, id, packed, .. } => {
                packed.entries().iter().for_each(|bytes| self.durable(n, store, bytes));
                let size: usize = packed.entries().iter().map(Bytes::len).sum();
                let flying = self.in_flight.entry((n, to, store, id)).or_default();
                *flying += size as u64;
                assert!(*flying <= (limits::CREDIT + limits::FRAME_BYTES + limits::PAYLOAD) as u64);
            }
            Message::Credit { store, id, bytes } => {
                // In flight until the grant is on its way: it can't be spent earlier.
                let flying = self.in_flight.entry((to, n, store, id)).or_default();
                *flying = flying.saturating_sub(u64::from(bytes));
            }
            Message::Tips { store, tips, .. } => {
                for (author, tip) in tips {
                    self.claimed(n, store, author, tip.seq, tip.hash);
                }
            }
            Message::Status { stores, .. } => {
                let open = Arc::clone(&self.nodes[n].up.as_ref().unwrap().open);
                for (store, fingerprint) in stores {
                    assert_eq!(LogShelf(&*open).fingerprint(&store), Some(fingerprint));
                }
            }
            Message::Hello { mesh, .. } => assert_eq!(mesh, MESH),
            Message::Pull { .. }
            | Message::Compare { .. }
            | Message::Compared { .. }
            | Message::Have { .. }
            | Message::Ping(_)
            | Message::Pong(_) => {}
        }
    }

    /// Nothing that is not durable is told.
    pub(crate) fn inspect_push(&mut self, n: usize, store: StoreId, message: &Bytes) {
        assert!(message.len() <= limits::GOSSIP_MESSAGE);
        match Push::decode(message).unwrap() {
            Push::Entries(packed) => packed.entries().iter().for_each(|bytes| self.durable(n, store, bytes)),
            Push::Tips { tips, .. } => {
                for (author, seq, hash) in tips {
                    self.claimed(n, store, author, seq, hash);
                }
            }
        }
    }

    fn durable(&mut self, n: usize, store: StoreId, bytes: &Bytes) {
        let entry = Entry::decode(bytes.clone()).unwrap();
        self.claimed(n, store, entry.header().author, entry.header().seq, entry.hash());
        self.witness(store, &entry);
    }

    fn claimed(&self, n: usize, store: StoreId, author: NodeId, seq: u64, hash: Hash) {
        let log = self.nodes[n].up.as_ref().unwrap().open.log(&store).unwrap();
        let found = log.at(&log.database().durable().unwrap(), &author, seq).unwrap();
        assert_eq!(found.map(|entry| entry.hash()), Some(hash), "node {n} told of what it may lose");
    }
}
