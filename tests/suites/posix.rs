//! What POSIX asks of each call, by the suite pjdfstest.

use std::path::Path;
use std::process::Command;

use lattice::fs::Options;

use crate::tool;
use crate::world::World;

#[test]
fn every_call_does_what_posix_says_but_for_what_is_listed_with_its_reason() {
    let suite = tool::installed("pjdfstest", "0.2.2");
    let mut world = World::new();
    // The suite acts as other users, too.
    world.unmount();
    world.mount_with(Options { everyone: true, ..Options::default() });
    world.sh("chmod 755 $SPARE");
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suites/pjdfstest.toml");
    let output = Command::new(suite)
        .arg("--configuration-file")
        .arg(settings)
        .arg("--path")
        .arg(world.key(""))
        .arg("--secondary-fs")
        .arg(world.dir.path())
        .env("NO_COLOR", "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{}", said.lines().filter(|line| line.starts_with("Summary")).collect::<String>());
    let lines: Vec<_> = said.lines().collect();
    let bad = lines.windows(3).filter(|lines| lines[0].ends_with(" FAILED") || lines[0].ends_with("UNEXPECTEDLY"));
    let bad: Vec<_> = bad.map(|lines| lines.join("\n")).collect();
    assert!(output.status.success(), "{}", bad.join("\n"));
}
