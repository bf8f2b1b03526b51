//! One file under random reads, writes, truncations, mappings, by the exerciser fsx: each read is compared.

use std::process::Command;

use crate::tool;
use crate::world::World;

/// How many operations each test does. `LATTICE_FSX` says otherwise.
const OPERATIONS: &str = "3000";

/// What both ways do, in fsx's words.
const WEIGHTS: &str = "close_open = 1\nread = 10\nwrite = 10\ntruncate = 5\nfsync = 0.2\nfdatasync = 0.2
sendfile = 2\nposix_fadvise = 1\ncopy_file_range = 2\nposix_fallocate = 1\npunch_hole = 1\n";

fn exercise(more: &str) {
    let program = tool::installed("fsx", "0.3.2");
    let world = World::new();
    let settings = world.dir.path().join("fsx.toml");
    std::fs::write(&settings, format!("flen = 700000\n[weights]\n{WEIGHTS}{more}")).unwrap();
    let operations = std::env::var("LATTICE_FSX").unwrap_or_else(|_| OPERATIONS.into());
    let seed = std::env::var("LATTICE_SEED").unwrap_or_else(|_| rand::random::<u32>().to_string());
    println!("LATTICE_SEED={seed} LATTICE_FSX={operations}");
    let output = Command::new(program)
        .args(["-N", &operations, "-S", &seed, "-f"])
        .arg(&settings)
        .arg("-P")
        .arg(world.dir.path())
        .arg(world.key("exercised"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed}: {said}");
    assert!(said.contains("All operations completed"), "{said}");
    let shown = std::fs::read(world.key("exercised")).unwrap();
    world.settled();
    assert!(world.here.get("exercised").unwrap() == shown, "the store has something else");
}

#[test]
fn what_was_written_anywhere_in_a_file_is_what_is_read() {
    exercise("mapread = 0\nmapwrite = 0\n");
}

#[test]
fn what_was_written_through_mappings_and_calls_is_what_either_reads() {
    exercise("mapread = 10\nmapwrite = 10\ninvalidate = 1\n");
}
