use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;

use super::*;
use crate::clock::Hlc;
use crate::replication::entry::{Entry, Header};
use crate::replication::log::Origin;
use crate::replication::message::{Packed, Push, Range, Wanted};
use crate::replication::reconcile::Ordered;
use crate::replication::reconcile::Tips;
use crate::replication::reconcile::testing::List;

const MESH: MeshId = MeshId([1; 32]);
const STORE: StoreId = StoreId([1; 32]);
const NOW: Millis = Millis(1_700_000_000_000);
const A: NodeId = NodeId([10; 32]);
const B: NodeId = NodeId([11; 32]);
const ME: NodeId = NodeId([12; 32]);

/// One store with one author's chain.
#[derive(Default)]
struct Chain(Vec<Entry>);

fn author() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

impl Chain {
    fn of(length: u64, payload: usize) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        for seq in 0..length {
            let header = Header {
                store: STORE,
                author: NodeId([0; 32]),
                seq,
                prev: entries.last().map(Entry::hash),
                deps: vec![],
                hlc: Hlc(seq + 1),
                payload_len: 0,
                payload_hash: Hash([0; 32]),
            };
            entries.push(Entry::sign(&author(), header, &vec![7; payload]).unwrap());
        }
        Self(entries)
    }

    fn tip(&self) -> Option<(NodeId, Tip)> {
        let last = self.0.last()?;
        Some((last.header().author, Tip { seq: last.header().seq, hlc: last.header().hlc, hash: last.hash() }))
    }
}

impl Shelf for Chain {
    fn stores(&self) -> Vec<StoreId> {
        vec![STORE]
    }
    fn fingerprint(&self, _: &StoreId) -> Option<Fingerprint> {
        Some(Fingerprint { count: self.0.len() as u64, sum: self.tip().map_or([0; 32], |(_, tip)| tip.hash.0) })
    }
    fn tips(&self, store: &StoreId) -> Option<(Fingerprint, Tips)> {
        Some((self.fingerprint(store)?, self.tip().into_iter().collect()))
    }
    fn included(&self, _: &StoreId) -> Option<Tips> {
        Some(self.tip().into_iter().collect())
    }
    fn chain(&self, _: &StoreId, _: &NodeId, from: u64, limit: usize) -> Vec<Entry> {
        self.0.iter().skip(usize::try_from(from).unwrap()).take(limit).cloned().collect()
    }
    fn entry(&self, _: &StoreId, hash: &Hash) -> Option<Entry> {
        self.0.iter().find(|entry| entry.hash() == *hash).cloned()
    }
    fn ordered(
        &self,
        _: &StoreId,
        work: &mut dyn FnMut(&dyn Ordered) -> crate::replication::database::Result<()>,
    ) -> Option<()> {
        let mut items: Vec<_> = self.0.iter().map(|entry| (entry.header().hlc, entry.hash())).collect();
        items.sort_unstable();
        work(&List(items)).ok()
    }
}

fn replica(shelf: &Chain) -> Replica {
    let mut replica = Replica::new(Identity { me: ME, mesh: MESH, build: "test".into(), seed: 1 });
    assert_eq!(replica.handle(Input::Stores, NOW, shelf), [Output::Subscribe(STORE)]);
    replica
}

fn hello(mesh: MeshId, protocol: u16) -> Message {
    Message::Hello { protocol, mesh, build: "other".into() }
}

fn receive(replica: &mut Replica, peer: NodeId, message: &Message, now: Millis, shelf: &Chain) -> Vec<Output> {
    replica.handle(Input::Received { peer, frame: message.encode() }, now, shelf)
}

fn connect(replica: &mut Replica, peer: NodeId, shelf: &Chain) {
    let outputs = replica.handle(Input::Connected { peer, address: None }, NOW, shelf);
    assert!(receive(replica, peer, &hello(MESH, PROTOCOL), NOW, shelf).is_empty());
    for (_, message) in sent(&outputs) {
        if let Message::Ping(nonce) = message {
            receive(replica, peer, &Message::Pong(nonce), Millis(NOW.0 + 3), shelf);
        }
    }
}

