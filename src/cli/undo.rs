//! `lattice undo`: taking back what entries did.

use clap::Args;

use super::key::{HOME, named};
use super::output::escaped;
use super::past::{time, told};
use super::{Context, Ended, json};
use crate::api::wire::UndoRequest;
use crate::api::{Failure, Kind};

/// How many of the keys that are left as they are it names.
const NOTES: usize = 10;

const EXAMPLES: &str = "\
Examples:
  lattice undo 3fa9                                  one entry
  lattice undo 3fa9 51c0 e77d                        several, such as an undo or a restore of many keys takes
  lattice undo --by laptop --since 2h-ago            all that a machine wrote since then
  lattice undo --by laptop --since 14:00 --path 'notes/**' --dry-run

Each key gets the value that it would show without those entries. A key that other entries have written since is left as it is, and named. \
One entry, on all machines, or as few as it fits, which can be undone themselves: `lattice undo` with their hashes.";

/// Take back what entries did, or what a machine wrote since some time
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Undo {
    /// The starts of the entries' hashes: four digits or more each
    #[arg(required_unless_present = "by", conflicts_with_all = ["by", "since"], value_name = "ENTRY")]
    entries: Vec<String>,
    /// The machine: its name or the start of its id
    #[arg(long, value_name = "MACHINE", requires = "since", default_value = "", hide_default_value = true)]
    by: String,
    /// Since when: 2h-ago, 14:00, 2026-11-22T14:00
    #[arg(long, value_name = "TIME", requires = "by", value_parser = time)]
    since: Option<u64>,
    /// Only keys that it matches: * within a name, ** across them
    #[arg(long, value_name = "GLOB", default_value = "", hide_default_value = true)]
    path: String,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Undo {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let (dry, client) = (self.dry_run, context.client().await?);
        let (store, glob) = named(&client, self.store, self.path.into()).await?;
        let glob = String::from_utf8(glob).map_err(|_bytes| Failure::new(Kind::Usage, "the glob is no text"))?;
        let request = UndoRequest {
            store: store.clone(),
            hashes: self.entries,
            author: self.by,
            since: self.since.unwrap_or(0),
            glob,
            dry,
        };
        let reply = client.past().undo(request).await?.into_inner();
        let mut value = json::going_back(&reply.hashes, &reply.restored, &reply.deleted);
        value["kept"] = json::paths(&reply.kept);
        value["entries"] = reply.entries.into();
        for path in reply.kept.iter().take(NOTES) {
            context
                .output
                .remark(format!("note: {} was written since by other entries, and is left as it is", escaped(path)));
        }
        if let Some(more) = reply.kept.len().checked_sub(NOTES).filter(|more| *more > 0) {
            context.output.remark(format!("note: so are {more} more; --json names them all"));
        }
        context.output.either(&value, told(context, &store, &reply.hashes, dry, &reply.restored, &reply.deleted))
    }
}
