//! The fold: what the operations make of the mesh, one after the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::names;
use super::redeem::{Redeem, Refusal, invite_id, is_sound};
use super::wire::Op;
use crate::clock::{Hlc, Millis};
use crate::ids::{Hash, MeshId, NodeId, StoreId};
use crate::replication::membership::{Member, Membership, Role};

/// The place of an entry in its author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) author: NodeId,
    pub(super) seq: u64,
}

/// The causal past of an entry: of each author, the highest number in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past(pub(super) BTreeMap<NodeId, u64>);

/// A role, and the entry that gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    by: Place,
    role: Role,
    /// The member's own last entry in the past of the grant: it answers a departure up to there.
    answers: Option<u64>,
    /// By a use of an invite that others, elsewhere and at the same time, had used up. What the node writes counts,
    /// since some nodes have taken it already and all must agree; but it is not let in any more.
    excess: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Person {
    pub(super) name: String,
    /// In the order of the fold.
    grants: Vec<Grant>,
    /// The member's own entry by which it last left.
    departed: Option<u64>,
    pub(super) by: NodeId,
    pub(super) since: Hlc,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Invited {
    by: Place,
    pub(super) role: Role,
    pub(super) expires: Millis,
    pub(super) uses: u32,
    /// Who used it, and in which entry, in the order of the fold: those beyond `uses` were not let in.
    pub(super) used: Vec<(NodeId, Place)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Store {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) by: NodeId,
    pub(super) hlc: Hlc,
    pub(super) deleted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mesh {
    pub(super) name: String,
    pub(super) salt: [u8; 32],
}

/// The state of the root store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) mesh: Option<Mesh>,
    pub(super) members: BTreeMap<NodeId, Person>,
    pub(super) invites: BTreeMap<Hash, Invited>,
    pub(super) stores: BTreeMap<StoreId, Store>,
}

/// Whose operations are judged, and on what past; `past` is `None` of an entry to be signed now: it will have seen all.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) mesh: MeshId,
    pub(super) genesis: bool,
    pub(super) hash: Hash,
    pub(super) place: Place,
    pub(super) hlc: Hlc,
    pub(super) past: Option<&'a Past>,
}

impl Context<'_> {
    /// Whether the author had seen the entry at `place`, or is in it.
    fn has_seen(&self, place: &Place) -> bool {
        match self.past {
            None => true,
            Some(_) if place.author == self.place.author => place.seq <= self.place.seq,
            Some(past) => past.0.get(&place.author).is_some_and(|seq| place.seq <= *seq),
        }
    }

    /// The last entry of `node` that the author had seen.
    fn last_of(&self, node: &NodeId) -> Option<u64> {
        match self.past {
            None => Some(u64::MAX),
            Some(_) if *node == self.place.author => Some(self.place.seq),
            Some(past) => past.0.get(node).copied(),
        }
    }
}

impl Person {
    /// The highest role by those of the grants that `counts`, unless it left and none of them answers that.
    fn role(&self, counts: impl Fn(&Grant) -> bool, departed: Option<u64>) -> Option<Role> {
        let standing = |grant: &&Grant| counts(grant) && departed.is_none_or(|seq| grant.answers >= Some(seq));
        self.grants.iter().filter(standing).map(|grant| grant.role).max()
    }

    pub(super) fn present(&self) -> Option<Role> {
        self.role(|grant| !grant.excess, self.departed)
    }

    /// What others see. Whoever might write once may write in this view for ever, though it left: which entries count
    /// must not hang on when they came.
    fn member(&self) -> Member {
        let present = self.present();
        let ever = self.grants.iter().map(|grant| grant.role).max().unwrap_or(Role::Reader);
        let role = present.unwrap_or(Role::Reader).max(ever.min(Role::Writer));
        Member { name: self.name.clone(), role, left: present.is_none() }
    }
}

/// The id of the store that operation `op` of entry `entry` declares.
pub(super) fn store_id(entry: &Hash, op: usize) -> StoreId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"lattice/store/1\0").update(&entry.0).update(&(op as u64).to_be_bytes());
    StoreId(hasher.finalize().into())
}

impl State {
    pub(super) fn membership(&self) -> Membership {
        Membership { members: self.members.iter().map(|(node, person)| (*node, person.member())).collect() }
    }

    /// The author's role, as the entry's past has it.
    fn authority(&self, context: &Context<'_>) -> Option<Role> {
        if context.genesis {
            return Some(Role::Admin);
        }
        let person = self.members.get(&context.place.author)?;
        // A chain is a line: of its own departures the author has seen those before this entry.
        let departed = person.departed.filter(|seq| *seq < context.place.seq);
        person.role(|grant| context.has_seen(&grant.by), departed)
    }

    /// Applies an operation, or says why it does nothing.
    pub(super) fn apply(&mut self, context: &Context<'_>, place: usize, op: Op) -> Result<(), String> {
        let role = self.authority(context).ok_or("its author was no member when it was written")?;
        let needed = match &op {
            Op::Genesis { .. }
            | Op::AddMember { .. }
            | Op::Invite { .. }
            | Op::CreateStore { .. }
            | Op::DeleteStore { .. } => Role::Admin,
            Op::Redeem(_) | Op::SetName { .. } | Op::Leave => Role::Reader,
        };
        if role < needed {
            return Err(format!("only an admin may do this, and its author was a {role} when it was written"));
        }
        match op {
            Op::Genesis { salt, name } => self.found(context, salt, name),
            Op::AddMember { node, name, role } => self.add(context, node, &name, role, false),
            Op::Invite { id, role, expires, uses } => self.invite(context, id, role, expires, uses),
            Op::Redeem(redeem) => self.redeem(context, &redeem),
            Op::CreateStore { name, kind } => self.create(context, place, &name, kind),
            Op::DeleteStore { id } => match self.stores.get_mut(&id).filter(|store| !store.deleted) {
                None => Err("there is no such store".into()),
                Some(store) => {
                    store.deleted = true;
                    Ok(())
                }
            },
            Op::SetName { name } => self.rename(context.place.author, &name),
            Op::Leave => {
                if let Some(person) = self.members.get_mut(&context.place.author) {
                    person.departed = Some(context.place.seq);
                }
                Ok(())
            }
        }
    }

