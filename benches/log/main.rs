//! Measures the log as it grows: signing, including and committing entries of a kv store, beside verification alone.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads clocks and prints")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that can't go on stops with the reason")]
#![allow(clippy::cast_possible_truncation, reason = "counts far below any limit")]
#![allow(missing_docs, reason = "a program, not a library")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use lattice::blobs::{BlobError, Payloads};
use lattice::clock::System;
use lattice::ids::Hash;
use lattice::ids::{NodeId, StoreId};
use lattice::replication::entry::Entry;
use lattice::replication::log::{Log, Origin, Parts, events};
use lattice::replication::machine::StateMachine;
use lattice::replication::membership::{Member, Membership, Role};
use lattice::replication::verify::verify;
use lattice::stores::kv::{Kind, Kv, Machine, Op, Value};

const STEP: u64 = 100_000;
const CACHE: usize = 64 << 20;
const FRAME: usize = 1_024;

fn open(path: &Path, n: u8) -> Log {
    let keys = [1, 2].map(|n| SigningKey::from_bytes(&[n; 32]));
    let members = keys.iter().enumerate().map(|(n, key)| {
        let member = Member { name: n.to_string(), role: Role::Writer, left: false };
        (NodeId(key.verifying_key().to_bytes()), member)
    });
    let machine: Arc<dyn StateMachine> = Arc::new(Machine);
    let parts = Parts {
        store: StoreId([1; 32]),
        key: Arc::new(SigningKey::from_bytes(&[n; 32])),
        clock: Arc::new(System),
        machine,
        membership: Arc::new(ArcSwap::from_pointee(Membership { members: members.collect() })),
        events: events(),
    };
    Log::open(path, CACHE, parts).unwrap()
}

/// No value here is large.
struct NoBlobs;

impl Payloads for NoBlobs {
    fn add_bytes(&self, _: &[u8]) -> Result<(Hash, u64), BlobError> {
        unreachable!("no value here is large")
    }

    fn add_file(&self, _: &Path) -> Result<(Hash, u64), BlobError> {
        unreachable!("no value here is large")
    }

    fn open(&self, _: &Hash) -> Result<Option<File>, BlobError> {
        Ok(None)
    }

    fn fetch(&self, hash: &Hash, _: u64, waited: Duration) -> Result<File, BlobError> {
        Err(BlobError::Absent { hash: *hash, waited })
    }
}

fn put(n: u64) -> Op {
    // Paths in an order that has nothing to do with the order of writing.
    let name = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Op::Put {
        path: format!("dir{}/{name:016x}", name % 1_000).into_bytes(),
        supersedes: vec![],
        kind: Kind::File,
        mode: 0o644,
        mtime: 0,
        value: Value::Bytes(vec![b'x'; 64]),
    }
}

fn main() {
    let total: u64 = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let one = Arc::new(open(&dir.path().join("one.redb"), 1));
    let kv = Kv::new(one.clone(), Arc::new(NoBlobs));
    let two = open(&dir.path().join("two.redb"), 2);
    println!(
        "| entries | written/s | included/s | verified/s | included:verified | bytes/entry |\n|---|---|---|---|---|---|"
    );
    for start in (0..total).step_by(STEP as usize) {
        let begin = Instant::now();
        let mut staged = 0;
        for n in start..start + STEP {
            staged = kv.submit(vec![put(n)], Origin::Local).unwrap().staged;
        }
        one.wait(staged).unwrap();
        let written = STEP as f64 / begin.elapsed().as_secs_f64();

        let view = one.database().durable().unwrap();
        let entries: Vec<Entry> = one.chain(&view, &one.me(), start, STEP as usize).unwrap();
        drop(view);
        let begin = Instant::now();
        for frame in entries.chunks(FRAME) {
            assert!(verify(frame).iter().all(|valid| *valid));
        }
        let verified = STEP as f64 / begin.elapsed().as_secs_f64();

        let begin = Instant::now();
        for frame in entries.chunks(FRAME) {
            two.include(frame, Origin::Pulled).unwrap();
        }
        two.database().flush().unwrap();
        let included = STEP as f64 / begin.elapsed().as_secs_f64();
        let size = std::fs::metadata(dir.path().join("two.redb")).unwrap().len();
        println!(
            "| {} | {written:.0} | {included:.0} | {verified:.0} | {:.2} | {} |",
            start + STEP,
            included / verified,
            size / (start + STEP)
        );
    }
    let begin = Instant::now();
    drop(two);
    let reopened = open(&dir.path().join("two.redb"), 2);
    println!("closing and opening again at {total} entries: {:.3} s", begin.elapsed().as_secs_f64());
    drop(reopened);
}
