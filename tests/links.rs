//! Links between machines of their own, in network namespaces without a way to anywhere else: killed, stopped, cut off, moved.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use harness::{Net, run};
use lattice::ids::{NodeId, StoreId};
use lattice::net::iroh::{Node, Options};
use lattice::net::link::{Command, Event};
use lattice::replication::membership::{Member, Membership, Role, SharedMembership};

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 7_000;
const STORE: StoreId = StoreId([5; 32]);
const MESH: [u8; 2] = [0, 1];

fn key(host: u8) -> SigningKey {
    SigningKey::from_bytes(&[host + 1; 32])
}

fn id(host: u8) -> NodeId {
    NodeId(key(host).verifying_key().to_bytes())
}

/// A machine: this very program, started again in a host's network, telling on its standard output what its node hears.
struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Machine {
    /// Starts the node of `host`, which knows the other by id, and by these addresses.
    fn start(net: &Net, host: u8, addresses: &str) -> Self {
        let mut child = net
            .on(u32::from(host), std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "a_machine_that_another_test_starts", "--nocapture", "--test-threads=1"])
            .env("MACHINE_HOST", host.to_string())
            .env("MACHINE_ADDRESSES", addresses)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, lines }
    }

    /// Waits for a line that begins with `what`; how long it took, and the line.
    fn says(&self, what: &str) -> (Duration, String) {
        self.says_all([what]).pop().unwrap()
    }

    /// Waits for lines that begin with these words, in any order; how long each took, and the line.
    fn says_all<const N: usize>(&self, what: [&str; N]) -> Vec<(Duration, String)> {
        let start = Instant::now();
        let mut found = what.map(|_| None);
        let mut heard = Vec::new();
        while found.iter().any(Option::is_none) {
            match self.lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(line) => match what.iter().position(|what| line.starts_with(what)) {
                    Some(place) if found[place].is_none() => found[place] = Some((start.elapsed(), line)),
                    _ => heard.push(line),
                },
                Err(error) => panic!("of {what:?} only {found:?} ({error}) within {PATIENCE:?}; else: {heard:#?}"),
            }
        }
        found.into_iter().flatten().collect()
    }

    /// All lines of the next `span`.
    fn hears_for(&self, span: Duration) -> Vec<String> {
        let end = Instant::now() + span;
        let mut heard = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => heard.push(line),
                Err(RecvTimeoutError::Timeout) => return heard,
                Err(RecvTimeoutError::Disconnected) => panic!("the machine died: {heard:#?}"),
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Tells the log's warnings as lines.
struct Warnings;

impl std::io::Write for Warnings {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        println!("warning {}", String::from_utf8_lossy(bytes).trim_end());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
#[ignore = "run by the others, on machines that they make"]
fn a_machine_that_another_test_starts() {
    let Ok(host) = std::env::var("MACHINE_HOST") else { return };
    let host: u8 = host.parse().unwrap();
    let addresses = std::env::var("MACHINE_ADDRESSES").unwrap();
    let addresses: Vec<SocketAddr> = addresses.split_whitespace().map(|one| one.parse().unwrap()).collect();
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(|| Warnings).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options { listen: SocketAddr::from(([0, 0, 0, 0], PORT)), ..Options::default() };
        let node = Node::bind(&key(host), &options, vec![]).await.unwrap();
        let member = |host: &u8| (id(*host), Member::new(host.to_string(), Role::Writer));
        let membership = Membership { members: MESH.iter().map(member).collect::<BTreeMap<_, _>>() };
        node.admit(Some(SharedMembership::new(ArcSwap::from_pointee(membership))));
        let mut network = node.network();
        network.commands.send(Command::Peers(vec![(id(1 - host), addresses)])).await.unwrap();
        // The test runner has begun a line of its own.
        println!("\nup");
        network.commands.send(Command::Subscribe { store: STORE, topic: [6; 32] }).await.unwrap();
        let mut told = 0u32;
        while let Some(event) = network.events.recv().await {
            match event {
                Event::Connected { address, .. } => {
                    println!("connected {address:?} knows {:?}", node.known_addresses())
                }
                Event::Lost { reason, .. } => println!("lost {reason}"),
                Event::Neighbour { .. } => {
                    told += 1;
                    // With its number, since gossip delivers the same bytes only once.
                    let message = format!("{host} for the time {told}").into();
                    network.commands.send(Command::Broadcast { store: STORE, message }).await.unwrap();
                }
                Event::Gossip { message, .. } => println!("gossip {}", String::from_utf8_lossy(&message)),
                other => println!("{other:?}"),
            }
        }
    });
}

