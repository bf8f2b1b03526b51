use std::time::Duration;

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;

use super::*;
use crate::clock::{Clock, Hlc, Manual};
use crate::replication::database::{Database, Result, Table, Txn};
use crate::replication::entry::Header;
use crate::replication::log::{Parts, events};
use crate::replication::machine::{Effects, StateMachine};
use crate::replication::membership::{Member, Role};

const STORE: StoreId = StoreId([9; 32]);
const PEER: NodeId = NodeId([8; 32]);
const NOW: Millis = Millis(1_700_000_000_000);

struct Nothing;

impl StateMachine for Nothing {
    fn kind(&self) -> &'static str {
        "nothing"
    }
    fn tables(&self) -> &'static [Table] {
        &[]
    }
    fn apply(&self, _: &mut Txn<'_>, _: &Entry) -> Result<Effects> {
        Ok(Effects::default())
    }
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn node(n: u8) -> NodeId {
    NodeId(key(n).verifying_key().to_bytes())
}

fn members(known: &[u8]) -> Membership {
    let member = |n: &u8| (node(*n), Member::new(format!("n{n}"), Role::Writer));
    Membership { members: known.iter().map(member).collect() }
}

fn log(known: &[u8]) -> (Log, Arc<Manual>) {
    let clock = Arc::new(Manual::new(NOW));
    let parts = Parts {
        store: STORE,
        key: Arc::new(key(1)),
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        machine: Arc::new(Nothing),
        membership: Arc::new(ArcSwap::from_pointee(members(known))),
        events: events(),
    };
    let database = Database::in_memory(redb::backends::InMemoryBackend::new()).unwrap();
    (Log::with(database, parts).unwrap(), clock)
}

fn entry(n: u8, seq: u64, prev: Option<&Entry>, deps: &[&Entry], hlc: Hlc) -> Entry {
    let header = Header {
        store: STORE,
        author: NodeId([0; 32]),
        seq,
        prev: prev.map(Entry::hash),
        deps: deps.iter().map(|dep| dep.hash()).collect(),
        hlc,
        payload_len: 0,
        payload_hash: Hash([0; 32]),
    };
    Entry::sign(&key(n), header, b"x").unwrap()
}

/// An author's chain from a moment on.
fn chain(n: u8, length: u64, from: Millis) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for seq in 0..length {
        entries.push(entry(n, seq, entries.last(), &[], Hlc(Hlc::at(from).0 + seq)));
    }
    entries
}

fn batch(entries: &[Entry]) -> Batch {
    let entries = entries.iter().map(|entry| entry.bytes().clone()).collect();
    Batch { store: STORE, peer: PEER, pull: None, entries }
}

fn forged(entry: &Entry) -> Entry {
    let mut bytes = entry.bytes().to_vec();
    bytes[2 + entry.header_bytes().len()] ^= 1;
    Entry::decode(bytes.into()).unwrap()
}

#[test]
fn entries_in_any_order_are_all_included_once_the_first_is_there() {
    let (log, _) = log(&[2]);
    let mut ingest = Ingest::new();
    let entries = chain(2, 6, NOW);
    for late in [5, 3, 1, 4, 2] {
        let report = ingest.take(&log, batch(&entries[late..=late]));
        assert_eq!((report.included, report.orphaned), (0, 1));
    }
    let report = ingest.take(&log, batch(&entries[..1]));
    assert_eq!((report.included, report.waiting), (6, 0));
    assert_eq!(ingest.bytes, 0);
    assert!(ingest.by_peer.is_empty() && ingest.by_age.is_empty() && ingest.children.is_empty());
}

#[test]
fn an_entry_waits_for_each_of_several_missing_parents() {
    let (log, _) = log(&[2, 3, 4]);
    let mut ingest = Ingest::new();
    let (two, three) = (chain(2, 1, NOW), chain(3, 1, NOW));
    let mut deps = [&two[0], &three[0]];
    deps.sort_by_key(|entry| entry.hash());
    let child = entry(4, 0, None, &deps, Hlc::at(Millis(NOW.0 + 1)));
    assert_eq!(ingest.take(&log, batch(&[child])).orphaned, 1);
    assert_eq!(ingest.take(&log, batch(&two)).included, 1);
    assert_eq!(ingest.take(&log, batch(&three)).included, 2);
}

