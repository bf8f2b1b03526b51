//! Fetching and handing out: pulls, what is served, comparisons, and what ingest says.

use std::collections::BTreeMap;

use super::{Output, Replica, credit_limit};
use crate::clock::Millis;
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::ingest::{Batch, Report};
use crate::replication::limits;
use crate::replication::message::{Message, Packed, Range, Wanted};
use crate::replication::reconcile::{self, Comparison, Next, Serving, Shelf, Tips};

/// What is being fetched for a store.
pub(super) struct Pull {
    pub(super) peer: NodeId,
    id: u64,
    /// Per author the last number that is asked for.
    upto: BTreeMap<NodeId, u64>,
    /// Whether the last frame has come.
    last: bool,
    /// Batches given to ingest and not worked off.
    waiting: usize,
    included: usize,
    progress: Millis,
}

impl Pull {
    /// When the peer has been silent for too long. While ingest has work it is not the peer's turn.
    pub(super) fn stalls_at(&self) -> Option<Millis> {
        (self.waiting == 0).then(|| self.progress.after(limits::PULL_STALLED))
    }

    /// Counts its time from now on.
    pub(super) fn touch(&mut self, now: Millis) {
        self.progress = now;
    }
}

/// What of the claims is not here.
fn lacking(claims: &BTreeMap<NodeId, u64>, included: &Tips) -> Vec<Range> {
    let mut ranges = Vec::new();
    for (author, to) in claims {
        let from = included.get(author).map_or(0, |tip| tip.seq + 1);
        if from <= *to {
            ranges.push(Range { author: *author, from, to: *to });
        }
    }
    ranges
}

/// How many entries the ranges hold.
pub(super) fn size(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| (range.to - range.from).saturating_add(1)).fold(0, u64::saturating_add)
}

impl Replica {
    /// Forgets the pull of a store if it is from this peer.
    pub(super) fn abandon(&mut self, store: &StoreId, peer: &NodeId) {
        if let Some(state) = self.stores.get_mut(store) {
            drop(state.pull.take_if(|pull| pull.peer == *peer));
        }
    }

    /// Notes that `by` has an author's entries up to a number.
    pub(super) fn claim(&mut self, by: &NodeId, store: StoreId, author: NodeId, seq: u64) {
        if let Some(peer) = self.peers.get_mut(by) {
            let claim = peer.claims.entry(store).or_default().entry(author).or_default();
            *claim = (*claim).max(seq);
        }
    }

