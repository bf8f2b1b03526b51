//! The state machine: keeps the fold in its tables, and publishes who belongs to the mesh.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::removal::Removal;
use super::state::{Context, Past, Place, State};
use super::wire;
use crate::ids::{Hash, MeshId, NodeId, StoreId};
use crate::replication::database::{DatabaseError, Flow, Read, Result, Table, Txn};
use crate::replication::entry::Entry;
use crate::replication::log::NOOPS;
use crate::replication::machine::{Change, Effects, StateMachine, What};
use crate::replication::membership::SharedMembership;

const PAST: Table = "past";
const FOLDED: Table = "folded";
const MEMBERS: Table = "members";
const INVITES: Table = "invites";
const DECLARED: Table = "declared";
const REMOVALS: Table = "removals";
const FACTS: Table = "facts";

const MESH: &[u8] = b"mesh";
const SET: &[u8] = b"set";

/// The sections of the state that [`Effects::changes`] names.
pub(super) const SECTIONS: [&str; 4] = ["mesh", "members", "invites", "stores"];

/// A state, and the set of entries that it is the fold of.
#[derive(Debug, Default)]
struct Folded {
    set: [u8; 32],
    state: Arc<State>,
}

/// The root store's state machine.
#[derive(Debug)]
pub struct Machine {
    membership: SharedMembership,
    latest: ArcSwap<Folded>,
}

fn corrupt() -> DatabaseError {
    DatabaseError::Corrupt { path: "root state".into(), what: "a row of the state does not read back".into() }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|_unlikely| corrupt())
}

fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T> {
    postcard::from_bytes(row).map_err(|_damaged| corrupt())
}

fn rows<T: DeserializeOwned, K: Ord>(
    read: &impl Read,
    table: Table,
    key: impl Fn(&[u8]) -> Option<K>,
) -> Result<BTreeMap<K, T>> {
    let mut found = Vec::new();
    read.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |row, value| {
        found.push((row.to_vec(), value.to_vec()));
        Flow::Continue(())
    })?;
    let row = |(row, value): (Vec<u8>, Vec<u8>)| Ok((key(&row).ok_or_else(corrupt)?, decode(&value)?));
    found.into_iter().map(row).collect()
}

fn load(read: &impl Read) -> Result<Folded> {
    let set = read.get(FACTS, SET)?.map_or(Ok([0; 32]), |set| set.try_into().map_err(|_short| corrupt()))?;
    let state = State {
        mesh: read.get(FACTS, MESH)?.map(|row| decode(&row)).transpose()?,
        members: rows(read, MEMBERS, NodeId::from_slice)?,
        invites: rows(read, INVITES, Hash::from_slice)?,
        stores: rows(read, DECLARED, StoreId::from_slice)?,
        removals: rows(read, REMOVALS, NodeId::from_slice)?,
        met: Vec::new(),
    };
    Ok(Folded { set, state: Arc::new(state) })
}

/// Writes what differs between two maps.
fn save<K: Ord + AsRef<[u8]>, T: Serialize + PartialEq>(
    txn: &mut Txn<'_>,
    table: Table,
    before: &BTreeMap<K, T>,
    after: &BTreeMap<K, T>,
) -> Result<()> {
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        txn.remove(table, key.as_ref());
    }
    for (key, value) in after {
        if before.get(key) != Some(value) {
            txn.put(table, key.as_ref(), encode(value)?);
        }
    }
    Ok(())
}

fn order_key(entry: &Entry) -> Vec<u8> {
    [&entry.header().hlc.0.to_be_bytes()[..], &entry.hash().0].concat()
}

impl Machine {
    /// A machine that publishes the members to `membership`.
    #[must_use]
    pub fn new(membership: SharedMembership) -> Self {
        Self { membership, latest: ArcSwap::default() }
    }

    /// Takes up the state that was kept.
    pub(super) fn resume(&self, read: &impl Read) -> Result<()> {
        self.publish(load(read)?);
        Ok(())
    }

    /// The present state.
    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.latest.load().state)
    }

    fn publish(&self, folded: Folded) {
        let membership = folded.state.membership();
        self.latest.store(Arc::new(folded));
        if **self.membership.load() != membership {
            self.membership.store(Arc::new(membership));
        }
    }

    /// The state before this entry; from memory if that is still of the same entries.
    fn before(&self, txn: &Txn<'_>) -> Result<Arc<Folded>> {
        let set = txn.get(FACTS, SET)?;
        let latest = self.latest.load_full();
        if set.as_deref().unwrap_or(&[0; 32]) == latest.set { Ok(latest) } else { load(txn).map(Arc::new) }
    }
}

/// What the author had seen: all that its parents had, and the parents.
fn past(txn: &Txn<'_>, entry: &Entry) -> Result<Past> {
    let mut past = Past::default();
    for parent in entry.header().parents() {
        let row = txn.get(PAST, &parent.0)?.ok_or_else(corrupt)?;
        let (place, more): (Place, Past) = decode(&row)?;
        for (author, seq) in more.0.into_iter().chain([(place.author, place.seq)]) {
            let known = past.0.entry(author).or_insert(seq);
            *known = seq.max(*known);
        }
    }
    Ok(past)
}

