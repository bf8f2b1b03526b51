//! How a membership ends, or becomes less, against the member's will: by an admin's word, or by the proof of a fork.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state::Place;
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::entry::{Fork, Header};
pub(super) use crate::replication::membership::Cut;
use crate::replication::membership::Role;

/// A decision that a member is one no more, or may do less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Removal {
    /// The entry that decided it.
    pub(super) by: Place,
    /// The operation in it.
    pub(super) op: usize,
    /// Its place in the order of the fold.
    pub(super) order: (Hlc, Hash),
    /// The member's own last entry in the past of the decision: what it wrote beyond that, it wrote beside it or after it.
    pub(super) upto: Option<u64>,
    /// The role that is left; none if the member is to go.
    pub(super) cap: Option<Role>,
    /// The proof of a fork, if it is for that, and so for good.
    pub(super) proof: Option<Fork>,
    /// How far the member's entries count in the other stores.
    pub(super) cut: Cut,
    /// The mesh's salt from then on.
    pub(super) salt: Option<[u8; 32]>,
}

impl Removal {
    pub(super) fn is_pardoned(&self, pardons: &[Place]) -> bool {
        self.proof.is_none() && pardons.contains(&self.by)
    }
}

/// What either cut lets count: of each store the longer chain. Of two chains of one length, which only a fork has, that
/// with the lower hash: everyone must choose the same, and can't tell how they hang together before all entries are here.
pub(super) fn union(mut one: Cut, other: Cut) -> Cut {
    for (store, (seq, hash)) in other {
        let tip = one.entry(store).or_insert((seq, hash));
        if seq > tip.0 || (seq == tip.0 && hash < tip.1) {
            *tip = (seq, hash);
        }
    }
    one
}

/// Who is proven to have forked its chain by these two signed headers, if they prove it.
pub(super) fn proven(fork: &Fork) -> Option<NodeId> {
    let read = |part: &Bytes| Header::decode_signed(part).ok();
    let (one, other) = (read(&fork.one)?, read(&fork.other)?);
    // Each mesh that a key founds begins at the same place: that is no fork.
    let same = one.author == other.author && one.store == other.store && one.store != StoreId::UNBORN;
    let place = one.seq == other.seq || (one.prev.is_some() && one.prev == other.prev);
    (same && place && one != other && fork.is_signed()).then_some(one.author)
}
