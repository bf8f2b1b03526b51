//! What two nodes send each other, and for how long they compute, until each knows which entries the other lacks: by
//! comparing ranges from the log's own index, beside plain negentropy over the same set, beside a rateless IBLT, and beside
//! the bound of 32 bytes a difference.
//!
//! `recon [MOST]` compares stores of 10,000 entries and on, up to `MOST` (1,000,000 if it is not given).
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads clocks and prints")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that can't go on stops with the reason")]
#![allow(missing_docs, reason = "a program, not a library")]

mod iblt;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use lattice::clock::{Hlc, System};
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::replication::database::Result;
use lattice::replication::entry::{Entry, Header};
use lattice::replication::log::{Log, Origin, Parts, events};
use lattice::replication::machine::StateMachine;
use lattice::replication::membership::{Member, Membership, Role};
use lattice::replication::reconcile::{Comparison, Next, Ordered, Shelf, Tips, answer};
use lattice::stores::kv::Machine;
use negentropy::{Id, Negentropy, NegentropyStorageVector, Storage};

const STORE: StoreId = StoreId([1; 32]);
/// Stamps between two entries of the common chain.
const STRIDE: u64 = 1 << 20;
const FRAME: usize = 1_024;
/// Authors: of what is common, and of each end's own in each case.
const AUTHORS: u8 = 64;

fn key(n: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_bytes(&[n + 1; 32]))
}

fn open(path: &Path, me: u8) -> Log {
    let id = |n| NodeId(key(n).verifying_key().to_bytes());
    let members = (0..AUTHORS).map(|n| (id(n), Member::new(n.to_string(), Role::Writer))).collect();
    let machine: Arc<dyn StateMachine> = Arc::new(Machine);
    let parts = Parts {
        store: STORE,
        key: key(me),
        clock: Arc::new(System),
        machine,
        membership: Arc::new(ArcSwap::from_pointee(Membership { members })),
        events: events(),
    };
    Log::open(path, 64 << 20, parts).unwrap()
}

/// An author's chain, as far as it was made.
struct Chain {
    key: Arc<SigningKey>,
    last: Option<(u64, Hash)>,
}

impl Chain {
    fn new(author: u8) -> Self {
        Self { key: key(author), last: None }
    }

    /// The next entry. What it holds no store understands; it is an entry all the same.
    fn next(&mut self, stamp: u64) -> Entry {
        let header = Header {
            store: STORE,
            author: NodeId(self.key.verifying_key().to_bytes()),
            seq: self.last.map_or(0, |(seq, _)| seq + 1),
            prev: self.last.map(|(_, hash)| hash),
            deps: vec![],
            hlc: Hlc(stamp),
            payload_len: 0,
            payload_hash: Hash([0; 32]),
        };
        let entry = Entry::sign(&self.key, header, &[0xff; 64]).unwrap();
        self.last = Some((entry.header().seq, entry.hash()));
        entry
    }
}

fn include(log: &Log, entries: &[Entry]) {
    for frame in entries.chunks(FRAME) {
        log.include(frame, Origin::Pulled).unwrap();
    }
    log.database().flush().unwrap();
}

/// One log, as a replica reads it.
struct One(Log);

impl Shelf for One {
    fn stores(&self) -> Vec<StoreId> {
        vec![STORE]
    }

    fn fingerprint(&self, _: &StoreId) -> Option<lattice::replication::log::Fingerprint> {
        self.0.fingerprint(&self.0.database().durable().ok()?).ok()
    }

    fn tips(&self, store: &StoreId) -> Option<(lattice::replication::log::Fingerprint, Tips)> {
        Some((self.fingerprint(store)?, self.included(store)?))
    }

    fn included(&self, _: &StoreId) -> Option<Tips> {
        self.0.tips(&self.0.database().durable().ok()?).ok()
    }

    fn chain(&self, _: &StoreId, author: &NodeId, from: u64, limit: usize) -> Vec<Entry> {
        self.0.chain(&self.0.database().durable().unwrap(), author, from, limit).unwrap()
    }

    fn entry(&self, _: &StoreId, hash: &Hash) -> Option<Entry> {
        self.0.get(&self.0.database().durable().ok()?, hash).ok()?
    }

    fn ordered(&self, _: &StoreId, work: &mut dyn FnMut(&dyn Ordered) -> Result<()>) -> Option<()> {
        let view = self.0.database().durable().ok()?;
        work(&self.0.ordered(&view).ok()?).ok()
    }
}

/// What a comparison cost.
struct Cost {
    bytes: usize,
    /// Messages there and back.
    rounds: usize,
    took: Duration,
    /// Differences that were found.
    found: usize,
}

