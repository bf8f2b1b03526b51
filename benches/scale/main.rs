//! Measures how what is sent grows with the mesh: the simulation of `tests/simulation.rs`, with many nodes.
//!
//! Time is simulated, so the figures are the same on every machine; 1,000 nodes take the better part of an hour of a core. Bytes are those of
//! messages with their length, without what QUIC, UDP and IP put around them. The arguments are sizes, `rings` for the same with
//! few links a node, and `crowd`.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that can't go on stops with the reason")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(dead_code, reason = "the simulation has more than is measured here")]
#![allow(missing_docs, reason = "a program, not a library")]

#[path = "../../tests/simulation/checks.rs"]
mod checks;
#[path = "../../tests/simulation/crowd.rs"]
mod crowd;
#[path = "../../tests/simulation/links.rs"]
mod links;
#[path = "../../tests/simulation/node.rs"]
mod node;
#[path = "../../tests/simulation/plan.rs"]
mod plan;
#[path = "../../tests/simulation/swarm.rs"]
mod swarm;
#[path = "../../tests/simulation/tally.rs"]
mod tally;
#[path = "../../tests/simulation/world.rs"]
mod world;

use std::time::Duration;

use lattice::clock::monotonic;

use plan::Plan;
use tally::Tally;
use world::World;

const SIZES: [usize; 5] = [10, 30, 100, 300, 1_000];
/// With `rings`, each node is linked with the one before and the one behind it on so many rings.
const RINGS: u16 = 8;

/// From when on a size is measured with fewer writes: each costs every node some.
const LARGE: usize = 300;

fn thousands(bytes: f64) -> String {
    match bytes {
        bytes if bytes < 10_000.0 => format!("{bytes:.0} B"),
        bytes if bytes < 10_000_000.0 => format!("{:.0} kB", bytes / 1e3),
        bytes => format!("{:.1} MB", bytes / 1e6),
    }
}

fn kinds(what: &str, tally: &Tally, per: f64) {
    let counts: Vec<_> = tally
        .kinds
        .iter()
        .filter(|(_, count)| count.messages > 0)
        .map(|(kind, count)| {
            let (messages, bytes) = (count.messages as f64 / per, thousands(count.bytes as f64 / per));
            format!("{kind:?} {messages:.1} ({bytes})")
        })
        .collect();
    println!("- {what}: {}", counts.join(", "));
}

/// How long each took, the median and the longest.
fn times(world: &mut World) -> String {
    let mut times = std::mem::take(&mut world.arrived);
    times.sort_unstable();
    let missing = world.journeys.len();
    world.journeys.clear();
    let (Some(longest), middle) = (times.last(), times.len() / 2) else { return "none arrived".to_owned() };
    let missing = if missing > 0 { format!(", {missing} not everywhere") } else { String::new() };
    format!("{} / {longest} ms{missing}", times[middle])
}

struct Row {
    nodes: usize,
    links: f64,
    start: f64,
    rest: (f64, f64),
    small: Write,
    large: Write,
    heal: (Duration, f64, f64),
}

struct Write {
    messages: f64,
    bytes: f64,
    most: f64,
    times: String,
}

/// What so many writes sent, without what would have been sent in that time anyway.
fn writes(world: &mut World, count: u64, size: u64, rest: &Tally, rest_seconds: f64, what: &str) -> Write {
    let (before, since) = (world.tally.clone(), world.now);
    world.arrived.clear();
    world.write_each(count, 2_000, size);
    world.go_on(20_000);
    let spent = world.tally.since(&before);
    let seconds = world.now.since(since).as_secs_f64();
    let idle = rest.total();
    let share = seconds / rest_seconds;
    let total = spent.total();
    kinds(&format!("{what}, a write and node, with rest"), &spent, (count * world.nodes.len() as u64) as f64);
    Write {
        messages: (total.messages as f64 - idle.messages as f64 * share).max(0.0) / count as f64,
        bytes: (total.bytes as f64 - idle.bytes as f64 * share).max(0.0) / count as f64,
        most: (spent.most() as f64 - rest.most() as f64 * share).max(0.0) / count as f64,
        times: times(world),
    }
}