    fn found(&mut self, context: &Context<'_>, salt: [u8; 32], name: String) -> Result<(), String> {
        if !context.genesis || self.mesh.is_some() {
            return Err("a mesh is founded once, by its first entry".into());
        }
        names::check(&name).map_err(|error| error.to_string())?;
        self.mesh = Some(Mesh { name, salt });
        Ok(())
    }

    fn add(&mut self, context: &Context<'_>, node: NodeId, name: &str, role: Role, excess: bool) -> Result<(), String> {
        if !is_sound(&node.0) {
            return Err(Refusal::Key(node).to_string());
        }
        names::check(name).map_err(|error| error.to_string())?;
        let grant = Grant { by: context.place, role, answers: context.last_of(&node), excess };
        if let Some(person) = self.members.get_mut(&node) {
            person.grants.push(grant);
            return Ok(());
        }
        let name = names::unique(name, &node.0, |name| self.members.values().any(|person| person.name == name));
        let person = Person { name, grants: vec![grant], departed: None, by: context.place.author, since: context.hlc };
        self.members.insert(node, person);
        Ok(())
    }

    fn invite(
        &mut self,
        context: &Context<'_>,
        id: Hash,
        role: Role,
        expires: Millis,
        uses: u32,
    ) -> Result<(), String> {
        if uses == 0 {
            return Err("an invite for nobody".into());
        }
        if self.invites.contains_key(&id) {
            return Err("there is such an invite already".into());
        }
        self.invites.insert(id, Invited { by: context.place, role, expires, uses, used: Vec::new() });
        Ok(())
    }

    /// Whether the invite may be used so at `now`, by somebody who has `seen` what made it and who used it.
    pub(super) fn check_redeem(
        &self,
        mesh: &MeshId,
        redeem: &Redeem,
        now: Millis,
        seen: impl Fn(&Place) -> bool,
    ) -> Result<&Invited, Refusal> {
        let invited = self.invites.get(&invite_id(&redeem.invite)).filter(|invited| seen(&invited.by));
        let invited = invited.filter(|_| redeem.is_signed(mesh)).ok_or(Refusal::Unknown)?;
        if now > invited.expires {
            return Err(Refusal::Expired { at: invited.expires });
        }
        let used = invited.used.iter().filter(|(_, place)| seen(place)).count();
        if used >= invited.uses as usize && !self.is_again(invited, &redeem.node) {
            return Err(Refusal::UsedUp { uses: invited.uses });
        }
        if !is_sound(&redeem.node.0) {
            return Err(Refusal::Key(redeem.node));
        }
        names::check(&redeem.name)?;
        Ok(invited)
    }

    /// Whether the node joined by this invite and is here still: using it again takes nothing.
    fn is_again(&self, invited: &Invited, node: &NodeId) -> bool {
        let present = self.members.get(node).is_some_and(|person| person.present().is_some());
        present && invited.used.iter().any(|(user, _)| user == node)
    }

    /// Uses are counted on the entry's past, like all authority: so what one node has let count, all will. Where that
    /// lets in more than the invite has uses, the later in the order of the fold are not let in.
    fn redeem(&mut self, context: &Context<'_>, redeem: &Redeem) -> Result<(), String> {
        let now = context.hlc.millis();
        let invited = self
            .check_redeem(&context.mesh, redeem, now, |place| context.has_seen(place))
            .map_err(|refusal| refusal.to_string())?;
        let (role, uses) = (invited.role, invited.uses);
        let again = self.is_again(invited, &redeem.node);
        let excess = !again && invited.used.len() >= uses as usize;
        if let Some(invited) = self.invites.get_mut(&invite_id(&redeem.invite)).filter(|_| !again) {
            invited.used.push((redeem.node, context.place));
        }
        self.add(context, redeem.node, &redeem.name, role, excess)?;
        if excess { Err(Refusal::UsedUp { uses }.to_string()) } else { Ok(()) }
    }

    fn create(&mut self, context: &Context<'_>, place: usize, name: &str, kind: String) -> Result<(), String> {
        names::check(name).map_err(|error| error.to_string())?;
        names::check(&kind).map_err(|error| error.to_string())?;
        let id = store_id(&context.hash, place);
        let taken = |name: &str| self.stores.values().any(|store| !store.deleted && store.name == name);
        let name = names::unique(name, &id.0, taken);
        let store = Store { name, kind, by: context.place.author, hlc: context.hlc, deleted: false };
        self.stores.insert(id, store);
        Ok(())
    }

    fn rename(&mut self, node: NodeId, name: &str) -> Result<(), String> {
        names::check(name).map_err(|error| error.to_string())?;
        let taken = |name: &str| self.members.iter().any(|(other, person)| *other != node && person.name == name);
        let name = names::unique(name, &node.0, taken);
        if let Some(person) = self.members.get_mut(&node) {
            person.name = name;
        }
        Ok(())
    }
}
