//! What an entry of the root store does, in words.

use super::handle::Root;
use super::state::State;
use super::wire::{self, Op};
use crate::ids::{NodeId, StoreId};
use crate::replication::entry::Entry;

impl Root {
    /// What an entry of this store does: a line an operation; none of a payload that this build can't read. Members and stores
    /// go by the names that they have now, also those that are no more.
    #[must_use]
    pub fn describe(&self, entry: &Entry) -> Vec<String> {
        let state = self.state();
        wire::decode(entry.payload()).unwrap_or_default().iter().map(|op| line(op, &state)).collect()
    }
}

fn member(node: &NodeId, state: &State) -> String {
    let named = |person: &super::state::Person| format!("{} ({})", person.name, node.short());
    state.members.get(node).map_or_else(|| node.short(), named)
}

fn store(id: &StoreId, state: &State) -> String {
    state.stores.get(id).map_or_else(|| id.short(), |store| format!("{} ({})", store.name, id.short()))
}

fn line(op: &Op, state: &State) -> String {
    match op {
        Op::Genesis { name, .. } => format!("found the mesh {name}"),
        Op::AddMember { node, name, role } => format!("add {name} ({}) as {role}", node.short()),
        Op::Invite { id, role, uses, .. } => format!("invite {} as {role}, for {uses}", id.short()),
        Op::Redeem(redeem) => format!("{} ({}) joins", redeem.name, redeem.node.short()),
        Op::CreateStore { name, kind } => format!("create the store {name} ({kind})"),
        Op::DeleteStore { id } => format!("delete the store {}", store(id, state)),
        Op::SetName { name } => format!("be called {name}"),
        Op::Leave => "leave".into(),
        Op::Revoke { node, .. } => format!("remove {}", member(node, state)),
        Op::SetRole { node, role, .. } => format!("make {} a {role}", member(node, state)),
        Op::Succeed(succession) => format!("go on as {}", succession.node.short()),
        Op::Ban { fork, .. } => match super::removal::proven(fork) {
            Some(node) => format!("ban {}, which forked its chain", member(&node, state)),
            None => "ban a node, without a proof".into(),
        },
    }
}
