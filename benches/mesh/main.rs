//! Measures what a user feels, each figure beside its reference in the same run, as a table with ratios.
//!
//! `scripts/bench [SECTION…]` runs it; [`SECTIONS`] are the sections.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads clocks and prints")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that can't go on stops with the reason")]
#![allow(clippy::cast_possible_truncation, reason = "counts far below any limit")]
#![allow(missing_docs, reason = "a program, not a library")]

#[path = "../../tests/harness/mod.rs"]
mod harness;
mod memory_tree;
mod trees;

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Net, Node, eventually, mesh, within};

const FILES: u32 = 10_000;
const KEYS: u32 = 100_000;
const WRITES: u32 = 500;
const LONG: Duration = Duration::from_secs(300);

/// Names of sections, and what measures them.
const SECTIONS: [(&str, fn()); 9] = [
    ("mount", trees::small_files),
    ("list", trees::listing),
    ("tools", trees::tools),
    ("large", trees::large_files),
    ("curve", trees::curve),
    ("latency", latency),
    ("burst", burst),
    ("sync", sync),
    ("start", start),
];

fn row(what: &str, ours: f64, unit: &str, reference: &str, theirs: f64) {
    println!("| {what} | {ours:.1} {unit} | {reference} {theirs:.1} {unit} | {:.2} |", ours / theirs);
}

