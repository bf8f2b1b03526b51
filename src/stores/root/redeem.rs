//! Using an invite: the secret of the token never enters the log, only what it signed.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use ed25519_zebra::{Signature, VerificationKey};

use super::names::BadName;
use crate::clock::Millis;
use crate::ids::{Hash, MeshId, NodeId};

const CONTEXT: &[u8; 15] = b"lattice/join/1\0";

/// The use of an invite by a node that wants to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeem {
    /// The invite's public key.
    pub invite: [u8; 32],
    /// By that key, over `"lattice/join/1\0" ‖ mesh id ‖ node id`: nobody else can use it for another node.
    pub signature: [u8; 64],
    /// Who joins.
    pub node: NodeId,
    /// The name that it wishes.
    pub name: String,
}

/// Why a node may not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such invite, or the proof of its secret is wrong.
    #[error(
        "this mesh does not know the invite; it may be from another mesh, or too new to be known here: try again or ask for a new one"
    )]
    Unknown,
    /// It is too old.
    #[error("the invite expired; ask for a new one")]
    Expired {
        /// When.
        at: Millis,
    },
    /// Others used it up.
    #[error("the invite was used {uses} times, as often as it may be; ask for a new one")]
    UsedUp {
        /// How often it may be used.
        uses: u32,
    },
    /// The joiner's id is not a sound public key.
    #[error("the id {0} is not a sound key; make a new identity")]
    Key(NodeId),
    /// The joiner's wished name can't be a name.
    #[error(transparent)]
    Name(#[from] BadName),
}

fn message(mesh: &MeshId, node: &NodeId) -> Vec<u8> {
    [&CONTEXT[..], &mesh.0, &node.0].concat()
}

/// The public key of an invite with this secret.
#[must_use]
pub fn invite_key(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

/// What the root store calls the invite with this public key.
#[must_use]
pub fn invite_id(invite: &[u8; 32]) -> Hash {
    blake3::hash(invite).into()
}

/// Uses the invite with this secret for `node`.
#[must_use]
pub fn redeem(secret: &[u8; 32], mesh: &MeshId, node: NodeId, name: String) -> Redeem {
    let key = SigningKey::from_bytes(secret);
    let signature = key.sign(&message(mesh, &node)).to_bytes();
    Redeem { invite: key.verifying_key().to_bytes(), signature, node, name }
}

impl Redeem {
    /// Whether the signature is the invite's, by the same rules as entries'.
    pub(super) fn is_signed(&self, mesh: &MeshId) -> bool {
        let signature = Signature::from_bytes(&self.signature);
        is_sound(&self.invite)
            && VerificationKey::try_from(self.invite)
                .is_ok_and(|key| key.verify(&signature, &message(mesh, &self.node)).is_ok())
    }
}

/// Whether the bytes are a public key that signs for one holder only: not one of small order.
pub(super) fn is_sound(key: &[u8; 32]) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|key| !key.is_weak())
}
