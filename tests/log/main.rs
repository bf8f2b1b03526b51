//! The log: what counts, what is visible, what leaves the node, and what a crash takes.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod crash;
mod disk;
mod failures;
mod regain;
mod soundness;

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use lattice::clock::{Hlc, Manual, Millis};
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::replication::database::{Database, Read, Result, Table, Txn};
use lattice::replication::entry::{Entry, Header};
use lattice::replication::limits;
use lattice::replication::log::{Durable, Log, Origin, Parts, Rejected, SubmitError, Verdict, events};
use lattice::replication::machine::{Effects, StateMachine};
use lattice::replication::membership::{Member, Membership, Role};
use lattice::replication::verify::verify;

use disk::Disk;

const STORE: StoreId = StoreId([9; 32]);
const NOW: Millis = Millis(1_800_000_000_000);

/// Keeps, for each payload, how often it was applied.
struct Counting;

impl StateMachine for Counting {
    fn kind(&self) -> &'static str {
        "counting"
    }

    fn tables(&self) -> &'static [Table] {
        &["counts"]
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        let mut count = txn.get("counts", entry.payload())?.unwrap_or_default();
        count.push(1);
        txn.put("counts", entry.payload(), count);
        Ok(Effects::default())
    }
}

fn key(n: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_bytes(&[n; 32]))
}

fn node(n: u8) -> NodeId {
    NodeId(key(n).verifying_key().to_bytes())
}

fn membership() -> Membership {
    let member = |name: &str, role| Member::new(name, role);
    let members = [(node(1), member("one", Role::Writer)), (node(2), member("two", Role::Writer))];
    Membership { members: members.into_iter().chain([(node(3), member("three", Role::Reader))]).collect() }
}

fn parts(n: u8) -> Parts {
    Parts {
        store: STORE,
        key: key(n),
        clock: Arc::new(Manual::new(NOW)),
        machine: Arc::new(Counting),
        membership: Arc::new(ArcSwap::from_pointee(membership())),
        events: events(),
    }
}

fn open(disk: &Disk, n: u8) -> Log {
    Log::with(Database::in_memory(disk.clone()).unwrap(), parts(n)).unwrap()
}

/// What left the node.
type Sent = Arc<Mutex<Vec<Entry>>>;

fn sent(log: &Log) -> Sent {
    let sent = Sent::default();
    let sink = Arc::clone(&sent);
    log.outbox(Box::new(move |durable: Durable| {
        sink.lock().unwrap().extend(durable.entries.into_iter().map(|(entry, _)| entry));
    }));
    sent
}

fn entries(log: &Log, n: u8) -> Vec<Entry> {
    log.chain(&log.database().view().unwrap(), &node(n), 0, usize::MAX).unwrap()
}

/// An entry by node `n` as a faulty or hostile node might make it.
fn crafted(n: u8, seq: u64, prev: Option<Hash>, deps: Vec<Hash>, hlc: Hlc) -> Entry {
    let header =
        Header { store: STORE, author: node(n), seq, prev, deps, hlc, payload_len: 0, payload_hash: Hash([0; 32]) };
    Entry::sign(&key(n), header, b"crafted").unwrap()
}

fn include(log: &Log, entry: &Entry) -> Verdict {
    log.include(std::slice::from_ref(entry), Origin::Pulled).unwrap().remove(0)
}

#[test]
fn a_write_is_visible_at_once_and_leaves_the_node_only_when_it_is_durable() {
    let log = open(&Disk::default(), 1);
    let left = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&left);
    log.outbox(Box::new(move |durable: Durable| sink.lock().unwrap().extend(durable.entries)));
    let receipt = log.submit(b"a", Origin::Local).unwrap();
    assert_eq!(entries(&log, 1).len(), 1);
    assert!(left.lock().unwrap().is_empty());
    assert_eq!(log.fingerprint(&log.database().durable().unwrap()).unwrap().count, 0);
    log.wait(receipt.staged).unwrap();
    assert_eq!(left.lock().unwrap()[0].0.hash(), receipt.hash);
    assert_eq!(log.fingerprint(&log.database().durable().unwrap()).unwrap().count, 1);
}

