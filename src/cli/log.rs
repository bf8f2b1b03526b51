//! `lattice log`: a store's entries.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::graph::draw;
use super::key::{HOME, below};
use super::output::{escaped, short, size};
use super::{Context, Ended, json};
use crate::api::wire::{LogEntry, LogRequest};
use crate::api::{Failure, Kind};
use crate::clock::Hlc;

const EXAMPLES: &str = "\
Examples:
  lattice log
  lattice log home -n 20
  lattice log --follow --json
  lattice log home notes           what wrote to notes, or below it
  lattice log home --graph         what each entry follows
  lattice log root                 members, invites and stores";

/// Print a store's entries, oldest first
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Log {
    /// The store; `root` is the mesh's own. Or the whole path of a file on the mount, which names its key too
    #[arg(default_value = HOME)]
    store: String,
    /// Only what wrote to this key, or below this directory
    #[arg(default_value = "", hide_default_value = true)]
    path: OsString,
    /// Only the last N
    #[arg(
        long,
        short = 'n',
        visible_alias = "limit",
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true
    )]
    last: u64,
    /// Go on with entries as they come
    #[arg(long, short)]
    follow: bool,
    /// Draw beside them what each follows
    #[arg(long, conflicts_with = "follow")]
    graph: bool,
}

impl Log {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let (client, follow) = (context.client().await?, self.follow);
        let (store, path) = match Path::new(&self.store).is_absolute() {
            true if self.path.is_empty() => (HOME.to_owned(), OsString::from(self.store)),
            _ => (self.store, self.path),
        };
        let (store, path) = below(&client, store, path).await?;
        let request = LogRequest { store, last: self.last, follow, path };
        let mut entries = client.stores().log(request).await?.into_inner();
        if self.graph && !context.output.is_json() {
            let mut all = Vec::new();
            while let Some(entry) = entries.message().await? {
                all.push(entry);
            }
            return drawn(&all, context);
        }
        while let Some(entry) = entries.message().await? {
            context.output.either(&json::entry(&entry), described(&entry, context))?;
        }
        if follow {
            return Err(Failure::new(Kind::Unavailable, "the node stopped").into());
        }
        Ok(())
    }
}

/// Prints entries beside the drawing of what each follows.
fn drawn(entries: &[LogEntry], context: &Context) -> Ended {
    let names: Vec<_> = entries.iter().map(|entry| (entry.hash.clone(), entry.parents.clone())).collect();
    for (entry, drawing) in entries.iter().zip(draw(&names)) {
        if let Some(above) = drawing.above {
            context.output.line(above)?;
        }
        for (number, line) in described(entry, context).lines().enumerate() {
            let beside = if number == 0 { &drawing.node } else { &drawing.beside };
            context.output.line(format!("{beside}  {line}"))?;
        }
        if let Some(below) = drawing.below {
            context.output.line(below)?;
        }
    }
    Ok(())
}

fn described(entry: &LogEntry, context: &Context) -> String {
    let mut text = format!(
        "{}  {}  {} #{}  {}",
        context.output.time(Hlc(entry.hlc).millis().0),
        short(&entry.hash),
        escaped(entry.author_name.as_bytes()),
        entry.seq,
        size(u64::from(entry.size)),
    );
    for does in &entry.does {
        text.push_str("\n    ");
        text.push_str(&escaped(does.as_bytes()));
    }
    if let Some(noop) = &entry.noop {
        text.push_str("\n    no effect: ");
        text.push_str(&escaped(noop.as_bytes()));
    }
    text
}