fn rate(count: u32, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

fn create(dir: &Path, count: u32) {
    for n in 0..count {
        let mut file = fs::File::create(dir.join(format!("f{n:06}"))).unwrap();
        file.write_all(&[b'x'; 64]).unwrap();
    }
}

/// The time of one datagram there and back between two hosts, in milliseconds.
fn round_trips(net: &Net) -> Vec<f64> {
    let enter = |host: u32| {
        let namespace = fs::File::open(format!("/var/run/netns/{}", net.host(host))).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    };
    std::thread::scope(|scope| {
        let (ready, started) = std::sync::mpsc::channel();
        scope.spawn(move || {
            enter(1);
            let socket = UdpSocket::bind("0.0.0.0:9").unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 64];
            loop {
                let (size, from) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(&buffer[..size], from).unwrap();
                if size == 1 {
                    return;
                }
            }
        });
        started.recv().unwrap();
        let client = scope.spawn(move || {
            enter(0);
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((net.address(1), 9)).unwrap();
            let mut buffer = [0; 64];
            let mut times = Vec::new();
            for _ in 0..WRITES {
                let start = Instant::now();
                socket.send(&buffer).unwrap();
                socket.recv(&mut buffer).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            socket.send(&[0]).unwrap();
            times
        });
        client.join().unwrap()
    })
}

/// From close on one machine to visible on the other.
fn latency() {
    let net = Net::new(2);
    let nodes = mesh(&net, 2);
    let mut times = Vec::new();
    for n in 0..WRITES {
        let name = format!("w{n:06}");
        let there = nodes[1].key(&name);
        let mut file = fs::File::create(nodes[0].key(&name)).unwrap();
        file.write_all(&[b'x'; 64]).unwrap();
        let start = Instant::now();
        drop(file);
        while !there.exists() {
            assert!(start.elapsed() < LONG, "the write did not arrive");
            std::thread::yield_now();
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
        // Writes come apart from each other, as a person's do.
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let mut bare = round_trips(&net);
    times.sort_by(f64::total_cmp);
    bare.sort_by(f64::total_cmp);
    row("close on A to visible on B, p50", percentile(&times, 0.5), "ms", "bare round trip", percentile(&bare, 0.5));
    row("close on A to visible on B, p99", percentile(&times, 0.99), "ms", "bare round trip", percentile(&bare, 0.99));
}

/// Many small files at once: on the other machine, against on this one.
fn burst() {
    let net = Net::new(2);
    let nodes = mesh(&net, 2);
    let source = tempfile::tempdir().unwrap();
    create(source.path(), FILES);
    let start = Instant::now();
    harness::run("cp", &["-r", source.path().to_str().unwrap(), nodes[0].key("burst").to_str().unwrap()]);
    let here = start.elapsed().as_secs_f64();
    let last = |n: u32| nodes[1].key(&format!("burst/f{n:06}"));
    within(LONG, "all files are on B", || (0..FILES).rev().step_by(997).all(|n| last(n).exists()));
    within(LONG, "all files are listed on B", || {
        fs::read_dir(nodes[1].key("burst")).is_ok_and(|files| files.count() == FILES as usize)
    });
    let there = start.elapsed().as_secs_f64();
    row("10,000 small files copied in on A, all on B", there, "s", "on A alone", here);
}

fn keys(node: &Node<'_>) -> u64 {
    let stores: serde_json::Value = serde_json::from_str(&node.lattice(&["store", "list", "--json"])).unwrap();
    let stores = stores.as_array().unwrap();
    let home = stores.iter().find(|store| store["name"] == "home");
    home.and_then(|home| home["keys"].as_u64()).unwrap_or(0)
}

fn fill(node: &Node<'_>, count: u32) {
    for part in 0..count / FILES {
        let dir = node.key(&format!("part{part}"));
        fs::create_dir(&dir).unwrap();
        create(&dir, FILES);
    }
    eventually("all keys are counted", || keys(node) >= u64::from(count));
}

fn verification() -> f64 {
    use lattice::clock::Hlc;
    use lattice::ids::{Hash, NodeId, StoreId};
    use lattice::replication::entry::{Entry, Header};
    let key = ed25519_dalek::SigningKey::from_bytes(&[5; 32]);
    let header = |n| Header {
        store: StoreId([1; 32]),
        author: NodeId([0; 32]),
        seq: 0,
        prev: None,
        deps: vec![],
        hlc: Hlc(n),
        payload_len: 0,
        payload_hash: Hash([0; 32]),
    };
    let entries: Vec<_> = (0..FILES).map(|n| Entry::sign(&key, header(n.into()), &[b'x'; 100]).unwrap()).collect();
    rate(FILES, || {
        for frame in entries.chunks(1_024) {
            assert!(lattice::replication::verify::verify(frame).iter().all(|valid| *valid));
        }
    })
}

/// A new node's first sync of a large store.
fn sync() {
    let net = Net::new(2);
    let nodes = [Node::on(&net, 0), Node::on(&net, 1)];
    for node in &nodes {
        node.up();
    }
    nodes[0].lattice(&["mesh", "init"]);
    fill(&nodes[0], KEYS);
    let token = nodes[0].lattice(&["mesh", "invite"]);
    let start = Instant::now();
    nodes[1].lattice(&["mesh", "join", token.trim()]);
    let joined = start.elapsed();
    within(LONG, "all keys are on the new node", || keys(&nodes[1]) >= u64::from(KEYS));
    let took = start.elapsed().as_secs_f64();
    println!("| joining, until the stores are listed | {:.2} s | | |", joined.as_secs_f64());
    let verified = verification();
    row("first sync of 100,000 entries", f64::from(KEYS) / took / 1e3, "k/s", "batch verification", verified / 1e3);
}

fn resident(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Starting with a large store.
fn start() {
    let node = Node::here();
    node.up();
    node.lattice(&["mesh", "init"]);
    let empty = resident(node.pid());
    fill(&node, KEYS);
    node.lattice(&["down"]);
    let begin = Instant::now();
    node.up();
    let took = begin.elapsed().as_secs_f64();
    row("memory after the start with 100,000 keys", resident(node.pid()), "MB", "a new mesh", empty);
    println!("| start with 100,000 keys | {took:.2} s | aim < 1 s | |");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [flag, dir] = args.as_slice()
        && flag == "--memory-tree"
    {
        return memory_tree::serve(Path::new(dir)).unwrap();
    }
    println!("| what | lattice | reference | ratio |\n|---|---|---|---|");
    for (name, section) in SECTIONS {
        if args.is_empty() || args.iter().any(|arg| arg == name) {
            section();
        }
    }
}
