//! `lattice blame`: which entry each line of a key comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Args;
use serde_json::json;
use similar::{Algorithm, DiffTag, capture_diff_slices};

use super::key::{HOME, named};
use super::output::{escaped, hex, short, utc};
use super::past::{content, text};
use super::{Context, Ended};
use crate::api::Failure;
use crate::api::wire::{Head, Key, Version, VersionsRequest};
use crate::clock::Hlc;

const EXAMPLES: &str = "\
Examples:
  lattice blame notes/today
  lattice blame notes/today --json | jq -r .author_name | sort | uniq -c

Of a merge of several versions, a line is of the first that had it.";

/// Say of each line of a text who wrote it, when, and by which entry
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Blame {
    /// The key's path, or the whole path of its file on the mount
    path: OsString,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

/// Names a write: its entry's hash, and the operation.
type Name = (Vec<u8>, u32);

fn name(head: &Head) -> Name {
    (head.hash.clone(), head.op)
}

/// The lines of a version, and the place of the version that each comes from.
type Lines = (Vec<Vec<u8>>, Vec<usize>);

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Where each line of version `me` comes from: from one of those that it superseded, or from itself.
fn inherit(me: usize, text: Vec<Vec<u8>>, parents: &[&Lines]) -> Lines {
    let mut from = vec![me; text.len()];
    for (old, origins) in parents.iter().rev() {
        for op in capture_diff_slices(Algorithm::Patience, old, &text) {
            if op.tag() == DiffTag::Equal {
                let (old, new) = (op.old_range(), op.new_range());
                from[new].copy_from_slice(&origins[old]);
            }
        }
    }
    (text, from)
}

/// The versions that the one at `last` stands on, itself included, oldest first.
fn ancestors(versions: &[Version], last: usize) -> Vec<usize> {
    let places: BTreeMap<Name, usize> =
        versions.iter().zip(0..).filter_map(|(version, at)| Some((name(version.head.as_ref()?), at))).collect();
    let mut found = std::collections::BTreeSet::new();
    let mut left = vec![last];
    while let Some(at) = left.pop() {
        if found.insert(at) {
            let names = versions[at].supersedes.iter().map(|name| (name.hash.clone(), name.op));
            left.extend(names.filter_map(|name| places.get(&name)));
        }
    }
    found.into_iter().collect()
}

impl Blame {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, path) = named(&client, self.store, self.path).await?;
        let shown = shown(&client, &store, &path).await?;
        let mut stream = client.past().versions(VersionsRequest { store: store.clone(), path: path.clone() }).await?;
        let mut versions = Vec::new();
        while let Some(version) = stream.get_mut().message().await? {
            versions.push(version);
        }
        let last =
            versions.iter().position(|version| version.head.as_ref().is_some_and(|head| name(head) == name(&shown)));
        let last = last.ok_or_else(|| Failure::failed("the history does not hold what is shown"))?;
        let mut known: BTreeMap<Name, Lines> = BTreeMap::new();
        for at in ancestors(&versions, last) {
            let Some(head) = &versions[at].head else { continue };
            let before = versions[at].supersedes.iter().filter_map(|name| known.get(&(name.hash.clone(), name.op)));
            let before: Vec<_> = before.collect();
            let text = text(&client, &store, &path, Some(head)).await?;
            // What is no text between texts has no lines to hand on.
            let lines = inherit(at, text.as_deref().map(lines).unwrap_or_default(), &before);
            known.insert(name(head), lines);
        }
        let (_, from) = known.remove(&name(&shown)).unwrap_or_default();
        let whole = content(&client, &store, &path, &shown).await?;
        if whole.contains(&0) || (from.is_empty() && !whole.is_empty()) {
            return Err(Failure::refused(format!("'{}' is no text", escaped(&path))).into());
        }
        for (number, (line, from)) in lines(&whole).iter().zip(from).enumerate() {
            let Some(head) = &versions[from].head else { continue };
            print(context, number + 1, line.strip_suffix(b"\n").unwrap_or(line), head)?;
        }
        Ok(())
    }
}

/// The version that the mount shows.
async fn shown(client: &crate::api::Client, store: &str, path: &[u8]) -> Result<Head, Failure> {
    let request = crate::api::wire::GetRequest { store: store.to_owned(), path: path.to_vec(), head: String::new() };
    let first = client.kv().get(request).await?.into_inner().message().await?;
    let heads = first.and_then(|part| part.key).map(|Key { heads, .. }| heads).unwrap_or_default();
    heads.into_iter().next().ok_or_else(|| Failure::failed("the node's answer names no version"))
}

fn print(context: &Context, number: usize, line: &[u8], head: &Head) -> Ended {
    let millis = Hlc(head.hlc).millis().0;
    if context.output.is_json() {
        return context.output.value(&json!({
            "line": number, "text": String::from_utf8_lossy(line), "hash": hex(&head.hash), "author": hex(&head.author),
            "author_name": head.author_name, "hlc": head.hlc, "time": utc(millis),
        }));
    }
    let author = escaped(head.author_name.as_bytes());
    let start = format!("{}  {}  {author:<12}  {number:>4}  ", short(&head.hash), context.output.time(millis));
    let mut out = start.into_bytes();
    out.extend(context.output.shown(line));
    out.push(b'\n');
    context.output.raw(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_of_the_version_that_first_had_it() {
        let first = inherit(0, lines(b"a\nb\nc\n"), &[]);
        assert_eq!(first.1, [0, 0, 0]);
        let second = inherit(1, lines(b"a\nB\nc\nd\n"), &[&first]);
        assert_eq!(second.1, [0, 1, 0, 1]);
        let other = inherit(2, lines(b"a\nb\nc\ne\n"), &[&first]);
        let merged = inherit(3, lines(b"a\nB\nc\nd\ne\n"), &[&second, &other]);
        assert_eq!(merged.1, [0, 1, 0, 1, 2]);
    }
}
