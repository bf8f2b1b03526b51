//! What the root store promises.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::{Clock, Manual, Millis};
use crate::ids::{Hash, MeshId, NodeId};
use crate::replication::entry::{Entry, Fork};
use crate::replication::log::{Log, Origin, Parts, Receipt, Verdict, events};
use crate::replication::membership::{Cut, Role};
use crate::stores::testing::{START, clock, key, memory, node};

/// Node `n`'s root store of the mesh that `genesis` founds.
pub(super) fn root(n: u8, genesis: &Entry, clock: &Arc<Manual>) -> Root {
    let membership = nobody();
    let machine = Arc::new(Machine::new(Arc::clone(&membership)));
    let parts = Parts {
        store: MeshId(genesis.hash().0).root(),
        key: key(n),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        machine: Arc::clone(&machine) as _,
        membership,
        events: events(),
    };
    let root = Root::with(Arc::new(Log::with(memory(), parts).unwrap()), machine).unwrap();
    root.log().found(genesis).unwrap();
    root
}

fn founded() -> (Arc<Manual>, Entry, Root) {
    let clock = clock();
    let (_, genesis) = genesis(&key(0), &*clock, "mesh", "anna").unwrap();
    let root = root(0, &genesis, &clock);
    (clock, genesis, root)
}

fn entry(root: &Root, receipt: &Receipt) -> Entry {
    let view = root.log().database().view().unwrap();
    root.log().get(&view, &receipt.hash).unwrap().unwrap()
}

fn include(root: &Root, entry: &Entry) -> Verdict {
    root.log().include(std::slice::from_ref(entry), Origin::Pulled).unwrap().remove(0)
}

