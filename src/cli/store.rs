//! `lattice store`: declaring and deleting stores.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::ask::confirmed;
use super::output::{escaped, hex, size};
use super::{Context, Ended, json};
use crate::api::Failure;
use crate::api::wire::{
    self, CreateRequest, DeleteStoreRequest, PurgeRequest, RepairRequest, StoresRequest, VerifyRequest,
};

/// Declare, list and delete the stores of the mesh
#[derive(Debug, Subcommand)]
pub(super) enum Store {
    Create(Create),
    List(List),
    Status(Status),
    Delete(Delete),
    Purge(Purge),
    Verify(Verify),
    Repair(Repair),
}

/// What a store holds.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    /// Keys with values: files and directories
    Kv,
    /// Rooms with messages
    Chat,
}

const CREATE: &str = "\
Examples:
  lattice store create photos
  lattice store create talk --kind chat";

/// Declare a store: every member opens it
#[derive(Debug, Args)]
#[command(after_help = CREATE)]
pub(super) struct Create {
    /// The store's name: a directory's name under stores/
    name: String,
    /// What it holds
    #[arg(long, value_enum, default_value = "kv")]
    kind: Type,
}

const LIST: &str = "\
Examples:
  lattice store list
  lattice store list --json | jq -r .[].name";

/// List the stores
#[derive(Debug, Args)]
#[command(after_help = LIST)]
pub(super) struct List {}

const STATUS: &str = "\
Examples:
  lattice store status
  lattice store status home";

/// Show a store's counts, or all stores'
#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub(super) struct Status {
    /// The store's name
    name: Option<String>,
}

const DELETE: &str = "\
Examples:
  lattice store delete photos
  lattice store delete photos --yes     without asking

Asks first. Every member closes the store. Its files stay in the data directories until `lattice store purge` there.";

/// Delete a store on every node
#[derive(Debug, Args)]
#[command(after_help = DELETE)]
pub(super) struct Delete {
    /// The store's name
    name: String,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

const PURGE: &str = "\
Examples:
  lattice store purge
  lattice store purge --yes     without asking

Shows what is left on this node's disk of deleted stores and of meshes that it left, asks, and removes it. What only those files \
hold is lost with them. Large values stay in blobs/.";

/// Remove from this node's disk what is left of deleted stores and left meshes
#[derive(Debug, Args)]
#[command(after_help = PURGE)]
pub(super) struct Purge {
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

const VERIFY: &str = "\
Examples:
  lattice store verify          all stores, and `root`
  lattice store verify home

Reads everything: each entry's hash, signature and place in its author's chain, the indexes, and whether the state is what the \
entries make, for which it needs as much free disk as the state takes. The exit code is 1 if something is wrong.";

/// Check this node's files of stores against their entries' hashes and signatures
#[derive(Debug, Args)]
#[command(after_help = VERIFY)]
pub(super) struct Verify {
    /// The store
    store: Option<String>,
}

const REPAIR: &str = "\
Examples:
  lattice store repair home
  lattice store repair home --force    also if nothing is wrong with it

Looks first, as `lattice store verify` does, and leaves a sound store alone. In the place of a damaged file it puts a new one: with what is \
sound in it, and what the other members have. The store can only be read until a member has told that it has no more of what this node \
wrote: for that one must be online. The damaged file is kept, renamed.";

/// Make a store's damaged file anew, from what is sound in it and from the other members
#[derive(Debug, Args)]
#[command(after_help = REPAIR)]
pub(super) struct Repair {
    /// The store
    store: String,
    /// Make its file anew even if nothing is wrong with it, without looking
    #[arg(long)]
    force: bool,
}

impl Verify {
    async fn run(self, context: &Context) -> Ended {
        let request = VerifyRequest { store: self.store.unwrap_or_default() };
        let stores = context.client().await?.stores().verify(request).await?.into_inner().stores;
        let told = |store: &wire::Verified| json!({"name": store.name, "entries": store.entries, "excluded": store.excluded, "faults": store.faults});
        if context.output.is_json() {
            context.output.value(&stores.iter().map(told).collect())?;
        } else {
            for store in &stores {
                let state = if store.faults.is_empty() { "sound" } else { "damaged" };
                let aside = if store.excluded == 0 { String::new() } else { format!(" and {} aside", store.excluded) };
                let name = escaped(store.name.as_bytes());
                context.output.line(format!("{name}: {} entries{aside}, {state}", store.entries))?;
                for fault in &store.faults {
                    context.output.line(format!("  {}", escaped(fault.as_bytes())))?;
                }
            }
        }
        let damaged: Vec<_> = stores.iter().filter(|store| !store.faults.is_empty()).collect();
        let Some(first) = damaged.first() else { return Ok(()) };
        let names: Vec<_> = damaged.iter().map(|store| escaped(store.name.as_bytes())).collect();
        let repair = context.typed(&format!("store repair {}", first.name));
        let failure = Failure::failed(format!("damaged: {}", names.join(", ")));
        Err(failure.hint(format!("`{repair}` makes a store's file anew")).into())
    }
}

impl Repair {
    async fn run(self, context: &Context) -> Ended {
        let request = RepairRequest { store: self.store.clone(), force: self.force };
        let reply = context.client().await?.stores().repair(request).await?.into_inner();
        let name = escaped(self.store.as_bytes());
        if reply.sound {
            let said =
                format!("the store '{name}' is sound: nothing was done, --force makes its file anew all the same");
            return context
                .output
                .either(&json!({"store": self.store, "sound": true, "kept": null, "aside": null}), said);
        }
        context.output.either(
            &json!({"store": self.store, "sound": false, "kept": reply.kept, "aside": reply.aside}),
            format!("made the file of '{name}' anew with {} sound entries; the old one is {}", reply.kept, reply.aside),
        )?;
        context.output.note(format!("what is missing comes from the other members: `{}`", context.typed("store list")));
        Ok(())
    }
}

impl Store {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Status(status) => status.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
            Self::Purge(purge) => purge.run(context).await,
            Self::Verify(verify) => verify.run(context).await,
            Self::Repair(repair) => repair.run(context).await,
        }
    }
}

