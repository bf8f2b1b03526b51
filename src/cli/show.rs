//! `lattice show`: one entry.

use clap::Args;

use super::output::{escaped, hex, size};
use super::past::Change;
use super::{Context, Ended, json};
use crate::api::Failure;
use crate::api::wire::{LogEntry, ShowRequest, Write};
use crate::clock::Hlc;

const EXAMPLES: &str = "\
Examples:
  lattice show 3fa9                the entry whose hash begins so, in whichever store
  lattice show 3fa9 --store home --json

What each key was before is the last of the versions that the entry superseded.";

/// Print one entry: who made it, when, on which machine, and what it changed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Show {
    /// The start of the entry's hash: four digits or more
    entry: String,
    /// The store it is in [default: any]
    #[arg(long, short, default_value = "", value_name = "NAME", hide_default_value = true)]
    store: String,
}

impl Show {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let request = ShowRequest { entry: self.entry, store: self.store };
        let reply = client.past().show(request).await?.into_inner();
        let entry = reply.entry.ok_or_else(|| Failure::failed("the node's answer holds no entry"))?;
        let changes = || reply.writes.iter().map(|write| change(&reply.store, write));
        if context.output.is_json() {
            let mut value = json::entry(&entry);
            value["store"] = reply.store.as_str().into();
            value["kind"] = reply.kind.as_str().into();
            let mut writes = Vec::new();
            for change in changes() {
                writes.push(change.json(&client).await?);
            }
            value["writes"] = writes.into();
            return context.output.value(&value);
        }
        context.output.line(described(&reply.store, &entry, context))?;
        for change in changes() {
            if !change.is_none() {
                context.output.line("")?;
                change.print(&client, context).await?;
            }
        }
        Ok(())
    }
}

fn change<'a>(store: &'a str, write: &'a Write) -> Change<'a> {
    let after = write.after.as_ref().filter(|head| head.kind != "deleted");
    Change { store, path: &write.path, before: write.before.as_ref(), after }
}

fn described(store: &str, entry: &LogEntry, context: &Context) -> String {
    let parents: Vec<_> = entry.parents.iter().map(|parent| super::output::short(parent)).collect();
    let mut lines = vec![
        format!("entry    {}", hex(&entry.hash)),
        format!("store    {}", escaped(store.as_bytes())),
        format!("machine  {}  ({})", escaped(entry.author_name.as_bytes()), hex(&entry.author)),
        format!("number   {}", entry.seq),
        format!("time     {}", context.output.time(Hlc(entry.hlc).millis().0)),
        format!("follows  {}", parents.join(" ")),
        format!("payload  {}", size(u64::from(entry.size))),
    ];
    lines.extend(entry.does.iter().map(|does| format!("does     {}", escaped(does.as_bytes()))));
    lines.extend(entry.noop.iter().map(|noop| format!("no effect: {}", escaped(noop.as_bytes()))));
    lines.join("\n")
}