fn sent(outputs: &[Output]) -> Vec<(NodeId, Message)> {
    let frames = outputs.iter().filter_map(|output| match output {
        Output::Send { peer, frame } => Some((*peer, Message::decode(frame).unwrap())),
        Output::Close { .. }
        | Output::Subscribe(_)
        | Output::Unsubscribe(_)
        | Output::Broadcast { .. }
        | Output::Ingest(_)
        | Output::Retry(_)
        | Output::Own { .. } => None,
    });
    frames.collect()
}

fn tips(of: &Chain) -> Message {
    let (fingerprint, tips) = of.tips(&STORE).unwrap();
    Message::Tips { store: STORE, answer: false, fingerprint, tips: tips.into_iter().collect() }
}

fn pull_of(outputs: &[Output]) -> Option<(NodeId, u64, Wanted)> {
    sent(outputs).into_iter().find_map(|(peer, message)| match message {
        Message::Pull { id, wanted, .. } => Some((peer, id, wanted)),
        _ => None,
    })
}

#[test]
fn equal_fingerprints_end_a_reconciliation_in_one_round_trip() {
    let chain = Chain::of(3, 10);
    let mut replica = replica(&chain);
    connect(&mut replica, A, &chain);
    let stores = vec![(STORE, chain.fingerprint(&STORE).unwrap())];
    let answer = receive(&mut replica, A, &Message::Status { answer: true, stores: stores.clone() }, NOW, &chain);
    assert_eq!(sent(&answer), [(A, Message::Status { answer: false, stores })]);
    let snapshot = replica.snapshot(&chain);
    assert!(snapshot.peers[&A].in_step[&STORE] && snapshot.stores[&STORE].settled);
    assert_eq!(snapshot.peers[&A].agreed[&STORE], 3);
}

#[test]
fn what_a_peer_has_beyond_is_pulled_once_and_lag_is_known_meanwhile() {
    let (mine, theirs) = (Chain::of(2, 10), Chain::of(9, 10));
    let mut replica = replica(&mine);
    connect(&mut replica, A, &mine);
    let outputs = receive(&mut replica, A, &tips(&theirs), NOW, &mine);
    let (peer, id, wanted) = pull_of(&outputs).unwrap();
    let author = theirs.tip().unwrap().0;
    assert_eq!((peer, wanted), (A, Wanted::Ranges(vec![Range { author, from: 2, to: 8 }])));
    assert_eq!(replica.snapshot(&mine).peers[&A].lag(), 7);
    assert!(!replica.snapshot(&mine).stores[&STORE].settled);
    // It had nothing after all: that is not asked for again until it is claimed again.
    let empty = Message::Entries { store: STORE, id, last: true, packed: Packed::default() };
    assert_eq!(pull_of(&receive(&mut replica, A, &empty, NOW, &mine)), None);
    assert_eq!(pull_of(&replica.handle(Input::Tick, NOW.after(limits::PULL_STALLED), &mine)), None);
    assert!(pull_of(&receive(&mut replica, A, &tips(&theirs), NOW, &mine)).is_some());
}

#[test]
fn a_pull_that_stands_still_goes_to_another_peer() {
    let (mine, theirs) = (Chain::of(2, 10), Chain::of(9, 10));
    let mut replica = replica(&mine);
    connect(&mut replica, A, &mine);
    connect(&mut replica, B, &mine);
    assert_eq!(pull_of(&receive(&mut replica, A, &tips(&theirs), NOW, &mine)).unwrap().0, A);
    assert_eq!(pull_of(&receive(&mut replica, B, &tips(&theirs), NOW, &mine)), None, "one pull at a time");
    let outputs = replica.handle(Input::Tick, NOW.after(limits::PULL_STALLED), &mine);
    assert_eq!(pull_of(&outputs).unwrap().0, B);
    let outputs = receive(&mut replica, A, &tips(&theirs), NOW.after(limits::PULL_STALLED), &mine);
    assert_eq!(pull_of(&outputs), None);
    let outputs = replica.handle(Input::Lost { peer: B }, NOW.after(limits::PULL_STALLED), &mine);
    assert_eq!(pull_of(&outputs).unwrap().0, A, "a lost link hands its pull on at once");
}

