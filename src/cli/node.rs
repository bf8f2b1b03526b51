//! `lattice status` and `lattice down`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::ask::confirmed;
use super::output::{absolute, ago, escaped, hex, short};
use super::progress::Progress;
use super::{Context, Ended, json, mesh, store};
use crate::api::wire::{RekeyRequest, ShutdownRequest, StatusReply, StatusRequest, UnmountRequest};
use crate::api::{Failure, Kind};
use crate::clock::{Clock, System, monotonic};
use crate::config::in_use;

const STATUS: &str = "\
Examples:
  lattice status
  lattice --data /srv/node2 status
  lattice status --json | jq .mesh.online";

/// Show this node: where it is mounted, its mesh, its stores, and what needs a person
#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let Self {} = self;
        let status = context.client().await?.node().status(StatusRequest {}).await?.into_inner();
        if context.output.is_json() {
            return context.output.value(&json::status(&status));
        }
        context.output.line(summary(&status, context))?;
        if !status.stores.is_empty() {
            context.output.line("")?;
            store::table(context, &status.stores)?;
        }
        for warning in &status.warnings {
            context.output.line(context.output.warning(warning))?;
        }
        Ok(())
    }
}

fn summary(status: &StatusReply, context: &Context) -> String {
    let none = |list: &[String], word: &str| if list.is_empty() { word.to_owned() } else { list.join(", ") };
    let mesh = status.mesh.as_ref().map_or_else(
        || format!("none: `{}` or `{}`", context.typed("mesh init"), context.typed("mesh join TOKEN")),
        mesh::described,
    );
    let forkers: Vec<_> = status.forkers.iter().map(|name| escaped(name.as_bytes())).collect();
    let forks = match (status.forks, forkers.is_empty()) {
        (0, true) => String::new(),
        (count, true) => format!("\nforks      {count} seen"),
        (_, false) => format!("\nforks      by {}: removed for good, see peers/NAME/fork-proof", forkers.join(", ")),
    };
    let conflicts = match status.stores.iter().map(|store| store.conflicts).sum::<u64>() {
        0 => String::new(),
        1 => format!("\nconflicts  1 key was changed in two places at once: `{}`", context.typed("conflicts")),
        many => {
            format!("\nconflicts  {many} keys were changed in two places at once: `{}`", context.typed("conflicts"))
        }
    };
    format!(
        "node       {} ({}), lattice {}, process {}, started {}\ndata       {}\nlistening  {}\nmounted    {}\nmesh       {mesh}{forks}{conflicts}",
        escaped(status.name.as_bytes()),
        hex(&status.node),
        status.version,
        status.pid,
        ago(System.now().0, status.started),
        status.data,
        none(&status.listening, "nowhere"),
        none(&status.mounts, "nowhere"),
    )
}

/// What this node is to the others
#[derive(Debug, Subcommand)]
pub(super) enum Node {
    Rekey(Rekey),
}

impl Node {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self {
            Self::Rekey(rekey) => rekey.run(context).await,
        }
    }
}

const REKEY: &str = "\
Examples:
  lattice node rekey
  lattice node rekey --yes      without asking
  lattice node rekey --rejoin   of a node that the others removed

The old key vouches for the new one, which takes over its name and role; what the old one wrote stays its own. For a key that \
others may have got hold of.

With --rejoin nobody vouches, and the node joins again with a token, as a new member: for one that was removed since it signed two entries \
for one place, as a data directory does that is put back from a backup or runs as two copies. Its stores stay. Of what it wrote \
before, that stays which the others have. The rest is set aside when it joins: it is kept in the stores' files, and not shown any more. So \
first copy out of the mount what only this node has.

The node stops; `lattice up` starts it under the new key.";

/// Go on under a new key
#[derive(Debug, Args)]
#[command(after_help = REKEY)]
pub(super) struct Rekey {
    /// Join the mesh again with a token, since the old key was removed from it
    #[arg(long)]
    rejoin: bool,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

impl Rekey {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let what = if self.rejoin {
            "This node has to join the mesh again, with a token, under a new key, as a new member. If it was removed, what it wrote and \
             the others don't have is not shown any more then: copy it out of the mount first. The node stops."
        } else {
            "This node goes on as another member, under a new key with the same name and role; the old key is a member no \
             more. The node stops."
        };
        confirmed(context, self.yes, what, "Make a new key?")?;
        let reply = client.node().rekey(RekeyRequest { rejoin: self.rejoin }).await?.into_inner();
        drop(client);
        wait_until_free(context, reply.pid).await?;
        let mut said =
            format!("this node is {} from now on; the old key is kept in {}", short(&reply.node), reply.kept);
        let up = context.typed("up");
        said.push_str(&match reply.rejoin {
            true => format!("; start it with `{up}`, and join with `{}`", context.typed("mesh join TOKEN")),
            false => format!("; start it with `{up}`"),
        });
        context.output.either(&json!({"node": hex(&reply.node), "rejoin": reply.rejoin, "kept": reply.kept}), said)
    }
}

const DOWN: &str = "\
Examples:
  lattice down               stop the node and end its mounts
  lattice down ~/mesh        end this mount; the node goes on";

/// How long a node may take to stop before this command gives up waiting.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Stop this node: what is written becomes durable, mounts end
#[derive(Debug, Args)]
#[command(after_help = DOWN)]
pub(super) struct Down {
    /// End only this mount
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Down {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let client = match context.client().await {
            Ok(client) => client,
            Err(failure) if failure.kind == Kind::NotRunning && self.dir.is_none() => {
                return context.output.either(&json!({"stopped": false}), failure.message);
            }
            Err(failure) => return Err(failure.into()),
        };
        if let Some(dir) = self.dir {
            let path = absolute(&dir)?.display().to_string();
            client.node().unmount(UnmountRequest { path: path.clone() }).await?;
            return context.output.either(&json!({"unmounted": path}), format!("unmounted {path}"));
        }
        let pid = client.node().shutdown(ShutdownRequest {}).await?.into_inner().pid;
        drop(client);
        wait_until_free(context, pid).await?;
        context.output.either(&json!({"stopped": true, "pid": pid}), "stopped")
    }
}

/// Waits until the daemon has let go of the data directory.
pub(super) async fn wait_until_free(context: &Context, pid: u32) -> Result<(), Failure> {
    let mut progress = Progress::new(&context.output);
    let began = monotonic();
    while in_use(&context.data).is_some() {
        if monotonic().duration_since(began) > PATIENCE {
            return Err(Failure::failed(format!(
                "the node was told to stop, and process {pid} still runs after {PATIENCE:?}"
            ))
            .hint(format!("see {}", crate::config::log_file(&context.data).display())));
        }
        progress.say("waiting for the node to stop", "");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
