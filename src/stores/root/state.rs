//! The fold: what the operations make of the mesh, one after the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::names;
use super::redeem::{Redeem, Refusal, invite_id, is_sound};
use super::removal::{self, Cut, Removal};
use super::succession::Succession;
use super::wire::Op;
use crate::clock::{Hlc, Millis};
use crate::ids::{Hash, MeshId, NodeId, StoreId};
use crate::replication::entry::Fork;
use crate::replication::membership::{Member, Membership, Role};

/// The place of an entry in its author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// The removals of this member that the grant's author had seen: it takes them back.
    pardons: Vec<Place>,
    /// By a use of an invite that others, elsewhere and at the same time, had used up: it gives nothing.
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

/// What an operation makes of a member.
struct Removed {
    cap: Option<Role>,
    proof: Option<Fork>,
    cut: Cut,
    salt: Option<[u8; 32]>,
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
    /// The removals that count. They are decided one after the other, in the order of the fold, and one that is decided stands:
    /// what an author wrote beside its own removal gives nobody the authority for another.
    pub(super) removals: BTreeMap<NodeId, Vec<Removal>>,
    /// Those that the fold met and that are not decided yet.
    pub(super) met: Vec<(NodeId, Removal)>,
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
    pub(super) fn has_seen(&self, place: &Place) -> bool {
        match self.past {
            None => true,
            Some(_) if place.author == self.place.author => place.seq <= self.place.seq,
            Some(past) => past.0.get(&place.author).is_some_and(|seq| place.seq <= *seq),
        }
    }

    /// The last entry of `node` that the author had seen.
    pub(super) fn last_of(&self, node: &NodeId) -> Option<u64> {
        match self.past {
            None => Some(u64::MAX),
            Some(_) if *node == self.place.author => Some(self.place.seq),
            Some(past) => past.0.get(node).copied(),
        }
    }
}

