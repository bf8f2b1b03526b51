//! `--json`: each command's answer is one document, or a document a line where it goes on; the names in it stay.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Node, eventually};
use crate::{NOT_FOUND, REFUSED, USAGE, failure, founder, joined, json, refused};

fn names(value: &Value) -> String {
    let object = value.as_object().unwrap_or_else(|| panic!("not an object: {value}"));
    object.keys().cloned().collect::<Vec<_>>().join(" ")
}

const MESH: &str = "ended id members name online role";
const STORE: &str = "bytes conflicts damaged entries id keys kind missing_blobs missing_entries name settled";
const PEER: &str = "address forked id lag last_seen left me name online removed role rtt_us version";
const HEAD: &str = "author author_name content hash hlc kind mode mtime_ns op seq size time";
const ENTRY: &str = "author author_name does hash hlc noop parents seq size time";
const MESSAGE: &str = "author author_name edited hlc id reactions redacted reply_to room text time what";
const CHANGE: &str = "author author_name hash hlc path time what";
const PROVEN: &str = "author author_name content_compared does hash hlc left mesh mesh_compared mesh_name not_proven removed role root_entries root_until seq store store_deleted store_id store_kind time writes";
const STATUS: &str = "data forkers forks listening mesh mounts name node pid started stores version warnings";

