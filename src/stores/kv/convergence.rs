//! Random histories, delivered in random causal orders: the state is a function of the set of entries, and it is the
//! one that the definition of heads says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;

use super::wire::{self, Parsed};
use super::*;
use crate::clock::{Clock, Hlc, Manual, Millis};
use crate::ids::Hash;
use crate::replication::database::Flow;
use crate::replication::entry::Entry;
use crate::replication::log::{Origin, Verdict};
use crate::stores::merge::Merge;
use crate::stores::testing::{START, Shelf, clock, log};

pub(super) const PATHS: [&str; 8] = ["a", "a/b", "a/b/c", "a/b/d", "a!", "b", "b/c", "c"];
pub(super) const AUTHORS: u8 = 4;

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Puts a file, having read it.
    Put {
        path: usize,
        text: u8,
    },
    /// Puts a file without looking.
    Blind {
        path: usize,
        text: u8,
    },
    /// Puts a file and cites a write that another node has, seen or not, of any path: nobody honest does that.
    Forge {
        path: usize,
        from: u8,
        pick: usize,
    },
    Mkdir {
        path: usize,
    },
    Chmod {
        path: usize,
        mode: u32,
    },
    Delete {
        path: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    /// Gets all that another node has.
    Pull {
        from: u8,
    },
}

pub(super) fn step() -> impl Strategy<Value = (u8, Step)> {
    let path = || 0..PATHS.len();
    let step = prop_oneof![
        4 => (path(), 0u8..3).prop_map(|(path, text)| Step::Put { path, text }),
        1 => (path(), 0u8..3).prop_map(|(path, text)| Step::Blind { path, text }),
        1 => (path(), 0..AUTHORS, any::<usize>()).prop_map(|(path, from, pick)| Step::Forge { path, from, pick }),
        1 => path().prop_map(|path| Step::Mkdir { path }),
        1 => (path(), 0u32..2).prop_map(|(path, mode)| Step::Chmod { path, mode }),
        2 => path().prop_map(|path| Step::Delete { path }),
        1 => (path(), path()).prop_map(|(from, to)| Step::Rename { from, to }),
        3 => (0..AUTHORS).prop_map(|from| Step::Pull { from }),
    ];
    (0..AUTHORS, step)
}

fn kv(n: u8, clock: &Arc<Manual>) -> Kv {
    Kv::new(log(n, Machine, Arc::clone(clock) as Arc<dyn Clock>), Arc::new(Shelf::default()))
}

/// All entries, by (hlc, hash): parents first.
pub(super) fn entries(kv: &Kv) -> Vec<Entry> {
    let view = kv.log().database().view().unwrap();
    let mut hashes = Vec::new();
    kv.log()
        .order(&view, (Hlc(0), Hash([0; 32])), false, &mut |_, hash| {
            hashes.push(hash);
            Flow::Continue(())
        })
        .unwrap();
    hashes.iter().map(|hash| kv.log().get(&view, hash).unwrap().unwrap()).collect()
}

fn put(path: &str, supersedes: Vec<HeadId>, text: u8) -> Op {
    let value = Value::Bytes(vec![b'0' + text]);
    Op::Put { path: path.into(), supersedes, kind: Kind::File, mode: 0o644, mtime: text.into(), value }
}

