//! `lattice kv`: the keys of a store, without the mount.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::key::{HOME, named};
use super::output::{escaped, size};
use super::progress::Progress;
use super::{Context, Ended, json};
use crate::api::wire::{DeleteRequest, GetPart, GetRequest, Head, Key, ListRequest, PutPart, WatchRequest};
use crate::api::{Failure, Kind};
use crate::clock::Hlc;
use crate::config::quoted;

/// Read, write, list and watch keys
#[derive(Debug, Subcommand)]
pub(super) enum Kv {
    Get(Get),
    Put(Put),
    Delete(Delete),
    List(List),
    Watch(Watch),
    Batch(super::batch::Batch),
}

#[derive(Debug, Args)]
struct Store {
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

const GET: &str = "\
Examples:
  lattice kv get notes/today
  lattice kv get --store photos 2026/cat.jpg > cat.jpg
  lattice kv get notes/today --head 3fa9        one of several heads: `lattice conflicts` lists them

Without --head it is the value that the mount shows. If the key has several heads, stderr says so; --json gives them all.";

/// Print a key's value
#[derive(Debug, Args)]
#[command(after_help = GET)]
pub(super) struct Get {
    /// The key's path, or the whole path of its file on the mount
    path: OsString,
    #[command(flatten)]
    store: Store,
    /// The head whose hash begins so
    #[arg(long, default_value = "", value_name = "HASH", hide_default_value = true)]
    head: String,
}

const PUT: &str = "\
Examples:
  lattice kv put notes/today 'buy bread'
  date | lattice kv put notes/now
  lattice kv put photos/cat.jpg --file cat.jpg

Returns when the value is on this machine's disk. Supersedes all heads that the key has here, and says so if there are \
several.";

/// Write a key's value
#[derive(Debug, Args)]
#[command(after_help = PUT)]
pub(super) struct Put {
    /// The key's path, or the whole path of its file on the mount
    path: OsString,
    /// The value [default: what stdin gives]
    #[arg(conflicts_with = "file", allow_negative_numbers = true)]
    value: Option<OsString>,
    /// The file that holds the value
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    store: Store,
}

const DELETE: &str = "\
Examples:
  lattice kv delete notes/today

Supersedes all heads that the key has here, and says so if there are several.";

/// Delete a key
#[derive(Debug, Args)]
#[command(after_help = DELETE)]
pub(super) struct Delete {
    /// The key's path, or the whole path of its file on the mount
    path: OsString,
    #[command(flatten)]
    store: Store,
}

const LIST: &str = "\
Examples:
  lattice kv list
  lattice kv list notes/
  lattice kv list --long --store photos
  lattice kv list --json | jq -r 'select(.heads | length > 1) | .path'";

/// List keys in the order of their paths
#[derive(Debug, Args)]
#[command(after_help = LIST)]
pub(super) struct List {
    /// Only keys that begin with it, or with the key of this file on the mount
    #[arg(default_value = "", hide_default_value = true)]
    prefix: OsString,
    /// With kind, mode, size, time and author
    #[arg(long, short)]
    long: bool,
    #[command(flatten)]
    store: Store,
}

const WATCH: &str = "\
Examples:
  lattice kv watch
  lattice kv watch notes/ --json | while read -r change; do echo \"$change\"; done

Goes on until it is stopped. `heads` means that only what lies beside the shown value changed: a conflict came or went.";

/// Print changes as they come
#[derive(Debug, Args)]
#[command(after_help = WATCH)]
pub(super) struct Watch {
    /// Only keys that begin with it, or with the key of this file on the mount
    #[arg(default_value = "", hide_default_value = true)]
    prefix: OsString,
    #[command(flatten)]
    store: Store,
}

/// How much of a value is sent at once.
const PART: usize = 256 * 1024;
/// How many bytes of lines are gathered before they are printed.
const LINES: usize = 32 * 1024;

impl Kv {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self {
            Self::Get(get) => get.run(context).await,
            Self::Put(put) => put.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Watch(watch) => watch.run(context).await,
            Self::Batch(batch) => batch.run(context).await,
        }
    }
}

