//! `lattice conflicts show`: what each head of a key changed.

use std::ffi::OsString;

use clap::Args;

use super::ancestor::ancestor;
use super::named;
use crate::api::wire::Key;
use crate::cli::key::HOME;
use crate::cli::kv::described;
use crate::cli::past::Change;
use crate::cli::{Context, Ended, json};

const EXAMPLES: &str = "\
Examples:
  lattice conflicts show notes/today
  lattice conflicts show 'notes/**' --json

Each head is compared with the last version that all of them come from; where there is none, with nothing.";

/// Show what each head of a key changed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Show {
    /// The keys: paths, directories, globs, or whole paths of files on the mount
    #[arg(required = true)]
    keys: Vec<OsString>,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

impl Show {
    pub(super) async fn run(mut self, context: &Context) -> Ended {
        let client = context.client().await?;
        for Key { path, heads, shadowed } in named(&client, &mut self.store, std::mem::take(&mut self.keys)).await? {
            let base = ancestor(&client, &self.store, &path, &heads).await?;
            let live = |at: usize| Some(&heads[at]).filter(|head| head.kind != "deleted");
            let change = |at: usize| Change { store: &self.store, path: &path, before: base.as_ref(), after: live(at) };
            if context.output.is_json() {
                let mut changes = Vec::new();
                for at in 0..heads.len() {
                    changes.push(change(at).json(&client).await?);
                }
                let key = Key { path: path.clone(), heads: heads.clone(), shadowed };
                let mut value = json::key_of(&self.store, &key);
                value["ancestor"] = base.as_ref().map(json::head).into();
                value["changes"] = changes.into();
                context.output.value(&value)?;
                continue;
            }
            for (at, head) in heads.iter().enumerate() {
                context.output.line(format!("{at}  {}", described(head, context)))?;
                if change(at).is_none() {
                    context.output.line("no change")?;
                } else {
                    change(at).print(&client, context).await?;
                }
                context.output.line("")?;
            }
            if shadowed {
                context.output.line("keys lie below it, which the mount shows in its place: delete them, or it")?;
            }
        }
        Ok(())
    }
}