impl Person {
    /// The highest role by those of the grants that `counts`. A grant that does not answer a departure gives nothing, and
    /// none gives more than the removals leave, unless it takes them back.
    fn role<'a>(
        &self,
        counts: impl Fn(&Grant) -> bool,
        departed: Option<u64>,
        removals: impl Iterator<Item = &'a Removal> + Clone,
    ) -> Option<Role> {
        let standing =
            |grant: &&Grant| !grant.excess && counts(grant) && departed.is_none_or(|seq| grant.answers >= Some(seq));
        let left = |grant: &Grant| {
            let caps = removals.clone().filter(|removal| !removal.is_pardoned(&grant.pardons));
            caps.map(|removal| removal.cap).fold(Some(grant.role), Option::min)
        };
        self.grants.iter().filter(standing).filter_map(left).max()
    }

    /// What others see. All counts that a node wrote which may write, or left by itself; of one that was removed or may no
    /// longer write, what those who decided it had; and nothing of one that never might.
    fn member(&self, removals: &[Removal]) -> Member {
        let present = self.role(|_| true, self.departed, removals.iter());
        let ever = self.grants.iter().filter(|grant| !grant.excess).map(|grant| grant.role).max();
        let pardoned = |removal: &Removal| self.grants.iter().any(|grant| removal.is_pardoned(&grant.pardons));
        let standing = || removals.iter().filter(|removal| !pardoned(removal));
        let cut = if present >= Some(Role::Writer) {
            None
        } else if ever < Some(Role::Writer) {
            Some(Cut::new())
        } else {
            let deciding = standing().filter(|removal| removal.cap < Some(Role::Writer));
            deciding.map(|removal| removal.cut.clone()).reduce(removal::union)
        };
        let removed = present.is_none() && standing().any(|removal| removal.cap.is_none());
        // Of one that is gone, what it was when it went.
        let lessened = removals.iter().filter(|removal| removal.cap.is_some());
        let last = present.or_else(|| self.role(|_| true, None, lessened));
        let role = last.or(ever).unwrap_or(Role::Reader);
        let forked = removals.iter().any(|removal| removal.proof.is_some());
        Member { name: self.name.clone(), role, left: present.is_none(), removed, forked, cut }
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
        let member = |(node, person): (&NodeId, &Person)| (*node, person.member(self.removals_of(node)));
        Membership { members: self.members.iter().map(member).collect() }
    }

    /// The proof that a node forked its chain: of several that which comes first in the order of the fold.
    pub(super) fn proof(&self, node: &NodeId) -> Option<&Fork> {
        let proven = self.removals_of(node).iter().filter(|removal| removal.proof.is_some());
        proven.min_by_key(|removal| removal.order).and_then(|removal| removal.proof.as_ref())
    }

    fn removals_of(&self, node: &NodeId) -> &[Removal] {
        self.removals.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// What a node may do now.
    pub(super) fn present(&self, node: &NodeId) -> Option<Role> {
        let person = self.members.get(node)?;
        person.role(|_| true, person.departed, self.removals_of(node).iter())
    }

    /// What a node might do as far as an author had seen.
    fn seen(&self, context: &Context<'_>, node: &NodeId) -> Option<Role> {
        let person = self.members.get(node)?;
        let departed = person.departed.filter(|seq| context.last_of(node) >= Some(*seq));
        let removals = self.removals_of(node).iter().filter(|removal| context.has_seen(&removal.by));
        person.role(|grant| context.has_seen(&grant.by), departed, removals)
    }

    /// The author's role, as the entry's past has it. What it wrote beside its own removal, without having seen it, has the
    /// authority that the removal left; but `removing`, it is judged by what it had seen alone: so two who remove each other
    /// at the same time are both removed.
    fn authority(&self, context: &Context<'_>, removing: bool) -> Option<Role> {
        if context.genesis {
            return Some(Role::Admin);
        }
        let author = context.place.author;
        let person = self.members.get(&author)?;
        // A chain is a line: of its own departures the author has seen those before this entry.
        let departed = person.departed.filter(|seq| *seq < context.place.seq);
        let beside = |removal: &Removal| removal.upto.is_none_or(|upto| upto < context.place.seq);
        let hits = |removal: &&Removal| if removing { context.has_seen(&removal.by) } else { beside(removal) };
        let removals = self.removals_of(&author).iter().filter(hits);
        person.role(|grant| context.has_seen(&grant.by), departed, removals)
    }

    /// Applies an operation, or says why it does nothing.
    pub(super) fn apply(&mut self, context: &Context<'_>, place: usize, op: Op) -> Result<(), String> {
        let decided =
            self.removals.values().flatten().any(|removal| (removal.by, removal.op) == (context.place, place));
        if decided {
            return Ok(());
        }
        let removing = matches!(op, Op::Revoke { .. } | Op::SetRole { .. } | Op::Ban { .. } | Op::Leave);
        let role = self.authority(context, removing).ok_or("its author was no member when it was written")?;
        let needed = match &op {
            Op::Genesis { .. }
            | Op::AddMember { .. }
            | Op::Invite { .. }
            | Op::CreateStore { .. }
            | Op::DeleteStore { .. }
            | Op::Revoke { .. }
            | Op::SetRole { .. } => Role::Admin,
            Op::Redeem(_) | Op::SetName { .. } | Op::Leave | Op::Ban { .. } | Op::Succeed(_) => Role::Reader,
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
            Op::Revoke { node, cut, salt } => self.revoke(context, place, node, cut, salt),
            Op::SetRole { node, role, cut } => self.set_role(context, place, node, role, cut),
            Op::Succeed(succession) => self.succeed(context, role, &succession),
            Op::Ban { fork, cut, salt } => self.ban(context, place, fork, cut, salt),
        }
    }

    /// The mesh's salt: that of the last removal, so that who was removed does not know where the others gossip.
    pub(super) fn salt(&self) -> Option<[u8; 32]> {
        let mesh = self.mesh.as_ref()?;
        let salts = self.removals.values().flatten().filter_map(|removal| Some((removal.order, removal.salt?)));
        Some(salts.max().map_or(mesh.salt, |(_, salt)| salt))
    }

    fn remove(&mut self, context: &Context<'_>, op: usize, node: NodeId, removal: Removed) -> Result<(), String> {
        let Removed { cap, proof, cut, salt } = removal;
        let order = (context.hlc, context.hash);
        let upto = context.last_of(&node);
        self.met.push((node, Removal { by: context.place, op, order, upto, cap, proof, cut, salt }));
        Ok(())
    }

    fn revoke(
        &mut self,
        context: &Context<'_>,
        op: usize,
        node: NodeId,
        cut: Cut,
        salt: [u8; 32],
    ) -> Result<(), String> {
        if node == context.place.author {
            return Err("who wants to go itself, leaves".into());
        }
        // Also one that left: what it wrote since need not count.
        if self.seen(context, &node).is_none() && !self.members.contains_key(&node) {
            return Err("there is no such member".into());
        }
        self.remove(context, op, node, Removed { cap: None, proof: None, cut, salt: Some(salt) })
    }

    fn set_role(&mut self, context: &Context<'_>, op: usize, node: NodeId, role: Role, cut: Cut) -> Result<(), String> {
        let name = self.members.get(&node).map(|person| person.name.clone()).unwrap_or_default();
        match self.seen(context, &node) {
            None => Err("there is no such member".into()),
            Some(present) if present == role => Err(format!("it is {present} already")),
            Some(present) if role > present => self.add(context, node, &name, role, false),
            Some(_) => self.remove(context, op, node, Removed { cap: Some(role), proof: None, cut, salt: None }),
        }
    }

    fn ban(&mut self, context: &Context<'_>, op: usize, fork: Fork, cut: Cut, salt: [u8; 32]) -> Result<(), String> {
        let node = removal::proven(&fork).ok_or("the two headers prove no fork")?;
        if !self.members.contains_key(&node) {
            return Err("there is no such member".into());
        }
        self.remove(context, op, node, Removed { cap: None, proof: Some(fork), cut, salt: Some(salt) })
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
        let seen = self.removals_of(&node).iter().filter(|removal| context.has_seen(&removal.by));
        if seen.clone().any(|removal| removal.proof.is_some()) {
            return Err("it forked its chain and is banned for good; it may join with a new identity".into());
        }
        let pardons = seen.map(|removal| removal.by).collect();
        let grant = Grant { by: context.place, role, answers: context.last_of(&node), pardons, excess };
        if let Some(person) = self.members.get_mut(&node) {
            person.grants.push(grant);
            return Ok(());
        }
        let name = names::unique(name, &node.0, |name| self.members.values().any(|person| person.name == name));
        let (by, since) = (context.place.author, context.hlc);
        let person = Person { name, grants: vec![grant], departed: None, by, since };
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
        self.present(node).is_some() && invited.used.iter().any(|(user, _)| user == node)
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

    /// The author's role and name go to another key; what it wrote stays its own.
    fn succeed(&mut self, context: &Context<'_>, role: Role, succession: &Succession) -> Result<(), String> {
        let (before, node) = (context.place.author, succession.node);
        if !succession.is_signed(&context.mesh, &before) {
            return Err("the new key has not signed for it".into());
        }
        if self.members.contains_key(&node) {
            return Err("the new key is or was a member already".into());
        }
        let Some(name) = self.members.get(&before).map(|person| person.name.clone()) else {
            return Err("there is no such member".into());
        };
        let aside = names::unique(&name, &before.0, |name| self.members.values().any(|person| person.name == name));
        if let Some(person) = self.members.get_mut(&before) {
            person.departed = Some(context.place.seq);
            person.name = aside;
        }
        let answers = context.last_of(&node);
        let grant = Grant { by: context.place, role, answers, pardons: Vec::new(), excess: false };
        let (by, since) = (before, context.hlc);
        self.members.insert(node, Person { name, grants: vec![grant], departed: None, by, since });
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
