//! What can go wrong with a mesh.

use std::path::PathBuf;

use crate::blobs::BlobError;
use crate::net::join::JoinError;
use crate::net::ticket::TicketError;
use crate::replication::database::DatabaseError;
use crate::stores::RegistryError;
use crate::stores::root::{GenesisError, RootError, names};

/// What can go wrong with a mesh.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A store's file.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The stores.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An operation on the mesh.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Founding.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The token does not read.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Joining.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// What a member sent on joining is not the mesh of the token.
    #[error("what the inviting node sent is not the mesh that the token names: {0}")]
    Welcome(String),
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Large values.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// This node's role does not allow it.
    #[error("only an admin may {what}; this node is a {role}")]
    NotAllowed {
        /// What was to be done.
        what: &'static str,
        /// This node's role.
        role: &'static str,
    },
    /// Without this member the mesh would have no admin, for ever.
    #[error("'{0}' is the only admin: after it nobody could invite, remove, give roles or declare stores, for ever")]
    LastAdmin(String),
    /// The member left by itself, which is for good for its key.
    #[error("'{0}' left the mesh, and a key that left can't come back to it: no role lets it in again")]
    Gone(String),
    /// The new key is known to nobody else.
    #[error(
        "another member must hear of the new key before this node goes on under it, and none has: try again when one is online"
    )]
    Unheard,
    /// No such store.
    #[error("there is no store '{0}'")]
    NoStore(String),
    /// The name means the root store.
    #[error("'{}' is the mesh's own store, as in `lattice log {}`: choose another name", names::ROOT, names::ROOT)]
    Reserved,
    /// The name is taken.
    #[error("there is a store '{0}' already")]
    StoreExists(String),
    /// Not a store's type.
    #[error("'{0}' is not a type of store: kv or chat")]
    Kind(String),
    /// The mesh has one chat store.
    #[error("the mesh has its chat store '{0}' already")]
    ChatExists(String),
}
