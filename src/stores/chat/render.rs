//! A room as text: one line a message, replies beneath what they answer.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::macros::format_description;

use super::handle::{Chat, ChatError, Message, Position};
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::membership::Membership;
use crate::stores::root::names;

/// Hexadecimal digits of an id that are shown at least.
const DIGITS: usize = 4;
/// The same where the other messages of the room are not known.
pub(super) const FOLLOWED: usize = 8;
/// Replies to replies are moved in no further than this.
const DEPTH: usize = 8;
/// Messages read at once.
const PAGE: usize = 1_000;

/// What others wrote, with nothing in it that a terminal would obey or that would look like a line of its own.
pub(super) fn escape(text: &str, indent: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.trim_end().chars() {
        match character {
            '\n' => {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent + 4));
                out.push_str("| ");
            }
            '\t' | '\u{200c}' | '\u{200d}' => out.push(character),
            character if names::is_deceptive(character) => out.extend(character.escape_default()),
            character => out.push(character),
        }
    }
    out
}

pub(super) fn when(hlc: Hlc) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    let seconds = i64::try_from(hlc.millis().0 / 1_000).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(format).ok());
    time.unwrap_or_else(|| "????-??-?? ??:??".into())
}

pub(super) fn digits(id: &Hash, length: usize) -> String {
    id.to_string()[..length].to_owned()
}

fn common(a: &Hash, b: &Hash) -> usize {
    a.to_string().bytes().zip(b.to_string().bytes()).take_while(|(a, b)| a == b).count()
}

/// For each id, as many digits as tell it from the others.
fn shortened(messages: &[Message]) -> BTreeMap<Hash, String> {
    let mut ids: Vec<Hash> = messages.iter().map(|message| message.position.id).collect();
    ids.sort_unstable();
    let needed = |place: usize| {
        let before = place.checked_sub(1).map_or(0, |other| common(&ids[place], &ids[other]) + 1);
        let after = ids.get(place + 1).map_or(0, |other| common(&ids[place], other) + 1);
        before.max(after).clamp(DIGITS, 64)
    };
    ids.iter().enumerate().map(|(place, id)| (*id, digits(id, needed(place)))).collect()
}

fn line(message: &Message, id: &str, depth: usize, members: &Membership) -> String {
    let indent = depth * 2;
    let mut out = " ".repeat(indent);
    if depth > 0 {
        out.push_str("↳ ");
    }
    let author = members.name(&message.position.author);
    let text = if message.redacted.is_some() { "(redacted)".into() } else { escape(&message.text, indent) };
    let edited = if message.edited.is_some() { " (edited)" } else { "" };
    out.push_str(&format!("{} [{id}] {author}: {text}{edited}", when(message.position.hlc)));
    for reaction in &message.reactions {
        let by: Vec<_> = reaction.by.iter().map(|(node, _)| members.name(node)).collect();
        out.push_str(&format!("  {} {}", escape(&reaction.emoji, 0), by.join(", ")));
    }
    out.push('\n');
    out
}

impl Chat {
    /// One message as a line of its own, for following a room: not beneath what it answers, but naming it.
    #[must_use]
    pub fn line(&self, message: &Message) -> String {
        let members = self.log().membership().load();
        let id = digits(&message.position.id, FOLLOWED);
        let line = line(message, &id, 0, &members);
        match message.reply_to {
            None => line,
            Some(to) => format!("↳ {} {line}", digits(&to, FOLLOWED)),
        }
    }

    /// The whole room: messages in order, times in UTC, replies beneath what they answer, whatever order they arrived in.
    /// Control characters are shown, not obeyed. Ids are as long as they must be to be told apart in the room.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn render(&self, room: &str) -> Result<String, ChatError> {
        Ok(self.rendered(&self.all(room)?))
    }

    /// All messages of a room, in order.
    pub(super) fn all(&self, room: &str) -> Result<Vec<Message>, ChatError> {
        let mut messages: Vec<Message> = Vec::new();
        loop {
            let after: Option<Position> = messages.last().map(|message| message.position);
            let page = self.messages(room, after.as_ref(), PAGE)?;
            let last = page.len() < PAGE;
            messages.extend(page);
            if last {
                return Ok(messages);
            }
        }
    }

    /// Messages in order as the text of their room.
    pub(super) fn rendered(&self, messages: &[Message]) -> String {
        let ids = shortened(messages);
        let mut answers: BTreeMap<Hash, Vec<&Message>> = BTreeMap::new();
        let mut tops = Vec::new();
        for message in messages {
            match message.reply_to.filter(|to| ids.contains_key(to)) {
                Some(to) => answers.entry(to).or_default().push(message),
                None => tops.push(message),
            }
        }
        let members = self.log().membership().load();
        let mut out = String::new();
        let mut rest: Vec<(usize, &Message)> = tops.into_iter().rev().map(|message| (0, message)).collect();
        while let Some((depth, message)) = rest.pop() {
            let id = ids.get(&message.position.id).map_or("", String::as_str);
            out.push_str(&line(message, id, depth.min(DEPTH), &members));
            let below = answers.remove(&message.position.id).unwrap_or_default();
            rest.extend(below.into_iter().rev().map(|message| (depth + 1, message)));
        }
        out
    }
}
