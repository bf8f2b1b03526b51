//! The payload of a root entry: protobuf, version 1.
//!
//! ```text
//! message Payload { uint32 version = 1; repeated Operation operations = 2; }
//! message Operation { oneof action { Genesis genesis = 1; AddMember add_member = 2; Invite invite = 3; Redeem redeem = 4;
//!                     CreateStore create_store = 5; DeleteStore delete_store = 6; SetName set_name = 7; Leave leave = 8;
//!                     Revoke revoke = 9; SetRole set_role = 10; Ban ban = 11; Succeed succeed = 12; } }
//! message Genesis     { bytes salt = 1; string name = 2; }
//! message AddMember   { bytes node = 1; string name = 2; uint32 role = 3; }
//! message Invite      { bytes id = 1; uint32 role = 2; uint64 expires = 3; uint32 uses = 4; }
//! message Redeem      { bytes invite = 1; bytes signature = 2; bytes node = 3; string name = 4; }
//! message CreateStore { string name = 1; string kind = 2; }
//! message DeleteStore { bytes id = 1; }
//! message SetName     { string name = 1; }
//! message Leave       { }
//! message Revoke      { bytes node = 1; repeated Tip cut = 2; bytes salt = 3; }
//! message SetRole     { bytes node = 1; uint32 role = 2; repeated Tip cut = 3; }
//! message Ban         { bytes one = 1; bytes other = 2; repeated Tip cut = 3; bytes salt = 4; }
//! message Succeed     { bytes node = 1; bytes signature = 2; }
//! message Tip         { bytes store = 1; uint64 seq = 2; bytes hash = 3; }
//! ```
//!
//! `role` is 1 reader, 2 writer, 3 admin; `expires` is in milliseconds since the Unix epoch.

use prost::Message;

use super::redeem::Redeem;
use super::succession::Succession;
use crate::clock::Millis;
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::entry::Fork;
use crate::replication::membership::{Cut, Role};

const VERSION: u32 = 1;

/// An operation on the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Founds the mesh; only in its first entry.
    Genesis {
        /// Random bytes that only members know: topics are derived from it.
        salt: [u8; 32],
        /// The mesh's name.
        name: String,
    },
    /// Makes a node a member, or gives it another role. By an admin.
    AddMember {
        /// The node.
        node: NodeId,
        /// The name that it is to have.
        name: String,
        /// What it may do.
        role: Role,
    },
    /// Lets whoever holds a secret join. By an admin.
    Invite {
        /// [`super::invite_id`] of the invite's public key.
        id: Hash,
        /// What those who join by it may do.
        role: Role,
        /// When it ends.
        expires: Millis,
        /// How many nodes may join by it.
        uses: u32,
    },
    /// Makes a node a member by its use of an invite. By any member.
    Redeem(Redeem),
    /// Declares a store; its id follows from the entry and the operation's place. By an admin.
    CreateStore {
        /// The name that it is to have.
        name: String,
        /// The type: `kv`, `chat`.
        kind: String,
    },
    /// Ends a store. By an admin.
    DeleteStore {
        /// The store.
        id: StoreId,
    },
    /// Gives the author another name.
    SetName {
        /// The name.
        name: String,
    },
    /// The author leaves the mesh.
    Leave,
    /// Ends a membership. By an admin.
    Revoke {
        /// Whose.
        node: NodeId,
        /// How far its entries count: what the admin has of them.
        cut: Cut,
        /// The mesh's salt from now on.
        salt: [u8; 32],
    },
    /// Gives a member another role. By an admin.
    SetRole {
        /// The member.
        node: NodeId,
        /// Its role.
        role: Role,
        /// How far its entries count if it may no longer write: what the admin has of them.
        cut: Cut,
    },
    /// Ends the membership of a node that signed two entries for one place, for good. By any member: the proof speaks for itself.
    Ban {
        /// The proof.
        fork: Fork,
        /// How far the node's entries count: what the author has of them.
        cut: Cut,
        /// The mesh's salt from now on.
        salt: [u8; 32],
    },
    /// The author goes on under another key, with the role and the name that it has; this one is a member no more.
    Succeed(Succession),
}

