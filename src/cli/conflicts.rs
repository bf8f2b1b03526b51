//! `lattice conflicts`: keys with more than one head, and settling them.

mod ancestor;
mod merge;
mod pick;
mod show;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Args, Subcommand};
use globset::{GlobBuilder, GlobMatcher};

use super::key::{HOME, all_named, names_store};
use super::kv::described;
use super::output::escaped;
use super::{Context, Ended, json};
use crate::api::wire::{ConflictsRequest, Key, StoresRequest};
use crate::api::{Client, Failure, Kind};

/// List, compare and settle the keys that were changed in two places at once
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Conflicts {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(List),
    Show(show::Show),
    Pick(pick::Pick),
    Merge(merge::Merge),
}

const LIST: &str = "\
Examples:
  lattice conflicts
  lattice conflicts notes/
  lattice conflicts --store photos
  lattice conflicts list --json | jq -r .path

The first head of a key is the one that the mount shows. To settle a key, write it as usual, or copy the head that \
you want over it: cp MOUNT/.heads/STORE/PATH/HEAD MOUNT/stores/STORE/keys/PATH; or see `lattice conflicts pick` and `merge`.";

/// List the keys that were changed in two places at once, with all their heads
#[derive(Debug, Args)]
#[command(after_help = LIST)]
struct List {
    /// The keys: paths, directories, globs, or whole paths of files on the mount [default: all that need a person]
    keys: Vec<OsString>,
    /// The store [default: all]
    #[arg(long, short, value_name = "NAME")]
    store: Option<String>,
}

impl Conflicts {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self.action {
            None => self.list.run(context).await,
            Some(Action::List(list)) => list.run(context).await,
            Some(Action::Show(show)) => show.run(context).await,
            Some(Action::Pick(pick)) => pick.run(context).await,
            Some(Action::Merge(merge)) => merge.run(context).await,
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let mut keys = self.keys;
        let stores = match self.store {
            store if store.is_some() || names_store(&keys) => {
                let (store, of_it) = all_named(&client, store.unwrap_or_else(|| HOME.to_owned()), keys).await?;
                keys = of_it;
                vec![store]
            }
            _ => {
                let stores = client.stores().list(StoresRequest {}).await?.into_inner().stores;
                let kv = stores.into_iter().filter(|store| store.kind == "kv" && store.damaged.is_none());
                kv.map(|store| store.name).collect()
            }
        };
        let patterns = patterns(&keys)?;
        let mut none = true;
        for store in stores {
            for key in matching(&client, &store, &patterns).await? {
                none = false;
                if context.output.is_json() {
                    context.output.value(&json::key_of(&store, &key))?;
                    continue;
                }
                let mut line = context.output.shown(format!("{store}/").as_bytes());
                line.extend(context.output.shown(&key.path));
                line.push(b'\n');
                context.output.raw(&line)?;
                for (number, head) in key.heads.iter().enumerate() {
                    context.output.line(format!("  {number}  {}", described(head, context)))?;
                }
            }
        }
        if none && !patterns.is_empty() {
            return Err(no_match().into());
        }
        if none {
            context.output.note("no conflicts");
        }
        Ok(())
    }
}

/// A pattern of paths: a glob, a path, or a directory that they lie in.
struct Pattern {
    text: Vec<u8>,
    glob: GlobMatcher,
}

impl Pattern {
    fn new(text: &OsStr) -> Result<Self, Failure> {
        let glob = GlobBuilder::new(&text.to_string_lossy()).literal_separator(true).build();
        let glob = glob.map_err(|error| Failure::new(Kind::Usage, error))?.compile_matcher();
        let text = text.as_bytes();
        Ok(Self { text: text.strip_suffix(b"/").unwrap_or(text).to_vec(), glob })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let below = path.strip_prefix(self.text.as_slice());
        below.is_some_and(|rest| rest.is_empty() || rest[0] == b'/') || self.glob.is_match(OsStr::from_bytes(path))
    }
}

fn patterns(texts: &[OsString]) -> Result<Vec<Pattern>, Failure> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

fn no_match() -> Failure {
    Failure::not_found("no key that matches needs a person")
        .hint("`lattice conflicts` lists those of all stores, with --store NAME those of one")
}

/// The keys of a store that need a person and match one of the texts, of which there must be some; without any text, all. Files on the mount
/// name the store.
async fn named(client: &Client, store: &mut String, texts: Vec<OsString>) -> Result<Vec<Key>, Failure> {
    let (of, texts) = all_named(client, std::mem::take(store), texts).await?;
    *store = of;
    let found = matching(client, store, &patterns(&texts)?).await?;
    if found.is_empty() && !texts.is_empty() { Err(no_match()) } else { Ok(found) }
}

/// The keys of a store that need a person and match one of the patterns; without any pattern, all.
async fn matching(client: &Client, store: &str, patterns: &[Pattern]) -> Result<Vec<Key>, Failure> {
    let request = ConflictsRequest { store: store.to_owned(), prefix: Vec::new() };
    let mut keys = client.kv().conflicts(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(key) = keys.message().await? {
        if patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(&key.path)) {
            found.push(key);
        }
    }
    Ok(found)
}

/// What is left for a person, if anything, as the command's end.
fn left(left: &[(Vec<u8>, String)], context: &Context) -> Ended {
    let said = |(path, why): &(Vec<u8>, String)| format!("'{}' is not settled: {why}", escaped(path));
    let [rest @ .., last] = left else { return Ok(()) };
    for other in rest {
        context.output.remark(format!("note: {}", said(other)));
    }
    Err(Failure::refused(said(last)).hint("`lattice conflicts show PATH` compares the heads").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_glob_a_path_or_a_directory() {
        let is = |pattern: &str, path: &str| Pattern::new(OsStr::new(pattern)).unwrap().matches(path.as_bytes());
        assert!(
            is("notes", "notes") && is("notes", "notes/a/b") && is("notes/", "notes/a") && !is("notes", "notesbook")
        );
        assert!(is("*.txt", "a.txt") && !is("*.txt", "d/a.txt") && is("**/*.txt", "d/a.txt"));
        assert!(is("a[1]", "a[1]") && is("a[1]", "a1"));
    }
}
