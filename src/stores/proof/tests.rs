//! What a proof shows, and what is refused.

use std::sync::Arc;

use super::*;
use crate::clock::{Clock, Manual};
use crate::replication::log::{Origin, Parts, events};
use crate::replication::membership::{Cut, Role};
use crate::stores::kv::{Kind, Machine, Op, Value};
use crate::stores::merge::Merge;
use crate::stores::root::{self, Op as RootOp, nobody, salted, succession};
use crate::stores::testing::{Shelf, clock, key, memory, node};

struct Peer {
    n: u8,
    root: Root,
    kv: Kv,
}

/// Node `n`'s stores of the mesh that `genesis` founds.
fn peer(n: u8, genesis: &Entry, clock: &Arc<Manual>) -> Peer {
    let membership = nobody();
    let machine = Arc::new(root::Machine::new(Arc::clone(&membership)));
    let parts = |store, machine| Parts {
        store,
        key: key(n),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        machine,
        membership: Arc::clone(&membership),
        events: events(),
    };
    let log = Log::with(memory(), parts(StoreId(genesis.hash().0), Arc::clone(&machine) as _)).unwrap();
    let root = Root::with(Arc::new(log), machine).unwrap();
    root.log().found(genesis).unwrap();
    let home = root.stores().into_iter().find(|store| store.name == "home").unwrap().id;
    let log = Log::with(memory(), parts(home, Arc::new(Machine))).unwrap();
    Peer { n, root, kv: Kv::new(Arc::new(log), Arc::new(Shelf::default())) }
}

impl Peer {
    /// Takes what the other has.
    fn pull(&self, other: &Self) {
        for (mine, theirs) in [(self.root.log(), other.root.log()), (self.kv.log(), other.kv.log())] {
            theirs.database().flush().unwrap();
            let view = theirs.database().durable().unwrap();
            let all = theirs.numbered(&view, 0, theirs.numbers(&view).unwrap()).unwrap();
            mine.include(&all.into_values().collect::<Vec<_>>(), Origin::Pulled).unwrap();
            mine.align().unwrap();
        }
    }

    fn submit(&self, op: Op) -> Entry {
        let hash = self.kv.submit(vec![op], Origin::Local).unwrap().hash;
        self.kv.log().get(&self.kv.log().database().view().unwrap(), &hash).unwrap().unwrap()
    }

    fn put(&self, path: &str, text: &str) -> Entry {
        let value = self.kv.value(text.as_bytes()).unwrap();
        self.submit(Op::Put {
            path: path.into(),
            supersedes: self.heads(path),
            kind: Kind::File,
            mode: 0o640,
            mtime: 7,
            value,
        })
    }

    fn heads(&self, path: &str) -> Vec<kv::HeadId> {
        self.kv.heads(path.as_bytes()).unwrap().iter().flat_map(Merge::all).map(|head| head.id).collect()
    }

    /// An entry that follows this node's chain, or begins it, whether it may write or not.
    fn signed(&self, prev: Option<&Entry>, path: &str) -> Entry {
        let scratch = Kv::new(crate::stores::testing::log(self.n, Machine, clock()), Arc::new(Shelf::default()));
        let value = Value::Bytes(path.into());
        let (path, kind) = (path.into(), Kind::File);
        let op = Op::Put { path, supersedes: Vec::new(), kind, mode: 0o644, mtime: 0, value };
        let made = scratch.submit(vec![op], Origin::Local).unwrap();
        let made = scratch.log().get(&scratch.log().database().view().unwrap(), &made.hash).unwrap().unwrap();
        let header = Header {
            store: self.kv.log().store(),
            seq: prev.map_or(0, |prev| prev.header().seq + 1),
            prev: prev.map(Entry::hash),
            ..made.header().clone()
        };
        Entry::sign(&key(self.n), header, made.payload()).unwrap()
    }

    fn proof(&self, entry: &Entry) -> Proof {
        Proof::of(&self.root, self.kv.log(), entry.clone(), Some(0)).unwrap()
    }

