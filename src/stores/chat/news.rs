//! What is new in a room, as lines for its end: for whoever follows it and does not read it again from the start.

use std::collections::BTreeSet;

use super::handle::{Chat, ChatError, Message};
use super::json;
use super::render::{self, digits};
use super::wire::{self, Op};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::entry::Entry;
use crate::replication::membership::Membership;

type Result<T> = std::result::Result<T, ChatError>;

/// Something that a room holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Message(Hash),
    Reaction(Hash, NodeId, String),
    Edit(Hash, Hlc),
    Redaction(Hash),
}

impl Fact {
    const fn name(&self) -> &'static str {
        match self {
            Self::Message(_) => "message",
            Self::Reaction(..) => "reaction",
            Self::Edit(..) => "edit",
            Self::Redaction(_) => "redaction",
        }
    }
}

/// How a room is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// For people.
    Text,
    /// For programs: a line of JSON for each message, in order.
    Json,
}

/// A room as it was read.
#[derive(Debug, Default)]
pub struct Reading {
    /// Its text, as [`Chat::render`] gives it, or a line of JSON for each message.
    pub text: String,
    facts: BTreeSet<Fact>,
}

/// Something new in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// message, reaction, edit or redaction.
    pub what: &'static str,
    /// The message that is new, or to which something was done, as it is now.
    pub message: Message,
    /// What is told of it: a line.
    pub line: String,
}

/// A line on something that was done to a message: when and by whom, then what.
fn done(to: &Message, at: Hlc, author: &NodeId, does: &str, members: &Membership) -> String {
    format!("↳ {} {} {}{does}\n", digits(&to.position.id, render::FOLLOWED), render::when(at), members.name(author))
}

fn reacts(to: &Message, at: Hlc, author: &NodeId, emoji: &str, members: &Membership) -> String {
    done(to, at, author, &format!(": {}", render::escape(emoji, 0)), members)
}

fn edits(message: &Message, at: Hlc, members: &Membership) -> String {
    done(message, at, &message.position.author, &format!(" edits: {}", render::escape(&message.text, 0)), members)
}

fn redacts(message: &Message, at: Hlc, members: &Membership) -> String {
    done(message, at, &message.position.author, " redacts it", members)
}

impl Chat {
    /// Reads a room, to be told later what is new in it.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn reading(&self, room: &str, form: Form) -> Result<Reading> {
        Ok(self.read(room, form, None)?.0)
    }

    /// Reads a room again. Also gives a line for each thing that is new since `before`, in the order of their stamps.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn since(&self, room: &str, form: Form, before: &Reading) -> Result<(Reading, String)> {
        self.read(room, form, Some(before))
    }

    fn read(&self, room: &str, form: Form, before: Option<&Reading>) -> Result<(Reading, String)> {
        let messages = self.all(room)?;
        let members = self.log().membership().load();
        let text = match form {
            Form::Text => self.rendered(&messages),
            Form::Json => messages.iter().map(|message| json::line("message", message, &members)).collect(),
        };
        let mut now = Reading { text, facts: BTreeSet::new() };
        let mut news = Vec::new();
        for message in &messages {
            let id = message.position.id;
            let mut add = |fact: Fact, at: Hlc, line: &dyn Fn() -> String| {
                if before.is_some_and(|before| !before.facts.contains(&fact)) {
                    let line = match form {
                        Form::Text => line(),
                        Form::Json => json::line(fact.name(), message, &members),
                    };
                    news.push((at, line));
                }
                now.facts.insert(fact);
            };
            let stamp = message.position.hlc;
            add(Fact::Message(id), stamp, &|| self.line(message));
            if let Some(at) = message.redacted {
                add(Fact::Redaction(id), at, &|| redacts(message, at, &members));
            }
            if let Some(at) = message.edited {
                add(Fact::Edit(id, at), at, &|| edits(message, at, &members));
            }
            for reaction in &message.reactions {
                for (by, at) in &reaction.by {
                    let fact = Fact::Reaction(id, *by, reaction.emoji.clone());
                    add(fact, *at, &|| reacts(message, *at, by, &reaction.emoji, &members));
                }
            }
        }
        news.sort_by_key(|(at, _)| *at);
        Ok((now, news.into_iter().map(|(_, line)| line).collect()))
    }

    /// What an entry brought to a room; nothing of what had no effect.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn brought(&self, room: &str, entry: &Entry) -> Result<Vec<News>> {
        let ops = wire::decode(entry.payload()).unwrap_or_default();
        let members = self.log().membership().load();
        let (author, at) = (&entry.header().author, entry.header().hlc);
        let mut news = Vec::new();
        for (place, op) in ops.iter().enumerate().filter(|(_, op)| op.room() == room) {
            let id = match op {
                Op::Post { .. } | Op::Reply { .. } => Self::message_id(&entry.hash(), place),
                Op::React { to, .. } | Op::Edit { to, .. } | Op::Redact { to, .. } => *to,
            };
            let Some(message) = self.message(&id)?.filter(|message| message.room == room) else { continue };
            let told = match op {
                Op::Post { .. } | Op::Reply { .. } => Some(("message", self.line(&message))),
                Op::React { emoji, .. } => {
                    let marks = message.reactions.iter().filter(|reaction| reaction.emoji == *emoji);
                    let first = marks.flat_map(|reaction| &reaction.by).any(|mark| *mark == (*author, at));
                    first.then(|| ("reaction", reacts(&message, at, author, emoji, &members)))
                }
                Op::Edit { .. } => {
                    let counts = message.position.author == *author && message.edited == Some(at);
                    counts.then(|| ("edit", edits(&message, at, &members)))
                }
                Op::Redact { .. } => {
                    let counts = message.position.author == *author && message.redacted == Some(at);
                    counts.then(|| ("redaction", redacts(&message, at, &members)))
                }
            };
            news.extend(told.map(|(what, line)| News { what, message, line }));
        }
        Ok(news)
    }
}
