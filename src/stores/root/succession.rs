//! A node that goes on under another key.

use ed25519_dalek::{Signer, SigningKey};
use ed25519_zebra::{Signature, VerificationKey};

use super::redeem::is_sound;
use crate::ids::{MeshId, NodeId};

const CONTEXT: &[u8; 18] = b"lattice/succeed/1\0";

/// The author's key hands over to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// The key that goes on: what the node is from then on.
    pub node: NodeId,
    /// By that key, over `"lattice/succeed/1\0" ‖ mesh id ‖ the author's id`: nobody can claim another's key.
    pub signature: [u8; 64],
}

fn message(mesh: &MeshId, before: &NodeId) -> Vec<u8> {
    [&CONTEXT[..], &mesh.0, &before.0].concat()
}

/// Lets `key` succeed the node `before`.
#[must_use]
pub fn succession(key: &SigningKey, mesh: &MeshId, before: &NodeId) -> Succession {
    let signature = key.sign(&message(mesh, before)).to_bytes();
    Succession { node: NodeId(key.verifying_key().to_bytes()), signature }
}

impl Succession {
    /// Whether the signature is the new key's, by the same rules as entries'.
    pub(super) fn is_signed(&self, mesh: &MeshId, before: &NodeId) -> bool {
        let signature = Signature::from_bytes(&self.signature);
        is_sound(&self.node.0)
            && VerificationKey::try_from(self.node.0)
                .is_ok_and(|key| key.verify(&signature, &message(mesh, before)).is_ok())
    }
}
