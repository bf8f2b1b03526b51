//! `lattice log`: a store's entries.

use clap::Args;

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
  lattice log root                 members, invites and stores";

/// Print a store's entries, oldest first
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Log {
    /// The store; `root` is the mesh's own
    #[arg(default_value = "home")]
    store: String,
    /// Only the last N
    #[arg(long, short = 'n', value_name = "N", default_value_t = 0, hide_default_value = true)]
    last: u64,
    /// Go on with entries as they come
    #[arg(long, short)]
    follow: bool,
}

impl Log {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let follow = self.follow;
        let request = LogRequest { store: self.store, last: self.last, follow };
        let mut entries = context.client().await?.stores().log(request).await?.into_inner();
        while let Some(entry) = entries.message().await? {
            context.output.either(&json::entry(&entry), described(&entry, context))?;
        }
        if follow {
            return Err(Failure::new(Kind::Unavailable, "the node stopped").into());
        }
        Ok(())
    }
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
