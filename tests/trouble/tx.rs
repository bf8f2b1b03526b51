//! Transactions across restarts, and as another machine sees them.

use std::fs;
use std::path::PathBuf;

use crate::harness::{Node, eventually};
use crate::{REFUSED, founder, joined, json, refused};

fn tx(node: &Node<'_>, path: &str) -> PathBuf {
    node.mount().join("stores/home/.tx").join(path)
}

fn commit(node: &Node<'_>, name: &str) -> Result<(), i32> {
    fs::rename(tx(node, name), tx(node, "commit")).map_err(|error| error.raw_os_error().unwrap())
}

fn entries(node: &Node<'_>) -> u64 {
    json(node, &["store", "status", "home"])["entries"].as_u64().unwrap()
}

#[test]
fn a_transaction_goes_on_after_a_restart_with_what_was_staged_and_what_it_builds_upon() {
    let node = founder();
    fs::write(node.key("a"), "old").unwrap();
    for name in ["t", "u"] {
        fs::create_dir(tx(&node, name)).unwrap();
        fs::create_dir(tx(&node, name).join("d")).unwrap();
        fs::write(tx(&node, name).join("d").join(name), "staged").unwrap();
    }
    fs::write(tx(&node, "t/a"), "mine").unwrap();
    fs::write(node.key("a"), "changed meanwhile").unwrap();
    node.kill();
    node.up();
    assert_eq!(fs::read_to_string(tx(&node, "t/d/t")).unwrap(), "staged");
    assert_eq!(commit(&node, "t"), Err(libc::EAGAIN));
    assert!(fs::read_to_string(tx(&node, "t/.why")).unwrap().contains("\na\n"));
    assert_eq!(json(&node, &["tx", "show", "t"])["moved"][0], "a");
    node.lattice(&["down"]);
    node.up();
    assert_eq!(commit(&node, "t"), Err(libc::EAGAIN));
    assert_eq!(commit(&node, "u"), Ok(()));
    assert_eq!(fs::read_to_string(node.key("d/u")).unwrap(), "staged");
    let log = fs::read_to_string(node.data().join("latticed.log")).unwrap();
    assert!(log.lines().any(|line| line.contains("changed after it began") && line.contains("key=a")), "{log}");
    node.kill();
    node.up();
    assert_eq!(fs::read_dir(tx(&node, "")).unwrap().count(), 1, "what was committed is over");
    let said = refused(&node, &["tx", "commit", "t"], REFUSED);
    assert!(said.error.contains("'a'") && said.hint.contains("tx commit t --force"), "{}", said.all());
    let before = entries(&node);
    node.lattice(&["tx", "commit", "t", "--force"]);
    assert_eq!(entries(&node), before + 1);
    assert_eq!(fs::read_dir(node.mount().join(".heads/home/a")).unwrap().count(), 2);
    assert_eq!(fs::read_to_string(node.key("d/t")).unwrap(), "staged");
}

#[test]
fn another_machine_sees_all_of_a_transaction_or_nothing() {
    let first = founder();
    let second = joined(&first);
    eventually("the store", || fs::write(second.key("hello"), "x").is_ok());
    eventually("it is known to the first", || first.key("hello").exists());
    fs::create_dir(tx(&first, "t")).unwrap();
    fs::create_dir(tx(&first, "t/site")).unwrap();
    for n in 0..500 {
        fs::write(tx(&first, &format!("t/site/{n}")), format!("page {n}")).unwrap();
    }
    let listed = || fs::read_dir(second.key("site")).map_or(0, |names| names.filter(Result::is_ok).count());
    assert_eq!(listed(), 0);
    let before = entries(&second);
    commit(&first, "t").unwrap();
    assert_eq!(fs::read_dir(first.key("site")).unwrap().count(), 500);
    let mut seen = Vec::new();
    eventually("all of it", || {
        seen.push(listed());
        *seen.last().unwrap() > 0
    });
    assert_eq!(seen.pop(), Some(500));
    assert!(seen.iter().all(|count| *count == 0), "{seen:?}");
    assert_eq!(entries(&second), before + 1);
    assert_eq!(fs::read_to_string(second.key("site/499")).unwrap(), "page 499");
    // And when all of it changes: the new pages, or the old ones.
    fs::create_dir(tx(&first, "t")).unwrap();
    fs::create_dir(tx(&first, "t/site")).unwrap();
    for n in 0..500 {
        fs::write(tx(&first, &format!("t/site/{n}.delete")), "").unwrap();
    }
    fs::write(tx(&first, "t/site/index"), "x").unwrap();
    commit(&first, "t").unwrap();
    let mut seen = Vec::new();
    eventually("the other site", || {
        seen.push(listed());
        *seen.last().unwrap() == 1
    });
    seen.pop();
    assert!(seen.iter().all(|count| *count == 500), "{seen:?}");
}