mod message {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Payload {
        #[prost(uint32, tag = "1")]
        pub(super) version: u32,
        #[prost(message, repeated, tag = "2")]
        pub(super) operations: Vec<Operation>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Operation {
        #[prost(oneof = "Action", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
        pub(super) action: Option<Action>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Action {
        #[prost(message, tag = "1")]
        Genesis(Genesis),
        #[prost(message, tag = "2")]
        AddMember(AddMember),
        #[prost(message, tag = "3")]
        Invite(Invite),
        #[prost(message, tag = "4")]
        Redeem(Redeem),
        #[prost(message, tag = "5")]
        CreateStore(CreateStore),
        #[prost(message, tag = "6")]
        DeleteStore(DeleteStore),
        #[prost(message, tag = "7")]
        SetName(SetName),
        #[prost(message, tag = "8")]
        Leave(Leave),
        #[prost(message, tag = "9")]
        Revoke(Revoke),
        #[prost(message, tag = "10")]
        SetRole(SetRole),
        #[prost(message, tag = "11")]
        Ban(Ban),
        #[prost(message, tag = "12")]
        Succeed(Succeed),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Genesis {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) salt: Vec<u8>,
        #[prost(string, tag = "2")]
        pub(super) name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AddMember {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) node: Vec<u8>,
        #[prost(string, tag = "2")]
        pub(super) name: String,
        #[prost(uint32, tag = "3")]
        pub(super) role: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Invite {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) id: Vec<u8>,
        #[prost(uint32, tag = "2")]
        pub(super) role: u32,
        #[prost(uint64, tag = "3")]
        pub(super) expires: u64,
        #[prost(uint32, tag = "4")]
        pub(super) uses: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Redeem {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) invite: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) signature: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub(super) node: Vec<u8>,
        #[prost(string, tag = "4")]
        pub(super) name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct CreateStore {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) kind: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct DeleteStore {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) id: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SetName {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Leave {}

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Tip {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) store: Vec<u8>,
        #[prost(uint64, tag = "2")]
        pub(super) seq: u64,
        #[prost(bytes = "vec", tag = "3")]
        pub(super) hash: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Revoke {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) node: Vec<u8>,
        #[prost(message, repeated, tag = "2")]
        pub(super) cut: Vec<Tip>,
        #[prost(bytes = "vec", tag = "3")]
        pub(super) salt: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SetRole {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) node: Vec<u8>,
        #[prost(uint32, tag = "2")]
        pub(super) role: u32,
        #[prost(message, repeated, tag = "3")]
        pub(super) cut: Vec<Tip>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Ban {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) one: prost::bytes::Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) other: prost::bytes::Bytes,
        #[prost(message, repeated, tag = "3")]
        pub(super) cut: Vec<Tip>,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) salt: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Succeed {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) node: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) signature: Vec<u8>,
    }
}

const fn role_number(role: Role) -> u32 {
    match role {
        Role::Reader => 1,
        Role::Writer => 2,
        Role::Admin => 3,
    }
}

fn role(number: u32) -> Option<Role> {
    [Role::Reader, Role::Writer, Role::Admin].into_iter().find(|role| role_number(*role) == number)
}

fn tips(cut: &Cut) -> Vec<message::Tip> {
    let tip = |(store, (seq, hash)): (&StoreId, &(u64, Hash))| message::Tip {
        store: store.0.to_vec(),
        seq: *seq,
        hash: hash.0.to_vec(),
    };
    cut.iter().map(tip).collect()
}

fn cut(tips: &[message::Tip]) -> Option<Cut> {
    tips.iter().map(|tip| Some((StoreId::from_slice(&tip.store)?, (tip.seq, Hash::from_slice(&tip.hash)?)))).collect()
}

/// The payload that holds `ops`.
pub(crate) fn encode(ops: &[Op]) -> Vec<u8> {
    let operation = |op: &Op| message::Operation { action: Some(action(op)) };
    message::Payload { version: VERSION, operations: ops.iter().map(operation).collect() }.encode_to_vec()
}

