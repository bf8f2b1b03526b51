//! The handle on the root store, and the making of a new mesh.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;

use super::machine::Machine;
use super::names::{self, BadName};
use super::redeem::{Redeem, Refusal};
use super::state::{Context, Place, State};
use super::wire::{self, Op};
use crate::clock::{Clock, Hlc, Millis};
use crate::ids::{Hash, MeshId, NodeId, StoreId};
use crate::replication::database::DatabaseError;
use crate::replication::entry::{Entry, Fork, Header, Malformed};
use crate::replication::limits;
use crate::replication::log::{Log, Origin, Parts, Receipt, SubmitError};
use crate::replication::membership::{Role, SharedMembership};

/// What can go wrong with an operation on the mesh.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It would do nothing.
    #[error("{0}")]
    Refused(String),
    /// The operations don't fit one entry.
    #[error("the change takes {size} bytes, an entry holds {limit}", limit = limits::PAYLOAD)]
    TooLarge {
        /// What it takes.
        size: usize,
    },
    /// The entry was not signed.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The store's file.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Why a mesh can't be founded.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// The mesh's or the node's name can't be a name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The entry can't be made.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// A member, present or past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// The node.
    pub id: NodeId,
    /// Its name, unique in the mesh.
    pub name: String,
    /// What it may do, or last might.
    pub role: Role,
    /// Whether it is a member no more.
    pub left: bool,
    /// Whether others ended its membership.
    pub removed: bool,
    /// Who brought it in.
    pub by: NodeId,
    /// When.
    pub since: Hlc,
}

/// An invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Its id.
    pub id: Hash,
    /// What those who join by it may do.
    pub role: Role,
    /// When it ends.
    pub expires: Millis,
    /// How many may join by it.
    pub uses: u32,
    /// Who did.
    pub used: Vec<NodeId>,
}

/// A store that the mesh has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its id.
    pub id: StoreId,
    /// Its name, unique in the mesh.
    pub name: String,
    /// Its type: `kv`, `chat`.
    pub kind: String,
    /// Who declared it.
    pub by: NodeId,
    /// When.
    pub hlc: Hlc,
}

/// The root store.
#[derive(Debug)]
pub struct Root {
    log: Arc<Log>,
    machine: Arc<Machine>,
}

impl Root {
    /// Opens the root store in the file at `path`; `parts.machine` is replaced. `parts.membership` is kept up to date from
    /// here on.
    ///
    /// # Errors
    /// If the file can't be opened, is in use or is damaged.
    pub fn open(path: &Path, cache: usize, parts: Parts) -> Result<Self, DatabaseError> {
        let machine = Arc::new(Machine::new(Arc::clone(&parts.membership)));
        let log = Log::open(path, cache, Parts { machine: Arc::clone(&machine) as _, ..parts })?;
        Self::with(Arc::new(log), machine)
    }