#[test]
fn no_more_is_sent_than_credit_allows_and_the_rest_follows_parents_first() {
    let chain = Chain::of(600, 4_000);
    let mut replica = replica(&chain);
    connect(&mut replica, A, &chain);
    let range = Range { author: chain.tip().unwrap().0, from: 0, to: 599 };
    let credit = u32::try_from(limits::CREDIT).unwrap();
    let pull = Message::Pull { store: STORE, id: 4, wanted: Wanted::Ranges(vec![range]), credit };
    let mut outputs = receive(&mut replica, A, &pull, NOW, &chain);
    let mut seqs = Vec::new();
    let mut done = false;
    while !done {
        let frames = sent(&outputs);
        assert!(!frames.is_empty());
        let mut bytes = 0;
        for (_, message) in frames {
            let Message::Entries { last, packed, .. } = message else { continue };
            bytes += packed.entries().iter().map(Bytes::len).sum::<usize>();
            seqs.extend(packed.into_entries().into_iter().map(|entry| Entry::decode(entry).unwrap().header().seq));
            done = last;
        }
        assert!(bytes <= limits::CREDIT + limits::FRAME_BYTES);
        let credit = Message::Credit { store: STORE, id: 4, bytes: u32::try_from(bytes).unwrap() };
        outputs = receive(&mut replica, A, &credit, NOW, &chain);
    }
    assert_eq!(seqs, (0..600).collect::<Vec<_>>());
}

#[test]
fn a_peer_that_does_not_answer_a_probe_is_cut_off_and_one_that_does_is_not() {
    let chain = Chain::default();
    let mut replica = replica(&chain);
    connect(&mut replica, A, &chain);
    connect(&mut replica, B, &chain);
    let probed = NOW.after(limits::HEARTBEAT);
    let pings: BTreeMap<_, _> = sent(&replica.handle(Input::Tick, probed, &chain))
        .into_iter()
        .filter_map(|(peer, message)| if let Message::Ping(nonce) = message { Some((peer, nonce)) } else { None })
        .collect();
    assert_eq!(pings.len(), 2);
    receive(&mut replica, B, &Message::Pong(pings[&B]), Millis(probed.0 + 4), &chain);
    assert!(replica.wake_at() <= probed.after(limits::SILENCE));
    let outputs = replica.handle(Input::Tick, probed.after(limits::SILENCE), &chain);
    assert_eq!(outputs, [Output::Close { peer: A, why: Closing::Silent }]);
    assert_eq!(replica.snapshot(&chain).peers[&B].rtt, Some(Duration::from_millis(4)));
}

#[test]
fn a_slow_link_gets_four_round_trips_of_patience_and_one_without_a_hello_none() {
    let chain = Chain::default();
    let mut replica = replica(&chain);
    connect(&mut replica, A, &chain);
    replica.handle(Input::Connected { peer: B, address: None }, NOW, &chain);
    let probed = NOW.after(limits::HEARTBEAT);
    let outputs = sent(&replica.handle(Input::Tick, probed, &chain));
    let ping = outputs.iter().find(|(peer, message)| *peer == A && matches!(message, Message::Ping(_))).unwrap();
    let Message::Ping(nonce) = ping.1 else { unreachable!() };
    let answered = Millis(probed.0 + 1_900);
    receive(&mut replica, A, &Message::Pong(nonce), answered, &chain);
    receive(&mut replica, B, &Message::Ping(7), answered, &chain);
    let again = probed.after(limits::HEARTBEAT);
    replica.handle(Input::Tick, again, &chain);
    assert_eq!(replica.handle(Input::Tick, Millis(again.0 + 4_900), &chain), []);
    let outputs = replica.handle(Input::Tick, NOW.after(limits::SILENCE_BUSY), &chain);
    assert!(outputs.contains(&Output::Close { peer: B, why: Closing::Silent }), "{outputs:?}");
    let outputs = replica.handle(Input::Tick, Millis(again.0 + 7_600), &chain);
    assert!(outputs.contains(&Output::Close { peer: A, why: Closing::Silent }), "{outputs:?}");
}