fn action(op: &Op) -> message::Action {
    use message::Action;
    match op.clone() {
        Op::Genesis { salt, name } => Action::Genesis(message::Genesis { salt: salt.to_vec(), name }),
        Op::AddMember { node, name, role } => {
            Action::AddMember(message::AddMember { node: node.0.to_vec(), name, role: role_number(role) })
        }
        Op::Invite { id, role, expires, uses } => {
            Action::Invite(message::Invite { id: id.0.to_vec(), role: role_number(role), expires: expires.0, uses })
        }
        Op::Redeem(Redeem { invite, signature, node, name }) => Action::Redeem(message::Redeem {
            invite: invite.to_vec(),
            signature: signature.to_vec(),
            node: node.0.to_vec(),
            name,
        }),
        Op::CreateStore { name, kind } => Action::CreateStore(message::CreateStore { name, kind }),
        Op::DeleteStore { id } => Action::DeleteStore(message::DeleteStore { id: id.0.to_vec() }),
        Op::SetName { name } => Action::SetName(message::SetName { name }),
        Op::Leave => Action::Leave(message::Leave {}),
        Op::Revoke { node, cut, salt } => {
            Action::Revoke(message::Revoke { node: node.0.to_vec(), cut: tips(&cut), salt: salt.to_vec() })
        }
        Op::SetRole { node, role, cut } => {
            Action::SetRole(message::SetRole { node: node.0.to_vec(), role: role_number(role), cut: tips(&cut) })
        }
        Op::Ban { fork: Fork { one, other }, cut, salt } => {
            Action::Ban(message::Ban { one, other, cut: tips(&cut), salt: salt.to_vec() })
        }
        Op::Succeed(Succession { node, signature }) => {
            Action::Succeed(message::Succeed { node: node.0.to_vec(), signature: signature.to_vec() })
        }
    }
}

/// The operations of a payload, or why none of them counts.
pub(super) fn decode(payload: &[u8]) -> Result<Vec<Op>, String> {
    let payload = message::Payload::decode(payload).map_err(|error| format!("malformed: {error}"))?;
    if payload.version != VERSION {
        let found = payload.version;
        return Err(format!("held: payload version {found} is not known to this build, which knows {VERSION}"));
    }
    let read = |(place, operation): (usize, message::Operation)| {
        operation.action.and_then(op).ok_or_else(|| format!("malformed: operation {place}"))
    };
    payload.operations.into_iter().enumerate().map(read).collect()
}

fn op(action: message::Action) -> Option<Op> {
    use message::Action;
    Some(match action {
        Action::Genesis(genesis) => Op::Genesis { salt: genesis.salt.try_into().ok()?, name: genesis.name },
        Action::AddMember(add) => {
            Op::AddMember { node: NodeId::from_slice(&add.node)?, name: add.name, role: role(add.role)? }
        }
        Action::Invite(invite) => Op::Invite {
            id: Hash::from_slice(&invite.id)?,
            role: role(invite.role)?,
            expires: Millis(invite.expires),
            uses: invite.uses,
        },
        Action::Redeem(redeem) => Op::Redeem(Redeem {
            invite: redeem.invite.try_into().ok()?,
            signature: redeem.signature.try_into().ok()?,
            node: NodeId::from_slice(&redeem.node)?,
            name: redeem.name,
        }),
        Action::CreateStore(create) => Op::CreateStore { name: create.name, kind: create.kind },
        Action::DeleteStore(delete) => Op::DeleteStore { id: StoreId::from_slice(&delete.id)? },
        Action::SetName(set) => Op::SetName { name: set.name },
        Action::Leave(_) => Op::Leave,
        Action::Revoke(revoke) => Op::Revoke {
            node: NodeId::from_slice(&revoke.node)?,
            cut: cut(&revoke.cut)?,
            salt: revoke.salt.try_into().ok()?,
        },
        Action::SetRole(set) => {
            Op::SetRole { node: NodeId::from_slice(&set.node)?, role: role(set.role)?, cut: cut(&set.cut)? }
        }
        Action::Ban(ban) => Op::Ban {
            fork: Fork { one: ban.one, other: ban.other },
            cut: cut(&ban.cut)?,
            salt: ban.salt.try_into().ok()?,
        },
        Action::Succeed(succeed) => Op::Succeed(Succession {
            node: NodeId::from_slice(&succeed.node)?,
            signature: succeed.signature.try_into().ok()?,
        }),
    })
}
