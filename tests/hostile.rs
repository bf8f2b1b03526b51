//! Bytes of others that were changed on the way or made to harm: each decoder says no, or yes to what it can bear; none panics,
//! and nothing that a member may sign stops its chain or the store.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use lattice::clock::{Hlc, Manual, Millis};
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::net::ticket::Ticket;
use lattice::replication::database::Database;
use lattice::replication::entry::{Entry, Header};
use lattice::replication::log::{Log, Origin, Parts, Verdict, events};
use lattice::replication::machine::StateMachine;
use lattice::replication::membership::{Member, Membership, Role};
use lattice::replication::message::{Message, Push};
use lattice::stores::{chat, kv};
use proptest::prelude::*;

const STORE: StoreId = StoreId([9; 32]);
const NOW: Millis = Millis(1_800_000_000_000);

/// A change of some bytes.
#[derive(Debug, Clone)]
enum Change {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        6 => (any::<usize>(), 1u8..).prop_map(|(at, bits)| Change::Flip(at, bits)),
        1 => any::<usize>().prop_map(Change::Cut),
        2 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, with)| Change::Insert(at, with)),
        2 => (any::<usize>(), 1usize..40).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (any::<usize>(), 1usize..60).prop_map(|(at, length)| Change::Repeat(at, length)),
    ];
    prop::collection::vec(change, 0..5)
}

fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let length = bytes.len().max(1);
        match change {
            Change::Flip(at, bits) => {
                if let Some(byte) = bytes.get_mut(at % length) {
                    *byte ^= bits;
                }
            }
            Change::Cut(at) => bytes.truncate(at % length),
            Change::Insert(at, with) => {
                let at = at % (bytes.len() + 1);
                bytes.splice(at..at, with.iter().copied());
            }
            Change::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at.min(bytes.len())..(at + count).min(bytes.len()));
            }
            Change::Repeat(at, count) => {
                let at = (at % length).min(bytes.len());
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

fn frozen(text: &str) -> Vec<Vec<u8>> {
    text.split_whitespace().map(|line| data_encoding::HEXLOWER.decode(line.as_bytes()).unwrap()).collect()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

fn log(machine: Arc<dyn StateMachine>) -> Log {
    let me = NodeId(key().verifying_key().to_bytes());
    let members = Membership { members: [(me, Member::new("one", Role::Writer))].into() };
    let parts = Parts {
        store: STORE,
        key: Arc::new(key()),
        clock: Arc::new(Manual::new(NOW)),
        machine,
        membership: Arc::new(ArcSwap::from_pointee(members)),
        events: events(),
    };
    Log::with(Database::in_memory(redb::backends::InMemoryBackend::new()).unwrap(), parts).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_message_is_refused_or_reads_back_as_it_is(pick in any::<usize>(), changes in changes()) {
        let lines = frozen(include_str!("frozen/sync-messages-v1.hex"));
        let bytes = Bytes::from(changed(&lines[pick % lines.len()], &changes));
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }
        if let Ok(push) = Push::decode(&bytes) {
            prop_assert_eq!(Push::decode(&push.encode()).unwrap(), push);
        }
    }

    #[test]
    fn a_changed_entry_is_refused_or_is_another_of_exactly_its_bytes(payload in prop::collection::vec(any::<u8>(), 0..80), changes in changes()) {
        let header = Header {
            store: STORE, author: NodeId([0; 32]), seq: 1, prev: Some(Hash([2; 32])), deps: vec![Hash([3; 32]), Hash([4; 32])],
            hlc: Hlc::at(NOW), payload_len: 0, payload_hash: Hash([0; 32]),
        };
        let good = Entry::sign(&key(), header, &payload).unwrap();
        let bytes = changed(good.bytes(), &changes);
        if let Ok(entry) = Entry::decode(bytes.clone().into()) {
            prop_assert_eq!(&entry.bytes()[..], &bytes[..]);
            prop_assert_eq!(Hash::from(blake3::hash(entry.payload())), entry.header().payload_hash);
            let same = entry.hash() == good.hash() && entry.signature() == good.signature();
            prop_assert_eq!(same, bytes == good.bytes()[..]);
        }
        let signed = changed(&good.signed_header(), &changes);
        drop(Header::decode_signed(&signed));
    }

    #[test]
    fn a_changed_token_is_refused(text in "lattice[a-z2-7]{0,200}", at in any::<usize>()) {
        prop_assert!(text.parse::<Ticket>().is_err());
        let cut: String = text.chars().take(at % (text.len() + 1)).collect();
        prop_assert!(cut.parse::<Ticket>().is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_payload_that_a_member_signs_stops_its_chain_or_the_store(
        changes in prop::collection::vec((any::<bool>(), changes()), 1..12),
    ) {
        let kinds: [(Arc<dyn StateMachine>, &str); 2] = [
            (Arc::new(kv::Machine), include_str!("frozen/kv-payload-v1.hex")),
            (Arc::new(chat::Machine), include_str!("frozen/chat-payload-v1.hex")),
        ];
        for (machine, good) in kinds {
            let good = frozen(good);
            let (log, replica) = (log(Arc::clone(&machine)), log(machine));
            for (number, (_, changes)) in changes.iter().enumerate() {
                let payload = changed(&good[number % good.len()], changes);
                prop_assert_eq!(log.submit(&payload, Origin::Local).unwrap().seq, number as u64);
            }
            let me = NodeId(key().verifying_key().to_bytes());
            let entries = log.chain(&log.database().view().unwrap(), &me, 0, usize::MAX).unwrap();
            let verdicts = replica.include(&entries, Origin::Pulled).unwrap();
            prop_assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Included));
            let digest = log.state_digest().unwrap();
            prop_assert_eq!(replica.state_digest().unwrap(), digest);
            replica.rebuild().unwrap();
            prop_assert_eq!(replica.state_digest().unwrap(), digest);
        }
    }
}
