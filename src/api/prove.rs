//! Proofs of what is in a store, for those who have no node.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::Status;

use super::failure::Failure;
use super::kv::{directory, shown};
use super::past::in_store;
use super::stores::not_open;
use super::wire::{ProofPart, ProveRequest};
use crate::replication::entry::Entry;
use crate::replication::log::Log;
use crate::stores::kv::KvError;
use crate::stores::proof::{Proof, Unproven};
use crate::stores::root::names::ROOT;
use crate::stores::{Kv as Keys, Merge, Registry, kv};

/// The store of a key when none is named.
pub(super) const HOME: &str = "home";
/// How much of a proof is sent at once, in bytes.
const PART: usize = 256 * 1024;

/// What is to be proven: an entry, and the write in it that is meant.
struct Claim {
    log: Arc<Log>,
    entry: Entry,
    write: Option<u16>,
}

impl From<Unproven> for Failure {
    fn from(error: Unproven) -> Self {
        match &error {
            Unproven::Refused(_) => Self::refused(error),
            Unproven::Database(error) => error.into(),
        }
    }
}

pub(super) fn prove(
    registry: &Registry,
    request: ProveRequest,
    parts: &mpsc::Sender<Result<ProofPart, Status>>,
) -> Result<(), Failure> {
    let claim = if request.path.is_empty() { entry(registry, &request)? } else { key(registry, request)? };
    let proof = Proof::of(registry.root(), &claim.log, claim.entry, claim.write)?.encode();
    for part in proof.chunks(PART) {
        if parts.blocking_send(Ok(ProofPart { data: part.to_vec() })).is_err() {
            break;
        }
    }
    Ok(())
}

fn entry(registry: &Registry, request: &ProveRequest) -> Result<Claim, Failure> {
    let (store, log, entry) = in_store(registry, &request.store, &request.entry)?;
    if store == ROOT {
        return Err(Failure::refused("an entry of the root store is not proven by itself")
            .hint("each proof holds the root store: prove what the member wrote, or what is in the store"));
    }
    Ok(Claim { log, entry, write: None })
}

fn key(registry: &Registry, request: ProveRequest) -> Result<Claim, Failure> {
    let ProveRequest { store, path, entry: start } = request;
    kv::check_path(&path).map_err(KvError::from)?;
    let keys = registry.kv(&store).ok_or_else(|| not_open(registry, &store, "kv"))?;
    let (entry, write) = if start.is_empty() { last(&keys, &path)? } else { written(registry, &store, &path, &start)? };
    Ok(Claim { log: Arc::clone(keys.log()), entry, write: Some(write) })
}

/// The write to a key that is shown; it may be a deletion.
fn last(keys: &Keys, path: &[u8]) -> Result<(Entry, u16), Failure> {
    let Some(heads) = keys.heads(path)? else {
        return Err(match keys.has_children(path)? {
            true => directory(path),
            false => Failure::not_found(format!("nothing ever wrote to '{}'", shown(path)))
                .hint("`lattice kv list` names the keys"),
        });
    };
    let id = heads.lww().id;
    let view = keys.log().database().view()?;
    let entry = keys.log().get(&view, &id.entry)?;
    let gone = || Failure::failed(format!("the entry that wrote '{}' is not there", shown(path)));
    Ok((entry.ok_or_else(gone)?, id.op))
}

/// The last write to a key in an entry.
fn written(registry: &Registry, store: &str, path: &[u8], start: &str) -> Result<(Entry, u16), Failure> {
    let (_, _, entry) = in_store(registry, store, start)?;
    let place = Keys::writes(&entry).iter().rposition(|(written, _)| written == path);
    let place = place.and_then(|place| u16::try_from(place).ok());
    let none = || {
        Failure::not_found(format!("entry {} wrote nothing to '{}'", entry.hash(), shown(path)))
            .hint("`lattice show HASH` tells what it wrote")
    };
    Ok((entry.clone(), place.ok_or_else(none)?))
}