impl Get {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, path) = named(&client, self.store.store, self.path).await?;
        let chosen = !self.head.is_empty();
        let request = GetRequest { store: store.clone(), path: path.clone(), head: self.head };
        let mut parts = client.kv().get(request).await?.into_inner();
        let first = parts.message().await?;
        let key = first.and_then(|first: GetPart| first.key).unwrap_or_default();
        let total = key.heads.first().map_or(0, |head| head.size);
        let mut whole = Vec::new();
        let mut done = 0;
        let mut ended = true;
        let mut progress = Progress::new(&context.output);
        while let Some(part) = parts.message().await? {
            done += part.data.len() as u64;
            ended = part.data.ends_with(b"\n");
            if context.output.is_json() {
                whole.extend(part.data);
            } else {
                context.output.raw(&part.data)?;
                if !std::io::stdout().is_terminal() {
                    progress.say("reading", &format!("{} of {}", size(done), size(total)));
                }
            }
        }
        drop(progress);
        if context.output.is_json() {
            return context.output.value(&with_value(json::key(&key), whole));
        }
        if !ended && std::io::stdout().is_terminal() {
            context.output.line("")?;
        }
        if key.heads.len() > 1 && !chosen {
            context.output.remark(format!(
                "note: {} has {} heads: it was changed in several places at once, and this is the one that the mount shows. \
                 `{}` lists them, --head prints one",
                escaped(&path),
                key.heads.len(),
                context.typed(&format!("conflicts --store {store} {}", quoted(Path::new(OsStr::from_bytes(&path)))))
            ));
        }
        Ok(())
    }
}

/// Says that a write has settled a conflict, and what it has superseded.
fn settled(context: &Context, path: &str, superseded: &[Head]) {
    if superseded.len() > 1 {
        let heads = superseded.iter().map(|head| {
            let author = escaped(head.author_name.as_bytes());
            format!(
                "\n  {}  {}  {author}",
                super::output::short(&head.hash),
                context.output.time(Hlc(head.hlc).millis().0)
            )
        });
        let heads: String = heads.collect();
        context
            .output
            .remark(format!("note: {path} had {} heads; all of them are superseded now:{heads}", superseded.len()));
    }
}

fn with_value(mut key: Value, value: Vec<u8>) -> Value {
    match String::from_utf8(value) {
        Ok(text) => key["value"] = text.into(),
        Err(bytes) => key["value_base64"] = data_encoding::BASE64.encode(bytes.as_bytes()).into(),
    }
    key
}