    /// Begins a pull if there is something to pull and none is under way.
    pub(super) fn plan(&mut self, store: StoreId, now: Millis, shelf: &dyn Shelf) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        if state.pull.is_some() {
            return;
        }
        if let Some((peer, mut hashes)) = state.single.pop_first() {
            let rest = hashes.split_off(hashes.len().min(limits::PULL_ITEMS));
            if !rest.is_empty() {
                state.single.insert(peer, rest);
            }
            return self.begin_pull(peer, store, BTreeMap::new(), Wanted::Hashes(hashes), now);
        }
        if self.peers.values().all(|peer| !peer.claims.contains_key(&store)) {
            return;
        }
        let Some(included) = shelf.included(&store) else { return };
        let mut best: Option<(u64, NodeId, Vec<Range>)> = None;
        for (id, peer) in &mut self.peers {
            let Some(claims) = peer.claims.get_mut(&store) else { continue };
            let mut ranges = lacking(claims, &included);
            if ranges.is_empty() {
                peer.claims.remove(&store);
                continue;
            }
            let lag = size(&ranges);
            if best.as_ref().is_none_or(|(most, ..)| lag > *most) {
                ranges.truncate(limits::PULL_ITEMS);
                best = Some((lag, *id, ranges));
            }
        }
        match best {
            Some((_, peer, ranges)) => {
                let upto = ranges.iter().map(|range| (range.author, range.to)).collect();
                self.begin_pull(peer, store, upto, Wanted::Ranges(ranges), now);
            }
            None => {
                if let Some(state) = self.stores.get_mut(&store) {
                    state.settled = true;
                }
            }
        }
    }

    fn begin_pull(&mut self, peer: NodeId, store: StoreId, upto: BTreeMap<NodeId, u64>, wanted: Wanted, now: Millis) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        self.next_id += 1;
        let id = self.next_id;
        state.pull = Some(Pull { peer, id, upto, last: false, waiting: 0, included: 0, progress: now });
        self.send(peer, &Message::Pull { store, id, wanted, credit: credit_limit() });
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one message, and its surroundings")]
    pub(super) fn entries(
        &mut self,
        peer: NodeId,
        store: StoreId,
        id: u64,
        last: bool,
        packed: Packed,
        now: Millis,
        shelf: &dyn Shelf,
    ) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        let Some(pull) = state.pull.as_mut().filter(|pull| pull.peer == peer && pull.id == id && !pull.last) else {
            return;
        };
        pull.progress = now;
        pull.last = last;
        let entries = packed.into_entries();
        if entries.is_empty() {
            return self.finish_pull(store, now, shelf);
        }
        pull.waiting += 1;
        self.out.push(Output::Ingest(Batch { store, peer, pull: Some(id), entries }));
    }

    pub(super) fn ingested(&mut self, report: Report, now: Millis, shelf: &dyn Shelf) {
        let Report {
            store, peer, pull: id, bytes, included, faults, orphaned, waiting, missing, early, failed, ..
        } = report;
        if let (Some(peer), Some(_)) = (peer, id)
            && faults > 0
        {
            // What gossip hands over was not checked by who handed it over: only pulled entries count against a peer.
            self.fault(peer, faults, now);
        }
        if included > 0 && self.is_root(&store) {
            self.members_changed();
        }
        let Some(state) = self.stores.get_mut(&store) else { return };
        state.waiting = waiting;
        state.missing = missing;
        state.early = early;
        state.failed = failed;
        if let (Some(peer), true) = (peer, orphaned > 0) {
            let at = now.max(state.asked.after(limits::ASK_AGAIN));
            state.ask.get_or_insert((at, peer));
        }
        match (peer, id) {
            (Some(peer), Some(id)) => {
                let Some(pull) = state.pull.as_mut().filter(|pull| pull.peer == peer && pull.id == id) else { return };
                pull.waiting = pull.waiting.saturating_sub(1);
                pull.included += included;
                pull.progress = now;
                if failed {
                    self.abandon(&store, &peer);
                    self.drop_claims(&store);
                } else if !pull.last {
                    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                    self.send(peer, &Message::Credit { store, id, bytes });
                } else {
                    self.finish_pull(store, now, shelf);
                }
            }
            (Some(_), None) => {
                state.pushed = state.pushed.saturating_sub(1);
                self.plan(store, now, shelf);
            }
            (None, _) => {}
        }
    }

    /// Says whether a peer has more of this node's own chain than is here, when that is first known and when it changes.
    pub(super) fn weigh_own(&mut self, store: StoreId, shelf: &dyn Shelf) {
        let me = self.identity.me;
        let claims = self.peers.values().filter_map(|peer| peer.claims.get(&store)?.get(&me));
        let behind = claims.max().is_some_and(|claimed| {
            let here = shelf.included(&store).and_then(|tips| tips.get(&me).map(|tip| tip.seq));
            here.is_none_or(|here| here < *claimed)
        });
        let Some(state) = self.stores.get_mut(&store) else { return };
        // What is held back for its stamp is not here yet, though it was pulled.
        if state.own != Some(behind) && (behind || state.early.is_none()) {
            state.own = Some(behind);
            self.out.push(Output::Own { store, behind });
        }
    }

    fn drop_claims(&mut self, store: &StoreId) {
        for peer in self.peers.values_mut() {
            peer.claims.remove(store);
        }
    }

    fn finish_pull(&mut self, store: StoreId, now: Millis, shelf: &dyn Shelf) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        let Some(pull) = state.pull.take_if(|pull| pull.last && pull.waiting == 0) else { return };
        if let Some(peer) = self.peers.get_mut(&pull.peer) {
            if let Some(claims) = peer.claims.get_mut(&store) {
                claims.retain(|author, seq| pull.upto.get(author).is_none_or(|upto| *seq > *upto));
                if claims.is_empty() {
                    peer.claims.remove(&store);
                }
            }
            // One that brought nothing, since what came is held back, would bring nothing again.
            if pull.included > 0 {
                self.reconcile_by(Some(&pull.peer), now.after(limits::RECONCILE_SOON));
            }
        }
        self.weigh_own(store, shelf);
        self.plan(store, now, shelf);
        if let Some(state) = self.stores.get_mut(&store)
            && state.pull.is_none()
        {
            state.settled = true;
        }
    }

    fn is_root(&self, store: &StoreId) -> bool {
        *store == self.identity.mesh.root()
    }

    /// The root store went on: entries by authors that were not known may count now.
    pub(super) fn members_changed(&mut self) {
        let root = self.identity.mesh.root();
        let others = self.stores.keys().filter(|store| **store != root).copied();
        self.out.extend(others.map(Output::Retry));
    }

    /// Asks a peer for its tips if entries wait for one that nothing under way will bring.
    pub(super) fn ask(&mut self, store: StoreId, now: Millis, shelf: &dyn Shelf) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        let Some((_, prefer)) = state.ask.filter(|(at, _)| *at <= now) else { return };
        if state.pull.is_some() {
            // It may bring what is missing: look again when it may be done.
            state.ask = (state.waiting > 0).then_some((now.after(limits::ASK_AGAIN), prefer));
            return;
        }
        state.ask = None;
        if state.waiting == 0 {
            return;
        }
        state.asked = now;
        if !state.missing.is_empty() && state.missing == state.sought {
            // Tips did not bring it: it counts no more, or is another branch of a fork. Who has what names it, has it.
            let missing = std::mem::take(&mut state.sought);
            state.single.insert(prefer, missing);
            return self.plan(store, now, shelf);
        }
        state.sought.clone_from(&state.missing);
        state.ask = Some((now.after(limits::ASK_AGAIN), prefer));
        let ready = |id: &NodeId| self.peers.get(id).is_some_and(|peer| peer.build.is_some());
        let peer = if ready(&prefer) { Some(prefer) } else { self.peers.keys().copied().find(|id| ready(id)) };
        if let Some(peer) = peer {
            self.send_tips(peer, store, true, shelf);
        }
        self.reconcile_by(None, now.after(limits::RECONCILE_SOON));
    }

    /// Sends what a peer asked for, as far as its credit goes.
    pub(super) fn serve(&mut self, id: NodeId, store: StoreId, new: Option<Serving>, shelf: &dyn Shelf) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(serving) = new {
            drop(peer.serving.insert(store, serving));
        }
        let Some(serving) = peer.serving.get_mut(&store) else { return };
        while let Some(message) = serving.frame(shelf) {
            self.out.push(Output::Send { peer: id, frame: message.encode() });
        }
        if serving.done() {
            drop(peer.serving.remove(&store));
        }
    }

    pub(super) fn begin_comparison(&mut self, id: NodeId, store: StoreId, now: Millis, shelf: &dyn Shelf) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.comparing.contains_key(&store) {
            return;
        }
        let Next::Round(round) = Comparison::begin(shelf, &store) else { return };
        peer.comparing.insert(store, (Comparison::default(), now));
        self.send(id, &Message::Compare { store, round });
    }

    /// A round that the peer began.
    pub(super) fn compare(&mut self, id: NodeId, store: StoreId, round: &[u8], now: Millis, shelf: &dyn Shelf) {
        if !self.stores.contains_key(&store) || !self.peers.contains_key(&id) {
            return;
        }
        match reconcile::answer(shelf, &store, round) {
            Next::Round(round) => self.send(id, &Message::Compared { store, round }),
            Next::Senseless => self.fault(id, limits::FAULTS / 4, now),
            Next::Done | Next::Unreadable => {}
        }
    }

    /// The answer to a round that was begun here.
    pub(super) fn compared(&mut self, id: NodeId, store: StoreId, answer: &[u8], now: Millis, shelf: &dyn Shelf) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((mut comparison, _)) = peer.comparing.remove(&store) else { return };
        match comparison.go_on(shelf, &store, answer) {
            Next::Senseless => self.fault(id, limits::FAULTS / 4, now),
            Next::Unreadable => {}
            Next::Round(round) => {
                peer.comparing.insert(store, (comparison, now));
                self.send(id, &Message::Compare { store, round });
            }
            Next::Done => {
                let [theirs, ours] = comparison.found();
                for hashes in theirs.chunks(limits::PULL_ITEMS) {
                    self.send(id, &Message::Have { store, hashes: hashes.to_vec() });
                }
                self.have(id, store, ours, now, shelf);
            }
        }
    }

    /// The peer has entries that this node has not.
    pub(super) fn have(&mut self, id: NodeId, store: StoreId, hashes: Vec<Hash>, now: Millis, shelf: &dyn Shelf) {
        let Some(state) = self.stores.get_mut(&store) else { return };
        if hashes.is_empty() || !self.peers.contains_key(&id) {
            return;
        }
        let wanted = state.single.entry(id).or_default();
        let room = limits::FOUND.saturating_sub(wanted.len());
        wanted.extend(hashes.into_iter().take(room));
        self.plan(store, now, shelf);
    }
}