pub(super) fn take(nodes: &[Kv], me: usize, step: &Step) {
    let kv = &nodes[me];
    let heads = |path: usize| kv.heads(PATHS[path].as_bytes()).unwrap();
    let ids = |heads: &Option<Heads>| -> Vec<HeadId> {
        heads.iter().flat_map(|heads| heads.all()).map(|head| head.id).collect()
    };
    let ops = match step {
        Step::Put { path, text } => vec![put(PATHS[*path], ids(&heads(*path)), *text)],
        Step::Blind { path, text } => vec![put(PATHS[*path], vec![], *text)],
        Step::Mkdir { path } => {
            let supersedes = ids(&heads(*path));
            let path = PATHS[*path].into();
            vec![Op::Put { path, supersedes, kind: Kind::Directory, mode: 0o755, mtime: 0, value: Value::Empty }]
        }
        Step::Chmod { path, mode } => {
            let Some(head) = heads(*path).and_then(|heads| heads.visible().copied()) else { return };
            let (path, supersedes, value) = (PATHS[*path].into(), vec![head.id], Value::Same(head.content));
            vec![Op::SetAttr { path, supersedes, kind: head.kind, mode: 0o700 + mode, mtime: head.mtime, value }]
        }
        Step::Delete { path } => vec![Op::Delete { path: PATHS[*path].into(), supersedes: ids(&heads(*path)) }],
        Step::Rename { from, to } => {
            let Some(head) = heads(*from).and_then(|heads| heads.visible().copied()) else { return };
            let Head { kind, mode, mtime, content, .. } = head;
            let (path, supersedes) = (PATHS[*to].into(), ids(&heads(*to)));
            vec![
                Op::Delete { path: PATHS[*from].into(), supersedes: ids(&heads(*from)) },
                Op::Put { path, supersedes, kind, mode, mtime, value: Value::Same(content) },
            ]
        }
        Step::Pull { from } => {
            let entries = entries(&nodes[usize::from(*from)]);
            kv.log().include(&entries, Origin::Pulled).unwrap();
            return;
        }
        Step::Forge { path, from, pick } => {
            let known = entries(&nodes[usize::from(*from)]);
            let Some(cited) = known.get(pick % known.len().max(1)) else { return };
            let cite = (cited.header().hlc, HeadId { entry: cited.hash(), op: 0 });
            let operation = wire::operation(put(PATHS[*path], vec![], 9), vec![cite], kv.log().me()).unwrap();
            let payload = wire::Payload { version: wire::VERSION, operations: vec![operation] };
            kv.log().submit(&payload.encode_to_vec(), Origin::Local).unwrap();
            return;
        }
    };
    kv.submit(ops, Origin::Local).unwrap();
}

/// Another order of the entries that has parents first.
fn shuffled(entries: &[Entry], mut seed: u64) -> Vec<Entry> {
    let mut waiting = entries.to_vec();
    let mut given = BTreeSet::new();
    let mut order = Vec::new();
    while !waiting.is_empty() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|place| waiting[*place].header().parents().all(|parent| given.contains(&parent)))
            .collect();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let entry = waiting.swap_remove(ready[(seed >> 33) as usize % ready.len()]);
        given.insert(entry.hash());
        order.push(entry);
    }
    order
}

/// The heads as they are defined.
fn defined(entries: &[Entry]) -> BTreeMap<Vec<u8>, Vec<HeadId>> {
    let mut writes: Vec<(HeadId, Hlc, crate::ids::NodeId, Parsed)> = Vec::new();
    for entry in entries {
        let header = entry.header();
        // A forged citation of what is not before it does nothing.
        let Ok(parsed) = wire::parse(wire::decode(entry).unwrap(), header.author, header.seq, header.hlc) else {
            continue;
        };
        for (op, write) in (0..).zip(parsed) {
            writes.push((HeadId { entry: entry.hash(), op }, header.hlc, header.author, write));
        }
    }
    let cited: BTreeSet<_> =
        writes.iter().flat_map(|(.., write)| write.cites.iter().map(|cite| (write.path.clone(), *cite))).collect();
    let mut heads: BTreeMap<Vec<u8>, Vec<(Hlc, crate::ids::NodeId, HeadId)>> = BTreeMap::new();
    for (id, hlc, author, write) in &writes {
        if !cited.contains(&(write.path.clone(), (*hlc, *id))) {
            heads.entry(write.path.to_vec()).or_default().push((*hlc, *author, *id));
        }
    }
    heads
        .into_iter()
        .map(|(path, mut heads)| {
            heads.sort_by(|a, b| b.cmp(a));
            (path, heads.into_iter().map(|(.., id)| id).collect())
        })
        .collect()
}

