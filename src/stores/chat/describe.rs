//! What an entry of a chat store does, in words.

use super::wire::{self, Op};
use crate::replication::entry::Entry;

/// A line an operation; none of a payload that this build can't read.
#[must_use]
pub fn describe(entry: &Entry) -> Vec<String> {
    wire::decode(entry.payload()).unwrap_or_default().iter().map(line).collect()
}

fn line(op: &Op) -> String {
    match op {
        Op::Post { room, text } => format!("post in {room}: {text}"),
        Op::Reply { room, to, text } => format!("reply in {room} to {}: {text}", to.short()),
        Op::React { room, to, emoji } => format!("react in {room} to {}: {emoji}", to.short()),
        Op::Edit { room, to, text } => format!("edit in {room} {}: {text}", to.short()),
        Op::Redact { room, to } => format!("redact in {room} {}", to.short()),
    }
}
