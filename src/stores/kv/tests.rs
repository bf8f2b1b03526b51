//! What the kv store promises to its users.

use std::sync::Arc;

use prost::Message;

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

#[test]
fn a_rename_carries_the_content_by_reference_and_leaves_what_it_had_not_seen() {
    let clock = clock();
    let (a, b) = (kv(0, &clock), kv(1, &clock));
    let first = put(&a, "old", "one");
    give(&b, &entry(&a, &first));
    let head = *a.heads(b"old").unwrap().unwrap().lww();
    let Head { kind, mode, mtime, content, .. } = head;
    let moved = Op::Put { path: b"new".to_vec(), supersedes: vec![], kind, mode, mtime, value: Value::Same(content) };
    let moved = a.submit(vec![delete_op(&a, "old"), moved], Origin::Local).unwrap();
    assert_eq!(text(&a, a.heads(b"new").unwrap().unwrap().lww()), "one");
    assert!(entry(&a, &moved).payload().len() < 250, "no content travels again");
    let meanwhile = put(&b, "old", "two");
    give(&a, &entry(&b, &meanwhile));
    give(&b, &entry(&a, &moved));
    for kv in [&a, &b] {
        let heads = kv.heads(b"old").unwrap().unwrap();
        assert!(heads.is_conflict(), "a deletion and a write that did not know of it");
        assert_eq!(heads.all().len(), 2);
        assert_eq!(text(kv, kv.heads(b"new").unwrap().unwrap().lww()), "one");
    }
    assert_eq!(a.log().state_digest().unwrap(), b.log().state_digest().unwrap());
}

#[test]
fn new_attributes_keep_the_content_and_say_so() {
    let kv = kv(0, &clock());
    put(&kv, "k", "text");
    let head = *kv.heads(b"k").unwrap().unwrap().lww();
    let chmod = |mode| Op::SetAttr {
        path: b"k".to_vec(),
        supersedes: vec![head.id],
        kind: Kind::File,
        mode,
        mtime: head.mtime,
        value: Value::Same(head.content),
    };
    assert_eq!(effects(&kv, chmod(0o755)), [("k".into(), What::Attributes)]);
    let now = *kv.heads(b"k").unwrap().unwrap().lww();
    assert_eq!((now.mode, now.content), (0o755, head.content));
    assert_eq!(text(&kv, &now), "text");
    assert!(matches!(kv.submit(vec![chmod(0o10_000)], Origin::Local), Err(KvError::Invalid(_))));
}

#[test]
fn effects_tell_apart_what_became_of_a_key() {
    let kv = kv(0, &clock());
    assert_eq!(effects(&kv, mkdir_op(&kv, "d")), [("d".into(), What::Created)]);
    assert_eq!(effects(&kv, put_op(&kv, "d/k", "1")), [("d/k".into(), What::Created)]);
    assert_eq!(effects(&kv, put_op(&kv, "d/k", "2")), [("d/k".into(), What::Modified)]);
    assert_eq!(effects(&kv, put_op(&kv, "d/k", "2")), [("d/k".into(), What::Heads)]);
    assert_eq!(effects(&kv, delete_op(&kv, "d")), [("d".into(), What::Attributes)]);
    assert_eq!(
        effects(&kv, delete_op(&kv, "d/k")),
        [("d".into(), What::Deleted), ("d/k".into(), What::Deleted)],
        "nothing implies the directory any more"
    );
    assert_eq!(kv.count().unwrap(), 0);
}

#[test]
fn what_does_not_fit_or_is_not_well_formed_is_never_signed() {
    let kv = kv(0, &clock());
    let many: Vec<Op> = (0..5).map(|n| put_op(&kv, &format!("k{n}"), &"x".repeat(16_000))).collect();
    assert!(matches!(kv.submit(many, Origin::Local), Err(KvError::TooLarge { .. })));
    let unknown = HeadId { entry: crate::ids::Hash([1; 32]), op: 0 };
    let blind = Op::Delete { path: b"k".to_vec(), supersedes: vec![unknown] };
    assert!(matches!(kv.submit(vec![blind], Origin::Local), Err(KvError::UnknownHead(_))));
    let mut bad = put_op(&kv, "k", "x");
    if let Op::Put { path, .. } = &mut bad {
        *path = b"a//b".to_vec();
    }
    assert!(matches!(kv.submit(vec![bad], Origin::Local), Err(KvError::Path(_))));
    assert!(kv.submit(vec![], Origin::Local).is_err());
    assert_eq!(kv.log().tips(&kv.log().database().view().unwrap()).unwrap().len(), 0);
}

#[test]
fn one_bad_operation_makes_the_whole_entry_do_nothing() {
    let kv = kv(0, &clock());
    let good = wire::operation(put_op(&kv, "good", "x"), vec![], kv.log().me()).unwrap();
    let mut bad = good.clone();
    if let Some(wire::Action::Put(write)) = &mut bad.action {
        write.path = "../bad".into();
    }
    for (version, operations, reason) in
        [(1, vec![good.clone(), bad], "malformed: operation 1"), (2, vec![good], "held: payload version 2")]
    {
        let payload = wire::Payload { version, operations };
        let receipt = kv.log().submit(&payload.encode_to_vec(), Origin::Local).unwrap();
        let noop = kv.log().noop(&kv.log().database().view().unwrap(), &receipt.hash).unwrap().unwrap();
        assert!(noop.starts_with(reason), "{noop}");
    }
    assert_eq!(kv.count().unwrap(), 0);
    put(&kv, "k", "the chain goes on");
    assert_eq!(kv.count().unwrap(), 1);
}