    fn add(&self, n: u8, name: &str, role: Role) {
        let op = RootOp::AddMember { node: node(n), name: name.into(), role };
        self.root.submit(&[op], Origin::Local).unwrap();
    }

    /// What this node has of another: how far that one's entries count when it goes.
    fn cut(&self, n: u8) -> Cut {
        let log = self.kv.log();
        let tip = log.tip(&log.database().view().unwrap(), &node(n)).unwrap();
        tip.map(|tip| (log.store(), (tip.seq, tip.hash))).into_iter().collect()
    }

    fn revoke(&self, n: u8) {
        let op = RootOp::Revoke { node: node(n), cut: self.cut(n), salt: [9; 32] };
        self.root.submit(&[op], Origin::Local).unwrap();
        self.kv.log().align().unwrap();
    }
}

/// A mesh by its first admin, anna, and a writer, bob, who has all of it.
fn mesh() -> (Peer, Peer) {
    let clock = clock();
    let (_, genesis) = salted(&key(0), &*clock, "ours", "anna", [3; 32]).unwrap();
    let anna = peer(0, &genesis, &clock);
    anna.add(1, "bob", Role::Writer);
    let bob = peer(1, &genesis, &clock);
    bob.pull(&anna);
    (anna, bob)
}

/// What somebody who has only the file comes to.
fn checked(proof: &Proof) -> Result<Proven, Refused> {
    Proof::decode(proof.encode()).and_then(|proof| proof.check(None))
}

fn refusal(proof: &Proof) -> String {
    checked(proof).unwrap_err().to_string()
}

#[test]
fn a_proof_made_by_one_shows_what_another_wrote() {
    let (anna, bob) = mesh();
    let entry = anna.put("notes/today", "buy bread");
    bob.pull(&anna);
    let proven = checked(&bob.proof(&entry)).unwrap();
    assert_eq!((proven.mesh, proven.mesh_name.as_str()), (anna.root.mesh(), "ours"));
    assert_eq!((proven.store.name.as_str(), proven.store.kind.as_str(), proven.deleted), ("home", "kv", false));
    assert_eq!((proven.author.id, proven.author.name.as_str(), proven.author.role), (node(0), "anna", Role::Admin));
    assert_eq!((proven.entry, proven.root_entries), (entry.clone(), 2));
    let [Written { path, head, bytes }] = &proven.writes[..] else { panic!("{:?}", proven.writes) };
    assert_eq!(
        (path.as_slice(), head.kind, head.mode, head.hlc),
        (&b"notes/today"[..], Kind::File, 0o640, entry.header().hlc)
    );
    assert_eq!(head.content.hash(), Hash::from(blake3::hash(b"buy bread")));
    assert_eq!(bytes.as_deref(), Some(&b"buy bread"[..]));
    assert!(bob.proof(&entry).check(Some(anna.root.mesh())).is_ok());
}

#[test]
fn deletions_large_values_and_new_attributes_are_proven_too() {
    let (anna, _) = mesh();
    let large = "x".repeat(20_000);
    let one = |entry: &Entry| checked(&anna.proof(entry)).unwrap().writes.remove(0);
    let written = one(&anna.put("large", &large));
    assert_eq!(
        (written.head.content.hash(), written.head.content.size()),
        (blake3::hash(large.as_bytes()).into(), 20_000)
    );
    assert_eq!(written.bytes, None);
    anna.put("small", "text");
    let head = *anna.kv.heads(b"small").unwrap().unwrap().lww();
    let moded = one(&anna.submit(kv::Head { mode: 0o600, ..head }.again("small".into(), vec![head.id])));
    assert_eq!((moded.head.mode, moded.head.content.hash()), (0o600, blake3::hash(b"text").into()));
    assert_eq!(moded.bytes, None, "it is in the entry before");
    let gone = one(&anna.submit(Op::Delete { path: "small".into(), supersedes: anna.heads("small") }));
    assert_eq!((gone.path.as_slice(), gone.head.kind), (&b"small"[..], Kind::Deleted));
}