fn ours(one: &One, other: &One) -> Cost {
    let begin = Instant::now();
    let Next::Round(mut round) = Comparison::begin(one, &STORE) else { panic!("no first round") };
    let mut comparison = Comparison::default();
    let (mut bytes, mut rounds) = (0, 0);
    loop {
        rounds += 1;
        let Next::Round(back) = answer(other, &STORE, &round) else { panic!("no answer") };
        bytes += round.len() + back.len();
        match comparison.go_on(one, &STORE, &back) {
            Next::Round(next) => round = next,
            Next::Done => break,
            Next::Senseless | Next::Unreadable => panic!("the answer is not understood"),
        }
    }
    let took = begin.elapsed();
    Cost { bytes, rounds, took, found: comparison.found().map(|hashes| hashes.len()).iter().sum() }
}

fn hashes(log: &Log, mut each: impl FnMut(Hlc, &Hash)) {
    let view = log.database().durable().unwrap();
    let ordered = log.ordered(&view).unwrap();
    let mut from = 0;
    while from < ordered.count() {
        let items = ordered.items(from, from + 4_096).unwrap();
        from += items.len() as u64;
        items.iter().for_each(|(hlc, hash)| each(*hlc, hash));
    }
}

/// The reference, which has all ids in memory, and puts them there first.
fn plain(one: &Log, other: &Log) -> Cost {
    let begin = Instant::now();
    let vector = |log: &Log| {
        let mut vector = NegentropyStorageVector::new();
        hashes(log, |hlc, hash| vector.insert(hlc.0, Id::from_byte_array(hash.0)).unwrap());
        vector.seal().unwrap();
        vector
    };
    let (vector_one, vector_other) = (vector(one), vector(other));
    let mut one = Negentropy::new(Storage::Borrowed(&vector_one), 1 << 20).unwrap();
    let mut other = Negentropy::new(Storage::Borrowed(&vector_other), 1 << 20).unwrap();
    let (mut bytes, mut rounds, mut have, mut need) = (0, 0, Vec::new(), Vec::new());
    let mut round = one.initiate().unwrap();
    loop {
        rounds += 1;
        let back = other.reconcile(&round).unwrap();
        bytes += round.len() + back.len();
        match one.reconcile_with_ids(&back, &mut have, &mut need).unwrap() {
            Some(next) => round = next,
            None => break,
        }
    }
    Cost { bytes, rounds, took: begin.elapsed(), found: have.len() + need.len() }
}

fn rateless(one: &Log, other: &Log, differences: usize) -> Cost {
    let begin = Instant::now();
    let symbols = 2 * differences + 64;
    let sketch = |log: &Log| {
        let mut sketch = iblt::Sketch::new(symbols);
        hashes(log, |_, hash| sketch.add(&hash.0));
        sketch
    };
    let (needed, found) = sketch(one).minus(&sketch(other)).decode().unwrap();
    Cost { bytes: needed * iblt::SYMBOL, rounds: 1, took: begin.elapsed(), found }
}

fn row(entries: u64, what: &str, differences: usize, ways: [Cost; 3]) {
    assert!(ways.iter().all(|cost| cost.found == differences), "not all differences were found");
    let cells =
        ways.map(|cost| format!("{} B, {} rt, {:.1} ms", cost.bytes, cost.rounds, cost.took.as_secs_f64() * 1e3));
    println!("| {entries} | {differences} {what} | {} | {} B |", cells.join(" | "), 32 * differences);
}

fn main() {
    let most: u64 = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (One(open(&dir.path().join("one.redb"), 0)), One(open(&dir.path().join("other.redb"), 1)));
    let mut common = Chain::new(2);
    let mut authors = 3..AUTHORS;
    let mut made = 0;
    println!(
        "| entries | differences | from the index | plain negentropy | rateless IBLT | bound |\n|---|---|---|---|---|---|"
    );
    for entries in [10_000, 100_000, 1_000_000].into_iter().take_while(|entries| *entries <= most) {
        let begun = made * STRIDE;
        let fresh: Vec<Entry> = (made..entries).map(|n| common.next((n + 1) * STRIDE)).collect();
        made = entries;
        [&one, &other].iter().for_each(|end| include(&end.0, &fresh));
        drop(fresh);
        let now = |log: &One| log.fingerprint(&STORE).unwrap().count;
        for (differences, scattered) in
            [(0, false), (1, false), (1, true), (100, false), (100, true), (10_000, false), (10_000, true)]
        {
            // Each end has half of them: where they are scattered, among all the stamps, else behind them.
            let half = differences / 2;
            let spread = if scattered { (entries * STRIDE - begun) / (half as u64 + 1) } else { 1 };
            let first = if scattered { begun } else { entries * STRIDE };
            let mut chain = |count: usize, shift: u64| -> Vec<Entry> {
                let mut chain = Chain::new(authors.next().unwrap());
                (0..count as u64).map(|n| chain.next(first + (n + 1) * spread + shift)).collect()
            };
            let (mine, theirs) = (chain(differences - half, 1), chain(half, 2));
            include(&one.0, &mine);
            include(&other.0, &theirs);
            let ways = [ours(&one, &other), plain(&one.0, &other.0), rateless(&one.0, &other.0, differences)];
            row(now(&one), if scattered { "scattered" } else { "recent" }, differences, ways);
            include(&one.0, &theirs);
            include(&other.0, &mine);
        }
    }
}
