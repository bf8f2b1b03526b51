//! Telling of what is new, and hearing of it: gossip. It is a hint; reconciliation makes up for what is lost.

use std::cmp::Ordering;
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

/// What was pulled and is to be announced, and what others announced meanwhile.
#[derive(Default)]
pub(super) struct News {
    /// Per author the last entry that was pulled.
    pulled: BTreeMap<NodeId, (u64, Hash)>,
    /// When that is announced.
    pub(super) due: Option<Millis>,
    /// Per author the highest number that was announced by others, and by how many.
    heard: BTreeMap<NodeId, (u64, u32)>,
}

impl News {
    fn hear(&mut self, author: NodeId, seq: u64) {
        if self.heard.len() >= limits::TIPS && !self.heard.contains_key(&author) {
            self.heard.clear();
        }
        let (highest, count) = self.heard.entry(author).or_default();
        match seq.cmp(highest) {
            Ordering::Greater => (*highest, *count) = (seq, 1),
            Ordering::Equal => *count += 1,
            Ordering::Less => {}
        }
    }

    /// What not enough others have announced.
    fn take(&mut self) -> Vec<(NodeId, u64, Hash)> {
        self.due = None;
        let known = |author: &NodeId, seq: u64| {
            self.heard.get(author).is_some_and(|(highest, count)| seq <= *highest && *count >= limits::ANNOUNCERS)
        };
        let pulled = std::mem::take(&mut self.pulled).into_iter();
        pulled
            .filter(|(author, (seq, _))| !known(author, *seq))
            .map(|(author, (seq, hash))| (author, seq, hash))
            .collect()
    }
}

impl Replica {
    /// Tells gossip what was pulled, if it is time and others have not.
    pub(super) fn announce_pulled(&mut self, store: StoreId, now: Millis) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        if state.news.due.is_some_and(|due| due <= now) {
            let tips = state.news.take();
            self.announce(store, &tips);
        }
    }

    fn announce(&mut self, store: StoreId, tips: &[(NodeId, u64, Hash)]) {
        for part in tips.chunks(TIPS) {
            let message = Push::Tips { by: self.identity.me, tips: part.to_vec() };
            self.out.push(Output::Broadcast { store, message: message.encode() });
        }
    }

    pub(super) fn durable(&mut self, durable: &Durable, now: Millis) {
        let Durable { store, entries } = durable;
        if !self.stores.contains_key(store) {
            return;
        }
        let mut local = Vec::new();
        let mut pulled: BTreeMap<NodeId, (u64, Hash)> = BTreeMap::new();
        for (entry, origin) in entries {
            match origin {
                Origin::Mount(_) | Origin::Local => local.push(entry),
                Origin::Pulled => {
                    pulled.insert(entry.header().author, (entry.header().seq, entry.hash()));
                }
                Origin::Pushed => {}
            }
        }
        let bytes: Vec<_> = local.iter().map(|entry| entry.bytes()).collect();
        let (messages, packed) = pack(&bytes);
        for message in messages {
            self.out.push(Output::Broadcast { store: *store, message: message.encode() });
        }
        let last: BTreeMap<_, _> =
            local[packed..].iter().map(|entry| (entry.header().author, (entry.header().seq, entry.hash()))).collect();
        let last: Vec<_> = last.into_iter().map(|(author, (seq, hash))| (author, seq, hash)).collect();
        self.announce(*store, &last);
        if !pulled.is_empty() {
            let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            let due = now.after(self.within(limits::ANNOUNCE_APART.saturating_mul(peers)));
            if let Some(state) = self.stores.get_mut(store) {
                state.news.pulled.append(&mut pulled);
                state.news.due.get_or_insert(due);
            }
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
                    if let Some(state) = self.stores.get_mut(&store) {
                        state.news.hear(author, seq);
                    }
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
