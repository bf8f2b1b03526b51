//! A room as lines of JSON: for programs.

use serde_json::{Value, json};

use super::handle::Message;
use crate::clock::{self, Hlc};
use crate::replication::membership::Membership;

fn time(at: Hlc) -> String {
    clock::name(Hlc::at(at.millis()))
}

/// A line on a message as it is now; `what` is new: it, or what was done to it.
pub(super) fn line(what: &str, message: &Message, members: &Membership) -> String {
    let name = |node| members.name(node);
    let reactions = message.reactions.iter().map(|reaction| {
        let by: Vec<_> = reaction.by.iter().map(|(node, _)| name(node)).collect();
        json!({"emoji": reaction.emoji, "by": by})
    });
    let at = &message.position;
    let value = json!({
        "what": what, "room": message.room, "id": at.id.to_string(), "author": at.author.to_string(),
        "author_name": name(&at.author), "hlc": at.hlc.0, "time": time(at.hlc), "text": message.text,
        "reply_to": message.reply_to.map(|to| to.to_string()), "reactions": reactions.collect::<Vec<Value>>(),
        "edited": message.edited.map(time), "redacted": message.redacted.map(time),
    });
    format!("{value}\n")
}
