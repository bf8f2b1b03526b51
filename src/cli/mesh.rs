//! `lattice mesh`: founding, inviting, joining, leaving.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::ask::confirmed;
use super::output::{escaped, hex, short};
use super::progress::Progress;
use super::{Context, Ended, json};
use crate::api::wire::{
    InitRequest, InviteRequest, JoinRequest, LeaveRequest, MeshInfo, Peer, PeersRequest, RevokeRequest, SetRoleRequest,
    StatusRequest,
};
use crate::api::{Client, Failure};

/// How often it is asked how far the first sync is.
const POLL: Duration = Duration::from_millis(50);

/// Found, join and leave a mesh
#[derive(Debug, Subcommand)]
pub(super) enum Mesh {
    Init(Init),
    Invite(Invite),
    Join(Join),
    Revoke(Revoke),
    Role(SetRole),
    Leave(Leave),
    Status(Status),
}

const INIT: &str = "\
Examples:
  lattice mesh init
  lattice mesh init family

The mesh begins with a store of keys named `home` and one for rooms named `chat`.";

/// Found a mesh, with this node as its first member
#[derive(Debug, Args)]
#[command(after_help = INIT)]
pub(super) struct Init {
    /// What the mesh is called
    #[arg(default_value = "mesh")]
    name: String,
}

const INVITE: &str = "\
Examples:
  lattice mesh invite                           for one node, for a day
  lattice mesh invite --role reader --uses 10 --expires 7d
  token=$(lattice mesh invite)

Whoever has the token can join: send it as you would send a password. A node of the mesh must be reachable when it \
is used.";

/// Print a token with which another node can join
#[derive(Debug, Args)]
#[command(after_help = INVITE)]
pub(super) struct Invite {
    /// What the new member may do: reader, writer, or admin (who may invite)
    #[arg(long, default_value = "writer", value_name = "ROLE")]
    role: String,
    /// For how long the token can be used: 90s, 30m, 24h, 7d
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = duration)]
    expires: Duration,
    /// How many nodes may use it
    #[arg(long, default_value_t = 1, value_name = "N")]
    uses: u32,
}

const JOIN: &str = "\
Examples:
  lattice mesh join TOKEN
  lattice mesh join TOKEN --wait

Returns when the members and the list of stores are here; what the stores hold follows by itself. With --wait it returns \
when that has come too.";

/// Join the mesh that a token is for
#[derive(Debug, Args)]
#[command(after_help = JOIN)]
pub(super) struct Join {
    /// What `lattice mesh invite` printed
    token: String,
    /// Return when all that the members hold has come
    #[arg(long)]
    wait: bool,
}

const REVOKE: &str = "\
Examples:
  lattice mesh revoke bob
  lattice mesh revoke 3f2a91c0 --yes     without asking

Asks first. For admins. What the node wrote and this one has, stays; nothing it writes from now on counts anywhere. Its \
connections are closed, and it gets nothing new.";

