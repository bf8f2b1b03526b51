//! `lattice store`: declaring and deleting stores.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::ask::confirmed;
use super::output::{escaped, hex, size};
use super::{Context, Ended, json};
use crate::api::Failure;
use crate::api::wire::{self, CreateRequest, DeleteStoreRequest, PurgeRequest, StoresRequest};

/// Declare, list and delete the stores of the mesh
#[derive(Debug, Subcommand)]
pub(super) enum Store {
    Create(Create),
    List(List),
    Status(Status),
    Delete(Delete),
    Purge(Purge),
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

Shows what is left on this node's disk of deleted stores and of meshes that it left, asks, and removes it. What only those files
hold is lost with them. Large values stay in blobs/.";

/// Remove from this node's disk what is left of deleted stores and left meshes
#[derive(Debug, Args)]
#[command(after_help = PURGE)]
pub(super) struct Purge {
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

impl Store {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Status(status) => status.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
            Self::Purge(purge) => purge.run(context).await,
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
