//! The protocol under a seeded simulation: real logs and the real kv machine on simulated disks, links and clocks.
//!
//! Each seed is another history: 2 to 8 nodes that write, partitions, lost, doubled and reordered gossip, broken
//! links, crashes and restarts, wrong clocks, members that become known late. Then everything heals, and all nodes
//! must come to the same heads and the same state, byte for byte. On the way, nothing may leave a node that a crash
//! could take back, and no author may ever have signed two entries with one number.
//!
//! `LATTICE_SEED=7 cargo test --test simulation` runs one seed; `LATTICE_SEEDS=1000` as many, from 0 on.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says which seed it was"
)]

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/crowd.rs"]
#[allow(dead_code, reason = "the benchmark needs more of it")]
mod crowd;
#[path = "simulation/links.rs"]
mod links;
#[path = "simulation/node.rs"]
mod node;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/swarm.rs"]
mod swarm;
#[path = "simulation/tally.rs"]
#[allow(dead_code, reason = "the benchmark needs more of it")]
mod tally;
#[path = "simulation/world.rs"]
mod world;

use plan::Plan;
use world::World;

/// What a debug build on one core does in well under a minute.
const SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn random_histories_converge_to_identical_heads_and_state() {
    let seeds = match number("LATTICE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LATTICE_SEEDS").unwrap_or(SEEDS),
    };
    let mut total = (0, 0);
    for seed in seeds {
        let mut world = World::new(seed, Plan::random(seed));
        // Printed before the run, so that a failure shows which seed it was.
        println!("seed {seed}: {}", world.describe());
        world.turmoil();
        let took = world.heal();
        world.check();
        println!("seed {seed}: {} entries, in step {took:?} after healing", world.entries());
        total = (total.0 + 1, total.1 + world.entries());
    }
    println!("{} histories, {} entries", total.0, total.1);
}

#[test]
fn one_seed_gives_one_history() {
    let run = || {
        let mut world = World::new(3, Plan::random(3));
        world.turmoil();
        world.heal();
        world.trace()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_newcomer_gets_everything_within_the_credit_and_a_bystander_forwards_it() {
    let mut world = World::new(11, Plan { nodes: 3, ..Plan::calm() });
    // Node 2 can reach node 1 only.
    world.cut(0, 2);
    world.burst(0, 3_000);
    let took = world.heal_all_but((0, 2));
    world.check();
    assert!(took.as_secs() < 20, "3,000 entries took {took:?} over two links");
}

#[test]
fn a_burst_is_everywhere_within_a_second_of_its_end() {
    let mut world = World::new(12, Plan { nodes: 2, ..Plan::calm() });
    world.settle();
    world.burst(0, 2_000);
    let took = world.heal();
    world.check();
    assert!(took.as_millis() <= 1_000, "it took {took:?}");
}

#[test]
fn a_node_that_comes_back_with_an_older_disk_forks_nothing() {
    for seed in 0..number("LATTICE_SEEDS").unwrap_or(8) {
        println!("seed {seed}");
        let delay = [1, 50, 500][usize::try_from(seed % 3).unwrap()];
        let mut world = World::new(seed, Plan { nodes: 3, delay, gossip_lost: 20, ..Plan::calm() });
        world.settle();
        world.burst(1, 50);
        world.settle();
        world.restore_after(1, 30);
        world.heal();
        world.check();
    }
}

#[test]
fn a_crowd_of_authors_converges_over_partitions_nodes_that_come_and_go_and_wrong_clocks() {
    // Four links a node: what is to be everywhere must be handed on.
    let plan = Plan {
        span: 6_000,
        writes: 15,
        crashes: 8,
        partitions: 2,
        breaks: 10,
        commit: 20,
        skew: 120_000,
        ..Plan::crowd(30, 270, 2)
    };
    let mut world = World::new(21, plan);
    println!("{}", world.describe());
    world.all_write();
    world.turmoil();
    let took = world.heal();
    world.check();
    assert_eq!(world.authors(), 300, "each node and each guest wrote");
    println!("{} entries, in step {took:?} after healing", world.entries());
}
