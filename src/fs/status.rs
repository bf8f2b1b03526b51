//! `stores/<name>/.status`: how a store is, a fact a line.

use std::fmt::Write;

use super::errno::{self, Answer};
use super::tree::Tree;
use crate::ids::StoreId;
use crate::peers::{Peer, Standing};
use crate::stores::kv::KvError;

/// The text: numbers by name, then a line a member.
pub(crate) fn text(tree: &Tree, store: StoreId) -> Answer<Vec<u8>> {
    let registry = tree.registry().ok_or(errno::CLOSED)?;
    let info = registry.stores().into_iter().find(|info| info.id == store).ok_or(errno::MISSING)?;
    if let Some(why) = info.damaged {
        return Ok(format!("damaged {why}\n").into_bytes());
    }
    let kv = tree.kv(&store)?;
    let log = kv.log();
    let view = log.database().view().map_err(KvError::from)?;
    let entries = log.fingerprint(&view).map_err(KvError::from)?.count;
    drop(view);
    let bytes = std::fs::metadata(log.database().path()).map_or(0, |file| file.len());
    let missing_blobs = log.wanted().map_err(KvError::from)?.len();
    let standings = tree.sources.peers.standings(&store);
    let mut others: Vec<(Peer, Standing)> = Vec::new();
    for peer in tree.sources.peers.peers().into_iter().filter(|peer| !peer.me && !peer.left && !peer.removed) {
        let standing = standings.get(&peer.id).cloned().unwrap_or_default();
        others.push((peer, standing));
    }
    let in_step = others.iter().filter(|(_, standing)| standing.in_step).count();
    let behind = others.iter().filter(|(_, standing)| lacks(standing, entries).is_some_and(|lacks| lacks > 0)).count();
    let missing_entries = others.iter().map(|(_, standing)| standing.ahead).max().unwrap_or(0);
    let (keys, conflicts) = (kv.count()?, kv.conflict_count()?);
    let mut out = String::new();
    for (name, number) in [
        ("entries", entries),
        ("keys", keys),
        ("conflicts", conflicts),
        ("bytes", bytes),
        ("missing_entries", missing_entries),
        ("missing_blobs", missing_blobs as u64),
        ("peers", others.len() as u64),
        ("peers_in_step", in_step as u64),
        ("peers_behind", behind as u64),
    ] {
        writeln!(out, "{name} {number}").ok();
    }
    for (peer, standing) in &others {
        writeln!(out, "peer {} {}", peer.name, shown(peer, standing, entries)).ok();
    }
    Ok(out.into_bytes())
}

/// How many entries that are here a member may lack; `None` if nothing is known.
fn lacks(standing: &Standing, entries: u64) -> Option<u64> {
    if standing.in_step { Some(0) } else { standing.agreed.map(|agreed| entries.saturating_sub(agreed)) }
}

fn shown(peer: &Peer, standing: &Standing, entries: u64) -> String {
    let mut facts = Vec::new();
    match lacks(standing, entries) {
        Some(0) if standing.ahead == 0 => facts.push("in step".to_owned()),
        Some(0) => {}
        Some(lacks) => facts.push(format!("may lack {lacks} entries")),
        None => facts.push("not compared since the start".to_owned()),
    }
    if standing.ahead > 0 {
        facts.push(format!("has {} entries more", standing.ahead));
    }
    if !peer.online {
        facts.push("offline".to_owned());
    }
    facts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_may_lack_is_what_came_since_both_had_the_same() {
        let standing = |in_step, agreed| Standing { in_step, agreed, ahead: 0 };
        assert_eq!(lacks(&standing(true, Some(3)), 3), Some(0));
        assert_eq!(lacks(&standing(false, Some(3)), 5), Some(2));
        assert_eq!(lacks(&standing(false, None), 5), None);
    }
}