async fn stores(context: &Context) -> Result<Vec<wire::Store>, Failure> {
    Ok(context.client().await?.stores().list(StoresRequest {}).await?.into_inner().stores)
}

impl Create {
    async fn run(self, context: &Context) -> Ended {
        let kind = match self.kind {
            Type::Kv => "kv",
            Type::Chat => "chat",
        };
        let request = CreateRequest { name: self.name.clone(), kind: kind.into() };
        let store = context.client().await?.stores().create(request).await?.into_inner().store.unwrap_or_default();
        context.output.either(&json::store(&store), format!("created {}", escaped(store.name.as_bytes())))
    }
}

impl List {
    async fn run(self, context: &Context) -> Ended {
        let Self {} = self;
        let stores = stores(context).await?;
        if context.output.is_json() {
            return context.output.value(&stores.iter().map(json::store).collect());
        }
        table(context, &stores)
    }
}

impl Status {
    async fn run(self, context: &Context) -> Ended {
        let stores = stores(context).await?;
        let Some(name) = self.name else {
            return if context.output.is_json() {
                context.output.value(&stores.iter().map(json::store).collect())
            } else {
                stores.iter().try_for_each(|store| context.output.line(described(store)))
            };
        };
        let Some(store) = stores.iter().find(|store| store.name == name) else {
            return Err(no_store(&name, context).into());
        };
        context.output.either(&json::store(store), described(store))
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        if !self.yes {
            let stores = client.stores().list(StoresRequest {}).await?.into_inner().stores;
            let store = stores.iter().find(|store| store.name == self.name);
            let store = store.ok_or_else(|| no_store(&self.name, context))?;
            let what = format!(
                "Every node closes the store '{}' ({} entries) and shows it no more. Its files stay in the nodes' data \
                 directories until `lattice store purge` there.",
                escaped(store.name.as_bytes()),
                store.entries
            );
            confirmed(context, self.yes, &what, "Delete it on every node?")?;
        }
        let request = DeleteStoreRequest { name: self.name.clone() };
        client.stores().delete(request).await?;
        context.output.either(&json!({"deleted": self.name}), format!("deleted {}", escaped(self.name.as_bytes())))
    }
}

impl Purge {
    async fn run(self, context: &Context) -> Ended {
        let mut stores = context.client().await?.stores();
        if !self.yes {
            let found = stores.purge(PurgeRequest { remove: false }).await?.into_inner().found;
            if !found.is_empty() {
                let lines: String = found.iter().map(|found| format!("  {}\n", described_leftover(found))).collect();
                let what = format!("This is removed for good:\n{}", lines.trim_end());
                confirmed(context, self.yes, &what, "Remove it?")?;
            }
        }
        let found = stores.purge(PurgeRequest { remove: true }).await?.into_inner().found;
        if context.output.is_json() {
            let found = found.iter().map(|found| json!({"path": found.path, "of": found.of, "bytes": found.bytes}));
            return context.output.value(&json!({"removed": found.collect::<Vec<_>>()}));
        }
        if found.is_empty() {
            return context.output.line("nothing is left of deleted stores and left meshes");
        }
        found.iter().try_for_each(|found| context.output.line(format!("removed {}", described_leftover(found))))
    }
}

fn described_leftover(found: &wire::Leftover) -> String {
    format!("{} ({}, {})", escaped(found.path.as_bytes()), escaped(found.of.as_bytes()), size(found.bytes))
}

fn no_store(name: &str, context: &Context) -> Failure {
    Failure::not_found(format!("there is no store '{}'", escaped(name.as_bytes())))
        .hint(format!("`{}` names them", context.typed("store list")))
}

fn described(store: &wire::Store) -> String {
    let mut text = format!(
        "{}\n  kind       {}\n  id         {}\n  entries    {}\n  keys       {}\n  conflicts  {}\n  file       {}\n  state      {}",
        escaped(store.name.as_bytes()),
        store.kind,
        hex(&store.id),
        store.entries,
        store.keys,
        store.conflicts,
        size(store.bytes),
        state(store),
    );
    if let Some(damaged) = &store.damaged {
        text.push_str("\n  damaged    ");
        text.push_str(&escaped(damaged.as_bytes()));
    }
    text
}

/// What is still to come, for people.
fn state(store: &wire::Store) -> String {
    match (&store.damaged, store.missing_entries, store.missing_blobs) {
        (Some(_), ..) => "damaged".into(),
        (None, 0, 0) => "ok".into(),
        (None, 0, blobs) => format!("{blobs} large values to come"),
        (None, entries, _) => format!("{entries} entries to come"),
    }
}

/// Prints the stores, a line each.
pub(super) fn table(context: &Context, stores: &[wire::Store]) -> Ended {
    let rows: Vec<_> = stores
        .iter()
        .map(|store| {
            let state = state(store);
            [
                escaped(store.name.as_bytes()),
                store.kind.clone(),
                store.entries.to_string(),
                store.keys.to_string(),
                store.conflicts.to_string(),
                size(store.bytes),
                state,
            ]
        })
        .collect();
    context.output.table(["STORE", "KIND", "ENTRIES", "KEYS", "CONFLICTS", "FILE", "STATE"], &rows)
}