#[test]
fn a_forged_entry_counts_against_its_sender_and_the_others_are_taken() {
    let (log, _) = log(&[2, 3]);
    let mut ingest = Ingest::new();
    let (good, other) = (chain(2, 1, NOW), chain(3, 1, NOW));
    let report = ingest.take(&log, batch(&[forged(&good[0]), other[0].clone(), good[0].clone()]));
    assert_eq!((report.included, report.faults), (2, 1));
    let broken = Batch { entries: vec![Bytes::from_static(b"no entry")], ..batch(&[]) };
    assert_eq!(ingest.take(&log, broken).faults, 1);
}

#[test]
fn what_is_here_is_not_taken_again_and_a_fork_is_no_fault_of_its_sender() {
    let (log, _) = log(&[2]);
    let mut ingest = Ingest::new();
    let entries = chain(2, 3, NOW);
    ingest.take(&log, batch(&entries));
    let report = ingest.take(&log, batch(&entries));
    assert_eq!((report.included, report.duplicates, report.faults), (0, 3, 0));
    // The same number, another entry.
    let fork = entry(2, 2, Some(&entries[1]), &[], Hlc(entries[2].header().hlc.0 + 9));
    let report = ingest.take(&log, batch(&[fork]));
    assert_eq!((report.included, report.duplicates, report.faults), (0, 0, 0));
    assert_eq!(log.fingerprint(&log.database().view().unwrap()).unwrap().count, 3);
}

#[test]
fn a_strangers_entries_count_when_it_becomes_known() {
    let (log, _) = log(&[2]);
    let mut ingest = Ingest::new();
    let entries = chain(3, 4, NOW);
    assert_eq!(ingest.take(&log, batch(&entries)).included, 0);
    assert_eq!(ingest.retry(&log).included, 0);
    log.membership().store(Arc::new(members(&[2, 3])));
    assert_eq!(ingest.retry(&log).included, 4);
    assert!(ingest.waiting.is_empty() && ingest.strangers.is_empty());
}

#[test]
fn an_entry_stamped_too_far_ahead_is_held_until_its_time_comes() {
    let (log, clock) = log(&[2]);
    let mut ingest = Ingest::new();
    let ahead = NOW.after(limits::CLOCK_AHEAD * 2);
    let report = ingest.take(&log, batch(&chain(2, 2, ahead)));
    assert_eq!((report.included, report.early), (0, Some(NOW.after(limits::CLOCK_AHEAD))));
    clock.set(NOW.after(limits::CLOCK_AHEAD).after(Duration::from_millis(1)));
    let report = ingest.retry(&log);
    assert_eq!((report.included, report.early), (2, None));
}

#[test]
fn one_peers_orphans_are_bounded_and_forgotten_after_a_day() {
    let (log, clock) = log(&[2]);
    let mut ingest = Ingest::new();
    let entries = chain(2, limits::ORPHANS_PER_PEER as u64 + 10, NOW);
    let report = ingest.take(&log, batch(&entries[1..]));
    assert_eq!((report.orphaned, report.waiting), (limits::ORPHANS_PER_PEER + 9, limits::ORPHANS_PER_PEER));
    let other = Batch { peer: NodeId([7; 32]), ..batch(&entries[limits::ORPHANS_PER_PEER + 1..]) };
    assert_eq!(ingest.take(&log, other).waiting, limits::ORPHANS_PER_PEER + 9);
    clock.set(NOW.after(limits::ORPHAN_AGE));
    let report = ingest.take(&log, batch(&[]));
    assert_eq!((report.waiting, ingest.bytes), (0, 0));
    assert!(ingest.by_peer.is_empty() && ingest.children.is_empty());
}
