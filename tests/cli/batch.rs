//! Several keys by one entry.

use std::io::Write;
use std::process::{Output, Stdio};

use super::harness::Node;
use super::{REFUSED, USAGE, json, out, with_mesh};

fn batch(node: &Node<'_>, lines: &str) -> Output {
    let mut child = node
        .command(&["kv", "batch", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_batch_is_one_entry_or_none() {
    let node = with_mesh();
    node.lattice(&["kv", "put", "old", "x"]);
    node.lattice(&["kv", "put", "file", "x"]);
    let entries = || json(&node, &["store", "status", "home"])["entries"].as_u64().unwrap();
    let before = entries();
    let large = "y".repeat(100_000);
    let lines = [
        r#"{"path": "d/a", "value": "1"}"#,
        "",
        r#"{"path": "d/b", "value_base64": "AP8=", "mode": "0755"}"#,
        r#"{"path": "old", "delete": true}"#,
        r#"{"path": "file", "delete": true}"#,
        r#"{"path": "file/below", "value": "2"}"#,
        &format!(r#"{{"path": "large", "value": "{large}"}}"#),
    ];
    let done = batch(&node, &lines.join("\n"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(entries(), before + 1);
    assert_eq!(node.lattice(&["kv", "list"]), "d/a\nd/b\nfile/below\nlarge\n");
    assert_eq!(std::fs::read(node.key("d/b")).unwrap(), b"\0\xff");
    assert_eq!(std::fs::read_to_string(node.key("large")).unwrap(), large);
    assert!(out(&done).contains(r#""deleted":2"#) && out(&done).contains(r#""written":4"#), "{}", out(&done));

    let missing = [r#"{"path": "new", "value": "1"}"#, r#"{"path": "none", "delete": true}"#].join("\n");
    assert_eq!(batch(&node, &missing).status.code(), Some(super::NOT_FOUND));
    let twice = [r#"{"path": "new", "value": "1"}"#, r#"{"path": "new", "value": "2"}"#].join("\n");
    let below = [r#"{"path": "new", "value": "1"}"#, r#"{"path": "new/x", "value": "2"}"#].join("\n");
    for refused in
        [twice, below, r#"{"path": "d", "value": "1"}"#.into(), r#"{"path": "large/x", "value": "1"}"#.into()]
    {
        assert_eq!(batch(&node, &refused).status.code(), Some(REFUSED), "{refused}");
    }
    let many: String =
        (0..9).map(|n| format!("{{\"path\": \"m{n}\", \"value\": \"{}\"}}\n", "z".repeat(10_000))).collect();
    assert_eq!(batch(&node, &many).status.code(), Some(REFUSED));
    let wrong = batch(&node, "{\"path\": \"new\", \"value\": \"1\"}\nnonsense\n");
    assert_eq!(wrong.status.code(), Some(USAGE));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("stdin:2: "), "{wrong:?}");
    assert_eq!(entries(), before + 1, "what is refused leaves nothing");
    assert!(batch(&node, "").status.success());
    assert_eq!(entries(), before + 1);
}
