//! `stores/<name>/.history/<path>/<version>`: every version of a key as a file, the oldest first.

use super::errno::{self, Answer};
use super::inodes::{Seen, join};
use super::past;
use super::place::{Attr, Place, Type};
use super::tree::Tree;
use crate::clock::{self, Hlc, Millis};
use crate::ids::StoreId;
use crate::stores::kv::{Head, Kind, Kv, Version};

/// How long a version's time is in its name.
const TIME: usize = "2026-11-22T14:00:05.123Z".len();

/// The names of versions, which are in the order of their stamps.
fn named(tree: &Tree, versions: Vec<Version>) -> Vec<(Vec<u8>, Head)> {
    let mut found: Vec<(Vec<u8>, Head)> = Vec::with_capacity(versions.len());
    let mut again = 0;
    for Version { head, .. } in versions {
        // Several operations of one entry on one key.
        let same = found.last().is_some_and(|(_, last)| last.id.entry == head.id.entry);
        again = if same { again + 1 } else { 0 };
        let again = if again == 0 { String::new() } else { format!(".{again}") };
        let deleted = if head.kind == Kind::Deleted { ".deleted" } else { "" };
        let (time, author) = (clock::name(head.hlc), past::author(tree, &head.author));
        found.push((format!("{time}-{author}-{}{again}{deleted}", head.id.entry.short()).into_bytes(), head));
    }
    found
}

const fn kind(head: &Head) -> Type {
    match head.kind {
        Kind::Symlink => Type::Symlink,
        Kind::Directory => Type::Directory,
        Kind::File | Kind::Deleted => Type::File,
    }
}

/// The attributes of a version's file. A deletion and a directory show when they were made.
fn attr_of(ino: u64, head: &Head) -> Attr {
    let made = i64::try_from(head.hlc.millis().0).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let (mode, mtime) = if head.kind == Kind::Deleted { (0o444, made) } else { (head.mode, head.mtime) };
    Attr { ino, kind: kind(head), mode, size: head.content.size(), mtime }
}

/// The version of a key that has this name.
fn by_name(tree: &Tree, kv: &Kv, path: &[u8], name: &[u8]) -> Answer<Option<Head>> {
    let time = name.get(..TIME).and_then(|time| std::str::from_utf8(time).ok());
    let Some(Millis(millis)) = time.and_then(|time| clock::moment(time, Millis(0))) else { return Ok(None) };
    let (from, until) = (Hlc(millis << 16), Hlc(millis << 16 | 0xffff));
    let versions = named(tree, kv.history_between(path, from, until)?);
    Ok(versions.into_iter().find(|(known, _)| known == name).map(|(_, head)| head))
}

/// What a name leads to: a version of the key that the directory stands for, or a directory on the way to other keys.
pub(crate) fn look(tree: &Tree, directory: &Seen, store: StoreId, name: &[u8]) -> Answer<Option<(Place, Type)>> {
    let kv = tree.kv(&store)?;
    if let Some(head) = by_name(tree, &kv, &directory.path, name)? {
        return Ok(Some((Place::Version(store), kind(&head))));
    }
    let was = kv.was_ever(&join(&directory.path, name))?;
    Ok(was.then_some((Place::HistoryPath(store), Type::Directory)))
}

/// The versions of the key that a directory stands for.
pub(crate) fn versions(tree: &Tree, directory: &Seen, store: StoreId) -> Answer<Vec<(Vec<u8>, Attr)>> {
    let versions = named(tree, tree.kv(&store)?.history(&directory.path)?);
    Ok(versions.into_iter().map(|(name, head)| (name, attr_of(0, &head))).collect())
}

/// The version that a file is.
pub(crate) fn version(tree: &Tree, file: &Seen, store: StoreId) -> Answer<Head> {
    let end = file.path.len().saturating_sub(file.name.len() + 1);
    by_name(tree, &*tree.kv(&store)?, &file.path[..end], &file.name)?.ok_or(errno::MISSING)
}

/// The attributes of a version.
pub(crate) fn attr(tree: &Tree, file: &Seen, store: StoreId) -> Answer<Attr> {
    Ok(attr_of(file.ino, &version(tree, file, store)?))
}