/// Two machines, linked; only the second was told where the first is.
fn pair(net: &Net) -> (Machine, Machine) {
    let a = Machine::start(net, 0, "");
    a.says("up");
    let b = Machine::start(net, 1, &format!("{}:{PORT}", net.address(0)));
    let begun = |other: u8| ["connected".to_owned(), format!("gossip {other} for the time 1")];
    a.says_all(begun(1).each_ref().map(String::as_str));
    b.says_all(begun(0).each_ref().map(String::as_str));
    (a, b)
}

fn soon(what: &str, took: Duration, limit: Duration) {
    eprintln!("{what}: {took:?}");
    assert!(took < limit, "{what} took {took:?}");
}

#[test]
fn without_a_route_two_nodes_link_by_address_and_nothing_complains() {
    let net = Net::new(2);
    let (a, b) = pair(&net);
    for heard in [a.hears_for(Duration::from_secs(8)), b.hears_for(Duration::ZERO)] {
        assert!(heard.iter().all(|line| line.starts_with("gossip")), "{heard:#?}");
    }
}

#[test]
fn with_a_route_for_multicast_two_nodes_find_each_other_without_any_address() {
    let net = Net::new(2);
    for host in 0..2 {
        run("ip", &["-n", &net.host(host), "route", "add", "224.0.0.0/4", "dev", "eth0"]);
    }
    let (a, b) = (Machine::start(&net, 0, ""), Machine::start(&net, 1, ""));
    a.says("connected");
    b.says("connected");
}

#[test]
fn a_killed_peer_is_missed_and_its_restart_is_linked_at_once() {
    let net = Net::new(2);
    let (a, b) = pair(&net);
    b.signal(nix::sys::signal::Signal::SIGKILL);
    soon("missing a killed peer", a.says("lost").0, Duration::from_secs(4));
    let b = Machine::start(&net, 1, &format!("{}:{PORT}", net.address(0)));
    b.says("up");
    soon("linking a restarted peer", a.says("connected").0, Duration::from_secs(2));
}

#[test]
fn a_peer_that_restarts_and_knows_no_address_is_dialled_where_it_was() {
    let net = Net::new(2);
    let (a, b) = pair(&net);
    b.signal(nix::sys::signal::Signal::SIGKILL);
    a.says("lost");
    let b = Machine::start(&net, 1, "");
    b.says("up");
    soon("dialling a restarted peer", b.says("connected").0, Duration::from_secs(6));
}

#[test]
fn a_stopped_peer_is_missed_and_linked_again_when_it_goes_on() {
    let net = Net::new(2);
    let (a, b) = pair(&net);
    b.signal(nix::sys::signal::Signal::SIGSTOP);
    soon("missing a stopped peer", a.says("lost").0, Duration::from_secs(4));
    b.signal(nix::sys::signal::Signal::SIGCONT);
    soon("linking it again", a.says("connected").0, Duration::from_secs(5));
}

#[test]
fn after_a_cut_the_link_and_gossip_are_made_again_within_seconds_of_the_healing() {
    let net = Net::new(2);
    let (a, b) = pair(&net);
    net.cut(1);
    soon("missing a peer that is cut off", a.says("lost").0, Duration::from_secs(4));
    b.says("lost");
    b.hears_for(Duration::from_secs(10));
    net.heal(1);
    let again = a.says_all(["connected", "gossip 1 for the time 2"]);
    soon("linking it after the healing", again[0].0, Duration::from_secs(4));
    soon("hearing its gossip after the healing", again[1].0, Duration::from_secs(5));
    b.says_all(["connected", "gossip 0 for the time 2"]);
}

#[test]
fn a_peer_whose_address_changes_is_linked_at_its_new_one() {
    let net = Net::new(2);
    let (a, b) = pair(&net);
    // The one that was dialled moves: no packet of the other reaches it any more.
    let host = net.host(0);
    run("ip", &["-n", &host, "addr", "add", "10.77.0.200/24", "dev", "eth0"]);
    run("ip", &["-n", &host, "addr", "del", &format!("{}/24", net.address(0)), "dev", "eth0"]);
    // Deleting the first address may take the other with it.
    drop(std::process::Command::new("ip").args(["-n", &host, "addr", "add", "10.77.0.200/24", "dev", "eth0"]).output());
    let again = b.says_all(["connected", "gossip 0 for the time 2"]);
    soon("linking at the new address", again[0].0, Duration::from_secs(4));
    soon("hearing its gossip from there", again[1].0, Duration::from_secs(5));
    assert!(again[0].1.contains("10.77.0.200"), "{again:?}");
    drop(a);
}
