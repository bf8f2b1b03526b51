//! What the kv store promises to its users.

use std::sync::Arc;

use super::*;
use crate::clock::{Clock, Manual};
use crate::replication::entry::Entry;
use crate::replication::log::{Origin, Receipt, Verdict};
use crate::replication::machine::{Change, What};
use crate::stores::merge::Merge;
use crate::stores::testing::{Shelf, clock, log};

fn kv(n: u8, clock: &Arc<Manual>) -> Kv {
    Kv::new(log(n, Machine, Arc::clone(clock) as Arc<dyn Clock>), Arc::new(Shelf::default()))
}

fn seen(kv: &Kv, path: &str) -> Vec<HeadId> {
    kv.heads(path.as_bytes()).unwrap().map(|heads| heads.all().iter().map(|head| head.id).collect()).unwrap_or_default()
}

fn put_op(kv: &Kv, path: &str, text: &str) -> Op {
    Op::Put {
        path: path.into(),
        supersedes: seen(kv, path),
        kind: Kind::File,
        mode: 0o644,
        mtime: 5,
        value: kv.value(text.as_bytes()).unwrap(),
    }
}

fn delete_op(kv: &Kv, path: &str) -> Op {
    Op::Delete { path: path.into(), supersedes: seen(kv, path) }
}

fn mkdir_op(kv: &Kv, path: &str) -> Op {
    let supersedes = seen(kv, path);
    Op::Put { path: path.into(), supersedes, kind: Kind::Directory, mode: 0o755, mtime: 5, value: Value::Empty }
}

fn submit(kv: &Kv, op: Op) -> Receipt {
    kv.submit(vec![op], Origin::Local).unwrap()
}

fn put(kv: &Kv, path: &str, text: &str) -> Receipt {
    submit(kv, put_op(kv, path, text))
}

fn text(kv: &Kv, head: &Head) -> String {
    match kv.read(head).unwrap() {
        Opened::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
        Opened::File(mut file, _) => std::io::read_to_string(&mut file).unwrap(),
    }
}

fn entry(kv: &Kv, receipt: &Receipt) -> Entry {
    let view = kv.log().database().view().unwrap();
    kv.log().get(&view, &receipt.hash).unwrap().unwrap()
}

fn give(kv: &Kv, entry: &Entry) {
    let verdicts = kv.log().include(std::slice::from_ref(entry), Origin::Pulled).unwrap();
    assert!(matches!(verdicts[0], Verdict::Included | Verdict::Duplicate), "{verdicts:?}");
}

fn effects(kv: &Kv, op: Op) -> Vec<(String, What)> {
    let mut events = kv.log().subscribe();
    submit(kv, op);
    let event = events.try_recv().unwrap();
    let name = |change: &Change| (String::from_utf8(change.key.clone()).unwrap(), change.what);
    event.effects.changes.iter().map(name).collect()
}

fn names(kv: &Kv, dir: &str) -> Vec<String> {
    let shown = |(name, node): (Vec<u8>, Node)| {
        let mark = match node {
            Node::File(_) => "",
            Node::Symlink(_) => "@",
            Node::Directory(Some(_)) => "/",
            Node::Directory(None) => "//",
        };
        format!("{}{mark}", String::from_utf8(name).unwrap())
    };
    kv.children(dir.as_bytes(), None, 1_000).unwrap().into_iter().map(shown).collect()
}

#[test]
fn what_was_put_is_read_back_small_or_large() {
    let kv = kv(0, &clock());
    put(&kv, "a/b", "hello");
    let large = "x".repeat(20_000);
    put(&kv, "a/c", &large);
    let heads = kv.heads(b"a/b").unwrap().unwrap();
    assert_eq!(text(&kv, heads.lww()), "hello");
    let heads = kv.heads(b"a/c").unwrap().unwrap();
    assert!(matches!(heads.lww().content, Content::Blob { size: 20_000, .. }));
    assert_eq!(text(&kv, heads.lww()), large);
    assert_eq!(kv.count().unwrap(), 2);
    assert!(kv.log().wanted().unwrap().is_empty(), "a blob that is here is not wanted");
}