#[test]
fn an_entry_is_read_told_and_sent_with_its_signature_before_and_after_it_is_durable() {
    let log = open(&Disk::default(), 1);
    let left = sent(&log);
    let mut told = log.subscribe();
    let receipts: Vec<_> = (0..3u8).map(|n| log.submit(&[n], Origin::Local).unwrap()).collect();
    let check = |found: &[Entry], whence: &str| {
        assert_eq!(
            found.iter().map(Entry::hash).collect::<Vec<_>>(),
            receipts.iter().map(|one| one.hash).collect::<Vec<_>>()
        );
        assert_eq!(verify(found), [true; 3], "{whence}");
    };
    check(&entries(&log, 1), "read before it is durable");
    check(&std::iter::from_fn(|| told.try_recv().ok()).map(|event| event.entry.clone()).collect::<Vec<_>>(), "told");
    let unread = open(&Disk::default(), 1);
    let left_unread = sent(&unread);
    for n in 0..3u8 {
        unread.submit(&[n], Origin::Local).unwrap();
    }
    for (log, left) in [(&log, left), (&unread, left_unread)] {
        log.database().flush().unwrap();
        check(&left.lock().unwrap(), "sent");
        let durable = log.database().durable().unwrap();
        check(&log.chain(&durable, &node(1), 0, 3).unwrap(), "read when it is durable");
    }
}

#[test]
fn what_a_crash_takes_no_other_node_has_seen_so_the_chain_goes_on_without_a_fork() {
    let disk = Disk::default();
    let log = open(&disk, 1);
    let sent = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&sent);
    log.outbox(Box::new(move |durable: Durable| sink.lock().unwrap().extend(durable.entries)));
    let first = log.submit(b"a", Origin::Local).unwrap();
    log.wait(first.staged).unwrap();
    log.submit(b"lost", Origin::Local).unwrap();
    let after = disk.crash();
    let log = open(&after, 1);
    let again = log.submit(b"b", Origin::Local).unwrap();
    assert_eq!(again.seq, 1, "the number of the lost entry is free");
    let other = open(&Disk::default(), 2);
    for (entry, _) in sent.lock().unwrap().iter() {
        assert_eq!(include(&other, entry), Verdict::Included);
    }
    for entry in entries(&log, 1) {
        assert!(matches!(include(&other, &entry), Verdict::Included | Verdict::Duplicate));
    }
    assert_eq!(entries(&other, 1), entries(&log, 1));
}

#[test]
fn an_entry_names_the_frontier_and_takes_its_place() {
    let (one, two) = (open(&Disk::default(), 1), open(&Disk::default(), 2));
    one.submit(b"a", Origin::Local).unwrap();
    two.submit(b"b", Origin::Local).unwrap();
    let theirs = entries(&two, 2).remove(0);
    assert_eq!(include(&one, &theirs), Verdict::Included);
    assert_eq!(one.frontier().unwrap().len(), 2);
    one.submit(b"c", Origin::Local).unwrap();
    let last = entries(&one, 1).remove(1);
    assert_eq!(last.header().deps, [theirs.hash()]);
    assert_eq!(one.frontier().unwrap(), [last.hash()]);
    assert!(last.header().hlc > theirs.header().hlc);
}

#[test]
fn an_entry_waits_for_its_parents_and_for_its_time_and_for_its_author_to_be_known() {
    let log = open(&Disk::default(), 1);
    let unknown = Hash([7; 32]);
    let orphan = crafted(2, 1, Some(unknown), vec![], Hlc::at(NOW));
    assert_eq!(include(&log, &orphan), Verdict::Missing(vec![unknown]));
    let ahead = NOW.after(limits::CLOCK_AHEAD).after(std::time::Duration::from_millis(500));
    assert_eq!(
        include(&log, &crafted(2, 0, None, vec![], Hlc::at(ahead))),
        Verdict::Early(NOW.after(std::time::Duration::from_millis(500)))
    );
    assert_eq!(include(&log, &crafted(4, 0, None, vec![], Hlc::at(NOW))), Verdict::UnknownAuthor);
}

#[test]
fn what_breaks_a_rule_is_refused_by_that_rule() {
    let log = open(&Disk::default(), 1);
    let first = crafted(2, 0, None, vec![], Hlc::at(NOW));
    assert_eq!(include(&log, &first), Verdict::Included);
    assert_eq!(include(&log, &first), Verdict::Duplicate);
    let fork = crafted(2, 0, None, vec![], Hlc::at(NOW).next(NOW));
    let verdict = Rejected::Fork { entry: fork.hash(), other: first.hash() };
    assert_eq!(include(&log, &fork), Verdict::Rejected(verdict));
    assert_eq!(log.forks().unwrap(), [(node(2), 0)], "the proof is kept");
    let backwards = crafted(2, 1, Some(first.hash()), vec![], Hlc::at(NOW));
    assert_eq!(include(&log, &backwards), Verdict::Rejected(Rejected::Hlc(backwards.hash())));
    let reader = crafted(3, 0, None, vec![], Hlc::at(NOW));
    assert_eq!(include(&log, &reader), Verdict::Excluded);
    assert!(entries(&log, 3).is_empty(), "it is kept aside and does not count");
    let skipping = crafted(2, 5, Some(first.hash()), vec![], Hlc::at(NOW).next(NOW));
    assert_eq!(include(&log, &skipping), Verdict::Rejected(Rejected::Chain(skipping.hash())));
}

