//! Measures the log as it grows: signing, including and committing entries of a kv store, beside verification alone; then
//! how long a single local write takes until it is durable, while many others are made.
//!
//! With `LATTICE_BENCH_DIR` the two stores are kept in that directory, and grown from what they hold.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads clocks and prints")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that can't go on stops with the reason")]
#![allow(clippy::cast_possible_truncation, reason = "counts far below any limit")]
#![allow(missing_docs, reason = "a program, not a library")]

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
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
use lattice::stores::kv::{Kind, Kv, Machine, Node, Op, Value};

const STEP: u64 = 100_000;
const CACHE: usize = 64 << 20;
const FRAME: usize = 1_024;
/// How often a single write is measured beside a bulk of them.
const PACE: Duration = Duration::from_millis(50);

fn open(path: &Path, n: u8) -> Log {
    let keys = [1, 2].map(|n| SigningKey::from_bytes(&[n; 32]));
    let members = keys.iter().enumerate().map(|(n, key)| {
        let member = Member::new(n.to_string(), Role::Writer);
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

    fn list(&self) -> Result<Vec<Hash>, BlobError> {
        Ok(Vec::new())
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

/// Processor time of this process so far, in seconds.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Memory of this process, in MB: now and at most.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1_024
    };
    (of("VmRSS"), of("VmHWM"))
}

struct Cost {
    rate: f64,
    /// Processor time, in microseconds each.
    each: f64,
}

fn timed(count: u64, work: impl FnOnce()) -> Cost {
    let (begin, used) = (Instant::now(), processor());
    work();
    Cost { rate: count as f64 / begin.elapsed().as_secs_f64(), each: (processor() - used) * 1e6 / count as f64 }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    format!("p50 {:.3} ms, p99 {:.3} ms, worst {:.3} ms", at(0.5), at(0.99), at(1.0))
}

fn each(count: u64, mut work: impl FnMut(u64)) -> String {
    let begin = Instant::now();
    (0..count).for_each(&mut work);
    format!("{:.2} µs", begin.elapsed().as_secs_f64() * 1e6 / count as f64)
}

fn path_of(n: u64) -> Vec<u8> {
    put(n).path().to_vec()
}

/// What reading costs in a store of `total` entries.
fn reading(kv: &Kv, total: u64) {
    let any = |n: u64| n.wrapping_mul(0x2545_f491_4f6c_dd1d) % total;
    println!("view                       {}", each(100_000, |_| drop(kv.log().database().view().unwrap())));
    println!("node, there                {}", each(100_000, |n| assert!(kv.node(&path_of(any(n))).unwrap().is_some())));
    let absent = |n: u64| [&path_of(any(n))[..], b".none"].concat();
    println!("node, not there            {}", each(100_000, |n| assert!(kv.node(&absent(n)).unwrap().is_none())));
    println!("node, a directory          {}", each(100_000, |n| assert!(kv.node(&directory(n)).unwrap().is_some())));
    let mut listed = 0;
    let cost = each(1_000, |n| listed += kv.children(&directory(n), None, 10_000).unwrap().len());
    println!("children, {} names on average {cost}", listed / 1_000);
    println!(
        "children of the root       {}",
        each(20, |_| assert!(!kv.children(b"", None, 10_000).unwrap().is_empty()))
    );
    println!(
        "content of a file          {}",
        each(100_000, |n| {
            let Some(Node::File(head)) = kv.node(&path_of(any(n))).unwrap() else { panic!("no file") };
            kv.read(&head).unwrap();
        })
    );
}

fn directory(n: u64) -> Vec<u8> {
    format!("dir{}", n % 1_000).into_bytes()
}

/// Opens the store in a process of its own.
fn reopen(path: &Path) {
    let begin = Instant::now();
    let log = open(path, 2);
    let took = begin.elapsed();
    println!("opening: {:.3} s, {} MB", took.as_secs_f64(), memory().0);
    let kv = Kv::new(Arc::new(log), Arc::new(NoBlobs));
    let total: u64 = std::env::var("LATTICE_BENCH_TOTAL").unwrap().parse().unwrap();
    reading(&kv, total);
    println!("after reading: {} MB", memory().0);
    let mut waits = Vec::new();
    for n in 0..500 {
        let begin = Instant::now();
        let receipt = kv.submit(vec![put(total + n)], Origin::Local).unwrap();
        kv.wait(receipt.staged).unwrap();
        waits.push(begin.elapsed());
    }
    println!("one write until it is durable: {}", percentiles(waits));
}

/// How long a single local write takes until it is durable, one each 50 ms, while `bulk` goes on.
fn beside(kv: &Kv, first: u64, bulk: impl FnOnce() + Send) -> String {
    let over = AtomicBool::new(false);
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bulk();
            over.store(true, Ordering::Release);
        });
        let mut due = Instant::now();
        while !over.load(Ordering::Acquire) {
            due += PACE;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let begin = Instant::now();
            let receipt = kv.submit(vec![put(first + waits.len() as u64)], Origin::Local).unwrap();
            kv.wait(receipt.staged).unwrap();
            waits.push(begin.elapsed());
        }
    });
    format!("{}, of {}", percentiles(waits.clone()), waits.len())
}