#[test]
fn an_entry_alone_is_proven_with_all_its_writes() {
    let (anna, _) = mesh();
    let put = |path: &str| Op::Put {
        path: path.into(),
        supersedes: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        mtime: 0,
        value: Value::Empty,
    };
    let hash = anna.kv.submit(vec![put("a"), put("b")], Origin::Local).unwrap().hash;
    let entry = anna.kv.log().get(&anna.kv.log().database().view().unwrap(), &hash).unwrap().unwrap();
    let of = |write| Proof::of(&anna.root, anna.kv.log(), entry.clone(), write).unwrap();
    let paths = |proof: &Proof| -> Vec<Vec<u8>> {
        checked(proof).unwrap().writes.into_iter().map(|written| written.path).collect()
    };
    assert_eq!(paths(&of(None)), [b"a", b"b"]);
    assert_eq!(paths(&of(Some(1))), [b"b"]);
    assert!(matches!(checked(&of(Some(2))), Err(Refused::Write { write: 2, .. })));
}

fn resealed(mut bytes: Vec<u8>) -> Bytes {
    let end = bytes.len() - 32;
    let checksum = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(checksum.as_bytes());
    bytes.into()
}

#[test]
fn a_changed_byte_anywhere_and_every_truncation_is_refused_under_a_right_checksum_too() {
    let (anna, bob) = mesh();
    let entries = [bob.put("a", "1"), bob.put("b", "2")];
    anna.pull(&bob);
    anna.revoke(1);
    let proof = anna.proof(&entries[0]);
    assert_eq!((proof.headers.len(), proof.root.len()), (1, 3));
    let bytes = proof.encode();
    let check = |bytes: Bytes| Proof::decode(bytes).and_then(|proof| proof.check(Some(anna.root.mesh())));
    assert!(check(bytes.clone()).is_ok());
    assert!(check(resealed(bytes.to_vec())).is_ok());
    for place in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[place] ^= 1 << (place % 8);
        let refused = check(changed.clone().into()).expect_err("a changed byte");
        let other =
            [Refused::Other.to_string(), Refused::Version(changed[14]).to_string(), Refused::Damaged.to_string()];
        assert!(other.contains(&refused.to_string()), "byte {place}: {refused}");
        if place < bytes.len() - 32 {
            assert!(check(resealed(changed)).is_err(), "byte {place} may be changed");
        }
        assert!(check(bytes.slice(..place)).is_err(), "cut to {place} bytes");
        if place > 32 {
            assert!(check(resealed(bytes[..place].to_vec())).is_err(), "cut to {place} bytes");
        }
    }
    let longer = [&bytes[..bytes.len() - 32], &[0; 33]].concat();
    assert!(matches!(check(resealed(longer)), Err(Refused::Form("end"))));
}

#[test]
fn a_file_beyond_its_bounds_is_refused_before_anything_is_made_of_it() {
    assert!(matches!(Proof::decode(vec![0; LARGEST + 1].into()), Err(Refused::TooLarge)));
    let (anna, _) = mesh();
    let proof = anna.proof(&anna.put("a", "1"));
    let bytes = proof.encode();
    // A count that promises four thousand million headers.
    let place = 14 + 1 + 2 + 4 + proof.entry.bytes().len();
    let mut lies = bytes.to_vec();
    lies[place..place + 4].fill(0xff);
    assert!(matches!(Proof::decode(resealed(lies)), Err(Refused::Form(_) | Refused::Malformed(..))));
    assert!(matches!(Proof::decode(b"something else entirely".to_vec().into()), Err(Refused::Other)));
    assert!(matches!(Proof::decode(b"lattice proof\n\x02".to_vec().into()), Err(Refused::Version(2))));
}