#[test]
fn a_directory_lists_each_name_once_in_byte_order_whatever_lies_below() {
    let kv = kv(0, &clock());
    for n in 0..40 {
        put(&kv, &format!("deep/x/{n}"), "1");
    }
    put(&kv, "deep!", "1");
    put(&kv, "a", "1");
    put(&kv, "z/z", "1");
    submit(&kv, mkdir_op(&kv, "m"));
    put(&kv, "m/1", "1");
    assert_eq!(names(&kv, ""), ["a", "deep//", "deep!", "m/", "z//"]);
    assert_eq!(names(&kv, "deep"), ["x//"]);
    assert_eq!(names(&kv, "deep/x").len(), 40);
    assert!(names(&kv, "a").is_empty());
    let mut paged = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    while let Some((name, _)) = kv.children(b"", after.as_deref(), 1).unwrap().pop() {
        paged.push(String::from_utf8(name.clone()).unwrap());
        after = Some(name);
    }
    assert_eq!(paged, ["a", "deep", "deep!", "m", "z"]);
}

#[test]
fn concurrent_writes_are_both_heads_until_one_supersedes_them() {
    let clock = clock();
    let (a, b) = (kv(0, &clock), kv(1, &clock));
    give(&b, &entry(&a, &put(&a, "k", "old")));
    let (left, right) = (put(&a, "k", "left"), put(&b, "k", "right"));
    give(&a, &entry(&b, &right));
    give(&b, &entry(&a, &left));
    for kv in [&a, &b] {
        let heads = kv.heads(b"k").unwrap().unwrap();
        assert!(heads.is_conflict());
        assert_eq!(heads.all().len(), 2);
        assert_eq!(kv.conflict_count().unwrap(), 1);
        assert_eq!(kv.conflicts(b"", None, 9).unwrap()[0].0, b"k");
        assert_eq!(kv.history(b"k").unwrap().len(), 3);
    }
    let settled = put(&b, "k", "both");
    give(&a, &entry(&b, &settled));
    for kv in [&a, &b] {
        let heads = kv.heads(b"k").unwrap().unwrap();
        assert_eq!(text(kv, heads.lww()), "both");
        assert!(!heads.is_conflict());
        assert!(kv.conflicts(b"", None, 9).unwrap().is_empty());
    }
    assert_eq!(a.log().state_digest().unwrap(), b.log().state_digest().unwrap());
}

#[test]
fn equal_values_from_two_nodes_are_no_conflict() {
    let clock = clock();
    let (a, b) = (kv(0, &clock), kv(1, &clock));
    let left = put(&a, "k", "same");
    put(&b, "k", "same");
    give(&b, &entry(&a, &left));
    let heads = b.heads(b"k").unwrap().unwrap();
    assert_eq!(heads.all().len(), 2);
    assert!(!heads.is_conflict());
    assert_eq!(b.conflict_count().unwrap(), 0);
}

#[test]
fn a_file_with_keys_below_it_shows_as_a_directory_and_is_a_conflict_until_they_go() {
    let kv = kv(0, &clock());
    put(&kv, "a", "file");
    assert_eq!(
        effects(&kv, put_op(&kv, "a/b/c", "below")),
        [("a/b".into(), What::Created), ("a".into(), What::Modified), ("a/b/c".into(), What::Created)]
    );
    assert_eq!(kv.node(b"a").unwrap(), Some(Node::Directory(None)));
    assert_eq!(kv.node(b"a/b").unwrap(), Some(Node::Directory(None)));
    assert_eq!(kv.conflicts(b"", None, 9).unwrap()[0].0, b"a");
    assert_eq!(
        effects(&kv, delete_op(&kv, "a/b/c")),
        [("a/b".into(), What::Deleted), ("a".into(), What::Modified), ("a/b/c".into(), What::Deleted)]
    );
    assert!(matches!(kv.node(b"a").unwrap(), Some(Node::File(_))));
    assert_eq!(kv.conflict_count().unwrap(), 0);
    assert_eq!(kv.node(b"a/b").unwrap(), None);
}