#[test]
fn a_reader_and_a_stranger_sign_nothing() {
    for n in [3, 4] {
        let log = open(&Disk::default(), n);
        assert!(matches!(log.submit(b"a", Origin::Local), Err(SubmitError::NotAllowed)));
        assert!(entries(&log, n).is_empty());
    }
}

#[test]
fn a_rebuild_gives_the_same_bytes_and_one_broken_off_is_done_at_the_next_opening() {
    let disk = Disk::default();
    let log = open(&disk, 1);
    for n in 0..10_000u32 {
        log.submit(&(n % 1_000).to_be_bytes(), Origin::Local).unwrap();
    }
    let before = log.state_digest().unwrap();
    log.rebuild().unwrap();
    assert_eq!(log.state_digest().unwrap(), before);
    log.database().flush().unwrap();

    let view = log.database().view().unwrap();
    let mut txn = Txn::new(&view);
    txn.put("meta", *b"rebuilding", [1]);
    txn.remove("counts", 7u32.to_be_bytes());
    let writes = txn.finish();
    drop(view);
    log.database().stage(writes).unwrap();
    log.database().flush().unwrap();
    assert_ne!(log.state_digest().unwrap(), before);
    let reopened = open(&disk.crash(), 1);
    assert_eq!(reopened.state_digest().unwrap(), before);
}

#[test]
fn equal_sets_of_entries_have_equal_fingerprints_in_whatever_order_they_came() {
    let (one, two) = (open(&Disk::default(), 1), open(&Disk::default(), 2));
    let a = crafted(1, 0, None, vec![], Hlc::at(NOW));
    let b = crafted(2, 0, None, vec![], Hlc::at(NOW));
    for (log, order) in [(&one, [&a, &b]), (&two, [&b, &a])] {
        for entry in order {
            assert_eq!(include(log, entry), Verdict::Included);
        }
        log.database().flush().unwrap();
    }
    let fingerprint = |log: &Log| log.fingerprint(&log.database().durable().unwrap()).unwrap();
    assert_eq!(fingerprint(&one), fingerprint(&two));
    assert_eq!(fingerprint(&one).count, 2);
}

#[test]
fn whoever_writes_here_takes_turns_with_what_comes_in() {
    let log = open(&Disk::default(), 1);
    let mut chain: Vec<Entry> = Vec::new();
    let mut stamp = Hlc::at(NOW);
    for seq in 0..4_000 {
        stamp = stamp.next(NOW);
        chain.push(crafted(2, seq, chain.last().map(Entry::hash), vec![], stamp));
    }
    let (begun, coming) = std::sync::mpsc::channel();
    let mut passed = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for entry in &chain {
                assert_eq!(include(&log, entry), Verdict::Included);
                begun.send(()).unwrap();
            }
        });
        coming.recv().unwrap();
        for n in 0..30u8 {
            let before = log.database().staged();
            let receipt = log.submit(&[n], Origin::Local).unwrap();
            passed.push(receipt.staged - before);
        }
    });
    passed.sort_unstable();
    assert!(passed[passed.len() / 2] < 10, "so many others went first: {passed:?}");
}

#[test]
fn what_comes_in_at_once_is_included_in_parts_and_all_of_it() {
    let log = open(&Disk::default(), 1);
    let mut chain: Vec<Entry> = Vec::new();
    let mut stamp = Hlc::at(NOW);
    for seq in 0..600 {
        stamp = stamp.next(NOW);
        chain.push(crafted(2, seq, chain.last().map(Entry::hash), vec![], stamp));
    }
    let before = log.database().staged();
    let verdicts = log.include(&chain, Origin::Pulled).unwrap();
    assert_eq!(verdicts.len(), 600);
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Included));
    assert_eq!(log.database().staged() - before, 3);
    assert_eq!(entries(&log, 2), chain);
}