#[test]
fn many_roles_and_removals_are_refused_before_they_are_replayed() {
    let (anna, _) = mesh();
    let proof = anna.proof(&anna.put("a", "1"));
    let genesis = &proof.root[0];
    let ops = |op: &RootOp| root::payload(&vec![op.clone(); 300]);
    let add = RootOp::AddMember { node: node(2), name: "c".into(), role: Role::Writer };
    let gone = RootOp::Revoke { node: node(2), cut: Cut::new(), salt: [0; 32] };
    let (mut entries, mut last) = (vec![genesis.clone()], genesis.clone());
    for op in [&add, &gone, &add, &gone] {
        let header = Header {
            store: anna.root.mesh().root(),
            seq: last.header().seq + 1,
            prev: Some(last.hash()),
            hlc: Hlc(last.header().hlc.0 + 1),
            ..last.header().clone()
        };
        last = Entry::sign(&key(0), header, &ops(op)).unwrap();
        entries.push(last.clone());
    }
    let refused = refusal(&Proof { root: entries, ..proof });
    assert!(refused.contains("too much memory"), "{refused}");
}

#[test]
fn what_is_of_another_mesh_is_refused() {
    let (anna, _) = mesh();
    let clock = clock();
    let (other, genesis) = salted(&key(0), &*clock, "theirs", "anna", [4; 32]).unwrap();
    let theirs = peer(0, &genesis, &clock);
    let (proof, elsewhere) = (anna.proof(&anna.put("a", "1")), theirs.proof(&theirs.put("a", "2")));
    let refused = proof.check(Some(other)).unwrap_err();
    assert!(matches!(refused, Refused::Mesh { wanted, .. } if wanted == other), "{refused}");
    let mixed = Proof { entry: elsewhere.entry.clone(), ..proof.clone() };
    assert!(matches!(checked(&mixed), Err(Refused::Store { .. })), "{}", refusal(&mixed));
    let mixed = Proof { root: [&proof.root[..], &elsewhere.root[..1]].concat(), ..proof.clone() };
    assert!(refusal(&mixed).contains("has no place in this mesh"), "{}", refusal(&mixed));
    let headless = Proof { root: proof.root[1..].to_vec(), ..proof.clone() };
    assert!(matches!(checked(&headless), Err(Refused::Root(Unsound::Genesis))));
    let of_root = Proof { entry: proof.root[1].clone(), ..proof };
    assert!(matches!(checked(&of_root), Err(Refused::Store { .. })));
}

#[test]
fn who_is_no_member_or_was_none_as_far_as_the_proof_tells_proves_nothing() {
    let (anna, bob) = mesh();
    let entry = bob.put("a", "1");
    anna.pull(&bob);
    let proof = anna.proof(&entry);
    let before = Proof { root: proof.root[..1].to_vec(), ..proof.clone() };
    assert!(refusal(&before).contains(&format!("is by {}, who is no member", node(1))), "{}", refusal(&before));
    let stranger = Proof { entry: Peer { n: 5, ..bob }.signed(None, "a"), ..proof };
    assert!(matches!(checked(&stranger), Err(Refused::Stranger { author, .. }) if author == node(5)));
}

#[test]
fn a_reader_proves_nothing() {
    let (anna, _) = mesh();
    anna.add(2, "carl", Role::Reader);
    let proof = anna.proof(&anna.put("a", "1"));
    let carl = Peer { n: 2, ..anna };
    let refused = refusal(&Proof { entry: carl.signed(None, "a"), ..proof });
    assert!(
        refused.contains("its author carl is a reader, and nothing that it wrote to this store counts"),
        "{refused}"
    );
}

