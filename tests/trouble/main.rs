//! Trouble: what is wrong with a machine, its disk, its user's words or its neighbours is told in a clear sentence that
//! says what to do, with the right exit code, and loses nothing.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod disk;
mod drafts;
mod files;
mod json;
mod mounting;
mod tokens;
mod tx;
mod user;

use std::path::{Path, PathBuf};
use std::process::Output;

use harness::Node;
use serde_json::Value;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_RUNNING: i32 = 3;
const NOT_FOUND: i32 = 4;
const REFUSED: i32 = 5;
const UNAVAILABLE: i32 = 6;

/// What a command that failed said, and what it says to do: nothing if the sentence says that itself.
struct Said {
    error: String,
    hint: String,
}

impl Said {
    /// Both, for what may be in either.
    fn all(&self) -> String {
        format!("{}; {}", self.error, self.hint)
    }
}

fn failure(output: &Output, code: i32, what: &str) -> Said {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what}: {printed}{said}");
    assert!(printed.is_empty(), "{what} failed and printed a result: {printed}");
    let last = said.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{what}: {error}: {said}"));
    let kinds = ["failed", "usage", "not-running", "not-found", "refused", "unavailable"];
    let at = usize::try_from(code).unwrap() - 1;
    assert_eq!(value["kind"], kinds[at], "{what}: {said}");
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Said { error: text("error"), hint: text("hint") }
}

/// Runs a command that must fail with this exit code, and gives what it said.
fn refused(node: &Node<'_>, args: &[&str], code: i32) -> Said {
    let args = [args, &["--json"]].concat();
    failure(&node.attempt(&args), code, &format!("lattice {args:?}"))
}

/// Runs `lattice up` on the node's mount point, which must fail with this exit code.
fn no_start(node: &Node<'_>, code: i32) -> Said {
    let mount = node.mount();
    refused(node, &["up", mount.to_str().unwrap(), "--listen", "127.0.0.1:0"], code)
}

fn json(node: &Node<'_>, args: &[&str]) -> Value {
    let text = node.lattice(&[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("lattice {args:?} --json: {error}: {text}"))
}

fn warnings(node: &Node<'_>) -> Vec<String> {
    let status = json(node, &["status"]);
    status["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap().to_owned()).collect()
}

/// A running node that has founded a mesh.
fn founder() -> Node<'static> {
    let node = Node::here();
    node.up();
    node.lattice(&["mesh", "init", "ours"]);
    node
}

/// A running node that has joined `inviter`'s mesh.
fn joined(inviter: &Node<'_>) -> Node<'static> {
    let node = Node::here();
    node.up();
    let token = inviter.lattice(&["mesh", "invite"]);
    node.lattice(&["mesh", "join", token.trim()]);
    node
}

/// The file of a store of a running node; `root` is the mesh's own.
fn store_file(node: &Node<'_>, name: &str) -> PathBuf {
    let mesh = json(node, &["mesh", "status"])["id"].as_str().unwrap().to_owned();
    let id = if name == "root" {
        mesh.clone()
    } else {
        json(node, &["store", "status", name])["id"].as_str().unwrap().to_owned()
    };
    node.data().join("meshes").join(mesh).join("stores").join(format!("{id}.redb"))
}

/// Whether something is mounted exactly there.
fn is_mounted(at: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == at.to_str())
}
