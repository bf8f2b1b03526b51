//! `lattice conflicts`: keys with more than one head.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;

use super::kv::described;
use super::{Context, Ended, json};
use crate::api::wire::{ConflictsRequest, StoresRequest};

const EXAMPLES: &str = "\
Examples:
  lattice conflicts
  lattice conflicts home notes/
  lattice conflicts --json | jq -r .path

The first head of a key is the one that the mount shows. To settle a key, write it as usual, or copy the head that
you want over it: cp MOUNT/.heads/STORE/PATH/HEAD MOUNT/stores/STORE/keys/PATH";

/// List the keys that were changed in two places at once, with all their heads
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Conflicts {
    /// Only in this store
    store: Option<String>,
    /// Only keys that begin with it
    #[arg(default_value = "", hide_default_value = true)]
    prefix: OsString,
}

impl Conflicts {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let prefix = self.prefix.into_vec();
        let stores = match self.store {
            Some(store) => vec![store],
            None => {
                let stores = client.stores().list(StoresRequest {}).await?.into_inner().stores;
                let kv = stores.into_iter().filter(|store| store.kind == "kv" && store.damaged.is_none());
                kv.map(|store| store.name).collect()
            }
        };
        let mut none = true;
        for store in stores {
            let request = ConflictsRequest { store: store.clone(), prefix: prefix.clone() };
            let mut keys = client.kv().conflicts(request).await?.into_inner();
            while let Some(key) = keys.message().await? {
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
        if none {
            context.output.note("no conflicts");
        }
        Ok(())
    }
}
