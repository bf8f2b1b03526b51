//! Telling of what is new, and hearing of it: gossip. It is a hint; reconciliation makes up for what is lost.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Output, Replica};
use crate::clock::Millis;
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::ingest::Batch;
use crate::replication::limits;
use crate::replication::log::{Durable, Origin};
use crate::replication::message::{Packed, Push};
use crate::replication::reconcile::Shelf;

/// What a message takes beside its entries' bytes, at most: its kind, their number, and the length of each.
const FIXED: usize = 8;
const EACH: usize = 3;
/// Tips in one message: author, number and hash of each, and the announcer.
const TIPS: usize = (limits::GOSSIP_MESSAGE - 64) / 80;

/// The entries as messages, and how many of them, from the first on, these hold: none if the messages would be too
/// many, and none from an entry on that is too large for one.
fn pack(entries: &[&Bytes]) -> (Vec<Push>, usize) {
    let mut messages = Vec::new();
    let mut current: Vec<Bytes> = Vec::new();
    let mut size = FIXED;
    let mut packed = 0;
    for entry in entries {
        let more = entry.len() + EACH;
        if FIXED + more > limits::GOSSIP_MESSAGE {
            break;
        }
        if size + more > limits::GOSSIP_MESSAGE {
            messages.push(Push::Entries(Packed::new(std::mem::take(&mut current))));
            size = FIXED;
        }
        size += more;
        current.push((*entry).clone());
        packed += 1;
    }
    if !current.is_empty() {
        messages.push(Push::Entries(Packed::new(current)));
    }
    if messages.len() > limits::PUSH_MESSAGES { (Vec::new(), 0) } else { (messages, packed) }
}

impl Replica {
    pub(super) fn durable(&mut self, durable: &Durable, now: Millis) {
        let Durable { store, entries } = durable;
        if !self.stores.contains_key(store) {
            return;
        }
        let mut local = Vec::new();
        let mut tips: BTreeMap<NodeId, (u64, Hash)> = BTreeMap::new();
        for (entry, origin) in entries {
            match origin {
                Origin::Mount(_) | Origin::Local => local.push(entry),
                Origin::Pulled => {
                    tips.insert(entry.header().author, (entry.header().seq, entry.hash()));
                }
                Origin::Pushed => {}
            }
        }
        let bytes: Vec<_> = local.iter().map(|entry| entry.bytes()).collect();
        let (messages, packed) = pack(&bytes);
        for message in messages {
            self.out.push(Output::Broadcast { store: *store, message: message.encode() });
        }
        for entry in &local[packed..] {
            tips.insert(entry.header().author, (entry.header().seq, entry.hash()));
        }
        let tips: Vec<_> = tips.into_iter().map(|(author, (seq, hash))| (author, seq, hash)).collect();
        for part in tips.chunks(TIPS) {
            let message = Push::Tips { by: self.identity.me, tips: part.to_vec() };
            self.out.push(Output::Broadcast { store: *store, message: message.encode() });
        }
        if !local.is_empty() {
            if *store == self.identity.mesh.root() {
                self.members_changed();
            }
            for peer in self.peers.values_mut() {
                peer.in_step.insert(*store, false);
            }
            self.reconcile_by(None, now.after(limits::RECONCILE_SOON));
        }
    }

    pub(super) fn gossip(&mut self, store: StoreId, from: NodeId, message: &Bytes, now: Millis, shelf: &dyn Shelf) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        let push = match Push::decode(message) {
            Ok(push) => push,
            Err(error) => {
                tracing::debug!(target: "sync", from = %from.short(), %error, "a gossip message does not read");
                return;
            }
        };
        match push {
            Push::Entries(packed) => {
                if state.pushed >= limits::PUSHED_WAITING {
                    return self.reconcile_by(None, now.after(limits::RECONCILE_SOON));
                }
                state.pushed += 1;
                let entries = packed.into_entries();
                self.out.push(Output::Ingest(Batch { store, peer: from, pull: None, entries }));
            }
            Push::Tips { by, tips } => {
                if by == self.identity.me {
                    return;
                }
                for (author, seq, _) in tips {
                    self.claim(&by, store, author, seq);
                    if author == self.identity.me {
                        self.weigh_own(store, shelf);
                    }
                }
                self.plan(store, now, shelf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sizes: &[usize]) -> Vec<Bytes> {
        sizes.iter().map(|size| Bytes::from(vec![7; *size])).collect()
    }

    fn packed(sizes: &[usize]) -> (Vec<usize>, usize) {
        let entries = bytes(sizes);
        let (messages, packed) = pack(&entries.iter().collect::<Vec<_>>());
        for message in &messages {
            assert!(message.encode().len() <= limits::GOSSIP_MESSAGE);
        }
        let counts = messages.iter().map(|message| match message {
            Push::Entries(packed) => packed.entries().len(),
            Push::Tips { .. } => 0,
        });
        (counts.collect(), packed)
    }

    #[test]
    fn small_entries_share_a_message_and_large_ones_end_the_pushing() {
        assert_eq!(packed(&[300; 20]), (vec![13, 7], 20));
        assert_eq!(packed(&[300, 5_000, 300]), (vec![1], 1));
        assert_eq!(packed(&[limits::GOSSIP_MESSAGE - FIXED - EACH]), (vec![1], 1));
    }

    #[test]
    fn a_burst_is_not_pushed_at_all() {
        assert_eq!(packed(&[3_000; 8]).1, 8);
        assert_eq!(packed(&[3_000; 9]), (vec![], 0));
    }
}