impl Put {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, path) = named(&client, self.store.store, self.path).await?;
        let shown = escaped(&path);
        let (mut source, total): (Box<dyn Read + Send>, u64) = match (self.value, self.file) {
            (Some(value), _) => {
                let value = value.into_vec();
                let total = value.len() as u64;
                (Box::new(std::io::Cursor::new(value)), total)
            }
            (None, Some(file)) => {
                let at = |error| Failure::failed(format!("{}: {error}", file.display()));
                let opened = std::fs::File::open(&file).map_err(at)?;
                let total = opened.metadata().map_err(at)?.len();
                (Box::new(opened), total)
            }
            (None, None) => (Box::new(std::io::stdin()), 0),
        };
        let mut client = client.kv();
        let (parts, stream) = mpsc::channel(4);
        let (told, mut sent) = mpsc::unbounded_channel();
        let first = PutPart { store, path, ..PutPart::default() };
        let read = tokio::task::spawn_blocking(move || {
            let mut part = first;
            loop {
                let more = source.by_ref().take(PART as u64).read_to_end(&mut part.data)?;
                // Both are gone only when the call has ended, whose own failure is told.
                if (more > 0 || !part.path.is_empty()) && parts.blocking_send(part).is_err() || more == 0 {
                    return Ok::<_, std::io::Error>(());
                }
                told.send(more as u64).ok();
                part = PutPart::default();
            }
        });
        let mut progress = Progress::new(&context.output);
        let call = client.put(ReceiverStream::new(stream));
        let mut call = std::pin::pin!(call);
        let mut done = 0;
        let reply = loop {
            tokio::select! {
                reply = call.as_mut() => break reply?.into_inner(),
                Some(more) = sent.recv() => {
                    done += more;
                    let how_far = if total == 0 { size(done) } else { format!("{} of {}", size(done), size(total)) };
                    progress.say("writing", &how_far);
                }
            }
        };
        drop(progress);
        read.await.map_err(Failure::failed)?.map_err(|error| Failure::failed(format!("the value: {error}")))?;
        let hash = super::output::hex(&reply.hash);
        let superseded: Vec<_> = reply.superseded.iter().map(json::head).collect();
        settled(context, &shown, &reply.superseded);
        let result = json!({"path": shown, "hash": hash, "size": reply.size, "superseded": superseded});
        context.output.either(&result, "")
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, path) = named(&client, self.store.store, self.path).await?;
        let shown = escaped(&path);
        let request = DeleteRequest { store, path };
        let reply = client.kv().delete(request).await?.into_inner();
        let superseded: Vec<_> = reply.superseded.iter().map(json::head).collect();
        settled(context, &shown, &reply.superseded);
        let hash = super::output::hex(&reply.hash);
        context.output.either(&json!({"path": shown, "hash": hash, "superseded": superseded}), "")
    }
}

impl List {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, prefix) = named(&client, self.store.store, self.prefix).await?;
        let request = ListRequest { store, prefix };
        let mut keys = client.kv().list(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(key) = keys.message().await? {
            if context.output.is_json() {
                lines.extend(json::key(&key).to_string().into_bytes());
            } else if self.long {
                lines.extend(long(&key, context));
            } else {
                lines.extend(context.output.shown(&key.path));
            }
            lines.push(b'\n');
            if lines.len() >= LINES {
                context.output.raw(&lines)?;
                lines.clear();
            }
        }
        context.output.raw(&lines)
    }
}

fn long(key: &Key, context: &Context) -> Vec<u8> {
    let Some(head) = key.heads.first() else { return context.output.shown(&key.path) };
    let more = if key.heads.len() > 1 { format!("  [{} heads]", key.heads.len()) } else { String::new() };
    let mut line = described(head, context).into_bytes();
    line.extend(b"  ");
    line.extend(context.output.shown(&key.path));
    line.extend(more.into_bytes());
    line
}

/// A head in columns, for people.
pub(super) fn described(head: &Head, context: &Context) -> String {
    format!(
        "{:<9}  {:04o}  {:>10}  {}  {}  {}",
        head.kind,
        head.mode,
        size(head.size),
        context.output.time(Hlc(head.hlc).millis().0),
        super::output::short(&head.hash),
        escaped(head.author_name.as_bytes()),
    )
}

impl Watch {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, prefix) = named(&client, self.store.store, self.prefix).await?;
        let request = WatchRequest { store: store.clone(), prefix };
        let mut changes = client.kv().watch(request).await?.into_inner();
        while let Some(change) = changes.message().await? {
            if change.what.is_empty() {
                context.output.note(format!("watching {store}; ctrl-c ends it"));
            } else if context.output.is_json() {
                context.output.value(&json::change(&change))?;
            } else {
                let time = context.output.time(Hlc(change.hlc).millis().0);
                let author = escaped(change.author_name.as_bytes());
                let mut line = format!("{time}  {author}  {}  ", change.what).into_bytes();
                line.extend(context.output.shown(&change.path));
                line.push(b'\n');
                context.output.raw(&line)?;
            }
        }
        Err(Failure::new(Kind::Unavailable, "the node stopped").into())
    }
}
