//! The past: that it is found as it was, whatever came in which order.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::convergence::{AUTHORS, PATHS, Step, entries, step, take};
use super::*;
use crate::clock::{Clock, Manual, Millis};
use crate::ids::{Hash, NodeId};
use crate::replication::entry::Entry;
use crate::replication::log::Origin;
use crate::stores::merge::Merge;
use crate::stores::testing::{START, Shelf, clock, log};

fn kv(n: u8, clock: &Arc<Manual>) -> Kv {
    Kv::new(log(n, Machine, Arc::clone(clock) as Arc<dyn Clock>), Arc::new(Shelf::default()))
}

/// A generator that is the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

#[test]
fn the_past_of_an_entry_is_what_its_author_had_seen_also_behind_hundreds_of_entries() {
    let clock = clock();
    let nodes: Vec<Kv> = (0..4).map(|n| kv(n, &clock)).collect();
    let all = kv(7, &clock);
    let mut dice = Dice(7);
    let mut seen: BTreeMap<Hash, BTreeMap<NodeId, u64>> = BTreeMap::new();
    for _ in 0..900 {
        let me = dice.roll(4);
        let path = format!("k{}", dice.roll(5)).into_bytes();
        let receipt = nodes[me].submit(vec![Op::Delete { path, supersedes: vec![] }], Origin::Local).unwrap();
        let view = nodes[me].log().database().view().unwrap();
        let tips = nodes[me].log().tips(&view).unwrap();
        seen.insert(receipt.hash, tips.into_iter().map(|(author, tip)| (author, tip.seq)).collect());
        let entry = nodes[me].log().get(&view, &receipt.hash).unwrap().unwrap();
        all.log().include(&[entry], Origin::Pulled).unwrap();
        if dice.roll(9) == 0 {
            let from = dice.roll(4);
            let theirs = entries(&nodes[from]);
            nodes[me].log().include(&theirs, Origin::Pulled).unwrap();
        }
    }
    let rest = entries(&all);
    let view = all.log().database().view().unwrap();
    for entry in &rest {
        let past = all.log().past(&view, &entry.hash()).unwrap().unwrap();
        let found: BTreeMap<NodeId, u64> = past.iter().map(|(author, seq)| (*author, seq)).collect();
        assert_eq!(found, seen[&entry.hash()], "of {entry:?}");
    }
    assert_eq!(rest.len(), 900);
    assert!(all.log().past(&view, &Hash([1; 32])).unwrap().is_none());
}

/// That what a store was at a moment is what another is that has just those entries.
fn same(kv: &Kv, moment: &Moment, replay: &Kv) {
    let lens = Lens::At(moment.clone());
    for path in PATHS.map(str::as_bytes) {
        assert_eq!(
            kv.heads_at(moment, path).unwrap(),
            replay.heads(path).unwrap(),
            "{}",
            String::from_utf8_lossy(path)
        );
        // Of a directory that hides a file, the present knows whether a head of it is one.
        let hides = replay.heads(path).unwrap().is_some_and(|heads| heads.is_shadowed());
        let now = if hides { Some(Node::Directory(None)) } else { replay.node(path).unwrap() };
        assert_eq!(kv.node_through(&lens, path).unwrap(), now);
    }
    let plain = |children: Vec<(Vec<u8>, Node)>| -> Vec<_> {
        let kind = |node| match node {
            Node::File(head) => (0, Some(head)),
            Node::Symlink(head) => (1, Some(head)),
            Node::Directory(_) => (2, None),
        };
        children.into_iter().map(|(name, node)| (name, kind(node))).collect()
    };
    for dir in std::iter::once("").chain(PATHS).map(str::as_bytes) {
        let now = plain(replay.children(dir, None, 99).unwrap());
        assert_eq!(plain(kv.children_through(&lens, dir, None, 99).unwrap()), now);
        let mut paged = Vec::new();
        while let Some(one) = kv
            .children_through(&lens, dir, paged.last().map(|(name, _): &(Vec<u8>, _)| name.as_slice()), 1)
            .unwrap()
            .pop()
        {
            paged.push(one);
        }
        assert_eq!(plain(paged), now);
    }
    let all = kv.scan_through(&lens, b"", None, 99).unwrap();
    let now = replay.scan(b"", None, 99).unwrap().into_iter().map(|(path, heads)| (path, *heads.lww()));
    assert_eq!(all, now.collect::<Vec<_>>());
}