#[test]
fn after_a_sleep_nobody_is_cut_off_for_having_been_silent() {
    let chain = Chain::default();
    let mut replica = replica(&chain);
    connect(&mut replica, A, &chain);
    replica.handle(Input::Tick, NOW.after(limits::HEARTBEAT), &chain);
    let later = Millis(NOW.0 + 3_600_000);
    let outputs = replica.handle(Input::Woke, later, &chain);
    let kinds: Vec<_> = sent(&outputs).into_iter().map(|(_, message)| std::mem::discriminant(&message)).collect();
    assert_eq!(outputs.len(), 2, "a probe and a status: {outputs:?}");
    assert!(kinds.contains(&std::mem::discriminant(&Message::Ping(0))));
}

#[test]
fn another_mesh_or_protocol_is_refused_and_nothing_is_heard_before_a_hello() {
    let chain = Chain::of(3, 10);
    let mut replica = replica(&chain);
    for (message, why) in
        [(hello(MeshId([9; 32]), PROTOCOL), Closing::OtherMesh), (hello(MESH, PROTOCOL + 1), Closing::Protocol)]
    {
        replica.handle(Input::Connected { peer: A, address: None }, NOW, &chain);
        assert!(receive(&mut replica, A, &Message::Ping(1), NOW, &chain).is_empty());
        assert_eq!(receive(&mut replica, A, &message, NOW, &chain), [Output::Close { peer: A, why }]);
        let range = Range { author: chain.tip().unwrap().0, from: 0, to: 9 };
        let pull = Message::Pull { store: STORE, id: 1, wanted: Wanted::Ranges(vec![range]), credit: 1_000 };
        assert!(receive(&mut replica, A, &pull, NOW, &chain).is_empty());
    }
}

#[test]
fn a_peer_whose_entries_keep_failing_is_cut_off_for_a_while() {
    let chain = Chain::default();
    let mut replica = replica(&chain);
    connect(&mut replica, A, &chain);
    let report = Report { faults: limits::FAULTS, ..report(Some(A), Some(1)) };
    let pushed = Report { pull: None, ..report.clone() };
    assert!(replica.handle(Input::Ingested(pushed), NOW, &chain).is_empty(), "gossip is not its neighbour's fault");
    let outputs = replica.handle(Input::Ingested(report), NOW, &chain);
    let close = Output::Close { peer: A, why: Closing::Faults };
    assert_eq!(outputs, std::slice::from_ref(&close));
    replica.handle(Input::Lost { peer: A }, NOW, &chain);
    let again = Input::Connected { peer: A, address: None };
    assert_eq!(replica.handle(again, NOW.after(Duration::from_secs(1)), &chain), [close]);
    let much_later = Input::Connected { peer: A, address: None };
    let outputs = replica.handle(much_later, NOW.after(limits::FAULTS_AGE), &chain);
    assert!(!sent(&outputs).is_empty(), "it gets another chance: {outputs:?}");
}

fn report(peer: Option<NodeId>, pull: Option<u64>) -> Report {
    Report { failed: false, ..Report::failed(STORE, peer, pull) }
}

#[test]
fn the_same_tips_over_different_sets_are_settled_by_ranges() {
    let (mine, theirs) = (Chain::of(4, 10), Chain::of(4, 20));
    let other = NodeId([99; 32]);
    let mut one = replica(&mine);
    let mut two = Replica::new(Identity { me: other, mesh: MESH, build: "test".into(), seed: 2 });
    two.handle(Input::Stores, NOW, &theirs);
    connect(&mut one, other, &mine);
    connect(&mut two, ME, &theirs);
    assert!(sent(&receive(&mut two, ME, &tips(&mine), NOW, &theirs)).is_empty(), "one end begins");
    let begun = sent(&receive(&mut one, other, &tips(&theirs), NOW, &mine));
    let (_, round) = begun.first().unwrap();
    let answer = sent(&receive(&mut two, ME, round, NOW, &theirs));
    let outputs = receive(&mut one, other, &answer[0].1, NOW, &mine);
    let parents_first: Vec<_> = theirs.0.iter().map(Entry::hash).collect();
    assert_eq!(pull_of(&outputs).map(|(_, _, wanted)| wanted), Some(Wanted::Hashes(parents_first)));
    let have = sent(&outputs).into_iter().find(|(_, message)| matches!(message, Message::Have { .. })).unwrap();
    assert!(pull_of(&receive(&mut two, ME, &have.1, NOW, &theirs)).is_some());
}

