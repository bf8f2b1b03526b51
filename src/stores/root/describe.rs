//! What an entry of the root store does, in words.

use super::wire::{self, Op};
use crate::replication::entry::Entry;

/// A line an operation; none of a payload that this build can't read.
#[must_use]
pub fn describe(entry: &Entry) -> Vec<String> {
    wire::decode(entry.payload()).unwrap_or_default().iter().map(line).collect()
}

fn line(op: &Op) -> String {
    match op {
        Op::Genesis { name, .. } => format!("found the mesh {name}"),
        Op::AddMember { node, name, role } => format!("add {name} ({}) as {role}", node.short()),
        Op::Invite { id, role, uses, .. } => format!("invite {} as {role}, for {uses}", id.short()),
        Op::Redeem(redeem) => format!("{} ({}) joins", redeem.name, redeem.node.short()),
        Op::CreateStore { name, kind } => format!("create the store {name} ({kind})"),
        Op::DeleteStore { id } => format!("delete the store {}", id.short()),
        Op::SetName { name } => format!("be called {name}"),
        Op::Leave => "leave".into(),
        Op::Revoke { node, .. } => format!("remove {}", node.short()),
        Op::SetRole { node, role, .. } => format!("make {} a {role}", node.short()),
        Op::Succeed(succession) => format!("go on as {}", succession.node.short()),
        Op::Ban { fork, .. } => match super::removal::proven(fork) {
            Some(node) => format!("ban {}, which forked its chain", node.short()),
            None => "ban a node, without a proof".into(),
        },
    }
}
