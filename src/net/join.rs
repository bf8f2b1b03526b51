//! The join protocol, `lattice/join/1`: the only one that a node speaks with someone who is no member.
//!
//! The joiner opens one stream and sends a [`Request`]; it gets a [`Welcome`] or a [`Refusal`] and that is all. Both are
//! a length (u32, big-endian) and that many bytes of postcard. The token's secret doesn't travel, only a proof of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::ticket::{Contact, proof_message};
use crate::ids::{MeshId, NodeId};

/// The protocol's name and version.
pub const ALPN: &[u8] = b"lattice/join/1";
/// The longest name that a joiner may ask for, in bytes.
pub const NAME: usize = 64;

/// What the desk of a mesh is asked: let this node in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks: the other end of the connection, so it is proven.
    pub joiner: NodeId,
    /// The name that it would like to go by; at most [`NAME`] bytes, not checked otherwise.
    pub name: String,
    /// The mesh that it means.
    pub mesh: MeshId,
    /// The public key of its invite.
    pub invite: [u8; 32],
    /// The signature with the invite's secret over [`proof_message`].
    pub proof: [u8; 64],
    /// Where the joiner says that it can be reached.
    pub addresses: Vec<SocketAddr>,
}

impl Request {
    /// Whether the joiner holds the secret of the invite that it names.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&self.proof);
        ed25519_dalek::VerifyingKey::from_bytes(&self.invite)
            .is_ok_and(|key| key.verify_strict(&proof_message(&self.mesh, &self.joiner), &signature).is_ok())
    }
}

/// What a new member gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The mesh.
    pub mesh: MeshId,
    /// The root store's entries as they travel, parents first, genesis the first and the joiner's own admission among them: so
    /// that the joiner knows at once who the members are. None of it is to be believed before it has been checked.
    pub entries: Vec<Vec<u8>>,
    /// Members and where they can be reached, the one that answers first.
    pub contacts: Vec<Contact>,
}

/// Why a node is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// No such invite, or no proof of it.
    #[error(
        "this mesh knows of no such invite: it may have been withdrawn, or it is not known here yet. Ask for a new token"
    )]
    Wrong,
    /// The invite's time is over.
    #[error("the invite has expired: ask for a new token")]
    Expired,
    /// The invite has been used as often as it may be.
    #[error("the invite has been used up: ask for a new token")]
    UsedUp,
    /// The node that answers belongs to another mesh.
    #[error("the node that was asked belongs to another mesh now: ask for a new token")]
    OtherMesh,
    /// The node that answers belongs to no mesh.
    #[error("the node that was asked belongs to no mesh now: ask for a new token")]
    NoMesh,
    /// The joiner was a member and has left or was removed.
    #[error(
        "this node has left the mesh or was removed from it, and its key can't come back: join with a new data directory"
    )]
    Gone,
    /// The name can't be used.
    #[error("the name '{name}' can't be used: {why}")]
    Name {
        /// The name.
        name: String,
        /// Why, in words.
        why: String,
    },
    /// Too many ask at once.
    #[error("the node that was asked is busy: try again in a moment")]
    Busy,
    /// The request is not understood there.
    #[error("the node that was asked does not understand the request: it may run another version of lattice")]
    Malformed,
    /// It could not be done there.
    #[error("the node that was asked could not do it: {0}")]
    Failed(String),
}

/// Who decides about joining: the mesh.
pub trait JoinDesk: Send + Sync + 'static {
    /// Lets the joiner in. It may block on the disk. What is returned as done is durable. A joiner that is a member already is welcomed
    /// again without using the invite up: its first answer may have been lost on the way.
    ///
    /// # Errors
    /// Why not.
    fn redeem(&self, request: Request) -> Result<Welcome, Refusal>;
}

/// Why joining failed, on the joiner's side.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// None of the token's hosts could be reached.
    #[error(
        "none of the nodes in the token could be reached ({tried}): is one of them up, and is there a way to it from here?"
    )]
    Unreachable {
        /// Where was tried and how it failed.
        tried: String,
    },
    /// A host answered no.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A host answered with something else.
    #[error("the node that was asked gave no usable answer: {0}")]
    Protocol(String),
}