#[test]
fn of_one_that_was_removed_is_proven_what_counts_and_nothing_else() {
    let (anna, bob) = mesh();
    let entries = ["a", "b", "c"].map(|path| bob.put(path, path));
    anna.pull(&bob);
    anna.revoke(1);
    let beyond = bob.put("late", "x");
    for (place, entry) in entries.iter().enumerate() {
        let proof = anna.proof(entry);
        assert_eq!(proof.headers.len(), 2 - place);
        let proven = checked(&proof).unwrap();
        assert!(proven.author.removed && proven.author.name == "bob");
    }
    let first = anna.proof(&entries[0]);
    let late = Proof { entry: beyond, headers: Vec::new(), ..first.clone() };
    let refused = refusal(&late);
    assert!(
        refused.contains("bob was removed from the mesh, and") && refused.contains("only entries 0 to 2 count"),
        "{refused}"
    );

    let short = Proof { headers: first.headers[..1].to_vec(), ..first.clone() };
    assert!(matches!(checked(&short), Err(Refused::Chain { last, .. }) if last == entries[2].hash()));
    let unordered = Proof { headers: first.headers.iter().rev().cloned().collect(), ..first.clone() };
    assert!(matches!(checked(&unordered), Err(Refused::Chain { .. })));
    // Another entry for the first place, which the chain that counts does not stand on.
    let fork = Proof { entry: bob.signed(None, "forked"), ..first.clone() };
    assert!(matches!(checked(&fork), Err(Refused::Chain { .. })));
    let fork = Proof { entry: bob.signed(Some(&entries[1]), "forked"), headers: Vec::new(), ..first };
    assert!(matches!(checked(&fork), Err(Refused::Chain { .. })));
    let needless = anna.proof(&anna.put("own", "x"));
    let needless = Proof { headers: vec![Bytes::copy_from_slice(entries[0].header_bytes())], ..needless };
    assert!(matches!(checked(&needless), Err(Refused::Form("list of headers"))));
}

#[test]
fn who_goes_on_under_another_key_proves_what_either_key_wrote() {
    let (anna, bob) = mesh();
    let before = bob.put("a", "1");
    let succeed = RootOp::Succeed(succession(&key(2), &bob.root.mesh(), &node(1)));
    bob.root.submit(&[succeed], Origin::Local).unwrap();
    anna.pull(&bob);
    let next = Peer { n: 2, ..bob };
    let after = next.signed(None, "b");
    let proof = anna.proof(&before);
    assert!(checked(&proof).unwrap().author.left);
    let proven = checked(&Proof { entry: after, ..proof }).unwrap();
    assert_eq!((proven.author.name.as_str(), proven.author.role), ("bob", Role::Writer));
}

#[test]
fn a_root_store_with_an_entry_left_out_or_forged_is_refused() {
    let (anna, _) = mesh();
    anna.add(2, "carl", Role::Writer);
    let proof = anna.proof(&anna.put("a", "1"));
    let gap = Proof { root: [&proof.root[..1], &proof.root[2..]].concat(), ..proof.clone() };
    assert!(matches!(checked(&gap), Err(Refused::Root(Unsound::Missing { .. }))), "{}", refusal(&gap));
    let twice = Proof { root: [&proof.root[..], &proof.root[2..]].concat(), ..proof.clone() };
    assert!(refusal(&twice).contains("it is there twice"), "{}", refusal(&twice));
    let mut bytes = proof.root[1].bytes().to_vec();
    let signature = 2 + proof.root[1].header_bytes().len();
    bytes[signature] ^= 1;
    let forged = Entry::decode(bytes.into()).unwrap();
    let forged = Proof { root: [&proof.root[..1], &[forged], &proof.root[2..]].concat(), ..proof.clone() };
    assert!(matches!(checked(&forged), Err(Refused::Root(Unsound::Signature(_)))));
    let mut bytes = proof.entry.bytes().to_vec();
    bytes[2 + proof.entry.header_bytes().len()] ^= 1;
    let forged = Proof { entry: Entry::decode(bytes.into()).unwrap(), ..proof };
    assert!(matches!(checked(&forged), Err(Refused::Signature(_))));
}

#[test]
fn the_bytes_of_version_1_are_frozen() {
    let (anna, bob) = mesh();
    let entry = bob.put("notes/today", "buy bread");
    bob.put("notes/later", "buy milk");
    anna.pull(&bob);
    anna.revoke(1);
    let text = data_encoding::HEXLOWER.encode(&anna.proof(&entry).encode());
    let frozen = include_str!("../../../tests/frozen/proof-v1.hex").trim();
    assert_eq!(text, frozen, "the form changed: that needs a new version");
    let proof = Proof::decode(data_encoding::HEXLOWER.decode(frozen.as_bytes()).unwrap().into()).unwrap();
    assert_eq!(proof.check(None).unwrap().writes[0].path, b"notes/today");
}
