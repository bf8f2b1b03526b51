//! `lattice restore`: making keys what they were.

use std::ffi::OsString;

use clap::Args;

use super::key::{HOME, below};
use super::past::{MOMENTS, moment, told};
use super::{Context, Ended, json};
use crate::api::wire::RestoreRequest;

const EXAMPLES: &str = "\
Examples:
  lattice restore notes/today --at 2h-ago
  lattice restore notes --at 2026-11-22 --dry-run
  lattice restore notes/today --at 3fa9^       as it was before that entry

All that stands at and below the path becomes what it was: what has come since is deleted. One entry, on all machines, or as few as \
it fits; nothing is lost: the versions of now stay in the history, and `lattice undo` takes it back.

";

/// Make a key, or a directory of keys, what it was at a moment
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}{MOMENTS}"))]
pub(super) struct Restore {
    /// The key's path, or a directory's, or the whole path of its file on the mount; '' for the whole store
    path: OsString,
    /// When
    #[arg(long, value_name = "MOMENT")]
    at: String,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Restore {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let (client, dry) = (context.client().await?, self.dry_run);
        let (store, path) = below(&client, self.store, self.path).await?;
        let request = RestoreRequest { store: store.clone(), path, moment: Some(moment(&self.at)), dry };
        let reply = client.past().restore(request).await?.into_inner();
        let value = json::going_back(&reply.hashes, &reply.restored, &reply.deleted);
        context.output.either(&value, told(context, &store, &reply.hashes, dry, &reply.restored, &reply.deleted))
    }
}