#[test]
fn a_reference_that_promises_what_is_not_there_is_refused_when_read() {
    let kv = kv(0, &clock());
    let receipt = put(&kv, "k", "text");
    let forged = |seq, hash| Content::Inline { author: kv.log().me(), seq, op: 0, size: 4, hash };
    let right = crate::ids::Hash::from(blake3::hash(b"text"));
    for content in [forged(receipt.seq, crate::ids::Hash([1; 32])), forged(99, right)] {
        let head = Head { content, ..*kv.heads(b"k").unwrap().unwrap().lww() };
        assert!(matches!(kv.read(&head), Err(KvError::Broken(_))));
    }
    let head = Head { content: Content::Blob { hash: right, size: 4 }, ..*kv.heads(b"k").unwrap().unwrap().lww() };
    assert!(matches!(kv.read_within(&head, std::time::Duration::ZERO), Err(KvError::Absent(_))));
}

const LATE: crate::clock::Hlc = crate::clock::Hlc(u64::MAX);

fn sample() -> wire::Payload {
    use crate::clock::Hlc;
    use crate::ids::{Hash, NodeId};
    let me = NodeId([7; 32]);
    let cite = vec![(Hlc(0x0102_0304_0506_0708), HeadId { entry: Hash([1; 32]), op: 3 })];
    let inline = Content::Inline { author: NodeId([2; 32]), seq: 300, op: 1, size: 9, hash: Hash([3; 32]) };
    let (path, supersedes, mtime) = (b"a/b".to_vec(), vec![], -5);
    let put =
        |kind, mode, value| Op::Put { path: path.clone(), supersedes: supersedes.clone(), kind, mode, mtime, value };
    let ops = [
        put(Kind::File, 0o644, Value::Bytes(b"text".to_vec())),
        put(Kind::Symlink, 0o777, Value::Same(inline)),
        put(Kind::Directory, 0o755, Value::Empty),
        put(Kind::File, 0o600, Value::Blob { hash: Hash([4; 32]), size: 1 << 40 }),
        Op::Delete { path: path.clone(), supersedes: vec![] },
        Op::SetAttr { path, supersedes: vec![], kind: Kind::File, mode: 0, mtime, value: Value::Empty },
    ];
    let operations = ops.into_iter().map(|op| wire::operation(op, cite.clone(), me).unwrap()).collect();
    wire::Payload { version: wire::VERSION, operations }
}

#[test]
fn the_payload_of_version_1_is_frozen() {
    let bytes = sample().encode_to_vec();
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    assert_eq!(hex, include_str!("../../../tests/frozen/kv-payload-v1.hex").trim());
    assert_eq!(wire::Payload::decode(bytes.as_slice()).unwrap(), sample());
    assert_eq!(wire::parse(sample(), crate::ids::NodeId([7; 32]), 5, LATE).unwrap().len(), 6);
}

#[test]
fn the_rows_of_the_state_are_frozen_and_read_back() {
    use crate::clock::Hlc;
    use crate::ids::{Hash, NodeId};
    let author = NodeId([7; 32]);
    let heads = (0u8..).zip(wire::parse(sample(), author, 5, LATE).unwrap()).map(|(op, write)| Head {
        id: HeadId { entry: Hash([op; 32]), op: op.into() },
        author,
        seq: 5,
        hlc: Hlc(op.into()),
        kind: write.kind,
        mode: write.mode,
        mtime: write.mtime,
        content: write.content,
    });
    let heads = Heads::new(heads.collect(), true).unwrap();
    let row = rows::encode(&heads);
    assert_eq!(rows::decode(&row).unwrap(), heads);
    let frozen = include_str!("../../../tests/frozen/kv-rows-v1.blake3").trim();
    assert_eq!(blake3::hash(&row).to_hex().as_str(), frozen, "the state's form changed: stores must be rebuilt");
    assert!(rows::decode(&row[..row.len() - 1]).is_err());
    let version = Version {
        head: *heads.lww(),
        supersedes: vec![(Hlc(0x0102_0304_0506_0708), HeadId { entry: Hash([1; 32]), op: 3 }); 2],
    };
    let (key, value) = (
        rows::history_key(b"", version.head.hlc, &version.head.id),
        rows::encode_version(&version.head, &version.supersedes),
    );
    assert_eq!(rows::decode_version(&key[2..], &value).unwrap(), version);
    let frozen = include_str!("../../../tests/frozen/kv-history-v1.hex").trim();
    assert_eq!(data_encoding::HEXLOWER.encode(&value), frozen, "the state's form changed: stores must be rebuilt");
    assert!(rows::decode_version(&key[2..], &value[..value.len() - 1]).is_err());
}