fn write(kv: &Kv, first: u64) {
    for n in first..first + STEP {
        kv.submit(vec![put(n)], Origin::Local).unwrap();
    }
    kv.log().database().flush().unwrap();
}

fn chain(log: &Log, first: u64) -> Vec<Entry> {
    let view = log.database().durable().unwrap();
    log.chain(&view, &log.me(), first, STEP as usize).unwrap()
}

fn main() {
    if let Some(path) = std::env::var_os("LATTICE_BENCH_REOPEN") {
        return reopen(Path::new(&path));
    }
    let total: u64 = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let made = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("LATTICE_BENCH_DIR").map_or_else(|| made.path().to_owned(), std::path::PathBuf::from);
    let kv = Kv::new(Arc::new(open(&dir.join("one.redb"), 1)), Arc::new(NoBlobs));
    let one = Arc::clone(kv.log());
    let path = dir.join("two.redb");
    let two = Kv::new(Arc::new(open(&path, 2)), Arc::new(NoBlobs));
    println!(
        "| entries | written/s | µs each | included/s | µs each | verified/s | included:verified | bytes/entry | include until durable, 1,024 at a time |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let begin = kv.count().unwrap();
    for start in (begin..total).step_by(STEP as usize) {
        let wrote = timed(STEP, || write(&kv, start));
        let entries = chain(&one, start);
        let verified = timed(STEP, || {
            for frame in entries.chunks(FRAME) {
                assert!(verify(frame).iter().all(|valid| *valid));
            }
        });
        let (included, waits) = include(two.log(), &entries);
        let size = std::fs::metadata(&path).unwrap().len();
        println!(
            "| {} | {:.0} | {:.1} | {:.0} | {:.1} | {:.0} | {:.2} | {} | {} |",
            start + STEP,
            wrote.rate,
            wrote.each,
            included.rate,
            included.each,
            verified.rate,
            included.rate / verified.rate,
            size / (start + STEP),
            percentiles(waits)
        );
    }
    println!("memory of two such stores while written: {} MB, {} MB at most", memory().0, memory().1);
    // Of paths that nobody else writes.
    let own = 1 << 40;
    let beside_writes = beside(&kv, own, || write(&kv, total));
    println!("one local write each 50 ms, until durable, while a program writes all it can: {beside_writes}");
    let entries = chain(&one, total);
    let beside_entries = beside(&two, own, || drop(include(two.log(), &entries)));
    println!("the same, while entries of another node come in as fast as they can: {beside_entries}");
    println!("memory then: {} MB, {} MB at most", memory().0, memory().1);
    let begin = Instant::now();
    drop(two);
    println!("closing: {:.3} s", begin.elapsed().as_secs_f64());
    drop(kv);
    drop(one);
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let done = again.env("LATTICE_BENCH_REOPEN", &path).env("LATTICE_BENCH_TOTAL", total.to_string()).status();
    assert!(done.unwrap().success());
}

/// Includes all, a frame at a time; how long each frame took, from before it was given until it was durable.
fn include(log: &Log, entries: &[Entry]) -> (Cost, Vec<Duration>) {
    let waits = Arc::new(Mutex::new((Vec::new(), VecDeque::<(u64, Instant)>::new())));
    let told = Arc::clone(&waits);
    log.outbox(Box::new(move |durable| {
        let mut waits = told.lock().unwrap();
        let mut left = durable.entries.iter().filter(|(_, origin)| *origin == Origin::Pulled).count() as u64;
        while left > 0
            && let Some((count, since)) = waits.1.pop_front()
        {
            left -= count;
            waits.0.push(since.elapsed());
        }
    }));
    let cost = timed(entries.len() as u64, || {
        for frame in entries.chunks(FRAME) {
            waits.lock().unwrap().1.push_back((frame.len() as u64, Instant::now()));
            log.include(frame, Origin::Pulled).unwrap();
        }
        log.database().flush().unwrap();
    });
    let waits = std::mem::take(&mut waits.lock().unwrap().0);
    (cost, waits)
}
