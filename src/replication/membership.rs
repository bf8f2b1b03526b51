//! Who belongs to the mesh, as far as this node knows: what validation and every connection ask.
//!
//! The root store's state machine makes it; it is replaced whole when that state changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::ids::{Hash, NodeId, StoreId};

/// What a member may do. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// May read every store.
    Reader,
    /// May write to every store but the root store.
    Writer,
    /// May invite, revoke, declare stores.
    Admin,
}

impl Role {
    /// The role's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Reader, Self::Writer, Self::Admin]
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("'{text}' is not a role: reader, writer or admin"))
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How far a node's entries count: in each store up to this one of its chain, by number and hash, and in a store that is
/// not named not at all.
pub type Cut = BTreeMap<StoreId, (u64, Hash)>;

/// A node that is or was a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The name that it goes by: unique in the mesh, a valid file name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whether it is a member no more: it left, or was removed.
    pub left: bool,
    /// Whether others ended its membership.
    pub removed: bool,
    /// Whether it is proven that it signed two entries for one place: it is removed for good.
    pub forked: bool,
    /// How far its entries count; `None`: all of them do.
    pub cut: Option<Cut>,
}

impl Member {
    /// A present member.
    #[must_use]
    pub fn new(name: impl Into<String>, role: Role) -> Self {
        let cut = (role < Role::Writer).then(Cut::new);
        Self { name: name.into(), role, left: false, removed: false, forked: false, cut }
    }

    /// Whether the entry of this number and hash in its chain in `store` counts, as far as that can be told before the cut's
    /// own entry is here: of two chains that lead to the cut's number, one leads to its hash.
    #[must_use]
    pub fn counts(&self, store: &StoreId, seq: u64, hash: &Hash) -> bool {
        self.cut
            .as_ref()
            .is_none_or(|cut| cut.get(store).is_some_and(|(last, tip)| seq < *last || (seq == *last && hash == tip)))
    }
}

/// The members, present and past.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// By node.
    pub members: BTreeMap<NodeId, Member>,
}

impl Membership {
    /// Whether the node is or was a member, or was let in by mistake: whether it is known what of it counts.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        self.members.contains_key(node)
    }

    /// Whether the node is a member now: whether it may connect.
    #[must_use]
    pub fn admits(&self, node: &NodeId) -> bool {
        self.members.get(node).is_some_and(|member| !member.left)
    }

    /// Whether the node may write now, to stores other than the root store.
    #[must_use]
    pub fn may_write(&self, node: &NodeId) -> bool {
        self.members.get(node).is_some_and(|member| !member.left && member.role >= Role::Writer)
    }

    /// How far a node's entries count in a store: `None` if all do.
    #[must_use]
    pub fn cut(&self, node: &NodeId, store: &StoreId) -> Option<Option<(u64, Hash)>> {
        let cut = self.members.get(node)?.cut.as_ref()?;
        Some(cut.get(store).copied())
    }

    /// The role of a present member.
    #[must_use]
    pub fn role(&self, node: &NodeId) -> Option<Role> {
        self.members.get(node).filter(|member| !member.left).map(|member| member.role)
    }

    /// The name of a node: as the mesh knows it, or else the start of its id.
    #[must_use]
    pub fn name(&self, node: &NodeId) -> String {
        self.members.get(node).map_or_else(|| node.short(), |member| member.name.clone())
    }
}

/// The membership as everyone shares it.
pub type SharedMembership = Arc<ArcSwap<Membership>>;