/// That every index says what the heads say.
fn check_indexes(kv: &Kv) {
    let all: Vec<_> = PATHS
        .iter()
        .filter_map(|path| kv.heads(path.as_bytes()).unwrap().map(|heads| (path.as_bytes().to_vec(), heads)))
        .collect();
    let mut visible: Vec<_> = all.iter().filter(|(_, heads)| heads.visible().is_some()).cloned().collect();
    visible.sort_by_key(|(path, _)| path::row(path));
    assert_eq!(kv.scan(b"", None, 99).unwrap(), visible);
    assert_eq!(kv.count().unwrap(), visible.len() as u64);
    let below = |path: &[u8]| {
        let start = [path, b"/"].concat();
        visible.iter().any(|(other, _)| other.starts_with(&start))
    };
    let mut conflicts = Vec::new();
    for (path, heads) in &all {
        let file = heads.visible().is_some_and(|head| head.kind != Kind::Directory);
        assert_eq!(heads.is_shadowed(), file && below(path));
        let several = heads.all().iter().any(|head| !head.same_value(heads.lww()));
        assert_eq!(heads.is_conflict(), several || heads.is_shadowed());
        if heads.is_conflict() {
            conflicts.push((path.clone(), heads.clone()));
        }
    }
    conflicts.sort_by_key(|(path, _)| path::row(path));
    assert_eq!(kv.conflict_count().unwrap(), conflicts.len() as u64);
    assert_eq!(kv.conflicts(b"", None, 99).unwrap(), conflicts);
    for dir in std::iter::once("").chain(PATHS) {
        let prefix = if dir.is_empty() { Vec::new() } else { [dir.as_bytes(), b"/"].concat() };
        let names: BTreeSet<Vec<u8>> = visible
            .iter()
            .filter_map(|(path, _)| path.strip_prefix(prefix.as_slice()))
            .map(|rest| rest.split(|byte| *byte == b'/').next().unwrap().to_vec())
            .collect();
        let listed = kv.children(dir.as_bytes(), None, 99).unwrap();
        assert!(listed.iter().map(|(name, _)| name).eq(names.iter()));
        for (name, node) in listed {
            assert_eq!(kv.node(&[prefix.as_slice(), &name].concat()).unwrap(), Some(node));
        }
        assert_eq!(kv.has_children(dir.as_bytes()).unwrap(), !names.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_causal_order_of_delivery_gives_the_same_bytes_and_the_heads_as_defined(
        steps in prop::collection::vec(step(), 1..50),
        seeds in prop::array::uniform3(any::<u64>()),
    ) {
        let clock = clock();
        let nodes: Vec<Kv> = (0..AUTHORS).map(|n| kv(n, &clock)).collect();
        for (number, (author, step)) in steps.iter().enumerate() {
            clock.set(Millis(START.0 + number as u64 / 3));
            take(&nodes, usize::from(*author), step);
        }
        let all: Vec<Entry> = {
            let everything = kv(7, &clock);
            for node in &nodes {
                everything.log().include(&entries(node), Origin::Pulled).unwrap();
            }
            entries(&everything)
        };
        let defined = defined(&all);
        let mut digests = BTreeSet::new();
        for seed in seeds {
            let observer = kv(6, &clock);
            for entry in shuffled(&all, seed) {
                let verdicts = observer.log().include(&[entry], Origin::Pulled).unwrap();
                prop_assert_eq!(&verdicts[..], &[Verdict::Included]);
            }
            digests.insert(observer.log().state_digest().unwrap());
            for path in PATHS {
                let heads = observer.heads(path.as_bytes()).unwrap();
                let ids = heads.map(|heads| heads.all().iter().map(|head| head.id).collect::<Vec<_>>());
                prop_assert_eq!(ids, defined.get(path.as_bytes()).cloned());
            }
            check_indexes(&observer);
            observer.log().rebuild().unwrap();
            digests.insert(observer.log().state_digest().unwrap());
        }
        prop_assert_eq!(digests.len(), 1);
    }

    #[test]
    fn no_edit_is_lost_unseen(
        steps in prop::collection::vec(step().prop_filter("honest", |(_, step)| !matches!(step, Step::Forge { .. })), 1..40),
    ) {
        let clock = clock();
        let nodes: Vec<Kv> = (0..AUTHORS).map(|n| kv(n, &clock)).collect();
        for (author, step) in &steps {
            take(&nodes, usize::from(*author), step);
        }
        for other in &nodes[1..] {
            nodes[0].log().include(&entries(other), Origin::Pulled).unwrap();
        }
        // Each write is a head, or one that superseded it was by somebody who had it in the past of his entry.
        let mut past: BTreeMap<Hash, BTreeSet<Hash>> = BTreeMap::new();
        let all = entries(&nodes[0]);
        for entry in &all {
            let mut seen = BTreeSet::new();
            for parent in entry.header().parents() {
                seen.extend(past[&parent].iter().copied());
                seen.insert(parent);
            }
            past.insert(entry.hash(), seen);
        }
        for path in PATHS {
            let heads = nodes[0].heads(path.as_bytes()).unwrap();
            for Version { head: write, .. } in nodes[0].history(path.as_bytes()).unwrap() {
                let heads = heads.as_ref().unwrap();
                let kept = heads.all().iter().any(|head| head.id == write.id || past[&head.id.entry].contains(&write.id.entry));
                prop_assert!(kept, "a write to {path} vanished");
            }
        }
    }
}
