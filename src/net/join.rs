//! The join protocol, `lattice/join/1`: the only one that a node speaks with someone who is no member.
//!
//! The joiner opens one stream and sends a [`Request`]; it gets a [`Welcome`] or a [`Refusal`] and that is all. Both are
//! a length (u32, big-endian) and that many bytes of postcard. The token's secret doesn't travel, only a proof of it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::iroh::{Node, close};
use super::ticket::{Contact, Ticket, proof_message};
use crate::ids::{MeshId, NodeId};

/// The protocol's name and version.
pub const ALPN: &[u8] = b"lattice/join/1";
/// The longest name that a joiner may ask for, in bytes.
pub const NAME: usize = 64;

/// The largest request, in bytes.
pub(super) const REQUEST_BYTES: usize = 4_096;
/// The largest answer, in bytes.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// How long each host of a token may take to be reached.
const REACH: Duration = Duration::from_secs(5);
/// How long a host may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

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
    /// The joiner was a member and has left, or handed its place to another key.
    #[error(
        "this node left the mesh or handed its place to another key, and its key can't come back: join from a new data directory"
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
    /// The joiner was a member and was removed.
    #[error(
        "this node was removed from the mesh: first an admin has to let it in again, on the admin's node, with 'lattice mesh role {name} writer'"
    )]
    Removed {
        /// What it is called in the mesh.
        name: String,
    },
    /// The joiner was removed since it signed two entries for one place in its chain.
    #[error(
        "this node signed two entries for one place in its chain and was removed from the mesh for good: `lattice node rekey --rejoin` gives \
         it a new key, under which it can join"
    )]
    Forked,
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

/// A request as it travels. Who asks is not in it: the connection says that.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    mesh: MeshId,
    invite: [u8; 32],
    proof: Vec<u8>,
    name: String,
    addresses: Vec<SocketAddr>,
}

impl Asked {
    /// The request, if it keeps to the limits.
    pub(super) fn request(self, joiner: NodeId) -> Option<Request> {
        let proof = self.proof.try_into().ok()?;
        let Self { mesh, invite, name, mut addresses, .. } = self;
        addresses.truncate(super::ticket::ADDRESSES);
        (name.len() <= NAME).then_some(Request { joiner, name, mesh, invite, proof, addresses })
    }
}

/// Joins the mesh of a token under `name`, through the first of its hosts that answers with a welcome. The welcome's entries are not checked
/// here; only that it is of the right mesh.
///
/// # Errors
/// If no host can be reached, or the last one that could be refuses.
pub async fn join(node: &Node, ticket: &Ticket, name: &str) -> Result<Welcome, JoinError> {
    let mut tried = Vec::new();
    let mut refused = None;
    for host in &ticket.hosts {
        match ask(node, ticket, host, name).await {
            Ok(welcome) => return Ok(welcome),
            Err(JoinError::Unreachable { tried: reason }) => tried.push(reason),
            Err(other) => refused = Some(other),
        }
    }
    Err(refused.unwrap_or_else(|| JoinError::Unreachable { tried: tried.join("; ") }))
}

async fn ask(node: &Node, ticket: &Ticket, host: &Contact, name: &str) -> Result<Welcome, JoinError> {
    let places: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
    let unreachable = |reason: String| {
        let place = if places.is_empty() { "no address".to_owned() } else { places.join(", ") };
        JoinError::Unreachable { tried: format!("{} at {place}: {reason}", host.node.short()) }
    };
    let dial = node.dial_host(host.node, &host.addresses, &ticket.relays, ALPN);
    let connection = match timeout(REACH, dial).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(failed)) if failed.closed => return Err(Refusal::NoMesh.into()),
        Ok(Err(failed)) => return Err(unreachable(failed.reason)),
        Err(_elapsed) => return Err(unreachable(format!("no answer within {REACH:?}"))),
    };
    let asked = Asked {
        mesh: ticket.mesh,
        invite: ticket.secret.invite(),
        proof: ticket.secret.prove(&ticket.mesh, &node.id()).to_vec(),
        name: name.to_owned(),
        addresses: node.addresses(),
    };
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        write(&mut send, &asked).await?;
        read::<Result<Welcome, Refusal>>(&mut receive, ANSWER_BYTES).await
    };
    let answer = match timeout(ANSWER, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let busy = super::iroh::was_closed_with(&connection, close::BUSY);
            return Err(if busy { Refusal::Busy.into() } else { JoinError::Protocol(error.to_string()) });
        }
        Err(_elapsed) => return Err(JoinError::Protocol(format!("nothing within {ANSWER:?}"))),
    };
    connection.close(close::GOODBYE.into(), b"thank you");
    let welcome = answer?;
    if welcome.mesh != ticket.mesh {
        return Err(JoinError::Protocol("it welcomes to another mesh than the token's".to_owned()));
    }
    Ok(welcome)
}

/// Writes one message.
pub(super) async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    to.write_u32(u32::try_from(bytes.len()).map_err(io::Error::other)?).await?;
    to.write_all(&bytes).await
}

/// Reads one message of at most `limit` bytes.
pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<T> {
    let length = from.read_u32().await? as usize;
    if length > limit {
        return Err(io::Error::other(format!("a message of {length} bytes, the limit is {limit}")));
    }
    // Read as it comes, not reserved as it is announced: a stranger announces what it likes.
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}