    /// On a log that `machine` belongs to.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn with(log: Arc<Log>, machine: Arc<Machine>) -> Result<Self, DatabaseError> {
        machine.resume(&log.database().view()?)?;
        Ok(Self { log, machine })
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.machine.state()
    }

    /// The log below.
    #[must_use]
    pub const fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The mesh.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        MeshId(self.log.store().0)
    }

    /// The members as validation and connections see them.
    #[must_use]
    pub fn membership(&self) -> &SharedMembership {
        self.log.membership()
    }

    /// The mesh's name; empty before its first entry is here.
    #[must_use]
    pub fn name(&self) -> String {
        self.machine.state().mesh.as_ref().map(|mesh| mesh.name.clone()).unwrap_or_default()
    }

    /// The random bytes that only members know; zeros before the mesh's first entry is here.
    #[must_use]
    pub fn salt(&self) -> [u8; 32] {
        self.machine.state().salt().unwrap_or_default()
    }

    /// Whether the mesh's first entry is here.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        self.machine.state().mesh.is_some()
    }

    /// All members, present and past, by id.
    #[must_use]
    pub fn members(&self) -> Vec<MemberInfo> {
        let state = self.machine.state();
        let membership = state.membership();
        let info = |(id, member): (NodeId, crate::replication::membership::Member)| {
            let person = state.members.get(&id)?;
            let (by, since) = (person.by, person.since);
            let (role, left, removed) = (member.role, member.left, member.removed);
            Some(MemberInfo { id, name: member.name, role, left, removed, by, since })
        };
        membership.members.into_iter().filter_map(info).collect()
    }

    /// The proof that a node signed two entries for one place, if that is recorded.
    #[must_use]
    pub fn proof(&self, node: &NodeId) -> Option<Fork> {
        self.machine.state().proof(node).cloned()
    }

    /// All invites, also expired and used-up ones.
    #[must_use]
    pub fn invites(&self) -> Vec<Invitation> {
        let state = self.machine.state();
        let invitation = |(id, invited): (&Hash, &super::state::Invited)| Invitation {
            id: *id,
            role: invited.role,
            expires: invited.expires,
            uses: invited.uses,
            used: invited.used.iter().take(invited.uses as usize).map(|(node, _)| *node).collect(),
        };
        state.invites.iter().map(invitation).collect()
    }

    /// The stores that the mesh has, by name.
    #[must_use]
    pub fn stores(&self) -> Vec<Declared> {
        self.declared(false)
    }

    /// The stores that it had and that were deleted, by name.
    #[must_use]
    pub fn deleted(&self) -> Vec<Declared> {
        self.declared(true)
    }

    fn declared(&self, deleted: bool) -> Vec<Declared> {
        let state = self.machine.state();
        let present = state.stores.iter().filter(|(_, store)| store.deleted == deleted);
        let declared = |(id, store): (&StoreId, &super::state::Store)| Declared {
            id: *id,
            name: store.name.clone(),
            kind: store.kind.clone(),
            by: store.by,
            hlc: store.hlc,
        };
        let mut stores: Vec<_> = present.map(declared).collect();
        stores.sort_by(|a, b| a.name.cmp(&b.name));
        stores
    }

    /// Whether a node may join so, now. A node that is a member already may, without another use of the invite.
    ///
    /// # Errors
    /// Why not.
    pub fn check_redeem(&self, redeem: &Redeem) -> Result<(), Refusal> {
        self.machine.state().check_redeem(&self.mesh(), redeem, self.log.now(), |_| true).map(drop)
    }

    /// Signs and applies the operations as one entry, unless one of them would do nothing. Visible when this returns,
    /// durable after [`Log::wait`].
    ///
    /// # Errors
    /// [`RootError::Refused`] with the reason, or if the store takes no writes.
    pub fn submit(&self, ops: &[Op], origin: Origin) -> Result<Receipt, RootError> {
        let payload = wire::encode(ops);
        if payload.len() > limits::PAYLOAD {
            return Err(RootError::TooLarge { size: payload.len() });
        }
        let mut state = State::clone(&self.machine.state());
        let context = Context {
            mesh: self.mesh(),
            genesis: false,
            hash: Hash([0; 32]),
            place: Place { author: self.log.me(), seq: u64::MAX },
            hlc: Hlc::at(self.log.now()),
            past: None,
        };
        for (place, op) in ops.iter().enumerate() {
            if let Op::AddMember { node, role, .. } = op
                && let Some(present) = state.present(node)
                && present >= *role
            {
                return Err(RootError::Refused(format!(
                    "it is a member already, as {present}; a role is only raised so"
                )));
            }
            state.apply(&context, place, op.clone()).map_err(RootError::Refused)?;
        }
        Ok(self.log.submit(&payload, origin)?)
    }

    /// The id of the store that operation `op` of an entry declared.
    #[must_use]
    pub fn store_id(entry: &Hash, op: usize) -> StoreId {
        super::state::store_id(entry, op)
    }
}

/// Founds a mesh: its id, and its first entry, which makes this node its admin and declares the kv store `home` and the chat
/// store `chat`.
///
/// # Errors
/// If a name can't be one.
pub fn genesis(
    key: &SigningKey,
    clock: &dyn Clock,
    mesh_name: &str,
    node_name: &str,
) -> Result<(MeshId, Entry), GenesisError> {
    salted(key, clock, mesh_name, node_name, rand::random())
}

/// [`genesis`] with a given salt.
pub(crate) fn salted(
    key: &SigningKey,
    clock: &dyn Clock,
    mesh_name: &str,
    node_name: &str,
    salt: [u8; 32],
) -> Result<(MeshId, Entry), GenesisError> {
    names::check(mesh_name)?;
    names::check(node_name)?;
    let node = NodeId(key.verifying_key().to_bytes());
    let ops = [
        Op::Genesis { salt, name: mesh_name.to_owned() },
        Op::AddMember { node, name: node_name.to_owned(), role: Role::Admin },
        Op::CreateStore { name: "home".into(), kind: "kv".into() },
        Op::CreateStore { name: "chat".into(), kind: "chat".into() },
    ];
    let header = Header {
        store: StoreId::UNBORN,
        author: node,
        seq: 0,
        prev: None,
        deps: Vec::new(),
        hlc: Hlc::default().next(clock.now()),
        payload_len: 0,
        payload_hash: Hash([0; 32]),
    };
    let entry = Entry::sign(key, header, &wire::encode(&ops))?;
    Ok((MeshId(entry.hash().0), entry))
}

/// For a membership that nothing is known of yet.
#[must_use]
pub fn nobody() -> SharedMembership {
    Arc::new(ArcSwap::default())
}
