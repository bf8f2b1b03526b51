//! `/peers/<name>/`: one directory a member, one small file a fact.

use super::errno::{self, Answer};
use super::inodes::Seen;
use super::tree::Tree;
use crate::ids::NodeId;
use crate::peers::{Peer, Proof};

/// The files of a member.
pub(crate) const FILES: [&str; 8] = ["address", "id", "lag", "last_seen", "role", "rtt", "status", "version"];

/// The file of a member who forked its chain.
pub(crate) const PROOF: &str = "fork-proof";

/// Whether a member has this name.
pub(crate) fn is(tree: &Tree, name: &[u8]) -> bool {
    tree.sources.peers.peers().iter().any(|peer| peer.name.as_bytes() == name)
}

/// The members' names.
pub(crate) fn names(tree: &Tree) -> Vec<String> {
    let mut names: Vec<_> = tree.sources.peers.peers().into_iter().map(|peer| peer.name).collect();
    names.sort();
    names.dedup();
    names
}

/// What the file says: one line, empty if it is not known.
pub(crate) fn text(tree: &Tree, file: &Seen) -> Answer<Vec<u8>> {
    let parent = tree.table().see(file.parent)?;
    let peers = tree.sources.peers.peers();
    let peer = peers.iter().find(|peer| peer.name.as_bytes() == &*parent.name).ok_or(errno::MISSING)?;
    if &*file.name == PROOF.as_bytes() {
        let proof = tree.sources.peers.proof(&peer.id).ok_or(errno::MISSING)?;
        return Ok(shown(&peer.id, &proof).into_bytes());
    }
    Ok(line(peer, &file.name).map_or_else(Vec::new, |line| (line + "\n").into_bytes()))
}

/// The names of the files of a member.
pub(crate) fn files(tree: &Tree, directory: &Seen) -> Vec<&'static str> {
    let forked = tree.sources.peers.peers().iter().any(|peer| peer.forked && peer.name.as_bytes() == &*directory.name);
    FILES.into_iter().chain(forked.then_some(PROOF)).collect()
}

/// What anyone can check: two signed headers of one author for one place.
fn shown(author: &NodeId, proof: &Proof) -> String {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let Proof { store, number, one, other } = proof;
    format!("author {author}\nstore {store}\nnumber {number}\none {}\nother {}\n", hex(one), hex(other))
}

fn line(peer: &Peer, file: &[u8]) -> Option<String> {
    match file {
        b"id" => Some(peer.id.to_string()),
        b"role" => Some(peer.role.to_string()),
        b"status" => Some(status(peer).to_owned()),
        b"address" => peer.address.clone(),
        b"rtt" => peer.rtt.map(|rtt| format!("{:.3} ms", rtt.as_secs_f64() * 1e3)),
        b"last_seen" => peer.last_seen.and_then(|at| {
            let moment = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).ok()?;
            moment.format(&time::format_description::well_known::Rfc3339).ok()
        }),
        b"lag" => peer.lag.map(|lag| lag.to_string()),
        b"version" => peer.version.clone(),
        _ => None,
    }
}

const fn status(peer: &Peer) -> &'static str {
    if peer.me {
        "this node"
    } else if peer.forked {
        "forked"
    } else if peer.removed {
        "removed"
    } else if peer.left {
        "left"
    } else if peer.online {
        "online"
    } else {
        "offline"
    }
}
