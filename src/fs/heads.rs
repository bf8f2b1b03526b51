//! `/.heads/<store>/<path>/<head>`: every key that needs a person, each of its heads a file.
//!
//! A conflict is settled by writing the key, by copying or moving a head onto it, or by removing the heads that lose.

use super::errno::{self, Answer};
use super::inodes::{Seen, join};
use super::place::{Attr, Place, Type};
use super::tree::Tree;
use crate::ids::StoreId;
use crate::stores::Merge;
use crate::stores::kv::{Head, Heads, Kind, Kv, Op};

/// Conflicts listed in one directory at most at a time.
const PAGE: usize = 1_024;

/// The name of the `n`th head of a key.
fn name(tree: &Tree, n: usize, head: &Head) -> Vec<u8> {
    let author = tree
        .registry()
        .map_or_else(|| head.author.short(), |registry| registry.root().log().membership().load().name(&head.author));
    let deleted = if head.kind == Kind::Deleted { ".deleted" } else { "" };
    format!("{n}-{author}-{}{deleted}", head.id.entry.short()).into_bytes()
}

/// The heads of a key, if it needs a person.
fn conflict(kv: &Kv, path: &[u8]) -> Answer<Option<Heads>> {
    Ok(kv.heads(path)?.filter(Heads::is_conflict))
}

const fn kind(head: &Head) -> Type {
    match head.kind {
        Kind::Symlink => Type::Symlink,
        Kind::Directory => Type::Directory,
        Kind::File | Kind::Deleted => Type::File,
    }
}

/// Whether a path that needs a person is `path` or lies below it.
fn leads_on(kv: &Kv, path: &[u8]) -> Answer<bool> {
    Ok(conflict(kv, path)?.is_some() || !kv.conflicts(&join(path, b""), None, 1)?.is_empty())
}

/// What a name leads to.
pub(crate) fn look(tree: &Tree, directory: &Seen, store: StoreId, wanted: &[u8]) -> Answer<Option<(Place, Type)>> {
    let kv = tree.kv(&store)?;
    if let Some(heads) = conflict(&kv, &directory.path)?
        && let Some(head) = by_name(tree, &heads, wanted)
    {
        return Ok(Some((Place::Head(store), kind(&head))));
    }
    let found = leads_on(&kv, &join(&directory.path, wanted))?;
    Ok(found.then_some((Place::HeadsPath(store), Type::Directory)))
}

fn by_name(tree: &Tree, heads: &Heads, wanted: &[u8]) -> Option<Head> {
    heads.all().iter().enumerate().find(|(n, head)| name(tree, *n, head) == wanted).map(|(_, head)| *head)
}

/// What a directory shows: the heads of the key that it stands for, and the next names on the way to other conflicts.
pub(crate) fn list(tree: &Tree, directory: &Seen, store: StoreId) -> Answer<Vec<(Vec<u8>, Place, Type)>> {
    let kv = tree.kv(&store)?;
    let mut found = Vec::new();
    if let Some(heads) = conflict(&kv, &directory.path)? {
        let files = heads.all().iter().enumerate();
        found.extend(files.map(|(n, head)| (name(tree, n, head), Place::Head(store), kind(head))));
    }
    let prefix = if directory.path.is_empty() { Vec::new() } else { join(&directory.path, b"") };
    let mut after: Option<Vec<u8>> = None;
    let mut names = std::collections::BTreeSet::new();
    loop {
        let page = kv.conflicts(&prefix, after.as_deref(), PAGE)?;
        for (path, _) in &page {
            let rest = path.get(prefix.len()..).unwrap_or_default();
            names.extend(rest.split(|byte| *byte == b'/').next().map(<[u8]>::to_vec));
        }
        if page.len() < PAGE {
            break;
        }
        after = page.into_iter().last().map(|(path, _)| path);
    }
    found.extend(names.into_iter().map(|name| (name, Place::HeadsPath(store), Type::Directory)));
    Ok(found)
}

/// The key of a head's file, all its heads, and the one that the file is.
fn this(tree: &Tree, file: &Seen, store: StoreId) -> Answer<(Vec<u8>, Heads, Head)> {
    let kv = tree.kv(&store)?;
    let end = file.path.len().saturating_sub(file.name.len() + 1);
    let path = file.path[..end].to_vec();
    let heads = conflict(&kv, &path)?.ok_or(errno::MISSING)?;
    // Its number may have changed since, what follows has not.
    let rest = |name: &[u8]| name.iter().position(|byte| *byte == b'-').map(|dash| name[dash..].to_vec());
    let wanted = rest(&file.name);
    let exact = by_name(tree, &heads, &file.name);
    let moved = || heads.all().iter().enumerate().find(|(n, head)| rest(&name(tree, *n, head)) == wanted);
    let head = exact.or_else(|| moved().map(|(_, head)| *head)).ok_or(errno::MISSING)?;
    Ok((path, heads, head))
}

/// The attributes of a head's file.
pub(crate) fn attr(tree: &Tree, file: &Seen, store: StoreId) -> Answer<Attr> {
    let (.., head) = this(tree, file, store)?;
    let mode = if head.kind == Kind::Deleted { 0o444 } else { head.mode };
    let mtime = if head.kind == Kind::Deleted { nanos(&head) } else { head.mtime };
    Ok(Attr { ino: file.ino, kind: kind(&head), mode, size: head.content.size(), mtime })
}

fn nanos(head: &Head) -> i64 {
    i64::try_from(head.hlc.millis().0).unwrap_or(i64::MAX).saturating_mul(1_000_000)
}

/// The head that a file is.
pub(crate) fn version(tree: &Tree, file: &Seen, store: StoreId) -> Answer<Head> {
    this(tree, file, store).map(|(.., head)| head)
}

/// `rm` of a head: the others stay, and the first of them is written again to say so.
pub(crate) fn remove(tree: &Tree, file: &Seen, store: StoreId) -> Answer<()> {
    let (path, heads, head) = this(tree, file, store)?;
    let kv = tree.kv(&store)?;
    let Some(stays) = heads.all().iter().find(|other| other.id != head.id) else {
        tree.commit(&kv, vec![Op::Delete { path, supersedes: vec![head.id] }])?;
        return Ok(());
    };
    let supersedes = vec![head.id, stays.id];
    tree.commit(&kv, vec![stays.again(path, supersedes)])?;
    Ok(())
}

/// `mv` of a head onto a key of its store: the key becomes it. Onto another key: its own key loses it as well.
pub(crate) fn settle(tree: &Tree, file: &Seen, store: StoreId, target: Vec<u8>) -> Answer<()> {
    let (path, heads, head) = this(tree, file, store)?;
    let kv = tree.kv(&store)?;
    let there = kv.heads(&target)?;
    let supersedes = there.iter().flat_map(|heads| heads.all()).map(|head| head.id).collect();
    let mut ops = vec![head.again(target.clone(), supersedes)];
    if target != path {
        let others: Vec<_> = heads.all().iter().filter(|other| other.id != head.id).collect();
        ops.push(match others.first() {
            Some(stays) => stays.again(path, vec![head.id, stays.id]),
            None => Op::Delete { path, supersedes: vec![head.id] },
        });
    }
    tree.commit(&kv, ops)?;
    Ok(())
}
