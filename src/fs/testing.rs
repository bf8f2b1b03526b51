//! For unit tests: a tree over the stores of a new mesh, without a kernel.

use std::sync::Arc;
use std::sync::mpsc::channel;

use arc_swap::ArcSwapOption;
use ed25519_dalek::SigningKey;

use super::Sources;
use super::inodes::ROOT;
use super::tree::{Found, Tree};
use crate::clock::System;
use crate::ids::StoreId;
use crate::peers::{Peer, Peers, Proof, Standing};
use crate::stores::Registry;
use crate::stores::root::genesis;
use crate::stores::testing::Shelf;

struct Nobody;

impl Peers for Nobody {
    fn peers(&self) -> Vec<Peer> {
        Vec::new()
    }
    fn standings(&self, _: &StoreId) -> std::collections::BTreeMap<crate::ids::NodeId, Standing> {
        std::collections::BTreeMap::new()
    }
    fn proof(&self, _: &crate::ids::NodeId) -> Option<Proof> {
        None
    }
}

pub(crate) fn tree(dir: &std::path::Path) -> Tree {
    let key = Arc::new(SigningKey::from_bytes(&[7; 32]));
    let (mesh, first) = genesis(&key, &System, "test", "here").unwrap();
    let registry = Registry::open(dir, mesh, Some(&first), key, Arc::new(System), Arc::new(Shelf::default()));
    let registry = Arc::new(ArcSwapOption::from(Some(registry.unwrap())));
    let drafts = dir.join("drafts");
    std::fs::create_dir_all(&drafts).unwrap();
    Tree::new(Sources { registry, peers: Arc::new(Nobody), drafts }, (0, 0), channel().0)
}

pub(crate) fn find(tree: &Tree, names: &[&str]) -> u64 {
    names.iter().fold(ROOT, |at, name| match tree.lookup(at, name.as_bytes()).unwrap() {
        Found::This(attr, _) => attr.ino,
        Found::Nothing(_) => panic!("{name} is not there"),
    })
}
