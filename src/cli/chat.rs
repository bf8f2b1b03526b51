//! `lattice chat`: rooms, without the mount.

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{escaped, hex};
use super::{Context, Ended, json};
use crate::api::wire::{PostRequest, ReadRequest, RoomsRequest};
use crate::api::{Failure, Kind};

/// Post to rooms, and read them
#[derive(Debug, Subcommand)]
pub(super) enum Chat {
    Post(Post),
    Edit(Edit),
    Redact(Redact),
    Ls(Ls),
    Watch(Watch),
}

const POST: &str = "\
Examples:
  lattice chat post lobby 'good morning'
  lattice chat post lobby 'and to you' --reply 3fa9
  lattice chat post lobby 👍 --react 3fa9

The first message to a new name opens the room.";

/// Post a message, a reply or a reaction
#[derive(Debug, Args)]
#[command(after_help = POST)]
pub(super) struct Post {
    /// The room
    room: String,
    /// The text, or the emoji of a reaction
    #[arg(allow_hyphen_values = true)]
    text: String,
    /// The message that is answered, by the id that the room shows
    #[arg(long, value_name = "ID", conflicts_with = "react")]
    reply: Option<String>,
    /// The message that is reacted to, by the id that the room shows
    #[arg(long, value_name = "ID")]
    react: Option<String>,
}

const EDIT: &str = "\
Examples:
  lattice chat edit lobby 3fa9 'good evening'

The message shows the new text, marked as edited, everywhere.";

/// Give a message of this node another text
#[derive(Debug, Args)]
#[command(after_help = EDIT)]
pub(super) struct Edit {
    /// The room
    room: String,
    /// The message, by the id that the room shows
    id: String,
    /// What it says from now on
    #[arg(allow_hyphen_values = true)]
    text: String,
}

const REDACT: &str = "\
Examples:
  lattice chat redact lobby 3fa9

The message shows as redacted, everywhere. The entry that posted it stays in each node's log, as all entries do.";

/// Take a message of this node back
#[derive(Debug, Args)]
#[command(after_help = REDACT)]
pub(super) struct Redact {
    /// The room
    room: String,
    /// The message, by the id that the room shows
    id: String,
}

const LS: &str = "\
Examples:
  lattice chat ls
  lattice chat ls lobby
  lattice chat ls lobby -n 20";

/// List the rooms, or print one
#[derive(Debug, Args)]
#[command(after_help = LS)]
pub(super) struct Ls {
    /// The room
    room: Option<String>,
    /// Only the last N messages
    #[arg(long, short = 'n', value_name = "N", default_value_t = 0, hide_default_value = true, requires = "room")]
    last: u32,
}

const WATCH: &str = "\
Examples:
  lattice chat watch lobby
  lattice chat watch lobby -n 0      only what comes";

/// Print a room and what comes
#[derive(Debug, Args)]
#[command(after_help = WATCH)]
pub(super) struct Watch {
    /// The room
    room: String,
    /// Begin with the last N messages [default: all]
    #[arg(long, short = 'n', value_name = "N")]
    last: Option<u32>,
}

impl Chat {
    pub(super) async fn run(self, context: &Context) -> Ended {
        match self {
            Self::Post(post) => post.run(context).await,
            Self::Edit(Edit { room, id, text }) => post(context, room, text, id, "edit").await,
            Self::Redact(Redact { room, id }) => post(context, room, String::new(), id, "redaction").await,
            Self::Ls(ls) => ls.run(context).await,
            Self::Watch(watch) => watch.run(context).await,
        }
    }
}

async fn post(context: &Context, room: String, text: String, to: String, what: &str) -> Ended {
    let request = PostRequest { room, text, to, what: what.into() };
    let reply = context.client().await?.chat().post(request).await?.into_inner();
    context.output.either(&json!({"hash": hex(&reply.hash)}), "")
}

impl Post {
    async fn run(self, context: &Context) -> Ended {
        let (to, what) = match (self.reply, self.react) {
            (Some(to), _) => (to, "reply"),
            (None, Some(to)) => (to, "reaction"),
            (None, None) => (String::new(), "message"),
        };
        post(context, self.room, self.text, to, what).await
    }
}

impl Ls {
    async fn run(self, context: &Context) -> Ended {
        if let Some(room) = self.room {
            let rendered = self.last == 0 && !context.output.is_json();
            return read(context, ReadRequest { room, last: self.last, rendered, ..ReadRequest::default() }).await;
        }
        let rooms = context.client().await?.chat().rooms(RoomsRequest {}).await?.into_inner().rooms;
        if context.output.is_json() {
            return context.output.value(&rooms.into());
        }
        rooms.iter().try_for_each(|room| context.output.line(escaped(room.as_bytes())))
    }
}

impl Watch {
    async fn run(self, context: &Context) -> Ended {
        let new_only = self.last == Some(0);
        let last = self.last.unwrap_or(0);
        let request = ReadRequest { room: self.room, last, follow: true, new_only, rendered: false };
        read(context, request).await?;
        Err(Failure::new(Kind::Unavailable, "the node stopped").into())
    }
}

async fn read(context: &Context, request: ReadRequest) -> Ended {
    let room = request.room.clone();
    let mut lines = context.client().await?.chat().read(request).await?.into_inner();
    while let Some(line) = lines.message().await? {
        context.output.either(&json::message(&room, &line), &line.line)?;
    }
    Ok(())
}