#[test]
fn each_answer_is_one_document_with_the_names_that_scripts_know() {
    let node = Node::here();
    let mount = node.mount();
    let up = ["up", mount.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    assert_eq!(names(&json(&node, &up)), "data listening mesh mount pid started");
    assert_eq!(names(&json(&node, &["status"])), STATUS);
    assert_eq!(names(&json(&node, &["mesh", "init", "ours"])), MESH);
    assert_eq!(names(&json(&node, &["mesh", "status"])), MESH);
    assert_eq!(names(&json(&node, &["mesh", "invite"])), "expires_s role token uses");
    assert_eq!(names(&json(&node, &["status"])["mesh"]), MESH);
    assert_eq!(names(&json(&node, &["status"])["stores"][0]), STORE);
    assert_eq!(names(&json(&node, &["peers"])[0]), PEER);
    assert_eq!(names(&json(&node, &["store", "create", "more"])), STORE);
    assert_eq!(names(&json(&node, &["store", "list"])[0]), STORE);
    assert_eq!(names(&json(&node, &["store", "status"])[0]), STORE);
    assert_eq!(names(&json(&node, &["store", "status", "home"])), STORE);
    assert_eq!(names(&json(&node, &["store", "repair", "more"])), "aside kept sound store");
    assert_eq!(names(&json(&node, &["store", "repair", "more", "--force"])), "aside kept sound store");
    assert_eq!(names(&json(&node, &["store", "delete", "more", "--yes"])), "deleted");
    assert_eq!(names(&json(&node, &["kv", "put", "key", "value"])), "hash path size superseded");
    let got = json(&node, &["kv", "get", "key"]);
    assert_eq!(names(&got), "heads path shadowed value");
    assert_eq!(names(&got["heads"][0]), HEAD);
    assert_eq!(names(&json(&node, &["kv", "list"])), "heads path shadowed");
    assert_eq!(names(&json(&node, &["log"])), ENTRY);
    assert_eq!(names(&json(&node, &["prove", "key"])), "proof_base64 size");
    let proof = node.mount().with_file_name("proof");
    std::fs::write(&proof, node.attempt(&["prove", "key"]).stdout).unwrap();
    let shown = json(&node, &["verify", proof.to_str().unwrap()]);
    assert_eq!(names(&shown), PROVEN);
    assert_eq!(names(&shown["writes"][0]), "content inside kind mode mtime_ns path size");
    assert_eq!(names(&json(&node, &["kv", "delete", "key"])), "hash path superseded");
    assert_eq!(names(&json(&node, &["restore", "", "--at", "now"])), "deleted hashes restored");
    assert_eq!(names(&json(&node, &["chat", "post", "lobby", "hello"])), "hash");
    assert_eq!(json(&node, &["chat", "ls"]), serde_json::json!(["lobby"]));
    assert_eq!(names(&json(&node, &["chat", "ls", "lobby"])), MESSAGE);
    for setting in json(&node, &["config"]).as_array().unwrap() {
        assert_eq!(names(setting), "about name source value variable");
    }
    let elsewhere = node.mount().with_file_name("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    node.lattice(&["up", elsewhere.to_str().unwrap()]);
    assert_eq!(names(&json(&node, &["down", elsewhere.to_str().unwrap()])), "unmounted");
    assert_eq!(names(&json(&node, &["mesh", "leave", "--yes"])), "kept left");
    assert_eq!(names(&json(&node, &["down"])), "pid stopped");
    assert_eq!(names(&json(&node, &["down"])), "stopped");
}

#[test]
fn what_is_no_text_is_given_in_another_form_under_another_name() {
    let node = founder();
    let file = node.mount().with_file_name("bytes");
    std::fs::write(&file, [0xff, 0x00]).unwrap();
    node.lattice(&["kv", "put", "bytes", "--file", file.to_str().unwrap()]);
    let got = json(&node, &["kv", "get", "bytes"]);
    assert_eq!(names(&got), "heads path shadowed value_base64");
    assert_eq!(got["value_base64"], "/wA=");
}

#[test]
fn a_join_and_a_conflict_are_documents_too() {
    let first = founder();
    let second = Node::here();
    second.up();
    let token = first.lattice(&["mesh", "invite"]);
    assert_eq!(names(&json(&second, &["mesh", "join", token.trim()])), MESH);
    second.lattice(&["down"]);
    first.lattice(&["kv", "put", "key", "left"]);
    first.lattice(&["down"]);
    second.up();
    second.lattice(&["kv", "put", "key", "right"]);
    first.up();
    eventually("the conflict is seen", || !first.lattice(&["conflicts"]).is_empty());
    let conflict = json(&first, &["conflicts"]);
    assert_eq!(names(&conflict), "heads path shadowed store");
    assert_eq!(conflict["heads"].as_array().unwrap().len(), 2);
}

/// A command that goes on, and the first line that it prints after `until` holds.
fn first_line(node: &Node<'_>, args: &[&str], mut cause: impl FnMut()) -> (Child, Value) {
    let mut child =
        node.command(&[args, &["--json"]].concat()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (lines, printed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut line = String::new();
    eventually("it prints a line", || {
        cause();
        match printed.recv_timeout(std::time::Duration::from_millis(200)) {
            Ok(found) => {
                line = found;
                true
            }
            Err(_) => false,
        }
    });
    (child, serde_json::from_str(&line).unwrap())
}

#[test]
fn what_goes_on_prints_a_document_a_line_and_ends_with_the_node() {
    let node = founder();
    let put = || drop(node.lattice(&["kv", "put", "key", "value"]));
    let post = || drop(node.lattice(&["chat", "post", "lobby", "hello"]));
    let (mut watch, change) = first_line(&node, &["kv", "watch"], put);
    assert_eq!(names(&change), CHANGE);
    let (mut log, entry) = first_line(&node, &["log", "--follow"], put);
    assert_eq!(names(&entry), ENTRY);
    post();
    let (mut room, message) = first_line(&node, &["chat", "watch", "lobby"], post);
    assert_eq!(names(&message), MESSAGE);
    node.lattice(&["down"]);
    for child in [&mut watch, &mut log, &mut room] {
        assert!(!child.wait().unwrap().success(), "a stream that broke off is called whole");
    }
}

#[test]
fn what_is_not_understood_is_told_as_a_document_with_a_hint_and_exits_with_2() {
    let node = founder();
    let wrong: [&[&str]; 10] = [
        &["frobnicate"],
        &["stat"],
        &[],
        &["mesh"],
        &["mesh", "jion", "token"],
        &["mesh", "join"],
        &["kv", "put"],
        &["kv", "get", "key", "--nonsense"],
        &["up", "--no-mount", "somewhere"],
        &["log", "-n", "many"],
    ];
    for args in wrong {
        let said = refused(&node, args, USAGE);
        assert!(!said.error.is_empty() && !said.hint.is_empty(), "{args:?}: {}", said.all());
        assert!(!said.error.starts_with("error"), "{args:?}: {}", said.error);
        let output = node.attempt(args);
        assert_eq!(output.status.code(), Some(USAGE), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--help"), "{args:?}");
    }
    let said = refused(&node, &["up", "--no-mount", "--listen", "nowhere"], USAGE);
    assert!(said.hint.contains("--listen"), "{}", said.all());
    let output = node.command(&["status", "--json"]).env("LATTICE_MDNS", "perhaps").output().unwrap();
    assert!(output.status.success(), "a running node has its settings already");
    let output = node.command(&["config", "--json"]).env("LATTICE_MDNS", "perhaps").output().unwrap();
    assert!(failure(&output, USAGE, "config").hint.contains("LATTICE_MDNS"));
}

#[test]
fn what_is_not_there_and_what_does_not_fit_are_told_apart() {
    let node = founder();
    let member = joined(&node);
    node.lattice(&["kv", "put", "directory/key", "value"]);
    let absent: [&[&str]; 6] = [
        &["kv", "get", "absent"],
        &["kv", "delete", "absent"],
        &["kv", "list", "--store", "absent"],
        &["store", "status", "absent"],
        &["log", "absent"],
        &["chat", "ls", "absent"],
    ];
    for args in absent {
        let said = refused(&node, args, NOT_FOUND);
        assert!(said.error.contains("absent") && !said.hint.is_empty(), "{args:?}: {}", said.all());
    }
    let unfit: [&[&str]; 7] = [
        &["kv", "get", "directory"],
        &["kv", "put", "a//b", "value"],
        &["kv", "put", "../up", "value"],
        &["store", "create", "home"],
        &["store", "create", "a/b"],
        &["store", "delete", "home"],
        &["mesh", "init"],
    ];
    for args in unfit {
        let said = refused(&node, args, REFUSED);
        assert!(!said.error.is_empty(), "{args:?}");
    }
    let said = refused(&member, &["store", "create", "photos"], REFUSED);
    assert!(said.error.contains("only an admin"), "{}", said.error);
}