/// All entries, parents first.
pub(super) fn all(root: &Root) -> Vec<Entry> {
    let view = root.log().database().view().unwrap();
    let mut hashes = Vec::new();
    let start = (crate::clock::Hlc(0), Hash([0; 32]));
    root.log()
        .order(&view, start, false, &mut |_, hash| {
            hashes.push(hash);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    hashes.iter().map(|hash| root.log().get(&view, hash).unwrap().unwrap()).collect()
}

/// Gives `to` all that `from` has.
fn sync(from: &Root, to: &Root) {
    for entry in all(from) {
        let verdict = include(to, &entry);
        assert!(matches!(verdict, Verdict::Included | Verdict::Duplicate), "{verdict:?}");
    }
}

fn submit(root: &Root, op: Op) -> Receipt {
    root.submit(&[op], Origin::Local).unwrap()
}

fn add(n: u8, name: &str, role: Role) -> Op {
    Op::AddMember { node: node(n), name: name.into(), role }
}

fn invite(root: &Root, secret: [u8; 32], uses: u32) {
    let id = invite_id(&invite_key(&secret));
    let expires = START.after(Duration::from_secs(60));
    submit(root, Op::Invite { id, role: Role::Writer, expires, uses });
}

fn name_of(root: &Root, n: u8) -> String {
    root.membership().load().name(&node(n))
}

#[test]
fn genesis_makes_its_author_admin_and_declares_home_and_chat() {
    let (_, genesis, root) = founded();
    assert_eq!(root.name(), "mesh");
    assert_eq!(root.mesh().0, genesis.hash().0);
    assert_eq!(root.membership().load().role(&node(0)), Some(Role::Admin));
    let stores: Vec<_> = root.stores().into_iter().map(|store| (store.name, store.kind)).collect();
    assert_eq!(stores, [("chat".into(), "chat".into()), ("home".into(), "kv".into())]);
    assert_ne!(root.salt(), [0; 32]);
}

#[test]
fn a_joiner_needs_the_secret_in_time_and_uses_left() {
    let (clock, _, root) = founded();
    let secret = [5; 32];
    invite(&root, secret, 1);
    let mesh = root.mesh();
    let good = redeem(&secret, &mesh, node(1), "bob".into());
    assert_eq!(root.check_redeem(&redeem(&[6; 32], &mesh, node(1), "bob".into())), Err(Refusal::Unknown));
    let stolen = Redeem { node: node(2), ..good.clone() };
    assert_eq!(root.check_redeem(&stolen), Err(Refusal::Unknown));
    assert_eq!(root.check_redeem(&redeem(&secret, &MeshId([0; 32]), node(1), "bob".into())), Err(Refusal::Unknown));
    assert_eq!(root.check_redeem(&good), Ok(()));
    assert!(matches!(root.check_redeem(&Redeem { name: "a/b".into(), ..good.clone() }), Err(Refusal::Name(_))));
    clock.set(START.after(Duration::from_secs(61)));
    assert!(matches!(root.check_redeem(&good), Err(Refusal::Expired { .. })));
    clock.set(START.after(Duration::from_secs(59)));
    submit(&root, Op::Redeem(good.clone()));
    assert_eq!(root.membership().load().role(&node(1)), Some(Role::Writer));
    assert_eq!(name_of(&root, 1), "bob");
    assert_eq!(root.check_redeem(&good), Ok(()), "asking again after a lost answer is no second use");
    let other = redeem(&secret, &mesh, node(2), "carl".into());
    assert_eq!(root.check_redeem(&other), Err(Refusal::UsedUp { uses: 1 }));
    assert!(root.submit(&[Op::Redeem(other)], Origin::Local).is_err());
}

#[test]
fn a_key_of_small_order_never_becomes_a_member() {
    let (_, _, root) = founded();
    let weak = NodeId([0; 32]);
    invite(&root, [5; 32], 9);
    let by_invite = redeem(&[5; 32], &root.mesh(), weak, "weak".into());
    assert_eq!(root.check_redeem(&by_invite), Err(Refusal::Key(weak)));
    assert!(
        root.submit(&[Op::AddMember { node: weak, name: "weak".into(), role: Role::Writer }], Origin::Local).is_err()
    );
}

#[test]
fn a_last_use_redeemed_twice_at_once_goes_to_the_first_on_every_node() {
    let (clock, genesis, a) = founded();
    submit(&a, add(1, "bob", Role::Admin));
    invite(&a, [5; 32], 1);
    let b = root(1, &genesis, &clock);
    sync(&a, &b);
    clock.set(Millis(START.0 + 10));
    let at_b = submit(&b, Op::Redeem(redeem(&[5; 32], &b.mesh(), node(3), "dora".into())));
    clock.set(Millis(START.0 + 20));
    let at_a = submit(&a, Op::Redeem(redeem(&[5; 32], &a.mesh(), node(2), "carl".into())));
    assert!(a.membership().load().admits(&node(2)));
    sync(&b, &a);
    sync(&a, &b);
    for root in [&a, &b] {
        assert!(!root.membership().load().admits(&node(2)), "the later one is not let in");
        let membership = root.membership().load();
        assert!(!membership.members[&node(2)].counts(&root.stores()[0].id, 0, &Hash([0; 32])), "nothing of it counts");
        assert!(root.membership().load().admits(&node(3)));
        let view = root.log().database().view().unwrap();
        assert!(root.log().noop(&view, &at_a.hash).unwrap().unwrap().contains("used 1 times"));
        assert_eq!(root.log().noop(&view, &at_b.hash).unwrap(), None);
    }
    assert_eq!(a.log().state_digest().unwrap(), b.log().state_digest().unwrap());
}

#[test]
fn a_role_counts_only_for_those_who_had_seen_it_given() {
    let (clock, genesis, a) = founded();
    submit(&a, add(1, "bob", Role::Writer));
    let b = root(1, &genesis, &clock);
    sync(&a, &b);
    clock.set(Millis(START.0 + 10));
    let promoted = submit(&a, add(1, "bob", Role::Admin));
    // A build that doesn't check: bob signs what he may not do as far as he knows.
    clock.set(Millis(START.0 + 20));
    let payload = wire::encode(&[add(2, "carl", Role::Reader)]);
    let early = b.log().submit(&payload, Origin::Local).unwrap();
    include(&b, &entry(&a, &promoted));
    submit(&b, add(3, "dora", Role::Reader));
    sync(&b, &a);
    for root in [&a, &b] {
        assert!(!root.membership().load().knows(&node(2)));
        assert!(root.membership().load().knows(&node(3)));
        let view = root.log().database().view().unwrap();
        assert!(root.log().noop(&view, &early.hash).unwrap().unwrap().contains("only an admin"));
    }
    assert_eq!(a.log().state_digest().unwrap(), b.log().state_digest().unwrap());
}

#[test]
fn a_name_taken_twice_at_once_keeps_its_first_owner() {
    let (clock, genesis, a) = founded();
    submit(&a, add(1, "bob", Role::Admin));
    let b = root(1, &genesis, &clock);
    sync(&a, &b);
    clock.set(Millis(START.0 + 10));
    submit(&b, Op::CreateStore { name: "work".into(), kind: "kv".into() });
    clock.set(Millis(START.0 + 20));
    let later = submit(&a, Op::CreateStore { name: "work".into(), kind: "kv".into() });
    submit(&a, add(2, "anna", Role::Reader));
    sync(&a, &b);
    sync(&b, &a);
    let id = Root::store_id(&later.hash, 0);
    for root in [&a, &b] {
        let names: Vec<_> = root.stores().into_iter().map(|store| store.name).collect();
        assert_eq!(names, ["chat".to_owned(), "home".into(), "work".into(), format!("work-{}", &id.to_string()[..4])]);
        assert_eq!(name_of(root, 2), format!("anna-{}", &node(2).to_string()[..4]));
    }
    assert_eq!(a.log().state_digest().unwrap(), b.log().state_digest().unwrap());
}

#[test]
fn who_left_may_do_nothing_until_let_in_again() {
    let (clock, genesis, a) = founded();
    submit(&a, add(1, "bob", Role::Admin));
    let b = root(1, &genesis, &clock);
    sync(&a, &b);
    submit(&b, Op::Leave);
    assert!(!b.membership().load().admits(&node(1)));
    assert!(b.submit(&[Op::SetName { name: "x".into() }], Origin::Local).is_err());
    sync(&b, &a);
    assert!(!a.membership().load().admits(&node(1)));
    assert!(a.membership().load().knows(&node(1)), "what it wrote stays");
    submit(&a, add(1, "ignored", Role::Writer));
    sync(&a, &b);
    assert_eq!(b.membership().load().role(&node(1)), Some(Role::Writer));
    assert!(b.submit(&[add(2, "carl", Role::Reader)], Origin::Local).is_err(), "an admin no more");
    assert_eq!(name_of(&b, 1), "bob");
}

#[test]
fn rebuilding_gives_the_same_bytes_and_members() {
    let (_, _, root) = founded();
    submit(&root, add(1, "bob", Role::Admin));
    invite(&root, [5; 32], 2);
    submit(&root, Op::Redeem(redeem(&[5; 32], &root.mesh(), node(3), "dora".into())));
    let (digest, members) = (root.log().state_digest().unwrap(), root.members());
    root.log().rebuild().unwrap();
    assert_eq!(root.log().state_digest().unwrap(), digest);
    assert_eq!(root.members(), members);
}

#[test]
fn a_key_hands_its_role_and_name_to_another_that_has_signed_for_it_and_is_a_member_no_more() {
    let (clock, genesis, root) = founded();
    submit(&root, add(1, "bob", Role::Writer));
    let b = super::tests::root(1, &genesis, &clock);
    b.log().include(&all(&root), Origin::Pulled).unwrap();
    let another = Succession { node: node(5), ..succession(&key(4), &root.mesh(), &node(1)) };
    assert!(b.submit(&[Op::Succeed(another)], Origin::Local).is_err(), "signed by another key");
    let other = succession(&key(4), &root.mesh(), &node(0));
    assert!(b.submit(&[Op::Succeed(other)], Origin::Local).is_err(), "signed for another node");
    submit(&b, Op::Succeed(succession(&key(4), &root.mesh(), &node(1))));
    root.log().include(&all(&b), Origin::Pulled).unwrap();
    for root in [&root, &b] {
        let membership = root.membership().load();
        assert_eq!((membership.role(&node(4)), membership.role(&node(1))), (Some(Role::Writer), None));
        assert_eq!(membership.name(&node(4)), "bob");
        assert!(membership.name(&node(1)).starts_with("bob-"));
        assert!(membership.members[&node(1)].cut.is_none(), "what it wrote counts");
        assert!(!membership.may_write(&node(1)));
    }
    let again = succession(&key(5), &root.mesh(), &node(1));
    assert!(b.submit(&[Op::Succeed(again)], Origin::Local).is_err(), "it has handed over");
    let twice = succession(&key(4), &root.mesh(), &node(0));
    assert!(root.submit(&[Op::Succeed(twice)], Origin::Local).is_err(), "that is a member");
}

fn cut() -> Cut {
    Cut::from([(crate::ids::StoreId([16; 32]), (17, Hash([18; 32])))])
}

#[test]
fn the_payload_of_version_1_is_frozen() {
    let ops = [
        Op::Genesis { salt: [1; 32], name: "m".into() },
        Op::AddMember { node: NodeId([2; 32]), name: "n".into(), role: Role::Admin },
        Op::Invite { id: Hash([3; 32]), role: Role::Writer, expires: Millis(4), uses: 5 },
        Op::Redeem(Redeem { invite: [6; 32], signature: [7; 64], node: NodeId([8; 32]), name: "r".into() }),
        Op::CreateStore { name: "s".into(), kind: "kv".into() },
        Op::DeleteStore { id: crate::ids::StoreId([9; 32]) },
        Op::SetName { name: "t".into() },
        Op::Leave,
        Op::Revoke { node: NodeId([10; 32]), cut: cut(), salt: [11; 32] },
        Op::SetRole { node: NodeId([12; 32]), role: Role::Reader, cut: cut() },
        Op::Ban { fork: Fork { one: vec![13].into(), other: vec![14].into() }, cut: cut(), salt: [15; 32] },
        Op::Succeed(Succession { node: NodeId([19; 32]), signature: [20; 64] }),
    ];
    let bytes = wire::encode(&ops);
    assert_eq!(wire::decode(&bytes).unwrap(), ops);
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    assert_eq!(hex, include_str!("../../../tests/frozen/root-payload-v1.hex").trim());
    assert!(wire::decode(&[8, 2]).unwrap_err().starts_with("held"));
}

#[test]
fn the_rows_of_the_state_are_frozen() {
    let clock = clock();
    let (_, genesis) = super::handle::salted(&key(0), &*clock, "mesh", "anna", [1; 32]).unwrap();
    let root = root(0, &genesis, &clock);
    invite(&root, [5; 32], 2);
    submit(&root, Op::Redeem(redeem(&[5; 32], &root.mesh(), node(1), "bob".into())));
    submit(&root, add(2, "carl", Role::Admin));
    submit(&root, Op::CreateStore { name: "work".into(), kind: "kv".into() });
    submit(&root, Op::DeleteStore { id: root.stores()[0].id });
    submit(&root, Op::SetRole { node: node(2), role: Role::Reader, cut: cut() });
    submit(&root, Op::Revoke { node: node(1), cut: cut(), salt: [2; 32] });
    let digest = root.log().state_digest().unwrap();
    let frozen = include_str!("../../../tests/frozen/root-state-v1.blake3").trim();
    assert_eq!(digest.to_string(), frozen, "the state's form changed: stores must be rebuilt");
}

#[test]
fn two_meshes_that_one_key_founded_are_no_proof_of_a_fork() {
    let clock = clock();
    let founded = [1, 2].map(|salt| super::handle::salted(&key(0), &*clock, "mesh", "anna", [salt; 32]).unwrap().1);
    let fork = Fork::of(&founded[0], &founded[1]);
    assert_eq!(super::removal::proven(&fork), None);
}
