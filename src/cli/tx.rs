//! `lattice tx`: changes of several keys that become one entry, or none.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{ago, escaped, hex, size, utc};
use super::{Context, Ended};
use crate::api::Failure;
use crate::api::wire::{BeginTxRequest, CommitTxRequest, DropTxRequest, OpenTx, ShowTxRequest, TxsRequest};
use crate::clock;

const EXAMPLES: &str = "\
Examples:
  lattice tx                         list those that are open
  lattice tx begin deploy            or: mkdir ~/mesh/stores/home/.tx/deploy
  cp -a site/. ~/mesh/stores/home/.tx/deploy/
  touch ~/mesh/stores/home/.tx/deploy/old.delete
  lattice tx show deploy
  lattice tx commit deploy           or: mv ~/mesh/stores/home/.tx/deploy ~/mesh/stores/home/.tx/commit

What is put into the directory becomes one entry: all of it counts, here and on every other machine, or nothing. An empty file \
`PATH.delete` in it deletes the key PATH, or all that is at and below it.";

/// Change several keys by one entry, or not at all: stage files, then commit them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Tx {
    #[command(subcommand)]
    what: Option<What>,
    /// Only those of this store [default: all stores]
    #[arg(long, short, value_name = "NAME")]
    store: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    List(List),
    Begin(Begin),
    Show(Show),
    Commit(Commit),
    Drop(Drop),
}

const LIST: &str = "\
Examples:
  lattice tx list
  lattice tx list --store home --json | jq -r .[].name

MOVED counts the keys that were changed by others after the transaction began: it is not committed then, unless with --force.";

/// List the open transactions
#[derive(Debug, Args)]
#[command(after_help = LIST)]
struct List {
    /// Only those of this store [default: all stores]
    #[arg(long, short, value_name = "NAME")]
    store: Option<String>,
}

/// Which transaction.
#[derive(Debug, Args)]
struct Which {
    /// Its name
    name: OsString,
    /// The store
    #[arg(long, short, default_value = "home", value_name = "NAME")]
    store: String,
}

const BEGIN: &str = "\
Examples:
  lattice tx begin deploy
  lattice tx begin deploy --store site

Prints the directory into which files are put. The transaction builds upon the store as it is now: a key that it touches and that \
is changed by others from here on keeps it from being committed.";

/// Begin a transaction
#[derive(Debug, Args)]
#[command(after_help = BEGIN)]
struct Begin {
    #[command(flatten)]
    which: Which,
}

const SHOW: &str = "\
Examples:
  lattice tx show deploy
  lattice tx show deploy --json | jq -r .moved[]";

/// Show what a transaction would write and delete, and which of these keys others have changed
#[derive(Debug, Args)]
#[command(after_help = SHOW)]
struct Show {
    #[command(flatten)]
    which: Which,
}

const COMMIT: &str = "\
Examples:
  lattice tx commit deploy
  lattice tx commit deploy --force     keys that others changed meanwhile get both versions, as heads

If others have changed a key that it touches since it began, it is refused, nothing is changed, and what is staged stays.";

/// Make one entry of what is staged
#[derive(Debug, Args)]
#[command(after_help = COMMIT)]
struct Commit {
    #[command(flatten)]
    which: Which,
    /// Also if others have changed keys that it touches: then both versions are heads, a conflict
    #[arg(long)]
    force: bool,
}

const DROP: &str = "\
Examples:
  lattice tx drop deploy     or: rm -r ~/mesh/stores/home/.tx/deploy";

/// Forget a transaction and all that is staged in it
#[derive(Debug, Args)]
#[command(after_help = DROP)]
struct Drop {
    #[command(flatten)]
    which: Which,
}

fn path(path: &[u8]) -> Value {
    String::from_utf8_lossy(path).into()
}