#[test]
fn a_comparison_that_never_agrees_ends() {
    let (mine, theirs) = (Chain::of(4, 10), Chain::of(4, 20));
    let other = NodeId([99; 32]);
    let mut one = replica(&mine);
    connect(&mut one, other, &mine);
    let goes_on = |outputs: &[Output]| sent(outputs).iter().any(|(_, said)| matches!(said, Message::Compare { .. }));
    assert!(goes_on(&receive(&mut one, other, &tips(&theirs), NOW, &mine)));
    // Up to the end of all there is another fingerprint than any.
    let never = Message::Compared { store: STORE, round: [&[0x61, 0, 0, 1][..], &[0; 16]].concat() };
    let rounds = (0..1_000).take_while(|_| goes_on(&receive(&mut one, other, &never, NOW, &mine))).count();
    assert_eq!(rounds, limits::ROUNDS as usize - 1);
}

/// Time goes by in steps, as a driver counts them: each tick is at the moment that the replica names.
#[test]
fn each_peer_is_probed_and_asked_in_time_however_many_there_are_and_whatever_comes_between() {
    let shelf = Chain::of(0, 1);
    let mut replica = replica(&shelf);
    let peers: Vec<_> = (0..50).map(|n| NodeId([n; 32])).collect();
    peers.iter().for_each(|peer| connect(&mut replica, *peer, &shelf));
    // When each was probed and asked last.
    let mut last: BTreeMap<NodeId, (Millis, Millis)> = peers.iter().map(|peer| (*peer, (NOW, NOW))).collect();
    let mut now = NOW;
    while now.since(NOW) < limits::RECONCILE * 4 {
        let mut outputs = replica.handle(Input::Tick, now, &shelf);
        if now.0.is_multiple_of(7) {
            let peer = peers[usize::try_from(now.0 % 50).unwrap()];
            outputs.extend(replica.handle(Input::Neighbour { peer }, now, &shelf));
        }
        for (peer, message) in sent(&outputs) {
            let (probed, asked) = last.get_mut(&peer).unwrap();
            match message {
                Message::Ping(nonce) => {
                    *probed = now;
                    receive(&mut replica, peer, &Message::Pong(nonce), now, &shelf);
                }
                Message::Status { .. } => *asked = now,
                other => panic!("{other:?}"),
            }
        }
        for (peer, (probed, asked)) in &last {
            assert!(now.since(*probed) <= limits::HEARTBEAT, "{peer} was not probed");
            assert!(now.since(*asked) <= limits::RECONCILE * 5 / 4, "{peer} was not asked");
        }
        let earliest = replica.peers.values().map(Peer::due).min().unwrap();
        assert_eq!(replica.wake_at(), earliest, "whom it wakes for is who is due first");
        now = replica.wake_at().max(Millis(now.0 + 1));
    }
}

#[test]
fn what_was_pulled_is_announced_unless_enough_others_did() {
    let theirs = Chain::of(3, 10);
    let (author, tip) = theirs.tip().unwrap();
    let announced = |others: u8| {
        let mut replica = replica(&theirs);
        connect(&mut replica, A, &theirs);
        connect(&mut replica, B, &theirs);
        let entries = theirs.0.iter().map(|entry| (entry.clone(), Origin::Pulled)).collect();
        let mut outputs = replica.handle(Input::Durable(Durable { store: STORE, entries }), NOW, &theirs);
        for n in 0..others {
            let by = NodeId([20 + n; 32]);
            let message = Push::Tips { by, tips: vec![(author, tip.seq, tip.hash)] }.encode();
            outputs.extend(replica.handle(Input::Gossip { store: STORE, from: A, message }, NOW, &theirs));
        }
        outputs.extend(replica.handle(Input::Tick, NOW.after(limits::ANNOUNCE_APART * 2), &theirs));
        outputs.into_iter().filter(|output| matches!(output, Output::Broadcast { .. })).count()
    };
    assert_eq!(announced(0), 1);
    assert_eq!(announced(2), 1);
    assert_eq!(announced(3), 0, "three others did");
}