fn measure(nodes: usize, rings: u64) -> Row {
    let began = monotonic();
    println!(
        "\n{nodes} nodes, {}:",
        if rings == 0 { "each linked with each".to_owned() } else { format!("{rings} rings") }
    );
    let mut world = World::new(1, Plan::crowd(nodes, 0, rings));
    world.go_on(30_000);
    let start = world.tally.clone();
    kinds("the first 30 s, a node", &start, nodes as f64);
    let rest_seconds = 60.0;
    world.go_on(60_000);
    let rest = world.tally.since(&start);
    kinds("at rest, a node and second", &rest, nodes as f64 * rest_seconds);
    let count = if nodes >= LARGE { 5 } else { 20 };
    let small = writes(&mut world, count, 100, &rest, rest_seconds, "small writes");
    let large = writes(&mut world, count.min(5), 6_000, &rest, rest_seconds, "writes of 6,000 bytes");
    let links: usize = world.nodes.iter().map(|node| node.up.as_ref().unwrap().sessions.len()).sum();
    world.halve();
    world.go_on(20_000);
    world.write_each(2 * count, 1_000, 100);
    world.go_on(10_000);
    let before = world.tally.clone();
    let took = world.heal();
    world.go_on(10_000);
    let healing = world.tally.since(&before);
    kinds("healing, a node", &healing, nodes as f64);
    println!("- measured in {:.0} s", monotonic().duration_since(began).as_secs_f64());
    let (start, rest, healing) = (start.total(), rest.total(), healing.total());
    let (all, seconds) = (nodes as f64, nodes as f64 * rest_seconds);
    Row {
        nodes,
        links: links as f64 / all,
        start: start.bytes as f64 / all,
        rest: (rest.messages as f64 / seconds, rest.bytes as f64 / seconds),
        small,
        large,
        heal: (took, healing.messages as f64 / all, healing.bytes as f64 / all),
    }
}

fn table(title: &str, rows: &[Row]) {
    println!("\n{title}\n");
    println!(
        "| nodes | links a node | start, a node | at rest, a node and second | small write | a node | the writer's most | time | 6,000-byte write | a node | time | healing | a node |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let nodes = row.nodes as f64;
        println!(
            "| {} | {:.0} | {} | {:.1}, {} | {:.0}, {} | {} | {} | {} | {:.0}, {} | {} | {} | {:.1} s | {:.0}, {} |",
            row.nodes,
            row.links,
            thousands(row.start),
            row.rest.0,
            thousands(row.rest.1),
            row.small.messages,
            thousands(row.small.bytes),
            thousands(row.small.bytes / nodes),
            thousands(row.small.most),
            row.small.times,
            row.large.messages,
            thousands(row.large.bytes),
            thousands(row.large.bytes / nodes),
            row.large.times,
            row.heal.0.as_secs_f64(),
            row.heal.1,
            thousands(row.heal.2),
        );
    }
}

/// 100 nodes, 1,000 authors, and all that goes wrong.
fn crowd(rings: u64) {
    let began = monotonic();
    let plan = Plan {
        span: 120_000,
        writes: 300,
        crashes: 50,
        partitions: 3,
        breaks: 50,
        skew: 120_000,
        ..Plan::crowd(100, 900, rings)
    };
    let mut world = World::new(1, plan);
    world.all_write();
    world.turmoil();
    let turmoil = world.tally.clone();
    let took = world.heal();
    world.check();
    let healing = world.tally.since(&turmoil);
    println!("\n100 nodes, {} authors wrote, {}:", world.authors(), world.describe());
    kinds("turmoil, a node and second", &turmoil, 100.0 * 120.0);
    kinds("healing, a node", &healing, 100.0);
    let entries = world.entries() as f64;
    println!("- {entries} entries; an entry and node: {}", thousands(turmoil.total().bytes as f64 / entries / 100.0));
    println!("- write to everywhere: {}", times(&mut world));
    println!("- in step {took:?} after all was well, the same state byte for byte");
    println!("- measured in {:.0} s", monotonic().duration_since(began).as_secs_f64());
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let has = |word: &str| words.iter().any(|it| it == word);
    let named: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let all = words.is_empty();
    let sizes = if all || (named.is_empty() && has("rings")) { SIZES.to_vec() } else { named };
    if !sizes.is_empty() && !has("rings") {
        let rows: Vec<_> = sizes.iter().map(|nodes| measure(*nodes, 0)).collect();
        table("Each linked with each", &rows);
    }
    if all || has("rings") {
        let rows: Vec<_> = sizes
            .iter()
            .filter(|nodes| **nodes > 2 * usize::from(RINGS))
            .map(|nodes| measure(*nodes, u64::from(RINGS)))
            .collect();
        table(&format!("{RINGS} rings"), &rows);
    }
    if all || has("crowd") {
        crowd(if has("rings") { u64::from(RINGS) } else { 0 });
    }
}