fn told(tx: &OpenTx) -> Value {
    let put = |put: &crate::api::wire::TxPut| json!({"path": path(&put.path), "kind": put.kind, "size": put.size});
    let paths = |paths: &[Vec<u8>]| paths.iter().map(|key| path(key)).collect::<Vec<_>>();
    json!({
        "name": path(&tx.name), "store": tx.store, "begun": utc(tx.begun),
        "puts": tx.puts.iter().map(put).collect::<Vec<_>>(), "deletes": paths(&tx.deletes), "moved": paths(&tx.moved),
        "why": tx.why, "hint": tx.hint,
    })
}

fn now() -> u64 {
    u64::try_from(clock::nanos() / 1_000_000).unwrap_or(0)
}

impl Tx {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self.what {
            None => List { store: self.store }.run(context).await,
            Some(What::List(list)) => list.run(context).await,
            Some(What::Begin(begin)) => begin.run(context).await,
            Some(What::Show(show)) => show.run(context).await,
            Some(What::Commit(commit)) => commit.run(context).await,
            Some(What::Drop(drop)) => drop.run(context).await,
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> Ended {
        let request = TxsRequest { store: self.store.unwrap_or_default() };
        let txs = context.client().await?.tx().list(request).await?.into_inner().txs;
        if context.output.is_json() {
            return context.output.value(&txs.iter().map(told).collect());
        }
        let row = |tx: &OpenTx| {
            let keys = tx.puts.len() + tx.deletes.len();
            let moved = tx.moved.len().to_string();
            [escaped(&tx.name), escaped(tx.store.as_bytes()), ago(now(), tx.begun), keys.to_string(), moved]
        };
        let rows: Vec<_> = txs.iter().map(row).collect();
        if rows.is_empty() {
            context.output.note("no transaction is open; `lattice tx begin NAME` begins one");
            return Ok(());
        }
        context.output.table(["NAME", "STORE", "BEGUN", "KEYS", "MOVED"], &rows)
    }
}

impl Begin {
    async fn run(self, context: &Context) -> Ended {
        let Which { name, store } = self.which;
        let request = BeginTxRequest { store, name: name.into_vec() };
        let paths = context.client().await?.tx().begin(request).await?.into_inner().paths;
        if paths.is_empty() {
            context.output.remark("the node is not mounted: files can be staged when it is, `lattice up` mounts it");
        }
        context.output.either(&json!({"paths": paths}), paths.join("\n"))
    }
}

impl Show {
    async fn run(self, context: &Context) -> Ended {
        let Which { name, store } = self.which;
        let request = ShowTxRequest { store, name: name.into_vec() };
        let reply = context.client().await?.tx().show(request).await?.into_inner();
        let tx = reply.tx.ok_or_else(|| Failure::failed("the node did not tell"))?;
        if context.output.is_json() {
            return context.output.value(&told(&tx));
        }
        for put in &tx.puts {
            let what = if put.kind == "file" { size(put.size) } else { put.kind.clone() };
            context.output.line(format!("put     {} ({what})", escaped(&put.path)))?;
        }
        for key in &tx.deletes {
            context.output.line(format!("delete  {}", escaped(key)))?;
        }
        for key in &tx.moved {
            context.output.line(format!("moved   {}", escaped(key)))?;
        }
        if let Some(why) = &tx.why {
            context.output.remark(format!("would not be committed: {}", escaped(why.as_bytes())));
            if let Some(hint) = &tx.hint {
                context.output.remark(context.output.pasted(hint));
            }
        }
        Ok(())
    }
}

impl Commit {
    async fn run(self, context: &Context) -> Ended {
        let Which { name, store } = self.which;
        let request = CommitTxRequest { store, name: name.into_vec(), force: self.force };
        let reply = context.client().await?.tx().commit(request).await?.into_inner();
        let hash = Some(&reply.hash).filter(|hash| !hash.is_empty()).map(|hash| hex(hash));
        let value = json!({"hash": hash, "written": reply.written, "deleted": reply.deleted});
        context.output.either(&value, "")
    }
}

impl Drop {
    async fn run(self, context: &Context) -> Ended {
        let Which { name, store } = self.which;
        context.client().await?.tx().drop(DropTxRequest { store, name: name.into_vec() }).await?;
        context.output.either(&json!({}), "")
    }
}
