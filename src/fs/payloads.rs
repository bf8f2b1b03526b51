//! `/blobs/<hash>`: the large values that are on this machine, by their hashes.

use std::fs::File;
use std::str::FromStr;
use std::sync::Arc;

use super::errno::{self, Answer, Failure};
use super::inodes::Seen;
use super::place::{Attr, Place, Type};
use super::tree::Tree;
use crate::blobs::Payloads;
use crate::ids::Hash;
use crate::stores::kv::KvError;

fn payloads(tree: &Tree) -> Answer<Arc<dyn Payloads>> {
    tree.registry().map(|registry| Arc::clone(registry.payloads())).ok_or(errno::MISSING)
}

/// The value of this name, if all of it is here.
fn find(tree: &Tree, name: &[u8]) -> Answer<Option<File>> {
    let hash = std::str::from_utf8(name).ok().and_then(|name| Hash::from_str(name).ok());
    match hash.filter(|hash| hash.to_string().as_bytes() == name) {
        Some(hash) => Ok(payloads(tree)?.open(&hash).map_err(KvError::Blob)?),
        None => Ok(None),
    }
}

/// Whether a value of this name is here.
pub(crate) fn is(tree: &Tree, name: &[u8]) -> Answer<bool> {
    Ok(find(tree, name)?.is_some())
}

/// The names of those that are here.
pub(crate) fn list(tree: &Tree) -> Answer<Vec<(Vec<u8>, Place, Type)>> {
    if tree.registry().is_none() {
        return Ok(Vec::new());
    }
    let mut names: Vec<_> = payloads(tree)?.list().map_err(KvError::Blob)?.iter().map(Hash::to_string).collect();
    names.sort_unstable();
    Ok(names.into_iter().map(|name| (name.into_bytes(), Place::Blob, Type::File)).collect())
}

/// Opens a value.
pub(crate) fn open(tree: &Tree, file: &Seen) -> Answer<File> {
    find(tree, &file.name)?.ok_or(errno::MISSING)
}

/// The attributes of a value's file.
pub(crate) fn attr(tree: &Tree, file: &Seen) -> Answer<Attr> {
    let size = open(tree, file)?.metadata().map_err(Failure::Io)?.len();
    Ok(Attr { ino: file.ino, kind: Type::File, mode: 0o444, size, mtime: tree.since })
}
