//! Who may connect. It stands in front of every protocol, in both directions, right after the TLS handshake has proven
//! who the other end is; and it knows all open connections, to close those of a node that is a member no more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ::iroh::EndpointAddr;
use ::iroh::endpoint::{AfterHandshakeOutcome, BeforeConnectOutcome, Connection, EndpointHooks, WeakConnectionHandle};
use arc_swap::{ArcSwap, ArcSwapOption};

use super::hub::{self, Internal};
use super::{Switch, close, closed_with};
use crate::ids::NodeId;
use crate::net::join;
use crate::replication::membership::{Membership, SharedMembership};

/// Connections that one peer may have with this node at once, of all protocols.
const CONNECTIONS: usize = 32;

/// Why a node is not let in, as it is told by the code that its connection is closed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is no member: it was removed, has left, or that it joined is not known yet.
    NotAMember,
    /// It signed two entries for one place in its chain, and was removed for that.
    Forked,
}

impl Refused {
    const fn code(self) -> u32 {
        match self {
            Self::NotAMember => close::NOT_A_MEMBER,
            Self::Forked => close::FORKED,
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::NotAMember => "not a member of this mesh",
            Self::Forked => "removed from this mesh: signed two entries for one place",
        }
    }

    /// What the other end of a closed connection said, if it refused this node.
    pub(super) fn told(connection: &Connection) -> Option<Self> {
        let code = closed_with(connection)?;
        [Self::NotAMember, Self::Forked].into_iter().find(|why| code == why.code().into())
    }
}

#[derive(Debug)]
struct Open {
    peer: NodeId,
    alpn: Vec<u8>,
    connection: WeakConnectionHandle,
}

/// The gate. Shut for all but the join protocol until it is given a membership.
#[derive(Debug, Default)]
pub(super) struct Gate {
    membership: ArcSwapOption<ArcSwap<Membership>>,
    open: Mutex<BTreeMap<usize, Open>>,
}

impl Gate {
    pub(super) fn admits(&self, peer: &NodeId) -> bool {
        self.refuses(peer).is_none()
    }

    fn refuses(&self, peer: &NodeId) -> Option<Refused> {
        let shared = self.membership.load();
        let Some(shared) = shared.as_ref() else { return Some(Refused::NotAMember) };
        match shared.load().members.get(peer) {
            Some(member) if !member.left => None,
            Some(member) if member.forked => Some(Refused::Forked),
            Some(_) | None => Some(Refused::NotAMember),
        }
    }

    pub(super) fn has_mesh(&self) -> bool {
        self.membership.load().is_some()
    }

    /// The membership as it stands, to tell by its address whether it was replaced.
    pub(super) fn version(&self) -> usize {
        self.membership.load().as_ref().map_or(0, |shared| Arc::as_ptr(&shared.load()).addr())
    }

    pub(super) fn set(&self, membership: Option<SharedMembership>) {
        self.membership.store(membership);
        self.sweep();
    }

    /// Closes the connections of those who are not members (any more).
    pub(super) fn sweep(&self) {
        let has_mesh = self.has_mesh();
        self.close_where(|peer| match self.refuses(peer) {
            Some(why) if has_mesh => Some((why.code(), why.reason())),
            Some(_) => Some((close::GOODBYE, "going away")),
            None => None,
        });
    }

    /// Closes every connection with a peer that has been found dead, so that each protocol makes a new one.
    pub(super) fn drop_peer(&self, dead: &NodeId) {
        self.close_where(|peer| (peer == dead).then_some((close::DEAD, "no answer")));
    }

    /// Closes the connections with peers for whom there is a code and a reason.
    fn close_where(&self, verdict: impl Fn(&NodeId) -> Option<(u32, &'static str)>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, entry| {
            let Some(connection) = entry.connection.upgrade() else { return false };
            if entry.alpn != join::ALPN
                && let Some((code, reason)) = verdict(&entry.peer)
            {
                connection.close(code.into(), reason.as_bytes());
                return false;
            }
            connection.close_reason().is_none()
        });
    }

    fn is_crowded(&self, peer: &NodeId) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|entry| entry.peer == *peer).count() > CONNECTIONS
    }

    fn remember(&self, peer: NodeId, connection: &Connection) {
        let entry = Open { peer, alpn: connection.alpn().to_vec(), connection: connection.weak_handle() };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, entry| entry.connection.upgrade().is_some_and(|known| known.close_reason().is_none()));
        open.insert(connection.stable_id(), entry);
    }
}

/// The gate as the endpoint calls it.
#[derive(Debug)]
pub(super) struct Hooks {
    pub(super) gate: Arc<Gate>,
    pub(super) hub: Arc<Switch>,
}

impl EndpointHooks for Hooks {
    async fn before_connect<'a>(&'a self, to: &'a EndpointAddr, alpn: &'a [u8]) -> BeforeConnectOutcome {
        if alpn == join::ALPN || self.gate.admits(&NodeId(*to.id.as_bytes())) {
            BeforeConnectOutcome::Accept
        } else {
            BeforeConnectOutcome::Reject
        }
    }

    async fn after_handshake<'a>(&'a self, connection: &'a Connection) -> AfterHandshakeOutcome {
        let peer = NodeId(*connection.remote_id().as_bytes());
        // Remembered first: a change of membership between the two lines would otherwise miss it.
        self.gate.remember(peer, connection);
        if self.gate.is_crowded(&peer) {
            tracing::debug!(peer = %peer.short(), "refused: too many connections");
            let reason = b"too many connections".to_vec();
            return AfterHandshakeOutcome::Reject { error_code: close::BUSY.into(), reason };
        }
        let refused = self.gate.refuses(&peer).filter(|_| connection.alpn() != join::ALPN);
        let Some(why) = refused else {
            if connection.alpn() != hub::ALPN && connection.alpn() != join::ALPN {
                // It is there: the dial for the link, if one is waiting, need not wait any longer.
                self.hub.tell(Internal::Found(peer));
            }
            return AfterHandshakeOutcome::Accept;
        };
        tracing::debug!(peer = %peer.short(), why = why.reason(), "refused");
        AfterHandshakeOutcome::Reject { error_code: why.code().into(), reason: why.reason().into() }
    }
}
