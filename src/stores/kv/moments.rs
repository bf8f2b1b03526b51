//! The past: that it is found as it was, whatever came in which order.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::clock::{Clock, Manual};
use crate::ids::{Hash, NodeId};
use crate::replication::log::Origin;
use crate::stores::testing::{Shelf, clock, log};

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
            let entries = convergence::entries(&nodes[from]);
            nodes[me].log().include(&entries, Origin::Pulled).unwrap();
        }
    }
    let rest = convergence::entries(&all);
    let view = all.log().database().view().unwrap();
    for entry in &rest {
        let past = all.log().past(&view, &entry.hash()).unwrap().unwrap();
        let found: BTreeMap<NodeId, u64> = past.iter().map(|(author, seq)| (*author, seq)).collect();
        assert_eq!(found, seen[&entry.hash()], "of {entry:?}");
    }
    assert_eq!(rest.len(), 900);
    assert!(all.log().past(&view, &Hash([1; 32])).unwrap().is_none());
}