/// End another node's membership
#[derive(Debug, Args)]
#[command(after_help = REVOKE)]
pub(super) struct Revoke {
    /// The member: its name, or the start of its id
    node: String,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

const ROLE: &str = "\
Examples:
  lattice mesh role bob reader
  lattice mesh role bob admin

For admins. Readers only read; writers write to every store; admins also invite, remove, and declare stores. Of one that \
may no longer write, what this node has stays. A node that was removed is let in again by a role; one that left \
is not. The only admin keeps its role: make another one first.";

/// Give a member another role
#[derive(Debug, Args)]
#[command(after_help = ROLE)]
pub(super) struct SetRole {
    /// The member: its name, or the start of its id
    node: String,
    /// What it may do: reader, writer, or admin
    role: String,
}

const LEAVE: &str = "\
Examples:
  lattice mesh leave
  lattice mesh leave --yes      without asking

Asks first: no token lets this node in again, only a new node in another data directory. The others keep what it wrote. It keeps \
its stores' files in its data directory, closed, until `lattice store purge`.";

/// Leave the mesh
#[derive(Debug, Args)]
#[command(after_help = LEAVE)]
pub(super) struct Leave {
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

const STATUS: &str = "\
Examples:
  lattice mesh status
  lattice mesh status --json";

/// Show the mesh that this node is in
#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub(super) struct Status {}

impl Mesh {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self {
            Self::Init(init) => init.run(context).await,
            Self::Invite(invite) => invite.run(context).await,
            Self::Join(join) => join.run(context).await,
            Self::Revoke(revoke) => revoke.run(context).await,
            Self::Role(role) => role.run(context).await,
            Self::Leave(leave) => leave.run(context).await,
            Self::Status(status) => status.run(context).await,
        }
    }
}

/// The mesh and this node's place in it, for people.
pub(super) fn described(mesh: &MeshInfo) -> String {
    let online = if mesh.online == 1 { "1 other online".to_owned() } else { format!("{} others online", mesh.online) };
    format!("{}, {online}", entered(mesh))
}

/// The same of a mesh that this node has only just come into: it is not linked with anyone yet.
fn entered(mesh: &MeshInfo) -> String {
    let name = escaped(mesh.name.as_bytes());
    let members = if mesh.members == 1 { "1 member".to_owned() } else { format!("{} members", mesh.members) };
    format!("{name} ({}), role {}, {members}", short(&mesh.id), mesh.role)
}

fn no_answer() -> Failure {
    Failure::failed("the node's answer broke off").hint("see `lattice status`")
}

impl Init {
    async fn run(self, context: &Context) -> Ended {
        let reply = context.client().await?.mesh().init(InitRequest { name: self.name }).await?.into_inner();
        let mesh = reply.mesh.ok_or_else(no_answer)?;
        context.output.either(&json::mesh(&mesh), format!("founded {}", entered(&mesh)))?;
        context.output.note(format!("another node joins with what `{}` prints", context.typed("mesh invite")));
        Ok(())
    }
}

impl Invite {
    async fn run(self, context: &Context) -> Ended {
        let Self { role, expires, uses } = self;
        let request = InviteRequest { role: role.clone(), expires: expires.as_secs(), uses };
        let token = context.client().await?.mesh().invite(request).await?.into_inner().token;
        context
            .output
            .either(&json!({"token": token, "role": role, "expires_s": expires.as_secs(), "uses": uses}), &token)
    }
}

impl Join {
    async fn run(self, context: &Context) -> Ended {
        let mut client = context.client().await?.mesh();
        let mut progress = Progress::new(&context.output);
        let mut steps = client.join(JoinRequest { token: self.token }).await?.into_inner();
        let mut mesh = None;
        while let Some(step) = steps.message().await? {
            mesh = step.mesh;
            let how_far = match (step.done, step.total) {
                (0, 0) => String::new(),
                (done, 0) => format!("{done} entries"),
                (done, total) => format!("{done} of {total} entries"),
            };
            if !step.doing.is_empty() {
                progress.say(&step.doing, &how_far);
            }
        }
        let mesh = mesh.ok_or_else(no_answer)?;
        if self.wait {
            first_sync(context, &mut progress).await?;
        }
        drop(progress);
        context.output.either(&json::mesh(&mesh), format!("joined {}", entered(&mesh)))
    }
}

/// Waits until every store that can be used here has all that the connected members hold.
async fn first_sync(context: &Context, progress: &mut Progress) -> Result<(), Failure> {
    let mut node = context.client().await?.node();
    loop {
        let status = node.status(StatusRequest {}).await?.into_inner();
        let mut stores = status.stores.iter().filter(|store| store.damaged.is_none());
        let Some(store) = stores.find(|store| !store.settled || store.missing_entries > 0 || store.missing_blobs > 0)
        else {
            return Ok(());
        };
        let (here, all) = (store.entries, store.entries + store.missing_entries);
        let how_far = match (store.missing_entries, store.missing_blobs) {
            (0, 0) => String::new(),
            (0, blobs) => format!("{blobs} large values to come"),
            _ => format!("{here} of {all} entries"),
        };
        let online = status.mesh.is_some_and(|mesh| mesh.online > 0);
        let doing = if online {
            format!("receiving {}", escaped(store.name.as_bytes()))
        } else {
            "waiting for a member to be online".into()
        };
        progress.say(&doing, &how_far);
        tokio::time::sleep(POLL).await;
    }
}

impl Revoke {
    async fn run(self, context: &Context) -> Ended {
        let Self { node, yes } = self;
        let client = context.client().await?;
        if !yes {
            let what = ending(&client, &node).await?;
            confirmed(context, yes, &what, "Remove it?")?;
        }
        let name = client.mesh().revoke(RevokeRequest { node }).await?.into_inner().name;
        context.output.either(&json!({"removed": name}), format!("removed {}", escaped(name.as_bytes())))
    }
}

impl SetRole {
    async fn run(self, context: &Context) -> Ended {
        let Self { node, role } = self;
        let request = SetRoleRequest { node, role: role.clone() };
        let name = context.client().await?.mesh().set_role(request).await?.into_inner().name;
        context
            .output
            .either(&json!({"name": name, "role": role}), format!("{} is now {role}", escaped(name.as_bytes())))
    }
}

impl Leave {
    async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        if !self.yes {
            let what = farewell(&client, context).await?;
            confirmed(context, self.yes, &what, "Leave the mesh?")?;
        }
        let kept = client.mesh().leave(LeaveRequest {}).await?.into_inner().kept;
        context
            .output
            .either(&json!({"left": true, "kept": kept}), format!("left the mesh; its files are kept in {kept}"))
    }
}

