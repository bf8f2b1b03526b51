//! Conflicts: comparing heads, picking one, merging.

use serde_json::Value;

use super::harness::Node;
use super::{NOT_FOUND, REFUSED, eventually, json, lines, out, refused, with_mesh};

const BASE: &str = "one\ntwo\nthree\nfour\n";

/// Two members who both know `before` and then each write apart; an empty value deletes. Both run, and know of `conflicts`.
fn apart(
    before: &[(&str, &str)],
    theirs: &[(&str, &str)],
    ours: &[(&str, &str)],
    conflicts: u64,
) -> [Node<'static>; 2] {
    let write = |node: &Node<'_>, values: &[(&str, &str)]| {
        for (key, value) in values {
            let args: &[&str] = if value.is_empty() { &["kv", "delete", key] } else { &["kv", "put", key, value] };
            node.lattice(args);
        }
    };
    let nodes = [with_mesh(), Node::here()];
    nodes[1].up();
    write(&nodes[0], before);
    let token = nodes[0].lattice(&["mesh", "invite"]);
    nodes[1].lattice(&["mesh", "join", token.trim(), "--wait"]);
    nodes[0].lattice(&["down"]);
    write(&nodes[1], theirs);
    nodes[1].lattice(&["down"]);
    nodes[0].up();
    write(&nodes[0], ours);
    nodes[1].up();
    eventually("both know of both", || {
        nodes.iter().all(|node| json(node, &["store", "status", "home"])["conflicts"] == conflicts)
    });
    nodes
}

fn value(node: &Node<'_>, key: &str) -> String {
    out(&node.attempt(&["kv", "get", key]))
}

