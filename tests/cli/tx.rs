//! Transactions from the command line.

use std::fs;

use super::{NOT_FOUND, REFUSED, json, out, with_mesh};

#[test]
fn a_transaction_is_begun_filled_shown_and_committed_or_dropped() {
    let node = with_mesh();
    node.lattice(&["kv", "put", "old", "x"]);
    assert_eq!(node.lattice(&["tx"]), "");
    let at = node.lattice(&["tx", "begin", "deploy"]);
    let at = std::path::Path::new(at.trim());
    assert_eq!(at, node.mount().join("stores/home/.tx/deploy"));
    fs::create_dir(at.join("d")).unwrap();
    fs::write(at.join("d/f"), "text").unwrap();
    fs::write(at.join("old.delete"), "").unwrap();
    assert_eq!(node.lattice(&["tx", "show", "deploy"]), "put     d (directory)\nput     d/f (4 B)\ndelete  old\n");
    let list = node.lattice(&["tx"]);
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STORE", "BEGUN", "KEYS", "MOVED"]);
    assert_eq!((lines[1][0], lines[1][1], &lines[1][lines[1].len() - 2..]), ("deploy", "home", &["3", "0"][..]));
    let all = json(&node, &["tx", "list", "--store", "home"]);
    assert_eq!((all[0]["name"].as_str(), all[0]["puts"][1]["path"].as_str()), (Some("deploy"), Some("d/f")));
    assert_eq!(node.attempt(&["tx", "begin", "deploy"]).status.code(), Some(REFUSED));
    assert_eq!(node.attempt(&["tx", "begin", "commit"]).status.code(), Some(REFUSED));
    assert_eq!(node.attempt(&["tx", "show", "none"]).status.code(), Some(NOT_FOUND));
    assert_eq!(node.attempt(&["tx", "--store", "none"]).status.code(), Some(NOT_FOUND));

    node.lattice(&["kv", "put", "old", "changed"]);
    let shown = node.attempt(&["tx", "show", "deploy"]);
    assert!(out(&shown).ends_with("moved   old\n"), "{}", out(&shown));
    assert!(String::from_utf8_lossy(&shown.stderr).contains("would not be committed: a key changed"), "{shown:?}");
    let refused = node.attempt(&["tx", "commit", "deploy"]);
    assert_eq!(refused.status.code(), Some(REFUSED));
    assert_eq!(node.lattice(&["kv", "list"]), "old\n");
    let done = json(&node, &["tx", "commit", "deploy", "--force"]);
    assert_eq!((done["written"].as_u64(), done["deleted"].as_u64()), (Some(2), Some(1)));
    assert_eq!(node.lattice(&["kv", "get", "d/f"]), "text");
    assert_eq!(json(&node, &["conflicts"])["path"], "old");
    assert_eq!(node.attempt(&["tx", "commit", "deploy"]).status.code(), Some(NOT_FOUND));

    node.lattice(&["tx", "begin", "other"]);
    fs::write(node.mount().join("stores/home/.tx/other/f"), "x").unwrap();
    node.lattice(&["tx", "drop", "other"]);
    assert_eq!(fs::read_dir(node.mount().join("stores/home/.tx")).unwrap().count(), 0);
    assert_eq!(node.attempt(&["tx", "drop", "other"]).status.code(), Some(NOT_FOUND));
}
