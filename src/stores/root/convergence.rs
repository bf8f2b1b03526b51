//! Random histories of the root store, delivered in random causal orders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{all, root};
use super::*;
use crate::clock::{Manual, Millis};
use crate::ids::Hash;
use crate::replication::entry::Entry;
use crate::replication::log::{Origin, Verdict};
use crate::replication::membership::{Cut, Role};
use crate::stores::testing::{START, clock, key, node};

const NODES: u8 = 4;

#[derive(Debug, Clone)]
enum Step {
    Add { node: u8, role: u8 },
    Invite { secret: u8, uses: u32, seconds: u64 },
    Redeem { secret: u8, node: u8 },
    Create { name: u8 },
    Delete { pick: usize },
    Name { name: u8 },
    Leave,
    Revoke { node: u8 },
    SetRole { node: u8, role: u8 },
    Pull { from: u8 },
}

fn step() -> impl Strategy<Value = (u8, Step)> {
    let step = prop_oneof![
        2 => (0..NODES + 3, 0u8..3).prop_map(|(node, role)| Step::Add { node, role }),
        2 => (0u8..2, 1u32..3, 0u64..3).prop_map(|(secret, uses, seconds)| Step::Invite { secret, uses, seconds }),
        3 => (0u8..2, 0..NODES + 3).prop_map(|(secret, node)| Step::Redeem { secret, node }),
        1 => (0u8..2).prop_map(|name| Step::Create { name }),
        1 => any::<usize>().prop_map(|pick| Step::Delete { pick }),
        1 => (0u8..3).prop_map(|name| Step::Name { name }),
        1 => Just(Step::Leave),
        2 => (0..NODES + 3).prop_map(|node| Step::Revoke { node }),
        2 => (0..NODES + 3, 0u8..3).prop_map(|(node, role)| Step::SetRole { node, role }),
        5 => (0..NODES).prop_map(|from| Step::Pull { from }),
    ];
    (0..NODES, step)
}

fn take(roots: &[Root], me: usize, step: &Step, now: Millis) {
    let root = &roots[me];
    let role = |n: u8| [Role::Reader, Role::Writer, Role::Admin][usize::from(n)];
    let op = match step {
        Step::Add { node: n, role: r } => Op::AddMember { node: node(*n), name: format!("n{}", n % 3), role: role(*r) },
        Step::Invite { secret, uses, seconds } => Op::Invite {
            id: invite_id(&invite_key(&[*secret; 32])),
            role: Role::Writer,
            expires: now.after(Duration::from_secs(*seconds)),
            uses: *uses,
        },
        Step::Redeem { secret, node: n } => {
            Op::Redeem(redeem(&[*secret; 32], &root.mesh(), node(*n), format!("n{}", n % 3)))
        }
        Step::Create { name } => Op::CreateStore { name: format!("s{name}"), kind: "kv".into() },
        Step::Delete { pick } => {
            let stores = root.stores();
            let Some(store) = stores.get(pick % stores.len().max(1)) else { return };
            Op::DeleteStore { id: store.id }
        }
        Step::Name { name } => Op::SetName { name: format!("n{name}") },
        Step::Leave => Op::Leave,
        Step::Revoke { node: n } => Op::Revoke { node: node(*n), cut: Cut::new(), salt: [*n; 32] },
        Step::SetRole { node: n, role: r } => Op::SetRole { node: node(*n), role: role(*r), cut: Cut::new() },
        Step::Pull { from } => {
            root.log().include(&all(&roots[usize::from(*from)]), Origin::Pulled).unwrap();
            return;
        }
    };
    // Nobody's build checks before it signs: what is not allowed must do nothing everywhere. Only strangers can't sign.
    if root.membership().load().admits(&root.log().me()) {
        root.log().submit(&wire::encode(&[op]), Origin::Local).unwrap();
    }
}

/// Includes the entries in a random order: those that are refused for want of a parent or of their author come again.
fn deliver(observer: &Root, entries: &[Entry], mut seed: u64) {
    let mut waiting = entries.to_vec();
    let mut stuck = 0;
    while !waiting.is_empty() && stuck < waiting.len() * 50 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (seed >> 33) as usize % waiting.len();
        let verdict = observer.log().include(&waiting[place..=place], Origin::Pulled).unwrap().remove(0);
        match verdict {
            Verdict::Included | Verdict::Duplicate => {
                waiting.swap_remove(place);
                stuck = 0;
            }
            Verdict::Missing(_) | Verdict::UnknownAuthor => stuck += 1,
            Verdict::Early(_) | Verdict::Rejected(_) | Verdict::Excluded => panic!("{verdict:?}"),
        }
    }
    assert!(waiting.is_empty(), "{} entries are never taken", waiting.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_causal_order_gives_the_same_bytes(
        steps in prop::collection::vec(step(), 1..50),
        seeds in prop::array::uniform3(any::<u64>()),
    ) {
        let clock: Arc<Manual> = clock();
        let (_, first) = genesis(&key(0), &*clock, "mesh", "n0").unwrap();
        let roots: Vec<Root> = (0..NODES).map(|n| root(n, &first, &clock)).collect();
        // So that something happens: all are admins, and there are invites to quarrel about.
        let admins = (1..NODES).map(|node| (0, Step::Add { node, role: 2 }));
        let invites = (0..2).map(|secret| (0, Step::Invite { secret, uses: 1, seconds: 60 }));
        let pulls = (1..NODES).map(|node| (node, Step::Pull { from: 0 }));
        let steps: Vec<_> = admins.chain(invites).chain(pulls).chain(steps).collect();
        for (number, (author, step)) in steps.iter().enumerate() {
            let now = Millis(START.0 + number as u64 * 100);
            clock.set(now);
            take(&roots, usize::from(*author), step, now);
        }
        let everything: BTreeMap<Hash, Entry> =
            roots.iter().flat_map(all).map(|entry| (entry.hash(), entry)).collect();
        let everything: Vec<Entry> = everything.into_values().filter(|entry| entry.hash() != first.hash()).collect();
        let mut digests = BTreeSet::new();
        for seed in seeds {
            let observer = root(7, &first, &clock);
            deliver(&observer, &everything, seed);
            digests.insert(observer.log().state_digest().unwrap());
            observer.log().rebuild().unwrap();
            digests.insert(observer.log().state_digest().unwrap());
            let names: BTreeSet<_> = observer.members().into_iter().map(|member| member.name).collect();
            prop_assert_eq!(names.len(), observer.members().len());
        }
        prop_assert_eq!(digests.len(), 1);
    }
}