fn conflicts(node: &Node<'_>) -> Vec<String> {
    let listed = lines(&node.lattice(&["conflicts", "list", "--json"]));
    listed.iter().map(|key| key["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn keys_are_settled_by_whose_head_it_is_many_at_once_in_one_entry_on_every_machine() {
    let both: &[(&str, &str)] = &[("a", "theirs"), ("d/b", "theirs"), ("d/c", "theirs"), ("e", "theirs")];
    let ours: Vec<_> = both.iter().map(|(key, _)| (*key, "ours")).collect();
    let [node, other] = apart(&[("e", "base")], both, &ours, 4);
    let entries = || json(&node, &["store", "status", "home"])["entries"].as_u64().unwrap();
    let before = entries();
    let picked = json(&node, &["conflicts", "pick", "theirs", "d"]);
    assert_eq!(picked["settled"], serde_json::json!(["d/b", "d/c"]));
    assert_eq!(entries(), before + 1);
    assert_eq!(conflicts(&node), ["a", "e"]);
    node.lattice(&["conflicts", "pick", "mine", "a"]);
    let shown = json(&node, &["conflicts", "show", "e"]);
    assert_eq!(shown["ancestor"]["size"], 4);
    assert!(shown["changes"][0]["diff"].as_str().unwrap().contains("-base"), "{shown}");
    let hash = shown["heads"][1]["hash"].as_str().unwrap();
    let names = |said: &str| said.contains(&hash[..8]) && said.contains("its heads are 0 (");
    for none in ["7", "zork", "ffffffff"] {
        let said = refused(&node, &["conflicts", "pick", none, "e"], REFUSED);
        let error = said.lines().find(|line| line.starts_with("error: 'e' is not settled")).unwrap_or_default();
        assert!(names(error), "{said}");
    }
    let said = refused(&node, &["conflicts", "pick", "zork", "--json"], REFUSED);
    assert!(names(&said) && said.contains("no head 'zork'"), "{said}");
    let home = node.lattice(&["conflicts", "--store", "home"]);
    assert!(home.starts_with("home/e\n") && home == node.lattice(&["conflicts"]), "{home}");
    assert_eq!(home, node.lattice(&["conflicts", "list", "e", "-s", "home"]));
    assert!(refused(&node, &["conflicts", "home"], NOT_FOUND).contains("--store NAME"));
    refused(&node, &["conflicts", "--store", "none"], NOT_FOUND);
    node.lattice(&["conflicts", "pick", &hash[..8]]);
    let settled = |node: &Node<'_>| {
        let keys = [("a", "ours"), ("d/b", "theirs"), ("d/c", "theirs"), ("e", "theirs")];
        conflicts(node).is_empty() && keys.iter().all(|(key, expected)| value(node, key) == *expected)
    };
    assert!(settled(&node));
    eventually("the other shows the same", || settled(&other));
    assert!(refused(&node, &["conflicts", "pick", "mine", "a"], NOT_FOUND).contains("needs a person"));
}

#[test]
fn what_was_changed_in_different_places_merges_by_itself_and_the_rest_is_left_as_it_is() {
    let [node, other] = apart(
        &[("text", BASE), ("lines", BASE), ("gone", BASE)],
        &[("text", "ONE\ntwo\nthree\nfour\n"), ("lines", "1\ntwo\nthree\nfour\n"), ("gone", "")],
        &[("text", "one\ntwo\nthree\nFOUR\n"), ("lines", "I\ntwo\nthree\nfour\n"), ("gone", "changed\n")],
        3,
    );
    let file = node.mount().with_file_name("marked");
    let merge = |args: &[&str]| {
        let args = [&["conflicts", "merge"], args].concat();
        node.command(&args).env_remove("MERGE_TOOL").output().unwrap()
    };
    let merged = merge(&["--markers", file.to_str().unwrap(), "--json"]);
    assert_eq!(merged.status.code(), Some(REFUSED));
    let merged: Vec<Value> = lines(&out(&merged));
    assert_eq!(merged.iter().map(|key| key["path"].clone()).collect::<Vec<_>>(), ["text"]);
    assert_eq!(value(&node, "text"), "ONE\ntwo\nthree\nFOUR\n");
    assert_eq!(conflicts(&node), ["gone", "lines"]);
    let marked = std::fs::read_to_string(&file).unwrap();
    assert!(marked.contains("<<<<<<< ") && marked.contains("\nI\n") && marked.contains("\n1\n"), "{marked}");
    assert!(!value(&node, "lines").contains("<<<"), "no marker stands in a key");
    let said = merge(&["lines", "--markers", file.to_str().unwrap()]);
    assert_eq!((said.status.code(), std::fs::read_to_string(&file).unwrap()), (Some(REFUSED), marked));

    let failing = node.command(&["conflicts", "merge", "lines"]).env("MERGE_TOOL", "false").output().unwrap();
    assert_eq!(failing.status.code(), Some(REFUSED));
    let lazy = node.command(&["conflicts", "merge", "lines"]).env("MERGE_TOOL", "true").output().unwrap();
    assert_eq!(lazy.status.code(), Some(REFUSED));
    assert!(String::from_utf8_lossy(&lazy.stderr).contains("left markers"), "{lazy:?}");
    assert_eq!(conflicts(&node), ["gone", "lines"]);
    let tool = "sh -c 'cat $LOCAL $REMOTE | grep -v four > $MERGED; grep -q two $BASE'";
    let done = node.command(&["conflicts", "merge", "lines"]).env("MERGE_TOOL", tool).output().unwrap();
    assert!(done.status.success() && out(&done).contains("by the merge tool"), "{done:?}");
    assert_eq!(value(&node, "lines"), "I\ntwo\nthree\n1\ntwo\nthree\n");

    node.lattice(&["conflicts", "pick", "mine", "gone"]);
    eventually("the other is settled, too", || {
        conflicts(&other).is_empty() && value(&other, "text") == "ONE\ntwo\nthree\nFOUR\n"
    });
    assert_eq!((value(&other, "gone").as_str(), value(&other, "lines")), ("changed\n", value(&node, "lines")));
}

#[test]
fn equal_writes_apart_are_no_conflict() {
    let [node, other] = apart(&[], &[("same", "x"), ("not", "1")], &[("same", "x"), ("not", "2")], 1);
    assert_eq!((conflicts(&node), conflicts(&other)), (vec!["not".to_owned()], vec!["not".to_owned()]));
}