/// A store that has only these entries.
fn replay<'a>(entries: impl Iterator<Item = &'a Entry>, clock: &Arc<Manual>) -> Kv {
    let replay = kv(6, clock);
    let entries: Vec<_> = entries.cloned().collect();
    replay.log().include(&entries, Origin::Pulled).unwrap();
    replay
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_moment_shows_what_a_replay_of_it_gives(
        steps in prop::collection::vec(step(), 1..50),
        picks in prop::array::uniform4(any::<usize>()),
    ) {
        let clock = clock();
        let nodes: Vec<Kv> = (0..AUTHORS).map(|n| kv(n, &clock)).collect();
        for (number, (author, step)) in steps.iter().enumerate() {
            clock.set(Millis(START.0 + number as u64 / 3));
            take(&nodes, usize::from(*author), step);
        }
        let all = kv(7, &clock);
        for node in &nodes {
            all.log().include(&entries(node), Origin::Pulled).unwrap();
        }
        same(&all, &Moment::now(), &all);
        let known = entries(&all);
        if known.is_empty() {
            return Ok(());
        }
        for pick in picks {
            let entry = &known[pick % known.len()];
            let view = all.log().database().view().unwrap();
            let past = all.log().past(&view, &entry.hash()).unwrap().unwrap();
            let before = known.iter().filter(|entry| past.has(&entry.header().author, entry.header().seq));
            let moment = all.moment_of(&entry.hash()).unwrap().unwrap();
            same(&all, &moment, &replay(before, &clock));
            let time = Millis(START.0 + pick as u64 % 18);
            let before = known.iter().filter(|entry| entry.header().hlc.millis() <= time);
            same(&all, &Moment::at(time), &replay(before, &clock));
        }
    }

    #[test]
    fn what_nobody_superseded_can_be_read(
        steps in prop::collection::vec(step().prop_filter("honest", |(_, step)| !matches!(step, Step::Forge { .. })), 1..40),
    ) {
        let clock = clock();
        let nodes: Vec<Kv> = (0..AUTHORS).map(|n| kv(n, &clock)).collect();
        for (author, step) in &steps {
            take(&nodes, usize::from(*author), step);
        }
        for path in PATHS.map(str::as_bytes) {
            for node in &nodes {
                for Version { head, .. } in node.history(path).unwrap() {
                    prop_assert!(node.read(&head).is_ok());
                }
            }
        }
    }
}

#[test]
fn what_an_author_wrote_last_is_seen_alone() {
    let clock = clock();
    let (a, b) = (kv(0, &clock), kv(1, &clock));
    let put = |kv: &Kv, path: &str| {
        let supersedes = kv.heads(path.as_bytes()).unwrap().iter().flat_map(Merge::all).map(|head| head.id).collect();
        let value = Value::Bytes(path.into());
        let op = Op::Put { path: path.into(), supersedes, kind: Kind::File, mode: 0o644, mtime: 0, value };
        kv.submit(vec![op], Origin::Local).unwrap();
    };
    for path in ["d/mine", "d/both", "mine"] {
        put(&a, path);
    }
    b.log().include(&entries(&a), Origin::Pulled).unwrap();
    for path in ["d/both", "e/theirs"] {
        put(&b, path);
    }
    let names = |lens: &Lens, dir: &str| -> Vec<String> {
        let found = b.children_through(lens, dir.as_bytes(), None, 9).unwrap();
        found.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
    };
    let (by_a, by_b) = (Lens::By(a.log().me()), Lens::By(b.log().me()));
    assert_eq!(names(&by_a, ""), ["d", "mine"]);
    assert_eq!(names(&by_a, "d"), ["mine"]);
    assert_eq!(names(&by_b, ""), ["d", "e"]);
    assert_eq!(names(&by_b, "d"), ["both"]);
    assert_eq!(b.node_through(&by_b, b"mine").unwrap(), None);
    assert_eq!(b.node_through(&by_b, b"e").unwrap(), Some(Node::Directory(None)));
    assert_eq!(b.names_ever(b"", None, 9).unwrap(), [b"d".to_vec(), b"e".to_vec(), b"mine".to_vec()]);
}

#[test]
fn an_entry_is_found_by_the_start_of_its_hash() {
    let kv = kv(0, &clock());
    let put = |n: usize| {
        kv.submit(vec![Op::Delete { path: n.to_string().into(), supersedes: vec![] }], Origin::Local).unwrap().hash
    };
    let hashes: Vec<Hash> = (0..40).map(put).collect();
    let view = kv.log().database().view().unwrap();
    let found = |digits: &str| kv.log().begin_with(&view, digits, 99).unwrap();
    for hash in &hashes {
        let text = hash.to_string();
        for digits in [5, 8, 31, 40, 63, 64] {
            assert_eq!(found(&text[..digits]).iter().map(Entry::hash).collect::<Vec<_>>(), [*hash]);
        }
        assert!(found(&text[..1]).iter().any(|entry| entry.hash() == *hash));
    }
    assert_eq!(found("").len(), 40);
    assert!(found("xyz").is_empty());
}