/// The present member of this name, or whose id begins so: nobody is asked whether to remove one that is not there.
fn member<'a>(peers: &'a [Peer], text: &str) -> Result<&'a Peer, Failure> {
    let begins = |peer: &&Peer| text.len() >= 4 && hex(&peer.id).starts_with(text);
    let mut found = peers.iter().filter(begins);
    let shown = escaped(text.as_bytes());
    let peer = match (peers.iter().find(|peer| peer.name == text), found.next(), found.next()) {
        (Some(peer), ..) | (None, Some(peer), None) => peer,
        (None, Some(_), Some(_)) => {
            return Err(
                Failure::refused(format!("several members' ids begin with '{shown}'")).hint("give more of the id")
            );
        }
        (None, None, _) => {
            return Err(Failure::not_found(format!("there is no member '{shown}'")).hint("`lattice peers` lists them"));
        }
    };
    if peer.left {
        let gone = format!("'{}' is a member no more", escaped(peer.name.as_bytes()));
        return Err(Failure::refused(gone).hint("`lattice peers` lists who is"));
    }
    Ok(peer)
}

/// What a removal means, for whoever is asked.
async fn ending(client: &Client, node: &str) -> Result<String, Failure> {
    let peers = client.mesh().peers(PeersRequest {}).await?.into_inner().peers;
    let peer = member(&peers, node)?;
    let who = format!("{} ({}, {})", escaped(peer.name.as_bytes()), short(&peer.id), peer.role);
    let unseen = if peer.online { "" } else { " It is not online: what it wrote and no other has yet is not kept." };
    Ok(format!(
        "{who} is removed from the mesh. What this node has of its entries stays and counts everywhere; what it writes from now on, \
         or wrote and this node has not, counts nowhere. Its connections are closed, and it gets nothing new; what it has, it can \
         still read.{unseen}"
    ))
}

/// What leaving means, for whoever is asked.
async fn farewell(client: &Client, context: &Context) -> Result<String, Failure> {
    let status = client.node().status(StatusRequest {}).await?.into_inner();
    let mesh = status.mesh.ok_or_else(|| in_none(context))?;
    let peers = client.mesh().peers(PeersRequest {}).await?.into_inner().peers;
    let others = || peers.iter().filter(|peer| !peer.me && !peer.left);
    let mut what = format!(
        "This node leaves the mesh '{}' for good: no token lets it in again, only a new node in another data directory. \
         Its stores are closed here; their files stay in {}/meshes until `lattice store purge`.",
        escaped(mesh.name.as_bytes()),
        status.data
    );
    what.push_str(match others().count() {
        0 => " It is the only member: the mesh ends with it.",
        _ if mesh.online == 0 => " No other member is online: what only this node has, no other will get.",
        _ => " The others keep what it wrote.",
    });
    if mesh.role == "admin" && others().count() > 0 && !others().any(|peer| peer.role == "admin") {
        what.push_str(" It is the only admin: nobody can invite or declare stores after it.");
    }
    Ok(what)
}

fn in_none(context: &Context) -> Failure {
    Failure::refused("this node is in no mesh").hint(format!(
        "found one with `{}`, or join one with `{}`",
        context.typed("mesh init"),
        context.typed("mesh join TOKEN")
    ))
}

impl Status {
    async fn run(self, context: &Context) -> Ended {
        let Self {} = self;
        let status = context.client().await?.node().status(StatusRequest {}).await?.into_inner();
        let Some(mesh) = status.mesh else {
            return Err(in_none(context).into());
        };
        let warning = mesh.ended.as_ref().map(|ended| format!("\n{}", context.output.warning(ended)));
        context.output.either(&json::mesh(&mesh), described(&mesh) + &warning.unwrap_or_default())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is meant, such as 90s, 30m, 24h or 7d".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().ok().ok_or_else(wrong)?;
    count.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "7", "d", "7w", "-1h", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