/// Folds one more entry into the state, or says what of it does nothing.
fn fold(state: &mut State, store: StoreId, entry: &Entry, past: &Past) -> Option<String> {
    let header = entry.header();
    let genesis = header.store == StoreId::UNBORN;
    let context = Context {
        mesh: MeshId(if genesis { entry.hash().0 } else { store.0 }),
        genesis,
        hash: entry.hash(),
        place: Place { author: header.author, seq: header.seq },
        hlc: header.hlc,
        past: Some(past),
    };
    let ops = match wire::decode(entry.payload()) {
        Ok(ops) => ops,
        Err(reason) => return Some(reason),
    };
    let mut refused = Vec::new();
    for (place, op) in ops.into_iter().enumerate() {
        if let Err(reason) = state.apply(&context, place, op) {
            refused.push(format!("operation {place}: {reason}"));
        }
    }
    (!refused.is_empty()).then(|| refused.join("; "))
}

/// The entries that are folded, in their order, with what their authors had seen.
fn folded(txn: &Txn<'_>) -> Result<Vec<(Entry, Past)>> {
    let mut rows = Vec::new();
    txn.scan(FOLDED, (Bound::Unbounded, Bound::Unbounded), false, &mut |_, bytes| {
        rows.push(bytes.to_vec());
        Flow::Continue(())
    })?;
    let mut entries = Vec::with_capacity(rows.len());
    for bytes in rows {
        let entry = Entry::decode_trusted(bytes.into()).map_err(|_damaged| corrupt())?;
        let row = txn.get(PAST, &entry.hash().0)?.ok_or_else(corrupt)?;
        let (_, past): (Place, Past) = decode(&row)?;
        entries.push((entry, past));
    }
    Ok(entries)
}

/// Folds everything anew, until no removal is met that is not decided, and corrects why the other entries do nothing.
fn refold(txn: &mut Txn<'_>, last: &Entry) -> Result<(State, Option<String>)> {
    let entries = folded(txn)?;
    let mut removals: BTreeMap<NodeId, Vec<Removal>> = BTreeMap::new();
    let (state, mut refused) = loop {
        let mut state = State { removals, ..State::default() };
        let fold = |(entry, past): &(Entry, Past)| (entry.hash(), fold(&mut state, entry.header().store, entry, past));
        let refused: BTreeMap<Hash, Option<String>> = entries.iter().map(fold).collect();
        if state.met.is_empty() {
            break (state, refused);
        }
        let (node, removal) = state.met.swap_remove(0);
        removals = state.removals;
        removals.entry(node).or_default().push(removal);
    };
    let own = refused.remove(&last.hash()).flatten();
    for (hash, refused) in refused {
        let known = txn.get(NOOPS, &hash.0)?;
        match refused {
            Some(reason) if known.as_deref() != Some(reason.as_bytes()) => txn.put(NOOPS, hash.0, reason),
            None if known.is_some() => txn.remove(NOOPS, hash.0),
            Some(_) | None => {}
        }
    }
    Ok((state, own))
}

impl StateMachine for Machine {
    fn kind(&self) -> &'static str {
        "root"
    }

    fn tables(&self) -> &'static [Table] {
        &[PAST, FOLDED, MEMBERS, INVITES, DECLARED, REMOVALS, FACTS]
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        let before = self.before(txn)?;
        let header = entry.header();
        let past = past(txn, entry)?;
        let key = order_key(entry);
        let mut later = false;
        txn.scan(FOLDED, (Bound::Excluded(&key), Bound::Unbounded), false, &mut |_, _| {
            later = true;
            Flow::Break(())
        })?;
        txn.put(PAST, entry.hash().0, encode(&(Place { author: header.author, seq: header.seq }, &past))?);
        txn.put(FOLDED, key, &entry.bytes()[..]);
        let mut state = State::clone(&before.state);
        let mut noop = if later { None } else { fold(&mut state, header.store, entry, &past) };
        if later || !state.met.is_empty() {
            (state, noop) = refold(txn, entry)?;
        }
        let mut set = before.set;
        set.iter_mut().zip(entry.hash().0).for_each(|(set, hash)| *set ^= hash);
        txn.put(FACTS, SET, set);
        if state.mesh != before.state.mesh
            && let Some(mesh) = &state.mesh
        {
            txn.put(FACTS, MESH, encode(mesh)?);
        }
        save(txn, MEMBERS, &before.state.members, &state.members)?;
        save(txn, INVITES, &before.state.invites, &state.invites)?;
        save(txn, DECLARED, &before.state.stores, &state.stores)?;
        save(txn, REMOVALS, &before.state.removals, &state.removals)?;
        let differs = [
            state.mesh != before.state.mesh,
            state.members != before.state.members || state.removals != before.state.removals,
            state.invites != before.state.invites,
            state.stores != before.state.stores,
        ];
        let changes = SECTIONS.iter().zip(differs).filter(|(_, differs)| *differs);
        let changes = changes.map(|(name, _)| Change { key: (*name).into(), what: What::Modified }).collect();
        self.publish(Folded { set, state: Arc::new(state) });
        Ok(Effects { changes, blobs: Vec::new(), noop })
    }
}
