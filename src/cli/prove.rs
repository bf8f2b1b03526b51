//! `lattice prove`: a file that shows to others that an entry counts.

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::Args;
use serde_json::json;

use super::key::{HOME, named};
use super::{Context, Ended};
use crate::api::wire::ProveRequest;
use crate::api::{Failure, Kind};

const EXAMPLES: &str = "\
Examples:
  lattice prove notes/today > today.proof            what the key shows now; also that it was deleted
  lattice prove notes/today --entry 3fa9 > today.proof
  lattice prove --entry 3fa9 > entry.proof           all that an entry did

`lattice verify` checks it, on any machine, without a node. It holds the entry and the whole root store: whoever gets it learns the \
names of the mesh's members and stores, and all that the entry holds: a transaction, restore or undo holds many keys. Large values are proven by their hash, and not in it.";

/// Print a proof that an entry counts in this mesh, for those who have no node
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Prove {
    /// The key's path
    #[arg(required_unless_present = "entry", default_value = "", hide_default_value = true)]
    path: OsString,
    /// The entry: the start of its hash, four digits or more [default: the last that wrote to the key]
    #[arg(long, default_value = "", value_name = "HASH", hide_default_value = true)]
    entry: String,
    /// The store [default: home; of an entry alone, any]
    #[arg(long, short, default_value = "", value_name = "NAME", hide_default_value = true)]
    store: String,
}

impl Prove {
    pub(super) async fn run(self, context: &Context) -> Ended {
        if !context.output.is_json() && std::io::stdout().is_terminal() {
            return Err(Failure::new(Kind::Usage, "a proof is no text for a terminal")
                .hint("send it to a file: `lattice prove PATH > FILE`")
                .into());
        }
        let client = context.client().await?;
        let (store, path) = if self.path.is_empty() {
            (self.store, Vec::new())
        } else {
            let store = if self.store.is_empty() { HOME.to_owned() } else { self.store };
            named(&client, store, self.path).await?
        };
        let request = ProveRequest { store, path, entry: self.entry };
        let mut parts = client.past().prove(request).await?.into_inner();
        let mut proof = Vec::new();
        while let Some(part) = parts.message().await? {
            proof.extend(part.data);
        }
        if context.output.is_json() {
            let text = data_encoding::BASE64.encode(&proof);
            return context.output.value(&json!({"proof_base64": text, "size": proof.len()}));
        }
        context.output.raw(&proof)
    }
}
